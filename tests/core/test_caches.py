"""Caches that DMA does not see: two copies of memory that agree only at a sync, and lines that nobody may share."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.machine.space import AddressSpace
from busdma.sync import Direction
from busdma.unmapped import PageArray
from core.cached_machine import PAGES, Machine
from core.small_machine import PAGE

both = pytest.mark.parametrize("translated", [False, True], ids=["direct", "remap"])
aliased = pytest.mark.parametrize("alias", [False, True], ids=["no alias", "alias"])


@both
@aliased
def test_whole_lines_stay_where_they_are_and_need_their_syncs(translated: bool, alias: bool) -> None:
    machine = Machine(translated=translated, alias=alias)
    map = machine.tag.create_map()
    buffer = machine.buffer(2 * PAGE, 64)
    data = random.Random(1).randbytes(2 * PAGE)
    buffer.write(data)
    map.load_nowait(buffer)
    assert machine.bounced == 0
    assert machine.device_reads(map) != data
    map.sync(Direction.BOTH.pre)
    assert machine.device_reads(map) == data
    machine.device_writes(map, data[::-1])
    machine.cache.evict()  # nothing of it may come down on what the device wrote
    assert buffer.read() == data
    map.sync(Direction.BOTH.post)
    assert buffer.read() == data[::-1]
    map.unload()


@both
@pytest.mark.parametrize(("offset", "length"), [(0, 100), (4, 124), (31, 1), (1, 30), (PAGE - 16, 32), (16, PAGE)])
def test_what_shares_a_line_is_bounced_if_the_device_writes(translated: bool, offset: int, length: int) -> None:
    """Or the CPU's next store beside it would bring an old line down on what the device wrote."""
    for direction in Direction:
        machine = Machine(translated=translated)
        map = machine.tag.create_map()
        page = machine.buffer(2 * PAGE)
        page.fill(1)
        buffer = page[offset : offset + length]
        map.load_nowait(buffer, direction)
        assert (machine.bounced > 0) == (direction is not Direction.TO_DEVICE)
        map.sync(direction.pre)
        if direction is Direction.TO_DEVICE:
            assert machine.device_reads(map) == buffer.read()
            continue
        page.write(b"\2", (offset - 1) % (2 * PAGE))  # the neighbours belong to the CPU all the time
        page.write(b"\3", (offset + length) % (2 * PAGE))
        machine.device_writes(map, bytes(reversed(range(100))) * (length // 100) + bytes(length % 100))
        machine.cache.evict()
        map.sync(direction.post)
        assert buffer.read() == bytes(reversed(range(100))) * (length // 100) + bytes(length % 100)
        assert page.read((offset - 1) % (2 * PAGE), 1) == b"\2"
        assert page.read((offset + length) % (2 * PAGE), 1) == b"\3"
        map.unload()
        assert machine.bounced == machine.pool.active == 0


def test_only_the_ends_are_bounced() -> None:
    machine = Machine()
    map = machine.tag.create_map()
    map.load_nowait(machine.buffer(4 * PAGE - 101, 4))
    assert machine.bounced == 2
    map.unload()
    map.load_nowait([machine.buffer(64), machine.buffer(3 * PAGE), machine.buffer(65), machine.buffer(PAGE)])
    assert machine.bounced == 1


def test_two_elements_in_one_line() -> None:
    """Neighbours in memory and in the list are one; neighbours in memory only are not."""
    machine = Machine()
    page = machine.buffer(PAGE)
    map = machine.tag.create_map()
    map.load_nowait([page[:16], page[16:64]])
    assert machine.bounced == 0
    map.unload()
    map.load_nowait([page[:16], page[64:96], page[16:64]])
    assert machine.bounced == 2
    map.sync(Direction.BOTH.pre)
    machine.device_writes(map, bytes(range(96)))
    map.sync(Direction.BOTH.post)
    data = bytes(range(96))
    assert page.read(0, 16) == data[:16]
    assert page.read(64, 32) == data[16:48]
    assert page.read(16, 48) == data[48:]


@both
def test_uncached_memory_is_left_alone(translated: bool) -> None:
    machine = Machine(translated=translated)
    memory = machine.tag.alloc(100, coherent=True)
    map = machine.tag.create_map()
    memory.view[:100] = data = random.Random(1).randbytes(100)
    for thing in (memory, [memory]):
        machine.cache.touched.clear()
        map.load_nowait(thing)
        map.sync(Direction.BOTH.pre)
        assert machine.device_reads(map)[:100] == data
        map.sync(Direction.BOTH.post)
        map.unload()
        assert machine.bounced == 0
        assert machine.cache.touched == []


def test_what_a_process_sees_uncached_is_copied_as_it_sees_it() -> None:
    """Its own view, and not through a cache that knows nothing of it."""
    machine = Machine()
    memory = machine.tag.alloc(2 * PAGE, coherent=True)
    process = AddressSpace("cp", machine.cache.cpu, machine.frames, pages=16, owner="process")
    shown = memory.mmap(process)
    shown.write(b"uncached", 3)
    map = machine.tag.derive("words", alignment=4).create_map()
    machine.cache.touched.clear()
    map.load_nowait(shown[3:11])  # not aligned, so it is copied
    assert machine.bounced == 1
    map.sync(Direction.BOTH.pre)
    assert machine.device_reads(map) == b"uncached"
    machine.device_writes(map, b"UNCACHED")
    map.sync(Direction.BOTH.post)
    assert shown.read(3, 8) == b"UNCACHED"
    map.unload()
    map.load_nowait(shown[4:12])  # lines of it are nobody's but the device's
    assert machine.bounced == 0


@pytest.mark.parametrize("size", [1, 100, PAGE - 1])
def test_dma_safe_memory_has_its_lines_for_itself(size: int) -> None:
    """Also where its tag allows no byte more than that."""
    machine = Machine(alias=False)
    memory = machine.tag.derive("card", maxsize=size).alloc(size)
    memory.view[:] = bytes([7]) * size
    memory.sync(Direction.BOTH.pre)
    assert machine.device_reads(memory.dma_map)[:size] == bytes([7]) * size
    assert machine.bounced == 0
    memory.free()


@aliased
def test_an_earlier_owners_lines_never_come_down_on_a_bounce_page(alias: bool) -> None:
    machine = Machine(alias=alias, low=40)
    low = machine.kernel.allocate(40 * PAGE, within=AddressSet.span(0, 40 * PAGE - 1))
    low.fill(0xEE)
    low.free()  # dirty lines of all of it are in the cache
    map = machine.tag.create_map()
    buffer = machine.kernel.allocate(3 * PAGE, within=AddressSet.span(40 * PAGE, PAGES * PAGE - 1))
    map.load_nowait(buffer)
    assert machine.bounced == 3
    map.sync(Direction.BOTH.pre)
    machine.device_writes(map, b"ok" * (3 * PAGE // 2))
    machine.cache.evict()
    map.sync(Direction.BOTH.post)
    assert buffer.read() == b"ok" * (3 * PAGE // 2)


def test_bounce_pages_are_used_past_the_cache_where_that_is_possible() -> None:
    machine = Machine(low=40)
    map = machine.tag.create_map()
    map.load_nowait(bytearray(b"x" * 100))
    machine.cache.touched.clear()
    map.sync(Direction.BOTH.pre)
    assert machine.device_reads(map) == b"x" * 100
    assert machine.cache.touched == []
    map.unload()
    machine = Machine(alias=False, low=40)
    map = machine.tag.create_map()
    map.load_nowait(bytearray(b"x" * 100))
    map.sync(Direction.BOTH.pre)
    assert machine.device_reads(map) == b"x" * 100
    assert len(machine.cache.touched) == 1


@both
@aliased
@given(
    shape=st.lists(
        st.tuples(st.sampled_from(["kernel", "pages", "host"]), st.integers(1, 2 * PAGE), st.integers(0, PAGE - 1)),
        min_size=1,
        max_size=5,
    ),
    direction=st.sampled_from(list(Direction)),
    alignment=st.sampled_from([1, 4, 64]),
    nsegments=st.sampled_from([1, 3, 40]),
    seed=st.integers(0, 9),
)
def test_any_list_on_a_machine_with_a_cache(
    translated: bool,
    alias: bool,
    shape: list[tuple[str, int, int]],
    direction: Direction,
    alignment: int,
    nsegments: int,
    seed: int,
) -> None:
    """With a line evicted at every moment, and neighbours that the CPU writes all the time."""
    machine = Machine(translated=translated, alias=alias, limit=64)
    parts: list[LinearBuffer | PageArray | bytearray] = []
    around: list[LinearBuffer] = []
    for kind, length, offset in shape:
        if kind == "kernel":
            around.append(machine.buffer(offset + length + 64))
            parts.append(around[-1][offset : offset + length])
        elif kind == "pages":
            parts.append(PageArray.allocate(machine.domain, length, start=offset))
        else:
            parts.append(bytearray(length))
    rng = random.Random(seed)

    def get() -> bytes:
        return b"".join(bytes(part) if isinstance(part, bytearray) else part.read() for part in parts)

    def put(data: bytes) -> None:
        at = 0
        for part in parts:
            piece = data[at : at + len(part)]
            if isinstance(part, bytearray):
                part[:] = piece
            else:
                part.write(piece)
            at += len(part)

    data = rng.randbytes(sum(len(part) for part in parts))
    put(data)
    map = machine.tag.derive("card", alignment=alignment, nsegments=nsegments).create_map()
    map.load_nowait(parts, direction)
    map.sync(direction.pre)
    if direction is not Direction.FROM_DEVICE:
        assert machine.device_reads(map) == data
    written = rng.randbytes(len(data)) if direction is not Direction.TO_DEVICE else data
    ends = []
    for whole, (_, length, offset) in zip(around, [each for each in shape if each[0] == "kernel"], strict=True):
        ends.append((whole, offset + length, rng.randbytes(64)))
        whole.write(ends[-1][2], offset + length)
    if direction is not Direction.TO_DEVICE:
        machine.device_writes(map, written)
    machine.cache.evict()
    map.sync(direction.post)
    machine.cache.evict()
    assert get() == written
    assert all(whole.read(at, 64) == beside for whole, at, beside in ends)
    map.unload()
    assert machine.bounced == machine.pool.active == 0
