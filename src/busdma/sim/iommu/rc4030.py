"""The address translation of the RC4030, the DMA controller of MIPS "Jazz" machines such as the Magnum.

Devices give logical addresses from 0 on. A table in memory has the page frame of each logical page; a limit says how
long it is. There are no rights, and no valid bits. What the controller found it keeps until it needs the room or
software writes the invalidate register.

Registers are 32 bits wide, 8 bytes apart, little-endian. The channels' registers are not here.

===============  ======  ===========================================================================
register         offset  bits
===============  ======  ===========================================================================
INVALID_ADDRESS  0x10    the logical address that was refused last
TABLE_BASE       0x18    31:12 the table's physical address
TABLE_LIMIT      0x20    bytes of the table
INVALIDATE       0x28    write: forget everything
===============  ======  ===========================================================================

An entry is 8 bytes, little-endian also on big-endian machines: the page frame's physical address, and a spare word that
belongs to software.

Source: QEMU, hw/dma/rc4030.c, for the registers; NetBSD, arch/arc, jazzdmatlb (the software's side); there is no public
data sheet. What they leave open, and what this model does: the controller keeps 8 entries; an entry of 0 leads nowhere,
since the page at 0 has the exception vectors (in QEMU it leads there).
"""

from __future__ import annotations

from typing import Final

from busdma.sim.iommu.translation import Fault, FaultLog, Iotlb, Translation, table_entry

PAGE: Final = 4096
ENTRY: Final = 8
ENTRIES: Final = 8  #: of the TLB

INVALID_ADDRESS, TABLE_BASE, TABLE_LIMIT, INVALIDATE = 0x10, 0x18, 0x20, 0x28


class Rc4030(Translation):
    """The controller after reset. `memory` is all of it, from physical address 0 on; `seed` draws what it evicts."""

    name = "rc4030"
    room = 0x4000

    def __init__(self, memory: memoryview, *, seed: int = 1) -> None:
        self.faults = FaultLog()
        self.tlb: Iotlb[int, int] = Iotlb(ENTRIES, seed)  #: page frames by logical page number
        self._memory = memory
        self._registers = {INVALID_ADDRESS: 0, TABLE_BASE: 0, TABLE_LIMIT: 0}

    def read(self, offset: int, size: int) -> int:
        """As `busdma.sim.bus.registers.Chip.read`."""
        ones = (1 << 8 * size) - 1
        return self._registers.get(offset, ones) if size == 4 else ones

    def write(self, offset: int, size: int, value: int) -> None:
        """As `busdma.sim.bus.registers.Chip.write`."""
        if size != 4:
            return
        if offset == TABLE_BASE:
            self._registers[TABLE_BASE] = value & -PAGE
        elif offset == TABLE_LIMIT:
            self._registers[TABLE_LIMIT] = value
        elif offset == INVALIDATE:
            self.tlb.clear()

    def span(self, master: str, address: int, length: int, write: bool) -> tuple[int | None, int]:
        """As `busdma.sim.iommu.translation.Translation.span`."""
        page, offset = divmod(address, PAGE)
        if address < 0 or (page + 1) * ENTRY > self._registers[TABLE_LIMIT]:
            self._fail(master, address, write, "beyond the table's limit")
            return None, length if address >= 0 else min(length, -address)
        run = min(length, PAGE - offset)
        frame = self.tlb.get(page)
        if frame is None:
            frame = self._entry(page)
            if frame < PAGE:
                self._fail(master, address, write, "no entry")
                return None, run
            self.tlb.put(page, frame)
        elif self.tlb.stale is not None and frame != self._entry(page):
            self.tlb.stale()
        return frame // PAGE * PAGE + offset, run

    def _entry(self, page: int) -> int:
        return table_entry(self._memory, self._registers[TABLE_BASE] + page * ENTRY, 4, "little") or 0

    def _fail(self, master: str, address: int, write: bool, reason: str) -> None:
        self.faults.record(Fault(master, address, write, reason))
        self._registers[INVALID_ADDRESS] = address & 0xFFFF_FFFF
