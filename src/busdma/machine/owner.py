"""The runtime as one driver sees it: should a context of the driver die, what the driver had loaded is abandoned.

Abandoned maps go into quarantine as far as the device may still own their bytes; see `busdma.tag.Tag.abandon`. And it
knows whether the driver runs: a driver has contexts from its start to its stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from busdma.errors import WaitCancelled
from busdma.tag import Tag
from busdma.waiting import PENDING, Runtime, Task, Timer, Waiter

__tracebackhide__ = True  # it only passes on

T = TypeVar("T")


class OwnedRuntime:
    """`runtime` for the owner of `tag`. A context that is cancelled ends; one that fails takes its maps with it."""

    def __init__(self, runtime: Runtime, tag: Tag) -> None:
        self.name = runtime.name
        self._runtime = runtime
        self._tag = tag
        self._lock = threading.Lock()
        # These are the runtime's own, for every request needs them.
        self.now: Callable[[], int] = runtime.now  #: as `Runtime.now`
        self.park = runtime.park  #: as `Runtime.park`
        self._contexts: list[Task[Any]] = []  # that were started and, when one was last started, had not ended

    @property
    def tag(self) -> Tag:
        """Whose runtime it is."""
        return self._tag

    @property
    def running(self) -> bool:
        """Has a context that was started here not ended?"""
        with self._lock:
            return any(task.done.state == PENDING for task in self._contexts)

    def start(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, name: str = "") -> Task[T]:
        """As `Runtime.start`; an exception that ends the context abandons the tag."""

        async def owned() -> T:
            try:
                return await fn(*args)
            except WaitCancelled:
                raise
            except BaseException:
                self._tag.abandon()
                raise

        task = self._runtime.start(owned, name=name or getattr(fn, "__name__", ""))
        with self._lock:
            self._contexts = [other for other in self._contexts if other.done.state == PENDING]
            self._contexts.append(task)
        return task

    def call_at(self, when: int, fn: Callable[[], object]) -> Timer:
        """As `Runtime.call_at`."""
        return self._runtime.call_at(when, fn)

    def block(self, waiter: Waiter, deadline: int | None = None) -> Any:
        """As `Runtime.block`."""
        return self._runtime.block(waiter, deadline)

    def run(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, name: str = "main") -> T:
        """As `Runtime.run`."""
        return self._runtime.run(fn, *args, name=name)

    def post(self, fn: Callable[[], object]) -> None:
        """As `Runtime.post`."""
        self._runtime.post(fn)

    async def give_way(self) -> None:
        """As `Runtime.give_way`."""
        await self._runtime.give_way()

    def hold(self) -> AbstractContextManager[None]:
        """As `Runtime.hold`."""
        return self._runtime.hold()
