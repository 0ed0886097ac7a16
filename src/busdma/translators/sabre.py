"""The IOMMU of the UltraSPARC-IIi ("sabre"), as its software sees it.

Source: Sun, UltraSPARC-IIi User's Manual (805-0087), 19.3.2 (IOMMU registers) and Table 6-6 (where they are). Offsets
are from 0x1FE.0000.0000; every access has 64 bits.
"""

from __future__ import annotations

from typing import Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction
from busdma.translators.table import LinearTable, check_table

CONTROL, TSB_BASE, FLUSH, TARGETS = 0x200, 0x208, 0x210, 0x2028
ENABLED: Final = 0x1  #: CONTROL; pages of 8 KiB
TSB_SIZE: Final = 16  #: bit of CONTROL
VALID, CACHEABLE, WRITABLE = 1 << 63, 1 << 4, 1 << 1  # entry
SMALLEST, LARGEST = 8 << 20, 1 << 30
TARGET: Final = 1 << 29  #: bytes: for so much of PCI's addresses each bit of TARGETS says whether they are DVMA
TOP: Final = 1 << 32
PAGE: Final = 8192


class SabreTsb(LinearTable):
    """DVMA at the `size` bytes of PCI addresses from `base` on: a power of two from 8 MiB to 1 GiB, naturally aligned.

    `table` (the TSB): 8 bytes for each 8 KiB of it, at physical address `table_address`, a multiple of 8 KiB. PCI
    addresses are taken for DVMA in steps of 512 MiB, and of those only as many bits are looked at as the table has
    entries for: an address beyond `size` is answered by the entry that is in the same place.
    """

    name = "iommu"
    page_size = PAGE
    order = ">Q"
    reach = AddressSet.span(0, (1 << 41) - 1)

    def __init__(
        self,
        registers: MmioRegisters,
        table: memoryview,
        table_address: int,
        *,
        base: int = 0xC000_0000,
        size: int = 64 << 20,
    ) -> None:
        if not SMALLEST <= size <= LARGEST or size & (size - 1) or base % size or not 0 <= base <= TOP - size:
            raise ConfigurationError(
                f"iommu: {size:#x} bytes of DVMA from {base:#x} on: give a power of two from 8 MiB to 1 GiB, and a "
                "multiple of it within 32 bits"
            )
        check_table(self.name, table, table_address, size // PAGE * 8, PAGE)
        super().__init__(registers, table, base)
        registers.write64(CONTROL, 0)
        registers.write64(TSB_BASE, table_address)
        registers.write64(TARGETS, sum(1 << n for n in range(base // TARGET, (base + size - 1) // TARGET + 1)))
        registers.write64(CONTROL, (size // SMALLEST).bit_length() - 1 << TSB_SIZE | ENABLED)
        self.flush(base, self._pages)

    def entry(self, frame: int, direction: Direction) -> int:
        """Address bits 40:13, where they are. What can be written can be read too."""
        return frame | VALID | CACHEABLE | (0 if direction is Direction.TO_DEVICE else WRITABLE)

    def flush(self, address: int, pages: int) -> None:
        """As `busdma.mechanisms.translation.Translator.flush`: the IOMMU forgets one page at a time."""
        self._index(address, pages)
        for page in range(address, address + pages * PAGE, PAGE):
            self.registers.write64(FLUSH, page)
        self.registers.barrier()
