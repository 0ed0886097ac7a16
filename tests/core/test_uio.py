"""The uio: ranges of an address space, loaded where they are."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from busdma.addresses import MAX_ADDRESS
from busdma.errors import BufferGone, DriverError, MappingRefused
from busdma.map import Map
from busdma.sync import Direction
from busdma.uio import Uio
from core.paths_machine import Behind, contents
from core.small_machine import PAGE, SmallMachine


def loaded(machine: SmallMachine, uio: Uio, direction: Direction = Direction.BOTH) -> Map:
    map = machine.root.create_map()
    map.load_nowait(uio, direction)
    return map


def test_ranges_of_a_process_in_their_order(small: SmallMachine) -> None:
    space = small.space("cp")
    one, two = space.allocate(3 * PAGE, offset=100), space.allocate(50)
    for buffer in (one, two):
        buffer.write(random.Random(1).randbytes(buffer.length))
    uio = Uio(space, [(two.address, 50), (one.address + 10, 2 * PAGE), (one.address, 0), (one.address, 7)])
    assert len(uio) == 2 * PAGE + 57
    assert uio.describe() == f"a uio of process 'cp', 4 ranges, {2 * PAGE + 57} bytes"
    map = loaded(small, uio)
    wanted = two.read() + one.read(10, 2 * PAGE) + one.read(0, 7)
    assert small.peek(map.segments) == contents(uio) == wanted
    small.poke(map.segments, b"written", 2 * PAGE + 50)
    map.unload()
    assert one.read(0, 7) == b"written"


def test_a_sub_range_sync_begins_where_it_says() -> None:
    """Not at the first range of the list, as it once did in a kernel."""
    machine = Behind("direct", covered=64)
    space = machine.space("cp")
    parts = [space.allocate(300, offset=4000, within=machine.above) for _ in range(4)]
    uio = Uio(space, [(part.address, 300) for part in parts])
    map = machine.bus.create_map()
    segments = map.load_nowait(uio)
    map.sync(Direction.BOTH.pre)
    fresh = bytes(range(1, 201)) * 6
    machine.device_writes(segments, fresh)
    map.sync(Direction.BOTH.post, 610, 320)
    assert contents(uio) == bytes(610) + fresh[610:930] + bytes(270)
    parts[3].write(b"sent", 0)
    map.sync(Direction.BOTH.pre, 900, 4)
    assert machine.device_reads(segments) == fresh[:900] + b"sent" + fresh[904:]


def test_a_hole_in_the_process_is_named(small: SmallMachine) -> None:
    space = small.space("cp")
    buffer = space.allocate(PAGE)
    uio = Uio(space, [(buffer.address, 16), (buffer.address + PAGE - 8, 9)])
    with pytest.raises(BufferGone, match=f"nothing is mapped at {buffer.address + PAGE:#x}, 8 bytes into it") as caught:
        loaded(small, uio)
    assert "this is range 1 of a uio of process 'cp'" in str(caught.value.__notes__)
    assert (caught.value.tag, caught.value.map) == ("pc", "1")
    with pytest.raises(BufferGone):
        loaded(small, Uio(space, [(0, 16)]))


@pytest.mark.parametrize("place", [(MAX_ADDRESS, 2), (MAX_ADDRESS - 5, 100), (1 << 64, 1), (2, MAX_ADDRESS)])
def test_a_range_that_wraps_around(small: SmallMachine, place: tuple[int, int]) -> None:
    uio = Uio(small.space("cp"), [place])
    with pytest.raises(DriverError, match=r"wrap around|nothing is mapped|longer than"):
        loaded(small, uio)


@pytest.mark.parametrize("place", [(-1, 4), (4, -1)])
def test_what_is_no_range(small: SmallMachine, place: tuple[int, int]) -> None:
    with pytest.raises(DriverError, match="is no range: give no negative numbers"):
        Uio(small.space("cp"), [place])


def test_rights_that_the_process_lacks(small: SmallMachine) -> None:
    space = small.space("cp")
    memory = small.root.alloc(100)
    shown = memory.mmap(space, writable=False)
    with pytest.raises(DriverError, match="is read-only there: make the uio with writable=False"):
        loaded(small, Uio(space, [(shown.address, 100)]))
    readable = Uio(space, [(shown.address, 100)], writable=False)
    with pytest.raises(DriverError, match=r"it is read-only; load it with Direction.TO_DEVICE"):
        loaded(small, readable, Direction.FROM_DEVICE)
    assert len(loaded(small, readable, Direction.TO_DEVICE).segments) == 1


def test_nothing_in_it(small: SmallMachine) -> None:
    for ranges in ([], [(0x10000, 0)]):
        with pytest.raises(DriverError, match="it is empty"):
            loaded(small, Uio(small.space("cp"), ranges))


def test_paged_out_memory_comes_back_for_a_load_and_stays(small: SmallMachine) -> None:
    """While a map has it loaded it is wired, also if nobody but the map knows."""
    space = small.space("cp")
    buffer = space.allocate(4 * PAGE)
    buffer.write(random.Random(1).randbytes(4 * PAGE))
    wanted = buffer.read(100, 2 * PAGE)
    assert space.page_out() == 4
    map = loaded(small, Uio(space, [(buffer.address + 100, 2 * PAGE)]))
    assert small.peek(map.segments) == wanted
    assert space.statistics()["resident"] == 3
    assert space.page_out() == 0
    with pytest.raises(DriverError, match="has it loaded"):
        buffer.free()
    with pytest.raises(DriverError, match="has it loaded"):
        space.destroy()
    map.unload()
    assert space.page_out() == 3
    space.destroy()


def test_each_load_looks_the_addresses_up_anew(small: SmallMachine) -> None:
    space = small.space("cp")
    buffer = space.allocate(PAGE)
    uio = Uio(space, [(buffer.address, PAGE)])
    map = loaded(small, uio)
    first = list(map.segments)
    map.unload()
    space.page_out()
    other = space.allocator.allocate(1, "thief")
    map.load_nowait(uio)
    assert map.segments[0][1] == PAGE
    assert list(map.segments) != first
    space.allocator.free(other)
    map.unload()
    buffer.free()
    with pytest.raises(BufferGone):
        map.load_nowait(uio)


def test_a_dead_process(small: SmallMachine) -> None:
    space = small.space("cp")
    buffer = space.allocate(PAGE)
    uio = Uio(space, [(buffer.address, PAGE)])
    space.destroy()
    with pytest.raises(BufferGone, match="its process 'cp' was freed"):
        loaded(small, uio)


def test_slices_are_views(small: SmallMachine) -> None:
    space = small.space("cp")
    buffer = space.allocate(100)
    buffer.write(bytes(range(100)))
    uio = Uio(space, [(buffer.address + 50, 30), (buffer.address, 30)])
    assert contents(uio[20:40]) == bytes(range(70, 80)) + bytes(range(10))
    assert contents(uio[60:]) == contents(uio[5:5]) == b""
    with pytest.raises(DriverError, match="step 1"):
        uio[::2]


def test_in_a_kernel_of_small_reach_its_pages_bounce(small: SmallMachine) -> None:
    kernel = small.high(2 * PAGE)
    uio = Uio(small.kernel, [(kernel.address, PAGE), (kernel.address + PAGE, 8)])
    map = small.isa.create_map()
    map.load_nowait(uio)
    assert small.zone.active == 2
    tag = small.isa.derive("tiny", maxsize=PAGE)
    with pytest.raises(MappingRefused, match=f"cannot load a uio of kernel, 2 ranges, {PAGE + 8} bytes .* longer than"):
        tag.create_map().load_nowait(uio)


def test_what_is_no_uio() -> None:
    machine = SmallMachine()
    with pytest.raises(DriverError, match=r"lies in an address space, not in .*: give machine\.kernel or a process"):
        Uio(cast(Any, machine), [(0, 5)])
    with pytest.raises(DriverError, match="a uio of 'kernel': give pairs of address and length"):
        Uio(machine.kernel, cast(Any, [5]))
