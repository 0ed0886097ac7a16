"""Interrupt lines that QEMU reports: a posted acknowledgement counts, and devices may share a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from busdma.errors import DriverError
from busdma.machine.interrupt import STORM
from busdma.qemu.interrupts import InterruptLines
from busdma.qemu.lines import Lines
from busdma.qemu.qtest import Qtest
from busdma.runtime import by_name
from busdma.runtime.clock import WallClock
from busdma.waiting import Runtime

LINE = 22


class FakeQtest:
    """Lines that fall when what was posted is carried out."""

    def __init__(self) -> None:
        self.handler: Callable[[bool], object] = lambda level: None
        self.posted: list[Callable[[], object]] = []
        self.flushes = 0

    def on_interrupt(self, line: int, handler: Callable[[bool], object]) -> None:
        assert line == LINE
        self.handler = handler

    def flush(self) -> None:
        self.flushes += 1
        posted, self.posted = self.posted, []
        for act in posted:
            act()


@pytest.fixture(params=["virtual", "asyncio", "threads"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Any]:
    runtime = by_name(request.param, clock=None if request.param == "virtual" else WallClock())
    yield runtime
    runtime.close()


def test_an_acknowledgement_on_its_way_ends_the_interrupt(runtime: Any) -> None:
    qtest = FakeQtest()
    line = Lines(cast(Qtest, qtest), runtime).interrupt(LINE)
    seen: list[int] = []

    async def driver() -> None:
        while len(seen) < 3:
            seen.append(await line.wait())
            qtest.posted.append(lambda: qtest.handler(False))

    async def device() -> None:
        task = runtime.start(driver)
        for number in range(3):
            qtest.handler(True)
            while len(seen) <= number or (number < 2 and not qtest.flushes > number):
                await pause(runtime)
        await runtime.park(task.done)

    runtime.run(device)
    assert seen == [1, 1, 1]  # no wait has ended because of a line that was acknowledged


async def pause(runtime: Runtime) -> None:
    await runtime.give_way()


def test_who_is_not_meant_lets_the_one_who_is_acknowledge(runtime: Any) -> None:
    qtest = FakeQtest()
    lines = Lines(cast(Qtest, qtest), runtime)
    first, second = lines.interrupt(LINE), lines.interrupt(LINE)
    acknowledged: list[int] = []

    async def innocent() -> None:
        while len(acknowledged) < 20:
            await first.wait()

    async def meant() -> None:
        while len(acknowledged) < 20:
            await second.wait()
            acknowledged.append(1)
            qtest.handler(False)
            qtest.handler(True)

    async def all_at_once() -> None:
        tasks = [runtime.start(innocent), runtime.start(meant)]
        qtest.handler(True)
        for task in tasks:
            await runtime.park(task.done)

    runtime.run(all_at_once)
    assert len(acknowledged) == 20


def test_a_line_that_nobody_acknowledges_is_an_error() -> None:
    runtime = by_name("virtual")
    qtest = FakeQtest()
    line = Lines(cast(Qtest, qtest), runtime).interrupt(LINE)
    qtest.handler(True)

    async def driver() -> None:
        for _ in range(STORM + 2):
            await line.wait()

    with pytest.raises(DriverError, match="stayed high"):
        runtime.run(driver)
    runtime.close()


def test_a_handler_that_comes_late_is_told_what_holds_by_then() -> None:
    """Not what held before a change that nobody has been told of yet."""
    lines, seen = InterruptLines(), list[bool]()
    lines.changed(LINE, True)
    lines.deliver()
    lines.changed(LINE, False)
    lines.on(LINE, seen.append)
    assert True not in seen
    lines.changed(LINE, True)
    lines.on(LINE, seen.append)
    assert seen[-1] is True


def test_a_device_that_joins_a_line_that_is_high() -> None:
    class Reporting:
        def __init__(self) -> None:
            self.lines = InterruptLines()
            self.on_interrupt = self.lines.on

    qtest = Reporting()
    with by_name("virtual") as runtime:
        lines = Lines(cast(Qtest, qtest), runtime)
        first = lines.interrupt(LINE)
        qtest.lines.changed(LINE, True)
        qtest.lines.deliver()
        second = lines.interrupt(LINE)
        assert first.pending
        assert second.pending
        assert first.statistics()["raised"] == second.statistics()["raised"] == 1
