"""The way from a bus to memory: windows, bridges behind bridges, and limits that count in a bus's own addresses."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.errors import BusdmaError, ConstraintError, DriverError, MappingRefused, TooManySegments
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.paths import STRAIGHT, Route, Window, behind
from busdma.sync import Direction
from core.paths_machine import DIRECT, MAPPED, MIB, Behind, Tables, check_limits
from core.small_machine import PAGE, Pages, SmallMachine

GIB = 1 << 30


# -- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "window",
    [
        (0x40000000, 0x300000, 0),  # no power of two
        (0x40001000, 0x2000, 0),  # base
        (0x40000000, 0x2000, 0x1000),  # target
    ],
)
def test_a_window_that_moves_addresses_is_naturally_aligned(window: tuple[int, int, int]) -> None:
    """Or a boundary line of the bus would be no boundary line behind the window."""
    with pytest.raises(ConstraintError, match="give a power of two, and base and target as multiples of it"):
        Window(*window)


def test_a_window_that_moves_nothing_may_lie_anywhere() -> None:
    assert Window(0x1000, 0x3000, 0x1000).shift == 0


@pytest.mark.parametrize("window", [(-1, 4096, 0), (0, 0, 0), (0, 4096, -4096), (MAX_ADDRESS, 2, MAX_ADDRESS)])
def test_a_window_lies_within_64_bits(window: tuple[int, int, int]) -> None:
    with pytest.raises(ConstraintError, match="is no window"):
        Window(*window)


def test_the_last_window_of_the_address_space() -> None:
    window = Window(MAX_ADDRESS - 0xFFF, 4096, 0)
    assert window.near == AddressSet.span(MAX_ADDRESS - 0xFFF, MAX_ADDRESS)
    (route,) = behind((STRAIGHT,), (window,))
    assert (route.shift, route.name) == (MAX_ADDRESS - 0xFFF, "window")


def test_two_windows_in_one_place_are_a_mistake() -> None:
    with pytest.raises(ConstraintError, match=r"two windows of its bridge forward 0x1000..0x1fff"):
        SmallMachine().root.bridge("pci", Window(0, 0x2000), Window(0x1000, 0x2000, 0x1000))


def test_a_bridge_without_windows_is_a_mistake() -> None:
    with pytest.raises(ConstraintError, match="forwards nothing") as caught:
        SmallMachine().root.bridge("pci")
    assert caught.value.tag == "pc/pci"


def test_a_bridge_that_forwards_nothing_in_reach_is_a_mistake() -> None:
    machine = SmallMachine()
    with pytest.raises(ConstraintError, match="nothing that its bridge forwards can be reached"):
        machine.isa.bridge("pci", Window(0, MIB, MIB))  # isa ends below
    assert machine.isa.children == []


sizes = st.integers(12, 40).map(lambda shift: 1 << shift)


@given(sizes, st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_bridges_compose(size: int, base: int, target: int, outer_base: int, outer_target: int) -> None:
    """Through two bridges, an address goes where it goes through the one and then the other."""
    inner = Window(base * size, size, target * size)
    outer = Window(outer_base * size * 4, size * 4, outer_target * size * 4)
    routes = behind(behind((STRAIGHT,), (outer,)), (inner,))
    overlap = inner.far & outer.near
    assert [route.span.size() for route in routes] == ([overlap.size()] if overlap else [])
    for route in routes:
        ((lo, hi),) = route.span.intervals
        for address in (lo, (lo + hi) // 2, hi):
            middle = address - inner.shift
            assert inner.far.covers(middle, middle)
            assert outer.near.covers(middle, middle)
            assert address - route.shift == middle - outer.shift


def test_a_bridge_behind_a_bridge_with_two_windows_has_a_way_through_each() -> None:
    machine = Behind("direct", "mapped")
    routes = behind(machine.bus.routes, (Window(0, 4 * GIB, 0),))
    assert [(route.name, route.span) for route in routes] == [
        ("window", AddressSet.span(DIRECT, DIRECT + machine.covered - 1)),
        ("remap", AddressSet.span(MAPPED, MAPPED + 64 * PAGE - 1)),
    ]
    assert Route(AddressSet.span(0, 9)).name == "direct"


# -- limits are those of the tag's own bus ---------------------------------------------------------------------------


def test_a_24_bit_limit_on_an_alpha_does_not_mean_low_memory() -> None:
    """Memory at 0 is bus address 0x40000000 there: such a device has only the scatter-gather window, at 8 MiB."""
    machine = Behind("direct", "mapped")
    isa = machine.bus.derive("isa", lowaddr=(16 * MIB) - 1)
    map = isa.create_map()
    ((address, length),) = map.load_nowait(machine.low(100))
    assert MAPPED <= address < 16 * MIB
    assert length == 100
    with pytest.raises(ConstraintError, match="no address is left"):
        Behind("direct").bus.derive("isa", lowaddr=(16 * MIB) - 1)


def test_the_same_driver_of_a_32_bit_card_takes_the_direct_window() -> None:
    machine = Behind("direct", "mapped")
    tag = machine.bus.derive("card", lowaddr=(4 * GIB) - 1, clip=True)
    buffer = machine.low(100)
    ((address, _),) = tag.create_map().load_nowait(buffer)
    assert address == DIRECT + machine.kernel.page_table[buffer.start // PAGE] + buffer.start % PAGE


def test_isa_behind_the_same_bridge_has_only_the_translated_window() -> None:
    machine = Behind("direct", "mapped")
    mapped = Window(MAPPED, 64 * PAGE, MAPPED)
    isa = machine.bus.bridge("isa", mapped)
    assert [route.name for route in isa.routes] == ["remap"]
    for buffer in (machine.low(3 * PAGE), machine.high(3 * PAGE)):
        map = isa.create_map()
        assert [address >= MAPPED for address, _ in map.load_nowait(buffer)] == [True]
        map.unload()


def test_chain_direct_then_remap() -> None:
    machine = Behind("direct", "mapped", pages=512, covered=256)
    map = machine.bus.create_map()
    low = machine.kernel.allocate(PAGE, within=AddressSet.span(0, machine.covered - 1))
    high = machine.kernel.allocate(PAGE, within=AddressSet.span(machine.covered, 512 * PAGE - 1))
    assert next(iter(map.load_nowait(low)))[0] >= DIRECT
    assert machine.pool.statistics()["allocated"] == 0  # direct costs nothing
    map.unload()
    ((address, _),) = map.load_nowait(high)
    assert MAPPED <= address < DIRECT
    assert machine.pool.statistics()["active"] == 1
    assert all(zone.active == 0 for zone in machine.domain.zones)
    map.unload()


def test_too_many_segments_for_the_direct_window_are_one_by_remap() -> None:
    machine = Behind("direct", "mapped")
    tag = machine.bus.derive("card", nsegments=1)
    map = tag.create_map()
    ((address, length),) = map.load_nowait(Pages([9 * PAGE, 3 * PAGE, 30 * PAGE], 100, 2 * PAGE))
    assert (address % PAGE, length) == (100, 2 * PAGE)
    assert MAPPED <= address < DIRECT
    assert all(zone.active == 0 for zone in machine.domain.zones)


def test_without_a_second_window_they_bounce() -> None:
    machine = Behind("direct")
    map = machine.bus.derive("card", nsegments=1).create_map()
    ((address, _),) = map.load_nowait(Pages([9 * PAGE, 3 * PAGE, 30 * PAGE], 100, 2 * PAGE))
    assert DIRECT <= address < DIRECT + machine.covered
    assert machine.zone.active == 3


def test_a_second_direct_window_is_tried_before_anything_is_copied() -> None:
    machine = SmallMachine()
    tag = machine.root.bridge("pci", Window(GIB, 256 * PAGE), Window(2 * GIB, 256 * PAGE, 256 * PAGE))
    map = tag.create_map()
    assert list(map.load_nowait(Pages([300 * PAGE], 0, PAGE))) == [(2 * GIB + 44 * PAGE, PAGE)]
    map.unload()
    segments = list(map.load_nowait(Pages([300 * PAGE, 3 * PAGE], 0, 2 * PAGE)))  # one load goes one way
    assert sum(length for _, length in segments) == 2 * PAGE
    assert sum(zone.active for zone in machine.domain.zones) == 1
    map.unload()


def test_the_preferred_window_comes_first_even_if_it_translates() -> None:
    machine = Behind("mapped", "direct")
    buffer = machine.low(PAGE)
    map = machine.bus.create_map()
    ((address, _),) = map.load_nowait(buffer)
    assert MAPPED <= address < DIRECT
    map.unload()
    other = machine.bus.create_map()
    other.load_nowait(machine.low(64 * PAGE))  # all the bus pages there are
    ((address, _),) = map.load_nowait(buffer)
    assert address >= DIRECT


# -- everything that an ancestor says holds behind the bridge --------------------------------------------------------


limits = st.fixed_dictionaries(
    {},
    optional={
        "alignment": st.sampled_from([4, 512, PAGE, 4 * PAGE]),
        "boundary": st.sampled_from([512, PAGE, 4 * PAGE, 64 * PAGE]),
        "maxsegsz": st.sampled_from([512, PAGE, 3 * PAGE]),
        "nsegments": st.integers(1, 20),
    },
)


@given(
    limits,
    st.lists(st.integers(0, 255), min_size=1, max_size=6, unique=True),
    st.sampled_from([0, 4, 100, 4095]),
    st.integers(1, 6 * PAGE),
    st.sampled_from(["direct", "mapped", "direct+mapped"]),
)
def test_alignment_and_boundary_hold_on_the_bus(
    given_limits: dict[str, int], numbers: list[int], start: int, length: int, windows: str
) -> None:
    machine = Behind(*windows.split("+"), limit=64)
    try:
        tag = machine.bus.derive("card", **given_limits)  # type: ignore[arg-type]
    except ConstraintError:
        return
    length = min(length, len(numbers) * PAGE - start)
    for number in numbers:  # or the zone might have them
        machine.frames.allocate(1, "chosen", AddressSet.span(number * PAGE, number * PAGE + PAGE - 1))
    buffer = Pages([number * PAGE for number in numbers], start, length)
    data = random.Random(1).randbytes(length)
    for at in range(length):
        page, within = divmod(start + at, PAGE)
        machine.memory[numbers[page] * PAGE + within] = data[at]
    map = tag.create_map()
    try:
        segments = map.load_nowait(buffer, Direction.TO_DEVICE)
    except TooManySegments:
        most = tag.constraints.nsegments.value * tag.constraints.segment_size
        assert most < length + tag.constraints.boundary.value + PAGE
        return
    except BusdmaError as error:
        if "contiguous run" not in str(error):  # small memory
            raise
        return
    check_limits(segments, tag.constraints, length)
    map.sync(Direction.TO_DEVICE.pre)
    assert machine.device_reads(segments) == data
    map.unload()
    assert machine.pool.active == 0
    assert all(zone.active == 0 for zone in machine.domain.zones)


def test_holes_of_an_ancestor_move_with_the_window() -> None:
    machine = SmallMachine()
    hole = AddressSet.span(8 * PAGE, 9 * PAGE - 1)
    pci = machine.root.derive("host", exclude=hole).bridge("pci", Window(GIB, 256 * PAGE))
    assert not pci.constraints.reach & hole.shifted(GIB)
    assert pci.constraints.why_not(GIB + 8 * PAGE, GIB + 8 * PAGE) == "in an excluded hole, set by tag 'host'"
    assert "outside the windows of the bridge, set by tag 'pci'" in pci.constraints.why_not(0, 1)
    map = pci.create_map()
    list(map.load_nowait(Pages([8 * PAGE], 0, PAGE)))
    assert machine.zone.active == 1  # bounced


def test_a_filter_of_an_ancestor_is_asked_about_the_addresses_of_its_own_bus() -> None:
    machine = SmallMachine()
    asked: list[tuple[int, int]] = []

    def avoid(first: int, last: int) -> bool:
        asked.append((first, last))
        return first // PAGE == 201

    vlb = machine.root.derive("vlb", lowaddr=128 * PAGE - 1, filter=avoid)
    pci = vlb.bridge("pci", Window(GIB, 256 * PAGE))
    map = pci.create_map()
    assert list(map.load_nowait(Pages([200 * PAGE], 16, 32))) == [(GIB + 200 * PAGE + 16, 32)]
    assert set(asked) == {(200 * PAGE + 16, 200 * PAGE + 47)}
    map.unload()
    segments = list(map.load_nowait(Pages([201 * PAGE], 16, 32)))
    assert machine.zone.active == 1
    assert segments[0][0] < GIB + 128 * PAGE
    map.unload()
    assert "the filter of tag 'vlb' objects" in pci.constraints.why_not(GIB + 201 * PAGE, GIB + 201 * PAGE)


def test_a_bus_of_which_only_what_a_filter_allows_can_be_reached() -> None:
    machine = SmallMachine()
    vlb = machine.root.derive("vlb", lowaddr=128 * PAGE - 1, filter=lambda first, last: first // PAGE == 201)
    upper = vlb.subregion("upper", 128 * PAGE, 512 * PAGE - 1)
    map = upper.create_map()
    assert list(map.load_nowait(Pages([200 * PAGE], 0, 8))) == [(200 * PAGE, 8)]
    map.unload()
    buffer = machine.high(3)
    assert len(map.load_nowait([buffer, buffer])) == 2
    map.unload()
    with pytest.raises(MappingRefused):
        map.load_nowait(Pages([201 * PAGE], 0, 8))


# -- subregion -------------------------------------------------------------------------------------------------------


def test_a_subregion_includes_both_ends() -> None:
    tag = SmallMachine().root.subregion("part", 4 * PAGE, 8 * PAGE - 1)
    assert tag.constraints.reach == AddressSet.span(4 * PAGE, 8 * PAGE - 1)
    map = tag.create_map()
    assert list(map.load_nowait(Pages([4 * PAGE], 0, PAGE))) == [(4 * PAGE, PAGE)]
    map.unload()
    assert list(map.load_nowait(Pages([7 * PAGE], PAGE - 1, 1))) == [(8 * PAGE - 1, 1)]
    one = tag.subregion("byte", 5 * PAGE, 5 * PAGE)
    assert one.constraints.reach.size() == 1
    everything = tag.subregion("all", 0, MAX_ADDRESS)
    assert everything.constraints.reach == tag.constraints.reach


def test_a_subregion_of_which_nothing_is_left() -> None:
    machine = SmallMachine()
    with pytest.raises(ConstraintError, match="no address is left"):
        machine.isa.subregion("part", 128 * PAGE, 200 * PAGE)
    for lo, hi in ((2, 1), (-1, 1), (0, MAX_ADDRESS + 1)):
        with pytest.raises(ConstraintError, match="is no subregion"):
            machine.isa.subregion("part", lo, hi)
    assert machine.isa.children == []


# -- what cannot be --------------------------------------------------------------------------------------------------


def test_a_refusal_has_the_reason_of_every_way() -> None:
    machine = Behind("direct", "mapped", limit=4, mapped=8)
    with pytest.raises(MappingRefused) as caught:
        machine.bus.create_map().load_nowait(bytearray(9 * PAGE))
    text = str(caught.value)
    assert "window: 9 pages out of reach" in text
    assert "bounce: 9 bounce pages needed and bounce zone 0 may hold 4" in text
    assert "remap: 9 pages of bounce zone" in text
    assert caught.value.tag == "pc/pci"


def test_one_pool_serves_two_buses() -> None:
    machine = Behind("mapped")
    tables = Tables(0, 4, AddressSet.span(0, 512 * PAGE - 1))
    pool = IovaPool("small", machine.domain.queue, tables, IovaAllocator([(0, 3)]))
    tags = [machine.root.bridge(f"bus{n}", Window(0, 4 * PAGE, 0, pool)) for n in range(2)]
    first, second = tags[0].create_map(), tags[1].create_map()
    first.load_nowait(machine.low(3 * PAGE))
    with pytest.raises(BusdmaError, match="small"):
        second.load_nowait(machine.low(2 * PAGE))
    with pytest.raises(DriverError, match=r"never|may never"):
        second.load_nowait(machine.low(5 * PAGE))
