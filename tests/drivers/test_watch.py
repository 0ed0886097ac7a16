"""Deadlines of many, one timer: who is late is told, at his time and once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers.watch import Watch
from busdma.runtime import by_name
from busdma.waiting import Waiter


async def pause(runtime: object, time: int) -> None:
    waiter = Waiter("a pause")
    runtime.call_at(runtime.now() + time, waiter.wake)  # type: ignore[attr-defined]
    await runtime.park(waiter)  # type: ignore[attr-defined]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 100), st.none() | st.integers(0, 120)), max_size=30))
def test_everybody_is_told_at_his_time_unless_he_has_ended_before(plan: list[tuple[int, int, int | None]]) -> None:
    """(begun at, for so long, ended so long after)."""
    runtime = by_name("virtual")
    told: list[tuple[int, int]] = []
    watch: Watch[int] = Watch(runtime, lambda key: told.append((runtime.now(), key)))
    wanted: list[tuple[int, int]] = []
    for key, (begin, time, over) in enumerate(plan):
        runtime.call_at(begin, lambda key=key, at=begin + time: watch.begin(key, at))  # type: ignore[misc]
        if over is not None:
            runtime.call_at(begin + over, lambda key=key: watch.end(key))  # type: ignore[misc]
        if over is None or over > time:
            wanted.append((begin + time, key))
        elif over == time:  # both at once: whichever
            wanted.append((-1, key))
    runtime.run(pause, runtime, 1000)
    sure = [each for each in wanted if each[0] >= 0]
    assert sorted(set(told) & set(sure)) == sorted(sure)
    assert len(told) == len({key for _, key in told})
    assert {key for _, key in told} <= {key for _, key in wanted}
    assert len(watch._deadlines) == 0


def test_one_timer_serves_all_that_come_later() -> None:
    runtime = by_name("virtual")
    watch: Watch[int] = Watch(runtime, lambda key: None)
    for key in range(1000):
        watch.begin(key, 10_000 + key)
        watch.end(key)
    assert len(runtime.clock) == 1  # type: ignore[arg-type]


def test_nobody_is_told_after_a_clear() -> None:
    runtime = by_name("virtual")
    told: list[int] = []
    watch: Watch[int] = Watch(runtime, told.append)
    watch.begin(1, 10)
    watch.begin(2, 20)
    watch.clear()
    watch.begin(3, 30)
    runtime.run(pause, runtime, 100)
    assert told == [3]


def test_an_earlier_one_moves_the_timer() -> None:
    runtime = by_name("virtual")
    told: list[tuple[int, int]] = []
    watch: Watch[int] = Watch(runtime, lambda key: told.append((runtime.now(), key)))
    watch.begin(1, 100)
    watch.begin(2, 10)
    runtime.run(pause, runtime, 1000)
    assert told == [(10, 2), (100, 1)]
