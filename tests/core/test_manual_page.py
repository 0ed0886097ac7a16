"""The errors and rules of bus_dma(9): each has a name of its own, and leaves a map as it was.

Source: NetBSD bus_dma(9), on bus_dmamap_load, bus_dmamap_sync, bus_dmamap_unload, bus_dmamem_alloc.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.buffers import HostBuffer
from busdma.errors import (
    BufferTooLong,
    BusdmaError,
    ConstraintError,
    MapStateError,
    ResourceShortage,
    ShortageReason,
    SyncError,
    TooManySegments,
    WaitCancelled,
)
from busdma.faces import Progress
from busdma.lifecycle import State
from busdma.lists import BufferList
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, SyncOp
from busdma.tag import Tag
from core.paths_machine import Behind, check_limits
from core.small_machine import PAGE, SmallMachine

MS = 1_000_000
ROUTES = pytest.mark.parametrize("windows", [("direct",), ("mapped",), ("direct", "mapped")], ids="+".join)


def too_many(tag: Tag, machine: Behind) -> object:
    """EFBIG: even joined it takes six segments."""
    return BufferList([machine.low(2 * PAGE), bytearray_of(PAGE), machine.high(2 * PAGE + 1)])


def too_long(tag: Tag, machine: Behind) -> object:
    """EINVAL."""
    return machine.low(6 * PAGE)


def too_little(tag: Tag, machine: Behind) -> object:
    """ENOMEM: somebody else has bounce pages and bus pages."""
    for _ in range(2):
        machine.bus.derive("other").create_map().load_nowait(bytearray(4 * PAGE))
    return bytearray_of(2 * PAGE)


def bytearray_of(length: int) -> HostBuffer:
    """Memory of the host."""
    return HostBuffer(bytearray(length))


@ROUTES
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (too_many, TooManySegments, "more than 3 segments (nsegments of tag 'device', 4096 bytes each)"),
        (too_long, BufferTooLong, "longer than maxsize 12288, set by tag 'device'; split the transfer"),
        (too_little, ResourceShortage, "(busy): others will give it back; wait with load(), or try again"),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_the_errors_of_a_load(windows: tuple[str, ...], make: Any, error: Any, words: str, again: bool) -> None:
    """EFBIG, EINVAL and ENOMEM say what to do. The map holds nothing, shows nothing, and can be loaded again."""
    machine = Behind(*windows, limit=9, mapped=9)
    tag = machine.bus.derive("device", nsegments=3, maxsegsz=PAGE, maxsize=None if make is too_many else 3 * PAGE)
    map = tag.create_map()
    if again:  # nothing of an earlier load is left to be seen
        map.load_nowait(machine.low(100))
        map.unload()
    buffer = make(tag, machine)
    held = (machine.pool.active, [zone.active for zone in machine.domain.zones])
    with pytest.raises(error) as caught:
        map.load_nowait(buffer)
    assert words in str(caught.value)
    assert type(caught.value) is error
    assert (caught.value.tag, caught.value.map) == ("pc/pci/device", map.name)
    assert (map.state, len(map.segments), map.buffer) == (State.IDLE, 0, None)
    assert (machine.pool.active, [zone.active for zone in machine.domain.zones]) == held
    with pytest.raises(MapStateError, match="nothing is loaded"):
        map.sync(PREREAD)
    assert map.load_nowait(machine.low(PAGE))


def test_a_shortage_says_whether_waiting_helps() -> None:
    small = SmallMachine()
    holder = small.isa.create_map()
    holder.load_nowait(small.high(20 * PAGE))
    with pytest.raises(ResourceShortage) as caught:
        small.isa.create_map().load_nowait(small.high(1))
    assert caught.value.reason is ShortageReason.BUSY
    holder.sync(PREREAD)
    holder.abandon()
    with pytest.raises(ResourceShortage, match="reset the device, then call report_idle") as caught:
        small.isa.create_map().load_nowait(small.high(1))
    assert caught.value.reason is ShortageReason.LEAK


@ROUTES
@given(start=st.integers(0, 5 * PAGE - 1), length=st.integers(1, 5 * PAGE), power=st.integers(6, 14))
def test_boundary_lines(windows: tuple[str, ...], start: int, length: int, power: int) -> None:
    """A segment may begin on a line and end just before one, and is cut nowhere else."""
    machine, line = Behind(*windows), 1 << power
    buffer = machine.kernel.allocate(6 * PAGE, contiguous=True, within=machine.below)[start : start + length]
    segments = list(machine.bus.derive("device", boundary=line).create_map().load_nowait(buffer))
    assert sum(size for _, size in segments) == buffer.length
    for (address, size), (following, _) in pairwise(segments):
        assert following == address + size
        assert following % line == 0
    assert all(address // line == (address + size - 1) // line for address, size in segments)


def test_alignment_and_boundary_are_powers_of_two() -> None:
    root = SmallMachine().root
    for alignment, boundary in ((3, None), (0, None), (None, 24), (None, -1)):
        with pytest.raises(ConstraintError, match="must be"):
            root.derive("device", alignment=alignment, boundary=boundary)
    with pytest.raises(ConstraintError, match=r"boundary 512 .* is smaller than alignment 1024"):
        root.derive("device", alignment=1024, boundary=512)


MIXES = [a | b for a in (PREREAD, PREWRITE, PREREAD | PREWRITE) for b in (POSTREAD, POSTWRITE, POSTREAD | POSTWRITE)]


@ROUTES
def test_pre_and_post_do_not_mix(windows: tuple[str, ...]) -> None:
    """Undefined by the manual, a panic on x86. Here an error, of which nothing was done."""
    machine = Behind(*windows)
    data = bytearray(b"before")
    map = machine.bus.create_map()
    segments = map.load_nowait(data)
    map.sync(PREREAD | PREWRITE)
    machine.device_writes(segments, b"device")
    for op in (*MIXES, SyncOp(0)):
        with pytest.raises(SyncError, match="PRE only with PRE and POST only with POST"):
            map.sync(op)
    assert machine.device_reads(segments) == b"device"
    assert data == b"before"
    map.sync(POSTREAD | POSTWRITE)
    assert data == b"device"


@ROUTES
def test_unload_does_not_sync(windows: tuple[str, ...]) -> None:
    machine = Behind(*windows)
    data = bytearray(b"before")
    map = machine.bus.create_map()
    segments = map.load_nowait(data)
    map.sync(PREREAD)
    machine.device_writes(segments, b"device")
    map.unload()
    assert data == b"before"


def test_dma_safe_memory_crosses_no_boundary() -> None:
    """A boundary smaller than the memory was invalid: with enough segments it is not, and else it is refused."""
    small = SmallMachine()
    tag = small.isa.derive("device", boundary=2 * PAGE)
    memory = tag.alloc(5 * PAGE)
    check_limits(memory.segments, tag.constraints, 5 * PAGE)
    with pytest.raises(TooManySegments, match="even in one run that is more than nsegments 1"):
        tag.derive("ring", nsegments=1).alloc(5 * PAGE)


def test_no_face_takes_a_failed_load_for_a_loaded_one() -> None:
    """A callback hears of a failed load too, once, and then nothing is loaded."""
    small = SmallMachine()
    map = small.isa.derive("device", maxsize=PAGE).create_map()
    heard: list[tuple[object, object]] = []
    progress = map.load_callback(small.low(PAGE + 1), lambda segments, error: heard.append((segments, type(error))))
    assert (progress, heard, map.state) == (Progress.DONE, [(None, BufferTooLong)], State.IDLE)
    for load in (map.load_nowait, map.load_blocking):
        with pytest.raises(BusdmaError):
            load(small.low(PAGE + 1))
    with pytest.raises(BufferTooLong):
        small.runtime.run(map.load, small.low(PAGE + 1))
    assert map.state is State.IDLE


def test_a_cancelled_wait_reaches_its_driver() -> None:
    small = SmallMachine()
    small.isa.create_map().load_nowait(small.high(20 * PAGE))
    map = small.isa.create_map()
    small.runtime.call_at(small.runtime.now() + MS, map.cancel_load)
    with pytest.raises(WaitCancelled):
        small.runtime.run(map.load, small.high(1))
    assert map.state is State.IDLE
