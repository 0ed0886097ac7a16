"""The sun4m IOMMU, as its software sees it. Registers and entries: `busdma.sim.iommu.sun4m`'s sources."""

from __future__ import annotations

from typing import Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.table import LinearTable, check_table

CTRL, BASE, TLBFLUSH, PGFLUSH, AFSR, AFAR = 0x00, 0x04, 0x14, 0x18, 0x1000, 0x1004
ENABLED: Final = 0x01  #: CTRL
ERROR, READ, ADDRESS_VALID = 1 << 31, 1 << 18, 1 << 17  # AFSR
CACHEABLE, WRITABLE, VALID = 0x80, 0x4, 0x2  # entry
SMALLEST, LARGEST = 16 << 20, 2 << 30
TOP: Final = 1 << 32
TABLES: Final = 1 << 31  #: the table lies below: BASE has bits 30:14 of its address
ONE_BY_ONE: Final = 16  #: so many pages are flushed one by one, more all at once: the TLB has no more entries


class Sun4mTable(LinearTable):
    """DVMA in the top `size` bytes of the 32-bit space: a power of two from 16 MiB to 2 GiB.

    `table`: 4 bytes for each 4 KiB of it, at physical address `table_address`, a multiple of its size and below 2 GiB.
    """

    name = "iommu"
    page_size = 4096
    order = ">I"
    reach = AddressSet.span(0, (1 << 36) - 1)

    def __init__(
        self, registers: MmioRegisters, table: memoryview, table_address: int, *, size: int = 64 << 20
    ) -> None:
        if not SMALLEST <= size <= LARGEST or size & (size - 1):
            raise ConfigurationError(f"iommu: {size:#x} bytes of DVMA: give a power of two from 16 MiB to 2 GiB")
        bytes_of_table = size // self.page_size * 4
        check_table(self.name, table, table_address, bytes_of_table, bytes_of_table)
        if table_address >= TABLES:
            raise ConfigurationError(
                f"iommu: a table at {table_address:#x}: put it below {TABLES:#x}, where BASE reaches"
            )
        super().__init__(registers, table, TOP - size)
        registers.write32(BASE, table_address >> 4)
        registers.write32(CTRL, (size // SMALLEST).bit_length() - 1 << 2 | ENABLED)
        registers.write32(TLBFLUSH, 0)
        registers.write32(AFSR, 0)
        registers.barrier()

    def entry(self, frame: int, direction: Direction) -> int:
        """Address bits 35:12 in bits 31:8. What can be written can be read too."""
        return frame >> 4 | CACHEABLE | VALID | (0 if direction is Direction.TO_DEVICE else WRITABLE)

    def flush(self, address: int, pages: int) -> None:
        """As `busdma.mechanisms.translation.Translator.flush`."""
        self._index(address, pages)
        if pages > ONE_BY_ONE:
            self.registers.write32(TLBFLUSH, 0)
        else:
            for page in range(address, address + pages * self.page_size, self.page_size):
                self.registers.write32(PGFLUSH, page)
        self.registers.barrier()

    def take_fault(self) -> HardwareFault | None:
        """The first access that the IOMMU refused since the last call."""
        status = self.registers.read32(AFSR)
        if not (status & ERROR and status & ADDRESS_VALID):
            return None
        fault = HardwareFault(self.registers.read32(AFAR), write=not status & READ)
        self.registers.write32(AFSR, 0)
        return fault
