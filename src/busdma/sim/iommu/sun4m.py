"""The sun4m IOMMU: between SBus and memory of a SPARCstation, where every DMA address is virtual (DVMA).

It translates the top of the 32-bit space, from 16 MiB to 2 GiB of it, through one table in memory. What it found it
keeps until it needs the room or software flushes: one page, or everything.

Registers are 32 bits wide, big-endian.

==========  =======  ==========================================================================================
register    offset   bits
==========  =======  ==========================================================================================
CTRL        0x0000   31:24 implementation and version (read-only), 4:2 range: 16 MiB << n, 0 enabled
BASE        0x0004   26:10 bits 30:14 of the table's physical address
TLBFLUSH    0x0014   write: forget everything
PGFLUSH     0x0018   write an address: forget its page
AFSR        0x1000   31 error, 30 late error, 19 more than one, 18 it was a read, 17 AFAR is valid
AFAR        0x1004   the address of the first error
==========  =======  ==========================================================================================

An entry is 4 bytes, big-endian: bits 31:8 the page frame's address bits 35:12, 7 cacheable, 2 writable, 1 valid. What
is valid can be read.

Source: Sun, Sun-4M System Architecture 2.0 (IOMMU registers and IOPTE); microSPARC-II User's Manual, IOMMU chapter
(16 entries in its TLB). What they leave open, and what this model does: while it is not enabled, nobody answers; AFAR
has the first byte that went nowhere; any write to AFSR replaces what it says. It raises no interrupt.
"""

from __future__ import annotations

from typing import Final

from busdma.sim.iommu.translation import Fault, FaultLog, Iotlb, Translation, table_entry

PAGE: Final = 4096
ENTRY: Final = 4
ENTRIES: Final = 16  #: of the TLB
TOP: Final = 1 << 32
SMALLEST: Final = 16 << 20  #: range 0

CTRL, BASE, TLBFLUSH, PGFLUSH, AFSR, AFAR = 0x00, 0x04, 0x14, 0x18, 0x1000, 0x1004
VERSION: Final = 0x0400_0000
ENABLED, RANGE = 0x01, 0x1C  # CTRL
BASE_BITS: Final = 0x07FF_FC00
ERROR, LATE, MULTIPLE, READ, ADDRESS_VALID = 1 << 31, 1 << 30, 1 << 19, 1 << 18, 1 << 17  # AFSR
AFSR_BITS, AFSR_ALWAYS = 0xFF0F_FFFF, 0x0080_0000
WRITABLE, VALID = 0x4, 0x2  # entry


class Sun4mIommu(Translation):
    """The IOMMU after reset. `memory` is all of it, from physical address 0 on; `seed` draws what its TLB evicts."""

    name = "iommu"
    room = 0x3000

    def __init__(self, memory: memoryview, *, seed: int = 1) -> None:
        self.faults = FaultLog()
        self.tlb: Iotlb[int, int] = Iotlb(ENTRIES, seed)  #: entries by page number
        self._memory = memory
        self._registers = {CTRL: VERSION, BASE: 0, AFSR: AFSR_ALWAYS, AFAR: 0}

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """As `busdma.sim.bus.registers.Chip.read`."""
        ones = (1 << 8 * size) - 1
        return self._registers.get(offset, ones) if size == 4 else ones

    def write(self, offset: int, size: int, value: int) -> None:
        """As `busdma.sim.bus.registers.Chip.write`."""
        if size != 4:
            return
        match offset:
            case 0x00:  # CTRL
                self._registers[CTRL] = VERSION | value & (RANGE | ENABLED)
            case 0x04:  # BASE
                self._registers[BASE] = value & BASE_BITS
            case 0x14:  # TLBFLUSH
                self.tlb.clear()
            case 0x18:  # PGFLUSH
                self.tlb.drop(value // PAGE)
            case 0x1000:  # AFSR
                self._registers[AFSR] = value & AFSR_BITS | AFSR_ALWAYS
            case 0x1004:  # AFAR
                self._registers[AFAR] = value

    # -- translation --------------------------------------------------------------------------------------------------

    def span(self, master: str, address: int, length: int, write: bool) -> tuple[int | None, int]:
        """As `busdma.sim.iommu.translation.Translation.span`."""
        size = SMALLEST << (self._registers[CTRL] >> 2 & 7)
        if not self._registers[CTRL] & ENABLED:
            self._fail(master, address, write, "the IOMMU is not enabled")
            return None, length
        if address >= TOP or address < 0:
            self._fail(master, address, write, "no 32-bit address")
            return None, length
        run = min(length, PAGE - address % PAGE)
        if address < TOP - size:
            self._fail(master, address, write, "below the range")
            return None, run
        page = address // PAGE
        entry = self.tlb.get(page)
        if entry is None:
            entry = self._entry(page - (TOP - size) // PAGE)
            if not entry & VALID:
                self._fail(master, address, write, "no valid entry")
                return None, run
            self.tlb.put(page, entry)
        elif self.tlb.stale is not None and entry != self._entry(page - (TOP - size) // PAGE):
            self.tlb.stale()
        if write and not entry & WRITABLE:
            self._fail(master, address, write, "the entry is not writable")
            return None, run
        return (entry >> 8) * PAGE + address % PAGE, run

    def _entry(self, index: int) -> int:
        return table_entry(self._memory, (self._registers[BASE] << 4) + index * ENTRY, ENTRY, "big") or 0

    def _fail(self, master: str, address: int, write: bool, reason: str) -> None:
        self.faults.record(Fault(master, address, write, reason))
        registers = self._registers
        if registers[AFSR] & ERROR:
            registers[AFSR] |= MULTIPLE
        else:
            registers[AFSR] = ERROR | LATE | ADDRESS_VALID | AFSR_ALWAYS | (0 if write else READ)
            registers[AFAR] = address & (TOP - 1)
