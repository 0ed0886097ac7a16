"""What every runtime does the same way: the wait itself, and the loop that runs whatever can run.

A runtime counts who can run. Virtual time moves only while somebody outside (a plain thread in ``block`` or ``run``,
or a coroutine that nobody started here, in ``park``) waits, and nobody can run. When there is then no timer either,
the wait from outside raises Deadlock; the drivers stay parked. What a foreign thread is about to post cannot be known:
it says so with ``hold``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from busdma.errors import BlockingInsideLoop, Deadlock, ForeignAwait
from busdma.runtime._task import Done, DriverTask, current_task
from busdma.runtime.clock import Clock
from busdma.waiting import PENDING, WOKEN, Timer, Waiter

__tracebackhide__ = True  # it only passes on

T = TypeVar("T")


class Carrier:
    """The common part of the three runtimes. ``busdma.waiting.Runtime`` says what each public method means."""

    name = ""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._turn = threading.Condition()  # guards the counts below; notified when any of them changes
        self._tasks: dict[DriverTask[Any], None] = {}  # started and not ended, in order
        self._failed: deque[str] = deque(maxlen=8)  # the last drivers that ended with an error, for messages
        self._posted: deque[Callable[[], object]] = deque()
        self._running = 0  # who can run, and stops the clock
        self._pumping = False  # a thread is in _pump
        self._here = threading.local()  # .inside: this thread carries drivers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def current(self) -> str:
        """The name of the driver that is running here, or an empty string."""
        task = current_task.get()
        return "" if task is None or task not in self._tasks else task.name

    def now(self) -> int:
        """The clock, in ns."""
        return self.clock.now()

    def call_at(self, when: int, fn: Callable[[], object]) -> Timer:
        """Call `fn` when the clock reads `when`, or as soon as possible if that has passed. `fn` must not wait."""
        timer = self.clock.call_at(when, fn)
        if not self.clock.virtual:
            self._retime()
        return timer

    def start(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, name: str = "") -> DriverTask[T]:
        """Start a driver context with its own contextvars. On threads it may run at once. TypeError: not async."""
        self._enter()
        task = DriverTask(fn, args, name, self._ended)
        with self._turn:
            self._tasks[task] = None
        try:
            self._launch(task)
        except BaseException as error:  # the system has no thread left
            task.finish(None, error)
            raise
        return task

    def run(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, name: str = "main") -> T:
        """Start `fn`, block until it has ended, and return its result or raise its error."""
        self._refuse_inside("run()")
        task = self.start(fn, *args, name=name)
        self.block(task.done)
        return task.result()

    def post(self, fn: Callable[[], object]) -> None:
        """From any thread: have `fn` called where drivers run. In virtual time: while somebody outside waits."""
        self._posted.append(fn)
        self._retime()

    async def give_way(self) -> None:
        """Let the others who can run do so first, once; the running driver goes on behind them. No time passes."""
        raise NotImplementedError("a runtime says how a driver gives way")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Count this plain thread as one that can run, but while it blocks: the clock waits for it, as for a driver.

        Needed where a thread besides the opener works for a machine in virtual time: it holds from before the opener
        blocks until it has woken or posted what it has to. A coroutine must leave it before it waits.
        """
        holds: int = getattr(self._here, "holds", 0)
        self._here.holds = holds + 1
        with self._turn:
            self._running += 1
        try:
            yield
        finally:
            self._here.holds = holds
            self._rest()

    def close(self) -> None:
        """Cancel every driver and wait for their ends. A driver that waits on regardless is a Deadlock."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            self.block(task.done)

    async def park(self, waiter: Waiter, deadline: int | None = None) -> Any:
        """Suspend the running driver until `waiter` ends or the clock reads `deadline`; its result.

        Whatever else ends the wait (``asyncio.CancelledError``, Deadlock) is raised as it is, and `waiter` is
        cancelled, unless it was woken before: then its state is WOKEN and the granter must take its grant back.
        """
        task = self._carried()
        own = waiter.watch() if isinstance(waiter, Done) else waiter
        if task is not None:
            task.enter(own)
        timer = None
        try:
            timer = self._expiry(own, deadline)
            if own.state == PENDING:
                await self._suspend(own, task)
        except BaseException as error:
            own.cancel()
            if not (isinstance(error, Deadlock) and own.state == WOKEN):  # somebody came just in time
                raise
        finally:
            if timer is not None:
                timer.cancel()
            if task is not None:
                task.leave()
        return own.result()

    def block(self, waiter: Waiter, deadline: int | None = None) -> Any:
        """Block this plain thread until `waiter` ends or the clock reads `deadline`; its result. Errors as `park`."""
        self._refuse_inside("block()")
        own = waiter.watch() if isinstance(waiter, Done) else waiter
        over = Waiter(own.purpose)
        holds: int = getattr(self._here, "holds", 0)

        def ended() -> None:
            with self._turn:
                self._running += holds
            over.wake()

        timer = None
        try:
            timer = self._expiry(own, deadline)
            if own.arm(ended):
                if holds:
                    self._rest(holds)
                self._wait_outside(over)
        except BaseException as error:
            own.cancel()
            if not (isinstance(error, Deadlock) and own.state == WOKEN):
                raise
        finally:
            if timer is not None:
                timer.cancel()
        return own.result()

    # What the three fill in.

    def _enter(self) -> None:
        """A driver is about to be started. The place to refuse it."""

    def _launch(self, task: DriverTask[Any]) -> None:
        raise NotImplementedError("a runtime says how it carries a driver")

    async def _suspend(self, own: Waiter, task: DriverTask[Any] | None) -> None:
        """Return when `own` has ended."""
        raise NotImplementedError("a runtime says how a driver is suspended")

    def _wait_outside(self, own: Waiter) -> None:
        """Return when `own` has ended, having run whatever this thread must run for that; or raise Deadlock."""
        with self._my_turn(own) as mine:
            if mine:
                self._pump(own)

    def _ready(self) -> bool:
        """Has _step something to do?"""
        return False

    def _step(self) -> None:
        """Run one driver to its next wait."""

    def _advance(self) -> bool:
        return self.clock.advance()

    def _retime(self) -> None:
        """There is a new timer of real time, or a post: see to it that somebody calls it."""
        self._kick()

    # What they use.

    def _carried(self) -> DriverTask[Any] | None:
        """The driver that is running here."""
        task = current_task.get()
        if task is None or task not in self._tasks or not self._inside():
            raise ForeignAwait(f"park() outside a driver of this {self.name} runtime: use start() and block()")
        return task

    def _inside(self) -> bool:
        """Is this a thread that carries drivers?"""
        return getattr(self._here, "inside", False)

    def _refuse_inside(self, what: str) -> None:
        if self._inside():
            where = f" in the driver {self.current}" if self.current else ""
            raise BlockingInsideLoop(
                f"{what}{where}, on a thread that must run the drivers; await park() instead of block(), load() "
                "instead of load_blocking(), and for run() the coroutine itself"
            )

    def _expiry(self, own: Waiter, deadline: int | None) -> Timer | None:
        return None if deadline is None or own.state != PENDING else self.call_at(deadline, own.expire)

    def _ended(self, task: DriverTask[Any], error: BaseException | None) -> None:
        self._tasks.pop(task, None)
        if isinstance(error, Exception):
            self._failed.append(f"{task.name}: {error!r}")

    def _rest(self, count: int = 1) -> None:
        """So many of those who could run cannot any more."""
        with self._turn:
            self._running -= count
            self._turn.notify_all()

    def _kick(self) -> None:
        with self._turn:
            self._turn.notify_all()

    @contextmanager
    def _my_turn(self, own: Waiter) -> Iterator[bool]:
        """One plain thread at a time runs the drivers; the others wait for their end of wait, or for their turn."""
        if own.arm(self._kick):
            with self._turn:
                self._turn.wait_for(lambda: own.state != PENDING or not self._pumping)
                mine = own.state == PENDING
                self._pumping = self._pumping or mine
        else:
            mine = False
        try:
            yield mine
        finally:
            if mine:
                with self._turn:
                    self._pumping = False
                    self._turn.notify_all()

    def _pump(self, own: Waiter) -> None:
        """Run posts, drivers and timers, in this order, until `own` has ended."""
        virtual = self.clock.virtual
        self._here.inside = True
        try:
            while own.state == PENDING:
                if self._posted:
                    self._posted.popleft()()
                elif self._ready():
                    self._step()
                elif virtual and self._running:
                    self._sleep(own, None)
                elif self._advance():
                    continue
                elif not virtual:
                    self._sleep(own, self.clock.next_at())
                elif self._stuck(own):
                    raise self._deadlock(own)
        finally:
            self._here.inside = False

    def _sleep(self, own: Waiter, until: int | None) -> None:
        """Wait for a kick; no longer than `until`, a time of a real clock."""
        with self._turn:
            if own.state != PENDING or self._posted or self._ready() or (self.clock.virtual and not self._running):
                return
            if not self.clock.virtual and self.clock.next_at() != until:
                return
            self._turn.wait(None if until is None else max(0, until - self.now()) / 1e9)

    def _stuck(self, own: Waiter) -> bool:
        with self._turn:
            return own.state == PENDING and not self._posted and not self._ready() and not self._running

    def _deadlock(self, own: Waiter) -> Deadlock:
        parked = [f"{task.name} {task.describe()}" for task in list(self._tasks)]
        return Deadlock(
            f"nothing that is left to run can end the wait for {own.purpose or 'something unnamed'}, at {self.now()} ns"
            + ("; drivers: " + ", ".join(parked) if parked else "; no driver is left")
            + ("; ended with an error: " + ", ".join(self._failed) if self._failed else "")
            + " (whoever will end it must be a driver, started with start(), or a thread that says so with hold())"
        )
