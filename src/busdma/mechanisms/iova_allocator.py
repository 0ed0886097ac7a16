"""Which bus pages are free: numbers alone, no translation, no waiting, no lock.

Ranges that came back lie in magazines, a stack for each size: a driver that maps what it mapped before pushes and pops.
Behind them is a best-fit list of free ranges, joined with their neighbours, for whatever the magazines do not have.
Before anything is refused all magazines are emptied into that list, so they never cost a caller a range.

Alignment, boundary and windows are honoured by both. A range of 2^k pages is placed at a multiple of 2^k where there is
such a place: whatever alignment or boundary the next user of its size has, it mostly suits.

Source: Bonwick and Adams, USENIX 2001 (magazines before a general allocator); bus_dma(9) for the meaning of boundary.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import Final

from busdma.addresses import AddressSet
from busdma.errors import ConstraintError, DriverError

NO_ROOM: Final = -1  #: not now
NEVER: Final = -2  #: not even if every page were free
MAGAZINES: Final = 24  #: sizes that have a magazine at most; nine of them are 1, 2, 4 ... 256 pages
_CANDIDATES: Final = 8  #: free ranges that are looked at for a naturally aligned place

Ranges = Iterable[tuple[int, int]]  # of (first, last)
Runs = list[tuple[int, int]]  # sorted, disjoint, not adjacent: of [first, end)


class IovaAllocator:
    """The bus pages of `windows`, by page number: (first, last) ranges, with holes between them."""

    __slots__ = ("_by_size", "_ends", "_held", "_magazines", "_mask", "_shift", "_sizes", "pages", "windows")

    def __init__(self, windows: Ranges) -> None:
        self.windows: Runs = [(lo, hi + 1) for lo, hi in AddressSet(windows)]
        if not self.windows:
            raise ConstraintError("a window of no bus pages: give at least one whole page")
        self.pages = sum(end - first for first, end in self.windows)
        self._shift = self.windows[-1][1].bit_length()
        self._mask = (1 << self._shift) - 1
        self._by_size: list[int] = []  # of each free range, pages << shift | first
        self._sizes: dict[int, int] = {}  # and its pages by its first
        self._ends: dict[int, int] = {}  # and its first by its end
        self._held: dict[int, int] = {}  # pages of each allocated range by its first
        self._magazines: dict[int, list[int]] = {1 << k: [] for k in range(9)}
        for first, end in self.windows:
            self._insert(first, end - first)

    @classmethod
    def of(cls, window: AddressSet, page_size: int) -> IovaAllocator:
        """Of the whole pages within a set of bus addresses."""
        return cls(whole_pages(window, page_size))

    def allocate(
        self,
        pages: int,
        alignment_pages: int = 1,
        boundary_pages: int = 0,
        within: Sequence[tuple[int, int]] | None = None,
    ) -> int:
        """The first of `pages` adjacent bus pages; NO_ROOM, or NEVER.

        It is a multiple of `alignment_pages`, and the range crosses no multiple of `boundary_pages` (powers of two;
        boundary 0 means none). `within`: (first, last) ranges of pages, one of which must hold all of it. Errors:
        ConstraintError.
        """
        magazine = self._magazines.get(pages)
        if magazine:
            if alignment_pages == 1 and not boundary_pages and within is None:
                first = magazine.pop()
                self._held[first] = pages
                return first
            first = magazine[-1]
            if fits(first, pages, alignment_pages, boundary_pages, within):
                magazine.pop()
                self._held[first] = pages
                return first
        return self._search(pages, alignment_pages, boundary_pages, within)

    def free(self, first: int, pages: int) -> None:
        """Give a range back, whole. DriverError if it was never allocated like that, or is free already."""
        held = self._held.pop(first, None)
        if held != pages:
            raise self._not_held(first, pages, held)
        magazine = self._magazines.get(pages)
        if magazine is None:
            self._insert(first, pages)
        else:
            magazine.append(first)

    def possible(
        self,
        pages: int,
        alignment_pages: int = 1,
        boundary_pages: int = 0,
        within: Sequence[tuple[int, int]] | None = None,
    ) -> bool:
        """Would `allocate` grant it if every page were free?"""
        return place(self.windows, pages, alignment_pages, boundary_pages, within) >= 0

    def runs(self, and_free: Iterable[tuple[int, int]] = ()) -> Runs:
        """The free runs, as long as they are, in order. `and_free`: allocated (first, pages) to count as free."""
        free = [*self._sizes.items(), *and_free]
        for pages, magazine in self._magazines.items():
            free += [(first, pages) for first in magazine]
        return joined(free)

    def holds(self, first: int) -> bool:
        """Is `first` the first page of a range that is allocated?"""
        return first in self._held

    def _search(self, pages: int, alignment: int, boundary: int, within: Sequence[tuple[int, int]] | None) -> int:
        """From the list; from the list with all magazines emptied into it; or why not."""
        if pages < 1 or alignment < 1 or boundary < 0 or alignment & (alignment - 1) or boundary & (boundary - 1):
            raise ConstraintError(
                f"{pages} bus pages with alignment {alignment} and boundary {boundary}: give at least one page, and "
                "powers of two"
            )
        if pages not in self._magazines and len(self._magazines) < MAGAZINES:
            self._magazines[pages] = []
        first = self._best(pages, alignment, boundary, within)
        if first < 0:
            if not self.possible(pages, alignment, boundary, within):
                return NEVER
            self._drain()
            first = self._best(pages, alignment, boundary, within)
            if first < 0:
                return NO_ROOM
        self._held[first] = pages
        return first

    def _best(self, pages: int, alignment: int, boundary: int, within: Sequence[tuple[int, int]] | None) -> int:
        """Out of the smallest free range that will do, if possible naturally aligned; -1: there is none."""
        by_size, shift, mask = self._by_size, self._shift, self._mask
        at = bisect_left(by_size, pages << shift)
        count = len(by_size)
        natural = alignment if pages & (pages - 1) or pages < alignment else pages
        if not boundary and within is None:
            for nearby in range(at, min(at + _CANDIDATES, count)):
                free = by_size[nearby]
                start = free & mask
                first = (start + natural - 1) & -natural
                if first + pages <= start + (free >> shift):
                    self._take(nearby, first, pages)
                    return first
        for wanted, most in ((natural, at + _CANDIDATES), (alignment, count)):
            for nearby in range(at, min(most, count)):
                first = self._place_in(by_size[nearby], pages, wanted, boundary, within)
                if first >= 0:
                    self._take(nearby, first, pages)
                    return first
        return NO_ROOM

    def _place_in(
        self, free: int, pages: int, alignment: int, boundary: int, within: Sequence[tuple[int, int]] | None
    ) -> int:
        """Where in one free range, as `_by_size` has it."""
        start = free & self._mask
        end = start + (free >> self._shift)
        if within is None:
            return _first_fit(start, end, pages, alignment, boundary)
        return place(((start, end),), pages, alignment, boundary, within)

    def _take(self, at: int, first: int, pages: int) -> None:
        """Cut a range out of the free one that is number `at` in order of size."""
        by_size, sizes, ends, shift = self._by_size, self._sizes, self._ends, self._shift
        free = by_size.pop(at)
        start = free & self._mask
        end = start + sizes.pop(start)
        if start < first:
            sizes[start] = first - start
            ends[first] = start
            insort(by_size, first - start << shift | start)
        first += pages
        if first < end:
            sizes[first] = end - first
            ends[end] = first
            insort(by_size, end - first << shift | first)
        else:
            del ends[end]

    def _insert(self, start: int, pages: int) -> None:
        """A range is free: join it with its neighbours."""
        by_size, shift, end = self._by_size, self._shift, start + pages
        before = self._ends.pop(start, None)
        if before is not None:
            del by_size[bisect_left(by_size, self._sizes.pop(before) << shift | before)]
            start = before
        behind = self._sizes.pop(end, None)
        if behind is not None:
            del by_size[bisect_left(by_size, behind << shift | end)]
            end += behind
        self._sizes[start] = end - start
        self._ends[end] = start
        insort(by_size, end - start << shift | start)

    def _drain(self) -> None:
        """Empty all magazines into the list. Only the nine common sizes keep theirs: others must be asked for again."""
        for pages, magazine in list(self._magazines.items()):
            for first in magazine:
                self._insert(first, pages)
            magazine.clear()
            if pages & (pages - 1) or pages > 256:
                del self._magazines[pages]

    def _not_held(self, first: int, pages: int, held: int | None) -> DriverError:
        what = f"cannot free {describe(first, pages)}: "
        if held is not None:
            self._held[first] = held
            return DriverError(f"{what}allocated was {describe(first, held)}; give back the whole range, once")
        for start, size in self._held.items():
            if start < first + pages and first < start + size:
                return DriverError(f"{what}allocated was {describe(start, size)}; give back the whole range, once")
        for start, end in self.runs():
            if start < first + pages and first < end:
                return DriverError(f"{what}{describe(start, end - start)} are free already; give a range back once")
        windows = " and ".join(describe(start, end - start) for start, end in self.windows)
        return DriverError(f"{what}the allocator has {windows}; give back what it granted")


def fits(first: int, pages: int, alignment: int, boundary: int, within: Sequence[tuple[int, int]] | None) -> bool:
    """May a range be where it is?"""
    if first & (alignment - 1) or (boundary and first ^ (first + pages - 1) >= boundary):
        return False
    return within is None or any(lo <= first and first + pages - 1 <= hi for lo, hi in within)


def place(
    runs: Iterable[tuple[int, int]],
    pages: int,
    alignment: int,
    boundary: int,
    within: Sequence[tuple[int, int]] | None,
) -> int:
    """The lowest place for a range in free `runs` of [first, end); -1 if there is none."""
    for start, end in runs:
        for lo, hi in ((start, end - 1),) if within is None else within:
            first = _first_fit(max(start, lo), min(end, hi + 1), pages, alignment, boundary)
            if first >= 0:
                return first
    return NO_ROOM


def whole_pages(addresses: AddressSet, page_size: int) -> list[tuple[int, int]]:
    """The pages that lie within a set of addresses entirely: (first, last) ranges of their numbers."""
    ranges = [(-(-lo // page_size), (hi + 1) // page_size - 1) for lo, hi in addresses]
    return [(first, last) for first, last in ranges if first <= last]


def joined(ranges: Iterable[tuple[int, int]]) -> Runs:
    """Ranges of (first, pages) that do not overlap, as the longest runs there are, in order."""
    found: Runs = []
    for first, pages in sorted(ranges):
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], first + pages)
        else:
            found.append((first, first + pages))
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
