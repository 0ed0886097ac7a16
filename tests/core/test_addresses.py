"""Exact sets of addresses, against Python's own sets over small universes, and at the edges of 64 bits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import MAX_ADDRESS, AddressSet

SMALL = 40
#: Universes of 40 addresses: at the bottom, across 2**32 and 2**63, and at the top.
BASES = [0, (1 << 32) - 20, (1 << 63) - 20, MAX_ADDRESS - SMALL + 1]

bases = st.sampled_from(BASES)
members = st.sets(st.integers(0, SMALL - 1))
ends = st.one_of(
    st.integers(0, MAX_ADDRESS),
    st.sampled_from([0, 1, 0xFFFF_FFFF, 1 << 32, 1 << 63, MAX_ADDRESS - 1, MAX_ADDRESS]),
)
spans = st.tuples(ends, ends).map(lambda pair: (min(pair), max(pair)))
wide = st.lists(spans, max_size=6).map(AddressSet)


def of(numbers: set[int], base: int) -> AddressSet:
    """The set with these members, one interval each: `AddressSet` has to join them."""
    return AddressSet((base + n, base + n) for n in numbers)


def spell(found: AddressSet, base: int) -> set[int]:
    """Every member, counted out."""
    return {address - base for lo, hi in found for address in range(lo, hi + 1)}


@given(bases, members, members)
def test_algebra_is_that_of_sets(base: int, a: set[int], b: set[int]) -> None:
    mine, theirs = of(a, base), of(b, base)
    universe = AddressSet.span(base, base + SMALL - 1)
    assert spell(mine, base) == a
    assert spell(mine & theirs, base) == a & b
    assert spell(mine | theirs, base) == a | b
    assert spell(mine - theirs, base) == a - b
    assert spell(~mine & universe, base) == set(range(SMALL)) - a
    assert (mine <= theirs) == (a <= b)
    assert (mine == theirs) == (a == b)
    assert bool(mine) == bool(a)
    assert mine.size() == len(a)


@given(bases, members)
def test_membership(base: int, a: set[int]) -> None:
    mine = of(a, base)
    for n in range(SMALL):
        assert (base + n in mine) == (n in a)
        interval = mine.interval_at(base + n)
        assert (interval is not None) == (n in a)
        assert interval is None or interval[0] <= base + n <= interval[1]
        for end in range(n, SMALL, 7):
            assert mine.covers(base + n, base + end) == a.issuperset(range(n, end + 1))


@given(wide)
def test_intervals_are_sorted_disjoint_and_joined(a: AddressSet) -> None:
    for (_, hi), (lo, _) in zip(a.intervals, a.intervals[1:], strict=False):
        assert hi + 1 < lo
    assert AddressSet(reversed(a.intervals)) == a
    assert tuple(a) == a.intervals


@given(wide, wide, wide)
def test_laws_over_the_whole_space(a: AddressSet, b: AddressSet, c: AddressSet) -> None:
    assert ~~a == a
    assert a & b == b & a
    assert a | b == b | a
    assert a & (b | c) == (a & b) | (a & c)
    assert a - b == a & ~b
    assert ~(a | b) == ~a & ~b
    assert a & ~a == AddressSet()
    assert a | ~a == AddressSet.everything()
    assert a & b <= a <= a | b
    assert (a <= b) == (not a - b)
    assert a.size() + (~a).size() == 1 << 64
    assert hash(a & b) == hash(b & a)


@given(bases, members, st.integers(0, 50), st.integers(1, 9), st.integers(0, 9))
def test_periodic_holes_are_exact(base: int, a: set[int], start: int, length: int, gap: int) -> None:
    within, first, period = of(a, base), max(base - 20, 0) + start, length + gap
    hole = AddressSet.periodic(first, length, period=period, within=within)
    wanted = {n for n in a if base + n >= first and (base + n - first) % period < length}
    assert spell(hole, base) == wanted


def test_periodic_holes_at_the_ends_of_the_space() -> None:
    last = AddressSet.span(MAX_ADDRESS, MAX_ADDRESS)
    assert AddressSet.periodic(0, 1 << 63, period=1 << 63, within=last) == last
    assert AddressSet.periodic(MAX_ADDRESS, 1, period=1, within=last) == last
    assert not AddressSet.periodic(0, 1, period=1 << 63, within=last)
    low = AddressSet.span(0, 0xFFFFFF)
    bios = AddressSet.periodic(0xE0000, 0x4000, period=0x100000, within=low)
    assert [lo for lo, _ in bios] == [0xE0000 + i * 0x100000 for i in range(16)]
    assert {hi - lo + 1 for lo, hi in bios} == {0x4000}


@pytest.mark.parametrize(("length", "period"), [(0, 4), (-1, 4), (5, 4), (1, 0)])
def test_a_period_shorter_than_its_hole_is_refused(length: int, period: int) -> None:
    with pytest.raises(ValueError, match="1 <= length <= period"):
        AddressSet.periodic(0, length, period=period, within=AddressSet.everything())


@pytest.mark.parametrize("pair", [(-1, 5), (6, 5), (0, MAX_ADDRESS + 1), (MAX_ADDRESS + 1, MAX_ADDRESS + 2)])
def test_what_is_no_interval_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not an interval of 64-bit addresses"):
        AddressSet([pair])


def test_the_ends_of_the_space_belong_to_it() -> None:
    everything = AddressSet.everything()
    assert 0 in everything
    assert MAX_ADDRESS in everything
    assert -1 not in everything
    assert MAX_ADDRESS + 1 not in everything
    assert "0" not in everything
    assert everything.covers(0, MAX_ADDRESS)
    assert not everything.covers(0, MAX_ADDRESS + 1)
    assert everything != "everything"
    assert ~AddressSet() == everything
    assert ~AddressSet.span(0, 0) == AddressSet.span(1, MAX_ADDRESS)
    assert ~AddressSet.span(MAX_ADDRESS, MAX_ADDRESS) == AddressSet.span(0, MAX_ADDRESS - 1)


def test_words() -> None:
    assert str(AddressSet()) == "nothing"
    assert str(AddressSet.span(0, 0xFFFFFF)) == "0x0..0xffffff"
    many = AddressSet((16 * i, 16 * i + 1) for i in range(7))
    assert str(many) == "0x0..0x1, 0x10..0x11, 0x20..0x21, 0x30..0x31 and 3 more"
    assert repr(AddressSet.span(1, 2)) == "AddressSet(0x1..0x2)"
