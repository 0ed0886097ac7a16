"""Bus pages against a bitmap: overlap, alignment, boundary, windows, conservation, refusal of what will not fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.addresses import AddressSet
from busdma.errors import ConstraintError, DriverError
from busdma.mechanisms.iova_allocator import MAGAZINES, NEVER, NO_ROOM, IovaAllocator, joined, whole_pages

Within = Sequence[tuple[int, int]] | None


class Bitmap:
    """A set of free pages, searched page by page."""

    def __init__(self, windows: Iterable[tuple[int, int]]) -> None:
        self.all = {page for lo, hi in windows for page in range(lo, hi + 1)}
        self.free = set(self.all)

    def legal(self, first: int, pages: int, alignment: int, boundary: int, within: Within, free: set[int]) -> bool:
        wanted = range(first, first + pages)
        lines = {page // boundary for page in wanted} if boundary else {0}
        inside = within is None or any(lo <= first and first + pages - 1 <= hi for lo, hi in within)
        return first % alignment == 0 and len(lines) == 1 and inside and free.issuperset(wanted)

    def answer(self, pages: int, alignment: int, boundary: int, within: Within) -> int:
        """NEVER, NO_ROOM, or any number of 0 or more."""
        for answer, free in ((0, self.free), (NO_ROOM, self.all)):
            if any(self.legal(first, pages, alignment, boundary, within, free) for first in free):
                return answer
        return NEVER


windows = st.sampled_from([((0, 63),), ((5, 68),), ((3, 17), (20, 40), (41, 50)), ((1, 1), (64, 127))])
powers = st.sampled_from([1, 1, 1, 2, 4, 8, 16, 64])
limits = st.sampled_from([None, None, None, ((8, 30),), ((0, 15), (33, 70)), ((21, 21),)])
asks = st.tuples(st.integers(1, 20), powers, st.one_of(st.just(0), powers), limits)
scripts = st.lists(st.one_of(asks, st.integers(0, 99)), max_size=80)


@settings(max_examples=400)
@given(windows, scripts)
def test_any_script_against_a_bitmap(
    windows: Sequence[tuple[int, int]], script: list[tuple[int, int, int, Within] | int]
) -> None:
    allocator, bitmap = IovaAllocator(windows), Bitmap(windows)
    held: list[tuple[int, int]] = []
    assert allocator.pages == len(bitmap.all)
    for step in script:
        if isinstance(step, int):
            if held:
                first, pages = held.pop(step % len(held))
                allocator.free(first, pages)
                bitmap.free.update(range(first, first + pages))
        else:
            pages, alignment, boundary, within = step
            first = allocator.allocate(pages, alignment, boundary, within)
            assert min(first, 0) == bitmap.answer(pages, alignment, boundary, within)
            assert allocator.possible(pages, alignment, boundary, within) == (first != NEVER)
            if first >= 0:
                assert bitmap.legal(first, pages, alignment, boundary, within, bitmap.free)
                bitmap.free.difference_update(range(first, first + pages))
                held.append((first, pages))
                assert allocator.holds(first)
        runs = allocator.runs()
        assert {page for first, end in runs for page in range(first, end)} == bitmap.free
        assert all(end < first for (_, end), (first, _) in pairwise(runs))
    for first, pages in held:
        allocator.free(first, pages)
    assert allocator.runs() == [(lo, hi + 1) for lo, hi in AddressSet(windows)]


@pytest.mark.parametrize("sizes", [[1], [1, 2, 4, 8, 16], [3, 5, 7, 17], range(1, 65), [64, 1]])
def test_long_mixed_traffic_never_overlaps_and_never_refuses_what_would_fit(sizes: Sequence[int]) -> None:
    random = Random(1995)
    allocator, bitmap = IovaAllocator([(16, 16 + 511)]), Bitmap([(16, 16 + 511)])
    held: list[tuple[int, int]] = []
    refused = 0
    for _ in range(3000):
        pages = random.choice(sizes)
        first = allocator.allocate(pages)
        if first < 0:
            refused += 1
            assert first == NO_ROOM
            assert not any(bitmap.legal(at, pages, 1, 0, None, bitmap.free) for at in bitmap.free)
            first, pages = held.pop(random.randrange(len(held)))
            allocator.free(first, pages)
            bitmap.free.update(range(first, first + pages))
        else:
            taken = range(first, first + pages)
            assert bitmap.free.issuperset(taken)
            bitmap.free.difference_update(taken)
            held.append((first, pages))
    assert refused > 100
    for each in held:
        allocator.free(*each)
    assert allocator.runs() == [(16, 528)]


def test_the_last_to_come_back_is_the_first_to_go() -> None:
    allocator = IovaAllocator([(0, 1023)])
    firsts = [allocator.allocate(4) for _ in range(8)]
    for first in firsts:
        allocator.free(first, 4)
    assert [allocator.allocate(4) for _ in range(8)] == firsts[::-1]


def test_powers_of_two_lie_naturally_aligned_so_that_any_limit_suits_them() -> None:
    allocator = IovaAllocator([(1, 1000)])
    for pages in (1, 64, 2, 32, 16, 8, 128):
        assert allocator.allocate(pages) % pages == 0
    first = allocator.allocate(16)
    allocator.free(first, 16)
    assert allocator.allocate(16, alignment_pages=16, boundary_pages=16) == first


def test_a_power_of_two_takes_an_odd_place_rather_than_none() -> None:
    allocator = IovaAllocator([(1, 4)])
    assert allocator.allocate(4) == 1
    assert IovaAllocator([(1, 4)]).allocate(4, alignment_pages=4) == NEVER
    assert IovaAllocator([(1, 4)]).allocate(4, boundary_pages=4) == NEVER


def test_a_request_on_the_top_of_a_magazine_that_does_not_suit_looks_elsewhere() -> None:
    allocator = IovaAllocator([(3, 40)])
    odd = allocator.allocate(3)
    assert odd == 3
    allocator.free(odd, 3)
    aligned = allocator.allocate(3, alignment_pages=8)
    assert aligned == 8
    assert allocator.allocate(3, within=((20, 22),)) == 20
    assert allocator.allocate(3) == odd


def test_magazines_are_emptied_before_anything_is_refused() -> None:
    allocator = IovaAllocator([(0, 255)])
    for pages in (1, 2, 5, 8):
        firsts = []
        while (first := allocator.allocate(pages)) >= 0:
            firsts.append(first)
        assert len(firsts) == 256 // pages
        for first in firsts:
            allocator.free(first, pages)
    assert allocator.allocate(256) == 0
    assert allocator.allocate(1) == NO_ROOM
    assert allocator.allocate(257) == NEVER


def test_more_sizes_than_magazines() -> None:
    allocator = IovaAllocator([(0, 9999)])
    ranges = [(allocator.allocate(pages), pages) for pages in range(1, 3 * MAGAZINES)]
    for each in ranges:
        allocator.free(*each)
    assert allocator.allocate(10000) == 0


def test_holes_are_never_crossed() -> None:
    vtd = AddressSet.span(0xFED00000, 0xFEFFFFFF) - AddressSet.span(0xFEE00000, 0xFEEFFFFF)
    allocator = IovaAllocator.of(vtd, 4096)
    assert allocator.windows == [(0xFED00, 0xFEE00), (0xFEF00, 0xFF000)]
    assert allocator.allocate(257) == NEVER
    both = {allocator.allocate(256), allocator.allocate(256)}
    assert both == {0xFED00, 0xFEF00}
    assert allocator.allocate(1) == NO_ROOM
    for first in both:
        allocator.free(first, 256)
    assert allocator.runs() == allocator.windows


def test_only_whole_pages_count() -> None:
    assert whole_pages(AddressSet(((100, 8191), (12288, 16383), (20000, 20100))), 4096) == [(1, 1), (3, 3)]
    assert joined([(4, 2), (0, 4), (8, 1)]) == [(0, 6), (8, 9)]
    with pytest.raises(ConstraintError, match="at least one whole page"):
        IovaAllocator.of(AddressSet.span(1, 4095), 4096)


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        ((0, 1, 0), "at least one page"),
        ((3, 3, 0), "powers of two"),
        ((3, 1, 6), "powers of two"),
        ((3, 0, 0), "powers"),
    ],
)
def test_what_is_no_request(ask: tuple[int, int, int], why: str) -> None:
    with pytest.raises(ConstraintError, match=why):
        IovaAllocator([(0, 63)]).allocate(*ask)


def test_what_cannot_be_given_back() -> None:
    allocator = IovaAllocator([(0x10, 0x4F)])
    first = allocator.allocate(16)
    assert first == 0x10
    with pytest.raises(DriverError, match=r"cannot free bus pages 0x10\.\.0x17: allocated was bus pages 0x10\.\.0x1f"):
        allocator.free(0x10, 8)
    with pytest.raises(DriverError, match=r"cannot free bus page 0x12: allocated was bus pages 0x10\.\.0x1f"):
        allocator.free(0x12, 1)
    with pytest.raises(DriverError, match=r"bus pages 0x30\.\.0x3f: bus pages 0x20\.\.0x4f are free already"):
        allocator.free(0x30, 16)
    with pytest.raises(DriverError, match=r"bus page 0x7: the allocator has bus pages 0x10\.\.0x4f; give back what it"):
        allocator.free(7, 1)
    allocator.free(first, 16)
    with pytest.raises(DriverError, match=r"bus pages 0x10\.\.0x1f: bus pages 0x10\.\.0x4f are free already"):
        allocator.free(first, 16)
    with pytest.raises(DriverError, match="give back what it granted"):
        allocator.free(first, 0)
    assert allocator.runs() == [(0x10, 0x50)]
    assert allocator.allocate(16) == first
