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
from busdma.machines import MACHINES
from busdma.map import Map
from busdma.result import Segments
from busdma.runtime.threads import ThreadsRuntime
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.waiting import Runtime, Task, Waiter

MS: Final = 1_000_000  #: a millisecond, in ns
LBA: Final = 5  #: where on a disk the tests write
MOST: Final = 4096  #: loads after which a pool that is still not empty has no limit


def noise(length: int, seed: int = 1) -> bytes:
    """`length` bytes, equal for equal seeds."""
    return Random(seed).randbytes(length)


def inverted(data: bytes) -> bytes:
    """What no byte of `data` is: a byte that no device wrote cannot compare equal."""
    return bytes(255 - byte for byte in data)


def in_real_time(machine: Machine) -> bool:
    """Its clock is the wall's: it moves while nobody waits, and nobody can know that nothing will come."""
    return MACHINES[machine.spec.partition("?")[0]].real_time


def tags(machine: Machine) -> list[Tag]:
    """A new tag for each bus of the machine that a device is on, without limits of its own.

    Where a translator gives each device addresses of its own, each is on a bus of its own.
    """
    buses = {device.tag: name for name, device in machine.devices.items()}
    return [bus.derive(f"conformance-{name}") for bus, name in buses.items()]


async def pause(runtime: Runtime, ns: int = MS) -> None:
    """Let everybody else run."""
    waiter = Waiter("a timer")
    runtime.call_at(runtime.now() + ns, waiter.wake)
    await runtime.park(waiter)


def let_run(machine: Machine) -> None:
    """Let every driver run until it waits. In real time a thread may get its turn late."""
    runtime = machine.runtime
    machine.run(pause, runtime)
    for _ in range(MOST):
        if not (isinstance(runtime, ThreadsRuntime) and runtime.busy):
            break
        machine.run(pause, runtime)


def one_page(tag: Tag) -> bytearray:
    """Memory that needs a page of what `exhaust` takes."""
    return bytearray(tag.domain.page_size)


def start_load(machine: Machine, map: Map, buffer: object = None, *, deadline: int | None = None) -> Task[int]:
    """A driver that loads `buffer`, one page unless told, and waits for it; its result: how many segments."""

    async def load() -> int:
        what = one_page(map.tag) if buffer is None else buffer
        return len(await map.load(what, Direction.TO_DEVICE, deadline=deadline))

    return machine.runtime.start(load, name=map.name)


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


def request_size(disk: BlockDevice, most: int = 40_000) -> int:
    """Some blocks that one request can move."""
    return min(disk.maxio, most) // disk.block_size * disk.block_size


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


def exhaust_but(few: int, machine: Machine) -> list[Map]:
    """Maps that hold all bounce pages that any device could use, but `few` of each zone."""

    def active() -> dict[str, int]:
        return {name: zone["active"] for name, zone in machine.statistics()["zones"].items()}

    held: dict[str, list[Map]] = {}
    for tag in tags(machine):
        for pages in (few, 1):
            while True:
                map, before = tag.create_map(name="holder"), active()
                try:
                    map.load_nowait(bytearray(pages * tag.domain.page_size), Direction.TO_DEVICE)
                except ResourceShortage:
                    map.destroy()
                    break
                (zone,) = (name for name, pages in active().items() if pages != before.get(name, 0))
                held.setdefault(zone, []).append(map)
    for maps in held.values():
        release([maps.pop(0)])  # the first that was taken of it, of `few` pages
    return [map for maps in held.values() for map in maps]


def pages_of(held: list[Map]) -> int:
    """How many pages they were loaded with, all together; 0 for one that is not loaded."""
    return sum(-(-map.buffer.length // map.tag.domain.page_size) for map in held if map.buffer is not None)


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
