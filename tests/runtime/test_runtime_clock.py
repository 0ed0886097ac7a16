"""Clocks against a simple model: a sorted list."""

from __future__ import annotations

import gc
import weakref
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.runtime.clock import VirtualClock, WallClock
from busdma.waiting import Timer

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(-5, 30)),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("advance"), st.just(0)),
        st.tuples(st.just("next"), st.just(0)),
    ),
    max_size=120,
)


@settings(max_examples=150)
@given(OPERATIONS)
def test_a_virtual_clock_is_a_sorted_list(operations: list[tuple[str, int]]) -> None:
    clock = VirtualClock()
    timers: list[Timer] = []
    called: list[int] = []
    model: list[tuple[int, int]] = []  # (when, number)
    now = 0
    for what, argument in operations:
        if what == "call":
            number = len(timers)
            when = clock.now() + argument
            timers.append(clock.call_at(when, partial(called.append, number)))
            model.append((max(when, now), number))
        elif what == "cancel" and timers:
            number = argument % len(timers)
            timers[number].cancel()
            model = [entry for entry in model if entry[1] != number]
        elif what == "advance":
            expected = min(model, default=None)
            before = len(called)
            assert clock.advance() == (expected is not None)
            if expected is not None:
                model.remove(expected)
                now = expected[0]
                assert called[before:] == [expected[1]]
        else:
            assert clock.next_at() == min((when for when, _ in model), default=None)
        assert clock.now() == now
        assert len(clock) == len(model)


def test_timers_of_one_moment_keep_the_order_of_registration() -> None:
    clock = VirtualClock()
    called: list[int] = []
    for number in range(50):
        clock.call_at(7, partial(called.append, number))
    while clock.advance():
        pass
    assert called == list(range(50))


def test_cancelled_timers_let_go_of_everything() -> None:
    class Marker:
        """Something whose life can be watched."""

    clock = VirtualClock()
    kept = clock.call_at(10**12, lambda: None)
    seen = []
    for _ in range(1000):
        marker = Marker()
        seen.append(weakref.ref(marker))
        clock.call_at(10**9, partial(id, marker)).cancel()
        del marker
    gc.collect()
    assert all(ref() is None for ref in seen)
    assert len(clock) == 1
    assert len(clock._entries) < 40  # their places are given back too
    kept.cancel()
    assert not clock.advance()
    assert clock.now() == 0


def test_a_timer_may_cancel_and_register_others() -> None:
    clock, called = VirtualClock(), []
    victim = clock.call_at(20, lambda: called.append("victim"))

    def first() -> None:
        victim.cancel()
        clock.call_at(0, lambda: called.append(f"at once, at {clock.now()}"))
        own.cancel()  # it is being called: harmless

    own = clock.call_at(10, first)
    while clock.advance():
        pass
    assert called == ["at once, at 10"]
    assert len(clock) == 0


def test_a_wall_clock_calls_only_what_is_due() -> None:
    clock, called = WallClock(), []
    far = clock.call_at(clock.now() + 3600 * 10**9, lambda: called.append("far"))
    assert not clock.advance()
    clock.call_at(clock.now() - 5, lambda: called.append("due"))
    assert clock.advance()
    assert not clock.advance()
    assert called == ["due"]
    far.cancel()
    assert clock.next_at() is None
    assert clock.now() <= clock.now()
