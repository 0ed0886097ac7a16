"""The DMA engine beside a 53C9x on SBus: packing, draining, and the section that it cannot leave."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import DeviceFault
from busdma.sim.disk import Disk
from busdma.sim.scsi.espdma import (
    ADDRESS,
    COUNT,
    CSR,
    DEVICE_ID,
    DRAIN,
    ENABLE,
    ENABLE_COUNT,
    ERROR_PENDING,
    FLUSH,
    INTERRUPT_ENABLE,
    INTERRUPT_PENDING,
    PACKED,
    RESET,
    SECTION,
    TERMINAL_COUNT,
    TEST,
    WRITE_MEMORY,
    EspDma,
)
from busdma.sim.scsi.ncr53c9x import Ncr53c9x
from busdma.sim.scsi.ncr53c9x_layout import DMA, INTERRUPTS, TRANSFER
from busdma.sim.scsi.nexus import Phase
from busdma.sim.scsi.target import ScsiTarget
from sim.aha1542_host import Clock, Line, pattern, ten
from sim.ncr53c9x_host import INQUIRY, TEST_UNIT_READY, Host

BASE = 0xFC00_0000  #: of the section that the tests look at


class Memory:
    """A section of 16 MiB at BASE, and those beside it as far as they were touched."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.accesses: list[tuple[str, int, int]] = []
        self.broken = False

    def dma_read(self, address: int, length: int) -> bytes:
        self._ask("read", address, length)
        return self.get(address, length)

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._ask("write", address, len(data))
        self.put(address, bytes(data))

    def get(self, address: int, length: int) -> bytes:
        return bytes(self.bytes.get(at, 0) for at in range(address, address + length))

    def put(self, address: int, data: bytes) -> None:
        self.bytes.update(enumerate(data, address))

    def _ask(self, what: str, address: int, length: int) -> None:
        self.accesses.append((what, address, length))
        if self.broken:
            raise DeviceFault("not mapped", address)


class Bench:
    """A chip, its engine, and a disk at 3."""

    def __init__(self) -> None:
        self.clock, self.line, self.memory = Clock(), Line(), Memory()
        self.disk = Disk(None, blocks=64)
        self.chip = Ncr53c9x(
            self.line, self.clock.call_at, self.clock.now, targets={3: ScsiTarget(self.disk)}, initiator=7
        )
        self.dma = EspDma(self.memory, self.chip, self.line)
        self.drains = True
        self.host = Host(self.chip.read, self.chip.write, self.clock, self.line, self)
        self.dma.write32(CSR, INTERRUPT_ENABLE)

    def start(self, address: int, length: int, *, inward: bool) -> None:
        self.dma.write32(ADDRESS, address)
        self.dma.write32(CSR, INTERRUPT_ENABLE | ENABLE | (WRITE_MEMORY if inward else 0))

    def stop(self, *, inward: bool) -> None:
        kept = INTERRUPT_ENABLE | (WRITE_MEMORY if inward else 0)
        self.dma.write32(CSR, kept | (DRAIN if inward and self.drains else 0))

    def csr(self) -> int:
        return self.dma.read32(CSR)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    assert made.host.run(3, TEST_UNIT_READY).status == 2
    yield made
    made.disk.close()


def test_power_on_and_registers(bench: Bench) -> None:
    assert bench.csr() == DEVICE_ID | INTERRUPT_ENABLE
    for register, value in ((ADDRESS, 0xFC12_3456), (COUNT, 0x12_3456), (TEST, 5)):
        bench.dma.write32(register, value)
        assert bench.dma.read32(register) == value
    bench.dma.write32(0x20, 1)
    assert bench.dma.read32(0x20) == 0


def test_blocks_in_pieces(bench: Bench) -> None:
    bench.memory.put(BASE, pattern(1024))
    bench.memory.put(BASE + 0x777, pattern(512, 3))
    assert bench.host.run(3, ten(0x2A, 0, 3), [(BASE, 1024), (BASE + 0x777, 512)]).status == 0
    assert bench.disk.read(0, 3) == pattern(1024) + pattern(512, 3)
    segments = [(BASE + 0x3001, 700), (BASE + 0x5002, 3), (BASE + 0x6003, 833)]
    assert bench.host.run(3, ten(0x28, 0, 3), segments).status == 0
    read = b"".join(bench.memory.get(address, length) for address, length in segments)
    assert read == pattern(1024) + pattern(512, 3)


def test_what_does_not_fill_a_word_is_stale_until_it_is_drained(bench: Bench) -> None:
    bench.drains = False
    bench.host.select(3, bytes((0x12, 0, 0, 0, 34, 0)))
    event, moved = bench.host.move(BASE, 36, inward=True)
    assert (event.phase, moved) == (Phase.STATUS, 34)
    assert bench.host.finish() == 0
    assert (bench.csr() & PACKED) >> 2 == 2
    assert bench.memory.get(BASE + 26, 8) == b"DISK  " + bytes(2)
    assert bench.dma.read32(ADDRESS) == BASE + 34
    bench.dma.write32(CSR, DRAIN)
    assert (bench.csr() & PACKED, bench.memory.get(BASE + 26, 8)) == (0, b"DISK  1.")


def test_whole_words_leave_by_themselves(bench: Bench) -> None:
    bench.drains = False
    assert bench.host.run(3, INQUIRY, [(BASE + 4, 36)]).status == 0
    assert (bench.csr() & PACKED, bench.memory.get(BASE + 12, 6)) == (0, b"BUSDMA")


@pytest.mark.parametrize("how", ["flush", "address", "reset"])
def test_packed_bytes_that_nobody_drained_are_lost(bench: Bench, how: str) -> None:
    bench.drains = False
    bench.host.run(3, bytes((0x12, 0, 0, 0, 3, 0)), [(BASE, 3)])
    if how == "address":
        bench.dma.write32(ADDRESS, BASE + 64)
    else:
        bench.dma.write32(CSR, FLUSH if how == "flush" else RESET)
    bench.dma.write32(CSR, DRAIN)
    assert bench.memory.get(BASE, 4) == bytes(4)
    assert bench.dma.statistics()["forgotten"] == 3


def test_the_address_wraps_within_its_section(bench: Bench) -> None:
    bench.disk.write(0, pattern(512))
    top = BASE + SECTION - 100
    assert bench.host.run(3, ten(0x28, 0, 1), [(top, 512)]).status == 0
    assert bench.memory.get(top, 100) + bench.memory.get(BASE, 412) == pattern(512)
    assert bench.memory.get(BASE + SECTION, 412) == bytes(412)
    assert bench.host.run(3, ten(0x2A, 1, 1), [(top, 512)]).status == 0
    assert bench.disk.read(1, 1) == pattern(512)
    assert bench.dma.statistics()["wrapped"] == 2


def test_the_interrupt_passes_through_the_engine(bench: Bench) -> None:
    bench.dma.write32(CSR, 0)
    bench.host.fifo(b"\x80" + INQUIRY)
    bench.chip.write(4, 3)
    bench.chip.write(3, 0x42)
    assert bench.host.idle()
    assert bench.csr() & INTERRUPT_PENDING
    bench.dma.write32(CSR, INTERRUPT_ENABLE)
    assert bench.line.level
    bench.chip.read(5)
    assert (bench.line.level, bench.csr() & INTERRUPT_PENDING) == (False, 0)


def test_a_byte_count_ends_the_transfer(bench: Bench) -> None:
    bench.host.select(3, INQUIRY)
    bench.dma.write32(ADDRESS, BASE)
    bench.dma.write32(COUNT, 20)
    control = INTERRUPT_ENABLE | ENABLE | ENABLE_COUNT | WRITE_MEMORY
    bench.dma.write32(CSR, control)
    bench.host.set_count(36)
    bench.host.command(TRANSFER | DMA)
    assert bench.host.idle()
    assert (bench.csr() & TERMINAL_COUNT, bench.host.count(), bench.dma.read32(COUNT)) == (TERMINAL_COUNT, 16, 0)
    bench.dma.write32(COUNT, 100)
    bench.dma.write32(CSR, control | FLUSH)
    assert bench.host.wait().phase == Phase.STATUS
    assert (bench.dma.read32(COUNT), bench.memory.get(BASE + 32, 3)) == (84, b"1.0")


@pytest.mark.parametrize("inward", [True, False])
def test_an_access_that_the_bus_refuses(bench: Bench, inward: bool) -> None:
    bench.host.select(3, ten(0x28 if inward else 0x2A, 0, 1))
    bench.memory.broken = True
    bench.start(BASE, 512, inward=inward)
    bench.host.set_count(512)
    bench.host.command(TRANSFER | DMA)
    while bench.clock.step():
        pass
    assert (bench.csr() & ERROR_PENDING, bench.line.level) == (ERROR_PENDING, True)
    assert (bench.dma.statistics()["faults"], bench.dma.room()) == (1, 0)
    bench.chip.read(INTERRUPTS)
    assert bench.line.level
    bench.dma.write32(CSR, FLUSH | INTERRUPT_ENABLE)
    assert (bench.csr() & ERROR_PENDING, bench.line.level) == (0, False)


def test_the_reset_bit_holds_chip_and_engine(bench: Bench) -> None:
    bench.host.select(3, INQUIRY)
    bench.host.fifo(b"abc")
    bench.dma.write32(CSR, RESET | ENABLE)
    assert (bench.csr(), bench.host.held()) == (DEVICE_ID | RESET, 0)
    bench.dma.write32(CSR, 0)
    assert bench.csr() == DEVICE_ID


@given(st.integers(0, 40), st.lists(st.integers(1, 30), max_size=12), st.booleans())
def test_packing_against_an_array(start: int, sizes: list[int], near_the_end: bool) -> None:
    bench, source = Bench(), random.Random(4)
    begin = SECTION - 50 + start if near_the_end else start
    bench.dma.write32(ADDRESS, BASE + begin)
    bench.dma.write32(CSR, ENABLE | WRITE_MEMORY)
    expected: dict[int, int] = {}
    at = begin
    for size in sizes:
        data = source.randbytes(size)
        bench.dma.store(data)
        for byte in data:
            expected[BASE + at % SECTION] = byte
            at += 1
        packed = (bench.csr() & PACKED) >> 2
        waits = {BASE + (at - 1 - index) % SECTION for index in range(packed)}
        assert packed <= at % 4
        assert bench.memory.bytes == {key: byte for key, byte in expected.items() if key not in waits}
        assert bench.dma.read32(ADDRESS) == BASE + at % SECTION
    bench.dma.write32(CSR, DRAIN)
    assert bench.memory.bytes == expected
    bench.disk.close()
