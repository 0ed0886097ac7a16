"""Interrupt lines, under each of the three runtimes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import DeadlineExpired, DriverError, WaitCancelled
from busdma.machine.interrupt import STORM, Interrupt
from busdma.runtime import NAMES, by_name
from busdma.waiting import Runtime


@pytest.fixture(params=NAMES)
def carrier(request: pytest.FixtureRequest) -> Runtime:
    name: str = request.param
    return by_name(name)


def rise(line: Interrupt) -> None:
    """The device interrupts."""
    drive = line.assert_
    drive()


def test_a_wait_ends_when_the_line_rises(carrier: Runtime) -> None:
    line = Interrupt("irq 11", carrier)

    async def driver() -> tuple[int, int]:
        return await line.wait(), carrier.now()

    carrier.call_at(500, line.assert_)
    assert carrier.run(driver) == (1, 500)
    assert line.pending
    assert line.statistics() == {"raised": 1, "waited": 1}


def test_an_interrupt_between_two_waits_is_not_lost(carrier: Runtime) -> None:
    line = Interrupt("irq 11", carrier)

    async def driver() -> tuple[int, int]:
        return await line.wait(), carrier.now()

    for _ in range(3):
        rise(line)
        rise(line)
        line.deassert()
    assert line.pending
    assert carrier.run(driver) == (3, 0)
    assert not line.pending
    assert line.statistics() == {"raised": 3, "waited": 1}


def test_a_line_that_stays_high_is_still_an_interrupt(carrier: Runtime) -> None:
    line = Interrupt("irq 11", carrier)

    async def driver() -> list[int]:
        rises = [await line.wait(), await line.wait()]
        line.deassert()
        carrier.call_at(carrier.now() + 10, line.assert_)
        return [*rises, await line.wait()]

    rise(line)
    assert carrier.run(driver) == [1, 0, 1]


def test_a_deadline_ends_the_wait_and_loses_nothing(carrier: Runtime) -> None:
    line = Interrupt("irq 11", carrier)

    async def driver() -> tuple[int, int]:
        with pytest.raises(DeadlineExpired, match="interrupt irq 11"):
            await line.wait(deadline=100)
        rise(line)
        line.deassert()
        return await line.wait(deadline=200), carrier.now()

    assert carrier.run(driver) == (1, 100)
    assert line.statistics() == {"raised": 1, "waited": 1}


def test_a_cancelled_wait_makes_room_for_the_next(carrier: Runtime) -> None:
    line = Interrupt("irq 11", carrier)

    async def stopped() -> None:
        await line.wait()

    async def driver() -> int:
        task = carrier.start(stopped, name="stopped")
        await pause(carrier, 10)
        task.cancel()
        await carrier.park(task.done)
        with pytest.raises(WaitCancelled):
            task.result()
        carrier.call_at(50, line.assert_)
        return await line.wait()

    assert carrier.run(driver) == 1


def test_two_contexts_cannot_wait_for_one_line(carrier: Runtime) -> None:
    line = Interrupt("irq 11", carrier)

    async def first() -> int:
        return await line.wait()

    async def driver() -> int:
        task = carrier.start(first, name="first")
        await pause(carrier, 10)
        with pytest.raises(DriverError, match="waited for already"):
            await line.wait()
        rise(line)
        await carrier.park(task.done)
        return task.result()

    assert carrier.run(driver) == 1


def test_a_driver_that_never_acknowledges_is_told(carrier: Runtime) -> None:
    line = Interrupt("irq 11", carrier)

    async def driver() -> int:
        waits = 0
        with pytest.raises(DriverError, match="acknowledge it at the device"):
            while True:
                await line.wait()
                waits += 1
        return waits

    rise(line)
    assert carrier.run(driver) == STORM


async def pause(carrier: Runtime, ns: int) -> None:
    """Let `ns` pass: wait for a line that nobody drives."""
    with pytest.raises(DeadlineExpired):
        await Interrupt("never", carrier).wait(carrier.now() + ns)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 50)), max_size=12), st.integers(0, 120))
def test_every_rise_is_seen_by_exactly_one_wait(pulses: list[tuple[int, int]], service: int) -> None:
    """A device pulses the line at any times; a driver that is `service` ns busy after each wait sees all rises."""
    carrier = by_name("virtual")
    line = Interrupt("irq 11", carrier)
    for when, width in pulses:
        carrier.call_at(when, line.assert_)
        carrier.call_at(when + width, line.deassert)

    async def driver() -> int:
        seen = 0
        while True:
            try:
                seen += await line.wait(deadline=5000)
            except DeadlineExpired:
                return seen
            await pause(carrier, service + 1)

    seen = carrier.run(driver)
    assert seen == line.statistics()["raised"]
    assert (seen > 0) == bool(pulses)
    assert not line.pending
