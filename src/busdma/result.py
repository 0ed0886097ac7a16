"""What a load returns: the segments of a map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from busdma.addresses import BusAddress
from busdma.errors import MapStateError
from busdma.segments import Segmenter


class Segments:
    """The bus addresses and lengths of a loaded map: ``for address, length in segments``.

    It belongs to its map and shows what the map has loaded; between unload and the next load it is empty, and reading
    it is an error. No other map ever writes it.
    """

    __slots__ = ("_segmenter",)

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    def __len__(self) -> int:
        return self._segmenter.count

    def __iter__(self) -> Iterator[tuple[BusAddress, int]]:
        flat = iter(self.flat())
        return cast(Iterator[tuple[BusAddress, int]], zip(flat, flat, strict=True))

    def __getitem__(self, index: int) -> tuple[BusAddress, int]:
        address, length = list(self)[index]
        return address, length

    @property
    def buffer(self) -> memoryview:
        """The (n, 2) array of unsigned 64-bit address, length; read-only, shared with the map, valid until unload."""
        flat = self.flat()
        return flat.cast("B").cast("Q", (len(flat) // 2, 2))

    def flat(self) -> memoryview:
        """The same as one row of 2n numbers."""
        count = self._segmenter.count
        if not count:
            raise MapStateError("no segments: they are only valid between load and unload")
        return memoryview(self._segmenter.out).toreadonly()[: 2 * count]

    def single(self) -> tuple[int, int] | None:
        """The address and the length, if it is one segment; for drivers to whom most loads are."""
        if self._segmenter.count != 1:
            return None
        out = self._segmenter.out
        return out[0], out[1]

    def __repr__(self) -> str:
        if not self._segmenter.count:
            return "<no segments>"
        return "<segments " + ", ".join(f"{address:#x}+{length:#x}" for address, length in self) + ">"
