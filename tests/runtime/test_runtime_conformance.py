"""What every runtime must do: the same tests on all of them, in virtual time and, where they can, in real time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from busdma.errors import BlockingInsideLoop, ConfigurationError, DeadlineExpired, Deadlock, ForeignAwait, WaitCancelled
from busdma.runtime import NAMES, by_name
from busdma.runtime.carrier import Carrier
from busdma.runtime.clock import WallClock
from busdma.waiting import CANCELLED, PENDING, WOKEN, Runtime, Task, Waiter
from runtime.small_pool import MICROSECOND, Pool, driver, pause, who

Make = Callable[[str], Carrier]


def test_all_keep_the_protocol(any_runtime: Carrier) -> None:
    runtime: Runtime = any_runtime  # checked by mypy
    promised = {name for name, member in vars(Runtime).items() if inspect.isfunction(member) and name[0] != "_"}
    assert promised == {"now", "call_at", "park", "block", "start", "run", "post", "give_way", "hold"}
    assert all(callable(getattr(runtime, name)) for name in promised)
    assert runtime.name in NAMES


def test_who_gives_way_goes_on_and_no_time_passes(any_runtime: Carrier) -> None:
    async def main() -> int:
        turns = 0
        while turns < 100:
            await any_runtime.give_way()
            turns += 1
        return turns

    before = any_runtime.now()
    assert any_runtime.run(main) == 100
    if any_runtime.clock.virtual:
        assert any_runtime.now() == before


@pytest.mark.parametrize("name", ["virtual", "asyncio"])
def test_the_others_have_a_turn_first(name: str) -> None:
    with by_name(name) as runtime:
        order: list[str] = []

        async def other(what: str) -> None:
            order.append(what)

        async def main() -> None:
            others = [runtime.start(other, what) for what in "abc"]
            await runtime.give_way()
            order.append("main")
            for each in others:
                await runtime.park(each.done)

        runtime.run(main)
        assert order == ["a", "b", "c", "main"]


def test_by_name_says_what_there_is() -> None:
    with pytest.raises(ConfigurationError, match="virtual, asyncio, threads"):
        by_name("trio")
    with pytest.raises(ConfigurationError, match="its own clock"):
        by_name("virtual", clock=WallClock())


# ---------------------------------------------------------------- results, errors, contexts


def test_run_returns_the_result_and_raises_the_error(any_runtime: Carrier) -> None:
    async def divide(a: int, b: int) -> float:
        await pause(any_runtime, MICROSECOND)
        return a / b

    assert any_runtime.run(divide, 6, 3) == 2
    with pytest.raises(ZeroDivisionError):
        any_runtime.run(divide, 1, 0)
    assert any_runtime.run(divide, 9, 3) == 3


def test_start_takes_only_async_functions(any_runtime: Carrier) -> None:
    with pytest.raises(TypeError, match="async def"):
        any_runtime.start(cast(Any, lambda: 5))
    with pytest.raises(TypeError, match="not what calling it returns"):
        any_runtime.run(cast(Any, pause(any_runtime, 0)))
    assert any_runtime.run(pause, any_runtime, 0) >= 0


def test_a_result_before_the_end_is_an_error(any_runtime: Carrier) -> None:
    gate = Waiter("the gate")
    task = any_runtime.start(any_runtime.park, gate, name="early")
    with pytest.raises(RuntimeError, match="early has not ended"):
        task.result()
    gate.wake(7)
    any_runtime.block(task.done)
    assert task.result() == 7
    assert task.done.purpose == "early"


def test_each_driver_has_its_own_context(any_runtime: Carrier) -> None:
    outer = who.set("opener")

    async def child() -> tuple[str, str]:
        inherited = who.get()
        who.set("child")
        await pause(any_runtime, MICROSECOND)
        return inherited, who.get()

    async def parent() -> tuple[Any, ...]:
        inherited = who.get()
        who.set("parent")
        task = any_runtime.start(child)
        await any_runtime.park(task.done)
        return inherited, task.result(), who.get()

    assert any_runtime.run(parent) == ("opener", ("parent", "child"), "parent")
    assert who.get() == "opener"
    who.reset(outer)


def test_current_names_the_running_driver(any_runtime: Carrier) -> None:
    async def child() -> str:
        await pause(any_runtime, MICROSECOND)
        return any_runtime.current

    async def parent() -> list[str]:
        task = any_runtime.start(child, name="fdc0")
        await any_runtime.park(task.done)
        return [task.result(), any_runtime.current]

    assert any_runtime.run(parent, name="opener") == ["fdc0", "opener"]
    assert any_runtime.current == ""


def test_many_may_wait_for_one_end(any_runtime: Carrier) -> None:
    """A deadline or a cancel of one of them is his alone."""
    gate = Waiter("the gate")
    task = any_runtime.start(any_runtime.park, gate)

    async def patient() -> Any:
        await any_runtime.park(task.done)
        return task.result()

    async def hasty() -> Any:
        await any_runtime.park(task.done, deadline=any_runtime.now() + MICROSECOND)

    patients = [any_runtime.start(patient) for _ in range(3)]
    cancelled = any_runtime.start(patient)
    cancelled.cancel()
    with pytest.raises(DeadlineExpired):
        any_runtime.run(hasty)
    assert task.done.state == PENDING
    assert not task.done.cancel()
    assert not task.done.expire()
    gate.wake("opened")
    for each in [*patients, cancelled]:
        any_runtime.block(each.done)
    assert [each.result() for each in patients] == ["opened"] * 3
    with pytest.raises(WaitCancelled):
        cancelled.result()
    any_runtime.block(task.done)  # an end that has been is no wait


def test_keyboard_interrupt_reaches_the_opener(any_runtime: Carrier) -> None:
    async def interrupted() -> None:
        await pause(any_runtime, MICROSECOND)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        any_runtime.run(interrupted)
    assert any_runtime.run(pause, any_runtime, 0) >= 0


# ---------------------------------------------------------------- deadlines


def test_a_deadline_is_an_argument_of_a_wait(any_runtime: Carrier) -> None:
    async def waits() -> tuple[str, int]:
        waiter = Waiter("the moon")
        start = any_runtime.now()
        with pytest.raises(DeadlineExpired, match="the moon"):
            await any_runtime.park(waiter, start + 50 * MICROSECOND)
        assert not waiter.wake("too late")
        return waiter.state, any_runtime.now() - start

    state, waited = any_runtime.run(waits)
    assert state == "expired"
    assert waited >= 50 * MICROSECOND


def test_block_has_a_deadline_too(any_runtime: Carrier) -> None:
    start = any_runtime.now()
    with pytest.raises(DeadlineExpired, match="the moon"):
        any_runtime.block(Waiter("the moon"), start + 50 * MICROSECOND)
    assert any_runtime.now() >= start + 50 * MICROSECOND


def test_a_deadline_that_has_passed_expires_the_wait(any_runtime: Carrier) -> None:
    with pytest.raises(DeadlineExpired):
        any_runtime.block(Waiter(), any_runtime.now() - 1)
    ended = Waiter()
    ended.wake(5)
    assert any_runtime.block(ended, any_runtime.now() - 1) == 5


def test_a_wait_that_ends_in_time_leaves_no_timer(any_runtime: Carrier) -> None:
    class Marker:
        """Something whose life can be watched."""

    async def waits() -> list[weakref.ref[Marker]]:
        seen = []
        for _ in range(100):
            waiter, marker = Waiter(), Marker()
            seen.append(weakref.ref(marker))
            any_runtime.call_at(any_runtime.now() + MICROSECOND, waiter.wake)
            await any_runtime.park(waiter, any_runtime.now() + 3600 * 10**9)
            any_runtime.call_at(any_runtime.now() + 10**15, partial(id, marker)).cancel()
            del marker
        return seen

    seen = any_runtime.run(waits)
    gc.collect()
    assert [ref() for ref in seen] == [None] * 100
    assert any_runtime.clock.next_at() is None


def test_a_deadline_is_an_integer(any_runtime: Carrier) -> None:
    waiter = Waiter()
    with pytest.raises(TypeError):
        any_runtime.run(any_runtime.park, waiter, cast(Any, 1.5))
    assert waiter.state == CANCELLED
    with pytest.raises(TypeError):
        any_runtime.block(Waiter(), cast(Any, 1.5))
    assert any_runtime.run(pause, any_runtime, 0) >= 0


# ---------------------------------------------------------------- cancelling


def test_cancel_ends_the_wait(any_runtime: Carrier) -> None:
    waiter = Waiter("the moon")
    cleaned = []

    async def waits() -> None:
        try:
            await any_runtime.park(waiter)
        finally:
            cleaned.append(any_runtime.current)

    task = any_runtime.start(waits, name="waits")
    any_runtime.run(pause, any_runtime, MICROSECOND)
    task.cancel()
    task.cancel()  # twice is once
    any_runtime.block(task.done)
    with pytest.raises(WaitCancelled, match="the moon"):
        task.result()
    assert waiter.state == CANCELLED
    assert cleaned == ["waits"]
    task.cancel()  # harmless


def test_cancel_before_the_first_wait_is_raised_from_it(any_runtime: Carrier) -> None:
    begun = []

    async def waits() -> None:
        task[0].cancel()
        begun.append(True)
        await any_runtime.park(Waiter("the moon"))

    task: list[Task[None]] = []
    holder = any_runtime.start(_after, any_runtime, lambda: task.append(any_runtime.start(waits)))
    any_runtime.block(holder.done)
    any_runtime.block(task[0].done)
    with pytest.raises(WaitCancelled):
        task[0].result()
    assert begun == [True]


async def _after(runtime: Carrier, fn: Callable[[], object]) -> None:
    await pause(runtime, MICROSECOND)
    fn()


def test_a_cancel_after_the_grant_is_raised_from_the_next_wait(any_runtime: Carrier) -> None:
    """The value of a wait that was already woken is returned as usual."""
    granted, got = Waiter("the grant"), []

    async def waits() -> None:
        got.append(await any_runtime.park(granted))
        await any_runtime.park(Waiter("the next one"))

    async def grant_and_cancel() -> None:
        granted.wake("a page")
        task.cancel()

    task = any_runtime.start(waits)
    any_runtime.run(pause, any_runtime, MICROSECOND)
    any_runtime.run(grant_and_cancel)
    any_runtime.block(task.done)
    assert got == ["a page"]
    with pytest.raises(WaitCancelled, match="the next one"):
        task.result()


def test_a_wait_that_has_ended_does_not_take_the_cancellation(any_runtime: Carrier) -> None:
    ready = Waiter()
    ready.wake("at once")
    got: list[object] = []

    async def waits() -> None:
        task[0].cancel()
        got.append(await any_runtime.park(ready))
        try:
            await any_runtime.park(Waiter("the next one"))
        except WaitCancelled as error:
            got.append(str(error))
        got.append(await pause(any_runtime, MICROSECOND) > 0)  # one cancel ends one wait

    task: list[Task[None]] = []
    any_runtime.run(_after, any_runtime, lambda: task.append(any_runtime.start(waits)))
    any_runtime.block(task[0].done)
    assert got == ["at once", "cancelled while waiting for the next one", True]


def test_cancel_from_another_thread(any_runtime: Carrier) -> None:
    task = any_runtime.start(any_runtime.park, Waiter("the moon"))
    with any_runtime.hold():
        thread = threading.Thread(target=task.cancel)
        thread.start()
        thread.join()
    any_runtime.block(task.done)
    with pytest.raises(WaitCancelled):
        task.result()


def test_cancelled_in_the_queue_of_a_pool_nothing_is_lost(any_runtime: Carrier) -> None:
    pool = Pool(any_runtime, 8)
    held = pool.get_blocking(8)
    first = any_runtime.start(pool.get, 4)
    second = any_runtime.start(pool.get, 8)
    any_runtime.run(pause, any_runtime, MICROSECOND)
    first.cancel()
    any_runtime.block(first.done)
    with held:
        assert len(pool.queue) == 1
    with any_runtime.run(_join, any_runtime, second):
        assert pool.free == 0
    assert pool.free == 8


async def _join(runtime: Carrier, task: Task[Any]) -> Any:
    await runtime.park(task.done)
    return task.result()


def test_cancelled_right_after_the_grant_nothing_is_lost(any_runtime: Carrier) -> None:
    pool = Pool(any_runtime, 8)
    held = pool.get_blocking(8)

    async def takes() -> int:
        with await pool.get(4):
            await any_runtime.park(Waiter("the device"))
        return 0

    task = any_runtime.start(takes)
    any_runtime.run(pause, any_runtime, MICROSECOND)

    async def grant_and_cancel() -> None:
        held.pool.release(held.amount)
        task.cancel()

    any_runtime.run(grant_and_cancel)
    any_runtime.block(task.done)
    with pytest.raises(WaitCancelled):
        task.result()
    assert pool.free == 8


# ---------------------------------------------------------------- what cannot work is a named error


def test_blocking_inside_a_driver(any_runtime: Carrier) -> None:
    pool = Pool(any_runtime, 1)

    async def blocks() -> None:
        pool.get_blocking(2)

    async def runs() -> None:
        any_runtime.run(pause, any_runtime, 0)

    for fn in (blocks, runs):
        with pytest.raises(BlockingInsideLoop, match="await park"):
            any_runtime.run(fn)
    assert (pool.free, len(pool.queue)) == (1, 0)


def test_blocking_inside_a_timer(any_runtime: Carrier) -> None:
    told: list[Exception] = []
    over = Waiter("the timer")

    def blocks() -> None:
        try:
            any_runtime.block(Waiter("the moon"))
        except BlockingInsideLoop as error:
            told.append(error)
        over.wake()

    any_runtime.call_at(any_runtime.now() + MICROSECOND, blocks)
    any_runtime.block(over)
    assert len(told) == 1


def test_a_foreign_await(make_runtime: Make) -> None:
    class Foreign:
        """Awaited, it yields something of its own."""

        def __await__(self) -> Any:
            yield "something else"

    async def sleeps() -> None:
        await asyncio.sleep(1)

    async def yields() -> None:
        await asyncio.sleep(0)

    async def timeout() -> None:
        async with asyncio.timeout(1):
            await pause(carrier, MICROSECOND)

    async def foreign() -> None:
        await Foreign()

    async def survives() -> int:
        with pytest.raises(ForeignAwait):
            await Foreign()
        return await pause(carrier, MICROSECOND)

    for name in ("virtual", "threads"):
        with make_runtime(name) as carrier:
            for fn in (sleeps, yields, timeout, foreign):
                with pytest.raises(ForeignAwait, match=fn.__name__):
                    carrier.run(fn, name=fn.__name__)
            assert carrier.run(survives) == MICROSECOND


def test_parking_where_no_driver_is(make_runtime: Make) -> None:
    for name in ("virtual", "threads"):
        with make_runtime(name) as carrier, make_runtime(name) as other:
            with pytest.raises(ForeignAwait, match="outside a driver"):
                carrier.park(Waiter()).send(None)
            with pytest.raises(ForeignAwait, match="outside a driver"):
                other.run(carrier.park, Waiter())


def test_deadlock_names_who_waits_for_what(runtime: Carrier) -> None:
    async def fails() -> None:
        raise ValueError("a broken driver")

    waiter = Waiter("3 bounce pages")
    task = runtime.start(runtime.park, waiter, name="aha0")
    runtime.start(fails, name="aha1")
    with pytest.raises(Deadlock) as caught:
        runtime.run(runtime.park, Waiter("the moon"), name="opener")
    said = str(caught.value)
    for part in ("wait for opener", "aha0 waits for 3 bounce pages", "opener waits for the moon", "broken driver"):
        assert part in said
    assert task.done.state == PENDING  # parked drivers stay parked
    waiter.wake("pages")
    runtime.block(task.done)
    assert task.result() == "pages"


def test_deadlock_ends_only_the_wait_from_outside(runtime: Carrier) -> None:
    """The waiter is cancelled: a later grant stays with the granter."""
    pool = Pool(runtime, 4)
    with pytest.raises(Deadlock, match="5 units"):
        pool.get_blocking(5)
    assert (pool.free, len(pool.queue)) == (4, 0)
    with pool.get_blocking(4):
        pass


def test_virtual_time_runs_out_of_timers_before_a_deadlock(runtime: Carrier) -> None:
    runtime.call_at(5 * MICROSECOND, lambda: None)
    with pytest.raises(Deadlock, match="at 5000 ns"):
        runtime.block(Waiter("the moon"))


def test_an_error_in_a_timer_reaches_the_opener(runtime: Carrier) -> None:
    def fails() -> None:
        raise ValueError("a broken device model")

    runtime.call_at(5, fails)
    with pytest.raises(ValueError, match="broken device model"):
        runtime.block(Waiter("the moon"))
    runtime.call_at(5, lambda: runtime.post(fails))
    with pytest.raises(ValueError, match="broken device model"):
        runtime.block(Waiter("the moon"))
    assert runtime.run(pause, runtime, 5) == 10


# ---------------------------------------------------------------- cleanup, and the end


def test_cleanup_never_waits(any_runtime: Carrier) -> None:
    """A driver that fails inside a transfer gives back everything before anybody else runs it again."""
    pool = Pool(any_runtime, 4)

    async def fails() -> None:
        with await pool.get(4):
            raise ValueError("in the middle")

    for _ in range(3):
        with pytest.raises(ValueError, match="in the middle"):
            any_runtime.run(fails)
        assert pool.free == 4


def test_close_ends_every_driver(any_runtime: Carrier) -> None:
    pool = Pool(any_runtime, 4)

    async def holds() -> None:
        with await pool.get(2):
            await any_runtime.park(Waiter("the moon"))

    tasks = [any_runtime.start(holds) for _ in range(4)]
    any_runtime.run(pause, any_runtime, MICROSECOND)
    assert pool.free == 0
    any_runtime.close()
    assert pool.free == 4
    assert [task.done.state for task in tasks] == [WOKEN] * 4
    any_runtime.close()


def test_a_driver_that_will_not_end_is_told_at_close(make_runtime: Make) -> None:
    for name in NAMES:
        carrier = make_runtime(name)
        second = Waiter("another try")

        async def stubborn(carrier: Carrier = carrier, second: Waiter = second) -> None:
            try:
                await carrier.park(Waiter("the moon"))
            except WaitCancelled:
                await carrier.park(second)

        task = carrier.start(stubborn)
        with pytest.raises(Deadlock):
            carrier.block(Waiter())
        with pytest.raises(Deadlock, match="another try"):
            carrier.close()
        second.wake()
        carrier.close()
        assert task.done.state == WOKEN


def test_a_forgotten_runtime_still_cleans_up(make_runtime: Make) -> None:
    """Without close(), a parked driver of the virtual runtime ends with it."""
    cleaned = []

    async def waits(carrier: Carrier) -> None:
        try:
            await carrier.park(Waiter("the moon"))
        finally:
            cleaned.append(True)

    carrier = make_runtime("virtual")
    carrier.start(waits, carrier)
    carrier.run(pause, carrier, 5)
    del carrier
    gc.collect()
    assert cleaned == [True]


def test_a_driver_that_cannot_be_launched(make_runtime: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with make_runtime("threads") as carrier:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuses)
            with pytest.raises(RuntimeError, match="new thread"):
                carrier.start(pause, carrier, 5)
        assert carrier.run(pause, carrier, 5) == 5


def test_ended_drivers_leave_nothing_behind(any_runtime: Carrier) -> None:
    class Marker:
        """Something whose life can be watched."""

    async def takes(marker: Marker) -> weakref.ref[Marker]:
        await pause(any_runtime, MICROSECOND)
        return weakref.ref(marker)

    seen = [any_runtime.run(takes, Marker()) for _ in range(5)]
    any_runtime.run(pause, any_runtime, MICROSECOND)
    gc.collect()
    assert [ref() for ref in seen] == [None] * 5


# ---------------------------------------------------------------- other threads


def test_a_wake_from_another_thread(any_runtime: Carrier) -> None:
    waiter = Waiter("an interrupt")
    announced, parked = threading.Event(), threading.Event()

    def interrupts() -> None:
        with any_runtime.hold():
            announced.set()
            parked.wait()
            waiter.wake(threading.get_ident())

    async def waits() -> Any:
        parked.set()
        return await any_runtime.park(waiter)

    thread = threading.Thread(target=interrupts)
    thread.start()
    announced.wait()
    assert any_runtime.run(waits) == thread.ident
    thread.join()


def test_post_from_another_thread(any_runtime: Carrier) -> None:
    waiter = Waiter("a word from outside")
    announced = threading.Event()
    where: list[bool] = []

    def told() -> None:
        where.append(any_runtime._inside())
        waiter.wake("posted")

    def outside() -> None:
        with any_runtime.hold():
            announced.set()
            any_runtime.post(told)

    task = any_runtime.start(any_runtime.park, waiter)
    thread = threading.Thread(target=outside)
    thread.start()
    announced.wait()
    any_runtime.block(task.done)
    thread.join()
    assert task.result() == "posted"
    assert where == [True]


def test_while_it_is_held_virtual_time_stands_still(runtime: Carrier) -> None:
    """A foreign thread that works for the machine is not overtaken by the machine's clock."""
    seen: list[int] = []
    begun = threading.Event()
    waiter = Waiter("work outside")

    def works() -> None:
        with runtime.hold():
            begun.set()
            for _ in range(50):
                seen.append(runtime.now())
            runtime.post(lambda: waiter.wake(runtime.now()))

    runtime.call_at(5 * MICROSECOND, lambda: None)
    thread = threading.Thread(target=works)
    thread.start()
    begun.wait()
    assert runtime.block(waiter) == 0
    thread.join()
    assert seen == [0] * 50


def test_plain_threads_may_block_together(any_runtime: Carrier) -> None:
    """Each holds the clock while it works; so it moves only when all of them wait."""
    pool = Pool(any_runtime, 4)
    log: list[int] = []
    begun = threading.Barrier(3)

    def uses(number: int) -> None:
        with any_runtime.hold():
            begun.wait()
            for _ in range(5):
                with pool.get_blocking(3):
                    any_runtime.block(_timer(any_runtime, MICROSECOND))
                    log.append(number)

    start = any_runtime.now()
    threads = [threading.Thread(target=uses, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(log) == [0] * 5 + [1] * 5 + [2] * 5
    assert pool.free == 4
    assert any_runtime.now() - start >= 15 * MICROSECOND
    assert not any_runtime.clock.virtual or any_runtime.now() == 15 * MICROSECOND


def _timer(runtime: Carrier, ns: int) -> Waiter:
    waiter = Waiter("a timer")
    runtime.call_at(runtime.now() + ns, waiter.wake)
    return waiter


# ---------------------------------------------------------------- virtual time, and equal results


def test_the_clock_moves_only_while_somebody_waits(runtime: Carrier) -> None:
    rung: list[int] = []
    for when in (30, 10, 20, 10):
        runtime.call_at(when, partial(rung.append, when))
    tasks = [runtime.start(pause, runtime, ns) for ns in (15, 25)]
    assert (rung, runtime.now()) == ([], 0)
    for task in tasks:
        runtime.block(task.done)
    assert (rung, runtime.now()) == ([10, 10, 20], 25)
    assert [task.result() for task in tasks] == [15, 25]


def test_a_timer_in_the_past_is_called_now(runtime: Carrier) -> None:
    runtime.run(pause, runtime, 100)
    order: list[str] = []
    runtime.call_at(100, lambda: order.append("now"))
    runtime.call_at(5, lambda: order.append("past"))
    runtime.run(pause, runtime, 0)
    assert (order, runtime.now()) == (["now", "past"], 100)


def test_the_clock_does_not_move_while_a_driver_can_run(runtime: Carrier) -> None:
    """Drivers that hand on a baton do so in no time at all."""
    runtime.call_at(1, lambda: None)
    batons = [Waiter(f"baton {number}") for number in range(20)]

    async def passes(number: int) -> int:
        await runtime.park(batons[number])
        if number:
            batons[number - 1].wake()
        return runtime.now()

    tasks = [runtime.start(passes, number) for number in range(20)]
    batons[19].wake()
    runtime.block(tasks[0].done)
    assert [task.result() for task in tasks] == [0] * 20


def test_who_was_woken_first_runs_first(make_runtime: Make) -> None:
    for name in ("virtual", "asyncio"):
        with make_runtime(name) as carrier:
            order: list[int] = []
            waiters = [Waiter() for _ in range(10)]

            async def waits(
                number: int, carrier: Carrier = carrier, waiters: list[Waiter] = waiters, order: list[int] = order
            ) -> None:
                await carrier.park(waiters[number])
                order.append(number)

            async def wakes(carrier: Carrier = carrier, waiters: list[Waiter] = waiters) -> None:
                await pause(carrier, 1)
                for number in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7):
                    waiters[number].wake()

            tasks = [carrier.start(waits, number) for number in range(10)]
            carrier.run(wakes)
            for task in tasks:
                carrier.block(task.done)
            assert order == [3, 1, 4, 0, 5, 9, 2, 6, 8, 7], name


def test_one_driver_file_equal_results(any_runtime: Carrier) -> None:
    """Three drivers that share a pool: the same log from each of them, on every runtime and both clocks."""
    pool = Pool(any_runtime, 8)
    tasks = [
        any_runtime.start(driver, any_runtime, pool, f"d{number}", 3, 20 * MICROSECOND, 6, name=f"d{number}")
        for number in range(4)
    ]
    for task in tasks:
        any_runtime.block(task.done)
    assert [task.result() for task in tasks] == [
        [
            *(f"d{number}/d{number} {each}" for each in range(6)),
            "the deadline passed while waiting for 1000000 units",
        ]
        for number in range(4)
    ]
    assert (pool.free, len(pool.queue)) == (8, 0)
    assert who.get() == "nobody"
    assert contextvars.copy_context().get(who) is None


def test_virtual_times_are_equal_too(make_runtime: Make) -> None:
    """A driver at its own pace sees the same times whoever carries it."""

    async def paced(carrier: Carrier, step: int) -> list[int]:
        return [await pause(carrier, step * number) for number in range(1, 8)]

    seen = []
    for name in NAMES:
        with make_runtime(name) as carrier:
            tasks = [carrier.start(paced, carrier, step) for step in (3, 5, 7, 11)]
            for task in tasks:
                carrier.block(task.done)
            seen.append(([task.result() for task in tasks], carrier.now()))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][1] == 11 * 28
