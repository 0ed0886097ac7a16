"""A map: its states, its syncs, who may own which bytes, and what it lets go of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import DriverError, MapStateError, SyncError
from busdma.lifecycle import LIFE, Event, State
from busdma.map import Map
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp
from core.small_machine import PAGE, SmallMachine


def in_state(small: SmallMachine, state: State) -> Map:
    """A map in that state."""
    map = small.isa.create_map(name=state.name.lower())
    buffer = small.high(PAGE)
    if state is State.WAITING:
        small.isa.create_map().load_nowait(small.high(20 * PAGE))
        map.load_callback(buffer, lambda segments, error: None)
    elif state is State.DESTROYED:
        map.destroy()
    elif state is not State.IDLE:
        map.load_nowait(buffer)
        if state is State.QUARANTINED:
            map.quarantine()
    assert map.state is state
    return map


ACTS = {
    Event.LOAD: lambda map: map.load_nowait(bytearray(5)),
    Event.SYNC: lambda map: map.sync(PREREAD),
    Event.UNLOAD: lambda map: map.unload(),
    Event.QUARANTINE: lambda map: map.quarantine(),
    Event.REPORT_IDLE: lambda map: map.report_idle(),
    Event.DESTROY: lambda map: map.destroy(),
}


@pytest.mark.parametrize("event", list(ACTS), ids=lambda event: event.value)
@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name.lower())
def test_the_table_is_what_maps_do(small: SmallMachine, state: State, event: Event) -> None:
    map = in_state(small, state)
    after = LIFE[event].get(state)
    if after is None:
        with pytest.raises(MapStateError, match=f"cannot {event.value} map {state.name.lower()!r} of tag pc/isa: "):
            ACTS[event](map)
        assert map.state is state
    else:
        ACTS[event](map)
        assert map.state is after


def test_segments_are_only_valid_between_load_and_unload(small: SmallMachine) -> None:
    map = small.isa.create_map()
    segments = map.segments
    for _ in range(2):
        assert len(segments) == 0
        for look in (lambda: list(segments), lambda: segments.buffer, lambda: segments[0]):
            with pytest.raises(MapStateError, match="only valid between load and unload"):
                look()
        assert map.load_nowait(small.low(3 * PAGE)) is segments
        assert list(segments.flat()) == [number for segment in segments for number in segment]
        assert segments.buffer.shape == (len(segments), 2)
        map.unload()
    map.load_nowait(small.low(5))
    map.quarantine()
    with pytest.raises(MapStateError):
        list(segments)


def test_two_maps_never_overwrite_each_other(small: SmallMachine) -> None:
    first, second = small.isa.create_map(), small.isa.create_map()
    kept = list(first.load_nowait(small.high(5 * PAGE)))
    second.load_nowait(small.low(7 * PAGE))
    assert list(first.segments) == kept


@pytest.mark.parametrize("where", ["low", "high"])
def test_bad_syncs(small: SmallMachine, where: str) -> None:
    """The same on a map that bounces and on one that does not."""
    map = small.isa.create_map(name="dma0")
    map.load_nowait(getattr(small, where)(1000))
    for offset, length in ((0, 1001), (1000, 1), (-1, 5), (5, 0), (999, 2), (2000, None)):
        with pytest.raises(SyncError, match=r"of map 'dma0' of tag pc/isa: 1000 bytes are loaded; give a range inside"):
            map.sync(PREREAD, offset, length)
    for op in (PREREAD | POSTREAD, PREWRITE | POSTREAD, SyncOp(0), PREREAD | PREWRITE | POSTREAD | POSTWRITE):
        with pytest.raises(SyncError, match="PRE only with PRE"):
            map.sync(op)
    assert map.device_may_own is None
    map.sync(PREREAD)
    assert map.state is State.LOADED


def test_a_post_of_one_way_leaves_the_other_to_the_device(small: SmallMachine) -> None:
    map = small.isa.create_map()
    map.load_nowait(small.high(400))
    map.sync(PREREAD | PREWRITE)
    map.sync(POSTWRITE)  # it reads no more, and may still write
    assert map.device_may_own == (0, 400)
    map.sync(POSTREAD, 0, 100)
    assert map.device_may_own == (100, 400)
    map.abandon()
    assert map.state is State.QUARANTINED
    map.report_idle()
    map.load_nowait(small.high(400))
    map.sync(PREWRITE)
    map.sync(PREREAD, 100, 100)
    map.sync(POSTREAD, 100, 100)
    assert map.device_may_own == (0, 400)
    map.sync(POSTREAD)
    map.sync(POSTWRITE)
    assert map.device_may_own is None
    map.abandon()
    assert map.state is State.IDLE


def test_ranges_that_the_device_may_own(small: SmallMachine) -> None:
    map = small.isa.create_map()
    map.load_nowait(small.high(1000))
    map.sync(PREREAD, 100, 100)
    map.sync(PREWRITE, 300, 50)
    assert map.device_may_own == (100, 350)
    map.sync(POSTWRITE, 100, 100)
    assert map.device_may_own == (100, 350)
    map.sync(POSTREAD, 100, 100)
    assert map.device_may_own == (300, 350)
    map.sync(PREWRITE, 600, 100)
    map.sync(POSTWRITE, 350, 100)  # in the middle: the smallest range around what is left stays
    assert map.device_may_own == (300, 700)
    map.sync(POSTWRITE, 500, 500)
    assert map.device_may_own == (300, 500)
    map.sync(POSTWRITE, 0, 1000)
    assert map.device_may_own is None
    map.sync(PREREAD)
    map.report_idle()
    assert map.device_may_own is None
    map.unload()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 63), st.integers(1, 64)), max_size=20))
def test_no_byte_of_the_device_lies_outside_its_range(syncs: list[tuple[bool, int, int]]) -> None:
    map = SmallMachine().isa.create_map()
    map.load_nowait(bytearray(64))
    owned: set[int] = set()
    for pre, offset, length in syncs:
        length = min(length, 64 - offset)
        map.sync(PREREAD if pre else POSTREAD, offset, length)
        changed = set(range(offset, offset + length))
        owned = owned | changed if pre else owned - changed
        span = map.device_may_own
        assert owned <= (set(range(*span)) if span else set())


def test_bytes_by_sub_range(small: SmallMachine) -> None:
    """What the device did not write keeps its value, and what lies outside the synced range stays old."""
    buffer = small.high(3 * PAGE, 77)
    buffer.write(b"client " * 1700)
    before = buffer.read()
    map = small.isa.create_map()
    map.load_nowait(buffer)
    map.sync(PREREAD)
    small.poke(map.segments, b"DEVICE", 4000)
    small.poke(map.segments, b"LATER", 9000)
    assert buffer.read() == before  # nothing before the POST
    map.sync(POSTREAD, 3000, 2000)
    assert buffer.read() == before[:4000] + b"DEVICE" + before[4006:]
    map.unload()
    assert buffer.read() == before[:4000] + b"DEVICE" + before[4006:]  # unload never syncs


def test_nobody_sees_an_earlier_owners_bytes(small: SmallMachine) -> None:
    secret = small.isa.create_map()
    secret.load_nowait(bytearray(b"secret" * 1000), Direction.TO_DEVICE)
    secret.sync(PREWRITE)
    where = list(secret.segments)
    secret.unload()
    data = bytearray(6000)
    secret.load_nowait(data, Direction.FROM_DEVICE)
    assert list(secret.segments) == where
    secret.sync(PREREAD)
    secret.sync(POSTREAD)  # the device wrote nothing
    assert data == bytes(6000)


def test_unload_lets_go_of_the_hosts_memory(small: SmallMachine) -> None:
    map = small.isa.create_map()
    data = bytearray(100)
    map.load_nowait(data)
    with pytest.raises(BufferError):
        data.append(0)
    map.unload()
    data.append(0)
    assert len(data) == 101


def test_a_read_only_buffer_never_changes_another(small: SmallMachine) -> None:
    """A map that had a bytearray, and then has constant bytes: POSTREAD has nowhere to copy to."""
    map = small.isa.create_map()
    data = bytearray(b"x" * 100)
    map.load_nowait(data)
    map.unload()
    map.load_nowait(bytes(100), Direction.TO_DEVICE)
    map.sync(PREWRITE)
    small.poke(map.segments, b"device")
    with pytest.raises(SyncError):
        map.sync(POSTREAD)
    map.sync(POSTWRITE)
    map.unload()
    assert data == b"x" * 100


def test_abandon(small: SmallMachine) -> None:
    """The owner left: what waits is cancelled, what the device may own is kept from everybody, the rest goes back."""
    owned, loaded, idle = (small.isa.create_map(name=name) for name in ("owned", "loaded", "idle"))
    owned.load_nowait(small.high(2 * PAGE))
    owned.sync(PREREAD, 17, 1)
    loaded.load_nowait(small.high(3 * PAGE))
    waiting = small.isa.create_map(name="waiting")
    heard: list[object] = []
    waiting.load_callback(small.high(18 * PAGE), lambda segments, error: heard.append(type(error).__name__))
    small.isa.abandon()
    small.runtime.run(_nothing)
    assert [map.state for map in (owned, loaded, idle, waiting)] == [
        State.QUARANTINED,
        State.IDLE,
        State.IDLE,
        State.IDLE,
    ]
    assert heard == ["ResourceShortage"]
    assert small.zone.statistics()["quarantined"] == small.zone.active == 2
    assert small.domain.leaks() == ["map 'owned' of tag pc/isa is quarantined"]
    small.isa.report_idle()
    assert small.zone.statistics()["quarantined"] == small.zone.active == 0
    assert small.domain.leaks() == []


async def _nothing() -> None:
    """A driver that does nothing, so that others can."""


def test_statistics_of_map_and_tag(small: SmallMachine) -> None:
    map = small.isa.create_map(name="dma0")
    for size in (100, 5000):
        map.load_nowait(bytearray(size))
        map.sync(PREREAD)
        map.sync(POSTREAD)
        map.unload()
    figures = map.statistics()
    assert figures == {"loads": 2, "bytes": 5100, "segments": figures["segments"], "syncs": 4, "deferred": 0}
    assert str(map) == map.describe() == "map 'dma0' of tag pc/isa"
    assert repr(map) == "<map 'dma0' of tag pc/isa, idle>"
    map.destroy()
    assert small.isa.statistics() == {**figures, "maps": 0, "memory": 0}


def test_the_end_of_a_tag(small: SmallMachine) -> None:
    tag = small.isa.derive("aha0")
    map = tag.create_map(name="m")
    memory = tag.alloc(100)
    child = tag.derive("disk")
    with pytest.raises(
        DriverError, match="tag pc/isa/aha0 is in use: destroy or free tag pc/isa/aha0/disk, DMA-safe memory"
    ):
        tag.destroy()
    child.destroy()
    memory.free()
    with pytest.raises(DriverError, match="map 'm'"):
        tag.destroy()
    map.destroy()
    with tag.transfer(bytearray(5), to_device=True), pytest.raises(DriverError, match="map 'transfer'"):
        tag.destroy()
    tag.destroy()  # idle maps of transfers are its own affair
    for late in (tag.create_map, lambda: tag.derive("x"), lambda: tag.alloc(5), tag.destroy):
        with pytest.raises(DriverError, match="was destroyed; derive another"):
            late()
