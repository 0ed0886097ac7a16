"""Which event loop the drivers of an asyncio runtime live in, how to get there, and the alarm of real time in it.

It is the user's loop if the runtime is first needed inside one; otherwise the runtime makes its own, and turns it only
while a plain thread blocks. What is asked for before there is a loop is kept until there is one. A loop of the
runtime's own with no driver in it gives way to a user's: what was opened outside a loop can be used inside one.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from busdma.errors import WaitError
from busdma.runtime.clock import Clock

__tracebackhide__ = True  # it only passes on


class Home:
    """The loop of one runtime. `inhabited` says whether any driver lives there."""

    def __init__(self, clock: Clock, inhabited: Callable[[], bool]) -> None:
        self._alarm = Alarm(clock, self)
        self._inhabited = inhabited
        self._lock = threading.RLock()  # the collector may end an abandoned wait at any point
        self._loop: asyncio.AbstractEventLoop | None = None
        self._early: list[Callable[[], object]] = []
        self._own = False
        self._turning = 0  # threads that turn the loop
        self._over = False  # whoever of them is the last closes it
        self.enter()

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, chosen now if need be. WaitError inside another loop than that of the drivers."""
        running = running_loop()
        with self._lock:
            loop = self._loop
            if loop is not None and not loop.is_closed() and (running is None or running is loop):
                return loop
            if loop is not None and not loop.is_closed():
                if not self._own or loop.is_running() or self._inhabited():
                    raise WaitError("this runtime's drivers live in another event loop: use one runtime for each loop")
                loop.close()
            self._own = running is None
            loop = self._loop = asyncio.new_event_loop() if running is None else running
            early, self._early = self._early, []
        if self._own:
            weakref.finalize(self, loop.close)
        for fn in (self._alarm.set, *early):
            loop.call_soon_threadsafe(fn)
        return loop

    def enter(self) -> None:
        """Choose the loop that runs here, if one does."""
        if running_loop() is not None:
            self.loop()

    def is_own(self) -> bool:
        """Did the runtime make the loop? Then it turns and closes it."""
        self.loop()
        return self._own

    def retime(self) -> None:
        """The clock has a new timer. From any thread."""
        self.call(self._alarm.set)

    def call(self, fn: Callable[[], object]) -> None:
        """Call `fn` in the loop: at once if this is its thread, and else when it turns. From any thread."""
        running = running_loop()
        with self._lock:
            loop = self._loop
            if loop is None or loop.is_closed():
                self._early.append(fn)
                return
            if running is not loop:
                loop.call_soon_threadsafe(fn)
                return
        fn()

    def wait(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """On a plain thread: return when `coroutine` has ended in the loop. Turns the loop if it is the runtime's."""
        with self._lock:
            loop, own = self.loop(), self._own
            self._turning += own
        if own:
            try:
                loop.run_until_complete(coroutine)
            finally:
                with self._lock:
                    self._turning -= 1
                if self._over:
                    self.close()
        elif loop.is_running():
            asyncio.run_coroutine_threadsafe(coroutine, loop).result()
        else:
            coroutine.close()
            raise WaitError("the event loop of this runtime's drivers does not run: nothing could end the wait")

    def close(self) -> None:
        """Close the loop if it is the runtime's own: at once, or as soon as no other thread turns it any more."""
        with self._lock:
            loop = self._loop
            self._over = self._turning > 0
        if self._own and loop is not None and not loop.is_closed() and not self._over:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


class Alarm:
    """Calls the timers of a real clock, in the loop of `home`."""

    def __init__(self, clock: Clock, home: Home) -> None:
        self._clock = clock
        self._home = home
        self._handle: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """Ring for the timer that is now the next. In the loop."""
        if self._handle is not None:
            self._handle.cancel()
        due = None if self._clock.virtual else self._clock.next_at()
        delay = 0 if due is None else max(0, due - self._clock.now()) / 1e9
        self._handle = None if due is None else self._home.loop().call_later(delay, self._ring)

    def _ring(self) -> None:
        try:
            while self._clock.advance():
                pass
        finally:
            self.set()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs on this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
