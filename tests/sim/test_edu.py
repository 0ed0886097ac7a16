"""The edu device by its description, register by register."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import ConfigurationError, DeviceFault
from busdma.runtime.clock import VirtualClock
from busdma.sim.chips.edu import (
    BUFFER,
    COMPUTING,
    DMA_COMMAND,
    DMA_COUNT,
    DMA_DESTINATION,
    DMA_DONE,
    DMA_IRQ,
    DMA_SOURCE,
    DMA_TIME,
    FACTORIAL,
    FACTORIAL_DONE,
    FACTORIAL_IRQ,
    FROM_DEVICE,
    ID,
    IRQ_ACK,
    IRQ_RAISE,
    IRQ_STATUS,
    LIVENESS,
    START,
    STATUS,
    Edu,
)


class Memory:
    """64 KiB that the device sees at 0, and the addresses it asked for."""

    def __init__(self) -> None:
        self.bytes = bytearray(1 << 16)
        self.asked: list[int] = []
        self.broken = False

    def dma_read(self, address: int, length: int) -> bytes:
        self._ask(address)
        return bytes(self.bytes[address : address + length])

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._ask(address)
        self.bytes[address : address + len(data)] = data

    def _ask(self, address: int) -> None:
        self.asked.append(address)
        if self.broken:
            raise DeviceFault("not mapped", address)


class Pin:
    def __init__(self) -> None:
        self.level = False

    def assert_(self) -> None:
        self.level = True

    def deassert(self) -> None:
        self.level = False


class Bench:
    """A device on a bench: memory, a pin, a clock."""

    def __init__(self, address_bits: int = 28) -> None:
        self.memory, self.pin, self.clock = Memory(), Pin(), VirtualClock()
        self.device = Edu(self.memory, self.pin, self.clock.call_at, self.clock.now, address_bits=address_bits)

    def read(self, offset: int, size: int = 4) -> int:
        return self.device.read(0, offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.device.write(0, offset, size, value)

    def copy(self, source: int, destination: int, count: int, command: int) -> None:
        self.write(DMA_SOURCE, source, 8)
        self.write(DMA_DESTINATION, destination, 8)
        self.write(DMA_COUNT, count, 8)
        self.write(DMA_COMMAND, START | command)

    def run(self) -> None:
        while self.clock.advance():
            pass


def test_identification_and_liveness() -> None:
    bench = Bench()
    assert bench.read(ID) & 0xFFF == 0x0ED
    bench.write(ID, 0)
    assert bench.read(ID) == 0x0100_00ED
    bench.write(LIVENESS, 0x1234_5678)
    assert bench.read(LIVENESS) == 0xEDCB_A987


@pytest.mark.parametrize("number", [0, 1, 5, 12, 13, 33, 34, 0xFFFF_FFFF])
def test_factorials(number: int) -> None:
    bench = Bench()
    bench.write(FACTORIAL, number)
    assert bench.read(STATUS) == COMPUTING
    bench.write(FACTORIAL, 3)  # it is busy
    bench.run()
    expected = math.factorial(number) % (1 << 32) if number < 100 else 0
    assert (bench.read(FACTORIAL), bench.read(STATUS), bench.pin.level) == (expected, 0, False)


def test_a_factorial_interrupts_if_asked_to() -> None:
    bench = Bench()
    bench.write(STATUS, 0xFFFF_FFFF)
    assert bench.read(STATUS) == FACTORIAL_IRQ  # the rest is read-only
    bench.write(FACTORIAL, 4)
    assert bench.read(STATUS) == FACTORIAL_IRQ | COMPUTING
    bench.run()
    assert (bench.read(IRQ_STATUS), bench.pin.level) == (FACTORIAL_DONE, True)


def test_interrupts_stay_until_all_is_acknowledged() -> None:
    bench = Bench()
    bench.write(IRQ_RAISE, 0)
    assert not bench.pin.level
    bench.write(IRQ_RAISE, 0x30)
    bench.write(IRQ_RAISE, 0x01)
    assert (bench.read(IRQ_STATUS), bench.pin.level) == (0x31, True)
    bench.write(IRQ_ACK, 0x11)
    assert (bench.read(IRQ_STATUS), bench.pin.level) == (0x20, True)
    bench.write(IRQ_ACK, 0xFFFF_FFFF)
    assert (bench.read(IRQ_STATUS), bench.pin.level) == (0, False)


@pytest.mark.parametrize(("offset", "size"), [(ID, 8), (LIVENESS, 1), (STATUS, 2), (DMA_SOURCE, 2), (DMA_COMMAND, 1)])
def test_accesses_of_a_size_that_it_does_not_take(offset: int, size: int) -> None:
    bench = Bench()
    before = bench.read(offset)
    bench.write(offset, 1, size)
    assert bench.read(offset, size) == (1 << 8 * size) - 1
    assert bench.read(offset) == before


def test_no_register_there() -> None:
    bench = Bench()
    bench.write(0x0C, 1)
    assert bench.read(0x0C) == 0xFFFF_FFFF
    assert bench.read(IRQ_RAISE) == 0xFFFF_FFFF  # write-only
    assert bench.read(0xA0, 8) == (1 << 64) - 1


def test_dma_registers_take_32_and_64_bits() -> None:
    bench = Bench()
    bench.write(DMA_SOURCE, 0x1_2345_6789_ABCD, 8)
    assert (bench.read(DMA_SOURCE, 8), bench.read(DMA_SOURCE)) == (0x1_2345_6789_ABCD, 0x6789_ABCD)
    bench.write(DMA_SOURCE, 7)
    assert bench.read(DMA_SOURCE, 8) == 7


def test_a_copy_takes_its_time_and_then_interrupts() -> None:
    bench = Bench()
    data = random.Random(1).randbytes(4096)
    bench.memory.bytes[0x1000:0x2000] = data
    bench.copy(0x1000, BUFFER, 4096, DMA_IRQ)
    assert bench.read(DMA_COMMAND) == START | DMA_IRQ
    bench.write(DMA_COUNT, 1)  # it is busy
    assert bench.memory.asked == []
    assert bench.clock.next_at() == DMA_TIME
    bench.run()
    assert (bench.read(DMA_COMMAND), bench.read(IRQ_STATUS), bench.pin.level) == (DMA_IRQ, DMA_DONE, True)
    bench.copy(BUFFER + 96, 0x8001, 4000, FROM_DEVICE)
    bench.run()
    assert bench.memory.bytes[0x8001 : 0x8001 + 4000] == data[96:]
    assert bench.memory.asked == [0x1000, 0x8001]
    assert bench.device.statistics() == {"transfers": 2, "truncated": 0, "refused": 0, "faults": 0}


def test_the_data_is_that_of_the_end() -> None:
    bench = Bench()
    bench.copy(0, BUFFER, 4, 0)
    bench.memory.bytes[:4] = b"late"
    bench.run()
    bench.copy(BUFFER, 0x100, 4, FROM_DEVICE)
    bench.run()
    assert bench.memory.bytes[0x100:0x104] == b"late"


def test_upper_address_bits_are_lost() -> None:
    bench = Bench(address_bits=28)
    bench.copy(BUFFER, (5 << 28) + 0x100, 4, FROM_DEVICE)
    bench.run()
    assert bench.memory.asked == [0x100]
    assert bench.device.statistics()["truncated"] == 1
    wide = Bench(address_bits=64)
    wide.copy((1 << 63) + 0x100, BUFFER, 4, 0)
    wide.run()
    assert wide.memory.asked == [(1 << 63) + 0x100]


@pytest.mark.parametrize(("own", "count"), [(BUFFER - 1, 2), (BUFFER + 4095, 2), (BUFFER, 4097), (0, 4), (1 << 40, 1)])
def test_a_transfer_that_leaves_the_buffer(own: int, count: int) -> None:
    bench = Bench()
    bench.copy(0x1000, own, count, DMA_IRQ)
    bench.run()
    assert (bench.memory.asked, bench.pin.level) == ([], True)
    assert bench.device.statistics()["refused"] == 1


def test_a_transfer_that_the_bus_refuses_ends_all_the_same() -> None:
    bench = Bench()
    bench.memory.broken = True
    bench.copy(0x1000, BUFFER, 4, DMA_IRQ)
    bench.run()
    assert bench.pin.level
    assert bench.device.statistics()["faults"] == 1


def test_a_stuck_transfer() -> None:
    bench = Bench()
    bench.device.inject_stuck_transfer()
    bench.copy(0x1000, BUFFER, 4, 0)
    bench.run()
    assert (bench.read(DMA_COMMAND), bench.memory.asked) == (START, [])


@pytest.mark.parametrize("bits", [11, 65])
def test_address_lines_that_cannot_be(bits: int) -> None:
    with pytest.raises(ConfigurationError, match="give 12 to 64"):
        Bench(address_bits=bits)


copies = st.tuples(st.booleans(), st.integers(0, 4095), st.integers(0, 60_000), st.integers(0, 4096))


@given(st.lists(copies, max_size=8))
def test_copies_against_two_arrays(steps: list[tuple[bool, int, int, int]]) -> None:
    bench = Bench()
    bench.memory.bytes[:] = random.Random(2).randbytes(1 << 16)
    memory, own = bytearray(bench.memory.bytes), bytearray(4096)
    for outward, at, address, length in steps:
        count = min(length, 4096 - at)
        if outward:
            bench.copy(BUFFER + at, address, count, FROM_DEVICE)
            memory[address : address + count] = own[at : at + count]
        else:
            bench.copy(address, BUFFER + at, count, 0)
            own[at : at + count] = memory[address : address + count]
        bench.run()
    assert bench.memory.bytes == memory
