"""The AHA-1542's structures, byte for byte.

Sources: Adaptec AHA-1540B/1542B manual, 5.2 (mailboxes), 5.3 (CCB); and, by page, the AHA-1740A Technical Reference
Manual, whose "standard mode" is the same interface: 5-17 (mailboxes), 5-20 (CCB), 5-28 (scatter/gather). Lengths and
addresses are three bytes, most significant first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from busdma.drivers.scsi import Outcome

MAILBOX_INIT: Final = 0x01  # an adapter command (5-1)
EXTENDED_BIOS, MAILBOX_ENABLE = 0x28, 0x29  # and two of the 1542C and later

# mailboxes (5.2.1, 5.2.2; 5-17): first all the outgoing ones, then as many incoming
MAILBOX: Final = struct.Struct(">B3s")
BOX: Final = MAILBOX.size

# the CCB (5.3; 5-20): operation, target and direction, CDB length, sense length, data length, data address,
# link address, link identifier, host status, target status, two reserved; then the CDB and, behind it, the sense data
CCB: Final = struct.Struct(">BBBB3s3s3xxBB2x")
NO_DATA, ONE_AREA, SEGMENT_LIST = 0x00, 0x03, 0x04  # operations; the latter two return the residual length
OUTBOUND, INBOUND = 0x10, 0x08
SEGMENT: Final = struct.Struct(">3s3s")
SEGMENTS_MOST: Final = 17  # 5-28; a length is 24 bits
MAX_CDB: Final = 12
SENSE_LENGTH: Final = 18

# one slot of our array: a CCB with all that belongs to it
LIST_AT: Final = 48  # 18 + 12 + 18
REPLY_AT: Final = LIST_AT + SEGMENTS_MOST * SEGMENT.size
REPLY_MOST: Final = 64
SLOT: Final = 224  # the next multiple of 32, so that no two share a cache line


def put24(number: int) -> bytes:
    """A length or an address. OverflowError beyond 24 bits."""
    return number.to_bytes(3, "big")


def write_mailbox(memory: memoryview, offset: int, action: int, address: int) -> None:
    """Fill the mailbox at `offset`, or free it; its first byte last, for it is the one the adapter looks at."""
    memory[offset + 1 : offset + 4] = put24(address)
    memory[offset] = action


def read_mailbox(memory: memoryview, offset: int) -> tuple[int, int]:
    """(action or status, CCB address) of the mailbox at `offset`."""
    code, address = MAILBOX.unpack_from(memory, offset)
    return code, int.from_bytes(address, "big")


def write_ccb(
    memory: memoryview,
    offset: int,
    *,
    target: int,
    lun: int,
    cdb: bytes,
    base: int,
    outbound: bool = False,
    segments: Iterable[tuple[int, int]] = (),
    reply: int = 0,
) -> None:
    """Write the slot at `offset`, whose bus address is `base`.

    The data are `segments`, or `reply` bytes that come to the slot's own reply area, or nothing.
    """
    operation, size, data, way = NO_DATA, 0, 0, 0
    at = LIST_AT
    for address, length in segments:
        SEGMENT.pack_into(memory, offset + at, put24(length), put24(address))
        at += SEGMENT.size
    if at > LIST_AT:  # 5-28: the length is then the list's own, in bytes
        operation, size, data, way = SEGMENT_LIST, at - LIST_AT, base + LIST_AT, OUTBOUND if outbound else INBOUND
    elif reply:
        operation, size, data, way = ONE_AREA, reply, base + REPLY_AT, INBOUND
    to = target << 5 | way | lun
    CCB.pack_into(memory, offset, operation, to, len(cdb), SENSE_LENGTH, put24(size), put24(data), 0, 0)
    area = cdb + bytes(MAX_CDB + SENSE_LENGTH - len(cdb))  # old sense data must not look like new
    memory[offset + CCB.size : offset + LIST_AT] = area


def read_outcome(memory: memoryview, offset: int) -> Outcome:
    """What the adapter wrote into the slot at `offset`."""
    operation, _, cdb_length, _, length, _, host, target = CCB.unpack_from(memory, offset)
    residual = int.from_bytes(length, "big") if operation != NO_DATA else 0
    sense, reply = offset + CCB.size + cdb_length, offset + REPLY_AT
    return Outcome(
        host,
        target,
        residual,
        bytes(memory[sense : sense + SENSE_LENGTH]),
        bytes(memory[reply : reply + REPLY_MOST]),
    )
