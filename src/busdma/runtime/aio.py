"""The asyncio runtime: drivers are tasks of the user's event loop, or of one of its own, in virtual or in real time.

Virtual time moves when no driver can run, somebody outside waits, and the loop has had a turn. A driver that awaits
what is asyncio's own counts as running meanwhile. So to wait for two things, ``start`` a driver for each and park on
both ``done``: ``asyncio.gather`` would stop the clock it waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from functools import partial
from typing import Any

from busdma.runtime._loop import Home, running_loop
from busdma.runtime._task import DriverTask, current_task
from busdma.runtime.carrier import Carrier
from busdma.runtime.clock import Clock, VirtualClock
from busdma.waiting import PENDING, Waiter

__tracebackhide__ = True  # it only passes on


class AsyncioRuntime(Carrier):
    """Drivers as tasks of one event loop. `clock` None: a new VirtualClock."""

    name = "asyncio"

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(VirtualClock() if clock is None else clock)
        self._outside: dict[Waiter, Callable[[BaseException], object]] = {}  # waits from outside: how to fail each
        self._checking: asyncio.AbstractEventLoop | None = None  # where _check is about to be called
        self._home = Home(self.clock, lambda: bool(self._tasks))

    def post(self, fn: Callable[[], object]) -> None:
        """From any thread: have `fn` called in the loop."""

        def call() -> None:
            self._rest()  # the check that this asks for comes after `fn`
            self._guarded(fn)

        with self._turn:
            self._running += 1
        # Never at once: who posts may hold a lock, or be in the middle of something.
        self._home.call(lambda: self._home.loop().call_soon(call))

    def close(self) -> None:
        """Cancel every driver, natively if it awaits what is asyncio's. Outside the loop, also wait for their ends."""
        for task in list(self._tasks):
            if task.waiter is None and isinstance(task.carrier, asyncio.Task):
                self._home.call(task.carrier.cancel)
            task.cancel()
        if running_loop() is None:
            super().close()
            self._home.close()

    def _retime(self) -> None:
        self._home.retime()

    def _enter(self) -> None:
        self._home.enter()

    def _launch(self, task: DriverTask[Any]) -> None:
        with self._turn:
            self._running += 1
        self._home.call(partial(self._create, task))

    def _create(self, task: DriverTask[Any]) -> None:
        task.carrier = made = asyncio.Task(task.coroutine, loop=self._home.loop(), name=task.name, context=task.context)
        made.add_done_callback(partial(self._finished, task))

    def _finished(self, task: DriverTask[Any], carrier: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if carrier.cancelled() else carrier.exception()
        task.finish(None if error is not None else carrier.result(), error)
        self._rest()

    def _carried(self) -> DriverTask[Any] | None:
        task = current_task.get()
        mine = task is not None and task in self._tasks and task.carrier is asyncio.current_task()
        return task if mine else None

    def _inside(self) -> bool:
        return running_loop() is not None

    async def give_way(self) -> None:
        """See `busdma.waiting.Runtime.give_way`. It counts as running meanwhile."""
        await asyncio.sleep(0)

    def _suspend(self, own: Waiter, task: DriverTask[Any] | None) -> Coroutine[Any, Any, None]:
        if task is not None and not self.clock.virtual:
            return self._suspend_in_real_time(own)
        return self._suspend_counted(own, task)

    async def _suspend_counted(self, own: Waiter, task: DriverTask[Any] | None) -> None:
        loop = self._home.loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None = None) -> None:
            if not future.done() and not loop.is_closed():
                future.set_result(None) if error is None else future.set_exception(error)

        def ended() -> None:
            with self._turn:
                self._running += 1  # until the coroutine has gone on
                self._outside.pop(own, None)
            self._home.call(settle)

        if not own.arm(ended):
            return
        with self._turn:
            if task is not None:
                self._running -= 1
            elif own.state == PENDING:
                self._outside[own] = settle
        self._check_soon()
        try:
            await future
        except BaseException:
            own.cancel()
            raise
        finally:
            if task is None:
                self._rest()

    async def _suspend_in_real_time(self, own: Waiter) -> None:
        """A driver's, where nobody counts who can run."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not future.done() and not loop.is_closed():
                future.set_result(None)

        if not own.arm(lambda: settle() if running_loop() is loop else self._home.call(settle)):
            return
        try:
            await future
        except BaseException:
            own.cancel()
            raise

    def _wait_outside(self, own: Waiter) -> None:
        with self._my_turn(own) if self._home.is_own() else nullcontext(True) as mine:
            if mine:
                self._home.wait(self._suspend(own, None))

    def _rest(self, count: int = 1) -> None:
        super()._rest(count)
        self._home.call(self._check_soon)

    def _guarded(self, fn: Callable[[], object]) -> object:
        """Call a timer or a post. Its error goes to whoever waits outside, or else to the loop."""
        try:
            return fn()
        except Exception as error:
            if not (self.clock.virtual and self._outside):
                raise
            for fail in list(self._outside.values()):
                fail(error)
            return True

    def _check_soon(self) -> None:
        if self.clock.virtual and self._checking is not (loop := self._home.loop()):
            self._checking = loop
            loop.call_soon(self._check)

    def _check(self) -> None:
        """Nobody can run and somebody waits outside? Then the next timer; and if there is none, a deadlock."""
        self._checking = None
        if self._running or not self._outside:
            return
        if self._guarded(self.clock.advance):
            self._check_soon()
        else:
            for own, fail in list(self._outside.items()):
                fail(self._deadlock(own))
