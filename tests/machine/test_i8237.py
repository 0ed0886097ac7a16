"""The 8237's software: which bytes go to which ports, and what it answers; and together with the model."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import ConfigurationError, DriverError
from busdma.machine.attachment import IsaDmaChannel
from busdma.machine.frames import FrameAllocator
from busdma.machine.i8237 import PAGES, DmaChannel, DmaController
from busdma.sim.bus.i8237 import DmaControllers, Request
from busdma.sim.bus.isa import IsaBus

KIB = 1 << 10
BYTES, WORDS = (0, 1, 2, 3), (5, 6, 7)


class Ports:
    """Remembers what is written, and answers what it is told to."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int] | str] = []
        self.answers: dict[int, list[int]] = {}

    def read8(self, offset: int) -> int:
        waiting = self.answers.get(offset, [])
        return waiting.pop(0) if waiting else 0

    def write8(self, offset: int, value: int) -> None:
        self.written.append((offset, value))

    def barrier(self) -> None:
        self.written.append("barrier")


def channel(ports: Ports, number: int) -> DmaChannel:
    made = DmaController(ports).channel(number)
    del ports.written[:]
    return made


def test_a_channel_of_bytes() -> None:
    ports = Ports()
    channel(ports, 2).program(0x12_3456, 0x4800, to_memory=True)
    assert ports.written == [
        (0x0A, 0x06),  # mask it
        (0x0B, 0x46),  # single transfers, to memory
        (0x0C, 0),  # the low byte first
        (0x04, 0x56),
        (0x04, 0x34),
        (0x05, 0xFF),
        (0x05, 0x47),
        (0x81, 0x12),
        "barrier",
        (0x0A, 0x02),
    ]


def test_a_channel_of_words() -> None:
    ports = Ports()
    channel(ports, 5).program(0x13_3456, 0x4800, to_memory=False)
    assert ports.written == [
        (0xD4, 0x05),
        (0xD6, 0x49),
        (0xD8, 0),
        (0xC4, 0x2B),  # half the address, and the page's lowest bit in it
        (0xC4, 0x9A),
        (0xC6, 0xFF),
        (0xC6, 0x23),
        (0x8B, 0x12),
        "barrier",
        (0xD4, 0x01),
    ]


def test_the_first_controller_is_let_through_the_second() -> None:
    ports = Ports()
    DmaController(ports)
    assert ports.written == [(0xD6, 0xC0), (0xD4, 0x00)]


@pytest.mark.parametrize("number", [*BYTES, *WORDS])
def test_the_limits_of_a_channel(number: int) -> None:
    made: IsaDmaChannel = DmaController(Ports()).channel(number)
    width = 1 if number in BYTES else 2
    assert (made.lowaddr, made.nsegments, made.alignment) == (0xFFFFFF, 1, width)
    assert made.boundary == made.maxsegsz == width * 64 * KIB
    made.program(made.boundary, made.maxsegsz, to_memory=True)


@pytest.mark.parametrize(
    ("number", "address", "length", "words"),
    [
        (2, 0xFFFFF0, 17, "up to address 0xffffff"),
        (2, 0x100_0000, 1, "up to address 0xffffff"),
        (2, -1, 1, "up to address 0xffffff"),
        (2, 0, 0, "it moves 1 to 65536 bytes"),
        (2, 0, 0x10001, "it moves 1 to 65536 bytes"),
        (2, 0x1FFFF, 2, "crosses a multiple of 0x10000"),
        (6, 0x0FFFE, 4, None),
        (6, 0x3FFFE, 4, "crosses a multiple of 0x20000"),
        (6, 0x1001, 2, "words of 2 bytes"),
        (6, 0x1000, 3, "words of 2 bytes"),
    ],
)
def test_what_a_channel_cannot_do(number: int, address: int, length: int, words: str | None) -> None:
    ports = Ports()
    made = channel(ports, number)
    if words is None:
        made.program(address, length, to_memory=True)
        return
    with pytest.raises(DriverError, match=f"DMA channel {number} .*{words}"):
        made.program(address, length, to_memory=True)
    assert ports.written == []


@pytest.mark.parametrize("number", [-1, 4, 8])
def test_there_is_no_such_channel(number: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"no DMA channel {number} .* give one of \[0, 1, 2, 3, 5, 6, 7\]"):
        DmaController(Ports()).channel(number)


@pytest.mark.parametrize(
    ("length", "count", "status", "left"),
    [
        (512, 0x1FF, 0, 512),
        (512, 0x0FF, 0, 256),
        (512, 0xFFFF, 0, 0),  # a controller that reports no terminal count
        (512, 0x1FF, 0x04, 0),  # one that does, and has been told to go on meanwhile
        (512, 0x1FF, 0x0B, 512),  # of other channels
        (64 * KIB, 0xFFFF, 0, 64 * KIB),
        (64 * KIB, 0xFFFF, 0x04, 0),
        (64 * KIB, 0x7FFF, 0, 32 * KIB),
    ],
)
def test_what_is_left(length: int, count: int, status: int, left: int) -> None:
    ports = Ports()
    made = channel(ports, 2)
    made.program(0x10000, length, to_memory=True)
    del ports.written[:]
    ports.answers = {0x08: [status], 0x05: [count & 0xFF, count >> 8]}
    assert made.left() == left
    assert ports.written in ([(0x0C, 0)], [])


def test_terminal_count_is_kept_for_the_channel_that_did_not_read_it() -> None:
    ports = Ports()
    controller = DmaController(ports)
    one, two = controller.channel(1), controller.channel(2)
    one.program(0, 16, to_memory=True)
    two.program(0, 16, to_memory=True)
    ports.answers = {0x08: [0x06]}
    assert two.left() == 0
    assert one.ended
    assert one.left() == 0
    two.program(0, 16, to_memory=True)
    assert one.ended
    assert not two.ended
    assert two.left() == 1  # count and status are both read as zero


class Machine:
    """16 MiB, both controllers, and a card on every channel that somebody asks for."""

    def __init__(self) -> None:
        self.frames = FrameAllocator(0, 4096)
        self.memory = bytearray(4096 * 4096)
        self.bus = IsaBus(memoryview(self.memory), self.frames)
        self.model = DmaControllers(self.bus)
        self.controller = DmaController(self.bus.registers(0))
        self._cards: dict[int, Request] = {}

    def card(self, number: int) -> Request:
        if number not in self._cards:
            self._cards[number] = self.model.request(number, self.bus.master(f"card {number}"))
        return self._cards[number]


MACHINE = Machine()


@st.composite
def transfers(draw: st.DrawFn) -> tuple[int, int, int]:
    number = draw(st.sampled_from(sorted(PAGES)))
    step = 1 if number in BYTES else 2
    page = draw(st.integers(0, (1 << 24) // (step << 16) - 1))
    first = draw(st.integers(0, 0xFFFF))
    count = draw(st.integers(1, min(0x10000 - first, 2000)))
    return number, (page << 16 | first) * step, count * step


@given(transfers(), st.booleans(), st.integers(0, 4000), st.binary(min_size=1, max_size=64))
def test_what_was_programmed_is_what_the_model_does(
    transfer: tuple[int, int, int], to_memory: bool, part: int, pattern: bytes
) -> None:
    number, address, length = transfer
    made = MACHINE.controller.channel(number)
    card = MACHINE.card(number)
    made.program(address, length, to_memory=to_memory)
    data = (pattern * 4000)[:length]
    asked = min(part - part % made.alignment, length)
    assert made.left() == length
    if to_memory:
        MACHINE.memory[address : address + length] = bytes(length)
        assert card.store(data[:asked]) == asked
        assert MACHINE.memory[address : address + length] == data[:asked].ljust(length, b"\0")
    else:
        MACHINE.memory[address : address + length] = data
        assert card.fetch(asked) == data[:asked]
    assert made.left() == length - asked
    assert made.ended == (asked == length)
    made.mask()
    assert card.store(b"ab") == 0
    assert card.fetch(2) == b""


def test_two_channels_of_one_controller_share_its_registers() -> None:
    """From two threads: neither finds the flip-flop, or a terminal count, where the other left it."""
    machine = Machine()
    wrong: list[str] = []
    start = threading.Barrier(2)

    def use(number: int) -> None:
        made = machine.controller.channel(number)
        card = machine.card(number)
        start.wait()
        for turn in range(300):
            address, length = (number << 16) + 3 * turn, 1 + turn % 700
            made.program(address, length, to_memory=True)
            with machine.bus.lock:
                taken = card.store(bytes([number]) * (length // 2))
            if made.left() != length - taken:
                wrong.append(f"channel {number}, turn {turn}: {made.left()} of {length} left after {taken}")
            with machine.bus.lock:
                card.store(bytes([number]) * length)
            if made.left() != 0:
                wrong.append(f"channel {number}, turn {turn}: {made.left()} left at the end")
            made.mask()

    threads = [threading.Thread(target=use, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
