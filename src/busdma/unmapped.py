"""Memory that is in nobody's address space: page arrays and lists of physical ranges.

Kernels load such memory without ever mapping it: the pages of a file, or what a frame grabber fills. These objects are
for whoever builds the machine and its upper layers; drivers load them and see bus addresses only.

Source: Thorpe, USENIX 1998, "raw, unmapped buffers"; bus_dma(9), bus_dmamap_load_raw; FreeBSD bus_dmamap_load_ma.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

from busdma.addresses import MAX_ADDRESS, PhysicalAddress
from busdma.buffers import Buffer, BytesLike
from busdma.errors import BufferGone, DriverError
from busdma.lists import ElementList
from busdma.segments import Frames

if TYPE_CHECKING:
    from busdma.domain import DmaDomain

OWNER = "unmapped"  #: the label of such page frames


class PageArray:
    """`length` bytes of page frames, from byte `start` of the first on. `PageArray.allocate` has fresh ones.

    The frames stay the caller's, unless they were allocated here: then `free` gives them back, once.
    """

    host: memoryview | None = None
    readonly = False
    owner = OWNER

    def __init__(self, domain: DmaDomain, frames: Iterable[int], start: int, length: int) -> None:
        found, page = list(frames), domain.page_size
        for frame in found:
            if frame % page or not 0 <= frame - domain.base <= len(domain.memory) - page:
                raise DriverError(f"this machine has no page frame {frame:#x}: give addresses of its page frames")
        if start < 0 or length < 0 or start + length > len(found) * page:
            raise DriverError(
                f"{length} bytes from byte {start} of {len(found)} pages of {page} bytes: they do not fit"
            )
        self._be(domain, Frames(array("Q", found), domain.frames), start, length, None)

    @classmethod
    def allocate(cls, domain: DmaDomain, length: int, *, start: int = 0, contiguous: bool = False) -> PageArray:
        """Fresh pages, zeroed, scattered or in one run; for `length` bytes that begin `start` bytes into the first.

        ResourceShortage if the machine has none.
        """
        page = domain.page_size
        if length < 1 or not 0 <= start < page:
            raise DriverError(
                f"{length} bytes from byte {start} of a page of {page}: give at least one, from within it"
            )
        count = -(-(start + length) // page)
        if contiguous:
            first = domain.frames.allocate_run(count, OWNER)
            frames = array("Q", range(first, first + count * page, page))
        else:
            frames = domain.frames.allocate(count, OWNER)
        for frame in frames:
            domain.memory[frame - domain.base : frame - domain.base + page] = bytes(page)
        made = cls(domain, frames, start, length)
        made._whole = made
        return made

    def _be(self, domain: DmaDomain, frames: Frames, start: int, length: int, whole: PageArray | None) -> None:
        self.domain = domain
        self.start = start
        self.length = length
        self._frames = frames
        self._whole = whole
        self._freed = False

    @property
    def gone(self) -> str:
        """Why it can no longer be used; empty while it can."""
        return "it was freed" if self._whole is not None and self._whole._freed else ""

    @property
    def frames(self) -> Frames:
        """The page table; empty once the pages were freed."""
        return Frames(array("Q")) if self.gone else self._frames

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: slice) -> PageArray:
        if not isinstance(key, slice):
            raise DriverError(f"{self.describe()}: give a range of bytes, such as [a:b], not {key!r}")
        first, stop, step = key.indices(self.length)
        if step != 1:
            raise DriverError(f"a view of a page array has step 1, not {step}")
        view = PageArray.__new__(PageArray)
        view._be(self.domain, self._frames, self.start + first, max(stop - first, 0), self._whole)
        return view

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """A copy of some bytes, each page mapped for as long as that takes."""
        return b"".join(self._pieces(offset, self.length - offset if length is None else length))

    def write(self, data: BytesLike, offset: int = 0) -> None:
        """Copy `data` in at `offset`."""
        source = memoryview(data).cast("B")
        at = 0
        for piece in self._pieces(offset, len(source)):
            piece[:] = source[at : at + len(piece)]
            at += len(piece)

    def free(self) -> None:
        """Give allocated pages back. DriverError: a view, pages of somebody else's, or a map has some loaded."""
        if self.gone:
            raise BufferGone(f"{self.describe()} was freed before")
        if self._whole is not self:
            raise DriverError(f"{self.describe()} was not allocated as such: free the whole, where it was allocated")
        holder = self.domain.in_use(self)
        if holder is not None:
            error = DriverError(f"{self.describe()} cannot be freed: {holder} has it loaded; unload it first")
            self.domain.refused(error)
            raise error
        self._freed = True
        self.domain.frames.free(self._frames.table)

    def describe(self) -> str:
        """For example ``a page array, 6000 bytes``."""
        return f"a page array, {self.length} bytes"

    def _pieces(self, offset: int, length: int) -> list[memoryview]:
        if self.gone:
            raise BufferGone(f"{self.describe()}: {self.gone}")
        if offset < 0 or length < 0 or offset + length > self.length:
            raise DriverError(f"{self.describe()}: {length} bytes at offset {offset} are not inside it")
        page, memory, base = self.domain.page_size, self.domain.memory, self.domain.base
        found = []
        at = self.start + offset
        while length:
            count = min(page - at % page, length)
            here = self._frames.table[at // page] - base + at % page
            found.append(memory[here : here + count])
            at, length = at + count, length - count
        return found

    def __repr__(self) -> str:
        return f"<{self.describe()}{', gone' if self.gone else ''}>"


class PhysicalList(ElementList):
    """Ranges (physical address, length) of the machine's memory, in order.

    DriverError for a range outside memory, or one that wraps around the address space.
    """

    def __init__(self, domain: DmaDomain, ranges: Iterable[tuple[PhysicalAddress, int]]) -> None:
        self.ranges = tuple(ranges)
        page = domain.page_size
        self._elements: list[Buffer] = []
        for address, length in self.ranges:
            if address < 0 or length < 0 or address + max(length, 1) - 1 > MAX_ADDRESS:
                raise DriverError(f"({address:#x}, {length}) wraps around the address space: give ranges of memory")
            if length:
                first, beyond = address - address % page, domain.base + len(domain.memory)
                frames = range(
                    first, min(address + length, max(first, beyond) + page), page
                )  # one too many says enough
                self._elements.append(PageArray(domain, frames, address - first, length))

    def elements(self) -> list[Buffer]:
        """See `ElementList.elements`."""
        return list(self._elements)

    def describe(self) -> str:
        """For example ``a list of 3 physical ranges, 6000 bytes``."""
        return f"a list of {len(self.ranges)} physical ranges, {self.length} bytes"
