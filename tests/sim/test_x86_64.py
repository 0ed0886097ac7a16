"""The machine sim:x86-64: its memory, its tags, its options, and what it costs."""

from __future__ import annotations

import random
import tracemalloc
from typing import cast

import pytest

from busdma.drivers.block import transfer_all
from busdma.drivers.edu.core import Edu
from busdma.errors import ConfigurationError
from busdma.machine import ram
from busdma.machine.spec import parse
from busdma.runtime import by_name
from busdma.sim.x86_64 import DEVICE_HOLE, RAM, X8664, open_machine
from busdma.sync import Direction

PAGE = 4096
GIB = 1 << 30
OFFSETS = (1365, 0, 4095, 2048)  # where buffers begin in their first page


def machine(spec: str = "sim:x86-64") -> X8664:
    _, options = parse(spec)
    return X8664(spec, by_name("virtual"), options)


def test_16_gib_with_a_hole_below_4() -> None:
    pc = machine()
    statistics = pc.domain.frames.statistics()
    assert statistics["free"] == (16 * GIB - 0x60000) // PAGE  # less video memory and ROMs
    assert RAM.size() == statistics["free"] * PAGE
    assert pc.domain.frames.usable(DEVICE_HOLE) == 0
    memory = pc.domain.memory
    memory[17 * GIB - 1] = 7
    assert (len(memory), memory[17 * GIB - 1], memory[12 * GIB]) == (17 * GIB, 7, 0)
    pc.close()


def test_memory_is_scattered_over_all_of_it() -> None:
    pc = machine()
    frames = pc.domain.frames.allocate(1000, "kernel")
    places = {frame // GIB for frame in frames}
    assert places == set(range(17)) - {3}
    assert all(frame in RAM for frame in frames)
    pc.close()


def test_equal_seeds_give_equal_machines() -> None:
    def picks(spec: str) -> list[int]:
        pc = machine(spec)
        try:
            return list(pc.domain.frames.allocate(50, "kernel"))
        finally:
            pc.close()

    assert picks("sim:x86-64?seed=5") == picks("sim:x86-64?seed=5") != picks("sim:x86-64?seed=6")


def test_a_long_run_touches_no_more_memory_than_it_uses_at_a_time() -> None:
    """Freed frames come back first: 100 buffers of 1 MiB, one after the other, lie in the same frames."""
    pc = machine()
    seen: set[int] = set()
    for _ in range(100):
        buffer = pc.allocate(1 << 20)
        table = pc.kernel.page_table
        first = buffer.start // PAGE
        seen.update(table[first : first + 256])
        buffer.free()
    assert len(seen) == 256
    pc.close()


def test_runs_do_not_become_single_frames() -> None:
    """What was given out in one piece, low for narrow devices, is not handed to those who take anything."""
    pc = machine()
    frames = pc.domain.frames
    low = frames.allocate_run(16, "bounce", within=pc.driver("edu0").tag.constraints.reach)
    run = {low + i * PAGE for i in range(16)}
    frames.free(run)
    assert not run & set(frames.allocate(64, "kernel"))
    pc.close()


def test_the_warm_frames_are_asked_only_where_they_fit() -> None:
    pc = machine()
    frames = pc.domain.frames
    frames.free(frames.allocate(200, "kernel"))
    reach = pc.driver("edu0").tag.constraints.reach
    found = frames.allocate(50, "kernel", reach)
    assert all(frame in reach for frame in found)
    assert len(set(found)) == 50
    pc.close()


def test_the_kernel_has_256_mib_of_addresses() -> None:
    pc = machine()
    assert pc.kernel.statistics()["pages"] * PAGE == 256 << 20
    pc.close()


def test_what_it_costs_the_host() -> None:
    """A table of one byte a frame, one for reuse, eight bytes a kernel page; no object a frame."""
    tracemalloc.start()
    try:
        pc = machine()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 12 << 20
    pc.close()


def test_every_mechanism_is_counted_where_it_happens() -> None:
    pc = machine("sim:x86-64?bounce=16")
    assert pc.traffic("edu0").mechanism == ""
    statistics = pc.statistics()
    assert set(statistics["bus"]) == set(statistics["pci"]) >= {"edu0", "edu1"}
    zone = pc.domain.zone(pc.driver("edu0").tag.constraints.reach)
    assert zone is not None
    assert zone.limit == 16
    pc.close()


def test_all_devices_in_turn_share_the_zones() -> None:
    """First copies of two pages each, then eight commands in flight from odd addresses, each with a run of its own."""
    pc = machine()
    edus, nvme = [cast(Edu, pc.driver(name)) for name in ("edu0", "edu1")], pc.driver("nvme0")
    data = random.Random(1).randbytes(1954 * 512)

    async def echoes(edu: Edu, turn: int) -> None:
        for number in range(245):
            out = pc.allocate(4096, offset=OFFSETS[(number + turn) % 4])
            into = pc.allocate(4096, offset=OFFSETS[(number + turn + 1) % 4])
            out.write(data[number * 4096 :][:4096].ljust(4096))
            await edu.echo(out, into)
            assert into.read() == out.read()
            out.free()
            into.free()

    async def main() -> None:
        for edu in edus:
            await edu.start()
        tasks = [pc.runtime.start(echoes, edu, turn) for turn, edu in enumerate(edus)]
        for task in tasks:
            await pc.runtime.park(task.done)
            task.result()
        for edu in edus:
            await edu.stop()
        await nvme.start()
        out, back = pc.allocate(len(data), offset=1365), pc.allocate(len(data), offset=0)
        out.write(data)
        await transfer_all(nvme.disks[0], 0, out, Direction.TO_DEVICE, runtime=pc.runtime)
        await transfer_all(nvme.disks[0], 0, back, Direction.FROM_DEVICE, runtime=pc.runtime)
        await nvme.stop()
        assert back.read() == data

    pc.run(main)
    assert [pc.traffic(name).mechanism for name in ("edu0", "edu1", "nvme0")] == ["bounce", "bounce", "direct+bounce"]
    assert pc.leaks() == []
    pc.close()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("sim:x86-64?bounce=0", "bounce=0 is too small"),
        ("sim:x86-64?seed=x", "seed=x is not a number"),
        ("sim:x86-64?wings=2", "no option wings"),
    ],
)
def test_options_that_it_does_not_have(spec: str, why: str) -> None:
    _, options = parse(spec)
    with pytest.raises(ConfigurationError, match=why):
        open_machine(spec, by_name("virtual"), options)


def test_more_memory_than_a_host_gives() -> None:
    with pytest.raises(ConfigurationError, match="MiB"):
        ram.sparse(1 << 62)
    with pytest.raises(ConfigurationError, match="a Python of 64 bits"):
        ram.sparse(1 << 70)
