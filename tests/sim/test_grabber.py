"""The Bt848 by its data sheet: registers, video timing, and its RISC engine, instruction by instruction."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.sim.bus.pci import PciFunction
from busdma.sim.chips.camera import BLANKING, FIELD, LINE, PIXELS, line, stamp
from busdma.sim.chips.grabber import (
    CAP_CTL,
    COLOR_FMT,
    DSTATUS,
    EOL,
    EVEN_FIELD,
    FDSR,
    FM1,
    GPIO_DMA_CTL,
    INT_MASK,
    INT_STAT,
    IRQ,
    LEASH,
    LOCKED,
    OCERR,
    PABORT,
    PRESENT,
    RESYNC,
    RISC_COUNT,
    RISC_EN,
    RISC_STRT_ADD,
    RISCI,
    SOL,
    SRESET,
    VRE,
    VRO,
    VSYNC,
    Bt848,
)
from busdma.sim.chips.grabber import FIELD as ODD_FIELD
from sim.grabber_bench import PICTURE, Bench, jump, skip, sync, write

WHOLE = SOL | EOL


def ring(bench: Bench, at: int = 0x100, flags: int = IRQ) -> list[int]:
    """The program for one picture, over and over."""
    words: list[int] = []
    for code, first in ((VRE, 0), (VRO, 1)):
        words += sync(code, RESYNC) + sync(FM1)
        for number in range(first, bench.height, 2):
            words += write(bench.width, PICTURE + number * bench.width, WHOLE)
    return words + list(jump(at, flags))


def picture(bench: Bench, number: int) -> bytes:
    return b"".join(line(number, at, bench.width) for at in range(bench.height))


def captured(bench: Bench) -> bytes:
    return bytes(bench.memory.bytes[PICTURE : PICTURE + bench.width * bench.height])


# -- the camera -------------------------------------------------------------------------------------------------------


def test_a_line_says_whose_it_is() -> None:
    assert stamp(line(70_000, 479, 640)) == (70_000, 479)
    assert stamp(bytes(640)) is None
    assert len(line(1, 2, PIXELS)) == PIXELS
    assert len({line(p, n, 64)[8:] for p, n in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


# -- registers --------------------------------------------------------------------------------------------------------


def test_identity_and_registers_at_reset() -> None:
    bench = Bench()
    device: PciFunction = bench.device
    assert (device.vendor, device.device, device.class_code) == (0x109E, 0x0350, 0x040000)
    assert device.bars[0].size == 4096
    bench.write(GPIO_DMA_CTL, 3)
    bench.write(INT_MASK, RISCI)
    bench.write(SRESET, 0)
    for offset in (GPIO_DMA_CTL, INT_MASK, COLOR_FMT, CAP_CTL, RISC_STRT_ADD, RISC_COUNT, 0x300):
        assert bench.read(offset) == 0
    assert bench.read(DSTATUS) == PRESENT | LOCKED
    assert bench.status & ~ODD_FIELD == 0
    bench.camera.signal = False
    assert bench.read(DSTATUS) == 0


def test_registers_have_32_bits() -> None:
    device = Bench().device
    assert device.read(0, CAP_CTL, 1) == 0xFF
    assert device.read(0, CAP_CTL, 2) == 0xFFFF
    device.write(0, CAP_CTL, 2, 0)
    assert device.read(0, CAP_CTL, 4) == 3


def test_causes_are_cleared_by_ones_and_masked() -> None:
    bench = Bench()
    bench.run(*jump(0x100), fields=0)
    bench.pass_by(0)
    assert bench.status & 0xFFFFF == VSYNC
    assert not bench.pin.level
    bench.write(INT_MASK, VSYNC)
    assert bench.pin.level
    bench.write(INT_STAT, RISCI)
    assert bench.pin.level
    bench.write(INT_STAT, VSYNC)
    assert not bench.pin.level
    assert bench.status & 0xFFFFF == 0


# -- capture ----------------------------------------------------------------------------------------------------------


def test_pictures_without_end() -> None:
    bench = Bench()
    bench.write(INT_MASK, RISCI)
    bench.run(*ring(bench))
    for number in range(3):
        bench.pass_by(1, FIELD - LINE)  # both fields, and not yet the next
        assert captured(bench) == picture(bench, number)
        assert bench.pin.level
        bench.write(INT_STAT, RISCI)
        assert not bench.pin.level
        bench.pass_by(0, LINE)
    assert bench.pin.rises == 3
    statistics = bench.device.statistics()
    assert (statistics["lines"], statistics["bytes"], statistics["resyncs"], statistics["faults"]) == (12, 192, 0, 0)


def test_lines_come_one_by_one_and_fields_in_turn() -> None:
    bench = Bench()
    bench.run(*ring(bench))
    bench.pass_by(0, (BLANKING + 1) * LINE - 1)
    assert bench.memory.written == []
    bench.pass_by(0, 1)
    assert bench.memory.written == [(PICTURE, 16)]
    assert not bench.read(DSTATUS) & EVEN_FIELD
    assert bench.status & ODD_FIELD
    bench.pass_by(0, LINE)
    assert bench.memory.written == [(PICTURE, 16), (PICTURE + 32, 16)]
    bench.pass_by(1)
    assert bench.memory.written[2:] == [(PICTURE + 16, 16), (PICTURE + 48, 16)]
    assert bench.read(DSTATUS) & EVEN_FIELD
    assert not bench.status & ODD_FIELD
    assert bench.status & RISC_EN


def test_starting_in_the_middle_waits_for_the_next_odd_field() -> None:
    bench = Bench()
    bench.pass_by(4, FIELD // 2)
    bench.run(*ring(bench))
    bench.pass_by(1, FIELD // 2)  # field 5 is an even one
    assert bench.memory.written == []
    bench.pass_by(2)
    assert captured(bench) == picture(bench, 3)
    assert not bench.status & FDSR


def test_stopped_it_touches_nothing_and_starts_again() -> None:
    bench = Bench()
    bench.run(*ring(bench), fields=2)
    bench.write(GPIO_DMA_CTL, 0)
    assert not bench.status & RISC_EN
    bench.memory.written.clear()
    bench.pass_by(4)
    assert bench.memory.written == []
    assert bench.clock.next_at() is None  # it does not even look at the clock
    bench.run(*ring(bench), fields=2)
    assert captured(bench) == picture(bench, 3)


@pytest.mark.parametrize("off", [(CAP_CTL, 0), (COLOR_FMT, 0x22)])
def test_what_is_not_captured_does_not_arrive(off: tuple[int, int]) -> None:
    bench = Bench()
    bench.write(*off)
    bench.run(*ring(bench), fields=4)
    assert bench.memory.written == []


def test_one_field_only() -> None:
    bench = Bench()
    bench.write(CAP_CTL, 2)
    bench.run(
        *sync(VRE, RESYNC),
        *sync(FM1),
        *write(16, PICTURE, WHOLE),
        *write(16, PICTURE + 16, WHOLE),
        *jump(0x100),
        fields=4,
    )
    assert bench.memory.written == [(PICTURE, 16), (PICTURE + 16, 16)] * 2
    assert captured(bench)[:32] == line(1, 0, 16) + line(1, 2, 16)
    assert not bench.status & FDSR


def test_without_a_signal_nothing_happens_until_it_is_back() -> None:
    bench = Bench()
    bench.camera.signal = False
    bench.run(*ring(bench), fields=4)
    assert bench.memory.written == []
    bench.camera.signal = True
    bench.pass_by(4)
    assert captured(bench) == picture(bench, 3)


# -- instructions -----------------------------------------------------------------------------------------------------


def test_skip_and_pieces_of_a_line() -> None:
    """A line in two pieces to two places, with four pixels left out; SKIP has one word."""
    bench = Bench()
    bench.run(
        *sync(VRE, RESYNC),
        *sync(FM1),
        *write(6, PICTURE, SOL),
        *skip(4),
        *write(6, PICTURE + 100, EOL),
        *skip(16, WHOLE),
        *jump(0x100),
        fields=1,
    )
    expected = line(0, 0, 16)
    assert bench.memory.bytes[PICTURE : PICTURE + 6] == expected[:6]
    assert bench.memory.bytes[PICTURE + 100 : PICTURE + 106] == expected[10:]
    assert bench.memory.written == [(PICTURE, 6), (PICTURE + 100, 6)]
    assert not bench.status & FDSR


def test_status_bits_are_set_and_cleared() -> None:
    bench = Bench()
    bench.run(*jump(0x108, 0x5 << 16), *jump(0x110, 0x4 << 20 | 0x8 << 16), *sync(VRO), fields=0)
    assert bench.status >> 28 == 0x9
    assert not bench.status & RISCI
    assert bench.read(RISC_COUNT) == 0x110
    bench.write(GPIO_DMA_CTL, 0)
    bench.run(*sync(VRO))
    assert bench.status >> 28 == 0


@pytest.mark.parametrize("word", [0x0000_0000, 0x3000_0000, 0x5000_0010, 0x9000_0010, 0xF000_0000])
def test_an_illegal_instruction_halts(word: int) -> None:
    bench = Bench()
    bench.write(INT_MASK, OCERR)
    bench.run(*jump(0x108), word, 0, fields=2)
    assert bench.status & (OCERR | RISC_EN) == OCERR
    assert bench.pin.level
    assert bench.device.statistics()["faults"] == 1


def test_a_program_where_no_memory_is() -> None:
    """Reads that nobody answers give ones, which is no instruction."""
    bench = Bench()
    bench.run(*jump(0x40_0000))
    assert bench.status & (OCERR | RISC_EN) == OCERR


def test_instructions_begin_at_double_words() -> None:
    bench = Bench()
    bench.run(*jump(0x10A))
    assert bench.status & (OCERR | RISC_EN) == OCERR


@pytest.mark.parametrize("forbidden", [0x100, 0x110, 0x114, PICTURE])
def test_what_the_bus_refuses_halts(forbidden: int) -> None:
    bench = Bench()
    bench.memory.forbidden = range(forbidden, forbidden + 1)
    bench.run(*sync(VRE, RESYNC), *sync(FM1), *write(16, PICTURE, WHOLE), *jump(0x100), fields=2)
    assert bench.status & (PABORT | RISC_EN) == PABORT
    assert bench.memory.written == []


@pytest.mark.parametrize(
    "wrong",
    [
        [*write(15, PICTURE, WHOLE)],  # the line has more pixels
        [*write(17, PICTURE, WHOLE)],  # fewer
        [*write(16, PICTURE, EOL)],  # it begins here
        [*write(8, PICTURE, SOL), *write(8, PICTURE, WHOLE)],  # and not here
        [*write(16, PICTURE, WHOLE)] * 3,  # more lines than the field has
        [*write(16, PICTURE, WHOLE), *sync(VRO)],  # fewer
    ],
)
def test_a_program_that_does_not_fit_the_video_is_told_and_goes_on(wrong: list[int]) -> None:
    bench = Bench()
    words = [*sync(VRE, RESYNC), *sync(FM1), *wrong]
    bench.run(*words, *jump(0x100 + 4 * len(words) + 8), *ring(bench, 0x100 + 4 * len(words) + 8), fields=2)
    assert bench.status & FDSR
    bench.pass_by(2)
    assert captured(bench) == picture(bench, 1)
    assert bench.status & RISC_EN


def test_resync_is_no_mismatch() -> None:
    bench = Bench()
    bench.run(*sync(VRE, RESYNC), *sync(FM1), *write(16, PICTURE, WHOLE), *sync(VRO, RESYNC), *jump(0x100), fields=4)
    assert bench.memory.written == [(PICTURE, 16)] * 2
    assert not bench.status & FDSR


def test_a_program_that_runs_in_circles_is_on_a_leash() -> None:
    bench = Bench()
    bench.run(*jump(0x100))
    assert bench.device.statistics()["instructions"] == 3 * LEASH  # at the start, and for two sync codes
    assert bench.status & RISC_EN


@given(width=st.integers(2, PIXELS // 4), height=st.integers(1, 40), cuts=st.lists(st.integers(1, 300), max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_picture_in_any_pieces(width: int, height: int, cuts: list[int]) -> None:
    """Lines go to memory in pieces, the last line first; nothing else is touched."""
    bench = Bench(4 * width, 2 * height)
    words: list[int] = []
    for code, parity in ((VRE, 0), (VRO, 1)):
        words += sync(code, RESYNC) + sync(FM1)
        for number in range(parity, bench.height, 2):
            at, ends = 0, sorted({cut for cut in cuts if cut < bench.width} | {bench.width})
            for end in ends:
                flags = (SOL if at == 0 else 0) | (EOL if end == bench.width else 0)
                words += write(end - at, PICTURE + (bench.height - 1 - number) * bench.width + at, flags)
                at = end
    bench.memory.bytes = bytearray(b"\xee" * len(bench.memory.bytes))
    room = 4 * (len(words) + 2)
    bench.run(*words, *jump(0x100), fields=2)
    expected = b"".join(line(0, number, bench.width) for number in reversed(range(bench.height)))
    assert bench.memory.bytes[PICTURE:].startswith(expected)
    assert set(bench.memory.bytes[PICTURE + len(expected) :]) <= {0xEE}
    assert set(bench.memory.bytes[0x100 + room : PICTURE]) <= {0xEE}
    assert bench.memory.bytes[:0x100] == b"\xee" * 0x100
    assert not bench.status & FDSR


def test_a_program_is_fetched_when_it_is_executed() -> None:
    """What the driver writes into a running program counts from the next time on."""
    bench = Bench()
    program = ring(bench)
    bench.run(*program, fields=2)
    changed = [*program]
    changed[5] = PICTURE + 0x1000  # where line 0 goes
    bench.memory.bytes[0x100 : 0x100 + 4 * len(program)] = pack(f"<{len(program)}I", *changed)
    bench.pass_by(2)
    assert bench.memory.bytes[PICTURE + 0x1000 : PICTURE + 0x1010] == line(1, 0, 16)


def test_it_brings_a_camera_of_its_own() -> None:
    bench = Bench()
    device = Bt848(bench.memory, bench.pin, bench.clock.call_at, bench.clock.now)
    assert device.camera is not bench.camera
