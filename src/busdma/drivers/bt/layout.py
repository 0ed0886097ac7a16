"""The structures of BusLogic's 32-bit mode, byte for byte. Numbers are least significant byte first.

Source: BusLogic MultiMaster Technical Reference Manual, chapter 1: mailboxes, command control block, data segment list,
and the commands 81h to 8Fh.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from busdma.drivers.scsi import Outcome

# adapter commands
MAILBOX_INIT_32: Final = 0x81
FIRMWARE_DIGIT, FIRMWARE_LETTER, MODEL, EXTENDED_SETUP, STRICT_ROUND_ROBIN = 0x84, 0x85, 0x8B, 0x8D, 0x8F

# mailboxes: first all the outgoing ones, then as many incoming. CCB address, host and target status (incoming only),
# reserved, action or status
MAILBOX: Final = struct.Struct("<IBBxB")
BOX: Final = MAILBOX.size
CODE_AT: Final = 7

# the CCB: operation, direction, CDB length, sense length, data length, data address, two reserved, host status, target
# status, target, LUN and tag, CDB, six reserved, sense address
CCB: Final = struct.Struct("<BBBBII2xBBBB12s6xI")
NO_DATA, ONE_AREA, SEGMENT_LIST = 0x00, 0x03, 0x04  # operations; the latter two return the residual length
OUTBOUND, INBOUND = 0x10, 0x08
TAGGED: Final = 0x20  # beside the LUN
SIMPLE, HEAD_OF_QUEUE, ORDERED = 0, 1, 2  # above it
SEGMENT: Final = struct.Struct("<II")  # length, address
SEGMENTS_MOST: Final = 33  # of 8192: enough for a buffer of 32 pages that begins anywhere in a page
SENSE_LENGTH: Final = 18

# one slot of our array: a CCB with all that belongs to it
LIST_AT: Final = CCB.size
SENSE_AT: Final = LIST_AT + SEGMENTS_MOST * SEGMENT.size
REPLY_AT: Final = SENSE_AT + 24
REPLY_MOST: Final = 64
SLOT: Final = 416  # the next multiple of 32, so that no two share a cache line

#: what BusLogic's adapters say besides `busdma.drivers.mailbox_host.HOST_STATUS`
HOST_STATUS: Final = {
    0x0C: "data underrun",
    0x1C: "tagged queuing message rejected",
    0x1D: "unsupported message received",
    0x20: "host adapter hardware failed",
    0x21: "target failed to respond to attention",
    0x22: "host adapter reset the bus",
    0x23: "another device reset the bus",
    0x24: "target reconnected improperly",
    0x25: "host adapter reset the device",
    0x26: "abort queue generated",
    0x27: "host adapter software error",
    0x30: "SCSI parity error",
}


class Setup(NamedTuple):
    """What the driver wants of Inquire Extended Setup Information."""

    bios: int  #: address of the adapter's ROM; 0: none
    most_segments: int


def write_mailbox(memory: memoryview, offset: int, action: int, address: int) -> None:
    """Fill the mailbox at `offset`, or free it; its last byte last, for it is the one the adapter looks at."""
    memory[offset : offset + CODE_AT] = address.to_bytes(4, "little") + bytes(CODE_AT - 4)
    memory[offset + CODE_AT] = action


def read_mailbox(memory: memoryview, offset: int) -> tuple[int, int]:
    """(action or status, CCB address) of the mailbox at `offset`."""
    address, _, _, code = MAILBOX.unpack_from(memory, offset)
    return code, address


def write_ccb(
    memory: memoryview,
    offset: int,
    *,
    target: int,
    lun: int,
    tag: int | None,
    cdb: bytes,
    base: int,
    outbound: bool = False,
    segments: Iterable[tuple[int, int]] = (),
    reply: int = 0,
) -> None:
    """Write the slot at `offset`, whose bus address is `base`. `tag`: None, or the kind of its queue tag.

    The data are `segments`, or `reply` bytes that come to the slot's own reply area, or nothing.
    """
    operation, size, data, way = NO_DATA, 0, 0, 0
    at = LIST_AT
    for address, length in segments:
        SEGMENT.pack_into(memory, offset + at, length, address)
        at += SEGMENT.size
    if at > LIST_AT:  # the length is then the list's own, in bytes
        operation, size, data, way = SEGMENT_LIST, at - LIST_AT, base + LIST_AT, OUTBOUND if outbound else INBOUND
    elif reply:
        operation, size, data, way = ONE_AREA, reply, base + REPLY_AT, INBOUND
    unit = lun if tag is None else lun | TAGGED | tag << 6
    sense = base + SENSE_AT
    CCB.pack_into(memory, offset, operation, way, len(cdb), SENSE_LENGTH, size, data, 0, 0, target, unit, cdb, sense)
    memory[offset + SENSE_AT : offset + SENSE_AT + SENSE_LENGTH] = bytes(SENSE_LENGTH)  # old data must not look new


def read_outcome(memory: memoryview, offset: int) -> Outcome:
    """What the adapter wrote into the slot at `offset`."""
    operation, _, _, _, length, _, host, target, _, _, _, _ = CCB.unpack_from(memory, offset)
    sense, reply = offset + SENSE_AT, offset + REPLY_AT
    return Outcome(
        host,
        target,
        length if operation != NO_DATA else 0,
        bytes(memory[sense : sense + SENSE_LENGTH]),
        bytes(memory[reply : reply + REPLY_MOST]),
    )


def parse_setup(reply: bytes) -> Setup:
    """The start of Inquire Extended Setup Information: bus type, BIOS page, segments."""
    _, page, segments = struct.unpack_from("<BBH", reply)
    return Setup(page << 12, segments)
