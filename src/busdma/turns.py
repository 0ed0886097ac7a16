"""A turn in the queue of the pools: "go run your queue! You have resources now."

A driver that keeps its own queue need not wait for the load of one job. It asks for a turn. When the turn comes, its
``run_queue`` is called where drivers run and starts what it can with `Map.load_nowait`, past everybody who waits behind
the turn. The turn holds its place until ``run_queue`` returns, so jobs keep their order; nothing is taken for it.

Source: Thorpe, tech-kern 12 June 1998 (a load callback means: run your queue, not: run this job).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from busdma.pool import Need, PoolQueue
from busdma.waiting import CANCELLED, Runtime


class Turn:
    """Made by `Tag.on_available`. ``done`` once ``run_queue`` has returned, or the turn was cancelled."""

    def __init__(
        self, queue: PoolQueue, needs: Iterable[Need], owner: str, runtime: Runtime, run_queue: Callable[[], object]
    ) -> None:
        self.done = False
        self._queue = queue
        self._run_queue = run_queue
        self._requisition = queue.join(needs, owner, stays=True)
        waiter = self._requisition.waiter
        if not waiter.arm(lambda: runtime.post(self._run)):
            runtime.post(self._run)

    def cancel(self) -> bool:
        """Leave the queue; ``run_queue`` will not be called. False: it has been, or is being called."""
        if self.done or self._requisition.thread is not None:
            return False
        self.done = True
        self._requisition.withdraw()
        return True

    def _run(self) -> None:
        if self._requisition.waiter.state == CANCELLED or not self._queue.enter(self._requisition):
            return
        try:
            self._run_queue()
        finally:
            self.done = True
            self._requisition.withdraw()
