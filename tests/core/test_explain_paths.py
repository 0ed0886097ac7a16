"""explain says what load does by every route: windows, remap, caches, and lists of everything, page by page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from busdma.addresses import AddressSet
from busdma.buffers import Buffer, HostBuffer
from busdma.errors import BufferGone, BusdmaError, MappingRefused, ResourceShortage
from busdma.explain import Explanation
from busdma.lifecycle import State
from busdma.lists import BufferList, linear_parts
from busdma.map import Map
from busdma.paths import Window
from busdma.sync import Direction
from busdma.tag import Tag
from core.cached_machine import LINE, Machine
from core.paths_machine import DIRECT, MAPPED, Behind
from core.small_machine import PAGE, SmallMachine

WAYS = [("direct",), ("mapped",), ("direct", "mapped"), ("mapped", "direct")]
KINDS = ["low", "high", "beyond", "host", "again"]
SHAPE = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.one_of(st.sampled_from([1, LINE, 512, PAGE, 2 * PAGE]), st.integers(1, 3 * PAGE)),
        st.sampled_from([0, 0, 1, 4, LINE, 512, PAGE - LINE, PAGE - 1]),
    ),
    min_size=1,
    max_size=6,
)
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "alignment": st.sampled_from([4, 64, PAGE, 2 * PAGE]),
        "boundary": st.sampled_from([512, PAGE, 4 * PAGE]),
        "maxsegsz": st.sampled_from([512, PAGE, 3 * PAGE]),
        "nsegments": st.integers(1, 6),
        "maxsize": st.sampled_from([5 * PAGE, 64 * PAGE]),
        "lowaddr": st.sampled_from([DIRECT + 96 * PAGE - 1, MAPPED + 32 * PAGE - 1]),
        "joint": st.sampled_from([512, PAGE]),
    },
)


def derive(parent: Tag, limits: dict[str, Any]) -> Tag | None:
    """A tag with these limits, if they can hold together."""
    try:
        return parent.derive("device", clip=True, **limits)
    except BusdmaError:
        return None


def build(allocate: Any, shape: list[tuple[str, int, int]], single: bool) -> Buffer:
    """A list of elements of each kind, or a linear buffer. ``again``: a view of the element before."""
    made: list[Any] = []
    for kind, length, offset in shape:
        if kind == "again":
            last = made[-1] if made else allocate("low", length, offset)
            made.append(last[offset % last.length :][:length])
        elif kind == "host":
            made.append(HostBuffer(bytearray(length)))
        else:
            made.append(allocate(kind, length, offset))
    return made[0] if single else BufferList(made)


def homes(buffer: Buffer) -> list[int | None]:
    """The physical address of every byte; None for memory of the host."""
    found: list[int | None] = []
    for part in linear_parts(buffer):
        for at in range(part.start, part.start + part.length):
            found.append(None if part.host is not None else part.frames.table[at // PAGE] + at % PAGE)
    return found


def check(tag: Tag, map: Map, buffer: Buffer, direction: Direction, machine: Any) -> Explanation:
    """Load it, and compare every page with what was said of it."""
    said = tag.explain(buffer, direction)
    zones, pool = machine.domain.zones, machine.pool
    assert sum(zone.active for zone in zones) + pool.active == 0  # it took nothing
    assert [fate.page for fate in said.pages] == list(range(len(said.pages)))
    assert sum(fate.length for fate in said.pages) == buffer.length
    refused = [fate for fate in said.pages if fate.mechanism == "refused"]
    assert all(fate.reason and fate.bus_address is None for fate in refused)
    if said.verdict.startswith("refused: "):
        assert refused or "needed" in said.verdict or "longer than maxsize" in said.verdict
        with pytest.raises(MappingRefused) as caught:
            map.load_nowait(buffer, direction)
        assert all(number in str(caught.value) for number in re.findall(r"\d{3,}", said.verdict))
        assert map.state is State.IDLE
        return said
    assert not refused
    try:
        segments = map.load_nowait(buffer, direction)
    except ResourceShortage:
        with pytest.raises(ResourceShortage, match="contiguous run"):  # memory has none that is so long
            map.load_nowait(buffer, direction)
        return said
    assert sum(zone.active for zone in zones) == said.bounce_pages
    assert pool.active == said.bus_pages
    at = [int(address) + i for address, length in segments for i in range(length)]
    home = homes(buffer)
    for fate in said.pages:
        span = range(fate.offset, fate.offset + fate.length)
        assert {met(tag, machine, at[i], home[i], direction) for i in span} == {fate.mechanism}
        if fate.bus_address is not None:
            assert [at[i] for i in span] == list(range(fate.bus_address, fate.bus_address + fate.length))
        assert bool(fate.reason) or fate.mechanism == tag.routes[0].name or len(tag.routes) > 1
    map.unload()
    return said


def met(tag: Tag, machine: Any, address: int, home: int | None, direction: Direction) -> str:
    """By which mechanism a device that uses this bus address comes to the byte that the CPU has at `home`."""
    place = machine.physical(address, direction is Direction.FROM_DEVICE)
    route = next(route for route in tag.routes if address in route.span)
    copied = machine.frames.owner_of(place) == "bounce"
    assert copied or place == home
    if route.pool is not None:
        return "bounce+remap" if copied else "remap"
    return "bounce" if copied else "window" if route.shift else "direct"


@pytest.mark.parametrize("windows", WAYS, ids="+".join)
@settings(max_examples=250)
@given(
    shape=SHAPE,
    limits=LIMITS,
    single=st.booleans(),
    direction=st.sampled_from(list(Direction)),
    sizes=st.tuples(st.sampled_from([4, 20]), st.sampled_from([4, 64]), st.sampled_from([0, 256])),
)
def test_explain_agrees_with_load_by_every_route(
    windows: tuple[str, ...],
    shape: list[tuple[str, int, int]],
    limits: dict[str, Any],
    single: bool,
    direction: Direction,
    sizes: tuple[int, int, int],
) -> None:
    limit, mapped, prefetch = sizes
    machine = Behind(*windows, limit=limit, mapped=mapped, prefetch=prefetch)
    tag = derive(machine.bus, limits)
    if tag is None:
        return
    where = {"low": machine.below, "high": machine.above, "beyond": AddressSet.span(256 * PAGE, 512 * PAGE - 1)}
    buffer = build(
        lambda kind, length, offset: machine.kernel.allocate(length, offset=offset, within=where[kind]), shape, single
    )
    said = check(tag, tag.create_map(), buffer, direction, machine)
    event(said.verdict.partition(":")[0] if said.verdict.startswith("refused") else "loads")


@pytest.mark.parametrize("translated", [False, True], ids=["direct", "remap"])
@settings(max_examples=250)
@given(
    shape=SHAPE,
    limits=LIMITS,
    single=st.booleans(),
    direction=st.sampled_from(list(Direction)),
    alias=st.booleans(),
    low=st.sampled_from([96, 256]),
)
def test_explain_agrees_with_load_on_a_machine_with_a_cache(
    translated: bool,
    shape: list[tuple[str, int, int]],
    limits: dict[str, Any],
    single: bool,
    direction: Direction,
    alias: bool,
    low: int,
) -> None:
    machine = Machine(translated=translated, alias=alias, limit=12, low=low)
    tag = derive(machine.tag, {name: value for name, value in limits.items() if name != "lowaddr"})
    if tag is None:
        return
    buffer = build(lambda kind, length, offset: machine.buffer(length, offset), shape, single)
    check(tag, tag.create_map(), buffer, direction, machine)


# -- which tag, which limit, which mechanism --------------------------------------------------------------------------


def fates(said: Explanation) -> Iterator[tuple[str, str]]:
    """Mechanism and reason of each page."""
    return ((fate.mechanism, fate.reason) for fate in said.pages)


def pages_at(machine: SmallMachine, *numbers: int) -> BufferList:
    """One page of each of these page frames."""
    return BufferList([machine.kernel.allocate(PAGE, within=span(number, number)) for number in numbers])


def span(first: int, last: int) -> AddressSet:
    """Page frames, by number, as physical addresses."""
    return AddressSet.span(first * PAGE, last * PAGE + PAGE - 1)


OUTSIDE = "outside the windows of the bridge, set by tag 'pci'"
HOST = "memory of the host, which no device of this machine sees"


def test_a_window_and_what_lies_outside_it() -> None:
    machine = Behind("direct", covered=256)
    said = machine.bus.explain(pages_at(machine, 3, 300))
    assert list(fates(said)) == [("window", ""), ("bounce", OUTSIDE)]
    assert [fate.bus_address for fate in said.pages] == [DIRECT + 3 * PAGE, None]
    assert (said.bounce_pages, said.zone, said.bus_pages) == (1, "bounce zone 0", 0)


def test_a_limit_of_a_tag_behind_the_window_counts_on_its_bus() -> None:
    machine = Behind("direct", covered=256)
    tag = machine.bus.derive("device", lowaddr=DIRECT + 8 * PAGE - 1)
    said = tag.explain(pages_at(machine, 7, 8, 300))
    above = f"above lowaddr {DIRECT + 8 * PAGE - 1:#x}, set by tag 'device'"
    assert list(fates(said)) == [("window", ""), ("bounce", above), ("bounce", OUTSIDE)]


def test_a_filter_of_an_ancestor_is_named() -> None:
    machine = SmallMachine()
    asked = machine.root.derive("vlb", lowaddr=8 * PAGE - 1, filter=lambda first, last: first // PAGE % 2 == 1)
    tag = asked.bridge("pci", Window(DIRECT, 256 * PAGE)).derive("device")
    said = tag.explain(pages_at(machine, 7, 8, 9))
    assert list(fates(said)) == [("window", ""), ("window", ""), ("bounce", "the filter of tag 'vlb' objects")]


def test_by_remap_because_of_one_page() -> None:
    machine = Behind("direct", "mapped")
    said = machine.bus.explain(pages_at(machine, 3, 300))
    assert list(fates(said)) == [("remap", "goes the way of the rest of the buffer"), ("remap", OUTSIDE)]
    assert said.verdict == "1 segment, nothing bounced, through 2 bus pages of tables"


def test_by_remap_because_of_too_many_segments() -> None:
    machine = Behind("direct", "mapped")
    tag = machine.bus.derive("device", nsegments=2)
    said = tag.explain(pages_at(machine, 3, 5, 7))
    assert set(fates(said)) == {("remap", "too many segments any other way: nsegments is 2, set by tag 'device'")}


def test_bounced_and_remapped() -> None:
    machine = Behind("mapped")
    said = machine.bus.explain([machine.low(PAGE), bytearray(PAGE)])
    assert list(fates(said)) == [("remap", ""), ("bounce+remap", HOST)]
    assert (said.bounce_pages, said.bus_pages) == (1, 2)


def test_a_cache_line_and_bytes_that_are_askew() -> None:
    machine = Machine(translated=True)
    said = machine.tag.explain(machine.buffer(2 * PAGE, 4), Direction.FROM_DEVICE)
    shared = f"shares a cache line of {LINE} bytes with other data, and the device may write it"
    assert list(fates(said)) == [("bounce+remap", shared), ("remap", ""), ("bounce+remap", shared)]
    said = machine.tag.explain(machine.buffer(2 * PAGE, 4), Direction.TO_DEVICE)
    assert set(fates(said)) == {("remap", "")}
    said = machine.tag.derive("words", alignment=8).explain(machine.buffer(PAGE - 4, 4), Direction.TO_DEVICE)
    assert list(fates(said)) == [("bounce+remap", "not aligned to 8, set by tag 'words'")]


def test_elements_that_end_where_no_segment_may() -> None:
    machine = Behind("mapped")
    said = machine.bus.derive("nvme", joint=512).explain([machine.low(100), machine.low(PAGE)])
    assert next(fates(said)) == ("bounce+remap", "does not end or begin at a multiple of 512, set by tag 'nvme'")


def test_joined_into_one_run() -> None:
    machine = Behind("direct")
    said = machine.bus.derive("device", nsegments=2).explain(pages_at(machine, 3, 5, 7))
    joined = "joined into one run: nsegments is 2, set by tag 'device'"
    assert sorted(fates(said)) == [("bounce", joined), ("bounce", joined), ("window", "")]


def test_what_is_refused_says_so_page_by_page() -> None:
    machine = Behind("direct", limit=2)
    narrow = machine.bus.derive("narrow", nsegments=2, maxsegsz=PAGE)
    cramped = "too many segments, and nothing joins them: nsegments is 2, set by tag 'narrow'"
    assert set(fates(narrow.explain(pages_at(machine, 3, 5, 7)))) == {("refused", cramped)}
    assert set(fates(narrow.explain(machine.low(3 * PAGE)))) == {("refused", cramped)}


def test_a_pool_that_is_too_small_changes_no_pages_fate() -> None:
    machine = Behind("direct", limit=2)
    said = machine.bus.explain([machine.low(PAGE), bytearray(3 * PAGE)])
    assert list(fates(said)) == [("window", ""), *[("bounce", HOST)] * 3]
    assert said.verdict.startswith("refused: window: 3 pages of bounce zone 0 needed")
    short = machine.bus.derive("short", maxsize=PAGE + 1).explain(machine.low(2 * PAGE))
    assert set(fates(short)) == {("window", "")}
    assert short.verdict == "refused: longer than maxsize 4097, set by tag 'short'"
    few = Behind("mapped", mapped=2)
    said = few.bus.explain(few.low(3 * PAGE))
    assert set(fates(said)) == {("remap", "")}
    assert said.verdict.startswith("refused: remap: 3 bus pages of tables needed")


def test_where_nothing_could_be_copied() -> None:
    machine = Behind("direct", pages=512, covered=256)
    beyond = machine.bus.derive("far", exclude=AddressSet.span(0, DIRECT + 128 * PAGE - 1))
    taken = machine.kernel.allocate(128 * PAGE, within=span(128, 255))
    for buffer in (machine.low(PAGE), BufferList([machine.low(PAGE), taken[:PAGE]])):
        said = beyond.explain(buffer)
        assert said.pages[0].mechanism == "bounce"  # once somebody gives memory back
    nowhere = machine.bus.derive("nowhere", exclude=AddressSet.span(0, DIRECT + 256 * PAGE - 2))
    hole = "in an excluded hole, set by tag 'nowhere'"
    for buffer in (machine.low(PAGE), BufferList([machine.low(PAGE), machine.low(1)])):
        said = nowhere.explain(buffer)
        assert set(fates(said)) == {("refused", hole)}
        with pytest.raises(MappingRefused):
            nowhere.create_map().load_nowait(buffer)


def test_what_no_route_is_asked_about(small: SmallMachine) -> None:
    empty = small.isa.explain([bytearray(), b""])
    assert (empty.verdict, empty.pages) == ("refused: it is empty, there is nothing to transfer", ())
    said = small.isa.explain(b"constant", Direction.FROM_DEVICE)
    assert list(fates(said)) == [("bounce", HOST)]
    assert said.verdict == "refused: it is read-only, and cannot be loaded from device"
    assert small.isa.explain(b"constant", Direction.TO_DEVICE).verdict == "1 of 1 pages bounce"
    buffer = small.low(5)
    parts = BufferList([buffer])
    buffer.free()
    with pytest.raises(BufferGone, match="it was released"):
        small.isa.explain(parts)


def test_on_paper() -> None:
    machine = Behind("mapped")
    said = machine.bus.explain([bytearray(10), machine.low(PAGE)])
    assert str(said).splitlines() == [
        "a list of 2 buffers, 4106 bytes",
        "through tag pc/pci: 1 of 2 pages bounce, through 2 bus pages of tables",
        f"  page    0  bytes 0..9  bounce+remap: {HOST}",
        "  page    1  bytes 10..4105  remap",
    ]
    assert said.as_dict()["pages"][0] == {
        "page": 0,
        "offset": 0,
        "length": 10,
        "mechanism": "bounce+remap",
        "bus_address": None,
        "reason": HOST,
    }
