"""Simple models of loads, written to be obviously right: unbounded integers, one byte or one page at a time.

Nothing here imports the code under test, except for its numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from busdma.addresses import AddressSet
from busdma.constraints import Constraints
from busdma.segments import ABSENT, FOREIGN, NOT_MAPPED, TOO_MANY, UNREACHABLE

TOP = 1 << 64
NO_RAM = memoryview(bytearray(1))  #: for segmenters that copy nothing
Span = tuple[int, int]


@dataclass(frozen=True)
class Limits:
    """What a tag says. `reach`: disjoint intervals, inclusive, ascending, not touching; `maxsegsz` in alignments."""

    page: int
    reach: tuple[Span, ...]
    alignment: int = 1
    boundary: int = 0
    maxsegsz: int = TOP - 1
    nsegments: int = TOP - 1

    def reaches(self, lo: int, hi: int) -> bool:
        """True if the device reaches every byte from lo to hi."""
        return any(a <= lo and hi <= b for a, b in self.reach)

    def segmenter(self, module: Any, ram: memoryview = NO_RAM, base: int = 0) -> Any:
        """A Segmenter of either form with these limits, that starts with as little room as it accepts."""
        reach = array("Q", (edge for span in self.reach for edge in span))
        numbers = (self.alignment, self.boundary, self.maxsegsz - self.maxsegsz % self.alignment, self.nsegments)
        return module.Segmenter(self.page, reach, *numbers, ram, base, 1)

    def constraints(self) -> Constraints:
        """The same limits as a tag has them."""
        return Constraints.unlimited("root").narrow(
            "model",
            alignment=self.alignment,
            boundary=self.boundary,
            exclude=~AddressSet(self.reach),
            nsegments=self.nsegments,
            maxsegsz=self.maxsegsz,
        )


@dataclass(frozen=True)
class Shape:
    """A buffer: a page table, where in it the buffer begins, how long it is."""

    table: tuple[int, ...]
    start: int
    length: int


@dataclass(frozen=True)
class Answer:
    """What a load must say. `faults`: any of these pages may be named."""

    code: int
    segments: tuple[Span, ...] = ()
    needed: int | None = None
    faults: tuple[int, ...] = ()


def cut_bytes(addresses: Iterable[int], limits: Limits) -> tuple[Span, ...]:
    """Segments of these bytes, in order: a byte opens one unless it may follow the byte before."""
    size = limits.maxsegsz - limits.maxsegsz % limits.alignment
    found: list[list[int]] = []
    for address in addresses:
        follows = bool(found) and sum(found[-1]) == address
        line = limits.boundary > 0 and address % limits.boundary == 0
        if follows and not line and found[-1][1] < size:
            found[-1][1] += 1
        else:
            found.append([address, 1])
    return tuple((a, n) for a, n in found)


def every_byte(spans: Iterable[Span]) -> Iterator[int]:
    """The addresses of all bytes, in order."""
    for address, length in spans:
        yield from range(address, address + length)


def runs_of(spans: Iterable[Span]) -> list[Span]:
    """Maximal physical runs of (address, length)."""
    found: list[Span] = []
    for address, length in spans:
        if found and sum(found[-1]) == address:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((address, length))
    return found


def cut_runs(spans: Iterable[Span], limits: Limits) -> tuple[Span, ...]:
    """The same as `cut_bytes`, a run at a time."""
    size = limits.maxsegsz - limits.maxsegsz % limits.alignment
    found = []
    for start, left in runs_of(spans):
        at = start
        while left:
            part = min(left, size)
            if limits.boundary:
                part = min(part, limits.boundary - at % limits.boundary)
            found.append((at, part))
            at, left = at + part, left - part
    return tuple(found)


def pages_of(shape: Shape, page: int) -> Iterator[tuple[int, int, int]]:
    """Page number, offset in the page and bytes, for each page of the buffer."""
    at, end = shape.start, shape.start + shape.length
    while at < end:
        index, head = divmod(at, page)
        size = min(page - head, end - at)
        yield index, head, size
        at += size


def has_to_bounce(limits: Limits, frame: int, head: int, size: int) -> bool:
    """True if the bytes of this page cannot stay where they are."""
    if frame >= FOREIGN or not limits.reaches(frame + head, frame + head + size - 1):
        return True
    return (head if limits.alignment <= limits.page else frame + head) % limits.alignment > 0


def expect_load(limits: Limits, shape: Shape, by_bytes: bool = False) -> Answer:
    """What a load must answer."""
    entries = len(shape.table)
    first, last = shape.start // limits.page, (shape.start + shape.length - 1) // limits.page
    if shape.length < 1 or first >= entries:
        return Answer(NOT_MAPPED, faults=(first,))
    absent = [i for i in range(first, min(last + 1, entries)) if shape.table[i] == ABSENT]
    if absent or last >= entries:
        return Answer(NOT_MAPPED, faults=(*absent[:1], *([entries] if last >= entries else [])))
    pages = [(shape.table[index], head, size) for index, head, size in pages_of(shape, limits.page)]
    spans = [(frame + head, size) for frame, head, size in pages]
    bounced = sum(has_to_bounce(limits, *page) for page in pages)
    if limits.alignment > limits.page:
        # A page inside a run need not be aligned; where one run is not, all is counted page by page.
        where = [limits.reaches(a, a + n - 1) and a < FOREIGN for a, n in spans]
        if all(where) and all(a % limits.alignment == 0 for a, _ in runs_of(spans)):
            bounced = 0
    if bounced:
        return Answer(UNREACHABLE, needed=bounced)
    segments = cut_bytes(every_byte(spans), limits) if by_bytes else cut_runs(spans, limits)
    if len(segments) > limits.nsegments:
        return Answer(TOO_MANY, segments)
    return Answer(len(segments), segments)


# -- random limits and buffers, rich in edges -------------------------------------------------------------------------


def frame_numbers(page: int) -> list[int]:
    """Pages at the bottom, around 4 GiB and at the top of the address space."""
    middle, top = (1 << 32) // page, TOP // page
    return [*range(12), *range(middle - 3, middle + 3), *range(top - 5, top)]


@st.composite
def reaches(draw: st.DrawFn, page: int) -> tuple[Span, ...]:
    """Intervals with edges in mid-page and at page edges, that do not touch each other."""
    if draw(st.booleans()):
        ends = [TOP - 1, TOP - 1, TOP - 1, TOP - 1 - page, (1 << 32) - 1, 8 * page - 1, page - 1, page // 2]
        return ((0, draw(st.sampled_from(ends))),)
    edges = st.builds(
        lambda number, offset: min(max(number * page + offset, 0), TOP - 1),
        st.sampled_from(frame_numbers(page)),
        st.sampled_from([-1, 0, 0, 1, page // 2, page - 1]),
    )
    pairs = draw(st.lists(st.tuples(edges, edges), min_size=1, max_size=5))
    return AddressSet((min(pair), max(pair)) for pair in pairs).intervals


@st.composite
def limits(draw: st.DrawFn, page: int, reach: tuple[Span, ...] | None = None) -> Limits:
    """Any limits that can hold together, also below and above one page."""
    reach = draw(reaches(page)) if reach is None else reach
    alignment = 1 << draw(st.one_of(st.just(0), st.integers(0, 2), st.integers(0, page.bit_length() + 1)))
    boundary = draw(st.sampled_from([0, 0, page // 4, page // 2, page, 2 * page, 4 * page, 1 << 32, 1 << 63]))
    if boundary:
        boundary = max(boundary, alignment)
    size = draw(st.sampled_from([TOP - 1, TOP - 1, page // 4, page // 2 + 3, page, page + 5, 2 * page, 3 * page - 1]))
    nsegments = draw(st.one_of(st.sampled_from([TOP - 1, 1 << 63]), st.integers(1, 12)))
    return Limits(page, reach, alignment, boundary, max(size, alignment), nsegments)


@st.composite
def shapes(draw: st.DrawFn, page: int, holes: bool = True) -> Shape:
    """Runs of pages that touch, jump, wrap at 2**64, or are no memory of the machine at all."""
    table: list[int] = []
    pieces = st.tuples(st.sampled_from(frame_numbers(page)), st.integers(1, 4))
    for number, count in draw(st.lists(pieces, min_size=1, max_size=4)):
        table += [(number + i) * page % TOP for i in range(count)]
    if holes and draw(st.integers(0, 9)) == 9:
        table[draw(st.integers(0, len(table) - 1))] = draw(st.sampled_from([ABSENT, FOREIGN]))
    total = len(table) * page
    start = draw(st.one_of(offsets(page, page), st.sampled_from([0, page // 4, page // 2]), offsets(page, total)))
    left = max(total - start, 0)
    return Shape(tuple(table), start, draw(st.one_of(st.just(left), st.integers(0, left), offsets(page, total))))


def offsets(page: int, total: int) -> st.SearchStrategy[int]:
    """Bytes from 0 to a little above `total`, often near the edge of a page."""
    near = st.builds(
        lambda number, offset: max(number * page + offset, 0),
        st.integers(0, total // page),
        st.sampled_from([-1, 0, 0, 1, page // 4, page // 2]),
    )
    return st.one_of(near, st.integers(0, total + 2))


def tuples(pairs: Sequence[int] | memoryview) -> tuple[Span, ...]:
    """A flat row of address, length as pairs."""
    flat = list(pairs)
    return tuple(zip(flat[::2], flat[1::2], strict=True))
