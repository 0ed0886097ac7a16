"""Buffers of several elements, by every route: what a device reads and writes is what the elements hold."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.buffers import Buffer, HostBuffer
from busdma.errors import BusdmaError, DriverError, MappingRefused, ResourceShortage, TooManySegments
from busdma.lifecycle import State
from busdma.lists import BufferList
from busdma.sync import Direction
from core.paths_machine import Behind, check_limits, contents, refill
from core.small_machine import PAGE

WINDOWS = [("direct",), ("mapped",), ("direct", "mapped")]
LENGTHS = st.one_of(st.sampled_from([0, 1, 16, 64, PAGE, PAGE - 16, 2 * PAGE]), st.integers(1, 3 * PAGE))
ELEMENTS = st.lists(
    st.tuples(st.sampled_from(["low", "high", "host", "again"]), LENGTHS, st.integers(0, PAGE - 1)),
    min_size=1,
    max_size=7,
)
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "alignment": st.sampled_from([1, 4, 64]),
        "boundary": st.sampled_from([PAGE, 4 * PAGE, 16 * PAGE]),
        "maxsegsz": st.sampled_from([512, PAGE, 3 * PAGE]),
        "nsegments": st.integers(1, 40),
    },
)


def build(machine: Behind, shape: list[tuple[str, int, int]]) -> BufferList:
    """Elements of each kind; ``again`` is a view of the element before it, so that pages and bytes are shared."""
    made: list[Buffer] = []
    for kind, length, offset in shape:
        if kind == "again" and made and made[-1].length:
            last: Any = made[-1]
            made.append(last[offset % last.length :][:length])
        elif kind == "host" or not length:
            made.append(HostBuffer(bytearray(length)))
        else:
            made.append((machine.low if kind == "low" else machine.high)(length, offset))
    return BufferList(made)


@pytest.mark.parametrize("windows", WINDOWS, ids="+".join)
@given(shape=ELEMENTS, limits=LIMITS, seed=st.integers(0, 3), prefetch=st.sampled_from([0, 256]))
def test_the_bytes_arrive(
    windows: tuple[str, ...], shape: list[tuple[str, int, int]], limits: dict[str, int], seed: int, prefetch: int
) -> None:
    machine = Behind(*windows, seed=seed, prefetch=prefetch, limit=64)
    try:
        tag = machine.bus.derive("device", clip=True, **limits)  # type: ignore[arg-type]
    except BusdmaError:
        return  # limits that contradict each other: another test's matter
    buffer = build(machine, shape)
    if not buffer.length:
        with pytest.raises(DriverError, match="empty"):
            tag.create_map().load_nowait(buffer)
        return
    data = random.Random(seed).randbytes(buffer.length)
    refill(buffer.elements(), data)
    dma = tag.create_map()
    try:
        segments = dma.load_nowait(buffer, Direction.BOTH)
    except TooManySegments:
        most = tag.constraints.nsegments.value * tag.constraints.segment_size
        assert "nsegments" in limits
        assert most < buffer.length + PAGE + limits.get("boundary", 0)
        assert dma.state is State.IDLE
        return
    except (MappingRefused, ResourceShortage):
        assert buffer.length > 10 * PAGE  # more than the pools hold
        return
    check_limits(segments, tag.constraints, buffer.length)
    dma.sync(Direction.BOTH.pre)
    assert machine.device_reads(segments) == contents(buffer)
    if all(kind != "again" for kind, _, _ in shape):
        fresh = random.Random(seed + 1).randbytes(buffer.length)
        machine.device_writes(segments, fresh)
        dma.sync(Direction.BOTH.post)
        assert contents(buffer) == fresh
    dma.unload()
    assert all(zone.active == 0 for zone in machine.domain.zones)
    assert machine.pool.statistics()["active"] == 0


@given(shape=ELEMENTS, seed=st.integers(0, 3), cut=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
def test_sync_moves_its_range_and_nothing_else(
    shape: list[tuple[str, int, int]], seed: int, cut: tuple[int, int]
) -> None:
    machine = Behind("mapped", seed=seed, limit=64)
    buffer = build(machine, [each for each in shape if each[0] != "again"])
    if not buffer.length:
        return
    before = random.Random(seed).randbytes(buffer.length)
    refill(buffer.elements(), before)
    lo, hi = sorted(at % (buffer.length + 1) for at in cut)
    if lo == hi:
        return
    dma = machine.bus.create_map()
    segments = dma.load_nowait(buffer)
    dma.sync(Direction.BOTH.pre)
    fresh = bytes(255 - byte for byte in before)
    machine.device_writes(segments, fresh)
    stays = [kind != "host" for kind, length, _ in shape if kind != "again" for _ in range(length)]
    dma.sync(Direction.BOTH.post, lo, hi - lo)
    now = contents(buffer)
    for at in range(buffer.length):
        moved = stays[at] or lo <= at < hi  # what was not copied is the same memory
        assert now[at] == (fresh if moved else before)[at]
    dma.unload()


def test_a_thousand_elements_are_joined_where_the_tag_has_few_segments() -> None:
    machine = Behind("direct", limit=32, pages=2048, covered=1024)
    tag = machine.bus.derive("device", nsegments=17, maxsize=65536)
    kernel = machine.low(1000 * 64)
    buffer = BufferList(kernel[at * 64 : at * 64 + 48] for at in range(1000))
    refill(buffer.elements(), random.Random(1).randbytes(48000))
    dma = tag.create_map()
    segments = dma.load_nowait(buffer, Direction.TO_DEVICE)
    assert len(segments) <= 17
    dma.sync(Direction.TO_DEVICE.pre)
    assert machine.device_reads(segments) == contents(buffer)
    dma.unload()


def test_a_thousand_elements_are_refused_with_the_reason_where_nothing_joins_them() -> None:
    machine = Behind("direct", limit=32, pages=2048, covered=1024)
    tag = machine.bus.derive("device", nsegments=17, maxsegsz=1024, maxsize=17408)
    kernel = machine.low(1000 * 64)
    with pytest.raises(DriverError, match="longer than maxsize 17408"):
        tag.create_map().load_nowait(BufferList(kernel[at * 64 : at * 64 + 48] for at in range(1000)))
    tag = machine.bus.derive("narrow", nsegments=17, maxsegsz=1024)
    with pytest.raises(TooManySegments, match="more than 17 segments"):
        tag.create_map().load_nowait(BufferList(kernel[at * 64 : at * 64 + 48] for at in range(1000)))


def test_a_deferral_in_the_middle_is_all_or_nothing() -> None:
    machine = Behind("direct", limit=4)
    tag = machine.bus.derive("device")
    first, second = tag.create_map(), tag.create_map()
    first.load_nowait(HostBuffer(bytearray(3 * PAGE)))
    pieces = BufferList([machine.low(100), HostBuffer(bytearray(PAGE)), machine.low(100), HostBuffer(bytearray(PAGE))])
    with pytest.raises(ResourceShortage):
        second.load_nowait(pieces)
    assert machine.zone.active == 3
    assert second.state is State.IDLE

    async def wait() -> list[int]:
        machine.runtime.start(give_back)
        return [length for _, length in await second.load(pieces)]

    async def give_back() -> None:
        assert second.state is State.WAITING
        assert machine.zone.active == 3
        first.unload()

    assert sum(machine.runtime.run(wait)) == pieces.length
    second.unload()
    assert machine.zone.active == 0


def test_bounce_pages_and_bus_pages_are_granted_together() -> None:
    machine = Behind("mapped", limit=4, mapped=8)
    first, second = machine.bus.create_map(), machine.bus.create_map()
    first.load_nowait(machine.low(6 * PAGE))
    needed = HostBuffer(bytearray(3 * PAGE))
    with pytest.raises(ResourceShortage, match="tables"):
        second.load_nowait(needed)
    assert all(zone.active == 0 for zone in machine.domain.zones)
    first.unload()
    second.load_nowait(needed)
    assert machine.pool.statistics()["active"] == 3
    second.unload()


def test_joints_are_asked_at_the_ends_of_elements() -> None:
    for windows in WINDOWS:
        machine = Behind(*windows)
        tag = machine.bus.derive("nvme", joint=PAGE, alignment=4)
        buffer = BufferList([machine.low(PAGE, 512), machine.low(3 * PAGE), machine.low(100)])
        data = random.Random(3).randbytes(buffer.length)
        refill(buffer.elements(), data)
        dma = tag.create_map()
        segments = dma.load_nowait(buffer, Direction.TO_DEVICE)
        check_limits(segments, tag.constraints, buffer.length)
        dma.sync(Direction.TO_DEVICE.pre)
        assert machine.device_reads(segments) == data
        dma.unload()
