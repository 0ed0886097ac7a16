"""A transfer as a with block: what a normal end does, and what happens when it is left in another way."""

from __future__ import annotations

import pytest

from busdma.errors import DeadlineExpired, Deadlock, DriverError, MappingRefused, ResourceShortage, ShortageReason
from busdma.lifecycle import State
from busdma.machine.owner import OwnedRuntime
from busdma.runtime.carrier import Carrier
from busdma.sync import PREREAD
from busdma.waiting import Waiter
from core.small_machine import PAGE, SmallMachine
from core.test_faces import MS, fill, pause


class Trouble(Exception):
    """What goes wrong in these tests."""


def test_there_and_back(small: SmallMachine) -> None:
    data = bytearray(b"hello, DMA" * 1000)
    with small.isa.transfer(data, to_device=True) as segments:
        assert small.peek(segments) == data
        small.poke(segments, b"garbage")
    assert data.startswith(b"hello, DMA")  # nothing comes back from a transfer to the device
    with small.isa.transfer(data, from_device=True) as segments:
        small.poke(segments, b"HELLO")
    assert data.startswith(b"HELLO, DMA")
    with small.isa.transfer(data, to_device=True, from_device=True) as segments:
        small.poke(segments, small.peek(segments)[::-1])
    assert data.endswith(b"AMD ,OLLEH")
    assert small.isa.statistics()["maps"] == 1  # the same map each time
    assert small.domain.leaks() == []
    assert small.zone.active == 0
    with pytest.raises(DriverError, match="to_device=True, from_device=True, or both"):
        small.isa.transfer(data)


def test_awaiting(machine: SmallMachine, runtime: Carrier) -> None:
    holder = fill(machine, 18)
    data = bytearray(3 * PAGE)

    async def driver() -> None:
        async with machine.isa.transfer(data, from_device=True) as segments:
            machine.poke(segments, b"device", 5000)

    async def main() -> None:
        task = runtime.start(driver)
        await pause(runtime, MS)
        assert machine.isa.statistics()["loads"] == 1
        holder.unload()
        await runtime.park(task.done)
        task.result()
        with pytest.raises(DeadlineExpired):
            with_all = fill(machine)
            try:
                async with machine.isa.transfer(data, to_device=True, deadline=9 * MS):
                    pytest.fail("there is no page left")
            finally:
                with_all.unload()

    runtime.run(main)
    assert data[5000:5006] == b"device"
    assert machine.zone.active == 0
    assert machine.domain.leaks() == []


def test_an_exception_quarantines_map_and_pages(small: SmallMachine) -> None:
    """Until the device is reported idle nobody gets the pages, and the buffer cannot be freed."""
    buffer = small.high(12 * PAGE)
    buffer.write(b"old" * 4)
    with pytest.raises(Trouble), small.isa.transfer(buffer, from_device=True) as segments:
        kept = list(segments)
        small.poke(segments, b"new")
        raise Trouble
    assert buffer.read(0, 3) == b"old"  # not synced
    assert small.zone.quarantined == small.zone.active == 12
    with pytest.raises(DriverError, match=r"map 'transfer' of tag pc/isa \(quarantined\)"):
        buffer.free()
    with pytest.raises(ResourceShortage, match="leak") as refusal:
        small.isa.create_map().load_nowait(small.high(9 * PAGE))
    assert refusal.value.reason is ShortageReason.LEAK
    with small.isa.transfer(bytearray(8 * PAGE), to_device=True) as others:  # the tag goes on with another map
        assert not {address for address, _ in others} & {address for address, _ in kept}
    small.zone.trim()
    assert small.zone.active == 12
    with pytest.raises(DriverError, match="map 'transfer'"):
        small.isa.destroy()
    small.isa.report_idle()
    assert small.zone.quarantined == small.zone.active == 0
    buffer.free()
    small.isa.create_map(name="whole").load_nowait(small.high(20 * PAGE))
    small.isa.report_idle()  # of nothing: harmless
    assert small.domain.leaks() == ["map 'whole' of tag pc/isa is loaded"]


def test_a_map_comes_back_from_quarantine_and_is_used_again(small: SmallMachine) -> None:
    tag = small.isa.derive("aha0")
    for _ in range(5):
        with pytest.raises(Trouble), tag.transfer(bytearray(5), to_device=True):
            raise Trouble
        tag.report_idle()
    assert tag.statistics()["maps"] == 1
    tag.destroy()


def test_direct_pages_are_quarantined_too(small: SmallMachine) -> None:
    buffer = small.low(3 * PAGE)
    with pytest.raises(Trouble), small.isa.transfer(buffer, from_device=True):
        raise Trouble
    with pytest.raises(DriverError, match="quarantined"):
        buffer.free()
    small.isa.report_idle()
    buffer.free()


def test_what_cannot_be_loaded_leaves_nothing_behind(small: SmallMachine) -> None:
    fill(small, 15)
    for buffer, error in (
        (bytearray(21 * PAGE), MappingRefused),
        (bytearray(6 * PAGE), Deadlock),
        (bytearray(), DriverError),
    ):
        with pytest.raises(error), small.isa.transfer(buffer, to_device=True):
            pytest.fail("it is not loaded")
    assert small.zone.active == 15
    assert small.domain.queue.waiters() == []
    assert [map.state for map in small.isa.maps] == [State.LOADED, State.IDLE]


def test_a_transfer_is_entered_once_at_a_time(small: SmallMachine) -> None:
    transfer = small.isa.transfer(bytearray(5), to_device=True)
    with transfer, pytest.raises(DriverError, match="entered twice"):
        transfer.__enter__()
    assert small.domain.leaks() == []


def test_a_failing_sync_does_not_leave_the_map_loaded(small: SmallMachine) -> None:
    """A barrier of the machine that fails, before and after."""
    fails: list[bool] = []

    def barrier() -> None:
        if fails:
            raise Trouble

    small.domain.barrier = barrier
    tag = small.isa.derive("aha0")
    with pytest.raises(Trouble), tag.transfer(bytearray(PAGE), to_device=True):
        fails.append(True)
    with pytest.raises(Trouble), tag.transfer(bytearray(PAGE), to_device=True):
        pytest.fail("the PRE sync has failed")
    assert all(map.state is not State.LOADED for map in tag.maps)
    tag.report_idle()
    assert small.zone.active == 0
    assert small.domain.leaks() == []


def test_the_death_of_the_owner(machine: SmallMachine, runtime: Carrier) -> None:
    """A context of the driver fails: all the driver has loaded is abandoned, of all its contexts."""
    tag = machine.isa.derive("aha0")
    other = machine.isa.derive("aha1").create_map(name="another driver's")
    owned = OwnedRuntime(runtime, tag)
    gate = Waiter("the gate")

    async def queue() -> None:
        map = tag.create_map(name="posted")
        await map.load(machine.high(2 * PAGE))
        map.sync(PREREAD)
        await owned.park(gate)

    async def completions() -> None:
        tag.create_map(name="only loaded").load_nowait(machine.high(PAGE))
        raise Trouble

    async def main() -> None:
        await other.load(machine.high(PAGE))
        other.sync(PREREAD)
        first = owned.start(queue)
        await pause(runtime, MS)
        dead = owned.start(completions)
        await owned.park(dead.done)
        with pytest.raises(Trouble):
            dead.result()
        assert machine.zone.quarantined == 2
        assert machine.zone.active == 3
        assert other.state is State.LOADED
        gate.wake()
        await owned.park(first.done)
        tag.report_idle()

    runtime.run(main)
    assert machine.zone.quarantined == 0
    assert machine.zone.active == 1


def test_a_cancelled_context_of_a_transfer_quarantines(machine: SmallMachine, runtime: Carrier) -> None:
    async def driver() -> None:
        async with machine.isa.transfer(machine.high(PAGE), from_device=True):
            await pause(runtime, 1000 * MS)

    async def main() -> None:
        task = runtime.start(driver)
        await pause(runtime, MS)
        task.cancel()
        await runtime.park(task.done)

    runtime.run(main)
    assert machine.zone.quarantined == 1
    machine.isa.report_idle()
    assert machine.zone.active == 0


def test_a_transfer_that_was_left_is_not_entered_again(small: SmallMachine) -> None:
    transfer = small.isa.transfer(small.low(PAGE), to_device=True)
    with transfer:
        pass
    with pytest.raises(DriverError, match="entered twice"), transfer:
        pytest.fail("it was entered")
