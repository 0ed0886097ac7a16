"""The registers and structures of NVM Express, byte for byte.

Source: NVM Express Base Specification 1.4, by section.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

# registers (3.1)
CAP, VS, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x00, 0x08, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
MASK_PIN, UNMASK_PIN, EVERY_VECTOR = 0x0C, 0x10, 0xFFFFFFFF  # INTMS, INTMC: a bit a vector, which all are one pin
ENABLE: Final = 0x00460001  # CC: entries of 64 and 16 bytes, 4 KiB pages, the NVM command set, enabled (3.1.5)
SHUT_DOWN: Final = 1 << 14  # CC.SHN: a normal shutdown
READY, FATAL, SHUTDOWN_STATUS, SHUT = 1 << 0, 1 << 1, 3 << 2, 2 << 2  # CSTS (3.1.6)
GONE: Final = 0xFFFFFFFF  # what a register reads when nobody answers

PAGE: Final = 4096  #: CC.MPS = 0
SQ_ENTRY: Final = 64
CQ_ENTRY: Final = 16
PHASE_BYTE: Final = 14  #: of a completion: bit 0 is the phase tag

# admin commands (5)
CREATE_SQ, CREATE_CQ, IDENTIFY, ABORT, SET_FEATURES, DOORBELL_BUFFERS = 0x01, 0x05, 0x06, 0x08, 0x09, 0x7C
SHADOW_DOORBELLS: Final = 1 << 8  #: OACS: the controller has Doorbell Buffer Config (figure 247)
NAMESPACE, CONTROLLER, ACTIVE_NAMESPACES = 0, 1, 2  # what to identify (5.15)
QUEUES_FEATURE: Final = 0x07
CONTIGUOUS, INTERRUPTS = 1, 2  # of a new queue (5.3, 5.4)
# NVM commands (6)
FLUSH, WRITE, READ = 0x00, 0x01, 0x02

_WORDS: Final = 6
_COMMANDS: Final = [  # 4.2, figure 105; by the number of dwords from 10 on that are not 0
    struct.Struct(f"<BxHI16xQQ{count}I{4 * (_WORDS - count)}x") for count in range(_WORDS + 1)
]
_COMPLETION: Final = struct.Struct("<I4xHHHH")  # 4.6
_REQUEST: Final = struct.Struct("<BQH")

DO_NOT_RETRY: Final = 0x4000  # 4.6.1
ABORTED: Final = 0x007
STATUS: Final = {  # type and code (4.6.1.2)
    0x001: "invalid command opcode",
    0x002: "invalid field in command",
    0x003: "command id conflict",
    0x004: "data transfer error",
    0x006: "internal error",
    0x007: "command abort requested",
    0x008: "command aborted: its queue was deleted",
    0x00B: "invalid namespace or format",
    0x00C: "command sequence error",
    0x013: "PRP offset invalid",
    0x020: "namespace is write protected",
    0x080: "LBA out of range",
    0x082: "namespace not ready",
    0x100: "completion queue invalid",
    0x101: "invalid queue identifier",
    0x102: "invalid queue size",
    0x108: "invalid interrupt vector",
    0x280: "write fault",
    0x281: "unrecovered read error",
}


class Completion(NamedTuple):
    """A completion queue entry (4.6). `status`: type and code, and DO_NOT_RETRY."""

    result: int
    sq_head: int
    sq_id: int
    id: int
    status: int
    phase: int


_made: Final = tuple.__new__  # what a named tuple's own does, without a call from Python


def write_command(
    memory: memoryview, at: int, opcode: int, id: int, nsid: int, prp1: int, prp2: int, words: Sequence[int]
) -> None:
    """Write a submission queue entry (4.2). `words`: command dwords 10 and on, six at most."""
    _COMMANDS[len(words)].pack_into(memory, at, opcode, id, nsid, prp1, prp2, *words)


def read_completion(memory: memoryview, at: int) -> Completion:
    """The completion queue entry at `at`."""
    result, sq_head, sq_id, id, word = _COMPLETION.unpack_from(memory, at)
    return _made(Completion, (result, sq_head, sq_id, id, word >> 1 & 0x47FF, word & 1))


def request(opcode: int, lba: int = 0, count: int = 0) -> bytes:
    """An NVM command as the driver's queues keep it."""
    return _REQUEST.pack(opcode, lba, max(count - 1, 0))


def parse_request(command: bytes) -> tuple[int, tuple[int, ...]]:
    """(opcode, command dwords 10 to 12) of a `request` (6.9, 6.15)."""
    opcode, lba, count = _REQUEST.unpack(command)
    return opcode, (lba & 0xFFFFFFFF, lba >> 32, count)


def name_request(command: bytes) -> str:
    """For messages: ``Read of blocks 8..15``."""
    opcode, lba, count = _REQUEST.unpack(command)
    return "Flush" if opcode == FLUSH else f"{'Read' if opcode == READ else 'Write'} of blocks {lba}..{lba + count}"


def name_status(status: int) -> str:
    """The status in words, with its type and code."""
    code = status & 0x7FF
    return f"{STATUS.get(code, 'an unknown status')} ({code >> 8:x}/{code & 0xFF:02x})"


def parse_controller(data: bytes) -> tuple[int, int]:
    """(bytes that one command may move, 0: any number; namespaces) of Identify Controller (figure 247)."""
    return (PAGE << data[77] if data[77] else 0), int.from_bytes(data[516:520], "little")


def offers_shadow_doorbells(data: bytes) -> bool:
    """Does this Identify Controller say so (figure 247)?"""
    return bool(int.from_bytes(data[256:258], "little") & SHADOW_DOORBELLS)


def parse_namespace(data: bytes) -> tuple[int, int, int]:
    """(blocks, bytes in each, metadata bytes beside each) of Identify Namespace (figure 245)."""
    at = 128 + 4 * (data[26] & 0x0F)  # the format in use
    metadata, shift = struct.unpack_from("<HB", data, at)
    return int.from_bytes(data[:8], "little"), 1 << shift, metadata
