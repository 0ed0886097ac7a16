"""Limits: each contradiction is named, a child is never wider than its parent, and every limit knows who set it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.constraints import NO_BOUNDARY, UNLIMITED, Constraints
from busdma.errors import ConstraintError, DriverError

MB = 1 << 20
ROOT = Constraints.unlimited("root")
#: A parent with every limit set.
BUS = ROOT.narrow(
    "isa",
    alignment=4,
    boundary=0x10000,
    lowaddr=16 * MB - 1,
    maxsize=0x10000,
    nsegments=17,
    maxsegsz=0x8000,
)


def refused(parent: Constraints, *words: str, **limits: Any) -> None:
    """Narrowing raises ConstraintError, which is of the family of mistakes, with these words."""
    with pytest.raises(ConstraintError) as caught:
        parent.narrow("card", **limits)
    assert isinstance(caught.value, DriverError)
    assert isinstance(caught.value, ValueError)
    for word in ("tag 'card'", *words):
        assert word in str(caught.value)


# -- limits that are wrong alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [3, 6, 12, MAX_ADDRESS])
def test_alignment_is_a_power_of_two(alignment: int) -> None:
    refused(ROOT, "alignment must be a power of two", str(alignment), alignment=alignment)


@pytest.mark.parametrize("boundary", [-4, 3, 0x10001, 1 << 64, 1 << 70])
def test_boundary_is_a_power_of_two_within_64_bits(boundary: int) -> None:
    refused(ROOT, "boundary must be 0 (none) or a power of two", str(boundary), boundary=boundary)


@pytest.mark.parametrize("name", ["alignment", "maxsize", "nsegments", "maxsegsz"])
@pytest.mark.parametrize("value", [0, -1, MAX_ADDRESS + 1])
def test_sizes_and_counts_are_from_1_to_64_bits(name: str, value: int) -> None:
    refused(ROOT, f"{name} must be from 1 to 0xffffffffffffffff, not {value}", **{name: value})


@pytest.mark.parametrize("limits", [{"lowaddr": -1}, {"lowaddr": 1 << 64}, {"lowaddr": 0, "highaddr": 1 << 64}])
def test_addresses_are_of_64_bits(limits: dict[str, int]) -> None:
    refused(ROOT, "lowaddr and highaddr are 64-bit addresses", **limits)


# -- limits that contradict each other --------------------------------------------------------------------------------


def test_highaddr_alone() -> None:
    refused(ROOT, "highaddr without lowaddr excludes nothing; give both", highaddr=MB)


def test_an_upside_down_window() -> None:
    refused(ROOT, "(0x200000, 0x100000] is upside down", "lowaddr is its lower end", lowaddr=2 * MB, highaddr=MB)


def test_an_empty_window_excludes_nothing() -> None:
    assert ROOT.narrow("card", lowaddr=MB, highaddr=MB).reach == AddressSet.everything()
    assert ROOT.narrow("card", lowaddr=MAX_ADDRESS).reach == AddressSet.everything()


def test_no_address_left() -> None:
    refused(BUS, "no address is left that it can reach", "lowaddr, highaddr and exclude", exclude=BUS.reach)
    refused(ROOT, "no address is left", exclude=AddressSet.everything())
    high = ROOT.narrow("bus", exclude=AddressSet.span(0, MB - 1))
    refused(high, "no address is left", lowaddr=MB - 1)


def test_boundary_smaller_than_alignment() -> None:
    refused(ROOT, "boundary 8", "smaller than alignment 16", "raise the boundary", alignment=16, boundary=8)
    words = ("boundary 65536 (tag 'isa')", "alignment 131072 (tag 'card')")
    refused(BUS, *words, alignment=0x20000, maxsegsz=0x8000)


def test_maxsegsz_smaller_than_alignment() -> None:
    refused(ROOT, "maxsegsz 8", "smaller than alignment 16", "raise maxsegsz", alignment=16, maxsegsz=8)


def test_what_must_fit_does_not() -> None:
    words = ("4 segments (tag 'card') of at most 4096 bytes cannot hold maxsize 65536", "lower maxsize to 16384")
    refused(ROOT, *words, maxsize=0x10000, nsegments=4, boundary=4096)
    refused(ROOT, *words, maxsize=0x10000, nsegments=4, maxsegsz=4096)
    refused(BUS, "1 segments (tag 'card')", "cannot hold maxsize 65536 (tag 'isa')", nsegments=1)
    assert ROOT.narrow("card", maxsize=0x4000, nsegments=4, boundary=4096).maxsize.value == 0x4000
    assert BUS.narrow("card", nsegments=1, maxsize=0x8000).nsegments.value == 1


def test_what_must_fit_is_counted_in_whole_alignments() -> None:
    limits: dict[str, Any] = {"alignment": 16, "maxsegsz": 31, "nsegments": 2}
    refused(ROOT, "2 segments", "at most 16 bytes", "lower maxsize to 32", maxsize=33, **limits)
    assert ROOT.narrow("card", maxsize=32, **limits).segment_size == 16


# -- a child wider than its parent ------------------------------------------------------------------------------------

WIDER = [
    ("alignment", 2, "2", "4"),
    ("boundary", 0x20000, "131072", "65536"),
    ("boundary", NO_BOUNDARY, "0", "65536"),
    ("lowaddr", 32 * MB - 1, "0x1ffffff", "0xffffff"),
    ("lowaddr", MAX_ADDRESS, "0xffffffffffffffff", "0xffffff"),
    ("maxsize", 0x10001, "65537", "65536"),
    ("nsegments", 18, "18", "17"),
    ("maxsegsz", 0x8001, "32769", "32768"),
]


@pytest.mark.parametrize(("name", "value", "wanted", "held"), WIDER)
def test_a_child_wider_than_its_parent_is_refused(name: str, value: int, wanted: str, held: str) -> None:
    words = f"{name} {wanted} is wider than its parent's {held}, set by tag 'isa'"
    refused(BUS, words, f"leave {name} out to inherit it, or pass clip=True", **{name: value})


@pytest.mark.parametrize(("name", "value", "wanted", "held"), WIDER)
def test_the_origin_of_a_limit_is_the_tag_that_set_it(name: str, value: int, wanted: str, held: str) -> None:
    """A tag in between that inherited it, or said the same, did not."""
    between = BUS.narrow("bridge").narrow("slot", alignment=4, nsegments=17, boundary=0x10000, lowaddr=16 * MB - 1)
    refused(between, f"parent's {held}, set by tag 'isa'", **{name: value})


@pytest.mark.parametrize(("name", "value", "wanted", "held"), WIDER)
def test_clip_takes_the_tighter_of_both(name: str, value: int, wanted: str, held: str) -> None:
    limits: dict[str, Any] = {name: value}
    child = BUS.narrow("card", clip=True, **limits)
    assert child.reach == BUS.reach
    for limit in ("alignment", "boundary", "maxsize", "nsegments", "maxsegsz"):
        assert getattr(child, limit) == getattr(BUS, limit)
    assert child.origin == "card"


def test_clip_still_narrows() -> None:
    child = BUS.narrow("card", clip=True, alignment=8, boundary=0x8000, lowaddr=MB - 1, maxsize=512, nsegments=3)
    assert (child.alignment.value, child.boundary.value) == (8, 0x8000)
    assert (child.maxsize.value, child.nsegments.value) == (512, 3)
    assert child.reach == AddressSet.span(0, MB - 1)
    assert {child.alignment.origin, child.boundary.origin, child.maxsize.origin, child.nsegments.origin} == {"card"}
    assert child.maxsegsz.origin == "isa"


def test_everything_is_inherited() -> None:
    child = BUS.narrow("bridge").narrow("card")
    for name in ("reach", "holes", "alignment", "boundary", "maxsize", "nsegments", "maxsegsz"):
        assert getattr(child, name) == getattr(BUS, name)


def test_the_root_has_no_limit() -> None:
    assert ROOT.reach == AddressSet.everything()
    assert (ROOT.alignment.value, ROOT.boundary.value) == (1, NO_BOUNDARY)
    assert ROOT.maxsize.value == ROOT.nsegments.value == ROOT.maxsegsz.value == UNLIMITED
    assert {ROOT.alignment.origin, ROOT.boundary.origin, ROOT.maxsize.origin} == {"root"}


# -- chains of tags ---------------------------------------------------------------------------------------------------

powers = st.integers(0, 20).map(lambda bit: 1 << bit)
addresses = st.one_of(st.integers(0, 8 * MB), st.sampled_from([0xFFFF_FFFF, MAX_ADDRESS - 1, MAX_ADDRESS]))
spans = st.tuples(addresses, addresses).map(lambda pair: AddressSet([(min(pair), max(pair))]))


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


LIMITS = st.fixed_dictionaries(
    {
        "alignment": optional(powers),
        "boundary": optional(st.one_of(st.just(0), powers)),
        "lowaddr": optional(addresses),
        "highaddr": optional(addresses),
        "exclude": optional(spans),
        "maxsize": optional(st.integers(1, 1 << 20)),
        "nsegments": optional(st.integers(1, 64)),
        "maxsegsz": optional(st.integers(1, 1 << 20)),
    }
)


def window(limits: dict[str, Any]) -> AddressSet:
    """What lowaddr, highaddr and exclude take away, by their definition."""
    gone: AddressSet = limits["exclude"] or AddressSet()
    low, high = limits["lowaddr"], limits["highaddr"]
    top = MAX_ADDRESS if high is None else high
    return gone | AddressSet.span(low + 1, top) if low is not None and low < top else gone


@given(st.lists(st.tuples(LIMITS, st.booleans()), min_size=1, max_size=6))
def test_a_chain_only_narrows(steps: list[tuple[dict[str, Any], bool]]) -> None:
    parent, chain = ROOT, [ROOT]
    for number, (limits, clip) in enumerate(steps):
        try:
            child = parent.narrow(f"tag{number}", clip=clip, **limits)
        except ConstraintError:
            continue
        assert child.reach == parent.reach - window(limits)
        for name in ("maxsize", "nsegments", "maxsegsz"):
            wanted, before, now = limits[name], getattr(parent, name), getattr(child, name)
            assert now.value == min(v for v in (wanted, before.value) if v is not None)
            assert now.origin == (f"tag{number}" if now.value != before.value else before.origin)
        assert child.alignment.value == max(limits["alignment"] or 1, parent.alignment.value)
        lines = [line for line in (limits["boundary"], parent.boundary.value) if line]
        assert child.boundary.value == min(lines, default=0)
        assert not clip or child.subset_of(parent)
        for ancestor in chain:
            assert child.subset_of(ancestor)
        parent = child
        chain.append(child)


@given(LIMITS, LIMITS)
def test_without_clip_a_wider_limit_never_passes(first: dict[str, Any], second: dict[str, Any]) -> None:
    try:
        parent = ROOT.narrow("parent", **first)
    except ConstraintError:
        return
    wider = [name for name in ("maxsize", "nsegments", "maxsegsz") if (second[name] or 0) > getattr(parent, name).value]
    if (second["alignment"] or parent.alignment.value) < parent.alignment.value:
        wider.append("alignment")
    line = second["boundary"]
    if parent.boundary.value and line is not None and (line == 0 or line > parent.boundary.value):
        wider.append("boundary")
    if wider:
        with pytest.raises(ConstraintError):
            parent.narrow("child", **second)


def test_subset_sees_every_limit() -> None:
    tighter: list[dict[str, Any]] = [
        {"alignment": 8},
        {"boundary": 0x8000},
        {"lowaddr": MB},
        {"maxsize": 0x8000},
        {"nsegments": 16},
        {"maxsegsz": 0x7000},
    ]
    for limits in tighter:
        child = BUS.narrow("card", **limits)
        assert child.subset_of(BUS)
        assert not BUS.subset_of(child)
    assert not ROOT.subset_of(BUS)


# -- whose limit it was -----------------------------------------------------------------------------------------------


def test_why_not() -> None:
    hole = AddressSet.span(0xE0000, 0xE3FFF)
    bridge = BUS.narrow("bridge", exclude=hole)
    card = bridge.narrow("card", lowaddr=0x400000, highaddr=0x4FFFFF)
    assert card.why_not(0, 0xDFFFF) == ""
    assert card.why_not(16 * MB, 16 * MB + 4095) == "above lowaddr 0xffffff, set by tag 'isa'"
    assert card.why_not(0xDF800, 0xE07FF) == "in an excluded hole, set by tag 'bridge'"
    assert card.why_not(0x400001, 0x400001) == "above lowaddr 0x400000 up to highaddr 0x4fffff, set by tag 'card'"
    assert card.why_not(0x400000, 0x400000) == ""
    assert card.why_not(0x500000, 0x500FFF) == ""


@given(LIMITS, addresses, st.integers(0, 8192))
def test_why_not_speaks_exactly_where_the_reach_ends(limits: dict[str, Any], lo: int, length: int) -> None:
    try:
        tag = BUS.narrow("card", clip=True, **limits)
    except ConstraintError:
        return
    hi = min(lo + length, MAX_ADDRESS)
    words = tag.why_not(lo, hi)
    assert (words == "") == tag.reach.covers(lo, hi)
    assert not words or "set by tag 'card'" in words or "set by tag 'isa'" in words


def test_summary_names_who_cut_the_reach() -> None:
    assert ROOT.summary() == "it reaches 0x0..0xffffffffffffffff"
    card = BUS.narrow("card", exclude=AddressSet.span(0, 0xFFF))
    words = "it reaches 0x1000..0xffffff: nothing above lowaddr 0xffffff (tag 'isa')"
    assert card.summary() == words + ", nothing in an excluded hole (tag 'card')"


def test_the_summary_names_who_cut_first_and_only_once() -> None:
    card = BUS.narrow("card", lowaddr=16 * MB - 1).narrow("data", exclude=AddressSet.span(0xE0000, 0xEFFFF))
    assert card.summary() == (
        "it reaches 0x0..0xdffff, 0xf0000..0xffffff: nothing above lowaddr 0xffffff (tag 'isa'), "
        "nothing in an excluded hole (tag 'data')"
    )


@pytest.mark.parametrize("value", ["4", 2.0, True, b"1"])
@pytest.mark.parametrize("name", ["alignment", "boundary", "lowaddr", "maxsize", "nsegments", "maxsegsz", "joint"])
def test_a_limit_is_a_whole_number(name: str, value: Any) -> None:
    with pytest.raises(ConstraintError, match=f"{name} is a whole number, not {re.escape(repr(value))}"):
        Constraints.unlimited("root").narrow("device", **{name: value})


def test_exclude_is_a_set_of_addresses() -> None:
    pair: Any = (0, 1)
    with pytest.raises(ConstraintError, match=r"exclude is an AddressSet.*not \(0, 1\)"):
        Constraints.unlimited("root").narrow("device", exclude=pair)
