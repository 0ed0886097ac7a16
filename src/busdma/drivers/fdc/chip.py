"""The registers of one floppy disk controller: bytes of commands and results, interrupts, seeks and resets.

Every byte is asked for: the main status register says when the controller takes one or has one, and which. For the one
context that works with the controller.

Source: Intel 82077AA data sheet: 2.2.2 (resets), 4.1 and 4.3 (command and result phase), 5.2.2 to 5.2.4 (seeks and
SENSE INTERRUPT STATUS), 8.1 to 8.3 (handshake, initialization, recalibrates and seeks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from busdma.drivers.fdc import layout
from busdma.drivers.fdc.layout import FdcFault, Format
from busdma.errors import DeadlineExpired, DeviceFault
from busdma.machine.attachment import InterruptLine, Registers
from busdma.waiting import Runtime, Waiter

MILLISECOND: Final = 1_000_000  # ns
POLL: Final = 20_000  #: ns to the second look at the main status register
LONGEST_POLL: Final = 1 * MILLISECOND
RESET_PULSE: Final = 20_000  #: a reset takes a few microseconds at the lowest rate (2.2.2)
SETTLE: Final = 15 * MILLISECOND  #: of the heads, after a seek
DRIVES: Final = 4
HANDSHAKE: Final = layout.READY | layout.TO_HOST


class Silence(DeviceFault):
    """The controller does not answer: nothing but a reset will help."""


class Chip:
    """One controller, whose drive 0 is used. `end` in its methods: the time until which to wait, in ns."""

    def __init__(self, name: str, registers: Registers, interrupt: InterruptLine, runtime: Runtime) -> None:
        self.name = name
        self.cylinder: int | None = None  #: where the heads are, if it is known
        self.counts = {"interrupts": 0, "seeks": 0, "stray": 0, "lost": 0}
        self._registers, self._interrupt, self._runtime = registers, interrupt, runtime

    # -- reset, and what the digital output register does -------------------------------------------------------------

    def hold(self) -> None:
        """Put it into reset, and leave it so: motor off, no interrupt, no DMA."""
        self._registers.write8(layout.DOR, 0)
        self.cylinder = None

    def motor(self, on: bool) -> None:
        """Switch the motor of the drive."""
        running = layout.NOT_RESET | layout.DMA_GATE
        self._registers.write8(layout.DOR, running | layout.MOTOR if on else running)

    async def reset(self, end: int) -> None:
        """Reset it, with the motor on (2.2.2, 8.2). Silence if it does not come back."""
        self.hold()
        await self.pause(RESET_PULSE)  # and nobody looks at a register before it is over
        self.motor(True)
        await self._answer("its reset", end, lambda status: status[0] & layout.CODE == layout.POLLED)
        for _ in range(1, DRIVES):
            await self._sense(end)

    async def configure(self, format: Format, end: int) -> None:
        """Have it work with a medium of this format."""
        self._registers.write8(layout.CCR, format.rate)
        await self.send(layout.specify(format), end)
        command = layout.perpendicular(format)
        await self.send(command, end)
        if await self._poll(layout.READY, layout.READY, end, "a command") & layout.TO_HOST:
            await self._receive(1, end)  # older ones do not know it, nor the media that it is for

    @property
    def changed(self) -> bool:
        """Has the medium been taken out since the heads last moved over one (2.1.8)? The motor has to be on."""
        return bool(self._registers.read8(layout.DIR) & layout.DISK_CHANGED)

    # -- commands -----------------------------------------------------------------------------------------------------

    async def run(self, command: bytes, end: int) -> tuple[int, ...]:
        """A command that interrupts with a result, and that result. FdcFault: it failed; Silence: it does not end."""
        await self.send(command, end)
        while True:
            heard = await self._heard(end)
            if await self._finished():
                break
            self._missed(heard, layout.name_command(command))
        self.counts["lost"] += not heard
        end = max(end, self._runtime.now() + SETTLE)
        status = tuple(await self._receive(layout.RESULT, end))[:3]
        self._check(command, status)
        return status

    async def recalibrate(self, end: int) -> None:
        """Move the heads to cylinder 0, wherever they are. FdcFault if they do not get there."""
        self.cylinder = None
        command = bytes((layout.RECALIBRATE, 0))
        for last in (False, True):  # one makes no more than 79 steps (5.2.2)
            try:
                await self._move(command, 0, end)
            except FdcFault:
                if last:
                    raise
            else:
                return

    async def seek(self, cylinder: int, end: int) -> None:
        """Move the heads to `cylinder`. FdcFault if they do not get there."""
        if self.cylinder is None:
            await self.recalibrate(end)
        if self.cylinder != cylinder:
            self.cylinder = None
            await self._move(bytes((layout.SEEK, 0, cylinder)), cylinder, end)

    async def _move(self, command: bytes, cylinder: int, end: int) -> None:
        self.counts["seeks"] += 1
        await self.send(command, end)
        status = await self._answer(layout.name_command(command), end, lambda s: bool(s[0] & layout.SEEK_END))
        self._check(command, status[:1])
        if status[1] != cylinder:
            raise FdcFault(f"{self.name}: {layout.name_command(command)} ended at cylinder {status[1]}", status[:1])
        await self.pause(SETTLE)
        self.cylinder = cylinder

    def _check(self, command: bytes, status: tuple[int, ...]) -> None:
        if layout.failed(status):
            words = f"{layout.name_command(command)} failed: {layout.name_status(status)}"
            raise FdcFault(f"{self.name}: {words}", status)

    # -- bytes and interrupts -----------------------------------------------------------------------------------------

    async def send(self, command: bytes, end: int) -> None:
        """The command phase (4.1)."""
        for byte in command:
            await self._poll(HANDSHAKE, layout.READY, end, "a command")
            self._registers.write8(layout.FIFO, byte)

    async def _receive(self, count: int, end: int) -> list[int]:
        """The result phase (4.3)."""
        found = []
        for _ in range(count):
            await self._poll(HANDSHAKE, HANDSHAKE, end, "its result")
            found.append(self._registers.read8(layout.FIFO))
        return found

    async def _finished(self) -> bool:
        """Has it a result? It may interrupt a little before it lets it be read."""
        finished = HANDSHAKE | layout.BUSY
        for pause in (POLL, 0):
            if self._registers.read8(layout.MSR) & finished == finished:
                return True
            if pause:
                await self.pause(pause)
        return False

    async def _sense(self, end: int) -> tuple[int, ...]:
        """SENSE INTERRUPT STATUS (5.2.4): status register 0 and the cylinder; the former alone if there is nothing."""
        await self.send(bytes((layout.SENSE_INTERRUPT,)), end)
        (status,) = await self._receive(1, end)
        return (status,) if status == layout.INVALID else (status, *await self._receive(1, end))

    async def _answer(self, what: str, end: int, fits: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
        """The status with which a seek or a reset ends."""
        while True:
            heard = await self._heard(end)
            if not heard and not self._registers.read8(layout.MSR) & layout.READY:
                self._missed(heard, what)
            status = await self._sense(max(end, self._runtime.now() + SETTLE))
            if fits(status):
                self.counts["lost"] += not heard
                return status
            self._missed(heard, what)

    async def _heard(self, end: int) -> bool:
        """Wait for the interrupt. False: it did not come, look once more."""
        try:
            await self._interrupt.wait(end)
        except DeadlineExpired:
            return False
        self.counts["interrupts"] += 1
        return True

    def _missed(self, heard: bool, what: str) -> None:
        if not heard:
            raise Silence(f"{self.name} does not end {what}")
        self.counts["stray"] += 1

    async def _poll(self, mask: int, wanted: int, end: int, what: str) -> int:
        """The main status register, once status & mask == wanted. Silence at time `end`."""
        pause = POLL
        while (status := self._registers.read8(layout.MSR)) & mask != wanted:
            if self._runtime.now() >= end:
                raise Silence(f"{self.name} stays at status {status:#04x} instead of going on with {what}")
            await self.pause(pause)
            pause = min(2 * pause, LONGEST_POLL)
        return status

    async def pause(self, time: int) -> None:
        """Let `time` ns pass."""
        waiter = Waiter(self.name)
        self._runtime.call_at(self._runtime.now() + time, waiter.wake)
        await self._runtime.park(waiter)
