"""Data goes to the devices and comes back, whatever memory it lies in, whoever carries the drivers."""

from __future__ import annotations

from typing import Any

import pytest

import busdma
from busdma.drivers.block import BlockDevice, transfer_all
from busdma.drivers.echo import Echo
from busdma.errors import DeadlineExpired, DeviceFault, DriverError
from busdma.machine.machine import Machine
from busdma.machines import MACHINES
from busdma.sync import Direction
from busdma.testing.conformance.kinds import SIZED
from busdma.testing.conformance.rig import (
    LBA,
    disks_of,
    echoes_of,
    exhaust_but,
    held_frames,
    inverted,
    noise,
    pause,
    release,
    request_size,
    running,
)
from busdma.testing.difference import difference
from busdma.waiting import Task

FEW = 8  #: bounce pages that are left of each zone: for two of the longest requests that are made then
LINEAR = ("kernel", "process", "paged-out", "bytearray", "memoryview")  #: kinds that every device takes


async def there_and_back(machine: Machine, disk: BlockDevice, kind: str, seed: int = 1) -> None:
    """One request there from memory of this kind, and one back into other memory of it."""
    data = noise(request_size(disk), seed)
    out, back = SIZED[kind](machine, data), SIZED[kind](machine, inverted(data))
    await disk.write(LBA, out.data)
    await disk.flush()
    assert not difference(out.read(), data)
    await disk.read(LBA, back.data)
    assert not difference(back.read(), data)


async def echoed(machine: Machine, echo: Echo, kind: str, seed: int = 1) -> None:
    """As much as the device takes, up to some pages."""
    data = noise(min(echo.most, 9_000), seed)
    out, back = SIZED[kind](machine, data), SIZED[kind](machine, inverted(data))
    try:
        await echo.echo(out.data, back.data)
    except DriverError:
        if kind in LINEAR:
            raise
        assert not difference(back.read(), inverted(data))  # a device that works in pieces may refuse a list, in whole
        return
    assert not difference(out.read(), data)
    assert not difference(back.read(), data)


def deferred(machine: Machine) -> int:
    """Loads that had to wait so far."""
    return sum(zone["deferred"] for zone in machine.statistics()["zones"].values())


async def everything(machine: Machine, drivers: list[Any], kind: str) -> None:
    """All disks and echoes at the same time."""
    runtime = machine.runtime
    tasks: list[Task[None]] = [
        runtime.start(there_and_back, machine, disk, kind, seed) for seed, disk in enumerate(disks_of(drivers))
    ]
    tasks += [runtime.start(echoed, machine, echo, kind, seed) for seed, echo in enumerate(echoes_of(drivers))]
    assert tasks, "no device of the machine gives anything back"
    for task in tasks:
        await runtime.park(task.done)
    for task in tasks:
        task.result()


@pytest.mark.parametrize("kind", SIZED)
def test_every_device_moves_every_kind_of_memory(machine: Machine, kind: str) -> None:
    """Buffers of all kinds, to every disk and through every echo device, and back."""
    with running(machine) as drivers:
        machine.run(everything, machine, drivers, kind)


@pytest.mark.busdma(check=True)
@pytest.mark.parametrize("kind", ["kernel", "process", "bytearray", "mbuf-chain"])
def test_no_driver_makes_a_mistake_that_the_checker_finds(machine: Machine, kind: str) -> None:
    """Under the checker CPU and device see each other's bytes only after the right sync. It must find nothing."""
    with running(machine) as drivers:
        machine.run(everything, machine, drivers, kind)


def test_every_runtime_gives_the_same_results(machine: Machine) -> None:
    """A driver does not know who carries it: the same bytes cross the bus, and the same come back."""
    counted = []
    for name in MACHINES[machine.spec.partition("?")[0]].runtimes:
        with busdma.open(machine.spec, runtime=name) as other:
            with running(other) as drivers:
                other.run(everything, other, drivers, "kernel")
            counted.append({device: other.traffic(device).bytes for device in other.devices})
            assert other.leaks() == []
    assert all(each == counted[0] for each in counted[1:]), counted


def test_many_requests_in_flight(machine: Machine) -> None:
    """More than a request can move goes in several, in flight together, over every device at the same time."""

    async def one(disk: BlockDevice, seed: int) -> None:
        size = 3 * request_size(disk) + disk.block_size
        data = noise(size, seed)
        out, back = machine.allocate(size, offset=123), machine.allocate(size)
        out.write(data)
        runtime, chunk = machine.runtime, request_size(disk)
        await transfer_all(disk, LBA, out, Direction.TO_DEVICE, runtime=runtime, chunk=chunk)
        await transfer_all(disk, LBA, back, Direction.FROM_DEVICE, runtime=runtime, chunk=chunk)
        assert not difference(back.read(), data)

    async def all_of_them(disks: list[BlockDevice]) -> None:
        tasks = [machine.runtime.start(one, disk, seed) for seed, disk in enumerate(disks)]
        for task in tasks:
            await machine.runtime.park(task.done)
            task.result()

    with running(machine) as drivers:
        machine.run(all_of_them, disks_of(drivers))


def test_many_requests_in_one_call(machine: Machine) -> None:
    """A disk takes many parts at once: of those that overlap the later one wins, and all have ended when it returns."""

    async def one(disk: BlockDevice, seed: int) -> None:
        size = disk.block_size
        data = [noise(2 * size, seed + n) for n in range(12)]
        sources, back = [machine.allocate(2 * size) for _ in data], [machine.allocate(size) for _ in data]
        for source, each in zip(sources, data, strict=True):
            source.write(each)
        await disk.transfer([(LBA + n, source) for n, source in enumerate(sources)], Direction.TO_DEVICE)
        await disk.transfer([(LBA + n, each) for n, each in enumerate(back)], Direction.FROM_DEVICE)
        for read, each in zip(back, data, strict=True):
            assert not difference(read.read(), each[:size])

    async def all_of_them(disks: list[BlockDevice]) -> None:
        for number, disk in enumerate(disks):
            await one(disk, 100 * number)

    with running(machine) as drivers:
        machine.run(all_of_them, disks_of(drivers))


def test_more_requests_than_the_pools_can_hold(machine: Machine) -> None:
    """A driver whose own finished commands hold what its next ones wait for still gets it; and nothing is mixed up."""

    async def one(disk: BlockDevice, number: int) -> None:
        data = noise(request_size(disk, 9_000), number)
        await disk.write(LBA + 20 * number, data)
        back = bytearray(inverted(data))
        await disk.read(LBA + 20 * number, back)
        assert not difference(back, data)

    async def many(disks: list[BlockDevice]) -> None:
        tasks = [machine.runtime.start(one, disk, number) for disk in disks for number in range(12)]
        for task in tasks:
            await machine.runtime.park(task.done)
        for task in tasks:
            task.result()

    with running(machine) as drivers:
        held = exhaust_but(FEW, machine)
        before = deferred(machine)
        machine.run(many, disks_of(drivers))
        assert deferred(machine) > before
        release(held)


@pytest.mark.busdma(check=True)
def test_memory_that_changes_its_owner(machine: Machine) -> None:
    """What a process had loaded is never reached on behalf of another that got its page frames, by no old translation.

    Processes come and go, and their memory with them; each finds its own bytes on the disk.
    """

    async def one(disk: BlockDevice) -> None:
        for number in range(6):
            space = machine.process(f"{disk.name} {number}", pages=64)
            data = noise(request_size(disk, 12_000), number)
            out, back = space.allocate(len(data), offset=number), space.allocate(len(data))
            out.write(data)
            back.write(inverted(data))
            await disk.write(LBA, out)
            await disk.read(LBA, back)
            assert not difference(back.read(), data)
            space.destroy()

    with running(machine) as drivers:
        for disk in disks_of(drivers):
            machine.run(one, disk)


def test_neighbours_of_a_buffer_keep_their_bytes(machine: Machine) -> None:
    """What shares a page or a cache line with a buffer is the CPU's, before, during and after the transfer."""

    async def one(disk: BlockDevice) -> None:
        size = 2 * disk.block_size
        data = noise(size)
        out = bytearray(data)
        await disk.write(LBA, out)
        whole = machine.allocate(size + 200, offset=40)
        whole.fill(0x11)
        task = machine.runtime.start(disk.read, LBA, whole[100 : 100 + size])
        await pause(machine.runtime, 1)
        whole.write(b"\x22" * 100)  # while the device writes
        whole.write(b"\x33" * 100, 100 + size)
        await machine.runtime.park(task.done)
        task.result()
        assert not difference(whole.read(), b"\x22" * 100 + data + b"\x33" * 100)

    with running(machine) as drivers:
        for disk in disks_of(drivers):
            machine.run(one, disk)


def test_the_bus_counts_what_crosses_it(machine: Machine) -> None:
    """What is reported of a transfer is counted where it happens: a device has no other way to a byte."""

    async def one(disk: BlockDevice) -> None:
        data = machine.allocate(request_size(disk))
        await disk.write(LBA, data)
        await disk.read(LBA, data)

    with running(machine) as drivers:
        for name in machine.devices:
            for disk in machine.driver(name).disks:
                before = machine.traffic(name)
                machine.run(one, disk)
                after = machine.traffic(name)
                assert after.bytes - before.bytes >= 2 * request_size(disk)
                assert after.segments > before.segments
                assert after.mechanism
    assert drivers


def test_nothing_is_left_after_stop(machine: Machine) -> None:
    """No map, no DMA-safe memory, no page frame; and the devices can be started again."""
    before = held_frames(machine)
    for _ in range(2):
        with running(machine) as drivers:
            machine.run(everything, machine, drivers, "bytearray")
        assert machine.leaks() == []
        assert list(machine.domain.dma_memory()) == []
        assert held_frames(machine) == before
        assert machine.statistics()["waiting"] == []


def test_requests_that_cannot_be(machine: Machine) -> None:
    """Refused in words, before the device is told: no whole blocks, beyond the end, more than maxio."""

    async def one(disk: BlockDevice) -> None:
        for lba, length in (
            (0, disk.block_size - 1),
            (0, 0),
            (disk.blocks, disk.block_size),
            (-1, disk.block_size),
            (0, disk.maxio + disk.block_size),
        ):
            with pytest.raises(DriverError, match=disk.name):
                await disk.read(lba, bytearray(length))
        with pytest.raises(DriverError):
            await disk.read(0, bytes(disk.block_size))  # a device must not write it

    with running(machine) as drivers:
        for disk in disks_of(drivers):
            machine.run(one, disk)


def test_a_deadline_that_has_passed(machine: Machine) -> None:
    """The request fails, the device has let go of its buffer, and the next request works."""

    async def one(disk: BlockDevice) -> None:
        buffer = machine.allocate(disk.block_size)
        await pause(machine.runtime)
        with pytest.raises((DeadlineExpired, DeviceFault)):  # or it was told, and stopped
            await disk.read(LBA, buffer, deadline=machine.runtime.now() - 1)
        await disk.read(LBA, buffer)
        buffer.free()

    with running(machine) as drivers:
        for disk in disks_of(drivers):
            machine.run(one, disk)
