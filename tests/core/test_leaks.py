"""What a machine is left with, in words: each thing by its own name, and also once the machine is closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import busdma
from busdma import Direction, ResourceShortage, Waiter
from busdma.machine.machine import Machine
from busdma.runtime import NAMES


@pytest.fixture(params=NAMES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with busdma.open("sim:pc-isa?bounce=4", runtime=request.param) as machine:
        yield machine


def test_memory_is_not_a_map() -> None:
    with busdma.open("sim:pc-isa") as machine:
        tag = machine.devices["aha0"].tag.derive("mine")
        memory = tag.alloc(100)
        assert machine.leaks() == ["DMA-safe memory of tag pc/isa/mine, 100 bytes, was not freed"]
        memory.dma_map.sync(Direction.BOTH.pre)
        memory.dma_map.quarantine()
        assert machine.leaks() == ["DMA-safe memory of tag pc/isa/mine, 100 bytes, is quarantined"]
        tag.report_idle()
        assert machine.leaks() == ["DMA-safe memory of tag pc/isa/mine, 100 bytes, was not freed"]
        memory.free()
        assert machine.leaks() == []


def test_a_driver_that_was_not_stopped(machine: Machine) -> None:
    """All that it has loaded is one thing; what somebody else has is another, and so is a quarantine."""
    driver = machine.driver("aha0")
    assert machine.leaks() == []
    machine.run(driver.start)
    assert machine.leaks() == ["driver aha0 was not stopped"]
    inner, other = (tag.create_map(name="x") for tag in (driver.tag.derive("deep"), machine.devices["aha0"].tag))
    inner.load_nowait(bytearray(9))
    other.load_nowait(bytearray(9))
    assert machine.leaks() == ["driver aha0 was not stopped", "map 'x' of tag pc/isa is loaded"]
    other.unload()
    inner.sync(Direction.BOTH.pre)
    inner.quarantine()
    assert machine.leaks() == ["driver aha0 was not stopped", f"map 'x' of tag {driver.tag.path}/deep is quarantined"]
    inner.report_idle()
    machine.run(driver.stop)
    assert machine.leaks() == []


def test_a_driver_outside_the_table(machine: Machine) -> None:
    runtime, ends = machine.attachment("aha1").runtime, [Waiter("its end") for _ in range(3)]

    async def context(end: Waiter) -> None:
        await runtime.park(end)

    tasks = [runtime.start(context, end) for end in ends]
    for end, task in zip(ends, tasks, strict=True):
        assert machine.leaks() == ["driver aha1 was not stopped"]
        end.wake()
        machine.runtime.block(task.done)
    assert machine.leaks() == []


def test_a_driver_that_was_cancelled_before_it_ran() -> None:
    with busdma.open("sim:pc-isa") as machine:
        runtime = machine.attachment("aha1").runtime

        async def context() -> None:
            await runtime.park(Waiter("what does not come"))

        task = runtime.start(context)
        task.cancel()
        machine.runtime.block(task.done)
        assert machine.leaks() == []


def test_who_waits(machine: Machine) -> None:
    tag = machine.devices["aha0"].tag.derive("mine")
    held, waits = tag.create_map(name="held"), tag.create_map(name="waits")
    data = bytes(3 * 4096)
    held.load_nowait(data, Direction.TO_DEVICE)
    waits.load_callback(data, lambda *_: None, Direction.TO_DEVICE)
    with pytest.raises(ResourceShortage):
        tag.create_map().load_nowait(data, Direction.TO_DEVICE)
    turn = tag.on_available(lambda: None)
    assert machine.leaks() == [
        "map 'held' of tag pc/isa/mine is loaded",
        "map 'waits' of tag pc/isa/mine is waiting",
        "the queue of tag pc/isa/mine still waits",
    ]
    turn.cancel()
    assert len(machine.leaks()) == 2


def test_a_closed_machine_knows_what_it_was_closed_with(machine: Machine) -> None:
    """Though closing it ends every wait and every context."""
    tag = machine.devices["aha0"].tag.derive("mine")
    held, waits = tag.create_map(name="held"), tag.create_map(name="waits")
    data = bytes(3 * 4096)
    machine.run(machine.driver("aha2").start)
    held.load_nowait(data, Direction.TO_DEVICE)
    waits.load_callback(data, lambda *_: None, Direction.TO_DEVICE)
    before = machine.leaks()
    assert len(before) == 3
    with machine:
        pass
    assert machine.closed
    machine.close()
    assert machine.leaks() == before
