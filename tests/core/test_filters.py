"""Filters against the plainest model: an address is reached if no exclusion holds it and no filter there objects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma import AddressSet, ConstraintError, Direction
from busdma.constraints import Constraints
from core.small_machine import PAGE, SmallMachine, page_starts

TOP = 63  # the model's addresses are 0..TOP; a page is one address


def objects_to(residues: frozenset[int]) -> Callable[[int, int], bool]:
    return lambda first, last: any(address % 8 in residues for address in range(first, last + 1))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("hole"), st.integers(0, TOP), st.integers(0, TOP), st.just(frozenset[int]())),
        st.tuples(st.just("window"), st.integers(0, TOP), st.integers(0, TOP), st.just(frozenset[int]())),
        st.tuples(
            st.just("filter"), st.integers(0, TOP), st.integers(0, TOP), st.frozensets(st.integers(0, 7), max_size=4)
        ),
    ),
    max_size=4,
)


@given(STEPS)
def test_a_filter_objects_only_in_its_window_and_readmits_nothing(
    steps: list[tuple[str, int, int, frozenset[int]]],
) -> None:
    tag = Constraints.unlimited("root").narrow("memory", lowaddr=TOP)
    reached = set(range(TOP + 1))
    always = set(reached)
    for kind, a, b, residues in steps:
        low, high = min(a, b), max(a, b)
        span = set(range(low + 1, high + 1))
        removed = {n for n in span if n % 8 in residues} if kind == "filter" else span
        if not always - span:
            return  # nothing would be left for bounce pages, which is refused
        reached -= removed
        always -= span
        if kind == "filter":
            tag = tag.narrow("child", lowaddr=low, highaddr=high, filter=objects_to(residues))
        elif kind == "window":
            tag = tag.narrow("child", lowaddr=low, highaddr=high)
        elif low < high:
            tag = tag.narrow("child", exclude=AddressSet.span(low + 1, high))
    assert {n for n in range(TOP + 1) if tag.admits(n, n)} == reached
    assert {n for n in range(TOP + 1) if not tag.why_not(n, n)} == reached
    assert {n for lo, hi in tag.reach for n in range(lo, hi + 1)} == always


def test_the_filter_is_asked_about_nothing_outside_its_window() -> None:
    asked: list[tuple[int, int]] = []
    tag = Constraints.unlimited("root").narrow("bus", lowaddr=0x7FFF)

    def ask(first: int, last: int) -> bool:
        asked.append((first, last))
        return False

    child = tag.narrow("device", lowaddr=0xFFF, highaddr=0x3FFF, filter=ask)
    assert child.admits(0, 0xFFF)
    assert child.admits(0x4000, 0x4FFF)
    assert not child.admits(0x8000, 0x8FFF)
    assert asked == []
    assert child.admits(0x1000, 0x1FFF)
    assert asked == [(0x1000, 0x1FFF)]


def test_a_filter_needs_its_window() -> None:
    with pytest.raises(ConstraintError, match="give lowaddr too"):
        Constraints.unlimited("root").narrow("device", filter=lambda first, last: False)


@given(st.frozensets(st.integers(0, 7), max_size=7), st.integers(1, 12), st.integers(0, PAGE - 1))
def test_pages_that_a_filter_objects_to_bounce_and_no_others(bad: frozenset[int], pages: int, offset: int) -> None:
    """Contiguous runs too: a run is asked about page by page."""
    machine = SmallMachine(pages=256, low=64, limit=64)

    def avoids(first: int, last: int) -> bool:
        assert first // PAGE == last // PAGE
        return first // PAGE % 8 in bad

    tag = machine.root.derive("device", lowaddr=64 * PAGE - 1, filter=avoids)
    buffer = machine.kernel.allocate(pages * PAGE - offset, offset=offset, contiguous=True)
    expected = {
        number
        for number, (frame, _, _) in enumerate(page_starts(buffer))
        if frame // PAGE >= 64 and frame // PAGE % 8 in bad
    }
    fates = tag.explain(buffer).pages
    assert {fate.page for fate in fates if fate.mechanism == "bounce"} == expected
    assert all("filter of tag 'device' objects" in fate.reason for fate in fates if fate.page in expected)
    map = tag.create_map()
    segments = map.load_nowait(buffer, Direction.TO_DEVICE)
    assert sum(length for _, length in segments) == len(buffer)
    assert map.tag.domain.zones[0].active == len(expected)
    for address, length in segments:
        for at in range(address - address % PAGE, address + length, PAGE):
            assert at < 64 * PAGE or at // PAGE % 8 not in bad
    map.unload()


def test_what_a_filter_raises_comes_out_of_the_load() -> None:
    machine = SmallMachine(pages=256, low=64, limit=64)

    def fails(first: int, last: int) -> bool:
        raise ZeroDivisionError("in the filter")

    tag = machine.root.derive("device", lowaddr=64 * PAGE - 1, filter=fails)
    buffer = machine.kernel.allocate(3 * PAGE, within=AddressSet.span(64 * PAGE, 256 * PAGE - 1))
    map = tag.create_map()
    with pytest.raises(ZeroDivisionError, match="in the filter"):
        map.load_nowait(buffer)
    assert len(map.segments) == 0
