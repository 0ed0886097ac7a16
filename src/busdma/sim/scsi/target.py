"""A SCSI-2 direct-access device: what a disk answers to a command, phase by phase.

A target never touches memory. `ScsiTarget.execute` is a generator of the phases that the initiator sees: `Busy` (the
target disconnects and works), `DataIn` (it gives bytes), `DataOut` (it wants bytes, which are sent into the generator);
what it returns is the status byte. The host adapter decides when each phase happens and where its bytes lie; an
abort closes the generator, and what was not written by then is never written.

Source: ANSI X3.131-1994 (SCSI-2), sections 7.2 (status), 8.2 (all devices), 9.2 (direct-access devices) and
8.2.14 (fixed-format sense data).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final, TypeAlias

from busdma.sim.disk import Disk

GOOD: Final = 0x00
CHECK_CONDITION: Final = 0x02
QUEUE_FULL: Final = 0x28

NO_SENSE: Final = 0x0
NOT_READY: Final = 0x2
MEDIUM_ERROR: Final = 0x3
ILLEGAL_REQUEST: Final = 0x5
UNIT_ATTENTION: Final = 0x6
DATA_PROTECT: Final = 0x7

SPIN_UP: Final = 8_000_000_000  #: ns from START UNIT until the drive is ready
RETRIES: Final = 8  #: turns that the drive spends on a block before it gives up


@dataclass(frozen=True, slots=True)
class Busy:
    """The target is off the bus for `ns`."""

    ns: int


@dataclass(frozen=True, slots=True)
class DataIn:
    """A data-in phase: the target sends `data` to the initiator."""

    data: bytes


@dataclass(frozen=True, slots=True)
class DataOut:
    """A data-out phase: the target takes `length` bytes, which the initiator sends into the generator."""

    length: int


Phase: TypeAlias = Busy | DataIn | DataOut
Phases: TypeAlias = Generator[Phase, bytes, int]
Clock: TypeAlias = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense key, additional sense code and qualifier; `information` is the block where it happened."""

    key: int = NO_SENSE
    asc: int = 0
    ascq: int = 0
    information: int | None = None

    def pack(self) -> bytes:
        """Fixed format, current error, 18 bytes (8.2.14, table 65)."""
        valid = 0x80 if self.information is not None else 0
        data = bytearray(18)
        data[0] = valid | 0x70
        data[2] = self.key
        data[3:7] = (self.information or 0).to_bytes(4, "big")
        data[7] = 10
        data[12:14] = bytes((self.asc, self.ascq))
        return bytes(data)


INVALID_OPCODE: Final = Sense(ILLEGAL_REQUEST, 0x20, 0x00)
INVALID_FIELD: Final = Sense(ILLEGAL_REQUEST, 0x24, 0x00)
NO_SUCH_UNIT: Final = Sense(ILLEGAL_REQUEST, 0x25, 0x00)
WAS_RESET: Final = Sense(UNIT_ATTENTION, 0x29, 0x00)
WRITE_PROTECTED: Final = Sense(DATA_PROTECT, 0x27, 0x00)
STOPPED: Final = Sense(NOT_READY, 0x04, 0x02)  #: needs a START UNIT
SPINNING_UP: Final = Sense(NOT_READY, 0x04, 0x01)


class _Check(Exception):
    """Ends a command with CHECK CONDITION."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(sense)
        self.sense = sense


class ScsiTarget:
    """One disk drive with one logical unit, 0, for one initiator.

    `bad` holds the blocks that cannot be read; writing one reallocates it, as drives with automatic write
    reallocation do. `tags`: how many tagged commands it queues; the initiator keeps the queue in its name. 0: it
    knows no queue tags.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        vendor: str = "BUSDMA",
        product: str = "SIMULATED DISK",
        revision: str = "1.0",
        tags: int = 0,
    ) -> None:
        self.disk, self.tags = disk, tags
        self.bad: set[int] = set()
        self._identity = b"".join(
            text.encode("ascii").ljust(width)[:width] for text, width in ((vendor, 8), (product, 16), (revision, 4))
        )
        self._sense = Sense()
        self._attention: Sense | None = WAS_RESET
        self._stopped = False
        self._ready_at = 0
        self._commands: Final[dict[int, Callable[[bytes, Clock], Phases]]] = {
            0x00: self._test_unit_ready,
            0x08: self._read,
            0x0A: self._write,
            0x12: self._inquiry,
            0x1A: self._mode_sense,
            0x1B: self._start_stop,
            0x25: self._read_capacity,
            0x28: self._read,
            0x2A: self._write,
            0x35: self._synchronize_cache,
        }

    def reset(self) -> None:
        """A bus reset or a BUS DEVICE RESET message: the next command is told by a unit attention (7.9)."""
        self._sense, self._attention = Sense(), WAS_RESET

    def execute(self, lun: int, cdb: bytes, now: Clock) -> Phases:
        """Run `cdb` for logical unit `lun`; returns the status byte. `now` reads the virtual clock."""
        opcode = cdb[0]
        try:
            if lun and opcode == 0x12:
                yield DataIn(self._inquiry_data(0x7F)[: cdb[4]])  # qualifier 3: no such unit here (8.2.5.1)
                return GOOD
            if opcode == 0x03:
                yield DataIn(self._take_sense(lun).pack()[: cdb[4] or 4])  # a length of 0 means 4 bytes (8.2.14)
                return GOOD
            self._sense = Sense()
            if lun:
                raise _Check(NO_SUCH_UNIT)
            if self._attention is not None and opcode != 0x12:
                sense, self._attention = self._attention, None
                raise _Check(sense)
            command = self._commands.get(opcode)
            if command is None:
                raise _Check(INVALID_OPCODE)
            if cdb[-1] & 0x03:  # flag and link: linked commands are optional, and refused (7.2.7)
                raise _Check(INVALID_FIELD)
            return (yield from command(cdb, now))
        except _Check as check:
            self._sense = check.sense
            return CHECK_CONDITION

    # Commands for all devices (section 8.2)

    def _test_unit_ready(self, cdb: bytes, now: Clock) -> Phases:
        self._need_ready(now)
        yield from ()
        return GOOD

    def _take_sense(self, lun: int) -> Sense:
        """What REQUEST SENSE tells, once: the last error, or else a unit attention that nobody was told of (7.9)."""
        if lun:
            return NO_SUCH_UNIT
        sense, self._sense = self._sense, Sense()
        if sense.key == NO_SENSE and self._attention is not None:
            sense, self._attention = self._attention, None
        return sense

    def _inquiry(self, cdb: bytes, now: Clock) -> Phases:
        if cdb[1] & 0x01 or cdb[2]:  # vital product data: none
            raise _Check(INVALID_FIELD)
        yield DataIn(self._inquiry_data(0x00)[: cdb[4]])
        return GOOD

    def _inquiry_data(self, peripheral: int) -> bytes:
        # Direct access, SCSI-2, response format 2, synchronous transfers, tagged queues if any; no linking.
        return bytes((peripheral, 0x00, 0x02, 0x02, 31, 0, 0, 0x12 if self.tags else 0x10)) + self._identity

    # Commands for direct-access devices (section 9.2)

    def _read_capacity(self, cdb: bytes, now: Clock) -> Phases:
        self._need_ready(now)
        if cdb[8] & 0x01 or any(cdb[2:6]):  # PMI, or an address without it
            raise _Check(INVALID_FIELD)
        yield DataIn((self.disk.blocks - 1).to_bytes(4, "big") + self.disk.block_size.to_bytes(4, "big"))
        return GOOD

    def _read(self, cdb: bytes, now: Clock) -> Phases:
        lba, count = self._extent(cdb, now)
        if not count:
            return GOOD
        blocks = range(lba, lba + count)
        bad = min((block for block in self.bad if block in blocks), default=None)
        good = count if bad is None else bad - lba
        retries = 0 if bad is None else RETRIES * self.disk.geometry.revolution
        yield Busy(self.disk.service_ns(lba, good, now()) + retries)
        if good:
            try:
                data = self.disk.read(lba, good)
            except OSError:
                raise _Check(Sense(MEDIUM_ERROR, 0x11, 0x00, lba)) from None
            yield DataIn(data)
        if bad is not None:
            raise _Check(Sense(MEDIUM_ERROR, 0x11, 0x00, bad))  # unrecovered read error
        return GOOD

    def _write(self, cdb: bytes, now: Clock) -> Phases:
        lba, count = self._extent(cdb, now)
        if self.disk.read_only:
            raise _Check(WRITE_PROTECTED)
        if not count:
            return GOOD
        data = yield DataOut(count * self.disk.block_size)
        yield Busy(self.disk.service_ns(lba, count, now(), writing=True))
        try:
            self.disk.write(lba, data)
        except OSError:
            raise _Check(Sense(MEDIUM_ERROR, 0x0C, 0x00, lba)) from None  # write error
        self.bad.difference_update(range(lba, lba + count))
        return GOOD

    def _synchronize_cache(self, cdb: bytes, now: Clock) -> Phases:
        self._need_ready(now)
        yield Busy(self.disk.geometry.overhead)
        try:
            self.disk.flush()
        except OSError:
            raise _Check(Sense(MEDIUM_ERROR, 0x0C, 0x00)) from None
        return GOOD

    def _start_stop(self, cdb: bytes, now: Clock) -> Phases:
        if cdb[4] & 0x02:  # load or eject: nothing is removable here
            raise _Check(INVALID_FIELD)
        if not cdb[4] & 0x01:
            self._stopped = True
        elif self._stopped:
            self._stopped, self._ready_at = False, now() + SPIN_UP
        if not cdb[1] & 0x01 and self._ready_at > now():  # not immediate: the status waits for the spindle
            yield Busy(self._ready_at - now())
        return GOOD

    def _mode_sense(self, cdb: bytes, now: Clock) -> Phases:
        page, control = cdb[2] & 0x3F, cdb[2] >> 6
        if control == 3:  # saved values: there are none
            raise _Check(Sense(ILLEGAL_REQUEST, 0x39, 0x00))
        pages = self._mode_pages()
        if page != 0x3F and page not in pages:
            raise _Check(INVALID_FIELD)
        body = b""
        for number, values in pages.items():
            if page in (number, 0x3F):
                shown = bytes(len(values)) if control == 1 else values  # nothing is changeable
                body += bytes((number, len(values))) + shown
        descriptor = b""
        if not cdb[1] & 0x08:
            blocks = min(self.disk.blocks, 0xFFFFFF)
            descriptor = bytes(1) + blocks.to_bytes(3, "big") + bytes(1) + self.disk.block_size.to_bytes(3, "big")
        header = bytes((3 + len(descriptor) + len(body), 0, 0x80 if self.disk.read_only else 0, len(descriptor)))
        yield DataIn((header + descriptor + body)[: cdb[4]])
        return GOOD

    def _mode_pages(self) -> dict[int, bytes]:
        geometry = self.disk.geometry
        rigid = self.disk.cylinders.to_bytes(3, "big") + bytes((geometry.heads & 0xFF,)) + bytes(14)
        return {
            0x04: rigid + geometry.rpm.to_bytes(2, "big") + bytes(2),  # rigid disk geometry (9.3.3.7)
            0x08: bytes(10),  # caching (9.3.3.1): no write cache, read cache on
        }

    def _extent(self, cdb: bytes, now: Clock) -> tuple[int, int]:
        """Block and count of a READ or WRITE, 6 or 10 bytes long (9.2.5 and 9.2.6)."""
        self._need_ready(now)
        if cdb[0] < 0x20:
            lba, count = int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
        else:
            if cdb[1] & 0x01:  # relative addresses need linked commands
                raise _Check(INVALID_FIELD)
            lba, count = int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")
        if lba + count > self.disk.blocks:
            raise _Check(Sense(ILLEGAL_REQUEST, 0x21, 0x00, max(lba, self.disk.blocks)))  # out of range
        return lba, count

    def _need_ready(self, now: Clock) -> None:
        if self._stopped:
            raise _Check(STOPPED)
        if now() < self._ready_at:
            raise _Check(SPINNING_UP)
