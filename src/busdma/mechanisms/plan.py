"""How a buffer of any pieces will lie on the bus: which of them stay, which are copied, and how those are packed.

A piece stays if the route reaches it, it begins where a segment may, its joints are where the tag wants them, and no
cache line that the device may write is shared with other data. Consecutive pieces that cannot stay are packed into
bounce pages, one behind the other. Where the tag allows fewer segments than that makes, pieces are joined: on a direct
route the shortest window of them, in one contiguous run of bounce pages; behind a translator, whose pages are always
contiguous on the bus, all of them.

The plan is made before anything is held, so it counts pessimistically: what is granted later only touches by luck, and
then saves segments.

Source: Thorpe, USENIX 1998, section 2; bus_dma(9).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from busdma.constraints import UNLIMITED, Constraints
from busdma.mechanisms.pieces import Piece
from busdma.mechanisms.runs import Extent, cuts, shortest
from busdma.mechanisms.zone import Run
from busdma.segments import FOREIGN


@dataclass(slots=True)
class Stretch:
    """Pieces [first, end), which all stay or are all copied."""

    first: int
    end: int
    length: int
    copied: bool
    lead: int = 0  #: bytes of the first bounce page in front of it
    joined: bool = False  #: its bounce pages must be contiguous

    def slots(self, page: int) -> int:
        """Bounce pages that it takes."""
        return -(-(self.lead + self.length) // page) if self.copied else 0


@dataclass(slots=True)
class Layout:
    """What a route and a tag demand of pieces. Limits count in the addresses that the route leads to."""

    limits: Constraints
    page: int
    contiguous: bool  #: a translator makes any pages adjacent
    line: int  #: of a cache that the device's writes would have to share; 1: of none
    taken: dict[int, str] = field(default_factory=dict)  #: pieces that cannot stay though they are reached: which limit

    def touch(self, left: Piece, right: Piece) -> bool:
        """Do two pieces that stay join on the bus?"""
        if left.end == right.address and left.address != FOREIGN:
            return True
        return self.contiguous and left.end % self.page == 0 == right.address % self.page

    def split(self, pieces: list[Piece], stay: list[bool]) -> list[Stretch]:
        """The stretches, after as many more pieces were taken out of `stay` as the limits need."""
        while self._unfit(pieces, stay):
            pass
        if self.limits.alignment.value > self.page and not all(stay):
            self.taken.update((at, "alignment") for at, here in enumerate(stay) if here)
            stay[:] = [False] * len(stay)
        found: list[Stretch] = []
        for at, piece in enumerate(pieces):
            if found and found[-1].copied != stay[at]:
                found[-1].end = at + 1
                found[-1].length += piece.size
            else:
                found.append(Stretch(at, at + 1, piece.size, not stay[at]))
        joint = self.limits.joint.value
        for stretch in found[:-1]:
            if stretch.copied and joint > 1 and stretch.length % joint:
                stretch.lead = self.page - stretch.length % self.page
                if stretch.first or stretch.lead % self.limits.alignment.value:
                    stay[stretch.end] = False  # it cannot end where the next may begin: take that too
                    self.taken[stretch.end] = "joint"
                    return self.split(pieces, stay)
        return found

    def _unfit(self, pieces: list[Piece], stay: list[bool]) -> bool:
        """Take out of `stay` what cannot be where it is beside its neighbours; was there any?"""
        alignment, joint, line = self.limits.alignment.value, self.limits.joint.value, self.line
        if self.contiguous:
            alignment = min(alignment, self.page)  # the rest is a matter of where the bus pages are
        last, found = len(pieces) - 1, False
        for at, piece in enumerate(pieces):
            if not stay[at]:
                continue
            begins = at == 0 or not stay[at - 1] or not self.touch(pieces[at - 1], piece)
            ends = at == last or not stay[at + 1] or not self.touch(piece, pieces[at + 1])
            shared = line > 1 and not (piece.uncached or piece.private)
            alone = at == 0 or not stay[at - 1] or pieces[at - 1].end != piece.address
            alone_after = at == last or not stay[at + 1] or piece.end != pieces[at + 1].address
            limit = ""
            if begins and piece.address % alignment:
                limit = "alignment"
            elif (begins and at and piece.address % joint) or (ends and at != last and piece.end % joint):
                limit = "joint"
            elif shared and ((alone and piece.address % line) or (alone_after and piece.end % line)):
                limit = "line"
            if limit:
                stay[at] = False
                self.taken[at] = limit
                found = True
        return found


@dataclass(slots=True)
class Plan:
    """What to hold, and where the pieces go then."""

    pieces: list[Piece]
    stretches: list[Stretch]
    slots: int  #: bounce pages, in the order of the stretches
    run: Run | None  #: those of them that must be contiguous
    bus_pages: int  #: of a translator
    segments: int  #: at most


def make_plan(layout: Layout, pieces: list[Piece], stay: list[bool]) -> Plan | None:
    """The plan with the fewest copies that this module knows; None: too many segments, however they are joined.

    `stay`: which pieces the route reaches where they are.
    """
    most = layout.limits.nsegments.value
    for stretches in _candidates(layout, pieces, stay):
        segments = _segments(layout, pieces, stretches)
        if segments <= most:
            return _plan(layout, pieces, stretches, segments)
    return None


def _candidates(layout: Layout, pieces: list[Piece], stay: list[bool]) -> Iterator[list[Stretch]]:
    """As few copies as there can be, then joined, then all in one."""
    yield layout.split(pieces, list(stay))
    if not layout.contiguous:
        window = _window(layout, pieces, stay)
        if window is not None:
            yield _join(layout, pieces, stay, *window)
    yield [Stretch(0, len(pieces), sum(piece.size for piece in pieces), True, joined=True)]


def _join(layout: Layout, pieces: list[Piece], stay: list[bool], first: int, end: int) -> list[Stretch]:
    """The stretches with pieces [first, end) in one run."""
    before, after = layout.split(pieces[:first], stay[:first]), layout.split(pieces[end:], stay[end:])
    for stretch in after:
        stretch.first += end
        stretch.end += end
    length = sum(piece.size for piece in pieces[first:end])
    return [*before, Stretch(first, end, length, True, joined=True), *after]


def _window(layout: Layout, pieces: list[Piece], stay: list[bool]) -> tuple[int, int] | None:
    """Which pieces to join in one run, if that is not all of them."""
    limits = layout.limits
    if limits.joint.value > 1 or layout.line > 1 or limits.alignment.value > layout.page:
        return None
    left = list(stay)
    layout.split(pieces, left)  # for what it takes out
    extents = [
        Extent(each.address if here else 0, each.size, not here) for each, here in zip(pieces, left, strict=True)
    ]
    found = shortest(extents, [0, *accumulate(piece.size for piece in pieces)], 0, limits)
    return found if found != (0, 0) else None


def _plan(layout: Layout, pieces: list[Piece], stretches: list[Stretch], segments: int) -> Plan:
    page, limits = layout.page, layout.limits
    joined = next((stretch for stretch in stretches if stretch.joined), None)
    slots = sum(stretch.slots(page) for stretch in stretches)
    run = None
    if layout.contiguous:
        bus_pages = bus_layout(layout, pieces, stretches)[1]
        return Plan(pieces, stretches, slots, None, bus_pages, segments)
    copied_whole = limits.alignment.value > page
    if joined is None and copied_whole:
        joined = next((stretch for stretch in stretches if stretch.copied), None)
    if joined is not None:
        boundary, pages = limits.boundary.value, joined.slots(page)
        across = 0 < boundary < pages * page
        run = Run(
            first=0,
            pages=pages,
            before=sum(s.slots(page) for s in stretches if s.end <= joined.first),
            after=sum(s.slots(page) for s in stretches if s.first >= joined.end),
            alignment=max(limits.alignment.value, boundary if across else 1, page),
            boundary=0 if across else boundary,
            lead=joined.lead,
            length=joined.length,
        )
    return Plan(pieces, stretches, slots, run, 0, segments)


def _segments(layout: Layout, pieces: list[Piece], stretches: list[Stretch]) -> int:
    """At most so many."""
    limits, page = layout.limits, layout.page
    if layout.contiguous:
        spans = merged(bus_layout(layout, pieces, stretches)[0])
        if len(spans) > 1 and limits.alignment.value > page:
            return UNLIMITED  # only the first bus page is aligned so far
        return sum(cuts(at, size, limits) for at, size in spans)
    total = 0
    for stretch in stretches:
        if stretch.joined:
            total += cuts(stretch.lead, stretch.length, limits)
        elif stretch.copied:
            total += sum(cuts(at, size, limits) for at, size in _in_pages(stretch.lead, stretch.length, page))
        else:
            held = [(piece.address, piece.size) for piece in pieces[stretch.first : stretch.end]]
            total += sum(cuts(at, size, limits) for at, size in merged(held))
    return total


def bus_layout(layout: Layout, pieces: list[Piece], stretches: list[Stretch]) -> tuple[list[tuple[int, int]], int]:
    """Behind a translator: (offset from the first bus page, length) of everything, in order, and the bus pages in all.

    A copied stretch is one entry, a piece that stays is one.
    """
    page = layout.page
    found: list[tuple[int, int]] = []
    pages = 0
    for stretch in stretches:
        if stretch.copied:
            found.append((pages * page + stretch.lead, stretch.length))
            pages += stretch.slots(page)
            continue
        before: Piece | None = None
        for piece in pieces[stretch.first : stretch.end]:
            if before is None or before.end != piece.address or piece.address % page == 0:
                pages += 1
            found.append(((pages - 1) * page + piece.address % page, piece.size))
            before = piece
    return found, pages


def frames_of(plan: Plan, slots: Sequence[int], page: int) -> list[int]:
    """The page frame of each bus page, as `bus_layout` numbers them; `slots`: the bounce pages, by physical address."""
    found: list[int] = []
    used = 0
    for stretch in plan.stretches:
        if stretch.copied:
            count = stretch.slots(page)
            found += slots[used : used + count]
            used += count
            continue
        before = -1
        for piece in plan.pieces[stretch.first : stretch.end]:
            if before != piece.address or piece.address % page == 0:
                found.append(piece.address - piece.address % page)
            before = piece.end
    return found


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Adjacent (address, length) pairs as one."""
    found: list[tuple[int, int]] = []
    for at, size in spans:
        if found and found[-1][0] + found[-1][1] == at:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((at, size))
    return found


def _in_pages(lead: int, length: int, page: int) -> list[tuple[int, int]]:
    """A packed stretch, page by page."""
    found = []
    while length:
        size = min(page - lead, length)
        found.append((lead, size))
        lead, length = 0, length - size
    return found


def cut(start: int, length: int, limits: Constraints) -> list[tuple[int, int]]:
    """One run as segments: cut at boundary lines and after maxsegsz, as the segmenter does."""
    boundary, most = limits.boundary.value, limits.maxsegsz.value
    most -= most % limits.alignment.value
    found = []
    while length:
        size = min(length, most, boundary - start % boundary if boundary else length)
        found.append((start, size))
        start, length = start + size, length - size
    return found
