"""A linear virtual address space, of the kernel or of a process, over scattered page frames.

Its page table is what a load reads: one entry a page, the frame's physical address or ABSENT. Between any two
allocations lies a page that is never mapped, so that a length gone wrong faults instead of reaching a neighbour.

Released memory must not be mistaken for live memory: every view of it is dead, its frames are filled with POISON, and
none of it can be released while a map has it loaded.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from typing import Final, Literal, TypedDict

from busdma.addresses import AddressSet
from busdma.buffers import Allocation, LinearBuffer
from busdma.errors import BufferGone, ConstraintError, DriverError, ResourceShortage, ShortageReason
from busdma.machine.frames import FrameAllocator
from busdma.segments import ABSENT, Frames

POISON: Final = 0xDB  #: what released memory is filled with, so that a late DMA or a stale read shows


class SpaceStatistics(TypedDict):
    """`pages` is the space's size, guard pages included; `mapped` of them have a frame now."""

    pages: int
    mapped: int
    allocations: int


def _never(_: LinearBuffer) -> str | None:
    return None


class AddressSpace:
    """The space `name` of `pages` virtual pages from address `base` on. Any thread may call.

    `memory` is all RAM as unsigned bytes; its first byte has the physical address ``frames.base``. The page size is
    that of `frames`. ``in_use`` is asked before anything is released: it describes a map that has part of the buffer
    loaded, or answers None.
    """

    def __init__(
        self,
        name: str,
        memory: memoryview,
        frames: FrameAllocator,
        *,
        pages: int,
        base: int = 0x10000,
        owner: Literal["kernel", "process"] = "kernel",
    ) -> None:
        size = frames.page_size
        if pages < 2 or base < 0 or base % size:
            raise ConstraintError(
                f"space {name!r}, {pages} pages from {base:#x} on: give two or more, and an aligned base"
            )
        if memory.format != "B" or memory.ndim != 1 or memory.readonly or len(memory) < frames.pages * size:
            raise ConstraintError(
                f"space {name!r}: memory must be a writable view of bytes, {frames.pages * size} or more"
            )
        self.name = name
        self.owner: str = owner
        self.base = base
        self.page_size = size
        self.memory = memory
        self.memory_base = frames.base
        self.page_table = array("Q", [ABSENT]) * pages
        self.frames = Frames(self.page_table)
        self.in_use: Callable[[LinearBuffer], str | None] = _never
        self._allocator = frames
        self._taken = bytearray(pages)  # 1: in an allocation, or the guard page behind one
        self._live: dict[int, Allocation] = {}  # by first page
        self._gone = ""
        self._lock = threading.Lock()

    def allocate(
        self, length: int, *, offset: int = 0, within: AddressSet | None = None, contiguous: bool = False
    ) -> LinearBuffer:
        """A fresh, zeroed buffer of `length` bytes that begins `offset` bytes into its first page.

        Its frames are scattered, or one run if `contiguous`, and lie within the physical addresses `within`. Errors:
        ConstraintError, ResourceShortage (of frames, or of virtual addresses), BufferGone (the process was freed).
        """
        if length < 1:
            raise ConstraintError(f"a buffer of {length} bytes: ask for at least one")
        if not 0 <= offset < self.page_size:
            raise ConstraintError(f"offset {offset}: a buffer begins in its first page, of {self.page_size} bytes")
        pages = -(-(offset + length) // self.page_size)
        if pages >= len(self._taken):
            raise ResourceShortage(
                f"space {self.name!r} has {len(self._taken)} pages: {pages} and a guard page never fit",
                ShortageReason.TOO_LARGE,
            )
        if self._gone:
            raise BufferGone(f"no buffer from space {self.name!r}: {self._gone}")
        if contiguous:
            first = self._allocator.allocate_run(pages, self.owner, within=within)
            found = array("Q", range(first, first + pages * self.page_size, self.page_size))
        else:
            found = self._allocator.allocate(pages, self.owner, within)
        self._paint(found, 0)
        try:
            with self._lock:
                return self._map(found, offset, length)
        except BaseException:
            self._allocator.free(found)
            raise

    @property
    def destroyed(self) -> bool:
        """True once the process was freed."""
        return bool(self._gone)

    def free(self, buffer: LinearBuffer) -> None:
        """Release a whole allocation; its views die with it.

        DriverError: a part only, another space's buffer, or a map has some of it loaded. BufferGone: released before.
        """
        allocation = buffer.allocation
        if allocation.space is not self:
            raise DriverError(f"{buffer.describe()} is not of space {self.name!r}: free it where it was allocated")
        if allocation.gone:
            raise BufferGone(f"{buffer.describe()} was freed before: {allocation.gone}")
        if buffer.start != allocation.start or buffer.length != allocation.length:
            raise DriverError(
                f"{buffer.describe()} is a view: free the whole allocation of {allocation.length} bytes at "
                f"{self.base + allocation.start:#010x}"
            )
        self._refuse_if_loaded(buffer)
        with self._lock:
            if allocation.gone:
                raise BufferGone(f"{buffer.describe()} was freed before: {allocation.gone}")
            self._release(allocation, "it was released")

    def destroy(self) -> None:
        """Free the process: all its buffers are gone. DriverError, and nothing is freed, while a map has one loaded."""
        if self.owner == "kernel":
            raise DriverError(f"space {self.name!r} is the kernel's: it lives as long as its machine")
        if self._gone:
            raise BufferGone(f"space {self.name!r}: {self._gone}")
        for allocation in tuple(self._live.values()):
            self._refuse_if_loaded(LinearBuffer(allocation, allocation.start, allocation.length))
        with self._lock:
            self._gone = f"its process {self.name!r} was freed"
            for allocation in tuple(self._live.values()):
                self._release(allocation, self._gone)

    def forget(self, reason: str) -> None:
        """The machine is off, and its memory: every buffer is gone, loaded or not, and there will be no other."""
        with self._lock:
            self._gone = self._gone or reason
            for allocation in tuple(self._live.values()):
                allocation.end(reason)
            self._live.clear()

    def statistics(self) -> SpaceStatistics:
        """Pages and allocations, now."""
        with self._lock:
            mapped = len(self.page_table) - self.page_table.count(ABSENT)
            return {"pages": len(self.page_table), "mapped": mapped, "allocations": len(self._live)}

    def _map(self, found: array[int], offset: int, length: int) -> LinearBuffer:
        if self._gone:
            raise BufferGone(f"no buffer from space {self.name!r}: {self._gone}")
        pages = len(found)
        first = self._taken.find(bytes(pages + 1))  # first fit, with its guard page
        if first < 0:
            free = self._taken.count(0)
            raise ResourceShortage(
                f"no {pages} virtual pages and a guard page in one piece in space {self.name!r}, {free} are free: free "
                "a buffer, or make the space larger",
                ShortageReason.FRAGMENTED if free > pages else ShortageReason.BUSY,
            )
        self._taken[first : first + pages + 1] = b"\1" * (pages + 1)
        self.page_table[first : first + pages] = found
        start = first * self.page_size + offset
        allocation = self._live[first] = Allocation(self, start, length)
        return LinearBuffer(allocation, start, length)

    def _release(self, allocation: Allocation, reason: str) -> None:
        allocation.end(reason)
        first = allocation.start // self.page_size
        pages = (allocation.start + allocation.length - 1) // self.page_size - first + 1
        found = self.page_table[first : first + pages]
        self.page_table[first : first + pages] = array("Q", [ABSENT]) * pages
        self._taken[first : first + pages + 1] = bytes(pages + 1)
        del self._live[first]
        self._paint(found, POISON)
        self._allocator.free(found)

    def _refuse_if_loaded(self, buffer: LinearBuffer) -> None:
        holder = self.in_use(buffer)
        if holder is not None:
            raise DriverError(f"{buffer.describe()} cannot be freed: {holder} has it loaded; unload it first")

    def _paint(self, found: array[int], byte: int) -> None:
        paint = bytes((byte,)) * self.page_size
        for frame in found:
            at = frame - self.memory_base
            self.memory[at : at + self.page_size] = paint
