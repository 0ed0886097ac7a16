"""What an NVMe controller and its host share in memory: queues of commands and completions, and PRPs.

A queue is a ring. Its producer writes at the tail, its consumer reads at the head; who produces says so at a doorbell.
Nobody writes the head of a completion queue back to memory: each completion carries a phase bit, inverted at every
round, and so the host sees which entries are new.

A PRP names a physical page. Only the first of a command may begin inside its page, at a multiple of 4 bytes; the others
begin a page, and all but the last are whole pages. Here that is checked, and refused.

Source: NVM Express Base Specification 1.4, 4.1 (queues), 4.2 (submission entry), 4.3 (PRPs), 4.6 (completion entry).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Final

PAGE: Final = 4096  #: the memory page, CC.MPS = 0
SQ_ENTRY: Final = 64
CQ_ENTRY: Final = 16

# figures 104, 105: opcode, flags, identifier; namespace; 8 unused; metadata; PRP 1, PRP 2; dwords 10 to 15
_COMMAND: Final = struct.Struct("<BBHI16xQQ6I")
_COMPLETION: Final = struct.Struct("<IIHHHH")  # result; unused; SQ head, SQ id; command id, status and phase


class Status(IntEnum):
    """Status code type and status code of a completion, ``type << 8 | code`` (4.6.1)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    ID_CONFLICT = 0x003
    TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    SQ_DELETED = 0x008
    INVALID_NAMESPACE = 0x00B
    SEQUENCE_ERROR = 0x00C
    PRP_OFFSET_INVALID = 0x013
    WRITE_PROTECTED = 0x020
    LBA_OUT_OF_RANGE = 0x080
    NAMESPACE_NOT_READY = 0x082
    CQ_INVALID = 0x100
    QUEUE_ID_INVALID = 0x101
    QUEUE_SIZE_INVALID = 0x102
    VECTOR_INVALID = 0x108
    QUEUE_DELETION_INVALID = 0x10C
    WRITE_FAULT = 0x280
    UNRECOVERED_READ = 0x281


#: "do not retry" is set for everything else: the same command would fail again
MAY_RETRY: Final = frozenset(
    {Status.SUCCESS, Status.INTERNAL_ERROR, Status.ABORT_REQUESTED, Status.SQ_DELETED, Status.NAMESPACE_NOT_READY}
)
_DO_NOT_RETRY: Final = 1 << 14


class RefusedError(Exception):
    """The command ends with this status."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class CompletionQueue:
    """A completion queue of `entries`, at bus address `base`. `vector`: of its interrupts; None: it makes none."""

    __slots__ = ("base", "entries", "head", "id", "phase", "tail", "vector", "waiting")

    def __init__(self, id: int, base: int, entries: int, vector: int | None) -> None:
        self.id, self.base, self.entries, self.vector = id, base, entries, vector
        self.head = self.tail = 0
        self.phase = 1
        self.waiting: deque[tuple[Command, Status, int]] = deque()  #: for room

    @property
    def full(self) -> bool:
        """One entry always stays empty, or full would look like empty (4.1)."""
        return (self.tail + 1) % self.entries == self.head

    def move_head(self, value: int) -> bool:
        """The host has taken the entries before `value`. False: it cannot have."""
        if value >= self.entries or (value - self.head) % self.entries > (self.tail - self.head) % self.entries:
            return False
        self.head = value
        return True

    def put(self, write: Callable[[int, bytes], None], command: Command, status: Status, result: int) -> None:
        """Write one completion at the tail: all of it at once, phase included."""
        word = status if status in MAY_RETRY else status | _DO_NOT_RETRY
        sq = command.queue
        entry = _COMPLETION.pack(result, 0, sq.head, sq.id, command.id, word << 1 | self.phase)
        write(self.base + CQ_ENTRY * self.tail, entry)
        self.tail += 1
        if self.tail == self.entries:
            self.tail, self.phase = 0, self.phase ^ 1


class SubmissionQueue:
    """A submission queue of `entries`, at bus address `base`, whose commands complete in `completions`."""

    __slots__ = ("base", "completions", "entries", "fetching", "head", "id", "tail")

    def __init__(self, id: int, base: int, entries: int, completions: CompletionQueue) -> None:
        self.id, self.base, self.entries, self.completions = id, base, entries, completions
        self.head = self.tail = 0
        self.fetching = False  #: the controller is about to look

    def move_tail(self, value: int) -> bool:
        """The host has filled the entries before `value`. False: there is no such entry."""
        if value >= self.entries:
            return False
        self.tail = value
        return True

    def fetch(self, read: Callable[[int, int], bytes]) -> list[Command]:
        """The commands from head to tail, or to the end of the ring: one access."""
        count = (self.tail if self.tail >= self.head else self.entries) - self.head
        raw = read(self.base + SQ_ENTRY * self.head, SQ_ENTRY * count)
        self.head = (self.head + count) % self.entries
        return [Command(self, raw, at) for at in range(0, len(raw), SQ_ENTRY)]


class Command:
    """A command as the controller has fetched it. `words`: command dwords 10 to 15."""

    __slots__ = ("ended", "flags", "id", "ignores_abort", "namespace", "opcode", "prp1", "prp2", "queue", "words")

    def __init__(self, queue: SubmissionQueue, raw: bytes, at: int) -> None:
        fields = _COMMAND.unpack_from(raw, at)
        self.opcode, self.flags, self.id, self.namespace, self.prp1, self.prp2 = fields[:6]
        self.words = fields[6:]
        self.queue = queue
        self.ended = False
        self.ignores_abort = False


def walk(read: Callable[[int, int], bytes], prp1: int, prp2: int, length: int) -> list[tuple[int, int]]:
    """The (bus address, bytes) that the two PRPs of a command of `length` bytes name (4.3, 4.2.1).

    Lists are fetched with `read`. RefusedError with PRP_OFFSET_INVALID for what may not be.
    """
    require(prp1 % 4 == 0, Status.PRP_OFFSET_INVALID)
    first = min(length, PAGE - prp1 % PAGE)
    pieces = [(prp1, first)]
    left = length - first
    if 0 < left <= PAGE:  # PRP 2 is a page too
        require(prp2 % PAGE == 0, Status.PRP_OFFSET_INVALID)
        return [*pieces, (prp2, left)]
    at = prp2
    require(left == 0 or at % 8 == 0, Status.PRP_OFFSET_INVALID)  # PRP 2 is a list, which may begin inside a page
    while left:
        wanted, room = -(-left // PAGE), (PAGE - at % PAGE) // 8
        chained = wanted > room  # then the last entry of the list's page names its next page
        count = min(wanted, room)
        entries = struct.unpack(f"<{count}Q", read(at, 8 * count))
        for entry in entries[:-1] if chained else entries:
            require(entry % PAGE == 0, Status.PRP_OFFSET_INVALID)
            pieces.append((entry, min(left, PAGE)))
            left -= min(left, PAGE)
        if chained:
            at = entries[-1]
            require(at % PAGE == 0, Status.PRP_OFFSET_INVALID)
    return pieces


def require(allowed: bool, status: Status) -> None:
    """RefusedError with `status` unless `allowed`."""
    if not allowed:
        raise RefusedError(status)
