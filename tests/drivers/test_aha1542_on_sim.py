"""The driver against the adapter's model, which was written from the data sheet by somebody else."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.buffers import LinearBuffer
from busdma.drivers import attach, scsi
from busdma.drivers.block import transfer_all
from busdma.drivers.disk import ScsiFault
from busdma.errors import BufferGone, ConfigurationError, DeadlineExpired, DeviceFault, DriverError, MappingRefused
from busdma.lifecycle import State
from busdma.runtime import NAMES, by_name
from busdma.sim.scsi.mailbox_adapter import DiagnosticFailure, ForeignBusReset, MediumError
from busdma.sim.scsi.mailbox_layout import FailsWith, HostStatus, NeverCompletes
from busdma.sync import Direction
from busdma.waiting import Runtime, Task, Waiter
from drivers.rig import BLOCKS, Rig

SECOND = 1_000_000_000
IN, OUT = Direction.FROM_DEVICE, Direction.TO_DEVICE


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(by_name("virtual"))
    yield rig
    rig.close()


@pytest.fixture
def two() -> Iterator[Rig]:
    rig = Rig(by_name("virtual"), targets=(0, 2), bounce=17)
    yield rig
    rig.close()


async def pause(runtime: Runtime, time: int) -> None:
    waiter = Waiter("a pause")
    runtime.call_at(runtime.now() + time, waiter.wake)
    await runtime.park(waiter)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_there_and_back_on_every_runtime(name: str) -> None:
    data = random.Random(1).randbytes(301 * 512)
    with by_name(name) as runtime:
        rig = Rig(runtime, targets=(0, 3, 6))

        async def main() -> None:
            assert [disk.name for disk in rig.driver.disks] == ["aha0:0", "aha0:3", "aha0:6"]
            disk = rig.driver.disks[1]
            assert (disk.block_size, disk.blocks, disk.maxio) == (512, BLOCKS, 65536)
            back = rig.empty(len(data), offset=77)
            await transfer_all(disk, 5, rig.buffer(data, offset=4095), OUT, runtime=runtime)
            await disk.flush()
            await transfer_all(disk, 5, back, IN, runtime=runtime, chunk=20_000)
            assert back.read() == data

        rig.run(main)
        assert rig.disks[3].read(5, 301) == data
        traffic = rig.bus.statistics()["aha0"]
        assert traffic["by_owner"]["bounce"]["bytes"] > 0
        assert traffic["wrapped"] == traffic["unclaimed"] == 0
        assert not set(traffic["by_owner"]) - {"kernel", "bounce", "dma-safe"}
        rig.close()


def test_the_runtimes_agree_to_the_nanosecond() -> None:
    times = set()
    for name in NAMES:
        with by_name(name) as runtime:
            rig = Rig(runtime)
            buffer = rig.buffer(bytes(65536))

            async def main(rig: Rig = rig, buffer: LinearBuffer = buffer) -> None:
                await rig.driver.disks[0].write(9, buffer)

            rig.run(main)
            times.add(runtime.now())
            rig.close()
    assert len(times) == 1


@pytest.mark.parametrize("board", ["1542B", "1542CF"])
def test_with_and_without_a_mailbox_lock(board: str) -> None:
    rig = Rig(by_name("virtual"), board=board)

    async def main() -> int:
        return len(rig.driver.disks)

    assert rig.run(main) == 1
    rig.close()


def test_the_table_of_drivers(rig: Rig) -> None:
    driver = attach("aha1542", "isa", rig.attachment)
    assert driver.name == "aha0"
    with pytest.raises(ConfigurationError, match="aha1542 on isa"):
        attach("aha1542", "pci", rig.attachment)


def test_nothing_at_the_ports(rig: Rig) -> None:
    empty = Rig(by_name("virtual"))
    registers = empty.bus.registers(0x230)
    a = rig.attachment
    with pytest.raises(DeviceFault, match="no adapter answers"):
        attach("aha1542", "isa", type(a)("aha1", a.tag, registers, a.interrupt, a.runtime))
    empty.close()


def test_jumpers_that_do_not_agree() -> None:
    rig = Rig(by_name("virtual"), irq=9)

    async def main() -> None:
        raise AssertionError("it started")

    with pytest.raises(ConfigurationError, match="irq 11; the bus expects irq 9"):
        rig.run(main)
    assert rig.domain.leaks() == []
    rig.close()


def test_a_broken_adapter_does_not_start(rig: Rig) -> None:
    rig.adapter.inject(DiagnosticFailure())
    with pytest.raises(DeviceFault, match="reset"):
        rig.runtime.run(rig.driver.start)


def test_start_twice_and_again(rig: Rig) -> None:
    async def main() -> None:
        with pytest.raises(DriverError, match="already"):
            await rig.driver.start()

    rig.run(main)
    rig.run(main)


def test_an_unreadable_block_says_so(rig: Rig) -> None:
    async def main() -> None:
        disk = rig.driver.disks[0]
        rig.adapter.inject(MediumError(0, 40, 1))
        with pytest.raises(ScsiFault) as caught:
            await disk.read(38, rig.empty(4096))
        fault = caught.value
        assert fault.sense is not None
        assert (fault.sense.key, fault.sense.asc, fault.sense.block) == (3, 0x11, 40)
        assert fault.target_status == scsi.CHECK_CONDITION
        assert str(fault).startswith("aha0:0: READ(10) [28 00 00 00 00 26 00 00 08 00] failed")
        assert "CHECK CONDITION; MEDIUM ERROR, unrecovered read error (11/00), block 40" in str(fault)
        await disk.read(41, rig.empty(4096))

    rig.run(main)


def test_a_host_status_in_words(rig: Rig) -> None:
    async def main() -> None:
        disk = rig.driver.disks[0]
        rig.adapter.inject(FailsWith(HostStatus.SELECTION_TIMEOUT))
        with pytest.raises(ScsiFault, match="selection timeout") as caught:
            await disk.read(0, rig.empty(512))
        assert caught.value.host_status == 0x11
        await disk.read(0, rig.empty(512))

    rig.run(main)


def test_a_unit_attention_is_tried_again(rig: Rig) -> None:
    async def main() -> None:
        before = rig.driver.statistics()["retries"]
        rig.targets[0].reset()
        await rig.driver.disks[0].read(0, rig.empty(512))
        assert rig.driver.statistics()["retries"] == before + 1

    rig.run(main)


def make_busy(rig: Rig, times: int, status: int = scsi.BUSY) -> None:
    """Have the disk answer its next `times` commands with `status`."""
    target, left = rig.targets[0], times
    execute = target.execute

    def busy(lun: int, cdb: bytes, now: Callable[[], int]) -> Generator[Any, Any, int]:
        nonlocal left
        if left > 0:
            left -= 1
            return status
        return (yield from execute(lun, cdb, now))

    pytest.MonkeyPatch().setattr(target, "execute", busy)  # for as long as the rig lives


@pytest.mark.parametrize("status", [scsi.BUSY, scsi.QUEUE_FULL])
def test_a_busy_disk_is_asked_again(rig: Rig, status: int) -> None:
    data = random.Random(2).randbytes(512)

    async def main() -> None:
        disk, start = rig.driver.disks[0], rig.runtime.now()
        before = rig.driver.statistics()["retries"]
        make_busy(rig, 3, status)
        await disk.write(7, rig.buffer(data))
        assert rig.driver.statistics()["retries"] == before + 3
        assert rig.runtime.now() - start >= 3 * SECOND // 10

    rig.run(main)
    assert rig.disks[0].read(7, 1) == data


def test_a_disk_that_stays_busy_has_failed(rig: Rig) -> None:
    async def main() -> None:
        make_busy(rig, 1000)
        with pytest.raises(ScsiFault, match="no host adapter error; BUSY"):
            await rig.driver.disks[0].read(0, rig.empty(512))

    rig.run(main)


def test_a_deadline_between_two_tries(rig: Rig) -> None:
    """Nothing has to be aborted then, and the try that was due does not happen."""

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        make_busy(rig, 1)
        with pytest.raises(ScsiFault, match="BUSY"):
            await disk.read(0, rig.empty(512), runtime.now() + SECOND // 20)
        commands = rig.driver.statistics()["commands"]
        await pause(runtime, SECOND)
        statistics = rig.driver.statistics()
        assert (statistics["commands"], statistics["aborts"], statistics["free_slots"]) == (commands, 0, 15)
        await disk.read(0, rig.empty(512))

    rig.run(main)


def test_what_takes_too_long_is_aborted(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.adapter.inject(NeverCompletes(0))
        start = runtime.now()
        with pytest.raises(ScsiFault, match="aborted: no answer in time"):
            await disk.read(0, rig.empty(65536, offset=1))
        assert runtime.now() - start >= 10 * SECOND
        statistics = rig.driver.statistics()
        assert (statistics["aborts"], statistics["resets"], statistics["free_slots"]) == (1, 0, 15)
        await disk.read(0, rig.empty(512))

    rig.run(main)


def test_a_deadline_bounds_the_device_too(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.adapter.inject(NeverCompletes(0))
        end = runtime.now() + SECOND
        buffer = rig.empty(4096)
        with pytest.raises(ScsiFault, match="aborted"):
            await disk.write(0, buffer, deadline=end)
        assert end <= runtime.now() < end + SECOND
        rig.kernel.free(buffer)  # nothing has it loaded any more

    rig.run(main)


def test_an_abort_that_crosses_the_completion() -> None:
    """The adapter finishes the command and then finds nothing to abort: no reset, and no CCB is given out early."""

    def attempt(early: int | None) -> tuple[int, bool, int]:
        rig = Rig(by_name("virtual"))

        async def main() -> tuple[int, bool, int]:
            disk, runtime = rig.driver.disks[0], rig.runtime
            start, done = runtime.now(), True
            try:
                await disk.read(7, rig.empty(4096), None if early is None else start + usual - early)
            except ScsiFault:
                done = False
            took = runtime.now() - start
            await disk.read(8, rig.empty(512))
            statistics = rig.driver.statistics()
            assert (statistics["resets"], statistics["stray"], statistics["free_slots"]) == (0, 0, 15)
            return took, done, statistics["aborts"]

        try:
            return rig.run(main)
        finally:
            rig.close()

    usual, _, _ = attempt(None)
    outcomes = {attempt(early)[1:] for early in range(0, 400_000, 5_000)}
    assert {(True, 1), (False, 1)} <= outcomes  # done although an abort was sent; and aborted


def test_a_deadline_in_the_queue(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.adapter.inject(NeverCompletes(0))
        first = runtime.start(disk.write, 0, rig.empty(4096))
        await pause(runtime, SECOND)
        end = runtime.now() + SECOND
        with pytest.raises(DeadlineExpired):
            await disk.read(0, rig.empty(512), deadline=end)  # it has to wait for the write that hangs
        assert runtime.now() == end
        await runtime.park(first.done)

    rig.run(main)


def test_an_abort_without_an_answer_resets_and_the_others_go_on(two: Rig) -> None:
    rig = two
    data = random.Random(5).randbytes(8 * 4096)

    async def main() -> None:
        (hung, other), runtime = rig.driver.disks, rig.runtime
        await other.write(0, rig.buffer(data))
        rig.adapter.inject(NeverCompletes(0, ignore_abort=True))
        rig.adapter.inject(NeverCompletes(2, ignore_abort=True))
        start = runtime.now()
        victim = rig.empty(4096, offset=9)
        back = rig.empty(len(data))
        task = runtime.start(hung.read, 0, victim, start + 10 * SECOND)
        await pause(runtime, SECOND)
        await other.read(0, back, start + 60 * SECOND)  # lost in the reset, and done again
        assert back.read() == data
        await runtime.park(task.done)
        with pytest.raises(ScsiFault, match="lost when aha0 was reset: it did not answer an abort"):
            task.result()
        statistics = rig.driver.statistics()
        assert (statistics["aborts"], statistics["resets"], statistics["free_slots"]) == (1, 1, 15)
        rig.kernel.free(victim)  # it is not loaded any more
        await hung.read(0, rig.empty(512))

    rig.run(main)


def test_maps_are_in_quarantine_until_the_reset(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody knows whether the device still writes, nobody else gets the pages."""
    seen: list[list[State]] = []

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.adapter.inject(NeverCompletes(0, ignore_abort=True))
        bring_up = rig.driver._bring_up

        async def watched(hard: bool) -> None:
            seen.append([map.state for map in rig.domain.maps() if map.state is State.QUARANTINED])
            await bring_up(hard)

        monkeypatch.setattr(rig.driver, "_bring_up", watched)
        with pytest.raises(ScsiFault, match="lost when"):
            await disk.read(0, rig.empty(65536, offset=1), deadline=runtime.now() + SECOND)

    rig.run(main)
    assert seen == [[State.QUARANTINED]]


def test_somebody_else_resets_the_bus(rig: Rig) -> None:
    data = random.Random(6).randbytes(65536)

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        task = runtime.start(disk.write, 0, rig.buffer(data))
        await pause(runtime, 1_000_000)
        rig.adapter.inject(ForeignBusReset())
        await runtime.park(task.done)
        task.result()
        back = rig.empty(len(data))
        await disk.read(0, back)
        assert back.read() == data
        assert rig.driver.statistics()["resets"] == 1

    rig.run(main)


def test_an_adapter_that_does_not_come_back_is_out_of_service(rig: Rig) -> None:
    async def main() -> None:
        await rig.driver.start()
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.adapter.inject(NeverCompletes(0))
        task = runtime.start(disk.read, 0, rig.empty(65536, offset=1), runtime.now() + SECOND)
        behind = runtime.start(disk.write, 0, rig.empty(512))
        await pause(runtime, 1_000_000)
        rig.wires.cut = True
        for doomed in (task, behind):
            await runtime.park(doomed.done)
            with pytest.raises(DeviceFault, match="out of service: it did not answer an abort; the reset failed"):
                doomed.result()
        with pytest.raises(DeviceFault, match="out of service"):
            await disk.read(0, rig.empty(512))
        assert any("quarantine" in leak for leak in rig.domain.leaks())  # it may still write there
        with pytest.raises(DeviceFault, match="stays at status 0xff"):
            await rig.driver.stop()

    rig.runtime.run(main)
    assert any("quarantine" in leak for leak in rig.domain.leaks())


def test_a_shortage_stalls_one_disk_and_not_the_other(two: Rig) -> None:
    """The zone holds 17 pages. One disk's write holds them all and hangs; the other disk reads what needs none."""
    rig = two

    async def main() -> None:
        (a, b), runtime = rig.driver.disks, rig.runtime
        rig.adapter.inject(NeverCompletes(0))
        high = rig.driver.tag.domain.frames
        assert high is not None
        hold = runtime.start(a.write, 0, bytearray(b"x" * 65536))  # memory the machine does not know: all bounces
        await pause(runtime, SECOND)
        stalled = runtime.start(a.write, 1000, bytearray(65536))
        behind = runtime.start(a.read, 2000, rig.empty(512))
        await pause(runtime, SECOND)
        low = rig.kernel.allocate(512, within=rig.driver.tag.constraints.reach)
        start = runtime.now()
        await b.read(0, low)
        assert runtime.now() - start < SECOND
        assert stalled.done.state == behind.done.state == "pending"
        await runtime.park(stalled.done)
        await runtime.park(behind.done)
        stalled.result()
        behind.result()
        await runtime.park(hold.done)
        with pytest.raises(ScsiFault, match="aborted"):
            hold.result()

    rig.run(main)
    assert rig.disks[0].read(1000, 128) == bytes(65536)


def test_more_requests_than_ccbs(two: Rig) -> None:
    rig = two

    async def main() -> None:
        runtime = rig.runtime
        tasks = [
            runtime.start(disk.write, 16 * n, rig.buffer(bytes([n]) * 8192))
            for n in range(20)
            for disk in rig.driver.disks
        ]
        for task in tasks:
            await runtime.park(task.done)
            task.result()

    rig.run(main)
    for disk in rig.disks.values():
        assert disk.read(0, 320) == b"".join(bytes([n]) * 8192 for n in range(20))


@pytest.mark.parametrize(
    ("lba", "length", "words"),
    [(0, 65536 + 512, "split it"), (0, 100, "whole blocks"), (BLOCKS, 512, "stay within"), (-1, 512, "stay within")],
)
def test_requests_that_are_refused(rig: Rig, lba: int, length: int, words: str) -> None:
    async def main() -> None:
        with pytest.raises(DriverError, match=words):
            await rig.driver.disks[0].read(lba, rig.empty(length))

    rig.run(main)


def test_buffers_that_cannot_be_used(rig: Rig) -> None:
    async def main() -> None:
        disk = rig.driver.disks[0]
        buffer = rig.empty(512)
        gone = buffer[:]
        buffer.free()
        with pytest.raises(BufferGone):
            await disk.read(0, gone)
        with pytest.raises((DriverError, MappingRefused), match="read-only"):
            await disk.read(0, bytes(512))
        await disk.read(0, bytearray(512))

    rig.run(main)


def test_stop_with_requests_in_flight(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.adapter.inject(NeverCompletes(0))
        tasks = [runtime.start(disk.write, 0, rig.empty(8192)) for _ in range(3)]
        await pause(runtime, SECOND)
        await rig.driver.stop()
        for task in tasks:
            await runtime.park(task.done)
            with pytest.raises(DriverError, match="was stopped"):
                task.result()
        with pytest.raises(DriverError, match="was stopped"):
            await disk.read(0, rig.empty(512))

    rig.run(main)


REQUESTS = st.tuples(
    st.sampled_from(["read", "read", "write", "write", "write", "hang", "ignore abort"]),
    st.integers(0, 1),  # disk
    st.integers(0, 24),  # block
    st.integers(1, 9),  # blocks
    st.integers(0, 4095),  # where in its first page the buffer begins
)


@pytest.mark.parametrize("name", NAMES)
def test_any_mix_of_requests_and_faults_is_like_a_bytearray(name: str) -> None:
    """What succeeds has happened, in the order of asking; what fails has not happened at all."""

    @settings(max_examples=25)
    @given(st.lists(REQUESTS, min_size=1, max_size=14), st.integers(17, 40))
    def check(plan: list[tuple[str, int, int, int, int]], bounce: int) -> None:
        with by_name(name) as runtime:
            rig = Rig(runtime, targets=(0, 1), bounce=bounce)
            model = [bytearray(64 * 512), bytearray(64 * 512)]
            asked: list[tuple[Task[None], int, int, LinearBuffer, bytes | None]] = []

            async def main() -> None:
                for number, (what, which, lba, count, offset) in enumerate(plan):
                    disk, data = rig.driver.disks[which], random.Random(number).randbytes(count * 512)
                    if what == "read":
                        buffer = rig.empty(len(data), offset)
                        asked.append((runtime.start(disk.read, lba, buffer), which, lba, buffer, None))
                    elif what == "write":
                        buffer = rig.buffer(data, offset)
                        asked.append((runtime.start(disk.write, lba, buffer), which, lba, buffer, data))
                    else:  # the next command for that disk, whichever it is
                        rig.adapter.inject(NeverCompletes(which, ignore_abort=what == "ignore abort"))
                    await pause(runtime, 1000)  # so that requests are made in this order on threads too
                for task, *_ in asked:
                    await runtime.park(task.done)

            rig.run(main)
            for task, which, lba, buffer, data in asked:
                at = slice(lba * 512, lba * 512 + len(buffer))
                try:
                    task.result()
                except ScsiFault:
                    continue
                if data is None:
                    assert buffer.read() == model[which][at]
                else:
                    model[which][at] = data
            for which, disk in rig.disks.items():
                assert disk.read(0, 64) == model[which]
            rig.close()

    check()
