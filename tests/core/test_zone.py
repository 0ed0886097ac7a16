"""The bounce zone: it grows with need, gives idle pages back, is shared, has runs, and can be reserved from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.addresses import AddressSet
from busdma.errors import ConstraintError, MappingRefused, ResourceShortage, ShortageReason
from busdma.lifecycle import State
from busdma.map import Map
from busdma.mechanisms.zone import CHUNK, DEFAULT_LIMIT, REVIEW
from busdma.sync import PREREAD, Direction
from busdma.tag import Tag
from core.small_machine import PAGE, Pages, SmallMachine


def load(tag: Tag, pages: int) -> Map:
    """A map that bounces so many pages."""
    map = tag.create_map()
    map.load_nowait(bytearray(pages * PAGE))
    return map


def bounce_frames(small: SmallMachine) -> int:
    """What the zones really have of the machine's memory."""
    return small.frames.statistics()["by_owner"].get("bounce", 0)


def test_it_starts_empty_and_grows_to_its_limit() -> None:
    small = SmallMachine(limit=40)
    assert small.isa.create_map().state is State.IDLE
    assert small.zone.statistics()["pages"] == bounce_frames(small) == 0
    first = load(small.isa, 1)
    assert small.zone.capacity == bounce_frames(small) == CHUNK
    second = load(small.isa, CHUNK)  # one more than is free
    assert small.zone.capacity == 2 * CHUNK
    third = load(small.isa, 40 - CHUNK - 1)
    assert small.zone.capacity == bounce_frames(small) == 40
    with pytest.raises(ResourceShortage, match="busy"):
        load(small.isa, 1)
    for map in (first, second, third):
        map.unload()
    assert small.zone.statistics() == {
        "limit": 40,
        "pages": 40,
        "free": 40,
        "active": 0,
        "quarantined": 0,
        "waiting": 0,
        "bounced_pages": 40,
        "copied_out": 0,
        "copied_in": 0,
        "deferred": 0,
        "refused": 0,
        "grown_pages": 40,
        "returned_pages": 0,
        "peak_active": 40,
        "peak_pages": 40,
    }


def test_the_limit_is_the_users() -> None:
    assert DEFAULT_LIMIT == 128
    with pytest.raises(MappingRefused, match="may hold 3"):
        load(SmallMachine(limit=3).isa, 4)
    assert load(SmallMachine(limit=3).isa, 3).state is State.LOADED
    with pytest.raises(MappingRefused, match="may hold 0"):
        load(SmallMachine(limit=0).isa, 1)


def test_it_never_promises_more_than_there_is_within_reach() -> None:
    small = SmallMachine(low=5, limit=100)
    with pytest.raises(MappingRefused, match="6 bounce pages needed and bounce zone 0 may hold 5"):
        load(small.isa, 6)
    nothing = small.root.derive("tiny", lowaddr=99)  # reaches a hundred bytes and no page
    with pytest.raises(MappingRefused, match="out of reach"):
        load(nothing, 1)


def test_only_pages_that_need_it_are_bounced(small: SmallMachine) -> None:
    low, high = [3 * PAGE, 9 * PAGE, 4 * PAGE], [200 * PAGE, 300 * PAGE]
    buffer = Pages([low[0], high[0], low[1], high[1], low[2]], 100, 4 * PAGE)
    map = small.isa.create_map()
    segments = list(map.load_nowait(buffer))
    assert small.zone.statistics()["bounced_pages"] == 2
    assert [segments[at] for at in (0, 2, 4)] == [(low[0] + 100, PAGE - 100), (low[1], PAGE), (low[2], 100)]
    assert all(address < 128 * PAGE for address, _ in segments)


# ---------------------------------------------------------------- giving back


def test_a_review_gives_back_what_was_idle_for_long(small: SmallMachine) -> None:
    load(small.isa, 20).unload()
    map = small.isa.create_map()
    data = bytearray(PAGE)
    for _ in range(REVIEW - 2):
        map.load_nowait(data)
        map.unload()
    assert small.zone.capacity == 20  # in the time under review, 20 were in use once
    for _ in range(REVIEW + 1):
        map.load_nowait(data)
        map.unload()
    figures = small.zone.statistics()
    assert figures["pages"] == bounce_frames(small) < 20
    assert figures["returned_pages"] == 20 - figures["pages"]
    assert small.frames.statistics()["free"] == 512 - figures["pages"]
    assert load(small.isa, 20).state is State.LOADED  # it grows again


def test_trim_gives_back_whole_idle_chunks() -> None:
    small = SmallMachine(limit=64)
    first = load(small.isa, CHUNK)
    second = load(small.isa, CHUNK)
    first.unload()
    assert small.zone.trim() == CHUNK
    assert small.zone.capacity == bounce_frames(small) == CHUNK
    assert small.zone.trim() == 0
    second.unload()
    assert small.zone.trim() == CHUNK
    assert bounce_frames(small) == 0


def test_a_machine_short_of_memory_gets_idle_pages_at_once(small: SmallMachine) -> None:
    """Even a single frame: a chunk has more than one page, and goes back whole."""
    held = load(small.isa, 2)
    load(small.isa, 18).unload()
    figures = small.frames.statistics()
    small.kernel.allocate(figures["free"] * PAGE)
    assert small.frames.statistics()["free"] == 0
    assert small.zone.capacity == 20
    one = small.kernel.allocate(1)
    assert small.zone.capacity < 20
    assert held.state is State.LOADED
    assert held.segments
    one.free()


def test_one_zone_grows_into_what_another_gives_back() -> None:
    """Memory for only one of two zones: the waiter of one is served by a release in the other."""
    small = SmallMachine(pages=40, low=20, limit=20)
    narrow = small.root.derive("narrow", lowaddr=10 * PAGE - 1)
    wide = small.root.derive("wide", lowaddr=20 * PAGE - 1, exclude=AddressSet.span(0, PAGE - 1))
    first = load(narrow, 10)
    assert len(small.domain.zones) == 1
    small.kernel.allocate(10 * PAGE, within=AddressSet.span(10 * PAGE, 20 * PAGE - 1))
    map = wide.create_map(name="wide")
    heard: list[object] = []
    map.load_callback(bytearray(PAGE), lambda segments, error: heard.append(error))
    assert map.state is State.WAITING
    assert len(small.domain.zones) == 2
    first.unload()
    small.runtime.run(_nothing)
    assert heard == [None]
    assert map.state is State.LOADED


async def _nothing() -> None:
    """A driver that does nothing, so that others can."""


# ---------------------------------------------------------------- sharing


def test_every_tag_that_it_suits_shares_it(small: SmallMachine) -> None:
    aha0, aha1 = small.isa.derive("aha0"), small.isa.derive("aha1", nsegments=17)
    load(aha0, 3)
    load(aha1, 4)
    load(small.isa, 5)
    assert len(small.domain.zones) == 1
    assert small.zone.active == 12
    load(small.root.derive("wider", lowaddr=256 * PAGE - 1), 1)  # may use it too, for it reaches all of it
    assert len(small.domain.zones) == 1
    narrower = small.isa.derive("narrower", lowaddr=64 * PAGE - 1)
    map = load(narrower, 2)
    assert len(small.domain.zones) == 2
    assert all(address < 64 * PAGE for address, _ in map.segments)


def test_a_zone_that_must_stay_small_is_not_shared_with_who_could_have_more() -> None:
    small = SmallMachine(limit=20)
    load(small.isa.derive("eisa", lowaddr=4 * PAGE - 1), 1)  # four frames within reach
    load(small.isa, 20)
    assert [zone.limit for zone in small.domain.zones] == [4, 20]


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("alignment", "boundary"), [(1, 0), (512, 0), (PAGE, 0), (4 * PAGE, 0), (1, 8 * PAGE), (2 * PAGE, 4 * PAGE)]
)
def test_a_run_honours_alignment_and_boundary(alignment: int, boundary: int) -> None:
    small = SmallMachine(limit=32)
    tag = small.isa.derive("old", nsegments=1, alignment=alignment, boundary=boundary)
    for pages in (1, 2, 3, 4, 2, 3):
        map = tag.create_map()
        ((address, length),) = map.load_nowait(small.high(pages * PAGE))
        assert length == pages * PAGE
        assert address % alignment == 0
        assert not boundary or address // boundary == (address + length - 1) // boundary
        assert address + length <= 128 * PAGE
    assert small.zone.active == 15


def test_a_run_joins_as_few_pages_as_it_can(small: SmallMachine) -> None:
    """Four scattered pages in reach, three segments allowed: two of them move together."""
    tag = small.isa.derive("few", nsegments=3)
    map = tag.create_map()
    map.load_nowait(Pages([3 * PAGE, 9 * PAGE, 5 * PAGE, 20 * PAGE], 0, 4 * PAGE))
    assert len(map.segments) == 3
    assert small.zone.statistics()["bounced_pages"] == 2


def test_singles_that_are_idle_make_room_for_a_run() -> None:
    small = SmallMachine(pages=64, low=8, limit=4)
    keep = [small.low(1) for _ in range(8)]
    by_frame = {buffer.frames.table[buffer.start // PAGE] // PAGE: buffer for buffer in keep}
    for frame in (0, 2, 4, 6):
        by_frame[frame].free()
    load(small.isa, 4).unload()  # four single frames, none beside another
    assert small.zone.capacity == 4
    by_frame[1].free()
    tag = small.isa.derive("one", nsegments=1)
    assert len(load(tag, 3).segments) == 1
    assert small.zone.capacity == bounce_frames(small) <= 4


def test_a_run_the_machine_can_never_have_is_said_at_once(small: SmallMachine) -> None:
    """Also while others hold pages: waiting for them would be in vain."""
    load(small.isa, 1)
    holes = AddressSet.periodic(3 * PAGE, PAGE, period=4 * PAGE, within=small.below)
    tag = small.isa.derive("holes", exclude=holes, nsegments=1)
    assert len(load(tag, 3).segments) == 1
    with pytest.raises(ResourceShortage, match="can never have a contiguous run of 4 pages") as refusal:
        load(tag, 4)
    assert refusal.value.reason is ShortageReason.TOO_LARGE


# ---------------------------------------------------------------- reservations


def test_a_reserved_map_never_waits(small: SmallMachine) -> None:
    tag = small.isa.derive("aha0", maxsize=4 * PAGE)
    map = tag.create_map(name="reserved", reserve=True)
    figures = small.zone.statistics()
    assert figures["limit"] == 20 - 5  # 16 KiB at any offset touch five pages
    assert bounce_frames(small) == 5
    load(small.isa, 15)
    with pytest.raises(ResourceShortage):
        load(small.isa, 1)
    for offset in (0, 1, 4095):
        map.load_nowait(small.high(4 * PAGE, offset))
        map.sync(PREREAD)
        map.unload()
    assert small.zone.statistics()["copied_out"] == 12 * PAGE
    assert small.zone.statistics()["bounced_pages"] == 15 + 4 + 5 + 5
    assert bounce_frames(small) == 20
    map.destroy()
    assert small.zone.statistics()["limit"] == 20
    assert bounce_frames(small) == 15
    load(small.isa, 5)


def test_a_reservation_takes_idle_pages_of_a_grown_zone() -> None:
    """The zone has grown to its limit in chunks; four pages cannot be cut out of a chunk, so a whole one goes."""
    small = SmallMachine(limit=2 * CHUNK)
    load(small.isa, 2 * CHUNK).unload()
    held = load(small.isa, 1)
    map = small.isa.derive("aha0", maxsize=PAGE).create_map(reserve=True)
    assert small.zone.limit == 2 * CHUNK - 2
    assert bounce_frames(small) <= 2 * CHUNK
    map.load_nowait(bytearray(PAGE))
    assert held.state is State.LOADED


@pytest.mark.parametrize(("alignment", "boundary"), [(1, 0), (4 * PAGE, 0), (1, 2 * PAGE), (1, 16 * PAGE)])
def test_a_reserved_map_of_one_segment_has_its_run(alignment: int, boundary: int) -> None:
    """What is reserved is a run that holds any the tag could need: the load finds it and gives nothing back for it."""
    small = SmallMachine(limit=20)
    most = 2 if 0 < boundary < 5 * PAGE else 1
    tag = small.isa.derive("old", alignment=alignment, boundary=boundary, nsegments=most, maxsize=4 * PAGE)
    map = tag.create_map(reserve=True)
    small.kernel.allocate(small.frames.statistics()["free"] * PAGE)  # nothing else is to be had
    for offset in (0, 1, 4095):
        map.load_nowait(bytearray(4 * PAGE - offset))
        assert len(map.segments) <= most
        map.unload()
        assert bounce_frames(small) == 5
    map.destroy()
    assert bounce_frames(small) == 0


def test_what_cannot_be_reserved(small: SmallMachine) -> None:
    with pytest.raises(ConstraintError, match="tag pc/isa would have to hold a buffer of any length"):
        small.isa.create_map(reserve=True)
    with pytest.raises(ConstraintError, match=r"needs 21 bounce pages, and bounce zone 0 may hold 20"):
        small.isa.derive("large", maxsize=20 * PAGE).create_map(reserve=True)
    tag = small.isa.derive("aha0", maxsize=8 * PAGE)
    load(small.isa, 12)
    with pytest.raises(
        ResourceShortage, match="9 pages of bounce zone 0 cannot be reserved now: 12 of its 20 are in use"
    ) as busy:
        tag.create_map(reserve=True)
    assert busy.value.reason is ShortageReason.BUSY
    assert small.zone.limit == 20
    assert tag.maps == []


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["load", "load", "run", "unload", "trim", "pressure"]), st.integers(0, 6)),
        max_size=30,
    )
)
def test_pages_are_neither_lost_nor_given_twice(script: list[tuple[str, int]]) -> None:
    small = SmallMachine(pages=96, low=48, limit=24, seed=5)
    one = small.isa.derive("one", nsegments=1)
    loaded: list[Map] = []
    for verb, number in script:
        if verb in ("load", "run"):
            try:
                loaded.append(load(one if verb == "run" else small.isa, number + 1))
            except ResourceShortage:
                assert loaded  # an idle zone has everything
        elif verb == "unload" and loaded:
            loaded.pop(number % len(loaded)).unload()
        elif verb == "trim":
            small.zone.trim() if small.domain.zones else None
        elif verb == "pressure":
            small.low(PAGE * number + 1).free()
        held = [
            page
            for map in loaded
            for address, length in map.segments
            for page in range(address // PAGE, -(-(address + length) // PAGE))
        ]
        assert len(held) == len(set(held))
        assert all(small.frames.owner_of(page * PAGE) == "bounce" for page in held)
        if small.domain.zones:
            figures = small.zone.statistics()
            assert figures["active"] == len(held)
            assert figures["pages"] == bounce_frames(small) <= 24
    for map in loaded:
        map.unload()
    if small.domain.zones:
        assert small.zone.free == small.zone.capacity
        small.zone.trim()
    assert small.frames.statistics()["free"] == 96


# ---------------------------------------------------------------- gaps


def test_a_fresh_run_is_found_though_its_slot_numbers_have_gaps() -> None:
    """Chunks of 16 in slots 0, 16 and 32; the outer two go back, and 20 pages fit in no one gap between."""
    machine = SmallMachine(limit=48)
    maps = [machine.isa.create_map() for _ in range(3)]
    for map in maps:
        map.load_nowait(machine.high(16 * PAGE))
    maps[0].unload()
    maps[2].unload()
    machine.zone.trim()
    assert machine.zone.statistics()["pages"] == 16
    one = machine.isa.derive("one", nsegments=1).create_map()
    buffer = machine.high(20 * PAGE)
    buffer.write(bytes(range(256)) * (20 * PAGE // 256))
    segments = one.load_nowait(buffer)
    assert len(segments) == 1
    one.sync(Direction.BOTH.pre)
    assert machine.peek(segments) == buffer.read()
    one.sync(Direction.BOTH.post)
    one.unload()
    maps[1].unload()
    machine.zone.trim()
    assert machine.zone.statistics()["pages"] == 0
    assert machine.frames.statistics()["by_owner"]["bounce"] == 0


def test_idle_pages_of_the_zone_make_room_for_a_run() -> None:
    """It grew by 30 single pages while memory was in pieces. They are idle now, and lie in the way of every run."""
    machine = SmallMachine(limit=40, low=40)
    taken = [
        machine.kernel.allocate(PAGE, within=AddressSet.span(page * PAGE, (page + 1) * PAGE - 1))
        for page in range(3, 40, 4)
    ]
    many = machine.isa.create_map()
    many.load_nowait(machine.high(30 * PAGE))
    many.unload()
    for buffer in taken:
        buffer.free()
    assert machine.zone.statistics()["pages"] == 30
    one = machine.isa.derive("one", nsegments=1).create_map()
    assert len(one.load_nowait(machine.high(10 * PAGE))) == 1
    one.unload()
