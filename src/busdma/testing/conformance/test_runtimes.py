"""Who carries drivers: the same protocol under each runtime, on the machine's own clock."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from functools import partial

import pytest

from busdma.errors import DeadlineExpired, ForeignAwait, WaitCancelled
from busdma.machine.machine import Machine
from busdma.runtime import NAMES
from busdma.testing.conformance.rig import MS, in_real_time, let_run, pause
from busdma.waiting import Waiter

pytestmark = pytest.mark.busdma(runtimes=NAMES, check=False)  # no transfer is made here

WHO: ContextVar[str] = ContextVar("who", default="nobody")


def test_a_driver_ends_with_its_result_or_its_error(machine: Machine) -> None:
    """`run` and a task's `result` return the one and raise the other."""

    async def sums(*numbers: int) -> int:
        return sum(numbers)

    async def fails() -> None:
        raise LookupError("lost")

    assert machine.run(sums, 1, 2, 3) == 6
    with pytest.raises(LookupError, match="lost"):
        machine.run(fails)
    task = machine.runtime.start(fails)
    machine.runtime.block(task.done)
    with pytest.raises(LookupError, match="lost"):
        task.result()


def test_the_clock_goes_on_when_nobody_can_run(machine: Machine) -> None:
    """In ns, never back; timers ring at their time, in the order of their times."""
    runtime, rang = machine.runtime, list[tuple[int, int]]()
    start = runtime.now() + (100 * MS if in_real_time(machine) else 0)  # nothing is late when it is asked for
    for when in (start + 3 * MS, start + MS, start + 2 * MS):
        runtime.call_at(when, partial(lambda when: rang.append((when, runtime.now())), when))
    cancelled = runtime.call_at(start + 40 * MS, lambda: rang.append((0, 0)))
    cancelled.cancel()
    machine.run(pause, runtime, start + 50 * MS - runtime.now())
    assert [when for when, _ in rang] == [start + MS, start + 2 * MS, start + 3 * MS]
    assert all(when <= at for when, at in rang)
    assert start + 50 * MS <= runtime.now()


def test_a_deadline_is_an_argument_of_a_wait(machine: Machine) -> None:
    """It ends that wait, at its time, and nothing else of the driver."""

    async def patient() -> int:
        with pytest.raises(DeadlineExpired):
            await machine.runtime.park(Waiter("an answer"), machine.runtime.now() + MS)
        await pause(machine.runtime)
        return machine.runtime.now()

    start = machine.runtime.now()
    assert machine.run(patient) >= start + 2 * MS
    with pytest.raises(DeadlineExpired):
        machine.runtime.block(Waiter("an answer"), machine.runtime.now() + MS)


def test_a_cancel_ends_the_wait_that_a_driver_is_in(machine: Machine) -> None:
    """No `except Exception` catches it; a wait that had ended keeps its outcome."""
    caught: list[str] = []

    async def driver(waiter: Waiter) -> object:
        try:
            return await machine.runtime.park(waiter)
        except Exception:
            caught.append("swallowed")
            raise

    waiting, granted = Waiter("an answer"), Waiter("an answer")
    tasks = [machine.runtime.start(driver, waiter) for waiter in (waiting, granted)]
    let_run(machine)
    assert granted.wake("taken")
    for task in tasks:
        task.cancel()
        machine.runtime.block(task.done)
    with pytest.raises(WaitCancelled):
        tasks[0].result()
    assert tasks[1].result() == "taken"
    assert not waiting.wake("too late")  # who grants learns that nobody takes it
    assert not caught


def test_each_driver_has_a_context_of_its_own(machine: Machine) -> None:
    """What one sets in its context variables no other sees; it begins with those of whoever started it."""
    seen: dict[str, str] = {}

    async def driver(name: str) -> None:
        seen[f"{name} begins"] = WHO.get()
        WHO.set(name)
        await pause(machine.runtime)
        seen[f"{name} ends"] = WHO.get()

    token = WHO.set("the opener")
    try:
        tasks = [machine.runtime.start(driver, name) for name in ("one", "two")]
        for task in tasks:
            machine.runtime.block(task.done)
        assert WHO.get() == "the opener"
    finally:
        WHO.reset(token)
    assert seen == {
        "one begins": "the opener",
        "two begins": "the opener",
        "one ends": "one",
        "two ends": "two",
    }


def test_any_thread_may_post_and_wake(machine: Machine) -> None:
    """From a thread that carries no driver: `post` has a function called where drivers run, and a wake is a wake."""
    posted, woken = Waiter("a post"), Waiter("a wake")
    held = threading.Event()
    where: list[int] = []

    def run_there() -> None:
        where.append(threading.get_ident())
        posted.wake()

    def foreign() -> None:
        with machine.runtime.hold():  # or nothing that is known could end the driver's wait, in virtual time
            held.set()
            machine.runtime.post(run_there)
            woken.wake("by another thread")

    async def driver() -> object:
        thread = threading.Thread(target=foreign)
        thread.start()
        held.wait()
        await machine.runtime.park(posted)
        thread.join()
        assert where != [thread.ident]
        return await machine.runtime.park(woken)

    assert machine.run(driver) == "by another thread"


def test_a_foreign_await_is_a_named_error(machine: Machine) -> None:
    """Where nobody is there who could end it; under asyncio what is asyncio's may be awaited."""

    async def driver() -> str:
        await asyncio.sleep(0.001)
        return "slept"

    if machine.runtime.name == "asyncio":
        assert machine.run(driver) == "slept"
    else:
        with pytest.raises(ForeignAwait):
            machine.run(driver)
    let_run(machine)  # and the others go on
