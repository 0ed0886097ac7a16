"""Which bus pages are free: numbers alone, no translation, no waiting, no lock.

A request of up to 256 pages gets a *block*: 2^k pages, the next power of two, at a multiple of 2^k, so that a boundary
and an alignment of up to its size hold by themselves. Free blocks lie in magazines, one for each k. While there is
plenty, a magazine is a stack: taking is a pop, giving back a push. When a size runs out and there is no larger block to
be cut, the allocator is *crowded*: magazines are sets, and a block that comes back is joined with its buddy.

Rounding is for windows with room to waste: a run of requests for 17 pages, 64 KiB that begin in mid-page, would find a
third of a window gone. Small ones are *tight* all the time: nothing is rounded, all that is free is in a best-fit list.

Rounding refuses nobody who could be served. Where there is no block, exactly what was asked for is pieced together from
all that is free, the unused tails of blocks included. When what is held, rounded, would fill the windows, a large one
is tight too for a while. What is larger than any block comes from the best-fit list at all times.

Source: Bonwick and Adams, USENIX 2001 (magazines before a general allocator); Knuth, The Art of Computer Programming,
volume 1, section 2.5 (buddies); Linux drivers/iommu/iova.c (sizes rounded for its magazines).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from busdma.addresses import AddressSet
from busdma.errors import ConstraintError, DriverError
from busdma.mechanisms.free_list import NO_ROOM, FreeList, Runs, Within, describe, fits, joined, place

NEVER: Final = -2  #: not even if every page were free
LARGEST: Final = 256  #: pages of the largest block
SPACIOUS: Final = 8192  #: pages from which on a window has room to waste
_CLASSES: Final = LARGEST.bit_length()
_NO_BUDDY: Final = 1 << 59
#: By pages asked for, the bit by which the first pages of a block and its buddy differ. The largest are never joined.
_BUDDY: Final = (
    _NO_BUDDY,
    *(_NO_BUDDY if pages > LARGEST // 2 else 1 << (pages - 1).bit_length() for pages in range(1, LARGEST + 1)),
)

Magazine = TypeVar("Magazine", list[int], set[int])


class IovaAllocator:
    """The bus pages of `windows`, by page number: (first, last) ranges, with holes between them.

    `rounds`: whether sizes may be rounded; if left out, they are from SPACIOUS pages on.
    """

    __slots__ = (
        "_crowded",
        "_exact",
        "_held",
        "_limit",
        "_list",
        "_magazine_for",
        "_magazines",
        "_review_in",
        "_rounds",
        "_set_for",
        "_sets",
        "_stack_for",
        "_stacks",
        "_tight",
        "pages",
        "windows",
    )

    def __init__(self, windows: Iterable[tuple[int, int]], *, rounds: bool | None = None) -> None:
        self.windows: Runs = [(lo, hi + 1) for lo, hi in AddressSet(windows)]
        if not self.windows:
            raise ConstraintError("a window of no bus pages: give at least one whole page")
        self.pages = sum(end - first for first, end in self.windows)
        self._limit = self.windows[-1][1]
        self._list = FreeList(self._limit, self.windows)
        self._held: dict[int, int] = {}  # of each block that is allocated, the pages asked for by its first
        self._exact: dict[int, int] = {}  # of each other range that is allocated, its pages by its first
        self._stacks: list[list[int]] = [[] for _ in range(_CLASSES)]
        self._stack_for = _by_pages(self._stacks, [])
        self._sets: list[set[int]] = [set() for _ in range(_CLASSES)]
        self._set_for = _by_pages(self._sets, set())
        self._crowded = False
        self._magazines: Sequence[list[int] | set[int]] = self._stacks  # or the sets; the others are empty
        self._magazine_for: Sequence[list[int] | set[int]] = self._stack_for
        self._rounds = self.pages >= SPACIOUS if rounds is None else rounds
        self._tight = not self._rounds
        self._review_in = 0  # after so many requests on the slow path

    @classmethod
    def of(cls, window: AddressSet, page_size: int) -> IovaAllocator:
        """Of the whole pages within a set of bus addresses."""
        return cls(whole_pages(window, page_size))

    def allocate(self, pages: int, alignment_pages: int = 1, boundary_pages: int = 0, within: Within = None) -> int:
        """The first of `pages` adjacent bus pages; NO_ROOM, or NEVER.

        It is a multiple of `alignment_pages`, and the range crosses no multiple of `boundary_pages` (powers of two;
        boundary 0 means none). `within`: (first, last) ranges of pages, one of which must hold all of it. Errors:
        ConstraintError.
        """
        if alignment_pages == 1 and not boundary_pages and within is None:
            try:
                magazine = self._magazine_for[pages]
            except IndexError:
                return self._search(pages, 1, 0, None)
            if magazine:
                self._held[first := magazine.pop()] = pages
                return first
        return self._search(pages, alignment_pages, boundary_pages, within)

    def free(self, first: int, pages: int) -> None:
        """Give a range back, whole. DriverError if it was never allocated like that, or is free already."""
        held = self._held.pop(first, None)
        if held != pages:
            self._free_exact(first, pages, held)
        elif self._crowded:
            magazine = self._set_for[pages]
            if first ^ _BUDDY[pages] in magazine:
                self._join(first, (pages - 1).bit_length())
            else:
                magazine.add(first)
        else:
            self._stack_for[pages].append(first)

    def possible(self, pages: int, alignment_pages: int = 1, boundary_pages: int = 0, within: Within = None) -> bool:
        """Would `allocate` grant it if every page were free?"""
        return place(self.windows, pages, alignment_pages, boundary_pages, within) >= 0

    def runs(self, and_free: Iterable[tuple[int, int]] = ()) -> Runs:
        """The free runs, as long as they are, in order. `and_free`: allocated (first, pages) to count as free.

        The tails of blocks, which nobody asked for, are free.
        """
        return joined({**self._pieces(), **{start: tail for tail, start, _ in self._tails(1)}, **dict(and_free)})

    def holds(self, first: int) -> bool:
        """Is `first` the first page of a range that is allocated?"""
        return first in self._held or first in self._exact

    # -- blocks -------------------------------------------------------------------------------------------------------

    def _search(self, pages: int, alignment: int, boundary: int, within: Within) -> int:
        """A block, or else exactly so many pages, or else why not."""
        if pages < 1 or alignment < 1 or boundary < 0 or alignment & (alignment - 1) or boundary & (boundary - 1):
            raise ConstraintError(
                f"{pages} bus pages with alignment {alignment} and boundary {boundary}: give at least one page, and "
                "powers of two"
            )
        self._review_in -= 1
        if self._review_in < 0:
            self._review()
        if not self._tight and pages <= LARGEST and (not boundary or pages <= boundary):
            first = self._block(pages, alignment, within)
            if first >= 0:
                self._held[first] = pages
                return first
        first = self._list.take(pages, alignment, boundary, within)
        if first < 0:
            if not self.possible(pages, alignment, boundary, within):
                return NEVER
            if not self._tight:
                first = self._piece_together(pages, alignment, boundary, within)
            if first < 0:
                return NO_ROOM
        self._exact[first] = pages
        return first

    def _block(self, pages: int, alignment: int, within: Within) -> int:
        """A block for so many pages, if need be out of a larger one; NO_ROOM."""
        k = (pages - 1).bit_length()
        if self._crowded and len(self._sets[-1]) * LARGEST > self.pages // 8:
            self._spread()
        if within is not None:
            for j, magazine in enumerate(self._magazines[k:], k):
                for first in magazine:
                    if fits(first, pages, alignment, 0, within):
                        magazine.remove(first)
                        return self._cut(first, k, j)
            return self._list.take(1 << k, max(alignment, 1 << k), 0, within)
        least = max(k, alignment.bit_length() - 1)
        first = self._from_magazines(k, least)
        if first < 0:
            first = self._list.take(1 << k, 1 << least)
            if first < 0 and not self._crowded:
                self._crowd()
                first = self._from_magazines(k, least)
        return first

    def _from_magazines(self, k: int, least: int) -> int:
        for j in range(least, _CLASSES):
            magazine = self._magazines[j]
            if magazine:
                return self._cut(magazine.pop(), k, j)
        return NO_ROOM

    def _cut(self, first: int, k: int, j: int) -> int:
        """Keep 2^k pages of a block of 2^j; the rest is free."""
        for i in range(k, j):
            if self._crowded:
                self._sets[i].add(first + (1 << i))
            else:
                self._stacks[i].append(first + (1 << i))
        return first

    def _join(self, first: int, k: int) -> None:
        """A block is free, and so is its buddy perhaps, and theirs."""
        while k < _CLASSES - 1 and (buddy := first ^ (1 << k)) in self._sets[k]:
            self._sets[k].remove(buddy)
            first &= buddy
            k += 1
        self._sets[k].add(first)

    def _crowd(self) -> None:
        """Join what can be joined, and keep it so."""
        self._crowded, self._magazines, self._magazine_for = True, self._sets, self._set_for
        for k, stack in enumerate(self._stacks):
            for first in stack:
                self._join(first, k)
            stack.clear()

    def _spread(self) -> None:
        """There is plenty again: do not join."""
        self._crowded, self._magazines, self._magazine_for = False, self._stacks, self._stack_for
        for stack, magazine in zip(self._stacks, self._sets, strict=True):
            stack += magazine
            magazine.clear()

    # -- exact ranges -------------------------------------------------------------------------------------------------

    def _free_exact(self, first: int, pages: int, held: int | None) -> None:
        """What is no block comes back, or is an error. `held`: it was taken out of `_held`."""
        if held is not None:
            self._held[first] = held
        elif self._exact.get(first) == pages:
            del self._exact[first]
            self._give(first, first + pages)
            return
        raise self._not_held(first, pages)

    def _give(self, first: int, end: int) -> None:
        """Any [first, end) is free: the list has what is larger than a block, magazines the rest, as blocks."""
        if self._tight or end - first > LARGEST:
            self._list.add(first, end - first)
            return
        while first < end:
            k = (end - first).bit_length() - 1
            if first:
                k = min(k, (first & -first).bit_length() - 1)
            if self._crowded:
                self._join(first, k)
            else:
                self._stacks[k].append(first)
            first += 1 << k

    def _pieces(self) -> dict[int, int]:
        """All that is free but for tails: pages by first page, not joined."""
        pieces = self._list.sizes.copy()
        for k, magazine in enumerate(self._magazines):
            pieces |= dict.fromkeys(magazine, 1 << k)
        return pieces

    def _tails(self, least: int) -> list[tuple[int, int, int]]:
        """(pages, first, its block's first) of the tails of blocks that are held, of at least so many pages."""
        return [
            (tail, first + pages, first)
            for first, pages in self._held.items()
            if pages & (pages - 1) and (tail := rounded(pages) - pages) >= least
        ]

    def _piece_together(self, pages: int, alignment: int, boundary: int, within: Within) -> int:
        """Exactly so many pages, out of the smallest free run that will do: of blocks, else of tails too; NO_ROOM."""
        room, tails = self._room()
        if room + tails < pages:
            return NO_ROOM
        limits = (alignment, boundary, within)
        if tails and room - self._waste() - rounded(pages) < self.pages // 64:
            self._tighten()
            return self._list.take(pages, *limits)
        runs = [(end - first, first) for first, end in joined(self._pieces())]
        first = self._carve(sorted([run for run in runs if run[0] >= pages]), pages, *limits)
        if first < 0 and tails:
            first = self._use_tail(sorted(self._with_tails(runs, pages)), pages, *limits)
            if first < 0:
                first = self._use_tail(sorted(self._tails(pages)), pages, *limits)
        return first

    def _with_tails(self, runs: Iterable[tuple[int, int]], least: int) -> list[tuple[int, int, int]]:
        """As `_tails`: those that a free run follows, and it. `runs`: (pages, first)."""
        found = []
        for length, start in runs:
            if length + LARGEST // 2 <= least:
                continue  # no tail is that long
            for k in range(2, _CLASSES):
                block = start - (1 << k)
                asked = self._held.get(block, 0)
                if 1 << k >> 1 < asked < 1 << k:
                    whole = length + (1 << k) - asked
                    if whole >= least:
                        found.append((whole, block + asked, block))
                    break
        return found

    def _use_tail(
        self, tails: Iterable[tuple[int, int, int]], pages: int, alignment: int, boundary: int, within: Within
    ) -> int:
        for length, start, block in tails:
            if place(((start, start + length),), pages, alignment, boundary, within) >= 0:
                asked = self._exact[block] = self._held.pop(block)  # it is no block any more
                self._give(start, block + rounded(asked))
                return self._carve([(length, start)], pages, alignment, boundary, within)
        return NO_ROOM

    def _carve(self, runs: Iterable[tuple[int, int]], pages: int, alignment: int, boundary: int, within: Within) -> int:
        """Take so many pages out of the first run that will do. `runs`: (pages, first)."""
        for length, at in runs:
            first = place(((at, at + length),), pages, alignment, boundary, within)
            if first < 0:
                continue
            pieces = self._pieces()
            while at < first + pages:
                size = pieces[at]
                if at + size > first:
                    if at in self._list.sizes:
                        self._list.remove(at)
                    else:
                        self._magazines[size.bit_length() - 1].remove(at)
                    self._give(at, first)
                    self._give(first + pages, at + size)
                at += size
            return first
        return NO_ROOM

    # -- to round, or not ---------------------------------------------------------------------------------------------

    def _room(self) -> tuple[int, int]:
        """How many pages are free, but for tails; and in tails."""
        room = sum(self._list.sizes.values()) + sum([len(each) << k for k, each in enumerate(self._magazines)])
        return room, self.pages - room - sum(self._held.values()) - sum(self._exact.values())

    def _waste(self) -> int:
        """How many pages more exact ranges would take, rounded."""
        return sum(map(rounded, self._exact.values())) - sum(self._exact.values())

    def _review(self) -> None:
        """Tails may have 5/16 of all pages: sizes as they come lose a quarter of what they take, 17 pages nearly half.

        Tight until tails would have at most 1/4, and 1/8 would be left.
        """
        self._review_in = len(self._exact) if self._tight else self.pages // 2048
        room, tails = self._room()
        waste = self._waste()
        if not self._tight:
            if tails * 16 > self.pages * 5:
                self._tighten()
        elif self._rounds and waste * 4 <= self.pages and (room - waste) * 8 >= self.pages:
            self._tight = False
            free, self._list = self._list, FreeList(self._limit)
            for first, pages in free.sizes.items():
                self._give(first, first + pages)

    def _tighten(self) -> None:
        """Round nothing. Looking at it again costs little when as many requests were made as ranges are held."""
        self._list = FreeList(self._limit, self.runs())
        for magazine in self._magazines:
            magazine.clear()
        self._exact |= self._held
        self._held.clear()
        self._tight = True
        self._review_in = len(self._exact)

    def _not_held(self, first: int, pages: int) -> DriverError:
        what = f"cannot free {describe(first, pages)}: "
        for start, size in (*self._held.items(), *self._exact.items()):
            if start == first or (start < first + pages and first < start + size):
                return DriverError(f"{what}allocated was {describe(start, size)}; give back the whole range, once")
        for start, end in self.runs():
            if start < first + pages and first < end:
                return DriverError(f"{what}{describe(start, end - start)} are free already; give a range back once")
        windows = " and ".join(describe(start, end - start) for start, end in self.windows)
        return DriverError(f"{what}the allocator has {windows}; give back what it granted")


def rounded(pages: int) -> int:
    """What a request for so many pages takes while there is room."""
    return 1 << (pages - 1).bit_length() if pages <= LARGEST else pages


def whole_pages(addresses: AddressSet, page_size: int) -> list[tuple[int, int]]:
    """The pages that lie within a set of addresses entirely: (first, last) ranges of their numbers."""
    ranges = [(-(-lo // page_size), (hi + 1) // page_size - 1) for lo, hi in addresses]
    return [(first, last) for first, last in ranges if first <= last]


def _by_pages(magazines: Sequence[Magazine], none: Magazine) -> list[Magazine]:
    """The magazine for each number of pages. For 0, and for -256 to -1, which count from the end, it is empty."""
    table = [magazines[(pages - 1).bit_length()] for pages in range(1, LARGEST + 1)]
    return [none] + table + [none] * LARGEST
