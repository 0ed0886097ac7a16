"""What is asyncio's own: inside the user's loop, native cancellation, native awaits."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial
from typing import Any

import pytest

from busdma.errors import BlockingInsideLoop, DeadlineExpired, Deadlock, WaitError
from busdma.runtime.aio import AsyncioRuntime
from busdma.runtime.clock import WallClock
from busdma.waiting import CANCELLED, WOKEN, Waiter
from runtime.small_pool import MICROSECOND, Pool, driver, pause


def test_inside_the_users_loop() -> None:
    async def main() -> tuple[Any, int]:
        runtime = AsyncioRuntime()
        pool = Pool(runtime, 8)
        tasks = [runtime.start(driver, runtime, pool, f"d{n}", 3, 10, 2, name=f"d{n}") for n in range(3)]
        for task in tasks:
            await runtime.park(task.done)
        return [task.result()[:2] for task in tasks], runtime.now()

    logs, now = asyncio.run(main())
    assert logs == [[f"d{n}/d{n} 0", f"d{n}/d{n} 1"] for n in range(3)]
    assert now == 130  # three rounds of two of them, then the deadline of a hundred


def test_made_outside_used_inside() -> None:
    """A machine may be opened, and even used, before there is a loop."""
    runtime = AsyncioRuntime()
    rung: list[int] = []
    runtime.call_at(5, lambda: rung.append(runtime.now()))
    assert runtime.run(pause, runtime, 10) == 10

    async def main() -> int:
        task = runtime.start(pause, runtime, 10)
        await runtime.park(task.done)
        return task.result()

    assert asyncio.run(main()) == 20
    assert asyncio.run(main()) == 30  # and in the next loop
    assert runtime.run(pause, runtime, 10) == 40
    assert rung == [5]
    runtime.close()


def test_drivers_started_before_there_is_a_loop() -> None:
    runtime = AsyncioRuntime()
    task = runtime.start(pause, runtime, 10)
    posted: list[bool] = []
    runtime.post(lambda: posted.append(True))

    async def main() -> int:
        await runtime.park(task.done)
        return task.result()

    assert asyncio.run(main()) == 10
    assert posted == [True]


def test_real_timers_made_before_there_is_a_loop() -> None:
    runtime = AsyncioRuntime(WallClock())
    waiter = Waiter()
    runtime.call_at(runtime.now() + MICROSECOND, lambda: waiter.wake("rung"))

    async def main() -> Any:
        return await runtime.park(waiter)

    assert asyncio.run(main()) == "rung"


def test_drivers_do_not_move_to_another_loop() -> None:
    runtime = AsyncioRuntime()
    runtime.start(runtime.park, Waiter("the moon"), name="settled")
    with pytest.raises(Deadlock):
        runtime.block(Waiter())

    async def main() -> None:
        with pytest.raises(WaitError, match="another event loop"):
            await runtime.park(Waiter())
        with pytest.raises(BlockingInsideLoop):
            runtime.block(Waiter())

    asyncio.run(main())
    runtime.close()


def test_the_users_loop_must_run() -> None:
    loop = asyncio.new_event_loop()

    async def make() -> AsyncioRuntime:
        return AsyncioRuntime()

    runtime = loop.run_until_complete(make())
    waiter = Waiter()
    with pytest.raises(WaitError, match="does not run"):
        runtime.block(waiter)
    assert waiter.state == CANCELLED
    loop.close()


def test_a_loop_of_its_own_is_closed_with_it() -> None:
    runtime = AsyncioRuntime()
    assert runtime.run(pause, runtime, 5) == 5
    del runtime
    gc.collect()  # a loop left open would be a ResourceWarning, which is an error here


def test_blocking_inside_the_loop_and_from_a_plain_thread() -> None:
    async def main() -> None:
        runtime = AsyncioRuntime()
        pool = Pool(runtime, 4)
        with pytest.raises(BlockingInsideLoop):
            pool.get_blocking(1)
        assert pool.free == 4
        with await asyncio.to_thread(pool.get_blocking, 3):
            assert pool.free == 1
            with pytest.raises(DeadlineExpired):
                await asyncio.to_thread(pool.get_blocking, 3, 50)
            assert runtime.now() == 50  # who waits outside moves the clock, from a thread too
            with pytest.raises(Deadlock):
                await asyncio.to_thread(pool.get_blocking, 3)
        assert (pool.free, len(pool.queue)) == (4, 0)

    asyncio.run(main())


def test_deadlock_in_the_users_loop() -> None:
    async def main() -> None:
        runtime = AsyncioRuntime()
        gate = Waiter("the gate")
        task = runtime.start(runtime.park, gate, name="parked")
        waits = [asyncio.ensure_future(runtime.park(Waiter(f"moon {n}"))) for n in range(2)]
        for n, error in enumerate(await asyncio.gather(*waits, return_exceptions=True)):
            assert isinstance(error, Deadlock)
            assert f"moon {n}" in str(error)
            assert "parked waits for the gate" in str(error)
        gate.wake(1)
        await runtime.park(task.done)
        assert task.result() == 1

    asyncio.run(main())


def test_natively_cancelled_after_the_grant_nothing_is_lost() -> None:
    async def main() -> None:
        runtime = AsyncioRuntime()
        pool = Pool(runtime, 8)
        held = await pool.get(8)
        task = runtime.start(pool.get, 4)
        user = asyncio.ensure_future(pool.get(4))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(pool.queue) == 2
        held.pool.release(8)  # both are granted
        assert isinstance(task.carrier, asyncio.Task)
        task.carrier.cancel()  # before either could run
        user.cancel()
        await runtime.park(task.done)
        with pytest.raises(asyncio.CancelledError):
            task.result()
        with pytest.raises(asyncio.CancelledError):
            await user
        assert pool.free == 8

    asyncio.run(main())


def test_a_park_that_is_natively_cancelled_says_whether_it_was_woken() -> None:
    async def main() -> None:
        runtime = AsyncioRuntime()
        for woken in (True, False):
            waiter = Waiter("a grant")
            user = asyncio.ensure_future(runtime.park(waiter))
            with runtime.hold():
                await asyncio.sleep(0)
                if woken:
                    waiter.wake("granted")
                user.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await user
            assert waiter.state == (WOKEN if woken else CANCELLED)
            assert waiter.wake() is False

    asyncio.run(main())


def test_asyncio_timeout_around_a_wait() -> None:
    async def waits(runtime: AsyncioRuntime, pool: Pool) -> str:
        try:
            async with asyncio.timeout(0.001):
                await pool.get(9)
        except TimeoutError:
            return f"{len(pool.queue)} in the queue"
        return "granted"

    runtime = AsyncioRuntime(WallClock())
    pool = Pool(runtime, 8)
    assert runtime.run(waits, runtime, pool) == "0 in the queue"
    assert pool.free == 8
    runtime.close()


def test_a_driver_cancelled_before_its_first_step() -> None:
    async def main() -> None:
        runtime = AsyncioRuntime()
        task = runtime.start(pause, runtime, 10)
        assert isinstance(task.carrier, asyncio.Task)
        task.carrier.cancel()
        await runtime.park(task.done)
        with pytest.raises(asyncio.CancelledError):
            task.result()
        assert runtime.now() == 0

    asyncio.run(main())


def test_virtual_time_stands_still_while_a_driver_awaits_what_is_native() -> None:
    async def sleeps() -> int:
        before = runtime.now()
        await asyncio.sleep(0.002)
        return runtime.now() - before

    runtime = AsyncioRuntime()
    rung: list[int] = []
    for when in range(10):
        runtime.call_at(when, partial(rung.append, when))
    assert runtime.run(sleeps) == 0
    assert rung == []
    runtime.close()


def test_what_the_opener_does_natively_stops_the_clock() -> None:
    async def main() -> None:
        runtime = AsyncioRuntime()
        task = runtime.start(pause, runtime, 10)
        for _ in range(20):
            await asyncio.sleep(0)
        assert runtime.now() == 0
        await runtime.park(task.done)
        assert runtime.now() == 10

    asyncio.run(main())


def test_close_inside_the_loop_ends_drivers_without_waiting() -> None:
    async def main() -> None:
        runtime = AsyncioRuntime()
        parked = runtime.start(runtime.park, Waiter("the moon"))
        native = runtime.start(asyncio.sleep, 3600)
        await asyncio.sleep(0)
        runtime.close()
        for task in (parked, native):
            await runtime.park(task.done)

    asyncio.run(main())


def test_drivers_may_use_threads_of_the_loop() -> None:
    runtime = AsyncioRuntime()

    async def asks() -> tuple[int, int]:
        where = await asyncio.to_thread(threading.get_ident)
        return where, await pause(runtime, 5)

    where, now = runtime.run(asks)
    assert where != threading.get_ident()
    assert now == 5
    runtime.close()
