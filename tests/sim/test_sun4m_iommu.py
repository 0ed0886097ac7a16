"""The sun4m IOMMU, by registers and by bytes of its table."""

from __future__ import annotations

import pytest

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.iommu.sun4m import AFAR, AFSR, BASE, CTRL, MULTIPLE, PGFLUSH, READ, TLBFLUSH, VERSION, Sun4mIommu
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.sun4m import Sun4mTable
from sim.translation_rig import new_bus, sun4m

PAGE = 4096
BOTH = Direction.BOTH


def test_the_table_is_as_the_manual_says() -> None:
    rig = sun4m()
    rig.translator.enter(rig.base + 3 * PAGE, [0x8_2000], Direction.TO_DEVICE)
    rig.translator.enter(rig.base + 4 * PAGE, [0xF_FFFF_F000], Direction.FROM_DEVICE)
    table = bytes(rig.bus.memory[0x4000 + 12 : 0x4000 + 24])
    assert table == bytes.fromhex("00008282 ffffff86 00000000")
    assert rig.registers.read32(CTRL) == VERSION | 1
    assert rig.registers.read32(BASE) == 0x400
    assert rig.registers.read32(TLBFLUSH) == 0xFFFF_FFFF
    assert rig.registers.read8(CTRL) == 0xFF


@pytest.mark.parametrize("code", range(8))
def test_the_range_is_the_top_of_the_space(code: int) -> None:
    """A table needs 4 bytes a page: here only its end, which is where the highest addresses are, lies in memory."""
    size = (16 << 20) << code
    bus = new_bus()
    chip = Sun4mIommu(bus.memory)
    master = bus.add_master("m", chip.route("m"))
    chip.write(BASE, 4, 0x8_0000 >> 4)
    chip.write(CTRL, 4, code << 2 | 1)
    bus.memory[0x8_0000:0x8_0004] = (0x8_5000 >> 4 | 6).to_bytes(4, "big")  # the first page of the range
    master.dma_write((1 << 32) - size + 7, b"!")
    assert bus.memory[0x8_5007] == ord("!")
    assert master.dma_read((1 << 32) - size - 1, 1) == b"\xff"
    assert chip.faults.recent[-1].reason == "below the range"


def test_it_answers_to_32_bits_and_only_while_enabled() -> None:
    rig = sun4m()
    rig.translator.enter((1 << 32) - PAGE, [rig.paint(1, 1)], BOTH)
    assert rig.master.dma_read((1 << 32) - 1, 2) == b"\1\xff"
    assert rig.faults.recent[-1].reason == "no 32-bit address"
    rig.registers.write32(CTRL, 0)
    assert rig.master.dma_read((1 << 32) - 1, 1) == b"\xff"
    assert rig.faults.recent[-1].reason == "the IOMMU is not enabled"


def test_an_entry_counts_when_it_is_valid() -> None:
    rig = sun4m()
    rig.bus.memory[0x4000:0x4004] = (rig.paint(1, 1) >> 4 | 0x84).to_bytes(4, "big")
    assert rig.master.dma_read(rig.base, 1) == b"\xff"
    rig.bus.memory[0x4003] |= 2
    assert rig.master.dma_read(rig.base, 1) == b"\1"


def test_pages_are_flushed_one_by_one() -> None:
    rig = sun4m()
    rig.translator.enter(rig.base, [rig.paint(1, 1), rig.paint(2, 2)], BOTH)
    rig.master.dma_read(rig.base, 2 * PAGE)
    rig.translator.clear(rig.base, 2)
    rig.registers.write32(PGFLUSH, rig.base + 0x123)
    assert rig.master.dma_read(rig.base, 1) == b"\xff"
    assert rig.master.dma_read(rig.base + PAGE, 1) == b"\2"
    rig.registers.write32(TLBFLUSH, 0)
    assert rig.master.dma_read(rig.base + PAGE, 1) == b"\xff"


def test_a_long_flush_is_one_command() -> None:
    rig = sun4m()
    rig.translator.enter(rig.base, [rig.paint(1, 1)] * 40, BOTH)
    rig.master.dma_read(rig.base, 40 * PAGE)
    rig.translator.clear(rig.base, 40)
    rig.translator.flush(rig.base, 17)
    assert rig.master.dma_read(rig.base, 40 * PAGE) == b"\xff" * 40 * PAGE


def test_the_first_fault_is_held() -> None:
    rig = sun4m()
    translator = rig.translator
    assert isinstance(translator, Sun4mTable)
    assert translator.take_fault() is None
    translator.enter(rig.base, [rig.frame(1)], Direction.TO_DEVICE)
    rig.master.dma_write(rig.base + 12, b"x")
    assert rig.faults.recent[-1].reason == "the entry is not writable"
    rig.master.dma_read(rig.base + PAGE, 1)
    assert rig.registers.read32(AFAR) == rig.base + 12
    assert rig.registers.read32(AFSR) & MULTIPLE
    assert not rig.registers.read32(AFSR) & READ
    assert translator.take_fault() == HardwareFault(rig.base + 12, write=True)
    assert translator.take_fault() is None
    rig.master.dma_read(rig.base + PAGE, 1)
    assert translator.take_fault() == HardwareFault(rig.base + PAGE, write=False)


def test_only_a_flush_grants_more_rights() -> None:
    rig = sun4m()
    rig.translator.enter(rig.base, [rig.frame(1)], Direction.TO_DEVICE)
    rig.master.dma_read(rig.base, 1)
    rig.translator.enter(rig.base, [rig.frame(1)], BOTH)
    rig.master.dma_write(rig.base, b"x")
    assert rig.bus.memory[rig.frame(1)] == 0
    rig.translator.flush(rig.base, 1)
    rig.master.dma_write(rig.base, b"x")
    assert rig.bus.memory[rig.frame(1)] == ord("x")


def test_tables_that_cannot_be() -> None:
    bus = new_bus()
    registers = ChipRegisters(bus, Sun4mIommu(bus.memory))
    for size in (8 << 20, 24 << 20, 4 << 30):
        with pytest.raises(ConfigurationError, match="a power of two from 16 MiB"):
            Sun4mTable(registers, bus.memory[:0x4000], 0, size=size)
    with pytest.raises(ConfigurationError, match="a multiple of 0x4000"):
        Sun4mTable(registers, bus.memory[0x1000:0x5000], 0x1000, size=16 << 20)
    with pytest.raises(ConfigurationError, match="below 0x80000000, where BASE reaches"):
        Sun4mTable(registers, bus.memory[:0x4000], 2 << 30, size=16 << 20)
    with pytest.raises(ConfigurationError, match="give 0x8000 bytes"):
        Sun4mTable(registers, bus.memory[:0x4000], 0, size=32 << 20)
    table = Sun4mTable(registers, bus.memory[0x8000:0x10000], 0x8000, size=32 << 20)
    assert table.window == AddressSet.span(0xFE00_0000, 0xFFFF_FFFF)
