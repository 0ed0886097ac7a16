"""The RC4030's translation, by registers and by bytes of its table."""

from __future__ import annotations

import pytest

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, DriverError
from busdma.sim.iommu.rc4030 import INVALID_ADDRESS, INVALIDATE, TABLE_BASE, TABLE_LIMIT
from busdma.sync import Direction
from busdma.translators.rc4030 import Rc4030Table
from sim.translation_rig import rc4030

PAGE = 4096
BOTH = Direction.BOTH


def test_the_table_is_little_endian_with_a_spare_word() -> None:
    rig = rc4030()
    rig.translator.enter(2 * PAGE, [0x8_2000, 0xFFFF_F000], BOTH)
    assert bytes(rig.bus.memory[0x1010:0x1020]) == bytes.fromhex("00200800 00000000 00f0ffff 00000000")
    assert rig.registers.read32(TABLE_BASE) == 0x1000
    assert rig.registers.read32(TABLE_LIMIT) == 0x1000
    assert rig.registers.read32(INVALIDATE) == 0xFFFF_FFFF
    assert rig.translator.window == AddressSet.span(0, 512 * PAGE - 1)


def test_software_may_use_the_spare_word() -> None:
    rig = rc4030()
    rig.translator.enter(0, [rig.paint(1, 1)], BOTH)
    rig.bus.memory[0x1004:0x1008] = b"\xff" * 4
    assert rig.master.dma_read(0, 1) == b"\1"


def test_the_limit_ends_the_table() -> None:
    rig = rc4030()
    rig.translator.enter(510 * PAGE, [rig.paint(1, 1), rig.paint(2, 2)], BOTH)
    assert rig.master.dma_read(512 * PAGE - 2, 4) == b"\2\2\xff\xff"
    assert rig.registers.read32(INVALID_ADDRESS) == 512 * PAGE
    assert rig.faults.recent[-1].reason == "beyond the table's limit"
    rig.registers.write32(TABLE_LIMIT, 511 * 8)
    assert rig.master.dma_read(511 * PAGE, 1) == b"\xff"
    assert rig.master.dma_read(510 * PAGE, 1) == b"\1"
    assert rig.master.dma_read(-PAGE, 1) == b"\xff"


def test_an_entry_of_zero_is_none() -> None:
    rig = rc4030()
    assert rig.master.dma_read(0, 1) == b"\xff"
    assert rig.faults.recent[-1].reason == "no entry"
    with pytest.raises(DriverError, match="no entry can name 0x0"):
        rig.translator.enter(0, [0], BOTH)


def test_any_write_to_invalidate_forgets_everything() -> None:
    rig = rc4030()
    rig.translator.enter(0, [rig.paint(1, 1), rig.paint(2, 2)], BOTH)
    rig.master.dma_read(0, 2 * PAGE)
    rig.translator.clear(0, 2)
    rig.registers.write16(INVALIDATE, 0)  # half of it is none
    assert rig.master.dma_read(PAGE - 1, 2) == b"\1\2"
    rig.registers.write32(INVALIDATE, 0)
    assert rig.master.dma_read(PAGE - 1, 2) == b"\xff\xff"


def test_tables_that_cannot_be() -> None:
    rig = rc4030()
    with pytest.raises(ConfigurationError, match="a multiple of 8"):
        Rc4030Table(rig.registers, rig.bus.memory[:12], 0)
    with pytest.raises(ConfigurationError, match="a multiple of 0x1000"):
        Rc4030Table(rig.registers, rig.bus.memory[0x800:0x1000], 0x800)
