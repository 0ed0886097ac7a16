"""CCBs and mailboxes as they lie in the host's memory, in the two sizes of the mailbox family of SCSI adapters.

Adaptec's AHA-1540 began it with numbers of three bytes, most significant first. BusLogic's MultiMasters take those too,
and their own of four bytes, least significant first. Everything else follows from where the numbers lie:

======================  =====================================  =====================================================
structure               24 bits                                32 bits
======================  =====================================  =====================================================
outgoing mailbox        action, CCB address                    CCB address, three reserved, action
incoming mailbox        status, CCB address                    CCB address, host and target status, reserved, status
CCB                     18 bytes, the CDB, then sense data     40 bytes, with the CDB and a pointer to sense data
scatter/gather element  length, address                        length, address
======================  =====================================  =====================================================

Source: Adaptec AHA-1740A/1742A/1744 Technical Reference Manual, 5-14 to 5-30; BusLogic MultiMaster Technical Reference
Manual, chapter 1 (mailboxes, CCB, data segment list).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

from busdma.sim.scsi.target import Phases

HEADER: Final = 18  #: bytes of a CCB before its CDB, in both sizes
STATUS_AT: Final = 14  #: in a CCB: host status, target status


class MbiStatus(IntEnum):
    """The status byte of an incoming mailbox (5-18)."""

    FREE = 0
    COMPLETED = 1
    ABORTED = 2
    NOT_FOUND = 3
    ERROR = 4


class HostStatus(IntEnum):
    """What the adapter itself has to say of a command, byte 14 of the CCB."""

    OK = 0x00
    SELECTION_TIMEOUT = 0x11
    DATA_RUN = 0x12  #: over- or underrun
    UNEXPECTED_BUS_FREE = 0x13
    PHASE_SEQUENCE = 0x14  #: the target asked for an impossible phase; the adapter resets the bus
    INVALID_MBO = 0x15  #: the outgoing mailbox's command was none of 0, 1, 2
    INVALID_OPCODE = 0x16
    INVALID_CCB = 0x1A  #: a CCB parameter, or the segment list
    TAG_REJECTED = 0x1C  #: the target knows no queue tags


class Tag(IntEnum):
    """How a tagged command may be reordered by its target (SCSI-2 5.6.7)."""

    SIMPLE = 0
    HEAD_OF_QUEUE = 1
    ORDERED = 2


@dataclass(frozen=True, slots=True)
class NeverCompletes:
    """The next command (for `target`) is never heard of again; with `ignore_abort`, not even to be aborted."""

    target: int | None = None
    ignore_abort: bool = False


@dataclass(frozen=True, slots=True)
class FailsWith:
    """The next command (for `target`) ends with this host status before any data moves."""

    status: HostStatus
    target: int | None = None


CommandFault = NeverCompletes | FailsWith


@dataclass(frozen=True, slots=True)
class Layout:
    """One of the two sizes."""

    width: int  #: bytes of a length or an address
    order: Literal["big", "little"]
    box: int  #: bytes of a mailbox
    code_at: int  #: of its action or status byte
    address_at: int  #: of its CCB address
    ccb: int  #: bytes of a CCB that are fetched at first
    most_segments: int

    @property
    def element(self) -> int:
        """Bytes of a scatter/gather element."""
        return 2 * self.width

    def number(self, raw: bytes, at: int) -> int:
        """The length or address at `at`."""
        return int.from_bytes(raw[at : at + self.width], self.order)

    def put(self, number: int) -> bytes:
        """A length or an address."""
        return number.to_bytes(self.width, self.order)

    def outgoing(self, box: bytes) -> tuple[int, int]:
        """The action and the CCB address in an outgoing mailbox."""
        return box[self.code_at], self.number(box, self.address_at)

    def incoming(self, status: MbiStatus, ccb: int, host: int, target: int) -> bytes:
        """An incoming mailbox; the short one has no room for the CCB's own statuses."""
        if self.width == 3:
            return bytes((status,)) + self.put(ccb)
        return self.put(ccb) + bytes((host, target, 0, status))


BITS_24: Final = Layout(3, "big", box=4, code_at=0, address_at=1, ccb=HEADER, most_segments=17)
BITS_32: Final = Layout(4, "little", box=8, code_at=7, address_at=0, ccb=40, most_segments=8192)


class Ccb:
    """A command control block in the adapter's own memory, made from what was fetched of it."""

    __slots__ = (
        "address", "cdb", "cdb_length", "data_length", "data_pointer", "ended", "fault", "inbound", "layout", "lun",
        "moved", "opcode", "outbound", "overrun", "phases", "segments", "sense", "sense_length", "sense_pointer",
        "started", "tag", "target",
    )  # fmt: skip

    def __init__(self, address: int, raw: bytes, layout: Layout) -> None:
        self.address, self.layout = address, layout
        self.opcode = raw[0]
        self.outbound, self.inbound = bool(raw[1] & 0x10), bool(raw[1] & 0x08)
        self.cdb_length = raw[2]
        self.sense_length = {0: 14, 1: 0}.get(raw[3], raw[3])
        self.data_length = layout.number(raw, 4)
        self.data_pointer = layout.number(raw, 4 + layout.width)
        self.tag: Tag | None = None
        if layout is BITS_24:
            self.target, self.lun = raw[1] >> 5, raw[1] & 0x07
            self.sense_pointer = address + HEADER + self.cdb_length
        else:
            self.target, self.lun = raw[16], raw[17] & 0x1F
            self.sense_pointer = layout.number(raw, 36)
            if raw[17] & 0x20:
                self.tag = Tag(min(raw[17] >> 6, Tag.ORDERED))
        self.cdb = raw[HEADER : HEADER + self.cdb_length]  # of the short one, nothing yet
        self.sense = b""
        self.segments: list[tuple[int, int]] = []
        self.phases: Phases | None = None
        self.fault: CommandFault | None = None
        self.moved = 0
        self.overrun = self.started = self.ended = False

    @property
    def alone(self) -> bool:
        """It waits for what came before it, and what comes behind waits for it."""
        return self.tag is None or self.tag is Tag.ORDERED

    @property
    def scattered(self) -> bool:
        """The data pointer is that of a segment list."""
        return self.opcode in (0x02, 0x04)

    @property
    def capacity(self) -> int:
        """How many bytes of data the host gave room for."""
        return sum(length for _, length in self.segments)

    @property
    def residual(self) -> bytes:
        """How many of them were not moved."""
        return self.layout.put(self.capacity - self.moved)

    def pieces(self, length: int) -> list[tuple[int, int]]:
        """The parts of the segments that the next `length` bytes of data use, no more than there are."""
        found, skip = [], self.moved
        for address, size in self.segments:
            if skip < size and length > 0:
                take = min(size - skip, length)
                found.append((address + skip, take))
                length -= take
            skip = max(0, skip - size)
        return found

    def set_list(self, raw: bytes) -> bool:
        """Take over a scatter/gather list; False if an element of it is empty."""
        width, step = self.layout.width, self.layout.element
        number = self.layout.number
        self.segments = [(number(raw, at + width), number(raw, at)) for at in range(0, len(raw), step)]
        return all(length for _, length in self.segments)
