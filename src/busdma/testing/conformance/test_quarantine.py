"""Left otherwise than normally: what the device may still use is kept from everybody until it is reported idle."""

from __future__ import annotations

import pytest

from busdma.errors import (
    DeadlineExpired,
    DriverError,
    MapStateError,
    ResourceShortage,
    ShortageReason,
    WaitCancelled,
)
from busdma.lifecycle import State
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.sync import PREWRITE, Direction
from busdma.tag import Tag
from busdma.testing.conformance.rig import MS, exhaust, pause, release, state_of, tags
from busdma.waiting import Waiter

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose

OUT = Direction.TO_DEVICE


class Broken(Exception):
    """What a driver of these tests dies of."""


def leave_by_exception(tag: Tag, buffer: object) -> None:
    """A transfer that is left by an exception, while the device may own bytes."""
    with pytest.raises(Broken), tag.transfer(buffer, to_device=True):
        raise Broken


def test_leaving_by_an_exception_quarantines(machine: Machine) -> None:
    """The memory cannot be freed, the machine lists it, and the end of the quarantine gives all of it back."""
    for tag in tags(machine):
        for buffer in (machine.allocate(9000), bytearray(9000)):
            leave_by_exception(tag, buffer)
            (map,) = [map for map in tag.maps if map.state is State.QUARANTINED]
            assert [line for line in machine.leaks() if "quarantined" in line]
            assert len(map.segments) == 0
            for call in (map.unload, map.destroy, lambda map=map: map.load_nowait(bytearray(10))):
                with pytest.raises(MapStateError, match="quarantine"):
                    call()
            if not isinstance(buffer, bytearray):
                with pytest.raises(DriverError, match="quarantined"):
                    buffer.free()
            with tag.transfer(machine.allocate(100), to_device=True):  # others go on
                assert state_of(map) is State.QUARANTINED
            tag.report_idle()
            assert state_of(map) is State.IDLE
            assert machine.leaks() == []


def test_leaving_by_an_exception_before_the_device_owns_anything(machine: Machine, tag: Tag) -> None:
    """A load that never got to its sync is just unloaded when its owner leaves."""
    map = tag.create_map()
    map.load_nowait(machine.allocate(100))
    tag.abandon()
    assert state_of(map) is State.IDLE


def test_a_cancel_and_a_deadline_quarantine_too(machine: Machine, tag: Tag) -> None:
    """The device does not know that nobody waits for it any more."""
    runtime = machine.runtime

    async def forever(deadline: int | None) -> None:
        async with tag.transfer(bytearray(100), to_device=True):
            await runtime.park(Waiter("an answer"), deadline)

    for deadline in (None, runtime.now() + MS):
        task = runtime.start(forever, deadline)
        machine.run(pause, runtime, 2 * MS)
        task.cancel()
        machine.run(pause, runtime)
        assert [map for map in tag.maps if map.state is State.QUARANTINED]
        tag.report_idle()
        assert machine.leaks() == []


def test_a_transfer_that_never_got_its_load_leaves_nothing(machine: Machine) -> None:
    """Cancelled, expired or refused while it waited: the device was told nothing, so nothing is quarantined."""
    runtime = machine.runtime

    async def one(tag: Tag, deadline: int | None) -> None:
        async with tag.transfer(bytearray(tag.domain.page_size), to_device=True, deadline=deadline):
            raise Broken

    for tag in tags(machine):
        held = exhaust(tag)
        hasty = runtime.start(one, tag, runtime.now() + MS)
        unwanted = runtime.start(one, tag, None)
        machine.run(pause, runtime, 2 * MS)
        unwanted.cancel()
        for task, error in ((hasty, DeadlineExpired), (unwanted, WaitCancelled)):
            runtime.block(task.done)
            with pytest.raises(error):
                task.result()
        with pytest.raises(DeadlineExpired):
            tag.transfer(bytearray(10), to_device=True, deadline=runtime.now() + MS).__enter__()
        release(held)
        assert machine.leaks() == []


def test_a_reset_of_the_device_is_told_once_for_its_whole_tree(machine: Machine) -> None:
    """`report_idle` of a tag ends every quarantine below it, and none beside it."""
    for tag in tags(machine):
        above, beside = tag.derive("device"), tag.derive("other")
        below = above.derive("queue")
        for each in (above, beside, below):
            leave_by_exception(each, bytearray(100))
        above.report_idle()
        states = [map.state for each in (above, below, beside) for map in each.maps]
        assert states == [State.IDLE, State.IDLE, State.QUARANTINED]
        beside.report_idle()
    assert machine.leaks() == []


def test_the_death_of_a_driver_quarantines(machine: Machine) -> None:
    """An exception that ends a context of a driver takes its maps: quarantined, unloaded or no longer waiting."""
    for name, device in machine.devices.items():
        given = machine.attachment(name)
        owned, unused = given.tag.create_map(name="owned"), given.tag.create_map(name="unused")
        waiting, held = given.tag.create_map(name="waiting"), list[Map]()

        async def waits() -> None:
            await waiting.load(bytearray(given.tag.domain.page_size), OUT)  # noqa: B023

        async def die() -> None:
            owned.load_nowait(bytearray(100), OUT)  # noqa: B023
            owned.sync(PREWRITE)  # noqa: B023
            unused.load_nowait(bytearray(100), OUT)  # noqa: B023
            held.extend(exhaust(device.tag))  # noqa: B023
            other = given.runtime.start(waits)  # noqa: B023
            await pause(given.runtime)  # noqa: B023
            assert state_of(waiting) is State.WAITING  # noqa: B023
            raise Broken from LookupError(other.name)

        task = given.runtime.start(die)
        given.runtime.block(task.done)
        with pytest.raises(Broken):
            task.result()
        machine.run(pause, machine.runtime)
        assert state_of(waiting) is State.IDLE
        release(held)
        assert state_of(owned) is State.QUARANTINED
        assert state_of(unused) is State.IDLE
        given.tag.report_idle()
        assert machine.leaks() == []


def test_a_shortage_that_only_a_reset_would_end_is_a_leak(machine: Machine) -> None:
    """What is missing is in quarantine; after report_idle everything is there again."""
    for tag in tags(machine):
        held = exhaust(tag)
        for map in held:
            map.sync(PREWRITE)
            map.quarantine()
        waiting = tag.create_map()
        with pytest.raises(ResourceShortage) as caught:
            waiting.load_nowait(bytearray(tag.domain.page_size), OUT)
        assert caught.value.reason is ShortageReason.LEAK
        assert "report_idle" in str(caught.value)
        tag.report_idle()
        waiting.load_nowait(bytearray(tag.domain.page_size), OUT)
        waiting.unload()
        for map in held:
            map.destroy()


def test_what_is_in_quarantine_goes_to_nobody_else(machine: Machine) -> None:
    """However much others need: their addresses are never those that the device may still use."""
    for tag in tags(machine):
        kept = tag.create_map(name="kept")
        kept.load_nowait(bytearray(9000), OUT)
        spans = [(int(address), length) for address, length in kept.segments]
        kept.sync(PREWRITE)
        kept.quarantine()
        held = exhaust(tag)
        for map in held:
            for address, length in map.segments:
                assert all(address + length <= lo or lo + size <= address for lo, size in spans)
        release(held)
        tag.report_idle()
