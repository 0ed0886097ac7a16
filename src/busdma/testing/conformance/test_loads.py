"""The life of a map, its segments, and its syncs, on every mechanism."""

from __future__ import annotations

import pytest

from busdma.errors import DriverError, MapStateError, SyncError
from busdma.lifecycle import State
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction
from busdma.tag import Tag
from busdma.testing.conformance.rig import noise, state_of, tags
from busdma.testing.difference import difference

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose

PRE = PREREAD | PREWRITE
POST = POSTREAD | POSTWRITE


def test_segments_are_valid_between_load_and_unload_only(machine: Machine) -> None:
    """Before and after, reading them is an error; and they are the map's, the same object for its life."""
    for tag in tags(machine):
        map = tag.create_map()
        segments = map.segments
        for buffer in (machine.allocate(10_000, offset=3), bytearray(6_000)):
            with pytest.raises(MapStateError, match="between load and unload"):
                list(segments)
            assert map.load_nowait(buffer) is segments
            assert sum(length for _, length in segments) == len(buffer)
            rows: object = segments.buffer.tolist()
            assert rows == [[address, length] for address, length in segments]
            assert segments.buffer.readonly
            map.unload()
            assert len(segments) == 0
        with pytest.raises(MapStateError):
            _ = segments.buffer


def test_segments_are_addresses_and_lengths(machine: Machine) -> None:
    """Pairs to iterate over, to index and to count; and one array of shape (n, 2), not a copy of it."""
    for tag in tags(machine):
        map = tag.derive("short", maxsegsz=1024, clip=True).create_map()
        segments = map.load_nowait(machine.allocate(10_000, offset=3))
        pairs = [(int(address), length) for address, length in segments]
        assert len(segments) == len(pairs) > 9
        assert (segments[0], segments[-1]) == (pairs[0], pairs[-1])
        with pytest.raises(IndexError):
            segments[len(pairs)]
        view = segments.buffer
        assert (view.format, view.shape, view.itemsize) == ("Q", (len(pairs), 2), 8)
        assert [(view[row, 0], view[row, 1]) for row in range(len(pairs))] == pairs
        map.unload()


def test_two_loaded_maps_never_overwrite_each_other(machine: Machine) -> None:
    """Neither their segments, nor the bytes that were given to their devices."""
    for tag in tags(machine):
        loaded: list[tuple[Map, bytearray, list[tuple[int, int]]]] = []
        for seed in range(6):
            data = bytearray(noise(5_000, seed))
            map = tag.create_map()
            loaded.append((map, data, list(map.load_nowait(data))))
            map.sync(PRE)
        for map, data, segments in loaded:
            assert list(map.segments) == segments
            data[:] = bytes(len(data))
        taken = [(address, address + length) for _, _, segments in loaded for address, length in segments]
        assert all(end <= start for (_, end), (start, _) in zip(sorted(taken), sorted(taken)[1:], strict=False))
        for seed, (map, data, _) in enumerate(loaded):
            map.sync(POST)
            map.unload()
            assert not difference(data, noise(5_000, seed))  # what the device did not write keeps its value


def test_the_life_of_a_map(tag: Tag) -> None:
    """What is legal in which state; all else is refused, and changes nothing."""
    map = tag.create_map()
    buffer = bytearray(100)
    for call in (map.unload, lambda: map.sync(PRE), map.quarantine):
        with pytest.raises(MapStateError):
            call()
    assert state_of(map) is State.IDLE
    map.report_idle()
    map.load_nowait(buffer)
    with pytest.raises(MapStateError, match="unload it first"):
        map.load_nowait(buffer)
    with pytest.raises(MapStateError):
        map.destroy()
    assert state_of(map) is State.LOADED
    map.unload()
    map.destroy()
    with pytest.raises(MapStateError, match="destroyed"):
        map.load_nowait(buffer)
    with pytest.raises(MapStateError):
        map.destroy()


def test_pre_and_post_never_mix(machine: Machine) -> None:
    """Sync is PRE with PRE or POST with POST, and something."""
    for tag in tags(machine):
        map = tag.create_map()
        map.load_nowait(machine.allocate(5000))
        for op in (PREREAD | POSTREAD, PREWRITE | POSTWRITE, PRE | POST, PREREAD | POSTWRITE, PREREAD & PREWRITE):
            with pytest.raises(SyncError, match="PRE"):
                map.sync(op)
        map.unload()


def test_a_sync_fits_the_direction_of_the_load(machine: Machine) -> None:
    """The rights of a mapping come from it, so a sync the other way is refused."""
    cases = ((Direction.TO_DEVICE, PREWRITE, PREREAD), (Direction.FROM_DEVICE, PREREAD, PREWRITE))
    for tag in tags(machine):
        map = tag.create_map()
        for direction, fits, other in cases:
            map.load_nowait(machine.allocate(5000), direction)
            for op in (other, PRE):
                with pytest.raises(SyncError, match="it was loaded"):
                    map.sync(op)
            map.sync(fits)
            map.sync(direction.post)
            map.unload()


def test_a_sync_stays_inside_what_is_loaded(machine: Machine) -> None:
    """A range that leaves it, or has no bytes, is refused; every range inside is not."""
    for tag in tags(machine):
        for buffer in (machine.allocate(5000, offset=9), bytearray(5000)):
            map = tag.create_map()
            map.load_nowait(buffer)
            for offset, length in ((-1, 10), (0, 5001), (4999, 2), (5000, 0), (0, 0), (10, -1)):
                with pytest.raises(SyncError):
                    map.sync(PRE, offset, length)
            assert map.device_may_own is None
            for offset, length in ((0, 1), (4999, 1), (4090, 12), (0, 5000)):
                map.sync(PRE, offset, length)
                map.sync(POST, offset, length)
            map.unload()


def test_a_sync_of_a_range_moves_that_range(machine: Machine) -> None:
    """Memory of the host has two copies, which agree at a sync only: so every range can be told from the others."""
    before, after = noise(10_000, 1), noise(10_000, 2)
    for tag in tags(machine):
        for lo, hi in ((0, 1), (1, 4096), (4095, 4097), (5_000, 10_000)):
            data = bytearray(before)
            map = tag.create_map()
            map.load_nowait(data)
            map.sync(PRE)
            data[:] = after
            map.sync(PRE, 0, 1)  # a second one is as good
            map.sync(POST, lo, hi - lo)
            expected = after[:lo] + before[lo:hi] + after[hi:]
            assert not difference(data[1:], expected[1:])
            map.unload()
            assert not difference(data[1:], expected[1:])


def test_unload_never_syncs(machine: Machine) -> None:
    """What no POST sync fetched stays with the device."""
    for tag in tags(machine):
        data = bytearray(noise(6_000, 1))
        map = tag.create_map()
        map.load_nowait(data)
        map.sync(PRE)
        data[:] = noise(6_000, 2)
        map.unload()
        assert not difference(data, noise(6_000, 2))


def test_postwrite_brings_nothing_in(machine: Machine) -> None:
    """After a transfer to the device, memory is what the CPU last wrote."""
    for tag in tags(machine):
        data = bytearray(noise(6_000, 1))
        map = tag.create_map()
        map.load_nowait(data, Direction.TO_DEVICE)
        map.sync(PREWRITE)
        data[:] = noise(6_000, 2)
        map.sync(POSTWRITE)
        map.unload()
        assert not difference(data, noise(6_000, 2))


def test_who_owns_the_bytes(tag: Tag) -> None:
    """From PRE to POST they are the device's."""
    map = tag.create_map()
    map.load_nowait(bytearray(1000))
    assert map.device_may_own is None
    map.sync(PRE, 100, 200)
    assert map.device_may_own == (100, 300)
    map.sync(POST, 100, 50)
    assert map.device_may_own == (150, 300)
    map.sync(POST, 150, 150)
    assert map.device_may_own is None
    map.unload()


def test_a_transfer_syncs_and_unloads(machine: Machine) -> None:
    """Going in loads and syncs, coming out syncs and unloads, also for a driver that waits."""

    async def awaiting(tag: Tag) -> int:
        async with tag.transfer(bytearray(5000), to_device=True) as segments:
            return sum(length for _, length in segments)

    for tag in tags(machine):
        data = machine.allocate(5000, offset=1)
        with tag.transfer(data, to_device=True, from_device=True) as segments:
            assert sum(length for _, length in segments) == 5000
        assert machine.run(awaiting, tag) == 5000
        assert tag.statistics()["syncs"] == 4
        with pytest.raises(DriverError, match="to_device"):
            tag.transfer(data)
    assert machine.leaks() == []


def test_a_tag_in_use_cannot_be_destroyed(machine: Machine, tag: Tag) -> None:
    """Not while it has children, memory, or maps that are not idle."""
    child = tag.derive("child")
    with pytest.raises(DriverError, match="child"):
        tag.destroy()
    map = child.create_map(name="mine")
    map.load_nowait(machine.allocate(10))
    with pytest.raises(DriverError, match="mine"):
        child.destroy()
    map.unload()
    map.destroy()
    child.destroy()
    tag.destroy()
    with pytest.raises(DriverError, match="destroyed"):
        tag.create_map()
