"""SCSI-2 as a disk driver needs it: command blocks, status and sense data in words. Pure functions, no device.

Source: ANSI X3.131-1994 (SCSI-2): 7.2.1 and 7.3 command blocks and status, 8.2.5 INQUIRY, 8.2.14 sense data, 9.2
direct-access commands. Numbers in SCSI are most significant byte first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

GOOD: Final = 0x00
CHECK_CONDITION: Final = 0x02
BUSY: Final = 0x08
QUEUE_FULL: Final = 0x28
STATUS: Final = {
    0x00: "GOOD",
    0x02: "CHECK CONDITION",
    0x04: "CONDITION MET",
    0x08: "BUSY",
    0x10: "INTERMEDIATE",
    0x14: "INTERMEDIATE-CONDITION MET",
    0x18: "RESERVATION CONFLICT",
    0x22: "COMMAND TERMINATED",
    0x28: "QUEUE FULL",
}

NO_SENSE: Final = 0x0
RECOVERED_ERROR: Final = 0x1
NOT_READY: Final = 0x2
ILLEGAL_REQUEST: Final = 0x5
UNIT_ATTENTION: Final = 0x6
ABORTED_COMMAND: Final = 0xB
SENSE_KEYS: Final = (
    "NO SENSE",
    "RECOVERED ERROR",
    "NOT READY",
    "MEDIUM ERROR",
    "HARDWARE ERROR",
    "ILLEGAL REQUEST",
    "UNIT ATTENTION",
    "DATA PROTECT",
    "BLANK CHECK",
    "VENDOR SPECIFIC",
    "COPY ABORTED",
    "ABORTED COMMAND",
    "EQUAL",
    "VOLUME OVERFLOW",
    "MISCOMPARE",
    "RESERVED",
)
#: the common ones of SCSI-2 table 71 (ASC, ASCQ)
ADDITIONAL: Final = {
    (0x00, 0x00): "no additional sense information",
    (0x03, 0x00): "peripheral device write fault",
    (0x04, 0x00): "logical unit not ready, cause not reportable",
    (0x04, 0x01): "logical unit is in process of becoming ready",
    (0x04, 0x02): "logical unit not ready, initializing command required",
    (0x04, 0x04): "logical unit not ready, format in progress",
    (0x0C, 0x00): "write error",
    (0x11, 0x00): "unrecovered read error",
    (0x14, 0x00): "recorded entity not found",
    (0x15, 0x00): "random positioning error",
    (0x17, 0x00): "recovered data with no error correction applied",
    (0x1A, 0x00): "parameter list length error",
    (0x20, 0x00): "invalid command operation code",
    (0x21, 0x00): "logical block address out of range",
    (0x24, 0x00): "invalid field in CDB",
    (0x25, 0x00): "logical unit not supported",
    (0x27, 0x00): "write protected",
    (0x28, 0x00): "not ready to ready transition, medium may have changed",
    (0x29, 0x00): "power on, reset, or bus device reset occurred",
    (0x2A, 0x00): "parameters changed",
    (0x2F, 0x00): "commands cleared by another initiator",
    (0x3A, 0x00): "medium not present",
    (0x44, 0x00): "internal target failure",
    (0x45, 0x00): "select or reselect failure",
    (0x47, 0x00): "SCSI parity error",
    (0x48, 0x00): "initiator detected error message received",
    (0x4E, 0x00): "overlapped commands attempted",
}
DIRECT_ACCESS: Final = 0x00  #: the peripheral device type of a disk (SCSI-2 table 47)

COMMANDS: Final = {
    0x00: "TEST UNIT READY",
    0x03: "REQUEST SENSE",
    0x12: "INQUIRY",
    0x25: "READ CAPACITY",
    0x28: "READ(10)",
    0x2A: "WRITE(10)",
    0x35: "SYNCHRONIZE CACHE",
}
_GROUP_1: Final = struct.Struct(">BBIBHB")  # operation code, LUN and flags, block, reserved, blocks, control
_GROUP_0: Final = struct.Struct(">BBHBB")


def test_unit_ready() -> bytes:
    """TEST UNIT READY (8.2.16)."""
    return bytes(6)


def inquiry(length: int) -> bytes:
    """INQUIRY (8.2.5) for `length` bytes of standard data, at most 255."""
    return _GROUP_0.pack(0x12, 0, 0, length, 0)


def read_capacity() -> bytes:
    """READ CAPACITY (9.2.7)."""
    return _GROUP_1.pack(0x25, 0, 0, 0, 0, 0)


def read10(lba: int, blocks: int) -> bytes:
    """READ(10) (9.2.6). struct.error beyond 2**32 and 2**16."""
    return _GROUP_1.pack(0x28, 0, lba, 0, blocks, 0)


def write10(lba: int, blocks: int) -> bytes:
    """WRITE(10) (9.2.20)."""
    return _GROUP_1.pack(0x2A, 0, lba, 0, blocks, 0)


def synchronize_cache() -> bytes:
    """SYNCHRONIZE CACHE (9.2.18) of every block."""
    return _GROUP_1.pack(0x35, 0, 0, 0, 0, 0)


def parse_capacity(data: bytes) -> tuple[int, int]:
    """(blocks, bytes in a block) of READ CAPACITY's eight bytes, which name the *last* block."""
    last, size = struct.unpack_from(">II", data)
    return last + 1, size


def name_command(cdb: bytes) -> str:
    """A command block for a message: its name and its bytes."""
    return f"{COMMANDS.get(cdb[0], 'command')} [{cdb.hex(' ')}]"


def name_status(status: int) -> str:
    """A target status for a message."""
    return STATUS.get(status, f"status {status:#04x}")


class Outcome(NamedTuple):
    """How a command ended."""

    host_status: int  #: the controller's own code, 0 where it has no complaint
    target_status: int
    residual: int  #: bytes of the data that were not moved
    sense: bytes
    reply: bytes = b""


@dataclass(frozen=True, slots=True)
class Sense:
    """Decoded sense data."""

    key: int
    asc: int = 0
    ascq: int = 0
    block: int | None = None  #: the information field, where it is valid: for a disk, the block in error

    def __str__(self) -> str:
        code = f"{self.asc:02x}/{self.ascq:02x}"
        more = ADDITIONAL.get((self.asc, self.ascq), "additional sense")
        where = "" if self.block is None else f", block {self.block}"
        return f"{SENSE_KEYS[self.key]}, {more} ({code}){where}"


def parse_sense(data: bytes) -> Sense | None:
    """Sense data in the fixed format (8.2.14), which may have been cut short; None if it is not in that format."""
    if len(data) < 3 or data[0] & 0x7E != 0x70:
        return None
    block = int.from_bytes(data[3:7], "big") if data[0] & 0x80 and len(data) >= 7 else None
    present = data[: 8 + data[7]] if len(data) > 7 else data
    asc = present[12] if len(present) > 12 else 0
    ascq = present[13] if len(present) > 13 else 0
    return Sense(data[2] & 0x0F, asc, ascq, block)
