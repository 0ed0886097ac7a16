"""Ends in `busdma.drivers.host`: stop and start again, deadlines that meet completions, starts that fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from busdma.drivers import scsi_host
from busdma.drivers.disk import ScsiFault
from busdma.drivers.queues import Request, RequestQueue
from busdma.errors import DeviceFault, DriverError, ResourceShortage
from busdma.lifecycle import State
from busdma.runtime import by_name
from busdma.sim.nvme.controller import FailsWith
from busdma.sim.nvme.queue import Status
from busdma.sim.scsi.mailbox_layout import NeverCompletes
from busdma.sim.scsi.target import Clock, DataIn, Phases
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.waiting import Waiter
from drivers.nvme_rig import Rig as NvmeRig
from drivers.nvme_rig import pause
from drivers.rig import Rig

MILLISECOND = 1_000_000
BUSY = 0x08


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(by_name("virtual"))
    yield rig
    rig.close()


def busy_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next READ(10) ends with BUSY."""
    target, left = rig.targets[0], [1]
    execute = target.execute

    def answer(lun: int, cdb: bytes, now: Clock) -> Phases:
        if cdb[0] == 0x28 and left.pop() if left else False:
            yield DataIn(b"")
            return BUSY
        return (yield from execute(lun, cdb, now))

    monkeypatch.setattr(target, "execute", answer)


def test_what_waited_for_its_next_try_is_gone_after_a_stop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        driver, runtime = rig.driver, rig.runtime
        busy_once(rig, monkeypatch)
        task = runtime.start(driver.disks[0].read, 0, rig.empty(4096))
        await pause(runtime, 60 * MILLISECOND)
        assert driver.statistics()["retries"] == 2  # the first was for the unit attention
        await driver.stop()
        await runtime.park(task.done)
        with pytest.raises(DriverError, match="was stopped"):
            task.result()
        await driver.start()
        await driver.disks[0].write(8, rig.buffer(b"x" * 512))
        await pause(runtime, 200 * MILLISECOND)
        assert driver.statistics()["disks"]["aha0:0"] == {"queued": 0, "in_flight": 0}

    rig.run(main)


def test_what_waited_for_its_next_try_at_a_namespace_is_gone_too() -> None:
    rig = NvmeRig(by_name("virtual"))

    async def main() -> None:
        driver, runtime = rig.driver, rig.runtime
        rig.controller.inject(FailsWith(Status.NAMESPACE_NOT_READY))
        task = runtime.start(driver.disks[0].read, 0, rig.empty(4096))
        await pause(runtime, MILLISECOND)
        assert driver.statistics()["retries"] == 1
        await driver.stop()
        await runtime.park(task.done)
        await driver.start()
        await pause(runtime, 20 * MILLISECOND)

    rig.run(main)
    rig.close()


def test_the_device_is_idle_before_anybody_is_told_of_a_stop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On OS threads whoever is told uses the buffer at once."""
    states: list[set[State]] = []
    settle = RequestQueue.settle

    def told(self: RequestQueue, request: Request, result: Any) -> bool:
        if isinstance(result, DriverError):
            states.append({slot.map.state for slot in rig.driver._slots})
        return settle(self, request, result)

    monkeypatch.setattr(RequestQueue, "settle", told)

    async def main() -> None:
        rig.adapter.inject(NeverCompletes(0))
        task = rig.runtime.start(rig.driver.disks[0].read, 0, rig.empty(8192))
        await pause(rig.runtime, 500 * MILLISECOND)
        await rig.driver.stop()
        await rig.runtime.park(task.done)

    rig.run(main)
    assert states == [{State.IDLE}]


def test_a_time_that_ends_while_a_completion_is_looked_at_ends_the_request(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery on another thread finds the command neither with the adapter nor resting."""
    delay = scsi_host.retry_delay

    def meanwhile(status: int, sense: Any) -> int | None:
        if status == BUSY:
            for slot in rig.driver._slots:
                if slot.request is not None:
                    assert not slot.told
                    assert not slot.resting
                    rig.driver._watch.end(slot.request)  # it is that which has told recovery
                    slot.abort = Waiter("its time is over")
        return delay(status, sense)

    async def main() -> None:
        busy_once(rig, monkeypatch)
        monkeypatch.setattr(scsi_host, "retry_delay", meanwhile)
        with pytest.raises(ScsiFault, match="BUSY"):
            await rig.driver.disks[0].read(0, rig.empty(4096))
        monkeypatch.undo()
        await rig.driver.disks[0].read(0, rig.empty(4096))

    rig.run(main)


def test_a_stop_resets_the_device_though_a_failed_context_took_its_maps_along(rig: Rig) -> None:
    async def main() -> None:
        slot = rig.driver._slots[0]
        slot.map.load_nowait(rig.empty(512), Direction.FROM_DEVICE)
        slot.loaded = Direction.FROM_DEVICE  # as it stands between the load and the command
        rig.driver.tag.abandon()

    rig.run(main)
    assert rig.adapter.counts["soft_resets"] == 1


def test_a_start_without_memory_leaves_no_tag_behind(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Tag, *args: Any, **options: Any) -> None:
        raise ResourceShortage("no memory")

    async def main() -> None:
        with monkeypatch.context() as without, pytest.raises(ResourceShortage, match="no memory"):
            without.setattr(Tag, "alloc", none)
            await rig.driver.start()
        rig.driver.tag.destroy()

    rig.runtime.run(main)


def test_a_reset_does_not_bring_back_what_a_stop_has_ended() -> None:
    runtime = by_name("virtual")
    queue = RequestQueue("disk", runtime)
    request = Request(b"\0")

    async def main() -> None:
        task = runtime.start(queue.submit, request)
        assert queue.start(await queue.next())
        queue.close(DriverError("closed"))
        queue.put_back([request])
        await runtime.park(task.done)
        with pytest.raises(DriverError, match="closed"):
            task.result()
        assert not queue.in_flight

    runtime.run(main)


def test_a_deadline_that_passed_in_a_reset_still_counts() -> None:
    """And it is no DeadlineExpired, which promises that the device was never told."""
    runtime = by_name("virtual")
    queue = RequestQueue("disk", runtime)
    request = Request(b"\0", deadline=50)

    async def main() -> None:
        task = runtime.start(queue.submit, request)
        assert queue.start(await queue.next())
        await pause(runtime, 100)
        request.resets = 1
        queue.put_back([request])
        await runtime.park(task.done)
        with pytest.raises(DeviceFault, match="after a reset"):
            task.result()
        assert len(queue) == 0

    runtime.run(main)


def test_two_who_stop_it_at_once(rig: Rig) -> None:
    async def main() -> None:
        driver, runtime = rig.driver, rig.runtime
        other = runtime.start(driver.stop)
        await driver.stop()
        await runtime.park(other.done)
        other.result()
        assert driver.disks == []
        await driver.start()
        assert len(driver.disks) == 1

    rig.runtime.run(main)
