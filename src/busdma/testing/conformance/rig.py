"""What the tests share: devices that run, pools that are empty, and an oracle for limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from random import Random
from typing import Final

from busdma.constraints import Constraints
from busdma.drivers import Driver
from busdma.drivers.block import BlockDevice
from busdma.drivers.echo import Echo
from busdma.errors import ResourceShortage
from busdma.lifecycle import State
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.result import Segments
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.waiting import Runtime, Waiter

MS: Final = 1_000_000  #: a millisecond, in ns
MOST: Final = 4096  #: loads after which a pool that is still not empty has no limit


def noise(length: int, seed: int = 1) -> bytes:
    """`length` bytes, equal for equal seeds."""
    return Random(seed).randbytes(length)


def inverted(data: bytes) -> bytes:
    """What no byte of `data` is: a byte that no device wrote cannot compare equal."""
    return bytes(255 - byte for byte in data)


def tags(machine: Machine) -> list[Tag]:
    """A new tag for each device of the machine, without limits of its own."""
    return [device.tag.derive(f"conformance-{name}") for name, device in machine.devices.items()]


async def pause(runtime: Runtime, ns: int = MS) -> None:
    """Let everybody else run."""
    waiter = Waiter("a timer")
    runtime.call_at(runtime.now() + ns, waiter.wake)
    await runtime.park(waiter)


@contextmanager
def running(machine: Machine) -> Iterator[list[Driver]]:
    """The drivers of all devices, started; stopped at the end, also after an error."""
    started: list[Driver] = []
    try:
        for name in machine.devices:
            driver = machine.driver(name)
            machine.run(driver.start)
            started.append(driver)
        yield started
    finally:
        for driver in reversed(started):
            machine.run(driver.stop)


def disks_of(drivers: list[Driver]) -> list[BlockDevice]:
    """Every disk they found."""
    return [disk for driver in drivers for disk in driver.disks]


def echoes_of(drivers: list[Driver]) -> list[Echo]:
    """Every device of theirs that gives back what it was given."""
    return [echo for driver in drivers for echo in getattr(driver, "echoes", ())]


def state_of(map: Map) -> State:
    """Where it is in its life now."""
    return map.state


def exhaust(tag: Tag) -> list[Map]:
    """Maps that together hold all of what memory of the host needs to be loaded: its next page would have to wait.

    The last ones hold one page each.
    """
    page = tag.domain.page_size
    held: list[Map] = []
    for pages in (16, 1):
        if held:
            release([held.pop()])
        while True:
            map = tag.create_map(name=f"holder {len(held)}")
            try:
                map.load_nowait(bytearray(pages * page), Direction.TO_DEVICE)
            except ResourceShortage:
                map.destroy()
                break
            held.append(map)
            assert len(held) < MOST, "memory of the host needs bounce pages, and those must have a limit"
    return held


def release(maps: list[Map]) -> None:
    """Unload and destroy them."""
    for map in maps:
        map.unload()
        map.destroy()
    maps.clear()


def assert_kept(limits: Constraints, segments: Segments, length: int) -> None:
    """The segments are `length` bytes and keep every limit. Written down as bus_dma(9) has them, the slow way."""
    found = [(int(address), size) for address, size in segments]
    assert sum(size for _, size in found) == length
    assert len(found) <= limits.nsegments.value
    for address, size in found:
        assert size > 0
        assert size <= limits.maxsegsz.value
        assert address % limits.alignment.value == 0
        if limits.boundary.value:
            assert address // limits.boundary.value == (address + size - 1) // limits.boundary.value
        assert limits.reach.covers(address, address + size - 1) or limits.filtered
    for (address, size), (following, _) in pairwise(found):
        assert (address + size) % limits.joint.value == 0
        assert following % limits.joint.value == 0


def held_frames(machine: Machine) -> dict[str, int]:
    """Page frames that somebody must give back, by whose they are."""
    counts = machine.domain.frames.statistics()["by_owner"]
    return {label: counts.get(label, 0) for label in ("kernel", "process", "dma-safe", "unmapped")}
