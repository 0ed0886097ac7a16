"""Any buffer as pieces: bytes within one page frame, or one stretch of memory that the machine does not know.

Source: bus_dma(9): a load takes linear buffers, mbuf chains, uios and raw segments, and makes one list of segments.
"""

from __future__ import annotations

from dataclasses import dataclass

from busdma.buffers import Buffer, LinearBuffer
from busdma.errors import BufferGone, DriverError
from busdma.lists import linear_parts
from busdma.mechanisms.ground import Ground
from busdma.segments import ABSENT, FOREIGN


@dataclass(slots=True)
class Piece:
    """Some bytes of a buffer, adjacent in memory."""

    address: int  #: physical, of the first byte; FOREIGN if the machine does not know this memory
    size: int
    memory: memoryview  #: where the CPU has the bytes
    origin: int  #: of the first byte in `memory`
    uncached: bool = False  #: the CPU sees it past its caches
    private: bool = False  #: nobody else has anything in its cache lines

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.address + self.size


def pieces_of(buffer: Buffer, ground: Ground) -> list[Piece]:
    """All bytes of `buffer`, in order.

    BufferGone: a page of it is not mapped. DriverError: a page frame of it does not exist, or is another machine's.
    """
    found: list[Piece] = []
    for part in linear_parts(buffer):
        if part.host is not None:
            found.append(Piece(FOREIGN, part.length, part.host, part.start))
        else:
            _walk(part, ground, found)
    return found


def _walk(part: Buffer, ground: Ground, found: list[Piece]) -> None:
    ground.check_home(part)
    page = ground.page_size
    uncached = getattr(part, "uncached", False)
    private = getattr(part, "private", False)
    if isinstance(part, LinearBuffer):
        part.space.page_in(part.start, part.length)
        uncached = ground.uncached is not None and part.allocation.memory is ground.uncached
    memory = ground.uncached if uncached and ground.uncached is not None else ground.memory
    table, base = part.frames.table, ground.base
    index, head = divmod(part.start, page)
    left, top = part.length, len(memory)
    while left:
        size = min(page - head, left)
        frame = table[index] if index < len(table) else ABSENT
        if frame == ABSENT and isinstance(part, LinearBuffer) and not part.gone:
            part.space.page_in(part.start, part.length)  # it was taken before this load was known
            frame = table[index]
        if frame == ABSENT:
            gone = getattr(part, "gone", "")
            absent = f"its page {index - part.start // page} is not mapped; give memory that is"
            raise BufferGone(f"cannot load {part.describe()}: {f'{gone}; allocate another' if gone else absent}")
        if not 0 <= frame - base <= top - page:
            raise DriverError(
                f"cannot load {part.describe()}: this machine has no page frame {frame:#x}; give page frames of its own"
            )
        found.append(Piece(frame + head, size, memory, frame + head - base, uncached, private))
        left, head, index = left - size, 0, index + 1
