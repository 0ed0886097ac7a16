"""Free ranges of numbered pages: which of them will do, and best fit among them.

A range is an exact number of pages, at a multiple of its alignment, across no multiple of its boundary (powers of two;
boundary 0 means none), and all of it in one of the (first, last) ranges of `within`, if that is not None.

Source: Knuth, The Art of Computer Programming, volume 1, section 2.5 (best fit, boundary tags); bus_dma(9) for the
meaning of boundary.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

NO_ROOM: Final = -1  #: not now

Within = Sequence[tuple[int, int]] | None
Runs = list[tuple[int, int]]  # sorted, disjoint, not adjacent: of [first, end)


class FreeList:
    """Ranges in order of size, each as long as can be: `runs`, to begin with. All pages are below `limit`."""

    __slots__ = ("_by_size", "_firsts", "_mask", "_shift", "sizes")

    def __init__(self, limit: int, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._shift = limit.bit_length()
        self._mask = (1 << self._shift) - 1
        self.sizes = {first: end - first for first, end in runs}  #: pages of each range, by its first
        self._firsts = {first + pages: first for first, pages in self.sizes.items()}  # its first, by its end
        self._by_size = sorted([pages << self._shift | first for first, pages in self.sizes.items()])

    def take(self, pages: int, alignment: int = 1, boundary: int = 0, within: Within = None) -> int:
        """The first of so many pages, out of the smallest range that will do; NO_ROOM."""
        by_size, shift = self._by_size, self._shift
        plain = alignment == 1 and not boundary and within is None
        for at in range(bisect_left(by_size, pages << shift), len(by_size)):
            free = by_size[at]
            first = start = free & self._mask
            end = start + (free >> shift)
            if not plain:
                first = place(((start, end),), pages, alignment, boundary, within)
                if first < 0:
                    continue
            del by_size[at], self.sizes[start], self._firsts[end]
            if start < first:
                self._keep(start, first)
            start = first + pages
            if start < end:
                self.sizes[start] = end - start
                self._firsts[end] = start
                insort(by_size, end - start << shift | start)
            return first
        return NO_ROOM

    def remove(self, first: int) -> None:
        """Take the whole range that begins there."""
        pages = self.sizes.pop(first)
        del self._firsts[first + pages]
        self._drop(first, pages)

    def add(self, first: int, pages: int) -> None:
        """A range is free: join it with its neighbours."""
        end = first + pages
        before = self._firsts.pop(first, None)
        if before is not None:
            self._drop(before, self.sizes.pop(before))
            first = before
        behind = self.sizes.pop(end, None)
        if behind is not None:
            self._drop(end, behind)
            end += behind
        self._keep(first, end)

    def _keep(self, first: int, end: int) -> None:
        self.sizes[first] = end - first
        self._firsts[end] = first
        insort(self._by_size, end - first << self._shift | first)

    def _drop(self, first: int, pages: int) -> None:
        del self._by_size[bisect_left(self._by_size, pages << self._shift | first)]


def fits(first: int, pages: int, alignment: int, boundary: int, within: Within) -> bool:
    """May a range be where it is?"""
    if first & (alignment - 1) or (boundary and first ^ (first + pages - 1) >= boundary):
        return False
    return within is None or any(lo <= first and first + pages - 1 <= hi for lo, hi in within)


def place(runs: Iterable[tuple[int, int]], pages: int, alignment: int, boundary: int, within: Within) -> int:
    """The lowest place for a range in free `runs` of [first, end); NO_ROOM."""
    for start, end in runs:
        for lo, hi in ((start, end - 1),) if within is None else within:
            first = _first_fit(max(start, lo), min(end, hi + 1), pages, alignment, boundary)
            if first >= 0:
                return first
    return NO_ROOM


def joined(sizes: Mapping[int, int]) -> Runs:
    """Ranges that do not overlap, pages by first page, as the longest runs there are, in order."""
    found: Runs = []
    start = end = NO_ROOM
    for first in sorted(sizes):
        if first != end:
            if start < end:
                found.append((start, end))
            start = first
        end = first + sizes[first]
    if start < end:
        found.append((start, end))
    return found


def describe(first: int, pages: int) -> str:
    """For example ``bus pages 0x10..0x1f``."""
    return f"bus page {first:#x}" if pages == 1 else f"bus pages {first:#x}..{first + pages - 1:#x}"


def _first_fit(start: int, end: int, pages: int, alignment: int, boundary: int) -> int:
    first = (start + alignment - 1) & -alignment
    if boundary:
        if pages > boundary:
            return NO_ROOM
        if first ^ (first + pages - 1) >= boundary:
            first = (first + pages - 1) & -boundary  # the line that it would cross; a smaller alignment holds there too
    return first if first + pages <= end else NO_ROOM
