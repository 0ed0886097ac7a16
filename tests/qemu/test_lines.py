"""Interrupt lines that are looked at: when a wait ends, what it costs, and what it lets others do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import DeadlineExpired, DeviceFault
from busdma.qemu.lines import LONGEST, LOOKS, SHARE, SHORTEST, Polled
from busdma.runtime import by_name
from busdma.runtime.clock import WallClock
from busdma.waiting import Runtime

MS = 1_000_000


class Line:
    """A line that is up from a time on, and counts who looks."""

    def __init__(self, runtime: Runtime, up_at: int) -> None:
        self.runtime = runtime
        self.up_at = up_at
        self.looks: list[int] = []

    def look(self) -> bool:
        self.looks.append(self.runtime.now())
        return self.runtime.now() >= self.up_at


def wait(runtime: Runtime, line: Line, deadline: int | None = None) -> int:
    """The time at which the wait ended."""

    async def driver() -> int:
        await Polled("irq 1", runtime, line.look).wait(deadline)
        return runtime.now()

    return runtime.run(driver)


def test_a_line_that_is_up_is_seen_at_once() -> None:
    runtime = by_name("virtual")
    line = Line(runtime, 0)
    assert wait(runtime, line) == 0
    assert line.looks == [0]
    assert wait(runtime, line, deadline=0) == 0  # the deadline has come, and so has the interrupt
    runtime.close()


@settings(derandomize=True, deadline=None)
@given(up_at=st.integers(1, 10_000 * MS))
def test_it_is_seen_late_by_a_share_of_the_wait_at_most(up_at: int) -> None:
    runtime = by_name("virtual")
    line = Line(runtime, up_at)
    late = wait(runtime, line) - up_at
    assert 0 <= late <= min(max(SHORTEST, up_at // SHARE), LONGEST)
    pauses = [after - before for before, after in zip(line.looks[LOOKS - 1 :], line.looks[LOOKS:], strict=False)]
    assert line.looks[:LOOKS] == [0] * LOOKS
    assert pauses == sorted(pauses)
    assert all(SHORTEST <= pause <= LONGEST for pause in pauses)
    runtime.close()


@pytest.mark.parametrize("deadline", [0, 1, SHORTEST, 3 * MS, 70 * MS])
def test_a_deadline_ends_the_wait_in_time_after_one_more_look(deadline: int) -> None:
    runtime = by_name("virtual")
    line = Line(runtime, deadline + 1)
    with pytest.raises(DeadlineExpired, match="interrupt irq 1"):
        wait(runtime, line, deadline)
    assert runtime.now() == line.looks[-1] == deadline
    line = Line(runtime, runtime.now() + 5 * MS)
    assert wait(runtime, line, line.up_at) == line.up_at  # up just then
    runtime.close()


def test_others_run_although_nobody_acknowledges() -> None:
    runtime = by_name("virtual")
    line = Polled("irq 1", runtime, lambda: True)
    seen: list[int] = []

    async def forgetful() -> None:
        while not seen:
            await line.wait()

    async def other() -> None:
        seen.append(1)

    task = runtime.start(forgetful)
    runtime.start(other)
    runtime.block(task.done)
    assert seen == [1]
    runtime.close()


@pytest.mark.parametrize("name", ["asyncio", "threads"])
def test_in_real_time_it_waits_for_a_device_and_reports_its_end(name: str) -> None:
    runtime = by_name(name, clock=WallClock())
    levels = iter([False] * (LOOKS + 2) + [True])

    def look() -> bool:
        level = next(levels, None)
        if level is None:
            raise DeviceFault("QEMU has gone")
        return level

    line = Polled("irq 1", runtime, look)

    async def driver() -> None:
        await line.wait()
        with pytest.raises(DeviceFault, match="has gone"):
            await line.wait()

    runtime.run(driver)
    runtime.close()


def test_a_wait_can_be_cancelled() -> None:
    runtime = by_name("virtual")
    line = Line(runtime, 1000 * MS)
    task = runtime.start(Polled("irq 1", runtime, line.look).wait)

    async def impatient() -> None:
        task.cancel()
        await runtime.park(task.done)

    runtime.run(impatient)
    assert runtime.now() < MS
    runtime.close()
