"""An error says what it is about, as data too; a shortage says which of four it is."""

from __future__ import annotations

import pytest

import busdma
from busdma.errors import (
    BufferTooLong,
    BusdmaError,
    ConfigurationError,
    ConstraintError,
    DriverError,
    MapStateError,
    ResourceShortage,
    ShortageReason,
    SyncError,
)
from busdma.machine.machine import Machine
from busdma.sync import PREREAD, PREWRITE, Direction
from busdma.tag import Tag
from busdma.testing.conformance.rig import exhaust, release, tags

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose


def facts(error: BusdmaError) -> tuple[object, ...]:
    """What it is about."""
    return error.tag, error.map, error.address, error.length, error.owner


def test_a_refused_load_carries_everything(machine: Machine) -> None:
    """Tag, map, address, length and owner; of memory that has no address, the rest."""
    for number, parent in enumerate(tags(machine)):
        tag = parent.derive("small", maxsize=100)
        map = tag.create_map(name="mine")
        space = machine.process(f"cp {number}")
        for buffer in (machine.allocate(200), space.allocate(200, offset=7)):
            with pytest.raises(BufferTooLong, match="split") as caught:
                map.load_nowait(buffer)
            assert facts(caught.value) == (tag.path, "mine", buffer.address, 200, buffer.owner)
        with pytest.raises(BufferTooLong) as caught:
            map.load_nowait(bytearray(101))
        assert facts(caught.value) == (tag.path, "mine", None, 101, "host")


def test_a_shortage_carries_everything(machine: Machine) -> None:
    """Also by the faces that wait, when the wait ends without a load."""
    for tag in tags(machine):
        held = exhaust(tag)
        map = tag.create_map(name="mine")
        page = tag.domain.page_size
        with pytest.raises(ResourceShortage) as caught:
            map.load_nowait(bytearray(page), Direction.TO_DEVICE)
        assert facts(caught.value) == (tag.path, "mine", None, page, "host")
        assert caught.value.reason is ShortageReason.BUSY
        with pytest.raises(ResourceShortage) as caught:
            map.load_blocking(bytearray(page), Direction.TO_DEVICE, deadline=machine.runtime.now() + 1000)
        assert facts(caught.value) == (tag.path, "mine", None, page, "host")
        release(held)


def test_a_shortage_of_adjacent_pages_says_fragmented(machine: Machine) -> None:
    """Enough is free, but not in one run; unless a translator makes one run of what is scattered."""
    for tag in tags(machine):
        page = tag.domain.page_size
        held = []
        while True:
            map = tag.create_map()
            try:
                map.load_nowait(bytearray(page), Direction.TO_DEVICE)
            except ResourceShortage:
                map.destroy()
                break
            held.append(map)
        release(held[::2])
        held = held[1::2]
        one = tag.derive("one", nsegments=1).create_map()
        reason = ShortageReason.FRAGMENTED
        try:
            assert len(one.load_nowait(bytearray(8 * page), Direction.TO_DEVICE)) == 1
            one.unload()
        except ResourceShortage as shortage:
            reason = shortage.reason
        assert reason is ShortageReason.FRAGMENTED
        release(held)


def test_virtual_addresses_run_short_in_the_same_words(machine: Machine) -> None:
    """Busy, fragmented, too large: every finite resource tells them apart."""
    space, page = machine.process("small", pages=13), machine.domain.page_size
    with pytest.raises(ResourceShortage) as caught:
        space.allocate(20 * page)
    assert caught.value.reason is ShortageReason.TOO_LARGE
    buffers = [space.allocate(2 * page) for _ in range(4)]  # each with its guard page
    with pytest.raises(ResourceShortage) as caught:
        space.allocate(2 * page)
    assert caught.value.reason is ShortageReason.BUSY
    buffers[0].free()
    buffers[2].free()
    with pytest.raises(ResourceShortage) as caught:
        space.allocate(4 * page)
    assert caught.value.reason is ShortageReason.FRAGMENTED


def test_misuse_of_a_map_says_which(machine: Machine, tag: Tag) -> None:
    """A wrong state and a wrong sync carry tag and map."""
    map = tag.create_map(name="mine")
    with pytest.raises(MapStateError, match="unload once after each load") as state:
        map.unload()
    assert facts(state.value)[:2] == (tag.path, "mine")
    map.load_nowait(machine.allocate(100), Direction.TO_DEVICE)
    with pytest.raises(SyncError) as sync:
        map.sync(PREREAD, 0, 10)
    assert (sync.value.tag, sync.value.map, sync.value.length) == (tag.path, "mine", 10)
    with pytest.raises(DriverError, match="Direction"):
        tag.create_map().load_nowait(machine.allocate(1), PREWRITE)  # type: ignore[arg-type]
    map.unload()


def test_a_limit_that_cannot_be_says_whose(tag: Tag) -> None:
    """And which tag it was to be."""
    with pytest.raises(ConstraintError, match="alignment") as caught:
        tag.derive("odd", alignment=3)
    assert caught.value.tag == f"{tag.path}/odd"


def test_families(machine: Machine, tag: Tag) -> None:
    """The caller's mistake, a shortage, a fault: never two at once, and all of them BusdmaErrors."""
    held = exhaust(tag)
    with pytest.raises(BusdmaError) as shortage:
        tag.create_map().load_nowait(bytearray(tag.domain.page_size))
    assert isinstance(shortage.value, ResourceShortage)
    assert not isinstance(shortage.value, DriverError)
    release(held)
    with pytest.raises(BusdmaError) as mistake:
        machine.driver("no such device")
    assert isinstance(mistake.value, ConfigurationError)
    assert all(name in str(mistake.value) for name in machine.devices)


def test_a_closed_machine_says_so(machine: Machine) -> None:
    """What it had is gone, in words; closing again does nothing."""
    buffer = machine.allocate(10)
    machine.close()
    machine.close()
    with pytest.raises(DriverError, match="closed"):
        machine.driver(next(iter(machine.devices)))
    with pytest.raises(DriverError, match="closed"):
        buffer.read()
    with pytest.raises(DriverError, match="closed"):
        machine.allocate(10)


def test_an_unknown_option_says_which_there_are(machine: Machine) -> None:
    """In the spec of the machine."""
    name = machine.spec.partition("?")[0]
    with pytest.raises(ConfigurationError, match="no_such_option"):
        busdma.open(name, no_such_option=1)
