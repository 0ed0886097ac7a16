"""The windows and the scatter-gather map of the 21172 (CIA), as its software sees them.

Source: Digital, AlphaPC 164 Motherboard Technical Reference Manual, A.4.2 to A.4.3.1. Offsets are from 0x87.4000.0000.
"""

from __future__ import annotations

from typing import Final

from busdma.addresses import AddressSet
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.table import LinearTable, check_table
from busdma.translators.windows import ENABLED, GRAIN, PAGE, SCATTER, check_window

CIA_ERR, PCI_ERR1, TBIA = 0x8200, 0x8840, 0x2000_0100
W_BASE, W_MASK, T_BASE = 0x2000_0400, 0x2000_0440, 0x2000_0480  #: of window 0
STRIDE: Final = 0x100
INVALID_ENTRY: Final = 1 << 9  #: CIA_ERR
ALL_ERRORS: Final = 0xFFFF_FFFF
ALL_ENTRIES: Final = 3  #: TBIA
VALID: Final = 1  #: entry


def open_window(registers: MmioRegisters, number: int, base: int, size: int, target: int, flags: int = 0) -> None:
    """Have window `number` (0 to 3) lead from PCI address `base` to `target`: a physical address, or with SCATTER the
    table's. `size` is a power of two from 1 MiB to 4 GiB, and `base` and `target` are multiples of what they must be.

    ConfigurationError if they are not.
    """
    check_window("cia", number, base, size, target, flags)
    at = number * STRIDE
    registers.write32(W_BASE + at, 0)
    registers.write32(W_MASK + at, size - GRAIN)
    registers.write32(T_BASE + at, target >> 2)
    registers.write32(W_BASE + at, base | flags | ENABLED)
    registers.barrier()


class CiaSgmap(LinearTable):
    """The scatter-gather map behind window `number`, `size` bytes of PCI addresses from `base` on.

    `table`: 8 bytes for each 8 KiB of it, at physical address `table_address`, a multiple of its size and of 32 KiB.
    The bridge fetches ahead when a device reads: what follows a mapping that devices read must be mapped as well.
    """

    name = "sgmap"
    page_size = PAGE
    order = "<Q"
    reach = AddressSet.span(0, (1 << 34) - 1)
    prefetch = 256

    def __init__(
        self,
        registers: MmioRegisters,
        table: memoryview,
        table_address: int,
        *,
        number: int = 0,
        base: int = 8 << 20,
        size: int = 8 << 20,
    ) -> None:
        # NetBSD aligns to 32 KiB whatever the size is, for what looks like a fault of the hardware
        check_table(self.name, table, table_address, size // PAGE * 8, max(size // PAGE * 8, 32768))
        super().__init__(registers, table, base)
        open_window(registers, number, base, size, table_address, SCATTER)
        self.flush(base, self._pages)

    def entry(self, frame: int, direction: Direction) -> int:
        """Address bits 33:13 in bits 21:1, and valid. There are no rights."""
        return frame >> 12 | VALID

    def flush(self, address: int, pages: int) -> None:
        """As `busdma.mechanisms.translation.Translator.flush`: the bridge can only forget everything."""
        self.registers.write32(TBIA, ALL_ENTRIES)
        self.registers.barrier()

    def take_fault(self) -> HardwareFault | None:
        """The first invalid entry that the bridge met since the last call."""
        error = self.registers.read32(CIA_ERR)
        if not error & INVALID_ENTRY:
            return None
        fault = HardwareFault(self.registers.read32(PCI_ERR1))
        self.registers.write32(CIA_ERR, ALL_ERRORS)
        return fault
