"""A started driver: its coroutine, its context, the wait it is in, and its end.

Cancelling, decided once and for every runtime: ``cancel`` ends the wait the driver is in, or else its next one, with
WaitCancelled. A wait that had already ended keeps its outcome: what was granted is returned as usual, and the
cancellation is raised from the wait after it. So a cancel after the grant loses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, Generic, TypeVar, cast

from busdma.errors import ForeignAwait
from busdma.waiting import CANCELLED, PENDING, WOKEN, Waiter

__tracebackhide__ = True  # it only passes on

T = TypeVar("T")

PARKED: Final = object()  #: what a driver yields when it is suspended in a wait of ours

current_task: ContextVar[DriverTask[Any] | None] = ContextVar("busdma_current_task", default=None)


class Done(Waiter):
    """The end of a driver. Many may wait for it, each with his own deadline; only the driver can end it."""

    __slots__ = ("_watchers",)

    def __init__(self, purpose: str) -> None:
        super().__init__(purpose)
        self._watchers: list[Waiter] = []

    def watch(self) -> Waiter:
        """A waiter of the caller's own that the end wakes; to expire or cancel it disturbs nobody else."""
        mine = Waiter(self.purpose)
        with self._lock:
            if self.state == PENDING:
                self._watchers = [watcher for watcher in self._watchers if watcher.state == PENDING]
                self._watchers.append(mine)
                return mine
        mine.wake(self.value)
        return mine

    def _settle(self, state: str, value: Any) -> bool:
        settled = state == WOKEN and super()._settle(state, value)
        if settled:
            for watcher in self._watchers:
                watcher.wake(value)
        return settled


class DriverTask(Generic[T]):
    """A started driver context, as ``start`` returns it. `ended` is called once, before `done` is woken."""

    __slots__ = (
        "__weakref__",
        "_asked",
        "_ended",
        "_error",
        "_lock",
        "_value",
        "carrier",
        "context",
        "coroutine",
        "done",
        "name",
        "waiter",
    )

    def __init__(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        args: tuple[Any, ...],
        name: str,
        ended: Callable[[DriverTask[Any], BaseException | None], object],
    ) -> None:
        if isinstance(fn, Coroutine):
            fn.close()
            raise TypeError(
                "start() and run() take an `async def` function and its arguments, not what calling it returns: "
                "run(disk.write, 0, data), not run(disk.write(0, data))"
            )
        self.name = name or getattr(fn, "__name__", "driver")
        self.done: Waiter = Done(self.name)
        self.waiter: Waiter | None = None  #: the wait the driver is in
        self.carrier: object = None  #: whatever the runtime hangs on it
        self.context: Context = copy_context()
        self.context.run(current_task.set, self)
        self.coroutine: Coroutine[Any, Any, T] = self.context.run(fn, *args)
        if not isinstance(self.coroutine, Coroutine):
            raise TypeError(f"start() takes an `async def` function; {self.name} returned {self.coroutine!r}")
        self._ended = ended
        self._lock = threading.Lock()
        self._asked = False  # a cancellation that no wait has taken yet
        self._error: BaseException | None = None
        self._value: T | None = None

    def __repr__(self) -> str:
        return f"<driver {self.name}: {self.describe()}>"

    def describe(self) -> str:
        """What it is doing, for messages."""
        if self.done.state != PENDING:
            return "has ended"
        waiter = self.waiter
        return "can run" if waiter is None else f"waits for {waiter.purpose or 'something unnamed'}"

    def result(self) -> T:
        """What the coroutine returned; raises what it raised. RuntimeError before it has ended."""
        if self.done.state == PENDING:
            raise RuntimeError(f"{self.name} has not ended yet; wait for its `done`")
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    def cancel(self) -> None:
        """Raise WaitCancelled from the wait the driver is in, or from its next one. Harmless after its end."""
        with self._lock:
            if self.waiter is None or not (self.waiter.cancel() or self.waiter.state == CANCELLED):
                self._asked = True

    def enter(self, waiter: Waiter) -> None:
        """The driver is about to wait. A cancellation that was asked for earlier ends the wait here."""
        with self._lock:
            self.waiter = waiter
            if self._asked and waiter.cancel():
                self._asked = False

    def leave(self) -> None:
        """The driver has left its wait."""
        with self._lock:
            self.waiter = None

    def finish(self, value: T | None, error: BaseException | None) -> None:
        """The coroutine has ended."""
        self._value, self._error = value, error
        self.coroutine.close()  # only one that never ran is still open
        self.context.run(current_task.set, None)  # or the two would keep each other alive
        self._ended(self, error)
        self.done.wake()

    def step(self) -> bool:
        """Run the driver until it parks (True) or ends (False). A foreign await is raised where it stands."""
        send: Callable[[Any], object] = self.coroutine.send
        argument: object = None
        while True:
            try:
                yielded = self.context.run(send, argument)
            except StopIteration as end:
                self.finish(end.value, None)
                return False
            except BaseException as error:
                self.finish(None, _named(error, self.name))
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise  # these belong to the program, not to the driver that they happened to meet
                return False
            if yielded is PARKED:
                return True
            send = self.coroutine.throw
            argument = ForeignAwait(f"{self.name} awaited {yielded!r}, which is not a wait of busdma; {_ADVICE}")


_ADVICE = "await runtime.park(waiter), or use the asyncio runtime"


def _named(error: BaseException, name: str) -> BaseException:
    """`error`; but what asyncio says when it is awaited without its loop, under its right name."""
    if isinstance(error, RuntimeError) and "no running event loop" in str(error):
        foreign = ForeignAwait(f"{name} awaited something of asyncio, which does not run here; {_ADVICE}")
        foreign.__cause__ = error
        return foreign
    return error
