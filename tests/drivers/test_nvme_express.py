"""Requests of the NVMe driver that go express, past a context that waits, conflicts, polls or has been reset."""

from __future__ import annotations

import random
import time

import pytest

from busdma.drivers.nvme.controller import NvmeFault
from busdma.runtime import NAMES, by_name
from busdma.sim.nvme.controller import NeverCompletes
from busdma.sync import Direction
from busdma.waiting import Task
from drivers.nvme_rig import Rig, pause

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("poll", [0, 5_000])
def test_the_doorbell_is_rung_though_the_context_waits_for_bounce_pages(name: str, poll: int) -> None:
    rig = Rig(by_name(name), bounce=17, poll=poll)
    data = random.Random(5).randbytes(4096)

    async def main() -> None:
        driver, runtime = rig.driver, rig.runtime
        disk = driver.disks[0]
        await disk.write(8, rig.buffer(data))
        hog = driver.tag.create_map()
        hog.load_nowait(bytearray(17 * 4096), Direction.FROM_DEVICE)
        waits = runtime.start(disk.read, 0, bytearray(4096))
        await pause(runtime, MILLISECOND)
        begin, found = runtime.now(), rig.empty(4096)
        await disk.read(8, found)  # it lies where the device can reach it
        assert found.read() == data
        assert runtime.now() - begin < SECOND
        hog.unload()
        hog.destroy()
        await runtime.park(waits.done)
        waits.result()
        assert driver.statistics()["aborts"] == 0

    rig.run(main)
    rig.close()


def test_completions_are_looked_for_though_the_next_request_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever spins finds another's, and goes on: somebody must look for those that the next one has to wait for."""
    rig = Rig(by_name("virtual"), poll=5_000, spin=1)

    async def main() -> None:
        driver, runtime = rig.driver, rig.runtime
        disk = driver.disks[0]
        await pause(runtime, MILLISECOND)  # nothing is looked for any more
        found = iter([True])
        monkeypatch.setattr(driver, "_spin_for", lambda *_: next(found, False))
        tasks: list[Task[None]] = [
            runtime.start(disk.write, 0, rig.buffer(b"w" * 512)),
            runtime.start(disk.read, 0, back := rig.empty(512)),
        ]
        begin = runtime.now()
        for task in tasks:
            await runtime.park(task.done)
            task.result()
        assert next(found, None) is None
        assert back.read() == b"w" * 512
        assert runtime.now() - begin < SECOND

    rig.run(main)
    rig.close()


@pytest.mark.parametrize("name", NAMES)
def test_commands_that_time_out_together_are_not_aborted_in_their_next_try(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one ends by a reset. The others get another try: that they were late is over."""
    rig = Rig(by_name(name), depth=3)
    reopen = rig.driver._reopen

    def slowly() -> None:
        reopen()
        time.sleep(0.05)  # on threads those who were waiting may run first

    monkeypatch.setattr(rig.driver, "_reopen", slowly)

    async def main() -> None:
        driver, runtime = rig.driver, rig.runtime
        disk = driver.disks[0]
        for lba in range(3):
            await disk.write(lba, rig.buffer(bytes([lba]) * 512))
        for _ in range(3):
            rig.controller.inject(NeverCompletes(ignore_abort=True))
        buffers = [rig.empty(512) for _ in range(3)]
        tasks: list[Task[None]] = []
        for lba, deadline in enumerate((None, None, runtime.now() + 9 * SECOND)):
            tasks.append(runtime.start(disk.read, lba, buffers[lba], deadline))
            await pause(runtime, MILLISECOND)
        for task in tasks:
            await runtime.park(task.done)
        with pytest.raises(NvmeFault, match="lost when nvme0 was reset"):
            tasks[2].result()
        for lba in (0, 1):
            tasks[lba].result()
            assert buffers[lba].read() == bytes([lba]) * 512
        statistics = driver.statistics()
        assert (statistics["resets"], statistics["aborts"]) == (1, 1)

    rig.run(main)
    rig.close()
