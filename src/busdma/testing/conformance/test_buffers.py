"""Everything that can be loaded, on every device's bus; and what cannot."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from busdma.errors import BufferGone, DriverError
from busdma.lists import BufferList
from busdma.machine.machine import Machine
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction
from busdma.tag import Tag
from busdma.testing.conformance.kinds import KINDS
from busdma.testing.conformance.rig import assert_kept, noise, tags
from busdma.testing.difference import difference
from busdma.uio import Uio

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose

PRE = PREREAD | PREWRITE
POST = POSTREAD | POSTWRITE


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_loaded_synced_and_unloaded(machine: Machine, kind: str) -> None:
    """Within every limit, in full, and nothing of it changes where no device writes."""
    data = noise(9_001)
    for parent in tags(machine):
        for tag in (parent, parent.derive("narrow", boundary=4096, nsegments=60, clip=True)):
            filled = KINDS[kind](machine, data)
            map = tag.create_map()
            assert_kept(tag.constraints, map.load_nowait(filled.data), len(data))
            map.sync(PRE)
            for lo, hi in ((0, 3), (3, 5_000), (5_000, len(data))):
                map.sync(POST, lo, hi - lo)
            map.unload()
            assert not difference(filled.read(), data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_one_segment(machine: Machine, kind: str) -> None:
    """Where a device takes one segment only, every kind is made one, and its bytes stay in order."""
    data = noise(9_001)
    for parent in tags(machine):
        tag = parent.derive("one", nsegments=1)
        filled = KINDS[kind](machine, data)
        map = tag.create_map()
        ((_, length),) = map.load_nowait(filled.data)
        assert length == len(data)
        map.sync(PRE)
        map.sync(POST)
        map.unload()
        assert not difference(filled.read(), data)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_device_did_not_write_keeps_its_value(machine: Machine, kind: str) -> None:
    """Loaded for the device to write, and it wrote nothing: not a byte of an earlier owner comes in."""
    data = noise(9_001)
    for tag in tags(machine):
        filled = KINDS[kind](machine, data)
        map = tag.create_map()
        for lo, hi in ((0, 9_001), (1, 5_000)):
            map.load_nowait(filled.data, Direction.FROM_DEVICE)
            map.sync(PREREAD, lo, hi - lo)
            map.sync(POSTREAD, lo, hi - lo)
            map.unload()
            assert not difference(filled.read(), data)


def test_a_list_is_asked_for_its_elements_once(machine: Machine) -> None:
    """At the load: who changes the list afterwards changes nothing of what is loaded."""
    for tag in tags(machine):
        parts: list[Any] = [machine.allocate(3_000, offset=5), bytearray(noise(2_000)), machine.allocate(100)]
        parts[0].write(noise(3_000, 2))
        first, second = parts[0], parts[1]
        map = tag.create_map()
        segments = list(map.load_nowait(parts))
        map.sync(PRE)
        second[:] = bytes(2_000)
        parts.clear()
        map.sync(POST)
        assert list(map.segments) == segments
        map.unload()
        assert not difference(first.read(), noise(3_000, 2))
        assert not difference(second, noise(2_000))


def test_elements_are_counted_in_bytes(machine: Machine) -> None:
    """An array of numbers is as long as its bytes."""
    for tag in tags(machine):
        map = tag.create_map()
        numbers = array("Q", range(700))
        assert sum(length for _, length in map.load_nowait(numbers)) == 5_600
        map.sync(PRE)
        numbers[:] = array("Q", bytes(5_600))
        map.sync(POST, 8, 16)
        map.unload()
        assert list(numbers[:4]) == [0, 1, 2, 0]


def test_elements_of_no_length_are_legal(machine: Machine) -> None:
    """Anywhere in a list; but a list of nothing else is empty."""
    for tag in tags(machine):
        empty = machine.allocate(10)[5:5]
        map = tag.create_map()
        segments = map.load_nowait(BufferList([empty, machine.allocate(100), empty, machine.allocate(5000), empty]))
        assert sum(length for _, length in segments) == 5100
        map.unload()
        with pytest.raises(DriverError, match="empty"):
            map.load_nowait(BufferList([empty, empty]))


def test_an_empty_buffer_is_refused(machine: Machine) -> None:
    """There is nothing to transfer."""
    for tag in tags(machine):
        map = tag.create_map()
        nothing: Any
        for nothing in (bytearray(), machine.allocate(10)[3:3], []):
            with pytest.raises(DriverError, match="empty"):
                map.load_nowait(nothing)


def test_a_device_never_writes_what_is_read_only(machine: Machine) -> None:
    """Read-only memory goes to a device, and nothing comes into it."""
    for tag in tags(machine):
        map = tag.create_map()
        for buffer in (b"constant" * 1000, memoryview(b"constant" * 10)):
            map.load_nowait(buffer, Direction.TO_DEVICE)
            map.unload()
            for direction in (Direction.FROM_DEVICE, Direction.BOTH):
                with pytest.raises(DriverError, match="read-only"):
                    map.load_nowait(buffer, direction)
        readable = machine.allocate(5000)
        uio = Uio(machine.kernel, [(readable.address, 5000)], writable=False)
        with pytest.raises(DriverError, match="read-only"):
            map.load_nowait(uio, Direction.FROM_DEVICE)


def test_what_is_loaded_cannot_be_freed(machine: Machine) -> None:
    """Neither the buffer nor its process; after unload both can."""
    for number, tag in enumerate(tags(machine)):
        space = machine.process(f"cp {number}")
        for buffer in (machine.allocate(9000), space.allocate(9000)):
            map = tag.create_map(name="mine")
            map.load_nowait(buffer[100:200])
            with pytest.raises(DriverError, match="'mine'"):
                buffer.free()
            if buffer.space is space:
                with pytest.raises(DriverError, match="'mine'"):
                    space.destroy()
            map.unload()
            buffer.free()
        space.destroy()


def test_what_is_gone_cannot_be_loaded(machine: Machine) -> None:
    """A freed buffer, a view of one, a list with one in it, a freed process."""
    for number, tag in enumerate(tags(machine)):
        map = tag.create_map()
        freed, space = machine.allocate(5000), machine.process(f"cp {number}")
        lost = space.allocate(5000)
        freed_view = freed[10:20]
        freed.free()
        space.destroy()
        gone: list[Any] = [freed, freed_view, lost, [machine.allocate(10), freed], Uio(machine.kernel, [(0, 10)])]
        for buffer in gone:
            with pytest.raises(BufferGone):
                map.load_nowait(buffer)


def test_what_is_loaded_is_not_paged_out(machine: Machine) -> None:
    """Its pages keep their frames until unload; and what was paged out comes back for a load."""
    for number, tag in enumerate(tags(machine)):
        space = machine.process(f"cp {number}")
        buffer = space.allocate(4 * machine.domain.page_size)
        buffer.write(noise(len(buffer)))
        map = tag.create_map()
        map.load_nowait(buffer)
        assert space.page_out() == 0
        map.unload()
        assert space.page_out() == 4
        assert_kept(tag.constraints, map.load_nowait(buffer), len(buffer))
        map.unload()
        assert not difference(buffer.read(), noise(len(buffer)))


def test_what_is_no_memory_is_refused(tag: Tag) -> None:
    """In words that say what would be."""
    map = tag.create_map()
    endless: list[Any] = []
    endless.append(endless)
    for thing in ("text", 5, object(), memoryview(bytes(100))[::2], [b"fine", 5], endless):
        with pytest.raises(DriverError, match="cannot load"):
            map.load_nowait(thing, Direction.TO_DEVICE)
    assert len(map.segments) == 0
