"""DMA-safe memory: allocated within a tag's limits, and loaded for as long as it lives.

Descriptors, mailboxes, rings: memory that driver and device share. Sync stays mandatory here too. A bus address is
``memory.address``; the CPU's side is ``memory.view``.

Source: Thorpe, USENIX 1998, "DMA-safe memory handling"; bus_dma(9), bus_dmamem_alloc.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from busdma.addresses import BusAddress
from busdma.errors import BufferGone, DriverError, MapStateError
from busdma.lifecycle import State
from busdma.map import Map
from busdma.result import Segments
from busdma.segments import Frames
from busdma.sync import Direction, SyncOp

if TYPE_CHECKING:
    from busdma.tag import Tag


class DmaMemory:
    """Memory from `Tag.alloc`: `size` bytes, zeroed, in as many segments as the tag allows. Free it once."""

    host: memoryview | None = None
    readonly = False

    def __init__(self, tag: Tag, base: int, size: int) -> None:
        domain = tag.domain
        page = domain.page_size
        self.tag = tag
        self.size = size
        self.start = 0
        self.length = size
        self.gone = ""
        self._pages = [base + i * page for i in range(-(-size // page))]
        self.frames = Frames(array("Q", self._pages))
        at = base - domain.base
        self._view = domain.memory[at : at + size]
        self._view[:] = bytes(size)
        self._map: Map = tag.create_map(name=f"memory of {size} bytes")
        try:
            self._map.load_nowait(self, Direction.BOTH)
        except BaseException:
            self._map.destroy()
            raise

    @property
    def view(self) -> memoryview:
        """The bytes as the CPU sees them. BufferGone after `free`."""
        self._alive()
        return self._view

    @property
    def map(self) -> Map:
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
            many = f"{self.describe()} has {len(self._map.segments)} segments; use .segments"
            raise MapStateError(many).about(tag=self.tag.path, map=self._map.name, length=self.size)
        return self._map.segments[0][0]

    def sync(self, op: SyncOp, offset: int = 0, length: int | None = None) -> None:
        """As `Map.sync`."""
        self._map.sync(op, offset, length)

    def free(self) -> None:
        """Give the memory back; BufferGone the second time, MapStateError while it is in quarantine.

        DriverError while something else, such as an array of another package, holds a buffer on the view.
        """
        self._alive()
        if self._map.state is State.QUARANTINED:
            self._map.unload()  # which says so
        try:
            self._view.release()
        except BufferError:
            looks = f"{self.describe()} cannot be freed: something still looks at its view; release that first"
            raise DriverError(looks).about(tag=self.tag.path, length=self.size) from None
        if self._map.state is State.LOADED:  # it is idle already if a quarantine has ended
            self._map.unload()
        self._map.destroy()
        self.gone = "it was freed"
        self.frames = Frames(array("Q"))
        self.tag._freed(self)
        self.tag.domain.frames.free(self._pages)

    def _alive(self) -> None:
        if self.gone:
            raise BufferGone(f"{self.describe()}: {self.gone}").about(tag=self.tag.path, length=self.size)

    def describe(self) -> str:
        """For example ``DMA-safe memory of tag pc/isa/aha0, 4096 bytes``."""
        return f"DMA-safe memory of tag {self.tag.path}, {self.size} bytes"

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<{self.describe()}{', freed' if self.gone else ''}>"
