"""The DMA side of the 21172 (CIA), the bridge between PCI and memory of an Alpha: windows, and the scatter-gather map.

Four windows of PCI addresses lead to memory. In a direct window an address moves by a constant. In a scatter-gather
window it is looked up, page by page, in a table in memory; the bridge keeps what it found, four entries at a time,
until it needs the room or software writes TBIA. Reads go on past the end of a burst: the bridge fetches ahead, also
into the next page, and if there is no valid entry for that, the burst breaks.

Registers are 32 bits wide. Offsets are from 0x87.4000.0000, the first address of the bridge's registers.

=====================  ===========  ===============================================================================
register               offset       bits
=====================  ===========  ===============================================================================
CIA_ERR                0x8200       31 an error is held, 9 invalid entry, 25 another one was lost; write 1 to clear
PCI_ERR1               0x8840       the PCI address of the error that is held
TBIA                   0x2000_0100  write 2 or 3: forget all entries
Wn_BASE                +0x100n      31:20 base, 1 scatter-gather, 0 enabled; n from 0 to 3, from 0x2000_0400 on
Wn_MASK                +0x100n      31:20 address bits that are not compared; from 0x2000_0440 on
Tn_BASE                +0x100n      31:8 bits 33:10 of where memory, or the table, begins; from 0x2000_0480 on
=====================  ===========  ===============================================================================

An entry is 8 bytes, little-endian: bit 0 valid, bits 21:1 the page frame's address bits 33:13.

Source: Digital, AlphaPC 164 Motherboard Technical Reference Manual (CIA), A.4.2 to A.4.3.1 (windows, table, TLB), and
AlphaPC 164UX Technical Reference Manual, A.14, A.15 (entries; hit and miss). How far it fetches ahead is the 256 bytes
that NetBSD counts with. What it does not model: locked entries, 64-bit (DAC) addresses, errors of the CPU's side.
"""

from __future__ import annotations

from typing import Final

from busdma.sim.iommu.translation import Fault, FaultLog, Iotlb, Translation, table_entry

PAGE: Final = 8192
WINDOWS: Final = 4
TAGS: Final = 8  #: entries of the TLB, each for GROUP pages
GROUP: Final = 4
PREFETCH: Final = 256
TOP: Final = 1 << 32

CIA_ERR, PCI_ERR1, TBIA = 0x8200, 0x8840, 0x2000_0100
W_BASE, W_MASK, T_BASE = 0x2000_0400, 0x2000_0440, 0x2000_0480  #: of window 0
STRIDE: Final = 0x100  #: from one window's registers to the next one's
ENABLED, SCATTER = 0x1, 0x2  # Wn_BASE
HELD, INVALID_ENTRY, LOST = 1 << 31, 1 << 9, 1 << 25  # CIA_ERR
FORGET_UNLOCKED: Final = 0x2  #: TBIA: nothing is ever locked, so 2 and 3 mean the same

_HIGH: Final = 0xFFF0_0000  # 31:20
_WRITABLE: Final = {W_BASE: _HIGH | ENABLED | SCATTER, W_MASK: _HIGH, T_BASE: 0xFFFF_FF00}
_ONES: Final = 0xFFFF_FFFF


class CiaBridge(Translation):
    """The bridge at power-on, with all windows closed. `memory` is all of it, from physical address 0 on."""

    name = "cia"
    room = 0x2000_0800

    def __init__(self, memory: memoryview) -> None:
        self.faults = FaultLog()
        self.tlb: Iotlb[int, tuple[int, ...]] = Iotlb(TAGS)  #: by PCI address bits 31:15
        self._memory = memory
        self._windows = dict.fromkeys((at + n * STRIDE for at in _WRITABLE for n in range(WINDOWS)), 0)
        self._error = self._error_address = 0

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """As `busdma.sim.bus.registers.Chip.read`."""
        if size != 4:
            return (1 << 8 * size) - 1
        if offset == CIA_ERR:
            return self._error
        if offset == PCI_ERR1:
            return self._error_address
        return self._windows.get(offset, _ONES)

    def write(self, offset: int, size: int, value: int) -> None:
        """As `busdma.sim.bus.registers.Chip.write`."""
        if size != 4:
            return
        if offset == CIA_ERR:
            self._error &= ~value
        elif offset == TBIA:
            if value & FORGET_UNLOCKED:
                self.tlb.clear()
        elif offset in self._windows:
            self._windows[offset] = value & _WRITABLE[W_BASE + (offset - W_BASE) % STRIDE]

    # -- translation --------------------------------------------------------------------------------------------------

    def span(self, master: str, address: int, length: int, write: bool) -> tuple[int | None, int]:
        """As `busdma.sim.iommu.translation.Translation.span`."""
        found = self._window(address)
        if found is None:
            self.faults.record(Fault(master, address, write, "no window"))
            return None, length
        base, mask, target, scatter = found
        run = min(length, mask + 1 - (address & mask))
        if not scatter:
            return (target & ~mask) | (address & mask), run
        run = min(run, PAGE - address % PAGE)
        frame = self._frame(address, mask, target)
        if frame is None:
            self._fail(master, address, write, "no valid entry")
            return None, run
        ahead = address + length - 1 + PREFETCH
        if not write and run == length and ahead // PAGE != address // PAGE and ahead <= base + mask:
            following = address - address % PAGE + PAGE
            if self._frame(following, mask, target) is None:
                self._fail(master, following, write, "no valid entry to fetch ahead from")
                return None, run
        return frame + address % PAGE, run

    def _window(self, address: int) -> tuple[int, int, int, bool] | None:
        """(base, mask, translated base, scatter-gather) of the window that claims the address."""
        if 0 <= address < TOP:
            windows = self._windows
            for at in range(0, WINDOWS * STRIDE, STRIDE):
                base = windows[W_BASE + at]
                mask = windows[W_MASK + at] | ~_HIGH & _ONES
                if base & ENABLED and not (address ^ base) & ~mask:
                    return base & ~mask, mask, windows[T_BASE + at] << 2, bool(base & SCATTER)
        return None

    def _frame(self, address: int, mask: int, target: int) -> int | None:
        """The page frame of a scatter-gather address. An invalid entry is never a hit (A.15.1)."""
        tag, which = address // (GROUP * PAGE), address // PAGE % GROUP
        table = target & ~(mask // PAGE * 8 | 7)  # it is aligned to its size: base and index are concatenated
        first = table | (address & mask) // (GROUP * PAGE) * (GROUP * 8)
        group = self.tlb.get(tag)
        if group is None or not group[which] & 1:
            group = tuple(self._entry(first + 8 * n) for n in range(GROUP))
            if not group[which] & 1:
                return None
            self.tlb.put(tag, group)
        elif self.tlb.stale is not None and group[which] != self._entry(first + 8 * which):
            self.tlb.stale()
        return (group[which] >> 1 & 0x1F_FFFF) * PAGE

    def _entry(self, at: int) -> int:
        return table_entry(self._memory, at, 8, "little") or 0

    def _fail(self, master: str, address: int, write: bool, reason: str) -> None:
        self.faults.record(Fault(master, address, write, reason))
        if self._error & HELD:
            self._error |= LOST
        else:
            self._error |= HELD | INVALID_ENTRY
            self._error_address = address
