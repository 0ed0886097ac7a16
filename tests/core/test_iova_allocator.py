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
from busdma.mechanisms.free_list import NO_ROOM, joined
from busdma.mechanisms.iova_allocator import NEVER, IovaAllocator, whole_pages

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
@given(windows, scripts, st.booleans())
def test_any_script_against_a_bitmap(
    windows: Sequence[tuple[int, int]], script: list[tuple[int, int, int, Within] | int], rounds: bool
) -> None:
    allocator, bitmap = IovaAllocator(windows, rounds=rounds), Bitmap(windows)
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


limited = st.tuples(st.sampled_from([1, 1, 1, 2, 64, 512]), st.sampled_from([0, 0, 0, 256, 1024]))
in_order = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 300), limited), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.randoms(use_true_random=False), in_order)
def test_crowded_and_tight_windows_against_a_bitmap(
    first_page: int, random: Random, asks: list[tuple[int, int, tuple[int, int]]]
) -> None:
    window = ((first_page, first_page + 1800), (first_page + 1900, first_page + 2600))
    allocator, bitmap = IovaAllocator(window, rounds=True), Bitmap(window)
    held: list[tuple[int, int]] = []
    for gone, pages, (alignment, boundary) in asks * 4:
        for _ in range(min(gone, len(held))):
            first, size = held.pop(random.randrange(len(held)))
            allocator.free(first, size)
            bitmap.free.update(range(first, first + size))
        first = allocator.allocate(pages, alignment, boundary)
        assert min(first, 0) == bitmap.answer(pages, alignment, boundary, None)
        if first >= 0:
            assert bitmap.legal(first, pages, alignment, boundary, None, bitmap.free)
            bitmap.free.difference_update(range(first, first + pages))
            held.append((first, pages))
    assert sum(end - first for first, end in allocator.runs()) == len(bitmap.free)
    for each in held:
        allocator.free(*each)
    assert allocator.runs() == [(lo, hi + 1) for lo, hi in window]


@pytest.mark.parametrize("rounds", [True, False])
@pytest.mark.parametrize("sizes", [[1], [1, 2, 4, 8, 16], [3, 5, 7, 17], range(1, 65), [64, 1]])
def test_long_mixed_traffic_never_overlaps_and_never_refuses_what_would_fit(sizes: Sequence[int], rounds: bool) -> None:
    random = Random(1995)
    allocator, bitmap = IovaAllocator([(16, 16 + 511)], rounds=rounds), Bitmap([(16, 16 + 511)])
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
    allocator = IovaAllocator([(0, 1023)], rounds=True)
    firsts = [allocator.allocate(4) for _ in range(8)]
    for first in firsts:
        allocator.free(first, 4)
    assert [allocator.allocate(4) for _ in range(8)] == firsts[::-1]


def test_powers_of_two_lie_naturally_aligned_so_that_any_limit_suits_them() -> None:
    allocator = IovaAllocator([(1, 1000)], rounds=True)
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


def test_limits_that_the_block_on_top_of_a_magazine_does_not_meet() -> None:
    allocator = IovaAllocator([(3, 40)], rounds=True)
    last = allocator.allocate(3)
    assert last == 4
    allocator.free(last, 3)
    assert allocator.allocate(3, alignment_pages=8) == 8
    assert allocator.allocate(3, within=((20, 22),)) == 20
    assert allocator.allocate(3, within=((29, 31),)) == 29
    assert allocator.allocate(3, boundary_pages=4) == last
    assert allocator.allocate(3, boundary_pages=2) == NEVER


def test_magazines_never_cost_a_range() -> None:
    allocator = IovaAllocator([(0, 255)])
    for pages in (1, 2, 8, 256):
        firsts = []
        while (first := allocator.allocate(pages)) >= 0:
            firsts.append(first)
        assert len(firsts) == 256 // pages
        for first in firsts:
            allocator.free(first, pages)
    assert allocator.allocate(256) == 0
    assert allocator.allocate(1) == NO_ROOM
    assert allocator.allocate(257) == NEVER


def test_rounding_never_refuses_what_fits_exactly() -> None:
    allocator = IovaAllocator([(0, 2047)], rounds=True)
    held = [(allocator.allocate(pages), pages) for pages in (256, 129, 256, 129, 256, 129, 256, 129)]
    assert [first for first, _ in held] == list(range(0, 2048, 256))
    assert allocator.runs() == [(first + 129, first + 256) for first in range(256, 2048, 512)]
    assert allocator.allocate(128) == NO_ROOM
    held += [(allocator.allocate(127), 127) for _ in range(4)]
    assert allocator.runs() == []
    assert allocator.allocate(1) == NO_ROOM
    for each in held:
        allocator.free(*each)
    assert allocator.runs() == [(0, 2048)]


def test_the_tail_of_a_block_and_the_free_run_behind_it() -> None:
    allocator = IovaAllocator([(0, 4095)], rounds=True)
    sizes = [256, 256, 200, *[256] * 13]
    assert [allocator.allocate(pages) for pages in sizes] == list(range(0, 4096, 256))
    allocator.free(768, 256)
    allocator.free(2304, 256)
    assert allocator.allocate(300, alignment_pages=32) == NO_ROOM
    assert allocator.allocate(300) == 712
    allocator.free(512, 200)
    assert allocator.runs() == [(512, 712), (1012, 1024), (2304, 2560)]
    allocator.free(712, 300)
    assert allocator.runs() == [(512, 1024), (2304, 2560)]


def test_the_tail_of_a_block_alone() -> None:
    allocator = IovaAllocator([(0, 4095)], rounds=True)
    assert [allocator.allocate(256) for _ in range(13)] == list(range(0, 13 * 256, 256))
    first = allocator.allocate(150)
    small = sorted(allocator.allocate(16) for _ in range(32))
    for each in small[1::2]:
        allocator.free(each, 16)
    assert allocator.runs()[0] == (first + 150, first + 256)
    assert allocator.allocate(100, alignment_pages=64) == NO_ROOM
    assert allocator.allocate(100) == first + 150
    assert not allocator.holds(first + 149)
    allocator.free(first, 150)
    assert allocator.runs()[0] == (first, first + 150)


@pytest.mark.parametrize("pages", [3, 5, 17, 33, 129, 300])
def test_a_small_window_is_filled_with_one_odd_size_to_the_last(pages: int) -> None:
    allocator = IovaAllocator([(0, 4095)])
    firsts = []
    while (first := allocator.allocate(pages)) >= 0:
        firsts.append(first)
    assert len(firsts) == 4096 // pages


@pytest.mark.parametrize("pages", [3, 5, 17, 33, 129])
def test_one_odd_size_alone_is_not_refused_before_three_fifths_are_held(pages: int) -> None:
    allocator = IovaAllocator([(0, 8191)])
    firsts = []
    while (first := allocator.allocate(pages)) >= 0:
        firsts.append(first)
    assert len(firsts) * pages * 5 > 8192 * 3
    assert max(end - first for first, end in allocator.runs()) < pages
    random = Random(3)
    for _ in range(5000):
        gone = firsts.pop(random.randrange(len(firsts)))
        allocator.free(gone, pages)
        firsts.append(allocator.allocate(pages))
        assert firsts[-1] >= 0
    for first in firsts:
        allocator.free(first, pages)
    assert allocator.runs() == [(0, 8192)]
    assert allocator.allocate(256) % 256 == 0


def test_sizes_above_the_largest_block() -> None:
    allocator = IovaAllocator([(0, 9999)])
    ranges = [(allocator.allocate(pages), pages) for pages in (257, 1000, 300, 1, 511, 2000)]
    assert len(joined(dict(ranges))) <= 2
    for each in ranges:
        allocator.free(*each)
    assert allocator.runs() == [(0, 10000)]
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
    assert joined({4: 2, 0: 4, 8: 1}) == [(0, 6), (8, 9)]
    with pytest.raises(ConstraintError, match="at least one whole page"):
        IovaAllocator.of(AddressSet.span(1, 4095), 4096)


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        ((0, 1, 0), "at least one page"),
        ((-1, 1, 0), "at least one page"),
        ((-256, 1, 0), "at least one page"),
        ((-1000, 1, 0), "at least one page"),
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
