"""Orders: seeds of the virtual runtime, exclusion under threads, and random scripts against what must hold."""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import DeadlineExpired, WaitCancelled
from busdma.runtime import NAMES, by_name
from busdma.runtime.carrier import Carrier
from busdma.runtime.clock import WallClock
from busdma.runtime.threads import ThreadsRuntime
from busdma.runtime.virtual import VirtualRuntime
from busdma.waiting import Waiter
from runtime.small_pool import Pool, pause


def _trace(seed: int) -> list[tuple[int, str]]:
    runtime = VirtualRuntime(seed, record=True)

    async def works() -> None:
        for _ in range(4):
            await pause(runtime, 10)

    for number in range(5):
        runtime.start(works, name=f"d{number}")
    runtime.run(pause, runtime, 1000)
    assert runtime.trace is not None
    return runtime.trace


def test_a_seed_is_an_order_that_repeats() -> None:
    traces = [_trace(seed) for seed in range(6)]
    assert traces == [_trace(seed) for seed in range(6)]
    assert len({str(trace) for trace in traces}) > 3
    assert len({str(sorted(trace)) for trace in traces}) == 1  # the same steps at the same times
    assert traces[0][:5] == [(0, f"d{number}") for number in range(5)]


def test_no_trace_unless_asked() -> None:
    runtime = VirtualRuntime()
    runtime.run(pause, runtime, 1)
    assert runtime.trace is None


def test_on_threads_a_timer_runs_while_no_driver_does() -> None:
    """Even a driver that the timer itself has woken or started waits until the timer has returned."""
    with ThreadsRuntime() as runtime:
        inside = threading.Event()
        seen: list[bool] = []
        started = []

        async def looks(waiter: Waiter) -> None:
            await runtime.park(waiter)
            seen.append(inside.is_set())

        waiters = [Waiter() for _ in range(8)]
        tasks = [runtime.start(looks, waiter) for waiter in waiters]

        def timer() -> None:
            inside.set()
            for waiter in waiters:
                waiter.wake()
            ready = Waiter()
            ready.wake()
            started.append(runtime.start(looks, ready))
            for _ in range(2000):
                threading.current_thread().is_alive()
            inside.clear()

        runtime.call_at(5, timer)
        for task in tasks:
            runtime.block(task.done)
        runtime.block(started[0].done)
        assert seen == [False] * 9


def test_on_threads_drivers_are_threads() -> None:
    with ThreadsRuntime() as runtime:
        meeting = threading.Barrier(3)  # passes only if the three really run at once

        async def meets() -> int:
            meeting.wait()
            return threading.get_ident()

        tasks = [runtime.start(meets) for _ in range(3)]
        for task in tasks:
            runtime.block(task.done)
        assert len({task.result() for task in tasks} | {threading.get_ident()}) == 4


def test_in_real_time_a_broken_timer_is_logged_and_the_others_ring(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("asyncio", "threads"):
        with by_name(name, clock=WallClock()) as runtime, caplog.at_level(logging.ERROR):

            def fails() -> None:
                raise ValueError("a broken interrupt handler")

            caplog.clear()
            runtime.call_at(runtime.now(), fails)
            runtime.run(pause, runtime, 1000)
            assert "a broken interrupt handler" in caplog.text, name


def test_threads_end_their_timer_thread() -> None:
    before = threading.active_count()
    with ThreadsRuntime(WallClock()) as runtime:
        runtime.run(pause, runtime, 1000)
        assert threading.active_count() > before
    assert "busdma" not in {thread.name for thread in threading.enumerate()}


@dataclass(frozen=True)
class Script:
    """One driver: it comes at `start`, asks for `amount` until `patience` is over, and keeps it for `keep`."""

    start: int
    amount: int
    keep: int
    patience: int | None
    cancelled: int | None


SCRIPTS = st.lists(
    st.builds(
        Script,
        start=st.integers(0, 20),
        amount=st.integers(1, 6),
        keep=st.integers(0, 20),
        patience=st.none() | st.integers(0, 30),
        cancelled=st.none() | st.integers(0, 60),
    ),
    min_size=1,
    max_size=8,
)


def _play(runtime: Carrier, scripts: list[Script]) -> list[tuple[str, int]]:
    """How each driver ended, and when."""
    pool = Pool(runtime, 6)
    used = [0]
    lock = threading.Lock()

    async def plays(script: Script) -> tuple[str, int]:
        try:
            await pause(runtime, script.start)
            deadline = None if script.patience is None else runtime.now() + script.patience
            with await pool.get(script.amount, deadline):
                with lock:
                    used[0] += script.amount
                    assert used[0] <= 6
                try:
                    await pause(runtime, script.keep)
                finally:
                    with lock:
                        used[0] -= script.amount
        except DeadlineExpired:
            return "expired", runtime.now()
        except WaitCancelled:
            return "cancelled", runtime.now()
        return "served", runtime.now()

    tasks = [runtime.start(plays, script, name=f"d{number}") for number, script in enumerate(scripts)]
    for task, script in zip(tasks, scripts, strict=True):
        if script.cancelled is not None:
            runtime.call_at(script.cancelled, task.cancel)
    for task in tasks:
        runtime.block(task.done)
    assert (pool.free, len(pool.queue), used) == (6, 0, [0])
    return [task.result() for task in tasks]


@settings(max_examples=60)
@given(SCRIPTS, st.integers(1, 5))
def test_random_scripts_lose_nothing_on_any_runtime(scripts: list[Script], seed: int) -> None:
    """In strict order the results are equal; in any other, everything still comes back."""
    ends = {}
    for name in NAMES:
        with by_name(name) as runtime:
            ends[name] = _play(runtime, scripts)
            assert runtime.clock.next_at() is None or any(script.cancelled is not None for script in scripts)
    assert ends["virtual"] == ends["asyncio"]
    with VirtualRuntime(seed) as runtime:
        shuffled = _play(runtime, scripts)
    for results in (ends["threads"], shuffled):
        for script, (how, when) in zip(scripts, results, strict=True):
            assert when >= script.start or how == "cancelled"
            assert how != "expired" or script.patience is not None
            assert how != "cancelled" or when == script.cancelled


@settings(max_examples=40)
@given(SCRIPTS)
def test_with_no_ties_the_three_agree(scripts: list[Script]) -> None:
    """Where no two things happen at one moment, there is one right answer."""
    rng = random.Random(len(scripts))
    apart = [
        Script(
            start=script.start * 1000 + rng.randrange(1, 1000),
            amount=1,
            keep=script.keep * 1000 + rng.randrange(1, 1000),
            patience=None,
            cancelled=None if script.cancelled is None else script.cancelled * 1000 + rng.randrange(1, 1000),
        )
        for script in scripts[:6]
    ]
    moments = [script.start for script in apart] + [script.start + script.keep for script in apart]
    moments += [script.cancelled for script in apart if script.cancelled is not None]
    ends = []
    for name in NAMES:
        with by_name(name) as runtime:
            ends.append(_play(runtime, apart))
    if len(set(moments)) == len(moments):
        assert ends[0] == ends[1] == ends[2]
    assert ends[0] == ends[1]
