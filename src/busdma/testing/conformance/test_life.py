"""One table says what may happen to a map and what each sync does: every cell of it, as a driver meets it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from busdma.errors import MapStateError, SyncError
from busdma.lifecycle import LIFE, SYNCS_BY_DIRECTION, Event, State, refusal
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp
from busdma.tag import Tag
from busdma.testing.conformance.rig import exhaust, let_run, noise, one_page, release, state_of, tags
from busdma.testing.difference import difference

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose

OUT = Direction.TO_DEVICE

#: what a program does to a map, by the event that it is
CALLS: dict[Event, Callable[[Map], object]] = {
    Event.LOAD: lambda map: map.load_nowait(bytes(10), OUT),
    Event.SYNC: lambda map: map.sync(PREWRITE, 0, 1),
    Event.UNLOAD: Map.unload,
    Event.QUARANTINE: Map.quarantine,
    Event.REPORT_IDLE: Map.report_idle,
    Event.DESTROY: Map.destroy,
}


def brought_to(state: State, tag: Tag) -> tuple[Map, list[Map]]:
    """A map in that state, and those that had to be loaded for that."""
    map, held = tag.create_map(name="mine"), list[Map]()
    if state is State.WAITING:
        held = exhaust(tag)
        map.load_callback(one_page(tag), lambda segments, error: None, OUT)
    elif state in (State.LOADED, State.QUARANTINED):
        map.load_nowait(bytes(10), OUT)
        map.sync(PREWRITE)
    if state is State.QUARANTINED:
        map.quarantine()
    if state is State.DESTROYED:
        map.destroy()
    assert map.state is state
    return map, held


def ended(machine: Machine, map: Map, held: list[Map]) -> None:
    """Whatever state it is in, it is destroyed, and everything is given back."""
    map.cancel_load()
    let_run(machine)  # the callback hears of it
    release(held)
    map.abandon()
    if map.state is not State.DESTROYED:
        map.report_idle()
        map.destroy()
    assert machine.leaks() == []


@pytest.mark.parametrize("state", State, ids=lambda state: state.name.lower())
@pytest.mark.parametrize("event", CALLS, ids=lambda event: event.value.replace(" ", "-"))
def test_what_may_happen_to_a_map(machine: Machine, event: Event, state: State) -> None:
    """What the table allows leads where it says; all else is refused in its words, and changes nothing."""
    for tag in tags(machine):
        map, held = brought_to(state, tag)
        following = LIFE[event].get(state)
        if following is None:
            with pytest.raises(MapStateError, match=re.escape(refusal(event, state))) as caught:
                CALLS[event](map)
            assert (caught.value.tag, caught.value.map) == (tag.path, "mine")
        else:
            CALLS[event](map)
        assert state_of(map) is (state if following is None else following)
        assert (len(map.segments) > 0) is (map.state is State.LOADED)
        ended(machine, map, held)


@pytest.mark.parametrize("direction", Direction, ids=lambda direction: direction.name.lower())
def test_what_each_sync_does(machine: Machine, direction: Direction) -> None:
    """Of all sixteen combinations: whose the bytes are afterwards, and what was copied. The rest is refused.

    Memory of the host shows it on every machine: it has two copies, and only a sync makes them agree.
    """
    rows = SYNCS_BY_DIRECTION[direction.number]
    first, second, third = noise(500, 1), noise(500, 2), noise(500, 3)
    for tag in tags(machine):
        for number in range(16):
            op, data = SyncOp(number), bytearray(first)
            map = tag.create_map()
            map.load_nowait(data, direction)
            if op not in rows:
                with pytest.raises(SyncError):
                    map.sync(op)
                map.unload()
                assert not difference(data, first)
                continue
            effect = rows[op]
            map.sync(direction.pre)
            data[:] = second
            map.sync(op)
            still_given = effect.to_device or bool(direction.post & ~op)  # what both ways were given for ends both ways
            assert (map.device_may_own is not None) is still_given
            assert not difference(data, (first if effect.copy_in else second))
            if effect.to_device and POSTREAD in rows:
                data[:] = third
                map.sync(POSTREAD)
                assert not difference(data, (second if effect.copy_out else first))
            map.unload()


def test_reading_and_writing_are_named_from_memory(machine: Machine) -> None:
    """READ is from device to memory, WRITE from memory to device; each direction of a load has its pair."""
    assert (Direction.TO_DEVICE.pre, Direction.TO_DEVICE.post) == (PREWRITE, POSTWRITE)
    assert (Direction.FROM_DEVICE.pre, Direction.FROM_DEVICE.post) == (PREREAD, POSTREAD)
    assert (Direction.BOTH.pre, Direction.BOTH.post) == (PREREAD | PREWRITE, POSTREAD | POSTWRITE)
    for tag in tags(machine):
        for direction in Direction:
            map = tag.create_map()
            map.load_nowait(machine.allocate(10), direction)
            map.sync(direction.pre)
            map.sync(direction.post)
            map.unload()
