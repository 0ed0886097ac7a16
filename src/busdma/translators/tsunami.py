"""The windows and the scatter-gather map of the 21272 (Tsunami, Typhoon), as its software sees them.

Source: Compaq, Tsunami/Typhoon 21272 Chipset Hardware Reference Manual, 10.1.4 (windows; table 10-6: where an entry is;
10.1.4.4: the monster window) and 10.2 (registers). Offsets are from 0x801.8000.0000, the first address of Pchip 0's
registers, which take accesses of 64 bits only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from busdma.addresses import AddressSet
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction
from busdma.translators.table import LinearTable, check_table
from busdma.translators.windows import ENABLED, GRAIN, PAGE, SCATTER, check_window

WSBA, WSM, TBA = 0x000, 0x100, 0x200  #: of window 0
STRIDE: Final = 0x40
PCTL, TLBIV, TLBIA = 0x300, 0x480, 0x4C0
MONSTER: Final = 0x40  #: PCTL
VALID: Final = 1  #: entry
TABLE_GRAIN: Final = 32768
BLOCK: Final = 64 << 10  #: bytes of PCI addresses that one TLBIV forgets
ONE_BY_ONE: Final = 4  #: so many blocks are forgotten one by one, more all at once

MONSTER_BASE, MONSTER_SIZE = 1 << 40, 1 << 35


def open_window(registers: MmioRegisters, number: int, base: int, size: int, target: int, flags: int = 0) -> None:
    """Have window `number` (0 to 3) lead from PCI address `base` to `target`: a physical address, or with SCATTER the
    table's. `size` is a power of two from 1 MiB to 4 GiB, and `base` and `target` are multiples of what they must be.

    ConfigurationError if they are not.
    """
    check_window("pchip", number, base, size, target, flags)
    at = number * STRIDE
    registers.write64(WSBA + at, 0)
    registers.write64(WSM + at, size - GRAIN)
    registers.write64(TBA + at, target)
    registers.write64(WSBA + at, base | flags | ENABLED)
    registers.barrier()


def open_monster(registers: MmioRegisters) -> None:
    """Have the 32 GiB of PCI addresses from MONSTER_BASE on lead to memory: for devices with 64 address lines."""
    registers.write64(PCTL, registers.read64(PCTL) | MONSTER)
    registers.barrier()


class PchipSgmap(LinearTable):
    """The scatter-gather map behind window `number`, `size` bytes of PCI addresses from `base` on.

    `table`: 8 bytes for each 8 KiB of it, at physical address `table_address`, a multiple of its size and of 32 KiB.
    """

    name = "sgmap"
    page_size = PAGE
    order = "<Q"
    reach = AddressSet.span(0, (1 << 34) - 1)
    prefetch = 256  # what NetBSD counts with on this bridge: the manual gives no number

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
        entries = size // PAGE * 8
        check_table(self.name, table, table_address, entries, max(entries, TABLE_GRAIN))  # as NetBSD aligns it
        super().__init__(registers, table, base)
        open_window(registers, number, base, size, table_address, SCATTER)
        self._forget_all()

    def entry(self, frame: int, direction: Direction) -> int:
        """Address bits 33:13 in bits 21:1, and valid. There are no rights."""
        return frame >> 12 | VALID

    def enter(self, address: int, frames: Sequence[int], direction: Direction) -> None:
        """As `LinearTable.enter`. The TLB has entries with their neighbours, valid or not: it forgets them."""
        super().enter(address, frames, direction)
        self.flush(address, len(frames))

    def flush(self, address: int, pages: int) -> None:
        """As `busdma.mechanisms.translation.Translator.flush`."""
        self._index(address, pages)
        first, last = address // BLOCK, (address + pages * PAGE - 1) // BLOCK
        if last - first >= ONE_BY_ONE:
            self._forget_all()
            return
        for block in range(first, last + 1):
            self.registers.write64(TLBIV, block << 4)  # address bits 31:16 in bits 19:4
        self.registers.barrier()

    def _forget_all(self) -> None:
        self.registers.write64(TLBIA, 0)
        self.registers.barrier()
