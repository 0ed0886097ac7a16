"""The virtual runtime: drivers take turns on one thread, in virtual time, the same way at every run.

It needs no event loop and no threads: a plain thread in ``block`` or ``run`` runs the drivers until its own wait has
ended. Seed 0 keeps strict order: who was woken first runs first. Any other seed chooses among the drivers that can run,
reproducibly: a cheap way to look for orders in which a driver breaks.
"""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Generator
from functools import partial
from typing import Any

from busdma.runtime._task import PARKED, DriverTask
from busdma.runtime.carrier import Carrier
from busdma.runtime.clock import VirtualClock
from busdma.waiting import Waiter

__tracebackhide__ = True  # it only passes on


@types.coroutine
def _suspended() -> Generator[object, None, None]:
    yield PARKED


class VirtualRuntime(Carrier):
    """Drivers one at a time, in an order that `seed` decides. ``record=True`` keeps every step in `trace`."""

    name = "virtual"

    def __init__(self, seed: int | None = 0, *, record: bool = False) -> None:
        super().__init__(VirtualClock())
        self._random = random.Random(seed) if seed else None
        self._runnable: deque[DriverTask[Any]] = deque()
        self.trace: list[tuple[int, str]] | None = [] if record else None  #: (time in ns, driver) of every step

    def _launch(self, task: DriverTask[Any]) -> None:
        with self._turn:
            self._runnable.append(task)
            self._turn.notify_all()

    async def give_way(self) -> None:
        """See `busdma.waiting.Runtime.give_way`."""
        task = self._carried()
        if task is not None:
            self._launch(task)
            await _suspended()

    async def _suspend(self, own: Waiter, task: DriverTask[Any] | None) -> None:
        if task is not None and own.arm(partial(self._launch, task)):
            await _suspended()

    def _ready(self) -> bool:
        return bool(self._runnable)

    def _step(self) -> None:
        with self._turn:
            if self._random is not None:
                self._runnable.rotate(-self._random.randrange(len(self._runnable)))
            task = self._runnable.popleft()
        if self.trace is not None:
            self.trace.append((self.now(), task.name))
        task.step()
