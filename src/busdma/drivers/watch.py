"""Deadlines of many commands, watched by one timer.

Commands come and go a thousand times while none is ever late. A timer each would be set and cancelled as often, which
costs more than all else that is done for a command. Here a timer is set only if a deadline comes before the one that is
watched; the rest is looked at when that one comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from busdma.waiting import Runtime, Timer

K = TypeVar("K")


class Watch(Generic[K]):
    """``late(key)`` is called at the deadline of each `key` that has not been ended by then. Any thread may call."""

    def __init__(self, runtime: Runtime, late: Callable[[K], object]) -> None:
        self._runtime, self._late = runtime, late
        self._deadlines: dict[K, int] = {}
        self._timer: Timer | None = None
        self._at = 0  # when the timer is due
        self._lock = threading.Lock()

    def begin(self, key: K, deadline: int) -> None:
        """Watch `key` until `deadline`, in ns of the runtime's clock."""
        with self._lock:
            self._deadlines[key] = deadline
            if self._timer is None or deadline < self._at:
                self._set(deadline)

    def end(self, key: K) -> None:
        """Watch it no more."""
        self._deadlines.pop(key, None)

    def clear(self) -> None:
        """Watch none."""
        with self._lock:
            self._deadlines.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _set(self, deadline: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = deadline
        self._timer = self._runtime.call_at(deadline, self._look)

    def _look(self) -> None:
        with self._lock:
            now = self._runtime.now()
            watched = self._deadlines.copy()  # in one step: `end` takes no lock
            late = [key for key, deadline in watched.items() if deadline <= now]
            for key in late:
                self._deadlines.pop(key, None)
            self._timer = None
            left = [deadline for deadline in watched.values() if deadline > now]
            if left:
                self._set(min(left))
        for key in late:
            self._late(key)
