"""What goes wrong in other bus_dma code, or did, to judge by reading it: not here.

Numbers 1 to 9 are of FreeBSD's bounce engine and its drivers, from 1998 on. The rest is of NetBSD's implementations for
i386, x86 and alpha.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import PhysicalAddress
from busdma.buffers import HostBuffer
from busdma.errors import (
    ConstraintError,
    MappingRefused,
    MapStateError,
    ResourceShortage,
    TooManySegments,
)
from busdma.faces import Progress
from busdma.lifecycle import State
from busdma.lists import BufferList
from busdma.map import Map
from busdma.mbuf import MbufPool
from busdma.sync import POSTREAD, PREREAD, PREWRITE, Direction
from busdma.tag import Tag
from busdma.uio import Uio
from busdma.unmapped import PhysicalList
from busdma.waiting import Runtime, Waiter
from core.paths_machine import Behind, check_limits, contents, refill
from core.small_machine import PAGE, Pages, SmallMachine, addresses

MS = 1_000_000
ROUTES = pytest.mark.parametrize("windows", [("direct",), ("mapped",), ("direct", "mapped")], ids="+".join)


async def pause(runtime: Runtime, ns: int) -> None:
    """Wait for a timer."""
    waiter = Waiter("a timer")
    runtime.call_at(runtime.now() + ns, waiter.wake)
    await runtime.park(waiter)


def holding(machine: SmallMachine, pages: int) -> Map:
    """A map that holds `pages` pages of the zone."""
    map = machine.isa.create_map(name="holder")
    map.load_nowait(machine.high(pages * PAGE))
    return map


# -- the bounce engine -----------------------------------------------------------------------------------------------


def test_1_no_load_waits_for_more_pages_than_there_will_ever_be() -> None:
    """64 KiB at an odd offset lie in 17 pages. A zone of 16 had that load wait for ever, and a tag that had reserved
    its pages beforehand owned 16."""
    tight, enough = SmallMachine(limit=16), SmallMachine(limit=17)
    map = tight.isa.create_map()
    with pytest.raises(MappingRefused, match=r"17 bounce pages needed .* may hold 16: raise the zone's limit"):
        tight.runtime.run(map.load, tight.high(65536, 1))
    with pytest.raises(MappingRefused, match="17 pages of bounce zone"):
        tight.runtime.run(map.load, BufferList([tight.high(65535, 1), HostBuffer(bytearray(1)), tight.high(1)]))
    assert tight.domain.queue.waiters() == []
    with pytest.raises(ConstraintError, match="needs 17 bounce pages"):
        tight.isa.derive("dma", maxsize=65536).create_map(reserve=True)
    owner = enough.isa.derive("dma", maxsize=65536).create_map(reserve=True)
    for offset in (0, 1, PAGE - 1):
        owner.load_nowait(enough.high(65536, offset))
        owner.unload()


def test_2_who_waits_holds_nothing() -> None:
    """A load that could wait took what pages there were, and then waited for the rest with these in hand. Two such
    loads could wait for each other."""
    small = SmallMachine()
    holder = holding(small, 12)
    first, second = small.isa.create_map(), small.isa.create_map()
    for map in (first, second):
        assert map.load_callback(small.high(14 * PAGE), lambda segments, error: None) is Progress.IN_PROGRESS
        assert small.zone.active == 12
    holder.unload()
    small.runtime.run(pause, small.runtime, MS)
    assert (first.state, second.state, small.zone.active) == (State.LOADED, State.WAITING, 14)
    first.unload()
    small.runtime.run(pause, small.runtime, MS)
    assert (second.state, small.zone.active) == (State.LOADED, 14)


def test_2_nor_anything_of_another_pool() -> None:
    machine = Behind("mapped", limit=4, mapped=8)
    lists, pages = machine.bus.create_map(), machine.bus.create_map()
    pages.load_nowait(machine.low(6 * PAGE))
    assert lists.load_callback(bytearray(3 * PAGE), lambda segments, error: None) is Progress.IN_PROGRESS
    assert [zone.active for zone in machine.domain.zones] == [0]
    assert machine.pool.active == 6
    assert lists.cancel_load()


def test_3_new_pages_go_to_who_waits_first() -> None:
    """The pool grew without looking at who waited, so a newcomer could have the fresh pages."""
    small = SmallMachine(pages=64, low=8, limit=8)
    taken = [small.low(PAGE) for _ in range(8)]
    early, late = small.isa.create_map(name="early"), small.isa.create_map(name="late")
    assert early.load_callback(small.high(2 * PAGE), lambda segments, error: None) is Progress.IN_PROGRESS
    for buffer in taken[:2]:
        with pytest.raises(ResourceShortage, match="1 waiting before it"):
            late.load_nowait(small.high(1))
        buffer.free()
    assert small.zone.active == 2  # granted, and by nobody else's asking
    with pytest.raises(ResourceShortage):
        late.load_nowait(small.high(1))
    small.runtime.run(pause, small.runtime, MS)
    assert early.state is State.LOADED


def test_4_a_load_that_waits_can_be_cancelled() -> None:
    """A deferred load could not be taken back; an unload left it in the list of those who wait."""
    small = SmallMachine()
    holder = holding(small, 20)
    map, next_one = small.isa.create_map(name="tired"), small.isa.create_map(name="next")
    heard: list[object] = []
    for each in (map, next_one):
        each.load_callback(small.high(18 * PAGE), lambda segments, error: heard.append(type(error)))
    with pytest.raises(MapStateError, match="let that end, or cancel it"):
        map.unload()
    assert map.cancel_load()
    small.runtime.run(pause, small.runtime, MS)
    assert small.domain.queue.waiters() == ["map 'next' of tag pc/isa"]
    assert (map.state, heard) == (State.IDLE, [ResourceShortage])
    assert not map.cancel_load()
    holder.unload()
    small.runtime.run(pause, small.runtime, MS)
    assert next_one.state is State.LOADED
    assert small.zone.active == 18
    map.load_nowait(small.high(2 * PAGE))


BUFFERS = st.lists(st.tuples(st.sampled_from(["low", "high", "both"]), st.integers(1, 6)), min_size=1, max_size=8)


@given(
    before=BUFFERS, taken=st.integers(16, 20), kind=st.sampled_from(["low", "high", "both"]), pages=st.integers(1, 6)
)
def test_5_a_refused_load_leaves_no_count_behind(
    before: list[tuple[str, int]], taken: int, kind: str, pages: int
) -> None:
    """A load that might not wait and was refused left the number of pages it had needed in its map, where the next
    load found it."""
    small = SmallMachine()

    def buffer(kind: str, pages: int) -> Any:
        each = {"low": [small.low], "high": [small.high], "both": [small.low, small.high]}[kind]
        return BufferList([make(pages * PAGE) for make in each]) if kind == "both" else each[0](pages * PAGE)

    last = buffer(kind, pages)
    holder, map = holding(small, taken), small.isa.create_map()
    for shape in before:
        try:
            map.load_nowait(buffer(*shape))
            map.unload()
        except ResourceShortage:
            assert (map.state, small.zone.active) == (State.IDLE, taken)
    holder.unload()
    segments = map.load_nowait(last)
    assert small.zone.active == (0 if kind == "low" else pages)
    assert all(address < 128 * PAGE for address in addresses(segments))
    assert sum(length for _, length in segments) == last.length


@given(
    elements=st.lists(
        st.tuples(st.sampled_from(["low", "high", "host"]), st.integers(1, 2 * PAGE)), min_size=2, max_size=8
    ),
    left=st.integers(0, 19),
)
def test_6_a_list_that_has_to_wait_is_placed_anew_and_as_a_whole(elements: list[tuple[str, int]], left: int) -> None:
    """Pages were counted and taken element by element. A shortage in the middle went back to the first element with
    pages in hand and with another element's count, and once that was used up nothing was bounced any more: the device
    was given addresses that it cannot reach."""
    small = SmallMachine(pages=1024)
    made = [
        HostBuffer(bytearray(length)) if kind == "host" else (small.low if kind == "low" else small.high)(length)
        for kind, length in elements
    ]
    buffer = BufferList(made)
    data = random.Random(left).randbytes(buffer.length)
    refill(list(made), data)
    holder, map = holding(small, 20 - left), small.isa.create_map()
    map.load_callback(buffer, lambda segments, error: None)
    waited = small.isa.explain(buffer).bounce_pages > left
    if waited:
        assert (map.state, small.zone.active) == (State.WAITING, 20 - left)
        holder.unload()
        small.runtime.run(pause, small.runtime, MS)
    assert all(address < 128 * PAGE for address in addresses(map.segments))
    map.sync(PREREAD | PREWRITE)
    assert small.peek(map.segments) == data
    map.unload()
    assert small.zone.active == (0 if waited else 20 - left)


@ROUTES
def test_7_too_many_segments_leave_nothing_to_clean_up(windows: tuple[str, ...]) -> None:
    """After EFBIG everything that the load had done stayed, until the driver unloaded what had never been loaded."""
    machine = Behind(*windows)
    tag = machine.bus.derive("device", nsegments=2, maxsegsz=PAGE)
    map = tag.create_map()
    for buffer in (machine.low(3 * PAGE), BufferList([machine.high(100), HostBuffer(bytearray(3 * PAGE))])):
        with pytest.raises(TooManySegments, match="more than 2 segments"):
            map.load_nowait(buffer)
        assert (map.state, len(map.segments), map.buffer) == (State.IDLE, 0, None)
        assert machine.pool.active == sum(zone.active for zone in machine.domain.zones) == 0
        with pytest.raises(MapStateError, match="it is not loaded"):
            map.unload()
    assert sum(length for _, length in map.load_nowait(machine.low(2 * PAGE))) == 2 * PAGE


def test_8_segments_are_the_maps_own() -> None:
    """One array of segments for all maps of a tag: two loads at a time needed the driver's lock, and the second
    overwrote what the first was still reading."""
    small = SmallMachine()
    tag = small.isa.derive("aha0")

    def work(seed: int) -> None:
        chosen, map = random.Random(seed), tag.create_map()
        for _ in range(100):
            frames = [number * PAGE for number in chosen.sample(range(128), 5)]
            segments = map.load_nowait(Pages(frames, 0, 5 * PAGE))
            kept = segments.buffer
            seen = [int(address) + at for address, length in segments for at in range(0, length, PAGE)]
            assert seen == frames
            assert kept[0, 0] == frames[0]
            map.unload()

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, seed) for seed in range(4)]:
            done.result()


def test_9_a_shortage_stalls_who_is_short_and_nobody_else() -> None:
    """One load that waited had the driver freeze the whole controller: all its devices, whatever they needed. Here a
    device's own context waits; loads that need nothing, or another pool, go on, by the same tag too."""
    small = SmallMachine()
    adapter = small.isa.derive("aha0")
    narrow = small.root.derive("fdc", lowaddr=16 * PAGE - 1)
    holder = holding(small, 12)
    log: list[str] = []

    async def device(name: str, tag: Tag, buffer: object) -> None:
        map = tag.create_map(name=name)
        await map.load(buffer)
        log.append(name)
        map.unload()

    async def main() -> None:
        started = small.runtime.now()
        tasks = [
            small.runtime.start(device, "big", adapter, small.high(16 * PAGE)),
            small.runtime.start(device, "small", adapter, small.high(PAGE)),
            small.runtime.start(device, "reachable", adapter, small.low(16 * PAGE)),
            small.runtime.start(device, "reachable list", adapter, [small.low(PAGE), small.low(PAGE)]),
            small.runtime.start(device, "other zone", narrow, small.high(PAGE)),
        ]
        await pause(small.runtime, 1)
        assert log == ["reachable", "reachable list", "other zone"]
        assert small.runtime.now() == started + 1
        holder.unload()
        for task in tasks:
            await small.runtime.park(task.done)
            task.result()

    small.runtime.run(main)
    assert log[3:] == ["big", "small"]  # in order, and the small one at the same time as the big one
    assert small.domain.leaks() == []


# -- how it was implemented on i386, x86 and alpha -------------------------------------------------------------------


def test_only_what_must_be_is_bounced_and_goes_back_at_unload() -> None:
    """One page out of reach had the whole transfer bounced, through memory that belonged to the map for good."""
    small = SmallMachine()
    map = small.isa.create_map()
    map.load_nowait(Pages([3 * PAGE, 300 * PAGE, 5 * PAGE], 0, 3 * PAGE))
    assert small.zone.active == 1
    map.unload()
    map.load_nowait(BufferList([small.low(PAGE), small.high(10), small.low(PAGE)]))
    assert small.zone.active == 1
    map.unload()
    assert small.zone.active == 0
    few = small.isa.derive("few", nsegments=4).create_map()
    few.load_nowait(Pages([number * PAGE for number in (1, 3, 5, 7, 9)], 0, 5 * PAGE))
    assert small.zone.active == 2  # the fewest that make five segments four


@ROUTES
def test_raw_memory_is_loaded(windows: tuple[str, ...]) -> None:
    """bus_dmamap_load_raw was "not implemented" on all three."""
    machine = Behind(*windows)
    run = machine.frames.allocate_run(3, "raw")
    raw = PhysicalList(machine.domain, [(PhysicalAddress(run + 100), PAGE), (PhysicalAddress(run + 2 * PAGE), 50)])
    machine.memory[run : run + 3 * PAGE] = data = random.Random(1).randbytes(3 * PAGE)
    map = machine.bus.create_map()
    segments = map.load_nowait(raw)
    map.sync(PREWRITE)
    assert machine.device_reads(segments) == data[100 : 100 + PAGE] + data[2 * PAGE : 2 * PAGE + 50]


def make_uio(machine: SmallMachine) -> Uio:
    """Three ranges of a process, none whole pages."""
    process = machine.space("cp")
    buffer = process.allocate(4 * PAGE, within=machine.above)
    return Uio(process, [(buffer.address + 3, 700), (buffer.address + PAGE, 5000), (buffer.address + 900, 33)])


def make_mbufs(machine: SmallMachine) -> Any:
    """An mbuf chain out of reach."""
    return MbufPool(machine.kernel, within=machine.above).chain_of(bytes(5733))


@pytest.mark.parametrize("make", [make_uio, make_mbufs])
@given(cut=st.tuples(st.integers(0, 5733), st.integers(0, 5733)), seed=st.integers(0, 3))
def test_a_sync_of_part_of_a_bounced_list_moves_that_part(make: Any, cut: tuple[int, int], seed: int) -> None:
    """Whatever its offset, a partial sync of a bounced uio copied from the first range on. And on the ISA bus of
    i386 a uio was "not implemented"."""
    small = SmallMachine()
    buffer, (lo, hi) = make(small), sorted(cut)
    before, fresh = random.Random(seed).randbytes(5733), random.Random(seed + 10).randbytes(5733)
    if lo == hi:
        return
    refill(buffer.elements(), before)
    map = small.isa.create_map()
    segments = map.load_nowait(buffer)
    small.poke(segments, fresh)
    map.sync(PREWRITE, lo, hi - lo)
    assert small.peek(segments) == fresh[:lo] + before[lo:hi] + fresh[hi:]
    small.poke(segments, fresh)
    map.sync(POSTREAD, lo, hi - lo)
    assert contents(buffer) == before[:lo] + fresh[lo:hi] + before[hi:]


@pytest.mark.parametrize("make", [make_uio, make_mbufs])
@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_a_scatter_gather_map_counts_the_elements_of_a_list(make: Any, most: int) -> None:
    """Nobody compared the number of mbufs or ranges with the map's segments: the array was written past its end. Here
    they are joined, and what cannot be is refused."""
    machine = Behind("mapped")
    buffer = make(machine)
    assert len(buffer.elements()) > 2
    tag = machine.bus.derive("device", nsegments=most)
    map = tag.create_map()
    check_limits(map.load_nowait(buffer), tag.constraints, buffer.length)
    map.unload()
    with pytest.raises(TooManySegments, match=f"more than {most} segments"):
        machine.bus.derive("narrow", nsegments=most, maxsegsz=512).create_map().load_nowait(buffer)


@pytest.mark.parametrize("pages", [1, 3, 4, 5, 8])
def test_the_page_that_a_bridge_reads_ahead_costs_no_boundary(pages: int) -> None:
    """If that page did not fit within the boundary, the boundary was doubled."""
    machine = Behind("mapped", prefetch=256)
    tag = machine.bus.derive("device", boundary=4 * PAGE)
    segments = tag.create_map().load_nowait(machine.high(pages * PAGE), Direction.TO_DEVICE)
    check_limits(segments, tag.constraints, pages * PAGE)
    assert len(segments) <= -(-pages // 4) + (pages % 4 > 0 and pages > 4)
    last, size = list(segments)[-1]
    assert machine.tables.translate(last + size, False) >= 0  # an entry is there


def test_a_map_reserved_behind_a_scatter_gather_map_never_waits() -> None:
    """BUS_DMA_ALLOCNOW was not implemented there."""
    machine = Behind("mapped", mapped=16)
    tag = machine.bus.derive("device", maxsize=4 * PAGE)
    ready, other = tag.create_map(reserve=True), tag.create_map()
    maps = [tag.create_map() for _ in range(4)]
    for map in maps[:2]:
        map.load_nowait(machine.low(4 * PAGE))
    with pytest.raises(ResourceShortage):
        other.load_nowait(machine.low(4 * PAGE))
    for buffer in (machine.low(4 * PAGE, 1), bytearray(4 * PAGE), [machine.low(5), bytearray(PAGE)]):
        assert ready.load_nowait(buffer)
        ready.unload()
