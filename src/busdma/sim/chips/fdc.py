"""A PC's floppy disk controller, an Intel 82077AA, with one 3.5-inch drive, by its data sheet.

The medium is an image of 720 KB, 1.44 MB or 2.88 MB. It turns when the motor has been on for long enough, and sectors
pass the heads in their order: a command waits for its first one, and each moves over the DMA channel at its end. A
controller that waits for a medium that does not turn, or for one that is not there, waits until it is reset.

The registers answer after a while: whoever does not look at the main status register writes into nothing.

Source: Intel 82077AA data sheet: 2.1 (registers), 2.2.2 (reset), 4 (phases), 5 (commands), 6 (status). IBM PC AT
Technical Reference, "Diskette Adapter" (the register of the changed disk). What it does not model: transfers without
DMA, FORMAT TRACK and what else software of this house does not ask for (invalid commands), gaps, and the polling of
drives, but for what a reset reports.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from busdma.errors import ConfigurationError
from busdma.sim.disk import Disk
from busdma.sim.wiring import CallAt, Pin

PORTS: Final = 8
DOR, STATUS, FIFO, INPUT = 2, 4, 5, 7  # INPUT is the configuration control register where it is written
MOTOR, GATE, RUN, SELECT = 0x10, 0x08, 0x04, 0x03  # in DOR: the motor of drive 0, DMA and interrupts, not reset
READY, OUTWARD, BUSY = 0x80, 0x40, 0x10  # in STATUS; the lowest four bits are drives that seek

# commands, without the bits for multi-track, MFM and skip; and how many bytes they have (5.0)
SPECIFY, DRIVE_STATUS, WRITE, READ, RECALIBRATE = 0x03, 0x04, 0x05, 0x06, 0x07
SENSE, READ_ID, SEEK, PERPENDICULAR = 0x08, 0x0A, 0x0F, 0x12
LENGTHS: Final = {
    SPECIFY: 3,
    DRIVE_STATUS: 2,
    WRITE: 9,
    READ: 9,
    RECALIBRATE: 2,
    SENSE: 1,
    READ_ID: 2,
    SEEK: 3,
    PERPENDICULAR: 2,
}
MULTI_TRACK: Final = 0x80
ABNORMAL, INVALID, POLLED, SEEK_END, EQUIPMENT = 0x40, 0x80, 0xC0, 0x20, 0x10  # status register 0
END_OF_CYLINDER, DATA_ERROR, OVERRUN, NO_DATA, PROTECTED, NO_MARK = 0x80, 0x20, 0x10, 0x04, 0x02, 0x01  # 1
DATA_FIELD, WRONG_CYLINDER = 0x20, 0x10  # 2

#: by blocks: data rate as in the configuration control register, sectors a track
MEDIA: Final = {1440: (2, 9), 2880: (0, 18), 5760: (3, 36)}
BLOCK: Final = 512
CYLINDERS: Final = 80
MOST_STEPS: Final = 79  #: of RECALIBRATE (5.2.2)

#: Virtual time, in ns.
BYTE: Final = 12_000  #: from one byte of a command or result to the next
REVOLUTION: Final = 200_000_000  #: 300 turns a minute
SPIN_UP: Final = 400_000_000
RESET: Final = 200_000
STEP: Final = {3: 500_000, 0: 1_000_000, 1: 1_666_667, 2: 2_000_000}  #: by rate; times 16 less the step rate field


class Channel(Protocol):
    """The card's side of its DMA channel: `busdma.sim.bus.i8237.Request`."""

    terminal: bool

    def store(self, data: bytes) -> int:
        """Move bytes into memory; how many were taken."""

    def fetch(self, count: int) -> bytes:
        """Move bytes from memory."""


class Fdc:
    """Controller and drive at power-on: a `busdma.sim.bus.isa.PortDevice` at 8 ports.

    `medium`: what is in the drive. `interrupt` is low where the driver has not enabled it.
    """

    def __init__(
        self, channel: Channel, interrupt: Pin, call_at: CallAt, now: Callable[[], int], *, medium: Disk | None
    ) -> None:
        self._channel, self._pin = channel, interrupt
        self._call_at, self._now = call_at, now
        self.bad: dict[int, int] = {}  #: blocks that cannot be read, and how often yet
        self._silent = self._overruns = 0
        self._deaf = False
        self._counts = dict.fromkeys(("commands", "sectors", "seeks", "resets", "dropped"), 0)
        self._dor = 0
        self._rate = 2  # 250 kb/s (2.1.9)
        self._step = 0
        self._perpendicular = False
        self._sectors = 0  # a track of the medium
        self._cylinder = 0  # where the heads are
        self._spun = 0  # since when the medium turns as it should; meaningful while the motor is on
        self._life = 0  # a reset makes everything that was under way obsolete
        self.insert(medium)
        self._clear()

    # -- for tests ----------------------------------------------------------------------------------------------------

    def insert(self, medium: Disk | None) -> None:
        """Another medium, or none. ConfigurationError if it is no floppy."""
        if medium is not None and medium.blocks not in MEDIA:
            raise ConfigurationError(
                f"no 3.5-inch floppy has {medium.blocks} blocks, as {medium.path!r}: give an image of {sorted(MEDIA)}"
            )
        self.medium = medium
        self.changed = True  #: until the heads step over a medium

    def inject_silence(self, times: int = 1) -> None:
        """That many transfers never end."""
        self._silent += times

    def inject_overrun(self, times: int = 1) -> None:
        """In that many transfers the bus is too late for the first sector."""
        self._overruns += times

    def inject_death(self) -> None:
        """It does not come back from a reset any more."""
        self._deaf = True

    def statistics(self) -> dict[str, int]:
        """Counters since power-on. `dropped`: bytes that came, or went, when the controller was not ready for them."""
        return dict(self._counts)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read8(self, offset: int) -> int:
        """The CPU reads a port. Those of other PCs' adapters give ones."""
        match offset:
            case 2:  # DOR
                return self._dor
            case 4:  # STATUS
                return self._status()
            case 5:  # FIFO
                return self._give()
            case 7:  # INPUT: only the changed disk, and only of the drive that is selected and turns
                return 0x80 if self.changed and self._dor & (MOTOR | SELECT) == MOTOR else 0x00
        return 0xFF

    def write8(self, offset: int, value: int) -> None:
        """The CPU writes a port."""
        match offset:
            case 2:  # DOR
                self._operate(value)
            case 5:  # FIFO
                self._take(value)
            case 7:  # the configuration control register
                self._rate = value & 3

    def _status(self) -> int:
        if not self._dor & RUN or self._deaf or self._now() < self._ready_at:
            return self._seeking
        if self._executing:
            return BUSY | self._seeking
        if self._result:
            return READY | OUTWARD | BUSY | self._seeking
        return READY | (BUSY if self._command else 0) | self._seeking

    def _operate(self, value: int) -> None:
        """The digital output register (2.1.3): motor, reset, and who may interrupt."""
        before, self._dor = self._dor, value
        if value & MOTOR and not before & MOTOR:
            self._spun = self._now() + SPIN_UP
        if before & RUN and not value & RUN:
            self._clear()
        if value & RUN and not before & RUN:
            self._counts["resets"] += 1
            self._ready_at = self._now() + RESET
            self._later(RESET, self._polled)
        self._drive_pin()

    def _clear(self) -> None:
        """In reset nothing goes on, and nothing is remembered but what SPECIFY and its like have set (2.2.2)."""
        self._life += 1
        self._command: list[int] = []
        self._result: deque[int] = deque()
        self._pending: deque[tuple[int, int]] = deque()  # for SENSE INTERRUPT STATUS: status 0 and cylinder
        self._executing, self._seeking = False, 0
        self._ready_at = 0
        self._raised = False
        self._pin.deassert()

    def _polled(self) -> None:
        """After a reset each of the four drives has changed its ready line (8.2)."""
        if not self._deaf:
            self._pending.extend((POLLED | drive, self._cylinder if drive == 0 else 0) for drive in range(4))
            self._interrupt()

    def _interrupt(self) -> None:
        self._raised = True
        self._drive_pin()

    def _acknowledged(self) -> None:
        self._raised = False
        self._drive_pin()

    def _drive_pin(self) -> None:
        (self._pin.assert_ if self._raised and self._dor & GATE else self._pin.deassert)()

    def _later(self, delay: int, fn: Callable[[], object]) -> None:
        life = self._life
        self._call_at(self._now() + delay, lambda: fn() if life == self._life else None)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _take(self, value: int) -> None:
        if not self._status() & READY or self._result:
            self._counts["dropped"] += 1
            return
        self._command.append(value)
        self._ready_at = self._now() + BYTE
        if len(self._command) == LENGTHS.get(self._command[0] & 0x1F, 1):
            command, self._command = self._command, []
            self._counts["commands"] += 1
            self._execute(command)

    def _give(self) -> int:
        if not self._status() & READY or not self._result:
            self._counts["dropped"] += 1
            return 0xFF
        self._acknowledged()
        self._ready_at = self._now() + BYTE
        return self._result.popleft()

    def _execute(self, command: list[int]) -> None:
        match command:
            case [0x03, times, _]:  # SPECIFY
                self._step = times >> 4
            case [0x12, drives]:  # PERPENDICULAR
                self._perpendicular = bool(drives & 0x04)
            case [0x08] if self._pending:  # SENSE
                self._acknowledged()
                self._result.extend(self._pending.popleft())
            case [0x04, drive]:  # DRIVE_STATUS: two-sided, ready, track 0, write protected
                protected = self.medium is not None and self.medium.read_only
                self._result.append(drive & 7 | 0x28 | (self._cylinder == 0) << 4 | protected << 6)
            case [0x07, drive]:  # RECALIBRATE
                self._seek(drive & 3, 0, min(self._cylinder, MOST_STEPS))
            case [0x0F, drive, cylinder]:  # SEEK
                self._seek(drive & 3, cylinder, abs(cylinder - self._cylinder))
            case [first, drive] if first & 0x1F == READ_ID:
                self._executing = True
                self._when_turning(drive, self._identify)
            case [first, drive, *_] if first & 0x1F in (READ, WRITE):
                self._executing = True
                self._when_turning(drive, lambda: self._begin(command))
            case _:
                self._result.append(INVALID)

    def _seek(self, drive: int, cylinder: int, steps: int) -> None:
        """The controller is free meanwhile; that it has ended is for SENSE INTERRUPT STATUS."""
        self._seeking |= 1 << drive
        self._counts["seeks"] += 1

        def arrive() -> None:
            self._seeking &= ~(1 << drive)
            status = SEEK_END | drive
            if drive:  # there is none: its track 0 never comes
                status |= ABNORMAL | EQUIPMENT if cylinder == 0 else 0
            else:
                self._cylinder = min(cylinder, CYLINDERS - 1)
                if steps and self.medium is not None:
                    self.changed = False
            self._pending.append((status, cylinder))
            self._interrupt()

        self._later(max(steps, 1) * (16 - self._step) * STEP[self._rate], arrive)

    def _when_turning(self, drive: int, fn: Callable[[], object]) -> None:
        """Go on when sectors pass. If none ever do, the command waits for ever."""
        if self.medium is None or drive & 3 or self._dor & (MOTOR | SELECT) != MOTOR:
            return
        self._later(max(self._spun - self._now(), 0), fn)

    def _identify(self) -> None:
        """READ ID (5.2.1): the next sector that passes."""
        if not self._legible():
            self._later(2 * REVOLUTION, lambda: self._end(ABNORMAL, NO_MARK))
            return
        sector = self._now() * self._sectors // REVOLUTION % self._sectors + 1
        self._later(REVOLUTION // self._sectors, lambda: self._end(at=(self._cylinder, 0, sector)))

    def _legible(self) -> bool:
        """Is the medium recorded as the controller reads?"""
        assert self.medium is not None
        rate, self._sectors = MEDIA[self.medium.blocks]
        return self._rate == rate and (rate != 3 or self._perpendicular)

    # -- READ DATA and WRITE DATA (5.1) -------------------------------------------------------------------------------

    def _begin(self, command: list[int]) -> None:
        code, _, cylinder, head, sector = command[:5]
        if self._silent:
            self._silent -= 1
            return
        if code & 0x1F == WRITE and self.medium is not None and self.medium.read_only:
            self._end(ABNORMAL, PROTECTED)
        elif not self._legible():
            self._later(2 * REVOLUTION, lambda: self._end(ABNORMAL, NO_MARK))
        elif cylinder != self._cylinder:
            self._later(2 * REVOLUTION, lambda: self._end(ABNORMAL, NO_DATA, WRONG_CYLINDER))
        elif not 1 <= sector <= self._sectors or head > 1:
            self._later(2 * REVOLUTION, lambda: self._end(ABNORMAL, NO_DATA))
        else:
            time = REVOLUTION // self._sectors
            wait = ((sector - 1) * time - self._now()) % (self._sectors * time)
            self._later(wait + time, lambda: self._pass(command, head, sector))

    def _pass(self, command: list[int], head: int, sector: int) -> None:
        """A sector has passed under its head."""
        code, cylinder, last = command[0], command[2], command[6]
        block = (cylinder * 2 + head) * self._sectors + sector - 1
        whole = self._over(block) if code & 0x1F == READ else self._put(block)
        if not whole:
            self._end(ABNORMAL, OVERRUN, at=(cylinder, head, sector))
            return
        if code & 0x1F == READ and self.bad.get(block):
            self.bad[block] -= 1
            self._end(ABNORMAL, DATA_ERROR, DATA_FIELD, at=(cylinder, head, sector))
            return
        self._counts["sectors"] += 1
        following = (cylinder, head, sector + 1)
        if sector >= last:
            both = code & MULTI_TRACK and head == 0
            following = (cylinder, 1, 1) if both else (cylinder + 1, 0 if code & MULTI_TRACK else head, 1)
        if self._channel.terminal:
            self._end(at=following)
        elif following[0] != cylinder:
            self._end(ABNORMAL, END_OF_CYLINDER, at=following)
        else:
            self._later(REVOLUTION // self._sectors, lambda: self._pass(command, *following[1:]))

    def _late(self) -> bool:
        late = self._overruns > 0
        self._overruns -= late
        return late

    def _over(self, block: int) -> bool:
        """A sector into memory. False: it was not fetched in time."""
        assert self.medium is not None
        data = self.medium.read(block, 1)
        return not self._late() and (self._channel.store(data) == BLOCK or self._channel.terminal)

    def _put(self, block: int) -> bool:
        """A sector from memory; what is missing behind terminal count is zeros. False: it did not come in time."""
        assert self.medium is not None
        data = b"" if self._late() else self._channel.fetch(BLOCK)
        if len(data) < BLOCK and not (data and self._channel.terminal):
            return False
        self.medium.write(block, data.ljust(BLOCK, b"\0"))
        return True

    def _end(self, status0: int = 0, status1: int = 0, status2: int = 0, at: Iterable[int] = (0, 0, 0)) -> None:
        """The result phase: the status registers, and the sector that would follow."""
        self._executing = False
        at = tuple(at)
        self._result.extend((status0 | at[1] << 2, status1, status2, *at, 2))
        self._interrupt()
