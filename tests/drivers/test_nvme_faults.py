"""The NVMe driver when things go wrong: bad blocks, lost commands, aborts, resets, controllers that die."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.buffers import LinearBuffer
from busdma.drivers.nvme.controller import NvmeFault
from busdma.errors import DeadlineExpired, DeviceFault
from busdma.lifecycle import State
from busdma.runtime import NAMES, by_name
from busdma.sim.nvme.controller import FailsWith, FatalStatus, NeverCompletes
from busdma.sim.nvme.flash import MediaError
from busdma.sim.nvme.queue import Command, Status
from busdma.waiting import Task
from drivers.nvme_rig import Rig, pause

SECOND = 1_000_000_000


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(by_name("virtual"))
    yield rig
    rig.close()


@pytest.fixture
def two() -> Iterator[Rig]:
    rig = Rig(by_name("virtual"), namespaces=2, bounce=33)
    yield rig
    rig.close()


def test_an_unreadable_block_says_so(rig: Rig) -> None:
    async def main() -> None:
        disk = rig.driver.disks[0]
        rig.controller.inject(MediaError(1, 40))
        with pytest.raises(NvmeFault) as caught:
            await disk.read(38, rig.empty(4096))
        assert caught.value.status == 0x281
        assert str(caught.value) == "nvme0n1: Read of blocks 38..45 failed: unrecovered read error (2/81)"
        await disk.read(41, rig.empty(4096))
        assert rig.driver.statistics()["retries"] == 0

    rig.run(main)


def test_what_may_be_tried_again_is(rig: Rig) -> None:
    data = random.Random(3).randbytes(4096)

    async def main() -> None:
        disk = rig.driver.disks[0]
        rig.controller.inject(FailsWith(Status.NAMESPACE_NOT_READY))
        rig.controller.inject(FailsWith(Status.INTERNAL_ERROR))
        await disk.write(0, rig.buffer(data))
        assert rig.driver.statistics()["retries"] == 2
        for _ in range(5):
            rig.controller.inject(FailsWith(Status.NAMESPACE_NOT_READY))
        with pytest.raises(NvmeFault, match="namespace not ready"):
            await disk.read(0, rig.empty(4096))
        rig.controller.inject(FailsWith(Status.WRITE_FAULT))
        with pytest.raises(NvmeFault, match="Flush failed: write fault"):
            await disk.flush()

    rig.run(main)
    assert rig.disks[0].read(0, 8) == data


def test_a_deadline_between_two_tries(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.controller.inject(FailsWith(Status.NAMESPACE_NOT_READY))
        with pytest.raises(NvmeFault, match="namespace not ready"):
            await disk.read(0, rig.empty(512), runtime.now() + 5_000_000)
        commands = rig.driver.statistics()["commands"]
        await pause(runtime, SECOND)
        statistics = rig.driver.statistics()
        assert (statistics["commands"], statistics["aborts"], statistics["free_slots"]) == (commands, 0, 31)

    rig.run(main)


def test_what_takes_too_long_is_aborted(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.controller.inject(NeverCompletes())
        start = runtime.now()
        with pytest.raises(NvmeFault, match=r"Write of blocks 0\.\.127 was aborted: no answer in time"):
            await disk.write(0, rig.empty(65536, offset=1))
        assert runtime.now() - start >= 10 * SECOND
        statistics = rig.driver.statistics()
        assert (statistics["aborts"], statistics["resets"], statistics["free_slots"]) == (1, 0, 31)
        await disk.read(0, rig.empty(512))

    rig.run(main)


def test_a_deadline_bounds_the_device_and_the_queue(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.controller.inject(NeverCompletes())
        buffer = rig.empty(4096)
        end = runtime.now() + 2 * SECOND
        hung = runtime.start(disk.write, 0, buffer, end)
        await pause(runtime, SECOND // 2)
        with pytest.raises(DeadlineExpired):
            await disk.read(0, rig.empty(512), deadline=runtime.now() + SECOND)  # it has to wait for the write
        assert runtime.now() < end
        await runtime.park(hung.done)
        with pytest.raises(NvmeFault, match="aborted"):
            hung.result()
        assert end <= runtime.now() < end + SECOND
        rig.kernel.free(buffer)  # nothing has it loaded any more

    rig.run(main)


def test_an_abort_that_crosses_the_completion() -> None:
    """The command completes while its abort is on the way: no reset, and no slot is given out early."""

    def attempt(after: int | None) -> tuple[bool, int, int]:
        rig = Rig(by_name("virtual"))

        async def main() -> tuple[bool, int, int]:
            disk, runtime = rig.driver.disks[0], rig.runtime
            start, done = runtime.now(), True
            try:
                await disk.read(7, rig.empty(4096), None if after is None else start + after)
            except NvmeFault:
                done = False
            took = runtime.now() - start
            await disk.read(8, rig.empty(512))
            await pause(runtime, 5 * SECOND)  # should the driver still wait for something
            statistics = rig.driver.statistics()
            assert (statistics["resets"], statistics["stray"], statistics["free_slots"]) == (0, 0, 31)
            return done, statistics["aborts"], took

        try:
            return rig.run(main)
        finally:
            rig.close()

    usual = attempt(None)[2]
    outcomes = {attempt(usual - early)[:2] for early in range(0, 20_000, 500)}
    assert {(True, 1), (False, 1)} <= outcomes  # done although an abort was sent; and aborted


def test_an_interrupt_that_is_lost_costs_time_and_no_abort(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.lossy.lose = True
        start = runtime.now()
        await disk.read(0, rig.empty(4096))
        assert runtime.now() - start >= 10 * SECOND
        assert rig.driver.statistics()["aborts"] == 0

    rig.run(main)


def test_an_abort_in_vain_resets_and_the_others_go_on(two: Rig) -> None:
    rig = two
    data = random.Random(5).randbytes(8 * 4096)

    async def main() -> None:
        (hung, other), runtime = rig.driver.disks, rig.runtime
        await other.write(0, rig.buffer(data))
        rig.controller.inject(NeverCompletes(ignore_abort=True))
        rig.controller.inject(NeverCompletes(ignore_abort=True))
        start = runtime.now()
        victim, back = rig.empty(4096, offset=9), rig.empty(len(data))
        task = runtime.start(hung.read, 0, victim, start + 10 * SECOND)
        await pause(runtime, SECOND)
        await other.read(0, back, start + 60 * SECOND)  # lost in the reset, and done again
        assert back.read() == data
        await runtime.park(task.done)
        with pytest.raises(NvmeFault, match="lost when nvme0 was reset: it did not end an aborted command"):
            task.result()
        statistics = rig.driver.statistics()
        assert (statistics["aborts"], statistics["resets"], statistics["free_slots"]) == (1, 1, 62)
        rig.kernel.free(victim)  # it is not loaded any more
        await hung.read(0, rig.empty(512))

    rig.run(main)


def test_what_is_asked_for_during_a_reset_is_done_after_it(two: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = two
    data = random.Random(6).randbytes(4096)

    async def main() -> None:
        (hung, other), runtime = rig.driver.disks, rig.runtime
        rig.controller.inject(NeverCompletes(ignore_abort=True))
        enable = rig.driver._controller.enable
        during: list[Task[None]] = []

        async def watched(pairs: int) -> int:
            during.append(runtime.start(other.write, 0, rig.buffer(data)))
            return await enable(pairs)

        monkeypatch.setattr(rig.driver._controller, "enable", watched)
        with pytest.raises(NvmeFault, match="lost when"):
            await hung.read(0, rig.empty(4096), deadline=runtime.now() + SECOND)
        (task,) = during
        await runtime.park(task.done)
        task.result()
        assert rig.driver.statistics()["resets"] == 1

    rig.run(main)
    assert rig.disks[1].read(0, 8) == data


def test_a_request_outlives_two_resets_and_no_more(two: Rig) -> None:
    rig = two

    async def main() -> None:
        (hung, other), runtime = rig.driver.disks, rig.runtime
        rig.controller.inject(NeverCompletes(ignore_abort=True))
        task = runtime.start(other.read, 0, rig.empty(512), runtime.now() + 1000 * SECOND)
        for _ in range(3):
            await pause(runtime, SECOND)
            assert task.done.state == "pending"
            rig.controller.inject(NeverCompletes(ignore_abort=True))
            rig.controller.inject(NeverCompletes(ignore_abort=True))  # for the other one's next try
            with pytest.raises(NvmeFault, match="lost when"):
                await hung.read(0, rig.empty(512), runtime.now() + SECOND)
        await runtime.park(task.done)
        with pytest.raises(NvmeFault, match=r"nvme0n2: Read of blocks 0\.\.0 was lost when nvme0 was reset"):
            task.result()
        assert rig.driver.statistics()["resets"] == 3

    rig.run(main)


def test_a_fatal_status_is_not_answered_by_an_abort(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        task = runtime.start(disk.read, 0, rig.empty(4096))
        await pause(runtime, 10_000)
        rig.controller.inject(FatalStatus())
        await runtime.park(task.done)
        with pytest.raises(NvmeFault, match="reset: it reports a fatal status"):
            task.result()
        assert rig.driver.statistics()["aborts"] == 0
        await disk.read(0, rig.empty(4096))

    rig.run(main)


@pytest.mark.parametrize("id", [0, 7, 31, 0xFFFF])
def test_completions_of_no_command_are_counted(rig: Rig, id: int) -> None:
    async def main() -> None:
        disk, queue = rig.driver.disks[0], rig.controller.submissions[1]
        await disk.read(0, rig.empty(512))
        command = Command(queue, bytes(64), 0)
        command.id = id
        with rig.host.lock:
            rig.controller._post(queue.completions, command, Status.SUCCESS, 0)
        await pause(rig.runtime, SECOND)
        await disk.read(0, rig.empty(512))
        statistics = rig.driver.statistics()
        assert (statistics["stray"], statistics["free_slots"]) == (1, 31)

    rig.run(main)


def test_maps_are_in_quarantine_until_the_reset(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody knows whether the device still writes, nobody else gets the pages."""
    seen: list[list[State]] = []

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.controller.inject(NeverCompletes(ignore_abort=True))
        enable = rig.driver._controller.enable

        async def watched(pairs: int) -> int:
            seen.append([map.state for map in rig.domain.maps() if map.state is State.QUARANTINED])
            return await enable(pairs)

        monkeypatch.setattr(rig.driver._controller, "enable", watched)
        with pytest.raises(NvmeFault, match="lost when"):
            await disk.read(0, rig.empty(65536, offset=1), deadline=runtime.now() + SECOND)

    rig.run(main)
    assert seen == [[State.QUARANTINED]]


def test_a_controller_that_does_not_come_back_is_out_of_service(rig: Rig) -> None:
    async def main() -> None:
        await rig.driver.start()
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.controller.inject(NeverCompletes())
        task = runtime.start(disk.read, 0, rig.empty(65536, offset=1), runtime.now() + SECOND)
        behind = runtime.start(disk.write, 0, rig.empty(512))
        await pause(runtime, 1_000_000)
        rig.slot.config.write16(0x04, 0)  # gone from the bus
        for doomed in (task, behind):
            await runtime.park(doomed.done)
            with pytest.raises(DeviceFault, match="out of service: it reports a fatal status; the reset failed"):
                doomed.result()
        with pytest.raises(DeviceFault, match="out of service"):
            await disk.read(0, rig.empty(512))
        assert any("quarantine" in leak for leak in rig.domain.leaks())  # it may still write there
        with pytest.raises(DeviceFault, match="its status stays 0xffffffff"):
            await rig.driver.stop()

    rig.runtime.run(main)
    assert any("quarantine" in leak for leak in rig.domain.leaks())


REQUESTS = st.tuples(
    st.sampled_from(["read", "read", "write", "write", "write", "hang", "ignore abort", "not ready", "die"]),
    st.integers(0, 1),  # namespace
    st.integers(0, 24),  # block
    st.integers(1, 17),  # blocks
    st.integers(0, 4095),  # where in its first page the buffer begins
)


@pytest.mark.parametrize(("name", "seed"), [*((name, 0) for name in NAMES), ("virtual", 1), ("virtual", 2)])
def test_any_mix_of_requests_and_faults_is_like_a_bytearray(name: str, seed: int) -> None:
    """What succeeds has happened, in the order of asking. What fails may have happened, or not."""

    @settings(max_examples=25)
    @given(st.lists(REQUESTS, min_size=1, max_size=14), st.integers(6, 40), st.integers(1, 4), st.sampled_from([1, 8]))
    def check(plan: list[tuple[str, int, int, int, int]], bounce: int, depth: int, queues: int) -> None:
        with by_name(name, seed=seed) as runtime:
            rig = Rig(runtime, namespaces=2, bounce=bounce, depth=depth, queues=queues, maxio=16384)
            model = [[{0} for _ in range(48)] for _ in range(2)]  # what each block may hold
            asked: list[tuple[Task[None], int, int, LinearBuffer, int | None]] = []

            async def main() -> None:
                for number, (what, which, lba, count, offset) in enumerate(plan, 1):
                    disk = rig.driver.disks[which]
                    if what == "read":
                        buffer = rig.empty(count * 512, offset)
                        asked.append((runtime.start(disk.read, lba, buffer), which, lba, buffer, None))
                    elif what == "write":
                        buffer = rig.buffer(bytes([number]) * count * 512, offset)
                        asked.append((runtime.start(disk.write, lba, buffer), which, lba, buffer, number))
                    elif what == "not ready":
                        rig.controller.inject(FailsWith(Status.NAMESPACE_NOT_READY))
                    elif what == "die":
                        rig.controller.inject(FatalStatus())
                    else:
                        rig.controller.inject(NeverCompletes(ignore_abort=what == "ignore abort"))
                    await pause(runtime, 1000)  # so that requests are made in this order on threads too
                for task, *_ in asked:
                    await runtime.park(task.done)

            rig.run(main)
            for task, which, lba, buffer, byte in asked:
                blocks = model[which][lba : lba + len(buffer) // 512]
                try:
                    task.result()
                except NvmeFault:
                    for block in blocks if byte is not None else ():
                        block.add(byte or 0)
                    continue
                content = buffer.read()
                for number, block in enumerate(blocks):
                    if byte is None:
                        held = set(content[512 * number : 512 * (number + 1)])
                        assert len(held) == 1
                        assert held <= block
                        block &= held
                    else:
                        block.clear()
                        block.add(byte)
            for which, disk in enumerate(rig.disks):
                content = disk.read(0, 48)
                assert all(set(content[512 * n : 512 * (n + 1)]) <= block for n, block in enumerate(model[which]))
            rig.close()

    check()
