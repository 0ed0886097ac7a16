"""A small engine that grants units of something in order, and one driver file that uses it: to try runtimes with."""

from __future__ import annotations

import threading
from collections import deque
from contextvars import ContextVar
from types import TracebackType

from busdma.errors import DeadlineExpired
from busdma.runtime.carrier import Carrier
from busdma.waiting import WOKEN, Waiter

MICROSECOND = 1000

who: ContextVar[str] = ContextVar("who", default="nobody")


class Pool:
    """So many units. Grants are handed over in order of asking; a grant that nobody takes goes to the next."""

    def __init__(self, runtime: Carrier, units: int) -> None:
        self.runtime = runtime
        self.free = units
        self.queue: deque[tuple[Waiter, int]] = deque()
        self.granted: list[str] = []
        self.lock = threading.Lock()

    def request(self, amount: int) -> Waiter:
        """Ask; the waiter is woken with the amount once it is granted."""
        waiter = Waiter(f"{amount} units")
        with self.lock:
            self.queue.append((waiter, amount))
        self._serve()
        return waiter

    def release(self, amount: int) -> None:
        """Give back. Never waits."""
        with self.lock:
            self.free += amount
        self._serve()

    def settle(self, waiter: Waiter, amount: int) -> None:
        """The wait ended with an error: give back what was granted, or leave the queue."""
        with self.lock:
            if waiter.state == WOKEN:
                self.free += amount
            else:
                self.queue = deque(entry for entry in self.queue if entry[0] is not waiter)
        self._serve()

    def _serve(self) -> None:
        with self.lock:
            while self.queue and self.queue[0][1] <= self.free:
                waiter, amount = self.queue.popleft()
                self.free -= amount
                if not waiter.wake(amount):
                    self.free += amount

    async def get(self, amount: int, deadline: int | None = None) -> Units:
        """Ask, and wait."""
        waiter = self.request(amount)
        try:
            await self.runtime.park(waiter, deadline)
        except BaseException:
            self.settle(waiter, amount)
            raise
        return Units(self, amount)

    def get_blocking(self, amount: int, deadline: int | None = None) -> Units:
        """Ask, and block."""
        waiter = self.request(amount)
        try:
            self.runtime.block(waiter, deadline)
        except BaseException:
            self.settle(waiter, amount)
            raise
        return Units(self, amount)


class Units:
    """What was granted, until the end of a with statement. Its end never waits."""

    def __init__(self, pool: Pool, amount: int) -> None:
        self.pool = pool
        self.amount = amount

    def __enter__(self) -> Units:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.release(self.amount)


async def pause(runtime: Carrier, ns: int, purpose: str = "an interrupt") -> int:
    """Wait for a timer; the time at which it came."""
    waiter = Waiter(purpose)
    runtime.call_at(runtime.now() + ns, waiter.wake)
    await runtime.park(waiter)
    return runtime.now()


async def driver(runtime: Carrier, pool: Pool, name: str, amount: int, service: int, rounds: int) -> list[str]:
    """Take units, have a device work on them, give them back; then ask for what takes too long."""
    who.set(name)
    log = []
    for number in range(rounds):
        with await pool.get(amount):
            await pause(runtime, service)
            log.append(f"{who.get()}/{runtime.current} {number}")
    try:
        with await pool.get(1_000_000, deadline=runtime.now() + 10 * service):
            log.append("granted what does not exist")
    except DeadlineExpired as error:
        log.append(str(error))
    return log
