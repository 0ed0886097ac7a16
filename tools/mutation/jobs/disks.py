"""Disks behind every kind of controller: what they do alike, and the faults of SCSI ones."""

from __future__ import annotations

from typing import Any, Final

from busdma.sim.scsi.mailbox_adapter import ForeignBusReset, MediumError
from busdma.sim.scsi.mailbox_layout import NeverCompletes
from busdma.sync import Direction
from mutation.jobs.common import (
    MILLISECOND,
    SECOND,
    Words,
    both,
    filled,
    on,
    pause,
    same,
    text,
    there_and_back,
    word,
    write_later,
)

AHA, BT = ("sim:pc-isa", "aha0"), ("sim:pc-vlb", "bt0")
MAILBOXES: Final = (AHA, BT)
ESPS: Final = (("sim:sparc", "esp0"), ("sim:mips", "esp0"), ("sim:alpha", "esp0"))
NVME: Final = ("sim:x86-64", "nvme0")
FLOPPY: Final = ("sim:pc-isa", "fd0")


@on(*MAILBOXES, *ESPS, NVME, FLOPPY)
async def round_trip(machine: Any, driver: Any) -> Words:
    """Through several pages, and less than one; and of what must not be written."""
    (disk,) = driver.disks
    found = [*await there_and_back(machine, disk, 12_288, 1360), *await there_and_back(machine, disk, 512, 0)]
    return [*found, await word(disk.write(9, text(512)))]


@on(*MAILBOXES, *ESPS, NVME, FLOPPY)
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
        machine, disk.write(0, one, deadline=end), disk.write(50, two), write_later(machine, 5 * SECOND // 2, disk, 3)
    )
    return [*found, same(two, text(4096, 2)), *await there_and_back(machine, disk, 2048, 8)]


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


@on(FLOPPY)
async def floppy_faults(machine: Any, driver: Any) -> Words:
    """A bad sector, a controller that does not answer, a deadline, and a stop in the middle."""
    (disk,), model, runtime = driver.disks, machine.fdc, machine.runtime
    data = text(18_432)
    buffer = filled(machine, data, 512)
    model.bad[40] = 100
    found = [await word(disk.read(38, buffer))]
    model.bad.clear()
    model.inject_silence()
    buffer.write(data)
    found += [await word(disk.write(36, buffer)), same(buffer, data)]
    buffer = filled(machine, data)
    model.inject_silence()
    found.append(await word(disk.read(0, buffer, deadline=runtime.now() + SECOND)))
    found += await there_and_back(machine, disk, 2048, 8)

    async def stop() -> None:
        await pause(machine, 100 * MILLISECOND)
        await driver.stop()

    found += await both(machine, disk.read(0, buffer), disk.read(20, filled(machine, data)), stop())
    buffer.free()
    await driver.start()
    return [*found, *await there_and_back(machine, driver.disks[0], 2048, 8)]


@on(FLOPPY)
async def floppy_given_up(machine: Any, driver: Any) -> Words:
    """A deadline that passes, and a context that is cancelled, while a buffer is being loaded."""
    (disk,) = driver.disks
    tag = driver.tag.derive("holder")
    held: list[Any] = []
    while len(held) < 40:
        held.append(tag.create_map())
        if await word(held[-1].load(bytearray(16_384), Direction.TO_DEVICE, deadline=machine.runtime.now())) != "done":
            held.pop().destroy()
            break
    found = [await word(disk.write(9, text(18_432), deadline=machine.runtime.now() + SECOND))]
    task = machine.runtime.start(disk.write, 9, text(18_432))
    await pause(machine, MILLISECOND)
    task.cancel()
    await machine.runtime.park(task.done)
    for map in held:
        map.unload()
        map.destroy()
    tag.destroy()
    return [*found, *await there_and_back(machine, disk, 2048, 8)]
