"""An interrupt line: the device drives its level, one driver context waits for it.

Every rise of the line is latched until a wait has seen it, as an interrupt controller does, so an interrupt between two
waits is not lost. A line that is still high is an interrupt too: the driver has not acknowledged all of it yet.

Source: Intel 8259A data sheet, "Edge and Level Triggered Modes".
"""

from __future__ import annotations

import threading
from typing import Final, TypedDict

from busdma.errors import DriverError
from busdma.waiting import Runtime, Waiter

STORM: Final = 10_000  #: waits that may find the line still high, without a new rise, before that is called an error


class InterruptStatistics(TypedDict):
    """`raised`: how often the line rose. `waited`: how many waits ended with an interrupt."""

    raised: int
    waited: int


class Interrupt:
    """The line `name` of a machine whose drivers `runtime` carries. The device may call from any thread."""

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self._runtime = runtime
        self._level = False
        self._latched = 0  # rises that no wait has seen
        self._waiter: Waiter | None = None
        self._raised = 0
        self._waited = 0
        self._unacknowledged = 0
        self._lock = threading.Lock()

    def assert_(self) -> None:
        """Device side: drive the line high. Nothing happens if it is high."""
        with self._lock:
            if self._level:
                return
            self._level = True
            self._latched += 1
            self._raised += 1
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.wake()  # if that wait has just ended otherwise, the latch keeps the interrupt for the next one

    def deassert(self) -> None:
        """Device side: let the line go low, because the driver acknowledged."""
        with self._lock:
            self._level = False
            self._unacknowledged = 0

    @property
    def pending(self) -> bool:
        """True if a wait would not have to wait."""
        return self._level or self._latched > 0

    async def wait(self, deadline: int | None = None) -> int:
        """Wait for an interrupt; at once if one is pending. Returns how often the line rose since the last wait.

        That is 0 where the line has stayed high, and may be 0 in a race, so ask the device why it interrupts.
        `deadline` is an absolute time in ns. Errors: DeadlineExpired; DriverError if another context waits already, or
        nobody ever acknowledges.
        """
        with self._lock:
            if self._level or self._latched:
                return self._take()
            if self._waiter is not None:
                raise DriverError(
                    f"interrupt {self.name} is waited for already: let one context of the driver wait for it"
                )
            waiter = self._waiter = Waiter(f"interrupt {self.name}")
        try:
            await self._runtime.park(waiter, deadline)
        finally:
            with self._lock:
                if self._waiter is waiter:
                    self._waiter = None
        with self._lock:
            return self._take()

    def statistics(self) -> InterruptStatistics:
        """Counts since the machine started."""
        with self._lock:
            return {"raised": self._raised, "waited": self._waited}

    def _take(self) -> int:
        rises, self._latched = self._latched, 0
        if rises == 0:
            self._unacknowledged += 1
            if self._unacknowledged >= STORM:
                raise DriverError(
                    f"interrupt {self.name} stayed high for {STORM} waits: acknowledge it at the device before "
                    "waiting again"
                )
        else:
            self._unacknowledged = 0
        self._waited += 1
        return rises
