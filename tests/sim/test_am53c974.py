"""The Am53C974 by its data sheet: the chip behind a base address register, and the DMA engine with its FIFO."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import DeviceFault
from busdma.sim.bus.pci_config import ConfigSpace
from busdma.sim.disk import Disk
from busdma.sim.scsi.am53c974 import (
    ABORT,
    ABORTED,
    ADDRESS,
    BLAST,
    BLAST_COMPLETE,
    CHIP_INTERRUPT,
    COMMAND,
    CONTROL,
    COUNT,
    DESCRIPTORS,
    DONE,
    ERROR,
    IDLE,
    INTERRUPT_ENABLE,
    PRESERVE,
    START,
    STATUS,
    TO_MEMORY,
    WORKING_ADDRESS,
    WORKING_COUNT,
    Am53c974,
)
from busdma.sim.scsi.ncr53c9x_layout import CONFIG2, COUNT_HIGH, DMA, FEATURES, NOP, TRANSFER
from busdma.sim.scsi.nexus import Phase
from busdma.sim.scsi.target import ScsiTarget
from sim.aha1542_host import Clock, Line, pattern, ten
from sim.ncr53c9x_host import INQUIRY, TEST_UNIT_READY, Host


class Memory:
    """128 KiB that the device sees at 0."""

    def __init__(self) -> None:
        self.bytes = bytearray(1 << 17)
        self.writes: list[int] = []
        self.broken = False

    def dma_read(self, address: int, length: int) -> bytes:
        self._check(address)
        return bytes(self.bytes[address : address + length])

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._check(address)
        self.writes.append(len(data))
        self.bytes[address : address + len(data)] = data

    def _check(self, address: int) -> None:
        if self.broken:
            raise DeviceFault("not mapped", address)


class Bench:
    """A device with a disk at 3."""

    def __init__(self, burst: int = 0) -> None:
        self.clock, self.line, self.memory = Clock(), Line(), Memory()
        self.disk = Disk(None, blocks=256)
        self.device = Am53c974(
            self.memory, self.line, self.clock.call_at, self.clock.now, targets={3: ScsiTarget(self.disk)}, burst=burst
        )
        self.blasts = True
        self.host = Host(lambda n: self.device.read(0, 4 * n, 1), self._write, self.clock, self.line, self)

    def _write(self, register: int, value: int) -> None:
        self.device.write(0, 4 * register, 1, value)

    def read(self, offset: int, size: int = 4) -> int:
        return self.device.read(0, offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.device.write(0, offset, size, value)

    def start(self, address: int, length: int, *, inward: bool) -> None:
        way = TO_MEMORY if inward else 0
        self.write(COMMAND, IDLE | way)
        self.write(COUNT, length)
        self.write(ADDRESS, address)
        self.write(COMMAND, START | way)

    def stop(self, *, inward: bool) -> None:
        if inward and self.blasts and not self.read(STATUS) & DONE:
            self.write(COMMAND, BLAST | TO_MEMORY)
            assert self.read(STATUS) & BLAST_COMPLETE
        self.write(COMMAND, IDLE | (TO_MEMORY if inward else 0))

    def stepped(self) -> None:
        while self.clock.step():
            pass


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    assert made.host.run(3, TEST_UNIT_READY).status == 2
    yield made
    made.disk.close()


def test_its_identity() -> None:
    space = ConfigSpace(Am53c974.vendor, Am53c974.device, Am53c974.class_code, Am53c974.bars)
    assert space.read32(0) == 0x2020_1022
    assert space.read32(8) >> 16 == 0x0100


def test_the_chip_lies_at_every_fourth_byte(bench: Bench) -> None:
    bench.write(4 * CONFIG2, FEATURES, 1)
    bench.host.command(NOP | DMA)
    assert bench.read(4 * COUNT_HIGH, 1) == 0x12
    assert bench.read(4 * CONFIG2) == FEATURES
    bench.write(4 * CONFIG2 + 1, 0, 1)
    assert (bench.read(4 * CONFIG2, 1), bench.read(4 * CONFIG2 + 1, 1)) == (FEATURES, 0)


def test_parts_of_a_register(bench: Bench) -> None:
    bench.write(ADDRESS, 0x1234_5678)
    bench.write(ADDRESS + 2, 0xABCD, 2)
    assert (bench.read(ADDRESS), bench.read(ADDRESS + 3, 1)) == (0xABCD_5678, 0xAB)
    bench.write(COUNT, 0xFF12_3456)
    assert bench.read(COUNT) == 0x12_3456
    bench.write(WORKING_COUNT, 7)
    assert (bench.read(WORKING_COUNT), bench.read(0x60)) == (0, 0)


def test_blocks_in_pieces(bench: Bench) -> None:
    bench.memory.bytes[0x101:0x901] = pattern(2048)
    assert bench.host.run(3, ten(0x2A, 9, 4), [(0x101, 1500), (0x101 + 1500, 548)]).status == 0
    assert bench.disk.read(9, 4) == pattern(2048)
    segments = [(0x4003, 777), (0x6000, 1271)]
    assert bench.host.run(3, ten(0x28, 9, 4), segments).status == 0
    read = b"".join(bench.memory.bytes[address : address + length] for address, length in segments)
    assert read == pattern(2048)


def test_the_engine_may_be_started_after_the_transfer(bench: Bench) -> None:
    bench.host.select(3, INQUIRY)
    bench.host.set_count(36)
    bench.host.command(TRANSFER | DMA)
    assert bench.host.idle()
    bench.start(0x200, 36, inward=True)
    assert bench.host.wait().phase == Phase.STATUS
    assert bench.memory.bytes[0x208:0x20E] == b"BUSDMA"
    assert [bench.read(register) for register in (WORKING_COUNT, WORKING_ADDRESS)] == [0, 0x224]


def test_what_a_short_transfer_leaves_waits_for_a_blast(bench: Bench) -> None:
    bench.blasts = False
    bench.disk.write(0, pattern(512))
    bench.host.select(3, bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0)))
    bench.host.set_count(600)
    bench.start(0, 600, inward=True)
    assert bench.host.go(TRANSFER | DMA).phase == Phase.STATUS
    assert bench.memory.bytes[:512] == pattern(512)  # whole bursts
    assert bench.host.finish() == 0
    bench.host.select(3, INQUIRY)
    bench.start(0x1000, 40, inward=True)
    bench.host.set_count(40)
    assert bench.host.go(TRANSFER | DMA).phase == Phase.STATUS
    assert bench.memory.bytes[0x1000:0x1024] == bytes(36)
    assert bench.read(WORKING_COUNT) == 40
    bench.write(COMMAND, BLAST | TO_MEMORY)
    assert bench.read(STATUS) & (BLAST_COMPLETE | DONE) == BLAST_COMPLETE
    assert (bytes(bench.memory.bytes[0x1008:0x100E]), bench.read(WORKING_COUNT)) == (b"BUSDMA", 4)


@pytest.mark.parametrize("command", [IDLE, ABORT, START])
def test_or_is_forgotten(bench: Bench, command: int) -> None:
    bench.blasts = False
    bench.host.select(3, INQUIRY)
    bench.start(0x1000, 40, inward=True)
    bench.host.set_count(40)
    bench.host.go(TRANSFER | DMA)
    bench.write(COMMAND, command | TO_MEMORY)
    bench.write(COMMAND, BLAST | TO_MEMORY)
    assert bench.memory.bytes[0x1000:0x1024] == bytes(36)
    assert bench.device.statistics()["forgotten"] == 36


def test_status_and_what_clears_it(bench: Bench) -> None:
    bench.write(COMMAND, ABORT | INTERRUPT_ENABLE)
    assert bench.line.level
    assert bench.read(STATUS, 1) == ABORTED
    assert (bench.line.level, bench.read(STATUS)) == (False, 0)
    bench.write(CONTROL, PRESERVE)
    bench.write(COMMAND, ABORT)
    assert (bench.read(STATUS), bench.read(STATUS), bench.line.level) == (ABORTED, ABORTED, False)
    bench.write(STATUS, ABORTED)
    assert bench.read(STATUS) == 0


def test_the_chips_interrupt_shows_in_the_status(bench: Bench) -> None:
    bench.device.write(0, 4 * 4, 1, 3)
    bench.host.fifo(b"\x80" + INQUIRY)
    bench.host.command(0x42)
    bench.stepped()
    assert (bench.read(STATUS), bench.line.level) == (CHIP_INTERRUPT, True)
    assert bench.host.wait().bits == 0x18
    assert (bench.read(STATUS), bench.line.level) == (0, False)


def test_the_end_of_the_count_may_interrupt(bench: Bench) -> None:
    bench.host.select(3, INQUIRY)
    bench.host.set_count(36)
    bench.write(COUNT, 16)
    bench.write(COMMAND, START | TO_MEMORY | INTERRUPT_ENABLE)
    bench.host.command(TRANSFER | DMA)
    bench.stepped()
    assert bench.line.level
    assert (bench.read(STATUS), bench.line.level, bench.host.count()) == (DONE, False, 20)


def test_descriptor_lists_are_refused(bench: Bench) -> None:
    bench.write(COUNT, 16)
    bench.write(COMMAND, START | DESCRIPTORS)
    assert bench.read(STATUS) == ERROR


@pytest.mark.parametrize("inward", [True, False])
def test_an_access_that_the_bus_refuses(bench: Bench, inward: bool) -> None:
    bench.memory.broken = True
    bench.host.select(3, ten(0x28 if inward else 0x2A, 0, 1))
    bench.host.set_count(512)
    bench.start(0, 512, inward=inward)
    bench.host.command(TRANSFER | DMA)
    bench.stepped()
    assert bench.read(STATUS) & (ERROR | DONE) == ERROR
    assert bench.device.statistics()["faults"] == 1


def test_24_bit_transfers(bench: Bench) -> None:
    bench.write(4 * CONFIG2, FEATURES, 1)
    bench.host.wide = True
    bench.disk.write(0, pattern(0x18000))
    assert bench.host.run(3, ten(0x28, 0, 0xC0), [(0x100, 0x18000)]).moved == 0x18000
    assert bench.memory.bytes[0x100:0x18100] == pattern(0x18000)


@given(st.integers(100, 900), st.lists(st.integers(1, 1200), min_size=1, max_size=5), st.booleans())
def test_reading_in_any_pieces(burst: int, pieces: list[int], may_disconnect: bool) -> None:
    bench = Bench(burst)
    bench.host.run(3, TEST_UNIT_READY)
    bench.disk.write(0, pattern(2048))
    at, left, segments = 5, 2048, []
    for length in (*pieces, 2048):
        if left:
            segments.append((at, min(length, left)))
            at, left = at + length + 3, max(left - length, 0)
    done = bench.host.run(3, ten(0x28, 0, 4), segments, identify=0xC0 if may_disconnect else 0x80)
    assert (done.status, done.moved) == (0, 2048)
    assert b"".join(bench.memory.bytes[address : address + length] for address, length in segments) == pattern(2048)
    bench.disk.close()
