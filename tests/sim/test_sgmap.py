"""The CIA's windows and its scatter-gather map, by registers and by bytes of the table."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import ConfigurationError
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.iommu.sgmap import CIA_ERR, HELD, INVALID_ENTRY, LOST, PCI_ERR1, T_BASE, TBIA, W_BASE, W_MASK, CiaBridge
from busdma.sim.iommu.translation import Fault
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.cia import CiaSgmap, open_window
from sim.translation_rig import cia, new_bus

MIB, GIB = 1 << 20, 1 << 30
PAGE = 8192
BOTH = Direction.BOTH


def test_the_table_is_as_the_manual_says() -> None:
    rig = cia()
    rig.translator.enter(rig.base + 5 * PAGE, [0x9_2000, 0x8_0000], BOTH)
    table = rig.bus.memory[0x8000:0xA000]
    assert struct.unpack_from("<4Q", table, 4 * 8) == (0, 0x49 << 1 | 1, 0x40 << 1 | 1, 0)
    rig.translator.clear(rig.base + 5 * PAGE, 1)
    assert struct.unpack_from("<2Q", table, 5 * 8) == (0, 0x40 << 1 | 1)
    assert rig.registers.read32(W_BASE) == 0x80_0000 | 3
    assert rig.registers.read32(W_MASK) == 0x70_0000
    assert rig.registers.read32(T_BASE) == 0x8000 >> 2
    # the highest frame that an entry can name
    rig.translator.enter(rig.base, [(1 << 34) - PAGE], BOTH)
    assert struct.unpack_from("<Q", table) == (0x1F_FFFF << 1 | 1,)


def test_a_direct_window_moves_addresses_by_a_constant() -> None:
    rig = cia()
    open_window(rig.registers, 1, GIB, GIB, 0)
    rig.bus.memory[0x1234:0x1238] = b"here"
    assert rig.master.dma_read(GIB + 0x1234, 4) == b"here"
    rig.master.dma_write(GIB + PAGE - 2, b"over the page")
    assert bytes(rig.bus.memory[PAGE - 2 : PAGE + 11]) == b"over the page"
    assert rig.master.dma_read(0x1234, 4) == b"\xff" * 4
    assert rig.faults.recent[-1].reason == "no window"
    assert rig.registers.read32(CIA_ERR) == 0
    # beyond memory there is nothing, and it is no fault of the bridge
    assert rig.master.dma_read(GIB + len(rig.bus.memory) - 1, 2)[1:] == b"\xff"
    assert len(rig.faults.recent) == 1
    # windows end where their mask ends
    assert rig.master.dma_read(2 * GIB, 1) == b"\xff"
    assert rig.master.dma_read((1 << 32) + GIB, 1) == b"\xff"
    assert len(rig.faults.recent) == 3


def test_a_closed_bridge_lets_nothing_through() -> None:
    bus = new_bus(PAGE)
    chip = CiaBridge(bus.memory)
    master = bus.add_master("m", chip.route("m"))
    assert master.dma_read(0, 3) == b"\xff" * 3
    assert chip.faults.recent[0].reason == "no window"


def test_a_read_fetches_ahead_and_wants_a_spill_page() -> None:
    rig = cia()
    translator, base = rig.translator, rig.base
    assert isinstance(translator, CiaSgmap)
    translator.enter(base, [rig.paint(1, 1), rig.paint(2, 2)], BOTH)
    end = base + 2 * PAGE
    assert rig.master.dma_read(end - 257, 1) == b"\2"
    assert rig.faults.recent == ()
    # the last 256 bytes: the bridge wants the next page as well, and the burst breaks where it does
    assert rig.master.dma_read(end - 256, 1) == b"\xff"
    got = rig.master.dma_read(base, 2 * PAGE)
    assert got == b"\1" * PAGE + b"\xff" * PAGE
    assert list(rig.faults.recent) == [Fault("m", end, False, "no valid entry to fetch ahead from")] * 2
    assert translator.take_fault() == HardwareFault(end)
    assert translator.take_fault() is None
    # writes never do
    rig.master.dma_write(end - 4, b"last")
    assert bytes(rig.bus.memory[rig.frame(2) + PAGE - 4 : rig.frame(2) + PAGE]) == b"last"
    translator.enter(end, [rig.frame(3)], BOTH)
    assert rig.master.dma_read(end - 4, 4) == b"last"
    assert len(rig.faults.recent) == 2


def test_nothing_is_fetched_from_behind_the_window() -> None:
    rig = cia()
    last = rig.translator.window.intervals[0][1] + 1 - PAGE
    rig.translator.enter(last, [rig.paint(1, 1)], BOTH)
    assert rig.master.dma_read(last + PAGE - 1, 1) == b"\1"
    assert rig.faults.recent == ()


def test_entries_are_kept_four_at_a_time() -> None:
    rig = cia()
    translator, base = rig.translator, rig.base
    translator.enter(base, [rig.paint(n, n + 1) for n in range(4)], BOTH)
    assert rig.master.dma_read(base, 1) == b"\1"
    translator.enter(base + PAGE, [rig.paint(7, 8)], BOTH)
    # the neighbour was never touched, and is old all the same
    assert rig.master.dma_read(base + PAGE, 1) == b"\2"
    translator.flush(base + PAGE, 1)
    assert rig.master.dma_read(base + PAGE, 1) == b"\x08"


def test_tbia_says_what_to_forget() -> None:
    rig = cia()
    rig.translator.enter(rig.base, [rig.paint(1, 1)], BOTH)
    rig.master.dma_read(rig.base, 1)
    rig.translator.clear(rig.base, 1)
    for nothing in (0, 1):
        rig.registers.write32(TBIA, nothing)
        assert rig.master.dma_read(rig.base, 1) == b"\1"
    rig.registers.write32(TBIA, 2)
    assert rig.master.dma_read(rig.base, 1) == b"\xff"


def test_the_first_error_is_held() -> None:
    rig = cia()
    rig.master.dma_read(rig.base + 3 * PAGE + 8, 8)
    assert rig.registers.read32(CIA_ERR) == HELD | INVALID_ENTRY
    rig.master.dma_write(rig.base, b"x")
    assert rig.registers.read32(CIA_ERR) == HELD | INVALID_ENTRY | LOST
    assert rig.registers.read32(PCI_ERR1) == rig.base + 3 * PAGE + 8
    rig.registers.write32(CIA_ERR, HELD | INVALID_ENTRY)
    assert rig.registers.read32(CIA_ERR) == LOST
    rig.registers.write32(CIA_ERR, LOST)
    rig.master.dma_write(rig.base, b"x")
    assert rig.registers.read32(PCI_ERR1) == rig.base


def test_the_table_is_aligned_to_its_size() -> None:
    """Its base and the index are concatenated: lower bits of the base do not count."""
    rig = cia()
    rig.translator.enter(rig.base + 5 * PAGE, [rig.paint(1, 1)], BOTH)
    rig.registers.write32(T_BASE, (0x8000 | 0x400) >> 2)
    assert rig.master.dma_read(rig.base + 5 * PAGE, 1) == b"\1"


@given(
    st.integers(0, 3),
    st.integers(0, 11),
    st.integers(0, 4095),
    st.integers(0, 4095),
    st.integers(0, (1 << 32) - 1),
    st.integers(1, 1 << 21),
)
def test_direct_windows_follow_the_formula(
    number: int, grains: int, base: int, target: int, address: int, length: int
) -> None:
    """AlphaPC 164 manual, table of the direct-mapped translation: the mask's bits from PCI, the others from T_BASE."""
    size = MIB << grains
    base, target = base * MIB & -size, target * MIB & -size
    bus = new_bus(PAGE)
    chip = CiaBridge(bus.memory)
    open_window(ChipRegisters(bus, chip), number, base, size, target)
    found = list(chip.route("m").pieces(address, length, True))
    assert sum(count for _, count in found) == length
    at = address
    for physical, count in found:
        inside = base <= at < base + size
        assert physical == (at - base + target if inside else None)
        at += count


def test_windows_that_cannot_be() -> None:
    rig = cia()
    for number, base, size, target in (
        (4, 0, MIB, 0),
        (0, 0, MIB // 2, 0),
        (0, 0, 3 * MIB, 0),
        (0, MIB, 2 * MIB, 0),
        (0, 0, 2 * MIB, MIB),
    ):
        with pytest.raises(ConfigurationError, match="give a number from 0 to 3"):
            open_window(rig.registers, number, base, size, target)
    memory = rig.bus.memory
    with pytest.raises(ConfigurationError, match="a multiple of 0x8000"):
        CiaSgmap(rig.registers, memory[0x2000:0x4000], 0x2000)
    with pytest.raises(ConfigurationError, match="give 0x2000 bytes"):
        CiaSgmap(rig.registers, memory[0x8000:0xC000], 0x8000)


def test_only_whole_registers_answer() -> None:
    rig = cia()
    rig.registers.write16(W_BASE, 0)
    assert rig.registers.read32(W_BASE) == 0x80_0003
    assert rig.registers.read8(W_BASE) == 0xFF
    assert rig.registers.read32(0x10) == 0xFFFF_FFFF
