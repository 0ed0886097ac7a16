"""Counters, everywhere, from the first load on."""

from __future__ import annotations

import json

import pytest

from busdma.errors import ResourceShortage
from busdma.machine.machine import Machine
from busdma.mbuf import MbufPool
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction
from busdma.testing.conformance.rig import exhaust, pause, release, running, tags

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose

OUT = Direction.TO_DEVICE


def zones(machine: Machine) -> dict[str, int]:
    """The sums over all bounce zones."""
    total: dict[str, int] = {}
    for zone in machine.statistics()["zones"].values():
        for name, value in zone.items():
            if isinstance(value, int):
                total[name] = total.get(name, 0) + value
    return total


def test_a_map_counts_what_it_does(machine: Machine) -> None:
    """Loads, bytes, segments, syncs; and its tag goes on counting when the map is destroyed."""
    for tag in tags(machine):
        map = tag.create_map()
        segments = 0
        for length in (10, 5_000, 9_000):
            segments += len(map.load_nowait(machine.allocate(length)))
            map.sync(PREREAD | PREWRITE)
            map.sync(POSTREAD | POSTWRITE, 0, 5)
            map.unload()
        counted = {"loads": 3, "bytes": 14_010, "segments": segments, "syncs": 6, "deferred": 0}
        assert map.statistics() == counted
        map.destroy()
        assert tag.statistics() == {**counted, "maps": 0, "memory": 0}
        memory = tag.alloc(100)
        assert tag.statistics()["memory"] == 100
        memory.free()


def test_a_zone_counts_pages_and_copies(machine: Machine) -> None:
    """Memory of the host bounces: as many pages as it has, and as many bytes as were synced."""
    for tag in tags(machine):
        page = tag.domain.page_size
        before = zones(machine)
        map = tag.create_map()
        map.load_nowait(bytearray(3 * page))
        map.sync(PREREAD | PREWRITE)
        map.sync(POSTREAD, 0, 100)
        map.sync(POSTWRITE, 100, 100)
        map.unload()
        after = zones(machine)
        assert after["bounced_pages"] - before.get("bounced_pages", 0) == 3
        assert after["copied_out"] - before.get("copied_out", 0) == 3 * page
        assert after["copied_in"] - before.get("copied_in", 0) == 100


def test_what_waited_is_counted(machine: Machine) -> None:
    """Deferred loads, by map, tag and zone; and who waits now, by name."""
    for tag in tags(machine):
        held = exhaust(tag)
        before = zones(machine)["deferred"]
        map = tag.create_map(name="patient")

        async def load() -> None:
            await map.load(bytearray(10), OUT)  # noqa: B023

        task = machine.runtime.start(load)
        machine.run(pause, machine.runtime)
        (waiting,) = machine.statistics()["waiting"]
        assert "patient" in waiting
        release(held)
        machine.runtime.block(task.done)
        assert map.statistics()["deferred"] == tag.statistics()["deferred"] == 1
        assert zones(machine)["deferred"] == before + 1
        assert machine.statistics()["waiting"] == []
        map.unload()


def test_frames_are_counted_by_owner(machine: Machine) -> None:
    """Every page frame is somebody's or free."""
    buffer = machine.allocate(3 * machine.domain.page_size)
    frames = machine.statistics()["frames"]
    assert frames["by_owner"]["kernel"] == 3
    assert frames["free"] + frames["reserved"] + sum(frames["by_owner"].values()) == frames["total"]
    buffer.free()
    after = machine.statistics()["frames"]
    assert after["by_owner"]["kernel"] == 0
    assert after["peak"]["kernel"] == 3
    assert after["lowest_free"] <= after["free"]


def test_memory_counts_too(machine: Machine) -> None:
    """DMA-safe memory its segments and mappings, a process its pages, a pool of mbufs its storage."""
    page = machine.domain.page_size
    for number, tag in enumerate(tags(machine)):
        space = machine.process(f"cp {number}")
        memory = tag.alloc(2 * page)
        with memory.map(0, 100):
            shown = memory.mmap(space, 0, 10)
            found = memory.statistics()
            assert (found["size"], found["mapped"], found["shown"]) == (2 * page, 100, 1)
            assert found["segments"] == len(memory.segments)
            shown.free()
        buffer = space.allocate(3 * page)
        assert space.page_out(1) == 1
        pages = space.statistics()
        assert (pages["resident"], pages["paged_out"], pages["allocations"]) == (2, 1, 1)
        buffer.free()
        memory.free()
    pool = MbufPool(machine.kernel)
    chain = pool.chain_of(bytes(5_000))
    assert sum(1 for _ in chain) > 1
    json.dumps(pool.statistics())
    assert pool.statistics() != MbufPool(machine.kernel).statistics()


def test_drivers_count_too(machine: Machine) -> None:
    """All of a machine's statistics are plain data, and a driver that runs has some."""
    with running(machine) as drivers:
        found = machine.statistics()
        assert set(found["drivers"]) == {driver.name for driver in drivers}
        assert all(counts for counts in found["drivers"].values())
        assert found["machine"] == machine.spec
        assert 0 <= found["now"] <= machine.runtime.now()
        json.dumps(found)
    with pytest.raises(ResourceShortage):
        machine.process("p", pages=2).allocate(1 << 20)
