"""Frames of Ethernet, there and back."""

from __future__ import annotations

from typing import Any, Final

from busdma.mbuf import MbufPool
from mutation.jobs.common import MILLISECOND, Words, both, echo, filled, on, pause, text, word

NET: Final = ("sim:x86-64", "net0")


@on(NET, ("sim:alpha", "net0"), ("sim:x86-64?iommu=on", "net0"))
async def frames(machine: Any, driver: Any) -> Words:
    """Echoes, then frames that are received into clusters, round the ring and on; and of what must not be written."""
    found = await both(machine, echo(machine, driver, 5992, 1365), echo(machine, driver, 8, 0))
    found.append(await word(driver.echo(text(100), bytearray(100))))
    await driver.supply(MbufPool(machine.kernel))
    for length in (1000, 1500, 46, *range(100, 140)):
        found += await _send(machine, driver, length)
    return [*found, await word(driver.send(_frame(driver, 100)))]


@on(NET)
async def a_dry_pool(machine: Any, driver: Any) -> Words:
    """Packets that are dropped, and small mbufs."""
    await driver.supply(MbufPool(machine.kernel, limit=3), buffers=2)
    buffer = filled(machine, _frame(driver, 100), 9)
    found = [await word(driver.send(buffer)) for _ in range(4)]
    buffer.free()
    while driver.statistics()["received"] > sum(each == "the same" for each in found):
        packet = await driver.receive()
        found.append("the same" if packet.read() == _frame(driver, 100) else "something else")
        packet.free()
    return found + await _send(machine, driver, 50)


@on(NET)
async def small_mbufs(machine: Any, driver: Any) -> Words:
    """Several for a packet; one that does not fit, and one that is spoilt on the way."""
    await driver.supply(MbufPool(machine.kernel), small=True, buffers=4)
    found = await _send(machine, driver, 300)
    buffer = filled(machine, _frame(driver, 1000), 9)
    found.append(await word(driver.send(buffer)))
    machine.wire.tamper = lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:]
    found.append(await word(driver.send(buffer)))
    machine.wire.tamper = None
    buffer.free()
    return found + await _send(machine, driver, 300)


@on(("sim:x86-64?bounce=8", "net0"))
async def frames_short_of_pages(machine: Any, driver: Any) -> Words:
    """The ring has what there is, and what arrives is copied."""
    await driver.supply(MbufPool(machine.kernel))
    found = [each for length in (1000, 1500, 300) for each in await _send(machine, driver, length)]
    return [*found, await word(driver.send(_frame(driver, 100)))]


@on(("sim:x86-64?bounce=8", "net0"))
async def a_supply_that_waits(machine: Any, driver: Any) -> Words:
    """Somebody else has the pages at first."""
    return await _wait_for_pages(machine, driver, 1500, small=False)


@on(("sim:x86-64?bounce=8", "net0"))
async def a_small_supply_that_waits(machine: Any, driver: Any) -> Words:
    """Somebody else has the pages at first, and a packet takes more than one mbuf."""
    return await _wait_for_pages(machine, driver, 300, small=True)


async def _wait_for_pages(machine: Any, driver: Any, length: int, *, small: bool) -> Words:
    holder = driver.tag.create_map(name="holder")
    buffer = filled(machine, text(4096 * 4))
    holder.load_nowait(buffer)
    machine.runtime.call_at(machine.runtime.now() + MILLISECOND, holder.unload)
    await driver.supply(MbufPool(machine.kernel), small=small)
    found = await _send(machine, driver, length)
    holder.destroy()
    buffer.free()
    return found


@on(NET)
async def net_faults(machine: Any, driver: Any) -> Words:
    """A lost echo, one that is left, an underflow, a frame that never goes; each but the third ends by a reset."""
    runtime, model = machine.runtime, machine.net
    found = [await word(driver.echo(text(100), text(100))), await word(driver.send(b"no header"))]
    machine.wire.tamper = lambda data: None
    found.append(await word(echo(machine, driver, 3000, 5)))
    machine.wire.tamper = None
    task = runtime.start(echo, machine, driver, 3000, 5)
    await pause(machine, 2 * MILLISECOND)
    task.cancel()
    await runtime.park(task.done)
    found.append(await word(echo(machine, driver, 3000, 5)))
    await driver.supply(MbufPool(machine.kernel))
    model.inject_underflow()
    found += await _send(machine, driver, 500, received=False)
    await pause(machine, 100 * MILLISECOND)
    model.inject_stuck_transmit()
    found += await _send(machine, driver, 500, received=False)
    task = runtime.start(driver.send, filled(machine, _frame(driver, 1000)))
    await pause(machine, 100_000)
    task.cancel()
    await runtime.park(task.done)
    packet = await driver.receive()
    packet.free()
    return found + await _send(machine, driver, 500)


def _frame(driver: Any, length: int) -> bytes:
    station: bytes = driver.station
    return station + station + b"\x88\xb5" + text(length)


async def _send(machine: Any, driver: Any, length: int, *, received: bool = True) -> Words:
    data = _frame(driver, length)
    buffer = filled(machine, data, 4090)
    found = [await word(driver.send(buffer))]
    buffer.free()
    if received:
        packet = await driver.receive()
        found.append("the same" if packet.read(0, len(data)) == data else "something else")
        packet.free()
    return found
