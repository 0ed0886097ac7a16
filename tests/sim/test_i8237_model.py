"""The model of a PC's 8237s: pages that wrap, 24 address wires, terminal count, and who is heard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import ConfigurationError
from busdma.machine.frames import FrameAllocator
from busdma.sim.bus.i8237 import CHANNELS, DmaControllers, Request
from busdma.sim.bus.isa import IsaBus

PAGE = 0x10000
PAGE_PORTS = {0: 0x87, 1: 0x83, 2: 0x81, 3: 0x82, 5: 0x8B, 6: 0x89, 7: 0x8A}
TO_MEMORY, FROM_MEMORY, VERIFY = 0x44, 0x48, 0x40  # single transfers


class Pc:
    """`pages` frames of memory, and a card on each channel."""

    def __init__(self, pages: int = 512) -> None:
        self.memory = bytearray(pages * 4096)
        self.bus = IsaBus(memoryview(self.memory), FrameAllocator(0, pages))
        self.dma = DmaControllers(self.bus)
        self.cards = {number: self.dma.request(number, self.bus.master(f"card {number}")) for number in CHANNELS}

    def out(self, *pairs: tuple[int, int]) -> None:
        for port, value in pairs:
            self.bus.write8(port, value)

    def port(self, number: int, register: int) -> int:
        return register if number < 4 else 0xC0 + 2 * register

    def set(self, number: int, address: int, count: int, mode: int) -> Request:
        """As the data sheet has it: address and count as the registers have them, the page apart."""
        bit = number & 3
        self.out((0xD6, 0xC0), (0xD4, 0x00))
        self.out((self.port(number, 0xC), 0))
        for register, value in ((2 * bit, address & 0xFFFF), (2 * bit + 1, count)):
            self.out((self.port(number, register), value & 0xFF), (self.port(number, register), value >> 8))
        self.out((PAGE_PORTS[number], address >> 16), (self.port(number, 0xB), mode | bit))
        self.out((self.port(number, 0xA), bit))
        return self.cards[number]

    def read16(self, number: int, register: int) -> int:
        self.out((self.port(number, 0xC), 0))
        low = self.bus.read8(self.port(number, register))
        return low | self.bus.read8(self.port(number, register)) << 8


PC = Pc(4096)


@given(
    st.sampled_from(CHANNELS),
    st.integers(0, 0xFF),
    st.integers(0, 0xFFFF),
    st.integers(0, 300),
    st.integers(0, 310),
)
def test_an_address_never_leaves_its_page(number: int, page: int, first: int, count: int, moved: int) -> None:
    step = 1 if number < 4 else 2
    card = PC.set(number, page << 16 | first, count, TO_MEMORY)
    base = (page & ~(step - 1)) << 16
    places = [base + (first + i) % PAGE * step + byte for i in range(count + 1) for byte in range(step)]
    for place in places:
        PC.memory[place] = 0
    data = bytes(1 + i % 255 for i in range(moved * step))
    taken = card.store(data)
    assert taken == min(moved, count + 1) * step
    assert [PC.memory[place] for place in places] == [*data[:taken], *bytes(len(places) - taken)]
    assert card.terminal == (moved >= count + 1)
    assert bool(PC.bus.read8(PC.port(number, 8)) & 1 << (number & 3)) == card.terminal
    done = taken // step
    assert PC.read16(number, 2 * (number & 3)) == (first + done) % PAGE
    assert PC.read16(number, 2 * (number & 3) + 1) == (count - done) % PAGE


def test_what_is_moved_at_once_is_one_access_for_each_run() -> None:
    pc = Pc()
    pc.set(2, 0x1FF00, 0x1FF, FROM_MEMORY)
    pc.memory[0x1FF00:0x20000] = b"a" * 256
    pc.memory[0x10000:0x10100] = b"b" * 256  # and not the page behind
    pc.memory[0x20000:0x20100] = b"c" * 256
    assert pc.cards[2].fetch(512) == b"a" * 256 + b"b" * 256
    assert pc.bus.statistics()["card 2"]["reads"] == 2
    assert pc.bus.statistics()["card 2"]["bytes"] == 512


def test_after_terminal_count_the_channel_is_masked_unless_it_begins_again() -> None:
    pc = Pc()
    card = pc.set(1, 0x1000, 3, TO_MEMORY)
    assert card.store(b"abcdef") == 4
    assert card.terminal
    assert card.store(b"x") == 0
    assert not card.terminal
    card = pc.set(1, 0x1000, 3, TO_MEMORY | 0x10)
    assert card.store(b"ABCDEF") == 4  # a request ends at terminal count
    assert card.store(b"EF") == 2
    assert pc.memory[0x1000:0x1004] == b"EFCD"
    assert pc.bus.read8(0x08) == 0x02
    assert pc.bus.read8(0x08) == 0x00  # reading has cleared it


def test_verify_counts_and_moves_nothing() -> None:
    pc = Pc()
    card = pc.set(3, 0x1000, 7, VERIFY)
    pc.memory[0x1000:0x1008] = b"12345678"
    assert card.store(b"abcd") == 4
    assert card.fetch(9) == bytes(4)
    assert card.terminal
    assert pc.memory[0x1000:0x1008] == b"12345678"
    assert pc.bus.statistics()["card 3"]["bytes"] == 0


@pytest.mark.parametrize(
    "deafen",
    [
        [(0x0A, 0x06)],  # masked
        [(0x0F, 0x0F)],
        [(0x0D, 0)],  # master clear
        [(0x08, 0x04)],  # disabled
        [(0x0B, 0x4A)],  # the other way
        [(0x0B, 0x66)],  # downwards, which is not modelled
        [(0xD4, 0x04)],  # the second controller does not hear the first
        [(0xD6, 0x40)],  # or takes it for a card
        [(0xDA, 0)],
    ],
)
def test_a_request_that_is_not_heard(deafen: list[tuple[int, int]]) -> None:
    pc = Pc()
    card = pc.set(2, 0x1000, 15, TO_MEMORY)
    pc.out(*deafen)
    assert card.store(b"abc") == 0
    assert not card.terminal
    assert pc.memory[0x1000:0x1010] == bytes(16)
    card = pc.set(2, 0x1000, 15, TO_MEMORY)
    pc.out((0x08, 0x00))
    assert card.store(b"abc") == 3


def test_all_masks_at_once() -> None:
    pc = Pc()
    card = pc.set(0, 0, 15, TO_MEMORY)
    pc.out((0x0F, 0x01))
    assert card.store(b"a") == 0
    pc.out((0x0E, 0))
    assert card.store(b"a") == 1


def test_nobody_is_heard_at_power_on() -> None:
    pc = Pc()
    assert [card.store(b"ab") for card in pc.cards.values()] == [0] * 7
    assert pc.bus.read8(0x0B) == 0xFF  # a register that can only be written


def test_page_registers_can_be_read_and_the_others_keep_what_firmware_puts_there() -> None:
    pc = Pc()
    pc.out(*((0x80 + port, 0xA0 | port) for port in range(16)))
    assert [pc.bus.read8(0x80 + port) for port in range(16)] == [0xA0 | port for port in range(16)]


@pytest.mark.parametrize("number", [2, 4, 8, -1])
def test_a_channel_that_cannot_be_wired(number: int) -> None:
    bus = IsaBus(memoryview(bytearray(4096)), FrameAllocator(0, 1))
    dma = DmaControllers(bus)
    dma.request(2, bus.master("one"))
    with pytest.raises(ConfigurationError, match=rf"DMA channel {number} cannot be wired .*\[0, 1, 3, 5, 6, 7\]"):
        dma.request(number, bus.master("two"))
