"""The interrupt lines that QEMU reports: who is told, in order, and without a lock being held."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

Handler = Callable[[bool], object]

_log = logging.getLogger(__name__)


class InterruptLines:
    """Levels of the lines by number, and a handler for each. Any thread may call.

    What happened is put down with `changed` by whoever reads the socket, and told by `deliver`, later, by anyone: one
    thread at a time, so that a handler sees its line rise and fall as it did.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[int, bool | None]] = deque()  # None: as high as it is by then
        self._handlers: dict[int, Handler] = {}
        self._levels: dict[int, bool] = {}
        self._state = threading.Lock()  # handlers and levels
        self._delivering = threading.Lock()
        self._all_high = False

    def changed(self, line: int, level: bool) -> None:
        """`line` has risen or fallen."""
        self._events.append((line, level))

    def raise_all(self) -> None:
        """Every line rises for good, those included whose handlers are still to come."""
        with self._state:
            self._all_high = True
            self._events.extend((line, True) for line in self._handlers)

    def on(self, line: int, handler: Handler) -> None:
        """Have ``handler(level)`` called when `line` changes; and soon, if it is high. It is the line's only one."""
        with self._state:
            self._handlers[line] = handler
            self._events.append((line, None))  # behind what has happened and is not yet told
        self.deliver()

    def deliver(self) -> None:
        """Tell the handlers what has happened. A handler's error is logged, for nobody here could do anything."""
        while self._events and self._delivering.acquire(blocking=False):  # otherwise, who delivers goes on to ours
            try:
                while self._events:
                    self._tell(*self._events.popleft())
            finally:
                self._delivering.release()

    def _tell(self, line: int, event: bool | None) -> None:
        with self._state:
            level = self._all_high or (self._levels.get(line, False) if event is None else event)
            self._levels[line] = level
            handler = self._handlers.get(line)
        if handler is None or (event is None and not level):
            return
        try:
            handler(level)
        except Exception:
            _log.exception("the handler of interrupt line %d failed", line)
