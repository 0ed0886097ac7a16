"""The jobs that mutants of the drivers are put to: small, deterministic, and together they execute every call.

A job is given a machine under the checker and returns what its user saw of it, as words; without a mutant there must
be no finding. Faults are those that the device models can be told to have. Imported when the drivers' calls are led
through the switch of `mutants`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from busdma.buffers import LinearBuffer
from busdma.drivers.nvme.controller import NvmeFault
from busdma.machine.machine import Machine
from busdma.mbuf import MbufPool
from busdma.sim.camera import FIELD
from busdma.sim.mailbox_adapter import ForeignBusReset, MediumError
from busdma.sim.mailbox_layout import NeverCompletes
from busdma.sim.nvme import FailsWith, FatalStatus
from busdma.sim.nvme import NeverCompletes as Lost
from busdma.sim.nvme_flash import MediaError
from busdma.sim.nvme_queue import Status
from busdma.waiting import Waiter

Words = list[str]
Job = Callable[[Any], Coroutine[Any, Any, Words]]
Body = Callable[[Any, Any], Coroutine[Any, Any, Words]]  #: of the machine, and of its driver, which is started

SECOND: Final = 10**9
MILLISECOND: Final = 10**6
SMALL: Final = {"width": 32, "height": 8, "buffer": 4096}

JOBS: Final[dict[str, tuple[str, Job]]] = {}


def on(*places: tuple[str, str]) -> Callable[[Body], Body]:
    """Make a job of `body` on each of these (spec, device), with the driver started before and stopped afterwards."""

    def add(body: Body) -> Body:
        for spec, device in places:

            async def job(machine: Machine, device: str = device) -> Words:
                driver = machine.driver(device)
                await driver.start()
                try:
                    return await body(machine, driver)
                finally:
                    await driver.stop()

            JOBS[f"{body.__name__} on {device} of {spec}"] = spec, job
        return body

    return add


# -- words and data ---------------------------------------------------------------------------------------------------


def text(length: int, seed: int = 1) -> bytes:
    """Bytes of which no two places look alike."""
    return random.Random(seed).randbytes(length)


def filled(machine: Machine, data: bytes, offset: int = 0) -> LinearBuffer:
    """A kernel buffer with `data` in it."""
    buffer = machine.allocate(len(data), offset=offset)
    buffer.write(data)
    return buffer


def blank(machine: Machine, data: bytes, offset: int = 0) -> LinearBuffer:
    """One to be read into: every byte of it is another than that of `data`."""
    return filled(machine, bytes(255 - byte for byte in data), offset)


async def word(doing: Awaitable[Any]) -> str:
    """What became of it."""
    try:
        await doing
    except Exception as error:
        return type(error).__name__
    return "done"


def same(buffer: LinearBuffer, data: bytes) -> str:
    """Is that in it? The buffer is freed."""
    found = buffer.read()
    buffer.free()
    return "the same" if found == data else "something else"


async def pause(machine: Machine, time: int) -> None:
    """Let `time` ns pass."""
    waiter = Waiter("a pause")
    machine.runtime.call_at(machine.runtime.now() + time, waiter.wake)
    await machine.runtime.park(waiter)


async def both(machine: Machine, *doing: Coroutine[Any, Any, Any]) -> Words:
    """All of them at the same time, in words."""

    async def one(each: Coroutine[Any, Any, Any]) -> str:
        return await word(each)

    tasks = [machine.runtime.start(one, each) for each in doing]
    for task in tasks:
        await machine.runtime.park(task.done)
    return [task.result() for task in tasks]


# -- disks ------------------------------------------------------------------------------------------------------------

AHA, BT = ("sim:pc-isa", "aha0"), ("sim:pc-vlb", "bt0")
MAILBOXES: Final = (AHA, BT)
ESPS: Final = (("sim:sparc", "esp0"), ("sim:mips", "esp0"), ("sim:alpha", "esp0"))
NVME: Final = ("sim:x86-64", "nvme0")


async def there_and_back(machine: Machine, disk: Any, length: int, offset: int) -> Words:
    """Write and read."""
    data = text(length)
    out, back = filled(machine, data, offset), blank(machine, data, offset + 8)
    found = [await word(disk.write(3, out)), await word(disk.flush()), await word(disk.read(3, back))]
    return [*found, same(out, data), same(back, data)]


@on(*MAILBOXES, *ESPS, NVME)
async def round_trip(machine: Any, driver: Any) -> Words:
    """Through several pages, and less than one."""
    (disk,) = driver.disks
    return [*await there_and_back(machine, disk, 12_288, 1360), *await there_and_back(machine, disk, 512, 0)]


@on(*MAILBOXES, *ESPS, NVME)
async def many_at_once(machine: Any, driver: Any) -> Words:
    """More commands than there are slots."""
    (disk,) = driver.disks
    data = [text(512, seed) for seed in range(40)]
    buffers = [filled(machine, each) for each in data]
    found = await both(machine, *(disk.write(9 * n, each) for n, each in enumerate(buffers)))
    for buffer in buffers:
        buffer.fill(0)
    found += await both(machine, *(disk.read(9 * n, each) for n, each in enumerate(buffers)))
    return found + [same(buffer, each) for buffer, each in zip(buffers, data, strict=True)]


@on(*MAILBOXES)
async def bad_block(machine: Any, driver: Any) -> Words:
    """A command that fails, with sense data, and one that is tried again."""
    (disk,), adapter = driver.disks, _adapter(machine)
    adapter.inject(MediumError(0, 40, 1))
    data = text(4096)
    buffer = filled(machine, data)
    found = [await word(disk.read(38, buffer))]
    adapter.bus.targets[0].reset()
    return [*found, await word(disk.write(100, buffer)), *await there_and_back(machine, disk, 2048, 8)]


@on(*MAILBOXES)
async def no_answer(machine: Any, driver: Any) -> Words:
    """An abort."""
    (disk,) = driver.disks
    _adapter(machine).inject(NeverCompletes(0))
    buffer = filled(machine, text(4096))
    found = [await word(disk.write(0, buffer, deadline=machine.runtime.now() + SECOND))]
    buffer.free()
    return [*found, *await there_and_back(machine, disk, 2048, 8)]


@on(*MAILBOXES)
async def no_answer_to_an_abort(machine: Any, driver: Any) -> Words:
    """A reset, after which other commands are done again."""
    (disk,) = driver.disks
    _adapter(machine).inject(NeverCompletes(0, ignore_abort=True))
    end = machine.runtime.now() + SECOND
    one, two = (filled(machine, text(4096, seed)) for seed in (1, 2))
    found = await both(
        machine, disk.write(0, one, deadline=end), disk.write(50, two), _later(machine, 5 * SECOND // 2, disk, 3)
    )
    return [*found, same(two, text(4096, 2)), *await there_and_back(machine, disk, 2048, 8)]


async def _later(machine: Machine, time: int, disk: Any, lba: int) -> None:
    """While the controller is being reset, and the command has to wait for that."""
    await pause(machine, time)
    buffer = filled(machine, text(512))
    await disk.write(lba, buffer)
    buffer.free()


@on(*MAILBOXES)
async def somebody_resets_the_bus(machine: Any, driver: Any) -> Words:
    """In the middle of a command."""
    (disk,) = driver.disks
    adapter, runtime = _adapter(machine), machine.runtime
    runtime.call_at(runtime.now() + MILLISECOND, lambda: adapter.inject(ForeignBusReset()))
    return await there_and_back(machine, disk, 16_384, 8)


@on(*MAILBOXES, *ESPS, NVME)
async def stopped(machine: Any, driver: Any) -> Words:
    """With a command under way; and started again."""
    (disk,) = driver.disks
    buffer = filled(machine, text(65_536), 512)

    async def stop() -> None:
        await pause(machine, 1000)
        await driver.stop()

    found = await both(machine, disk.read(0, buffer), stop())
    buffer.free()
    await driver.start()
    return [*found, *await there_and_back(machine, driver.disks[0], 2048, 8)]


def _adapter(machine: Any) -> Any:
    return machine.adapters["aha0"] if hasattr(machine, "adapters") else machine.adapter


@on(*ESPS[:2])
async def silence(machine: Any, driver: Any) -> Words:
    """A target that has disconnected and does not come back: it is selected for an abort."""
    (disk,) = driver.disks
    machine.chip.inject_silence(0)
    buffer = filled(machine, text(4096))
    found = [await word(disk.write(0, buffer, deadline=machine.runtime.now() + SECOND))]
    buffer.free()
    return [*found, *await there_and_back(machine, disk, 2048, 8)]


@on(*ESPS[:2])
async def bad_block_and_bus_reset(machine: Any, driver: Any) -> Words:
    """Sense data by a command of their own, a retry, and a command that is done again."""
    (disk,) = driver.disks
    target = machine.chip.bus.targets[0]
    target.bad.add(40)
    buffer = filled(machine, text(4096))
    found = [await word(disk.read(38, buffer))]
    target.reset()
    found.append(await word(disk.read(60, buffer)))
    machine.runtime.call_at(machine.runtime.now() + MILLISECOND, machine.chip.inject_bus_reset)
    return [*found, *await there_and_back(machine, disk, 16_384, 8)]


# -- NVMe -------------------------------------------------------------------------------------------------------------


@on(NVME)
async def prp_lists(machine: Any, driver: Any) -> Words:
    """Transfers of many pages, and around the queues more than once."""
    (disk,) = driver.disks
    found = await there_and_back(machine, disk, 131_072, 0)
    for _ in range(30):
        found += await there_and_back(machine, disk, 512, 4)
    return found


@on(NVME)
async def all_prp_lists(machine: Any, driver: Any) -> Words:
    """Every slot has a transfer of as many pages as there can be."""
    (disk,) = driver.disks
    buffers = [filled(machine, text(131_072, seed), 8) for seed in range(31)]
    found = await both(machine, *(disk.write(256 * n, each) for n, each in enumerate(buffers)))
    for buffer in buffers:
        buffer.fill(0)
    found += await both(machine, *(disk.read(256 * n, each) for n, each in enumerate(buffers)))
    return found + [same(buffer, text(131_072, seed)) for seed, buffer in enumerate(buffers)]


@on(("sim:x86-64?bounce=40", "nvme0"))
async def short_of_pages(machine: Any, driver: Any) -> Words:
    """The second load has to wait."""
    (disk,) = driver.disks
    buffers = [filled(machine, text(65_536, seed), 1365) for seed in range(3)]
    found = await both(machine, *(disk.write(500 * n, each) for n, each in enumerate(buffers)))
    for buffer in buffers:
        buffer.fill(0)
    found += await both(machine, *(disk.read(500 * n, each) for n, each in enumerate(buffers)))
    return found + [same(buffer, text(65_536, seed)) for seed, buffer in enumerate(buffers)]


@on(NVME)
async def nvme_faults(machine: Any, driver: Any) -> Words:
    """A bad block, a retry, an abort, two resets after the queues have been full, and a command during each."""
    (disk,), model, runtime = driver.disks, machine.nvme, machine.runtime
    buffer = filled(machine, text(16_384))
    for _ in range(40):
        await disk.write(0, buffer)
    model.inject(MediaError(1, 40))
    found = [await word(disk.read(38, buffer))]
    model.inject(FailsWith(Status.NAMESPACE_NOT_READY))
    found.append(await word(disk.write(0, buffer)))
    for fault in (Lost(), Lost(ignore_abort=True), FatalStatus()):
        model.inject(fault)
        found += await both(
            machine, disk.write(0, buffer, runtime.now() + SECOND), _later(machine, 3 * SECOND + MILLISECOND, disk, 900)
        )
        found += await there_and_back(machine, disk, 16_384, 0)
    buffer.free()
    return found


@on(NVME)
async def identify_fails(machine: Any, driver: Any) -> Words:
    """The driver asks again after an admin command got lost."""
    machine.nvme.inject(Lost(admin=True))
    try:
        await driver._controller.identify(1)
    except NvmeFault:
        return [f"{len(await driver._controller.identify(1))} bytes at the second try"]
    return ["it came"]


# -- edu --------------------------------------------------------------------------------------------------------------


@on(("sim:x86-64", "edu0"), ("sim:x86-64", "edu1"), ("sim:x86-64?iommu=on", "edu0"))
async def echoes(machine: Any, driver: Any) -> Words:
    """There and back; two users."""
    return await both(machine, _echo(machine, driver, 4096, 1365), _echo(machine, driver, 100, 0))


@on(("sim:x86-64", "edu0"))
async def left_in_the_middle(machine: Any, driver: Any) -> Words:
    """By its user, by a device that hangs, and by the driver."""
    buffer = filled(machine, text(4096), 5)
    task = machine.runtime.start(driver.copy_out, buffer)
    await pause(machine, 1000)
    task.cancel()
    await machine.runtime.park(task.done)
    found = [await word(driver.copy_in(b"."))]
    machine.edus["edu0"].inject_stuck_transfer()
    found += await both(machine, driver.copy_in(buffer), driver.copy_out(bytearray(10)))
    buffer.free()
    return found


async def _echo(machine: Any, driver: Any, length: int, offset: int) -> None:
    data = text(length)
    out, back = filled(machine, data, offset), blank(machine, data, offset + 3)
    await driver.echo(out, back)
    if (same(out, data), same(back, data)) != ("the same", "the same"):
        raise ValueError("something else came back")


# -- DES --------------------------------------------------------------------------------------------------------------

CARDS: Final = (("sim:pc-isa", "des0"), ("sim:x86-64", "des0"))
KEY: Final = bytes.fromhex("0123456789ABCDEF")


@on(*CARDS, ("sim:x86-64?iommu=on", "des0"))
async def ciphers(machine: Any, driver: Any) -> Words:
    """Echoes of whole blocks and not; one buffer into another, and in place, in several pieces."""
    found = await both(machine, _echo(machine, driver, 9001, 1365), _echo(machine, driver, 8, 0))
    data = text(40_000)
    one, two = filled(machine, data, 5), blank(machine, data, 4093)
    found.append(await word(driver.encrypt(KEY, one, two, iv=KEY)))
    found.append(await word(driver.encrypt(KEY, two, two, iv=KEY, decrypt=True)))
    return [*found, same(one, data), same(two, data)]


@on(*CARDS)
async def cipher_faults(machine: Any, driver: Any) -> Words:
    """A status that is an error, a card that hangs, a user that leaves."""
    model, runtime, data = machine.des, machine.runtime, text(4096)
    buffer = filled(machine, data, 3)
    found = [await word(driver.encrypt(KEY, buffer, buffer))]
    model._key = b""  # the card has lost it
    found.append(await word(driver.encrypt(KEY, buffer, buffer)))
    model.inject_hang()
    found.append(await word(driver.encrypt(KEY, buffer, buffer)))
    task = runtime.start(driver.encrypt, KEY, bytes(4096), buffer)
    await pause(machine, 1000)
    task.cancel()
    await runtime.park(task.done)
    found.append(await word(driver.encrypt(KEY, bytes(8), bytearray(8), deadline=runtime.now() + 100 * MILLISECOND)))
    buffer.write(data)
    found += [await word(driver.encrypt(KEY, buffer, buffer, decrypt=way)) for way in (False, True)]
    return [*found, same(buffer, data)]


@on(("sim:pc-isa?bounce=10", "des0"))
async def cipher_short_of_pages(machine: Any, driver: Any) -> Words:
    """Both buffers cannot be had together: the pieces get smaller."""
    back = bytearray(24_000)
    found = [
        await word(driver.encrypt(KEY, text(24_000), back)),
        await word(driver.encrypt(KEY, back, back, decrypt=True)),
    ]
    return [*found, "the same" if back == text(24_000) else "something else"]


# -- Ethernet ---------------------------------------------------------------------------------------------------------

NET: Final = ("sim:x86-64", "net0")


@on(NET, ("sim:alpha", "net0"), ("sim:x86-64?iommu=on", "net0"))
async def frames(machine: Any, driver: Any) -> Words:
    """Echoes, then frames that are received into clusters, round the ring and on."""
    found = await both(machine, _echo(machine, driver, 5992, 1365), _echo(machine, driver, 8, 0))
    await driver.supply(MbufPool(machine.kernel))
    for length in (1000, 1500, 46, *range(100, 140)):
        found += await _send(machine, driver, length)
    return found


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
    return [each for length in (1000, 1500, 300) for each in await _send(machine, driver, length)]


@on(("sim:x86-64?bounce=8", "net0"))
async def a_supply_that_waits(machine: Any, driver: Any) -> Words:
    """Somebody else has the pages at first."""
    holder = driver.tag.create_map(name="holder")
    buffer = filled(machine, text(4096 * 4))
    holder.load_nowait(buffer)
    machine.runtime.call_at(machine.runtime.now() + MILLISECOND, holder.unload)
    await driver.supply(MbufPool(machine.kernel))
    found = await _send(machine, driver, 1500)
    holder.destroy()
    buffer.free()
    return found


@on(NET)
async def net_faults(machine: Any, driver: Any) -> Words:
    """A lost echo, one that is left, an underflow, a frame that never goes; each but the third ends by a reset."""
    runtime, model = machine.runtime, machine.net
    found = [await word(driver.echo(text(100), text(100))), await word(driver.send(b"no header"))]
    machine.wire.tamper = lambda data: None
    found.append(await word(_echo(machine, driver, 3000, 5)))
    machine.wire.tamper = None
    task = runtime.start(_echo, machine, driver, 3000, 5)
    await pause(machine, 2 * MILLISECOND)
    task.cancel()
    await runtime.park(task.done)
    found.append(await word(_echo(machine, driver, 3000, 5)))
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


# -- the frame grabber ------------------------------------------------------------------------------------------------


@on(("sim:x86-64", "grab0"), ("sim:x86-64?iommu=on", "grab0"))
async def pictures(machine: Any, driver: Any) -> Words:
    """Some lines of some pictures, twice."""
    found = []
    for _ in range(2):
        await driver.start_capture(**SMALL, slots=3)
        for _ in range(4):
            frame = await driver.frame()
            with frame.lines(2, 3) as view:
                found.append(bytes(view).hex())
        await pause(machine, 4 * FIELD)
        await driver.stop_capture()
    return found
