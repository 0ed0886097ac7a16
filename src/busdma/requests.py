"""Requests that hold what is to be transferred: a map loads the request itself, whatever its data is.

Source: FreeBSD bus_dmamap_load_bio(9) and bus_dmamap_load_ccb(9); struct bio; cam(4).
"""

from __future__ import annotations

from dataclasses import dataclass

from busdma.buffers import Buffer
from busdma.errors import DriverError
from busdma.lists import Resolve, part_of
from busdma.sync import Direction


@dataclass(slots=True)
class Bio:
    """A block request: bytes [offset, offset + length) of `data`, mapped or unmapped, from or to `block`."""

    data: object  #: anything that can be loaded
    direction: Direction
    block: int = 0
    offset: int = 0
    length: int | None = None  #: None: all the rest

    def dma_buffer(self, resolve: Resolve) -> Buffer:
        """What a map loads. DriverError if the range is not inside the data."""
        whole = resolve(self.data)
        length = whole.length - self.offset if self.length is None else self.length
        if self.offset < 0 or length < 0 or self.offset + length > whole.length:
            raise DriverError(
                f"a bio of {length} bytes at offset {self.offset} of {whole.describe()}: give a range inside it"
            )
        return part_of(whole, self.offset, length)


@dataclass(slots=True)
class Ccb:
    """What of a CAM control block concerns a map: its data, of any kind, and which way it goes. None: no data phase."""

    data: object | None
    direction: Direction = Direction.BOTH

    def dma_buffer(self, resolve: Resolve) -> Buffer:
        """What a map loads. DriverError if the command has no data."""
        if self.data is None:
            raise DriverError("this CCB has no data phase: there is nothing to load")
        return resolve(self.data)
