"""The runtime as one driver sees it: should a context of the driver die, what the driver had loaded is abandoned.

Abandoned maps go into quarantine as far as the device may still own their bytes; see `busdma.tag.Tag.abandon`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from busdma.errors import WaitCancelled
from busdma.tag import Tag
from busdma.waiting import Runtime, Task, Timer, Waiter

T = TypeVar("T")


class OwnedRuntime:
    """`runtime` for the owner of `tag`. A context that is cancelled ends; one that fails takes its maps with it."""

    def __init__(self, runtime: Runtime, tag: Tag) -> None:
        self.name = runtime.name
        self._runtime = runtime
        self._tag = tag

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

        return self._runtime.start(owned, name=name or getattr(fn, "__name__", ""))

    def now(self) -> int:
        """As `Runtime.now`."""
        return self._runtime.now()

    def call_at(self, when: int, fn: Callable[[], object]) -> Timer:
        """As `Runtime.call_at`."""
        return self._runtime.call_at(when, fn)

    async def park(self, waiter: Waiter, deadline: int | None = None) -> Any:
        """As `Runtime.park`."""
        return await self._runtime.park(waiter, deadline)

    def block(self, waiter: Waiter, deadline: int | None = None) -> Any:
        """As `Runtime.block`."""
        return self._runtime.block(waiter, deadline)

    def run(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, name: str = "main") -> T:
        """As `Runtime.run`."""
        return self._runtime.run(fn, *args, name=name)

    def post(self, fn: Callable[[], object]) -> None:
        """As `Runtime.post`."""
        self._runtime.post(fn)
