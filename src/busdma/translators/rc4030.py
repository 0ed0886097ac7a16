"""The RC4030's translation table, as its software sees it. Registers and entries: see `busdma.sim.iommu.rc4030`."""

from __future__ import annotations

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction
from busdma.translators.table import LinearTable, check_table

TABLE_BASE, TABLE_LIMIT, INVALIDATE = 0x18, 0x20, 0x28


class Rc4030Table(LinearTable):
    """Logical addresses from 0 on, 4 KiB for every 8 bytes of `table`, which is at physical address `table_address`.

    There are no rights: every device reads and writes what is mapped for any. No entry is invalid either: one that is
    cleared names the page frame at 0, which must therefore be nobody's.
    """

    name = "rc4030"
    page_size = 4096
    order = "<Q"  # the frame, and the spare word as 0
    reach = AddressSet.span(4096, (1 << 32) - 1)

    def __init__(self, registers: MmioRegisters, table: memoryview, table_address: int) -> None:
        if not len(table) or len(table) % 8:
            raise ConfigurationError(f"rc4030: a table of {len(table)} bytes: give a multiple of 8")
        check_table(self.name, table, table_address, len(table), self.page_size)
        super().__init__(registers, table, 0)
        registers.write32(TABLE_BASE, table_address)
        registers.write32(TABLE_LIMIT, len(table))
        self.flush(0, self._pages)

    def entry(self, frame: int, direction: Direction) -> int:
        """The frame's address."""
        return frame

    def flush(self, address: int, pages: int) -> None:
        """As `busdma.mechanisms.translation.Translator.flush`: the controller can only forget everything."""
        self.registers.write32(INVALIDATE, 0)
        self.registers.barrier()
