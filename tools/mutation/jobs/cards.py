"""Cards that are no disks: edu, DES, and the frame grabber."""

from __future__ import annotations

from typing import Any, Final

from busdma.sim.chips.camera import FIELD
from mutation.jobs.common import MILLISECOND, Words, blank, both, echo, filled, on, pause, same, text, word

SMALL: Final = {"width": 32, "height": 8, "buffer": 4096}  #: pictures


@on(("sim:x86-64", "edu0"), ("sim:x86-64", "edu1"), ("sim:x86-64?iommu=on", "edu0"))
async def echoes(machine: Any, driver: Any) -> Words:
    """There and back; two users."""
    return await both(machine, echo(machine, driver, 4096, 1365), echo(machine, driver, 100, 0))


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


CARDS: Final = (("sim:pc-isa", "des0"), ("sim:x86-64", "des0"))
KEY: Final = bytes.fromhex("0123456789ABCDEF")


@on(*CARDS, ("sim:x86-64?iommu=on", "des0"))
async def ciphers(machine: Any, driver: Any) -> Words:
    """Echoes of whole blocks and not; one buffer into another, and in place, in several pieces."""
    found = await both(machine, echo(machine, driver, 9001, 1365), echo(machine, driver, 8, 0))
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
