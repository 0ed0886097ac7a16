"""DMA-safe memory: within the limits, seen by CPU, device and process, freed once."""

from __future__ import annotations

from pickle import PickleBuffer

import pytest

from busdma.errors import (
    BufferGone,
    BusdmaError,
    ConstraintError,
    DriverError,
    MappingRefused,
    MapStateError,
    ResourceShortage,
)
from busdma.machine.machine import Machine
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from busdma.tag import Tag
from busdma.testing.conformance.rig import assert_kept, exhaust, held_frames, noise, release, tags
from busdma.testing.difference import difference

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose

PRE, POST = PREREAD | PREWRITE, POSTREAD | POSTWRITE
SIZES = (1, 100, 4096, 20_000)


def test_it_lies_within_every_limit(machine: Machine) -> None:
    """On every device's bus, however narrow; and counts DMA segments, not physical ones."""
    for parent in tags(machine):
        narrow = parent.derive("narrow", alignment=64, boundary=32768, clip=True)
        for tag in (parent, narrow, parent.derive("one", nsegments=1)):
            for size in SIZES:
                memory = tag.alloc(size)
                assert len(memory) == size
                assert_kept(tag.constraints, memory.segments, memory.length)
                if tag.constraints.nsegments.value == 1:
                    assert memory.address == memory.segments[0][0]
                memory.free()


def test_it_is_zero_and_keeps_what_is_written(machine: Machine) -> None:
    """Through the whole view, windows, and the syncs of any range."""
    for tag in tags(machine):
        for coherent in (False, True):
            memory = tag.alloc(9_000, coherent=coherent, contiguous=True)
            assert not difference(bytes(memory.view), bytes(9_000))
            memory.sync(PRE)
            memory.sync(POST)
            memory.view[:] = noise(9_000)
            memory.sync(PRE, 100, 50)
            memory.sync(POST, 100, 50)
            memory.sync(PRE)
            memory.sync(POST)
            assert not difference(bytes(memory.view), noise(9_000))
            with memory.map(4_000, 200) as window:
                assert not difference(window.read(), noise(9_000)[4_000:4_200])
                window.write(b"here", 10)
            assert not difference(bytes(memory.view[4_010:4_014]), b"here")
            memory.free()


def test_it_can_be_mapped_piecewise(machine: Machine) -> None:
    """Also where its pages are scattered; what is mapped keeps it from being freed."""
    for tag in tags(machine):
        memory = tag.alloc(30_000)
        with memory.map() as window:
            window.write(noise(30_000))
            with pytest.raises(DriverError, match="mapped"):
                memory.free()
        with memory.map(8_190, 10) as window:
            assert not difference(window.read(), noise(30_000)[8_190:8_200])
        with pytest.raises(BufferGone):
            window.read()
        with pytest.raises(DriverError):
            memory.map(29_999, 2)
        memory.free()


def test_a_process_can_map_it(machine: Machine) -> None:
    """The same bytes, through the device pager; unmapped before the memory is freed."""
    for number, tag in enumerate(tags(machine)):
        space = machine.process(f"viewer {number}")
        memory = tag.alloc(9_000)
        shown = memory.mmap(space, 100, 5_000)
        shown.write(b"from the process")
        with memory.map(100, 16) as window:
            assert not difference(window.read(), b"from the process")
        readonly = memory.mmap(space, writable=False)
        assert readonly.read(100, 16) == b"from the process"
        with pytest.raises(DriverError, match="read-only"):
            readonly.write(b"x")
        with pytest.raises(DriverError, match="mapped"):
            memory.free()
        shown.free()
        readonly.free()
        with pytest.raises(DriverError, match="kernel"):
            memory.mmap(machine.kernel)
        memory.free()


def test_it_is_freed_once(machine: Machine) -> None:
    """Then its frames are back, its segments and its view are no more."""
    before = held_frames(machine)
    for tag in tags(machine):
        memory = tag.alloc(9_000, contiguous=True)
        view = memory.view
        assert machine.leaks()
        memory.free()
        for use in (memory.free, lambda memory=memory: memory.view, memory.map, lambda memory=memory: memory.address):
            with pytest.raises(BusdmaError):
                use()
        with pytest.raises(ValueError, match="released"):
            view[0]
        with pytest.raises(MapStateError):
            memory.sync(PRE)
    assert held_frames(machine) == before
    assert machine.leaks() == []


def test_what_looks_at_it_keeps_it(tag: Tag) -> None:
    """An array of somebody else over the view must go first."""
    memory = tag.alloc(100)
    other = PickleBuffer(memory.view)
    with pytest.raises(DriverError, match="release"):
        memory.free()
    other.release()
    memory.free()


def test_too_much_is_refused(machine: Machine) -> None:
    """More than maxsize, more than the segments can hold, nothing at all."""
    for parent in tags(machine):
        with pytest.raises(ConstraintError, match="maxsize"):
            parent.derive("small", maxsize=100).alloc(101)
        with pytest.raises(ConstraintError):
            parent.alloc(0)
        with pytest.raises(BusdmaError, match=r"segments"):
            parent.derive("few", nsegments=2, maxsegsz=1024, clip=True).alloc(3000)
    assert machine.leaks() == []


def test_where_there_is_none_left(machine: Machine) -> None:
    """A shortage, in the words of every shortage; what is freed can be allocated again, down to the last byte."""
    for parent in tags(machine):
        page = machine.domain.page_size
        lowest = parent.alloc(page)
        address = int(lowest.segments[0][0]) & -(16 * page)
        lowest.free()
        tag = parent.subregion("small", address, address + 16 * page - 1)
        with pytest.raises(BusdmaError) as caught:
            tag.alloc(17 * page)
        assert isinstance(caught.value, ConstraintError | ResourceShortage | MappingRefused)
        for _ in range(2):
            found = []
            with pytest.raises(ResourceShortage) as shortage:
                while True:
                    found.append(tag.alloc(page))
                    assert len(found) < 17
            assert shortage.value.tag == tag.path
            assert shortage.value.length == page
            assert len({int(each.segments[0][0]) for each in found}) == len(found) > 0
            for each in found:
                each.free()
    assert machine.leaks() == []


def test_its_own_device_loads_it_where_it_lies(machine: Machine) -> None:
    """It was chosen to suit the tag: a load of it copies nothing, and waits for no pool of bounce pages."""
    for tag in tags(machine):
        memory, map = tag.alloc(9_000), tag.create_map()
        held = exhaust(tag)
        bounced = [zone["bounced_pages"] for zone in machine.statistics()["zones"].values()]
        assert_kept(tag.constraints, map.load_nowait(memory), memory.length)
        map.sync(PRE)
        map.sync(POST)
        map.unload()
        assert [zone["bounced_pages"] for zone in machine.statistics()["zones"].values()] == bounced
        release(held)
        memory.free()


def test_it_can_be_loaded_as_any_buffer(machine: Machine) -> None:
    """By another map, of another device too."""
    for tag in tags(machine):
        memory = tags(machine)[0].alloc(9_000)
        map = tag.create_map()
        assert_kept(tag.constraints, map.load_nowait(memory), memory.length)
        map.unload()
        memory.free()
