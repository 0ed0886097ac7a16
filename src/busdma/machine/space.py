"""A linear virtual address space, of the kernel or of a process, over scattered page frames.

Its page table is what a load reads: one entry a page, the frame's physical address or ABSENT. Between any two
allocations lies a page that is never mapped, so that a length gone wrong faults instead of reaching a neighbour.

Released memory must not be mistaken for live memory: every view of it is dead, its frames are filled with POISON, and
none of it can be released while a map has it loaded.

The pages of a process can be paged out: the frame goes, the contents wait aside, and the entry is ABSENT until the next
access or load brings the page back into another frame. What a map has loaded is wired, and so is the kernel's memory.

Frames of a device, which a process maps through its device pager, are only shown here: they are never paged out, and
outlive the mapping.

Source: Thorpe, USENIX 1998, "Data buffer structures" and "DMA-safe memory handling" (user processes, device pager).
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable
from typing import Final, Literal, TypedDict

from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.buffers import Allocation, LinearBuffer
from busdma.errors import BufferGone, ConstraintError, DriverError, ResourceShortage, ShortageReason
from busdma.machine.frames import FrameAllocator
from busdma.segments import ABSENT, Frames
from busdma.tracebacks import hidden

__tracebackhide__ = hidden

POISON: Final = 0xDB  #: what released memory is filled with, so that a late DMA or a stale read shows


class SpaceStatistics(TypedDict):
    """`pages` is the space's size, guard pages included. `resident` of them have a frame now, `paged_out` had one and
    will have one again; `page_ins` counts how often that has happened."""

    pages: int
    resident: int
    paged_out: int
    page_ins: int
    allocations: int


def _never(_: object) -> None:
    return None


class AddressSpace:
    """The space `name` of `pages` virtual pages from address `base` on. Any thread may call.

    `memory` is all RAM as unsigned bytes; its first byte has the physical address ``frames.base``. The page size is
    that of `frames`. ``in_use`` is asked before anything is released or paged out: it describes a map that has part of
    the buffer loaded, or answers None.
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
        self.frames = Frames(self.page_table, frames)
        self.allocator: Final = frames  #: whose page frames are mapped here
        self.in_use: Callable[[LinearBuffer], str | None] = _never
        self.refused: Callable[[DriverError], object] = _never  #: told of what was to be freed while it is loaded
        self._taken = bytearray(pages)  # 1: in an allocation, or the guard page behind one
        self._live: dict[int, Allocation] = {}  # by first page
        self._order: list[int] = []  # the first pages, ascending
        self._shown: set[int] = set()  # the first pages of those that show a device's frames
        self._aside: dict[int, bytes] = {}  # contents of the pages that are paged out
        self._page_ins = 0
        self._gone = ""
        self._lock = threading.Lock()

    # -- memory of its own --------------------------------------------------------------------------------------------

    def allocate(
        self, length: int, *, offset: int = 0, within: AddressSet | None = None, contiguous: bool = False
    ) -> LinearBuffer:
        """A fresh, zeroed buffer of `length` bytes that begins `offset` bytes into its first page.

        Its frames are scattered, or one run if `contiguous`, and lie within the physical addresses `within`; asked for
        like that, they are never paged out. Errors: ConstraintError, ResourceShortage (of frames, or of virtual
        addresses), BufferGone (the process was freed).
        """
        pages = self._pages_for(offset, length)
        if contiguous:
            first = self.allocator.allocate_run(pages, self.owner, within=within)
            found = array("Q", range(first, first + pages * self.page_size, self.page_size))
        else:
            found = self.allocator.allocate(pages, self.owner, within)
        self._paint(found, 0)
        try:
            wired = contiguous or within is not None or self.owner == "kernel"
            with self._lock:
                return self._map(found, offset, length, wired=wired)
        except BaseException:
            self.allocator.free(found)
            raise

    def free(self, buffer: LinearBuffer) -> None:
        """Release a whole allocation; its views die with it. What shows a device's frames is only unmapped.

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
            found = self._release(allocation, "it was released")
        self.allocator.free(found)

    def view(self, address: int, length: int, *, write: bool = False) -> LinearBuffer:
        """[address, address + length) of this space, as programs name their memory: for uios, and lists of a user's.

        `write`: it is going to be written. BufferGone names the first address that is not mapped: an allocation ends
        with its last byte. DriverError: the range wraps around, or the process may not write there. A range of no
        bytes may be anywhere.
        """
        if self._gone:
            raise BufferGone(f"space {self.name!r}: {self._gone}")
        if address < 0 or length < 0 or address + length - 1 > MAX_ADDRESS:
            raise DriverError(
                f"{length} bytes at {address:#x} of space {self.name!r} wrap around, or are no addresses: give a range "
                "of unsigned 64-bit addresses"
            )
        start = address - self.base
        if not length:
            return LinearBuffer(Allocation(self, start, 0), start, 0)
        with self._lock:
            at = bisect_right(self._order, start // self.page_size) - 1
            allocation = self._live[self._order[at]] if at >= 0 else None
        end = start if allocation is None or start < allocation.start else allocation.start + allocation.length
        if allocation is None or start + length > end:
            hole = self.base + max(start, end)
            raise BufferGone(
                f"cannot use {length} bytes at {address:#x} of space {self.name!r}: nothing is mapped at {hole:#x}, "
                f"{hole - address} bytes into it; give a range within one allocation"
            ).about(address=hole, length=length)
        if write and allocation.readonly:
            raise DriverError(
                f"{length} bytes at {address:#x} of space {self.name!r} are mapped read-only: they can only go to a "
                "device; or map them with writable=True"
            ).about(address=address, length=length)
        return LinearBuffer(allocation, start, length)

    # -- paging -------------------------------------------------------------------------------------------------------

    def page_out(self, pages: int | None = None, *, address: int | None = None) -> int:
        """Take the frames of `pages` pages, all without a number, from the one at `address` on; how many it took.

        Pages stay if they are wired: while a map has them loaded, where `allocate` was told where they must lie, and
        where they show a device's frames. The process itself must not touch its memory meanwhile. DriverError for the
        kernel's space: all of it is wired.
        """
        if self.owner == "kernel":
            raise DriverError(f"space {self.name!r} is the kernel's, and never paged out: page a process out")
        first = 0 if address is None else (address - self.base) // self.page_size
        found = array("Q")
        with self._lock:
            for page, allocation in self._pageable(first):
                if len(found) == pages:
                    break
                whole, frame = LinearBuffer(allocation, page * self.page_size, self.page_size), self.page_table[page]
                if self.in_use(whole) is None:
                    at = frame - self.memory_base
                    self._aside[page] = self.memory[at : at + self.page_size].tobytes()
                    self.page_table[page] = ABSENT
                    if self.in_use(whole) is None:
                        found.append(frame)
                    else:  # a load that began meanwhile may have seen the frame: it stays
                        self.page_table[page] = frame
                        del self._aside[page]
        self._paint(found, POISON)
        self.allocator.free(found)
        return len(found)

    def page_in(self, start: int, length: int) -> int:
        """Bring back what is paged out of [start, start + length), counted from page 0; how many pages that were.

        All or none: ResourceShortage if there are too few free frames.
        """
        if not self._aside:
            return 0
        last = (start + length - 1) // self.page_size
        wanted = [page for page in range(start // self.page_size, last + 1) if page in self._aside]
        if not wanted:
            return 0
        found = self.allocator.allocate(len(wanted), self.owner)
        spare = []
        with self._lock:
            for page, frame in zip(wanted, found, strict=True):
                contents = self._aside.pop(page, None)
                if contents is None:  # another thread was faster, or it was released
                    spare.append(frame)
                    continue
                at = frame - self.memory_base
                self.memory[at : at + self.page_size] = contents
                self.page_table[page] = frame
            self._page_ins += len(wanted) - len(spare)
        self.allocator.free(spare)
        return len(wanted) - len(spare)

    def _pageable(self, first: int) -> Iterable[tuple[int, Allocation]]:
        """The pages from number `first` on that have a frame and are not wired for good, ascending."""
        for start in self._order:
            allocation = self._live[start]
            if not allocation.wired:
                for page in range(max(start, first), start + self._count(allocation)):
                    if self.page_table[page] != ABSENT:
                        yield page, allocation

    # -- frames of a device -------------------------------------------------------------------------------------------

    def map_frames(
        self,
        frames: Iterable[int],
        *,
        offset: int,
        length: int,
        writable: bool = True,
        memory: memoryview | None = None,
    ) -> LinearBuffer:
        """The device pager: show these page frames, which belong to a device, from byte `offset` of the first on.

        ``free`` of the buffer, or the end of the process, unmaps them; they stay the device's. `memory`: all RAM as it
        is to be seen here, such as through an uncached alias. Errors: as for `allocate`.
        """
        self._pages_for(offset, length)
        with self._lock:
            buffer = self._map(array("Q", frames), offset, length, wired=True, readonly=not writable, memory=memory)
            self._shown.add(buffer.start // self.page_size)
            return buffer

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def destroyed(self) -> bool:
        """True once the process was freed."""
        return bool(self._gone)

    def destroy(self) -> None:
        """Free the process: all its buffers are gone. DriverError, and nothing is freed, while a map has one loaded."""
        if self.owner == "kernel":
            raise DriverError(f"space {self.name!r} is the kernel's: it lives as long as its machine")
        if self._gone:
            raise BufferGone(f"space {self.name!r}: {self._gone}")
        for allocation in tuple(self._live.values()):
            self._refuse_if_loaded(LinearBuffer(allocation, allocation.start, allocation.length))
        found = array("Q")
        with self._lock:
            self._gone = f"its process {self.name!r} was freed"
            for allocation in tuple(self._live.values()):
                found += self._release(allocation, self._gone)
        self.allocator.free(found)

    def forget(self, reason: str) -> None:
        """The machine is off, and its memory: every buffer is gone, loaded or not, and there will be no other."""
        with self._lock:
            self._gone = self._gone or reason
            for allocation in tuple(self._live.values()):
                allocation.end(reason)
            self._live.clear()
            self._order.clear()
            self._shown.clear()
            self._aside.clear()

    def statistics(self) -> SpaceStatistics:
        """Pages and allocations, now."""
        with self._lock:
            return {
                "pages": len(self.page_table),
                "resident": len(self.page_table) - self.page_table.count(ABSENT),
                "paged_out": len(self._aside),
                "page_ins": self._page_ins,
                "allocations": len(self._live),
            }

    # -- inside -------------------------------------------------------------------------------------------------------

    def _pages_for(self, offset: int, length: int) -> int:
        """How many pages a new buffer takes, if it can be at all."""
        if length < 1:
            raise ConstraintError(f"a buffer of {length} bytes: ask for at least one")
        if not 0 <= offset < self.page_size:
            raise ConstraintError(f"offset {offset}: a buffer begins in its first page, of {self.page_size} bytes")
        pages = -(-(offset + length) // self.page_size)
        if pages >= len(self._taken):
            raise ResourceShortage(
                f"space {self.name!r} has {len(self._taken)} pages: {pages} and a guard page never fit; ask for less",
                ShortageReason.TOO_LARGE,
            )
        if self._gone:
            raise BufferGone(f"no buffer from space {self.name!r}: {self._gone}")
        return pages

    def _map(
        self,
        found: array[int],
        offset: int,
        length: int,
        *,
        wired: bool,
        readonly: bool = False,
        memory: memoryview | None = None,
    ) -> LinearBuffer:
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
        allocation = Allocation(self, start, length, readonly=readonly, wired=wired, memory=memory)
        self._live[first] = allocation
        insort(self._order, first)
        return LinearBuffer(allocation, start, length)

    def _release(self, allocation: Allocation, reason: str) -> array[int]:
        """Take it out of the page table. The frames that the caller must free, without the lock."""
        allocation.end(reason)
        first, pages = allocation.start // self.page_size, self._count(allocation)
        found = self.page_table[first : first + pages]
        self.page_table[first : first + pages] = array("Q", [ABSENT]) * pages
        self._taken[first : first + pages + 1] = bytes(pages + 1)
        del self._live[first]
        self._order.remove(first)
        if first in self._shown:
            self._shown.remove(first)
            return array("Q")
        if self._aside:
            for page in range(first, first + pages):
                self._aside.pop(page, None)
            found = array("Q", (frame for frame in found if frame != ABSENT))
        self._paint(found, POISON)
        return found

    def _count(self, allocation: Allocation) -> int:
        """The pages that it touches."""
        last = (allocation.start + allocation.length - 1) // self.page_size
        return last - allocation.start // self.page_size + 1

    def _refuse_if_loaded(self, buffer: LinearBuffer) -> None:
        holder = self.in_use(buffer)
        if holder is not None:
            error = DriverError(f"{buffer.describe()} cannot be freed: {holder} has it loaded; unload it first")
            self.refused(error)
            raise error

    def _paint(self, found: array[int], byte: int) -> None:
        paint = bytes((byte,)) * self.page_size
        for frame in found:
            at = frame - self.memory_base
            self.memory[at : at + self.page_size] = paint
