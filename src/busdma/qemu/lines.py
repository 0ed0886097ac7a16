"""The interrupt lines of a machine's devices: several may share one that QEMU reports; where it reports none, who waits
looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from busdma.errors import DeadlineExpired
from busdma.machine.interrupt import Interrupt
from busdma.qemu.qtest import Qtest
from busdma.waiting import Runtime, Waiter

LOOKS: Final = 4  #: at a line without a pause between: most devices answer a command that fast
SHORTEST, LONGEST = 100_000, 4_000_000  #: ns between two looks after that
SHARE: Final = 4  #: a pause is as long as this part of the wait so far


class Lines:
    """The lines of the device that `qtest` intercepts, for drivers that `runtime` carries."""

    def __init__(self, qtest: Qtest, runtime: Runtime) -> None:
        self._qtest = qtest
        self._runtime = runtime
        self._shared: dict[int, list[Interrupt]] = {}

    def interrupt(self, line: int) -> Interrupt:
        """One device's end of `line`. It rises and falls with it, whichever device is the cause."""
        interrupt = Reported(f"irq {line}", self._runtime, self._qtest)
        sharing = self._shared.setdefault(line, [])
        sharing.append(interrupt)
        self._qtest.on_interrupt(line, lambda level: _drive(sharing, level))  # which tells the new one, if it is high
        return interrupt

    def level(self, line: int) -> Level:
        """Whether `line`, which no device's driver waits for, is high."""
        level = Level()
        self._qtest.on_interrupt(line, level.drive)
        return level


class Reported(Interrupt):
    """A line that QEMU reports. It may be shared, and acknowledgements are posted: so where it seems to be high still,
    they are carried out first, and others have their turn.
    """

    def __init__(self, name: str, runtime: Runtime, qtest: Qtest) -> None:
        super().__init__(name, runtime)
        self._qtest = qtest

    async def wait(self, deadline: int | None = None) -> int:
        """See `Interrupt.wait`. DeviceFault if QEMU refused what was posted, or has gone."""
        if self._level and not self._latched:
            self._qtest.flush()
            await self._runtime.give_way()
        return await super().wait(deadline)


class Level:
    """What a line is like, for those who only look."""

    __slots__ = ("high",)

    def __init__(self) -> None:
        self.high = False

    def drive(self, high: bool) -> None:
        """The line has changed."""
        self.high = high


def _drive(sharing: list[Interrupt], level: bool) -> None:
    for interrupt in tuple(sharing):
        drive = interrupt.assert_ if level else interrupt.deassert
        drive()


class Polled:
    """A line that nothing reports, as `busdma.machine.attachment.InterruptLine`. It costs nothing while nobody waits.

    `look`: is it up? The longer a wait lasts, the longer are the pauses between two looks. A line that rises and falls
    between them is missed, so the device must hold it until it is acknowledged, as on PCI.
    """

    def __init__(self, name: str, runtime: Runtime, look: Callable[[], bool]) -> None:
        self.name = name
        self._runtime = runtime
        self._look = look

    async def wait(self, deadline: int | None = None) -> None:
        """Return once the line is up. DeadlineExpired; and whatever `look` raises, such as DeviceFault."""
        runtime = self._runtime
        for _ in range(LOOKS):
            await runtime.give_way()  # also where it is up: who forgets to acknowledge holds up nobody else
            if self._look():
                return
        begin = runtime.now()
        while True:
            now = runtime.now()
            until = now + min(max((now - begin) // SHARE, SHORTEST), LONGEST)
            last = deadline is not None and deadline <= until
            try:
                await runtime.park(Waiter(f"interrupt {self.name}"), deadline if last else until)
            except DeadlineExpired:
                if self._look():
                    return
                if last:
                    raise
