"""SCSI messages, as far as an initiator of untagged, asynchronous commands meets them (SCSI-2 6.6)."""

from __future__ import annotations

from typing import Final

COMMAND_COMPLETE, EXTENDED, SAVE_DATA_POINTER, RESTORE_POINTERS, DISCONNECT = 0x00, 0x01, 0x02, 0x03, 0x04
DETECTED_ERROR, ABORT, MESSAGE_REJECT, NO_OPERATION, MESSAGE_PARITY_ERROR = 0x05, 0x06, 0x07, 0x08, 0x09
IDENTIFY: Final = 0x80  #: with the logical unit in its low three bits
DISCONNECT_ALLOWED: Final = 0x40  #: in an IDENTIFY


def identify(lun: int) -> bytes:
    """IDENTIFY for `lun`, which may disconnect (6.6.7)."""
    return bytes((IDENTIFY | DISCONNECT_ALLOWED | lun,))


def length(begun: bytes) -> int:
    """How many bytes the message has that begins with `begun`, as far as those tell (6.6, 6.6.2)."""
    if begun[0] == EXTENDED:
        return 2 if len(begun) < 2 else 2 + (begun[1] or 256)
    return 2 if 0x20 <= begun[0] <= 0x2F else 1
