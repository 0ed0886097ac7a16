"""The CPU's handle on the registers of a chip."""

from __future__ import annotations

import pytest

from busdma.errors import DriverError
from busdma.machine.attachment import MmioRegisters
from busdma.sim.bus.registers import ChipRegisters
from sim.translation_rig import new_bus


class Sixteen:
    """Sixteen bytes that remember."""

    name = "sixteen"
    room = 16

    def __init__(self) -> None:
        self.bytes = bytearray(16)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")


def test_all_widths_reach_the_chip() -> None:
    bus = new_bus()
    registers = ChipRegisters(bus, Sixteen())
    assert isinstance(registers, MmioRegisters)
    registers.write64(8, 0x0123_4567_89AB_CDEF)
    registers.write32(8, 0x1111_2222)
    registers.write16(10, 0x3333)
    registers.write8(9, 0x44)
    assert registers.read64(8) == 0x0123_4567_3333_4422
    assert (registers.read32(12), registers.read16(14), registers.read8(15)) == (0x0123_4567, 0x0123, 1)
    registers.barrier()
    assert bus.barriers == 1


def test_misuse_is_told() -> None:
    registers = ChipRegisters(new_bus(), Sixteen())
    for offset in (-4, 2, 16, 14):
        with pytest.raises(DriverError, match="multiples of 4 below 0x10"):
            registers.read32(offset)
    with pytest.raises(DriverError, match="has 8 bits"):
        registers.write8(0, 256)
