"""The DMA channel of a Jazz machine's bus controller, register by register."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from busdma.sim.disk import Disk
from busdma.sim.scsi.jazz_dma import (
    ADDRESS,
    COUNT,
    ENABLE,
    FROM_MEMORY,
    INTERRUPT_ENABLE,
    MEMORY_ERROR,
    MODE,
    ON,
    TERMINAL_COUNT,
    JazzChannel,
)
from busdma.sim.scsi.ncr53c9x import Ncr53c9x
from busdma.sim.scsi.ncr53c9x_layout import DMA, TRANSFER
from busdma.sim.scsi.nexus import Phase
from busdma.sim.scsi.target import ScsiTarget
from sim.aha1542_host import Clock, Line, pattern, ten
from sim.ncr53c9x_host import INQUIRY, TEST_UNIT_READY, Host
from sim.test_espdma import Memory


class Bench:
    """A chip, its channel, and a disk at 3."""

    def __init__(self) -> None:
        self.clock, self.line, self.own, self.memory = Clock(), Line(), Line(), Memory()
        self.disk = Disk(None, blocks=64)
        self.chip = Ncr53c9x(self.line, self.clock.call_at, self.clock.now, targets={3: ScsiTarget(self.disk)})
        self.channel = JazzChannel(self.memory, self.chip, self.own)
        self.host = Host(self.chip.read, self.chip.write, self.clock, self.line, self)

    def start(self, address: int, length: int, *, inward: bool) -> None:
        self.channel.write32(ENABLE, 0x700)
        self.channel.write32(ADDRESS, address)
        self.channel.write32(COUNT, length)
        self.channel.write32(ENABLE, ON | (0 if inward else FROM_MEMORY))

    def stop(self, *, inward: bool) -> None:
        self.channel.write32(ENABLE, 0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    assert made.host.run(3, TEST_UNIT_READY).status == 2
    yield made
    made.disk.close()


def test_blocks_in_pieces(bench: Bench) -> None:
    bench.memory.put(0x1003, pattern(1024))
    assert bench.host.run(3, ten(0x2A, 4, 2), [(0x1003, 1000), (0x1003 + 1000, 24)]).status == 0
    assert bench.disk.read(4, 2) == pattern(1024)
    assert bench.host.run(3, ten(0x28, 4, 2), [(0x3001, 1), (0x4000, 1023)]).status == 0
    assert bench.memory.get(0x3001, 1) + bench.memory.get(0x4000, 1023) == pattern(1024)
    assert bench.memory.accesses[-2:] == [("write", 0x3001, 1), ("write", 0x4000, 1023)]


def test_the_end_of_the_count(bench: Bench) -> None:
    bench.host.select(3, INQUIRY)
    bench.channel.write32(MODE, INTERRUPT_ENABLE)
    bench.start(0x100, 16, inward=True)
    bench.host.set_count(36)
    bench.host.command(TRANSFER | DMA)
    assert bench.host.idle()
    assert [bench.channel.read32(register) for register in (ENABLE, COUNT, ADDRESS)] == [TERMINAL_COUNT, 0, 0x110]
    assert bench.own.level
    bench.channel.write32(ENABLE, 0)  # flags are cleared by ones
    assert bench.own.level
    bench.channel.write32(ENABLE, TERMINAL_COUNT)
    assert (bench.own.level, bench.channel.read32(ENABLE)) == (False, 0)
    bench.start(0x110, 20, inward=True)
    assert bench.host.wait().phase == Phase.STATUS
    assert bench.memory.get(0x108, 6) == b"BUSDMA"


def test_a_short_transfer_leaves_a_count(bench: Bench) -> None:
    bench.host.select(3, INQUIRY)
    bench.host.set_count(100)
    bench.start(0x100, 100, inward=True)
    assert bench.host.go(TRANSFER | DMA).phase == Phase.STATUS
    assert [bench.channel.read32(register) for register in (ENABLE, COUNT)] == [ON, 64]


@pytest.mark.parametrize("inward", [True, False])
def test_an_address_that_the_table_does_not_have(bench: Bench, inward: bool) -> None:
    bench.memory.broken = True
    bench.host.select(3, ten(0x28 if inward else 0x2A, 0, 1))
    bench.start(0x100, 512, inward=inward)
    bench.host.set_count(512)
    bench.host.command(TRANSFER | DMA)
    while bench.clock.step():
        pass
    assert bench.channel.read32(ENABLE) & (MEMORY_ERROR | ON) == MEMORY_ERROR
    assert bench.channel.statistics()["faults"] == 1
    assert not bench.own.level  # nobody enabled it


def test_a_channel_that_is_off_moves_nothing(bench: Bench) -> None:
    bench.host.select(3, INQUIRY)
    bench.channel.write32(COUNT, 36)
    bench.host.set_count(36)
    bench.host.command(TRANSFER | DMA)
    assert bench.host.idle()
    assert bench.memory.accesses == []
    assert bench.channel.read32(0x20) == 0
    bench.channel.write32(0x20, 1)
    bench.channel.write32(ENABLE, ON)
    assert bench.host.wait().phase == Phase.STATUS
