"""The threads runtime: one OS thread for each driver, in virtual or in real time.

A driver's coroutine never suspends here: its ``park`` blocks its thread. In virtual time the thread that is in
``block`` calls timers and posts: posts at any time, timers while no driver runs, and a driver that a timer wakes runs
only when the timer has returned. In real time one daemon thread calls both. Which of two woken drivers runs first is
up to the system: what depends on it is a race, and this runtime is where it shows.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any

from busdma.runtime._task import DriverTask
from busdma.runtime.carrier import Carrier
from busdma.runtime.clock import Clock, VirtualClock
from busdma.waiting import PENDING, Waiter

__tracebackhide__ = True  # it only passes on

_log = logging.getLogger(__name__)


class ThreadsRuntime(Carrier):
    """Drivers on threads of their own. `clock` None: a new VirtualClock."""

    name = "threads"

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(VirtualClock() if clock is None else clock)
        self._in_timer = False
        self._gates: list[threading.Lock] = []  # of drivers that start when the timer has returned
        self._ticker: threading.Thread | None = None  # calls timers and posts in real time
        self._stop = Waiter("close()")

    def close(self) -> None:
        """Cancel every driver and wait for their ends; in real time, end the thread of the timers too."""
        super().close()
        with self._turn:
            self._stop.wake()
            ticker, self._ticker, self._stop = self._ticker, None, Waiter("close()")
            self._turn.notify_all()
        if ticker is not None:
            ticker.join()

    def _launch(self, task: DriverTask[Any]) -> None:
        gate = _closed_gate()
        thread = threading.Thread(target=self._carry, args=(task, gate), name=f"busdma {task.name}", daemon=True)
        task.carrier = thread
        thread.start()
        self._open(gate)

    def _carry(self, task: DriverTask[Any], gate: threading.Lock) -> None:
        gate.acquire()
        self._here.inside = True
        try:
            with suppress(KeyboardInterrupt, SystemExit):  # run() raises them from the result
                task.step()
        finally:
            self._rest()

    @property
    def busy(self) -> bool:
        """Some driver can run, though the system may not have let it yet: not all of them wait."""
        with self._turn:
            return self._running > 0

    async def give_way(self) -> None:
        """See `busdma.waiting.Runtime.give_way`: whom the system lets run is up to it."""
        time.sleep(0)

    async def _suspend(self, own: Waiter, task: DriverTask[Any] | None) -> None:
        gate = _closed_gate()
        if own.arm(partial(self._open, gate)):
            self._rest()
            gate.acquire()

    def _open(self, gate: threading.Lock) -> None:
        """Let the driver behind `gate` run: now, or when the timer that is being called has returned."""
        with self._turn:
            self._running += 1
            if self._in_timer:
                self._gates.append(gate)
            else:
                gate.release()

    def _advance(self) -> bool:
        if not self.clock.virtual:
            return self.clock.advance()
        with self._turn:
            if self._running:
                return True  # a foreign thread woke a driver just now
            self._in_timer = True
        try:
            return self.clock.advance()
        finally:
            with self._turn:
                self._in_timer = False
                gates, self._gates = self._gates, []
            for gate in gates:
                gate.release()

    def _wait_outside(self, own: Waiter) -> None:
        if self.clock.virtual:
            super()._wait_outside(own)
        elif own.arm(self._kick):
            with self._turn:
                self._turn.wait_for(lambda: own.state != PENDING)

    def _retime(self) -> None:
        with self._turn:
            if self._ticker is None and not self.clock.virtual:
                self._ticker = threading.Thread(target=self._serve, args=(self._stop,), name="busdma", daemon=True)
                self._ticker.start()
            self._turn.notify_all()

    def _serve(self, stop: Waiter) -> None:
        while stop.state == PENDING:
            try:
                self._pump(stop)
            except Exception:
                _log.exception("a timer or a posted function failed")


def _closed_gate() -> threading.Lock:
    gate = threading.Lock()
    gate.acquire()
    return gate
