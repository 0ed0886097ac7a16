"""DMA-safe memory: allocated within a tag's limits, and loaded for as long as it lives.

Descriptors, mailboxes, rings, pictures: memory that driver and device share. The device's side is ``memory.segments``,
or ``memory.address`` where it is one segment. The CPU's side is ``memory.view``, all of it as one memoryview;
`DmaMemory.map`, a window of it for as long as it is wanted; and `DmaMemory.mmap`, the same bytes in a process. Sync
stays mandatory, whatever way the CPU looks.

Source: Thorpe, USENIX 1998, "DMA-safe memory handling"; bus_dma(9), bus_dmamem_alloc, bus_dmamem_map, bus_dmamem_mmap.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from busdma.addresses import BusAddress
from busdma.buffers import LinearBuffer
from busdma.errors import BufferGone, DriverError, MapStateError
from busdma.lifecycle import State
from busdma.memory_window import MemoryWindow
from busdma.result import Segments
from busdma.segments import Frames
from busdma.sync import Direction, SyncOp
from busdma.tracebacks import hidden

if TYPE_CHECKING:
    from busdma.machine.frames import FrameAllocator
    from busdma.map import Map
    from busdma.tag import Tag

__tracebackhide__ = hidden


class ProcessSpace(Protocol):
    """What `DmaMemory.mmap` needs of a process's address space (`busdma.machine.space.AddressSpace`)."""

    name: str
    owner: str

    @property
    def allocator(self) -> FrameAllocator:
        """Whose page frames are mapped there."""

    def map_frames(
        self, frames: Iterable[int], *, offset: int, length: int, writable: bool, memory: memoryview | None
    ) -> LinearBuffer:
        """Show these frames."""


class DmaMemory:
    """Memory from `Tag.alloc`: `size` bytes, in as many segments as the tag allows. Free it once.

    A map can load it too, as any buffer. ``uncached``: the CPU looks at it past its caches, as it was asked for
    (``coherent``) and the machine can.
    """

    host: memoryview | None = None
    readonly = False
    private = True  #: no cache line of it has anything else in it

    def __init__(self, tag: Tag, pages: Sequence[int], size: int, *, coherent: bool = False, zero: bool = True) -> None:
        """`pages`: the physical addresses of its page frames, which go back with `free`."""
        domain = tag.domain
        cache = domain.cache
        self.tag = tag
        self.size = size
        self.start = 0
        line = 1 if cache is None else cache.line  # nobody else has anything in its last one
        self.length = max(min(-(-size // line) * line, tag.constraints.maxsize.value), size)  #: that a load sees
        self.gone = ""
        self.coherent = coherent  #: it was asked for
        self.uncached = coherent and domain.uncached is not None
        self.frames = Frames(array("Q", pages), domain.frames)
        self._pages = pages
        self._ram: memoryview = domain.memory
        if self.uncached and domain.uncached is not None:
            self._ram = domain.uncached
            if cache is not None:
                for address in pages:  # an earlier owner's lines must not come down on it later
                    cache.to_device(address, domain.page_size)
        self._whole: MemoryWindow | None = None
        self._windows: list[MemoryWindow] = []
        self._shown: list[LinearBuffer] = []  # in processes
        self._mapped = self._mapped_peak = 0
        if zero:
            for at, length in self._runs(0, len(pages) * domain.page_size):
                self._ram[at : at + length] = bytes(length)
        self._map = tag._memory_map(f"memory of {size} bytes")
        try:
            self._map.load_nowait(self, Direction.BOTH)
        except BaseException:
            self._map.destroy()
            raise

    # -- the device's side --------------------------------------------------------------------------------------------

    @property
    def dma_map(self) -> Map:
        """The map it is loaded in."""
        return self._map

    @property
    def segments(self) -> Segments:
        """The bus addresses."""
        return self._map.segments

    @property
    def address(self) -> BusAddress:
        """The bus address of byte 0, where the memory is one segment; MapStateError where it is more."""
        if len(self._map.segments) != 1:
            self._alive()
            if self._map.state is not State.LOADED:
                why = "is no longer the device's, as its driver was abandoned; free it, and allocate another"
            else:
                why = f"has {len(self._map.segments)} segments; use .segments"
            error = MapStateError(f"{self.describe()} {why}")
            raise error.about(tag=self.tag.path, map=self._map.name, length=self.size)
        return self._map.segments[0][0]

    def sync(self, op: SyncOp, offset: int = 0, length: int | None = None) -> None:
        """As `Map.sync`."""
        self._map.sync(op, offset, length)

    # -- the CPU's side -----------------------------------------------------------------------------------------------

    @property
    def view(self) -> memoryview:
        """All of it, mapped from the first use until `free`, and writable. BufferGone after `free`.

        Slices of it must not be used after `free`: they would reach whoever has the memory then.

        ConstraintError where its page frames are not one run: use `map`, or allocate with ``contiguous=True``.
        """
        self._alive()
        if self._whole is None:
            self._whole = self.map()
        return self._whole.view

    def map(self, offset: int = 0, length: int | None = None) -> MemoryWindow:
        """Map `length` bytes from `offset` on, all the rest without a length, for the CPU, until the window's `unmap`.

        For memory that is too large to be mapped as a whole, or that lies in several runs. DriverError outside it.
        """
        length = self._range(offset, length)
        window = MemoryWindow(self, offset, [self._ram[at : at + size] for at, size in self._runs(offset, length)])
        self._windows.append(window)
        self._mapped += length
        self._mapped_peak = max(self._mapped_peak, self._mapped)
        return window

    def mmap(
        self, space: ProcessSpace, offset: int = 0, length: int | None = None, *, writable: bool = True
    ) -> LinearBuffer:
        """The same bytes as a buffer in the address space of a process, by its device pager.

        The page frames stay the device's: the buffer's ``free``, and the end of the process, only unmap them, and must
        come before this memory's `free`. Not `writable`: neither the process nor a device that loads its buffer may
        write there. Errors: DriverError (outside the memory; the kernel's space, or another machine's),
        ResourceShortage (no virtual addresses), BufferGone (the process was freed).
        """
        length = self._range(offset, length)
        frames = self.tag.domain.frames
        if space.owner == "kernel":
            raise DriverError(f"{self.describe()} is the kernel's already: use map() there, and mmap() for a process")
        if space.allocator is not frames:
            raise DriverError(f"{self.describe()} and space {space.name!r} are of different machines")
        page = frames.page_size
        first, last = offset // page, (offset + length - 1) // page
        shown = space.map_frames(
            self._pages[first : last + 1],
            offset=offset % page,
            length=length,
            writable=writable,
            memory=self._ram if self.uncached else None,
        )
        self._shown = [other for other in self._shown if not other.gone]
        self._shown.append(shown)
        return shown

    # -- the end ------------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """The driver died: nobody gets it, or its bus addresses, before the device is reported idle."""
        if self._map.state is State.LOADED:
            self._map.quarantine()

    def free(self) -> None:
        """Give the memory back; BufferGone the second time, MapStateError while it is in quarantine.

        DriverError while a process or a window has it mapped, or something else, such as an array of another package,
        holds a buffer on the view.
        """
        self._alive()
        if self._map.state is State.QUARANTINED:
            self._map.unload()  # which says so
        shown = [other for other in self._shown if not other.gone]
        if shown:
            raise self._still(f"{shown[0].owner} has {shown[0].length} bytes of it mapped; free its buffer first")
        windows = [window for window in self._windows if window is not self._whole]
        if windows:
            raise self._still(f"{len(windows)} of its windows are still mapped; unmap them first")
        domain = self.tag.domain
        holder = domain.in_use(self, self._map)
        if holder is not None:
            error = self._still(f"{holder} has it loaded; unload it first")
            domain.refused(error)
            raise error
        if self._whole is not None:
            try:
                self._whole.unmap()
            except DriverError:
                raise self._still("something still looks at its view; release that first") from None
        if self._map.state is State.LOADED:  # it is idle already if a quarantine has ended
            self._map.unload()
        self._map.destroy()
        self.gone = "it was freed"
        self.frames = Frames(array("Q"))
        self.tag._freed(self)
        self.tag.domain.frames.free(self._pages)

    # -- for people ---------------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Bytes, runs of page frames, segments; bytes mapped for the CPU, now and at most; processes' mappings."""
        return {
            "size": self.size,
            "runs": 0 if self.gone else sum(1 for _ in self._runs(0, self.size)),
            "segments": len(self._map.segments),
            "mapped": self._mapped,
            "mapped_peak": self._mapped_peak,
            "shown": sum(1 for other in self._shown if not other.gone),
        }

    def describe(self) -> str:
        """For example ``DMA-safe memory of tag pc/isa/aha0, 4096 bytes``."""
        return f"DMA-safe memory of tag {self.tag.path}, {self.size} bytes"

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<{self.describe()}{', freed' if self.gone else ''}>"

    # -- inside -------------------------------------------------------------------------------------------------------

    def _range(self, offset: int, length: int | None) -> int:
        """The length of a range of it, checked."""
        self._alive()
        count = self.size - offset if length is None else length
        if offset < 0 or count < 1 or offset + count > self.size:
            words = f"{self.describe()}: {count} bytes at offset {offset} are not 1 or more inside it"
            raise DriverError(words).about(tag=self.tag.path, length=count)
        return count

    def _runs(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Where [offset, offset + length) lies in all RAM: (first byte, bytes) of each run of page frames."""
        domain, found = self.tag.domain, list[tuple[int, int]]()
        page = domain.page_size
        while length > 0:
            index, head = divmod(offset, page)
            size = min(page - head, length)
            at = self._pages[index] - domain.base + head
            if found and sum(found[-1]) == at:
                found[-1] = (found[-1][0], found[-1][1] + size)
            else:
                found.append((at, size))
            offset += size
            length -= size
        return found

    def _unmapped(self, window: MemoryWindow) -> None:
        self._windows.remove(window)
        self._mapped -= window.length

    def _still(self, why: str) -> DriverError:
        return DriverError(f"{self.describe()} cannot be freed: {why}").about(tag=self.tag.path, length=self.size)

    def _alive(self) -> None:
        if self.gone:
            raise BufferGone(f"{self.describe()}: {self.gone}").about(tag=self.tag.path, length=self.size)
