"""The one-shot Waiter, and the protocol of who carries drivers.

Everything in busdma that waits, waits for a `Waiter`: whichever of wake, expire and cancel comes first decides, once,
under the waiter's own lock. Whoever granted something learns from ``wake`` whether the grant was taken; if it was not,
the grant is still the granter's. No engine in this package ever blocks: it hands out a Waiter, and a `Runtime`
parks a coroutine or blocks a thread on it.

Source: Thorpe, tech-kern 12 June 1998 (the driver's context may always block); Hannum, port-sparc 6 June 1995.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeVar

from busdma.errors import DeadlineExpired, WaitCancelled
from busdma.tracebacks import hidden

__tracebackhide__ = hidden

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PENDING: Final = "pending"
WOKEN: Final = "woken"
EXPIRED: Final = "expired"
CANCELLED: Final = "cancelled"


class Waiter:
    """A wait that ends exactly once: woken with a value, expired, or cancelled. Any thread may end it."""

    __slots__ = ("_lock", "_notify", "purpose", "state", "value")

    def __init__(self, purpose: str = "") -> None:
        self._lock = threading.Lock()
        self._notify: Callable[[], object] | None = None
        self.purpose = purpose  #: for messages: what is waited for
        self.state = PENDING
        self.value: Any = None

    def wake(self, value: Any = None) -> bool:
        """End the wait with `value`. False: it had already ended, and what was granted stays with the caller."""
        return self._settle(WOKEN, value)

    def expire(self) -> bool:
        """End the wait because its deadline passed. False: it had already ended."""
        return self._settle(EXPIRED, None)

    def cancel(self) -> bool:
        """End the wait because nobody wants it any more. False: it had already ended."""
        return self._settle(CANCELLED, None)

    def arm(self, notify: Callable[[], object]) -> bool:
        """Have `notify` called, once, by whoever ends the wait. False: it has ended and `notify` will not be called."""
        with self._lock:
            if self.state != PENDING:
                return False
            self._notify = notify
            return True

    def result(self) -> Any:
        """The value; or DeadlineExpired, or WaitCancelled."""
        if self.state == WOKEN:
            return self.value
        what = self.purpose or "this wait"
        if self.state == EXPIRED:
            raise DeadlineExpired(f"the deadline passed while waiting for {what}")
        if self.state == CANCELLED:
            raise WaitCancelled(f"cancelled while waiting for {what}")
        raise RuntimeError(f"{what} has not ended yet")

    def _settle(self, state: str, value: Any) -> bool:
        with self._lock:
            if self.state != PENDING:
                return False
            self.state, self.value = state, value
            notify, self._notify = self._notify, None
        if notify is not None:
            notify()
        return True


class Timer(Protocol):
    """What ``call_at`` returns."""

    def cancel(self) -> None:
        """Do not call. Harmless after the call."""


class Task(Protocol[T_co]):
    """A started driver context."""

    name: str
    done: Waiter  #: woken when the coroutine has ended, however it ended

    def result(self) -> T_co:
        """What the coroutine returned; raises what it raised. RuntimeError before it has ended."""

    def cancel(self) -> None:
        """Raise WaitCancelled from the wait the driver is in, or from its next one."""


class Runtime(Protocol):
    """Who carries drivers. Times are integer nanoseconds of the machine's clock, virtual or real.

    Deadlines are arguments of waits (absolute times), never task cancellation.
    """

    name: str

    def now(self) -> int:
        """The clock, in ns."""

    def call_at(self, when: int, fn: Callable[[], object]) -> Timer:
        """Call `fn` when the clock reads `when`, or as soon as possible if that has passed. `fn` must not wait."""

    async def park(self, waiter: Waiter, deadline: int | None = None) -> Any:
        """Suspend the running driver until `waiter` ends; returns ``waiter.result()``, or raises DeadlineExpired."""

    def block(self, waiter: Waiter, deadline: int | None = None) -> Any:
        """Block the calling plain thread until `waiter` ends; returns ``waiter.result()``.

        BlockingInsideLoop on a thread that must run the drivers; Deadlock where nothing left to run can end it.
        """

    def start(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, name: str = "") -> Task[T]:
        """Start a driver context with its own contextvars."""

    def run(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, name: str = "main") -> T:
        """Start `fn`, block until it has ended, return its result or raise its error. For plain, synchronous code."""

    def post(self, fn: Callable[[], object]) -> None:
        """From any thread: have `fn` called where drivers run."""

    async def give_way(self) -> None:
        """Let the others who can run do so first, once; the running driver goes on behind them. No time passes."""

    def hold(self) -> AbstractContextManager[None]:
        """Inside, this plain thread counts as one that can run: virtual time waits for it, and so does any verdict.

        For a thread besides the opener: from before somebody waits for it until it has woken or posted what it has to.
        """
