"""Clocks: virtual and real time in integer nanoseconds, with timers.

The clock is not the carrier: every runtime can carry drivers in virtual time, and asyncio and threads also in real
time. Both clocks are one heap of timers ordered by (when, order of registration). They differ in what the time is:

- a `VirtualClock` starts at 0 and stands still until its carrier says `advance`, which jumps to the next timer;
- a `WallClock` reads ``time.monotonic_ns``, and `advance` only calls a timer that is due.

A clock belongs to one runtime, which alone may call `advance`.
"""

from __future__ import annotations

import heapq
import itertools
import operator
import threading
import time
from collections.abc import Callable
from typing import Protocol

from busdma.waiting import Timer

__tracebackhide__ = True  # it only passes on

_FEW = 16  # cancelled timers that may stay in the heap whatever its size


class Clock(Protocol):
    """What a runtime asks of its clock."""

    virtual: bool  #: True: time moves only by `advance`

    def now(self) -> int:
        """The time in ns."""

    def call_at(self, when: int, fn: Callable[[], object]) -> Timer:
        """Have `fn` called at `when`, or at the next opportunity if `when` has passed. From any thread."""

    def next_at(self) -> int | None:
        """When the next timer is due, in ns; None if there is none."""

    def advance(self) -> bool:
        """Call the next timer. False: there was none to call (a real clock: none that is due)."""


class _Entry:
    """One timer. Ordered as the heap wants it; `fn` is None once it was cancelled or called."""

    __slots__ = ("_heap", "fn", "order", "when")

    def __init__(self, heap: _TimerHeap, when: int, order: int, fn: Callable[[], object]) -> None:
        self._heap = heap
        self.when = when
        self.order = order
        self.fn: Callable[[], object] | None = fn

    def __lt__(self, other: _Entry) -> bool:
        return (self.when, self.order) < (other.when, other.order)

    def cancel(self) -> None:
        """Do not call. Harmless after the call."""
        self._heap.forget(self)


class _TimerHeap:
    """Timers in order. A cancelled one lets go of its function at once, and of its place before long."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the collector may cancel an abandoned wait's timer at any point
        self._entries: list[_Entry] = []
        self._order = itertools.count()
        self._cancelled = 0

    def __len__(self) -> int:
        """How many timers are still to be called."""
        return len(self._entries) - self._cancelled

    def call_at(self, when: int, fn: Callable[[], object]) -> Timer:
        """Have `fn` called at `when` (ns), or at the next opportunity if `when` has passed. From any thread."""
        entry = _Entry(self, max(operator.index(when), self.now()), next(self._order), fn)
        with self._lock:
            heapq.heappush(self._entries, entry)
        return entry

    def now(self) -> int:
        """The time in ns."""
        raise NotImplementedError("a clock says what the time is")

    def next_at(self) -> int | None:
        """When the next timer is due, in ns; None if there is none."""
        with self._lock:
            entry = self._first()
            return None if entry is None else entry.when

    def forget(self, entry: _Entry) -> None:
        """Cancel `entry`, once."""
        with self._lock:
            if entry.fn is None:
                return
            entry.fn = None
            self._cancelled += 1
            if self._cancelled > _FEW and self._cancelled * 2 > len(self._entries):
                self._entries = [kept for kept in self._entries if kept.fn is not None]
                heapq.heapify(self._entries)
                self._cancelled = 0

    def _first(self) -> _Entry | None:
        while self._entries and self._entries[0].fn is None:
            heapq.heappop(self._entries)
            self._cancelled -= 1
        return self._entries[0] if self._entries else None

    def _take(self) -> Callable[[], object] | None:
        """Remove the first entry and return its function."""
        entry = self._first()
        if entry is None:
            return None
        heapq.heappop(self._entries)
        fn, entry.fn = entry.fn, None
        return fn


class VirtualClock(_TimerHeap):
    """Virtual time: 0 at first, and still until it is advanced, then at once at the next timer.

    >>> clock = VirtualClock()
    >>> timer = clock.call_at(5_000_000, lambda: print("an interrupt at", clock.now()))
    >>> clock.now(), clock.advance(), clock.now()
    an interrupt at 5000000
    (0, True, 5000000)
    """

    virtual = True

    def __init__(self) -> None:
        super().__init__()
        self._now = 0

    def now(self) -> int:
        """The virtual time in ns."""
        return self._now

    def advance(self) -> bool:
        """Jump to the next timer and call it. False: there is none, and the time stays."""
        with self._lock:
            entry = self._first()
            if entry is not None:
                self._now = max(self._now, entry.when)
            fn = self._take()
        if fn is None:
            return False
        fn()
        return True


class WallClock(_TimerHeap):
    """Real time: ``time.monotonic_ns``."""

    virtual = False

    def now(self) -> int:
        """Nanoseconds since some fixed moment in the past."""
        return time.monotonic_ns()

    def advance(self) -> bool:
        """Call the next timer that is due. False: none is."""
        with self._lock:
            entry = self._first()
            fn = None if entry is None or entry.when > self.now() else self._take()
        if fn is None:
            return False
        fn()
        return True
