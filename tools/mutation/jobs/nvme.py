"""What only an NVMe controller does."""

from __future__ import annotations

from typing import Any

from busdma.drivers.nvme.controller import NvmeFault
from busdma.sim.nvme.controller import FailsWith, FatalStatus, NeverCompletes
from busdma.sim.nvme.flash import MediaError
from busdma.sim.nvme.queue import Status
from mutation.jobs.common import (
    MILLISECOND,
    SECOND,
    Words,
    blank,
    both,
    filled,
    on,
    same,
    text,
    there_and_back,
    word,
    write_later,
)
from mutation.jobs.disks import NVME


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
    """The third load has to wait."""
    (disk,) = driver.disks
    found = await both(machine, *(disk.write(500 * n, text(65_536, n)) for n in range(3)))
    buffers = [blank(machine, text(65_536, n), 1365) for n in range(3)]
    found += await both(machine, *(disk.read(500 * n, each) for n, each in enumerate(buffers)))
    return found + [same(buffer, text(65_536, seed)) for seed, buffer in enumerate(buffers)]


@on(NVME)
async def nvme_faults(machine: Any, driver: Any) -> Words:
    """A bad block, of which the last completion in the queue tells; a retry, an abort, two resets, and a command during
    each."""
    (disk,), model, runtime = driver.disks, machine.nvme, machine.runtime
    buffer = filled(machine, text(16_384))
    for _ in range(31):
        await disk.write(0, buffer)
    model.inject(MediaError(1, 40))
    found = [await word(disk.read(38, buffer))]
    model.inject(FailsWith(Status.NAMESPACE_NOT_READY))
    found.append(await word(disk.write(0, buffer)))
    for fault in (NeverCompletes(), NeverCompletes(ignore_abort=True), FatalStatus()):
        model.inject(fault)
        found += await both(
            machine,
            disk.write(0, buffer, runtime.now() + SECOND),
            write_later(machine, 3 * SECOND + MILLISECOND, disk, 900),
        )
        found += await there_and_back(machine, disk, 16_384, 0)
    buffer.free()
    return found


@on(NVME)
async def identify_fails(machine: Any, driver: Any) -> Words:
    """The driver asks again after an admin command got lost."""
    machine.nvme.inject(NeverCompletes(admin=True))
    try:
        await driver._controller.identify(1)
    except NvmeFault:
        return [f"{len(await driver._controller.identify(1))} bytes at the second try"]
    return ["it came"]
