"""DMA-safe memory: within every limit of the tag, zeroed, loaded as long as it lives, freed once."""

from __future__ import annotations

from pickle import PickleBuffer

import pytest

from busdma.errors import BufferGone, ConstraintError, DriverError, MapStateError, ResourceShortage, TooManySegments
from busdma.sync import POSTREAD, PREREAD, PREWRITE
from core.paths_machine import Behind
from core.small_machine import PAGE, SmallMachine, addresses


def owned(small: SmallMachine) -> int:
    return small.frames.statistics()["by_owner"].get("dma-safe", 0)


def test_alloc_keeps_every_limit(small: SmallMachine) -> None:
    tag = small.isa.derive("ring", alignment=8 * PAGE, boundary=16 * PAGE, nsegments=1, maxsize=8 * PAGE)
    small.memory[:] = b"\xff" * len(small.memory)
    memory = tag.alloc(3 * PAGE + 1)
    assert memory.address % (8 * PAGE) == 0
    assert memory.address // (16 * PAGE) == (memory.address + 3 * PAGE) // (16 * PAGE)
    assert memory.address + len(memory) <= 128 * PAGE
    assert list(memory.segments) == [(memory.address, 3 * PAGE + 1)]
    assert bytes(memory.view) == bytes(3 * PAGE + 1)
    assert owned(small) == 4
    assert small.domain.zones == ()  # nothing bounces
    memory.view[5] = 17
    memory.sync(PREWRITE, 5, 1)
    assert small.memory[memory.address + 5] == 17
    memory.free()
    assert owned(small) == 0


def test_free_only_once(small: SmallMachine) -> None:
    memory = small.isa.alloc(100)
    assert repr(memory) == "<DMA-safe memory of tag pc/isa, 100 bytes>"
    memory.free()
    assert repr(memory) == "<DMA-safe memory of tag pc/isa, 100 bytes, freed>"
    for late in (memory.free, lambda: memory.view, lambda: small.isa.create_map().load_nowait(memory)):
        with pytest.raises(BufferGone, match="it was freed"):
            late()
    with pytest.raises(MapStateError):
        memory.sync(PREREAD)


def test_quarantined_memory_stays(small: SmallMachine) -> None:
    memory = small.isa.alloc(100)
    memory.sync(PREREAD)
    small.isa.abandon()
    with pytest.raises(MapStateError, match="in quarantine; reset the device and report it idle"):
        memory.free()
    assert owned(small) == 1
    assert len(memory.view) == 100  # the CPU may still look
    small.isa.report_idle()
    memory.free()
    assert owned(small) == 0


def test_memory_of_a_driver_that_died_is_kept_whatever_was_synced_last() -> None:
    """The device knows where its ring is, also while the driver has a look at it."""
    machine = Behind("mapped", mapped=4)
    ring, late = machine.bus.alloc(100), machine.bus.derive("late")
    known = ring.address
    ring.sync(PREREAD)
    ring.sync(POSTREAD)
    machine.bus.abandon()
    other = late.create_map()
    other.load_nowait(machine.kernel.allocate(PAGE))
    assert known not in addresses(other.segments)
    with pytest.raises(MapStateError, match="in quarantine; reset the device and report it idle"):
        ring.free()
    with pytest.raises(MapStateError, match="free it, and allocate another"):
        _ = ring.address
    machine.bus.report_idle()
    ring.free()


def test_memory_that_something_looks_at_is_not_freed(small: SmallMachine) -> None:
    """An array of another package holds a buffer on the view; the memory must not get another owner under it."""
    memory = small.isa.alloc(100)
    array = PickleBuffer(memory.view)
    with pytest.raises(DriverError, match="something still looks at its view"):
        memory.free()
    assert owned(small) == 1
    memory.sync(PREREAD)  # still alive
    array.release()
    memory.free()
    assert owned(small) == 0


def test_what_cannot_be_allocated(small: SmallMachine) -> None:
    tag = small.isa.derive("small", maxsize=PAGE)
    for size in (0, -1, PAGE + 1):
        with pytest.raises(
            ConstraintError, match=f"cannot allocate {size} bytes for tag pc/isa/small: ask for one byte or more"
        ):
            tag.alloc(size)
    with pytest.raises(ResourceShortage):
        small.isa.alloc(129 * PAGE)
    with pytest.raises(TooManySegments, match="nsegments"):
        small.isa.derive("cut", maxsegsz=PAGE, nsegments=2).alloc(3 * PAGE)
    assert owned(small) == 0
    assert small.domain.leaks() == []
    small.low(120 * PAGE)
    with pytest.raises(ResourceShortage):
        small.isa.alloc(9 * PAGE)
    assert small.isa.alloc(PAGE).size == PAGE


def test_more_segments_than_one(small: SmallMachine) -> None:
    memory = small.isa.derive("cut", maxsegsz=PAGE, nsegments=3).alloc(3 * PAGE)
    assert [length for _, length in memory.segments] == [PAGE] * 3
    with pytest.raises(MapStateError, match=r"has 3 segments; use .segments"):
        assert memory.address


def test_dma_safe_memory_pushes_idle_bounce_pages_out(small: SmallMachine) -> None:
    map = small.isa.create_map()
    map.load_nowait(bytearray(20 * PAGE))
    map.unload()
    small.low((128 - 20) * PAGE)
    assert small.isa.alloc(2 * PAGE).size == 2 * PAGE
    assert small.zone.capacity < 20


def test_memory_longer_than_the_boundary_begins_on_one_of_its_lines(small: SmallMachine) -> None:
    """Or three segments would be needed where two are allowed."""
    tag = small.isa.derive("d", nsegments=2, boundary=16 * PAGE)
    small.isa.alloc(3 * PAGE)  # so that the highest run would begin elsewhere
    with_lines = tag.alloc(31 * PAGE)
    assert [length for _, length in with_lines.segments] == [16 * PAGE, 15 * PAGE]
    assert small.domain.zones == ()
