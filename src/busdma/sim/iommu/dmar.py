"""An IOMMU for the PC in the manner of Intel's VT-d: a page table for every device, in memory.

The source of a request (bus, device, function) chooses a root entry, a context entry, and by that a domain: a number
and a page table of three or four levels with rights to read and to write at each. What the unit found it keeps until it
needs the room or software invalidates it: contexts by source, and pages by domain.
Requests to 0xFEE0_0000..0xFEEF_FFFF are interrupts and never reach memory: writes of 32 bits pass untranslated, all
else is refused.

Registers are little-endian, and 64 bits wide where two offsets are given; each half can be accessed by itself.

============  ==================  ======================================================================================
register      offset              what is here of it
============  ==================  ======================================================================================
VER           0x00                1.0
CAP           0x08, 0x0C          16-bit domains, 39 and 48 address bits, where FRCD is, pages can be invalidated
ECAP          0x10, 0x14          walks are coherent, IVA is at 0xF0; no queue, no pass-through, no interrupt remapping
GCMD, GSTS    0x18, 0x1C          31 translation enabled, 30 root table set
RTADDR        0x20, 0x24          63:12 the root table; taken over by GCMD bit 30
CCMD          0x28, 0x2C          63 invalidate contexts, 62:61 all, of a domain, or of a source; 60:59 what was done
FSTS          0x34                15:8 the first record, 1 there are records, 0 some were lost (write 1 to clear)
FECTL         0x38                31 masked; a fault raises no interrupt here
IVA, IOTLB    0xF0..0xFF          address and its mask (power of two pages); 63 invalidate, 61:60 all, domain, pages
FRCD          0x220, 16 apart     63:12 address; 127 valid (write 1 to clear), 126 read, 103:96 reason, 79:64 source
============  ==================  ======================================================================================

Source: Intel, Virtualization Technology for Directed I/O, Architecture Specification, revision 2.x: 3.4 (root, context,
domains), 3.7 (second level), 3.14 (interrupt range), 6.2, 6.5.1 (caches, register-based invalidation), 7.3 (faults),
9.1, 9.3, 9.8 (entries), 10.4 (registers). What it leaves open, and what this model does: large pages are reserved; an
entry without the right is kept like any other; after a fault the rest of the page goes nowhere as well.
"""

from __future__ import annotations

from typing import Final

from busdma.sim.iommu.translation import Fault, FaultLog, Iotlb, Onward, TranslatedRoute, Translation, table_entry

PAGE: Final = 4096
ENTRIES: Final = 64  #: pages kept
CONTEXTS: Final = 16  #: contexts kept
RECORDS: Final = 4
LARGEST_MASK: Final = 9  #: MAMV: at most 2**9 pages are invalidated at a time
WIDTHS: Final = {1: 3, 2: 4}  #: context entry's address width to levels of its table
INTERRUPTS: Final = range(0xFEE0_0000, 0xFEF0_0000)
MESSAGE: Final = 4  #: bytes of an interrupt request

VER, CAP, ECAP, GCMD, GSTS, RTADDR, CCMD, FSTS, FECTL = 0x00, 0x08, 0x10, 0x18, 0x1C, 0x20, 0x28, 0x34, 0x38
IVA, IOTLB, FRCD = 0xF0, 0xF8, 0x220
ENABLE, SET_ROOT = 1 << 31, 1 << 30  # GCMD, GSTS
PENDING, OVERFLOW = 0x2, 0x1  # FSTS
INVALIDATE: Final = 1 << 63  #: CCMD, IOTLB
ALL, DOMAIN, ONE = 1, 2, 3  # what to invalidate: bits 62:61 of CCMD, 61:60 of IOTLB
RECORDED, WAS_READ = 1 << 63, 1 << 62  # upper half of FRCD
READ, WRITE, LARGE = 0x1, 0x2, 0x80  # page-table entry

CAP_VALUE: Final = (
    LARGEST_MASK << 48
    | (RECORDS - 1) << 40
    | 1 << 39
    | FRCD // 16 << 24
    | 47 << 16
    | 0b110 << 8
    | 6  # PSI, MGAW, SAGAW
)
ECAP_VALUE: Final = IVA // 16 << 8 | 1

#: 7.3.1: reason codes
NO_ROOT, NO_CONTEXT, BAD_CONTEXT, BEYOND_WIDTH, NO_WRITE, NO_READ, BAD_TABLE, BAD_ROOT, BAD_CONTEXT_TABLE = range(1, 10)
RESERVED_BITS, BAD_TYPE = 0xC, 0xD
REASONS: Final = {
    NO_ROOT: "no root entry for the bus",
    NO_CONTEXT: "no context entry for the device",
    BAD_CONTEXT: "the context entry is invalid",
    BEYOND_WIDTH: "the address is beyond the domain's width",
    NO_WRITE: "no right to write",
    NO_READ: "no right to read",
    BAD_TABLE: "a page table is not in memory",
    BAD_ROOT: "the root table is not in memory",
    BAD_CONTEXT_TABLE: "the context table is not in memory",
    RESERVED_BITS: "reserved bits in a page-table entry",
    BAD_TYPE: "a translation type that the unit does not have",
}

_FRAME: Final = 0x000F_FFFF_FFFF_F000  # 51:12


class _Refused(Exception):
    """A walk that ended in a fault."""

    def __init__(self, code: int) -> None:
        self.code = code


class DmaRemapping:
    """The unit at power-on: it translates nothing yet. `memory` is all of it, from physical address 0 on."""

    name = "dmar"
    room = 0x1000

    def __init__(self, memory: memoryview, *, entries: int = ENTRIES, seed: int = 1) -> None:
        self.faults = FaultLog()
        self.tlb: Iotlb[tuple[int, int], tuple[int, int]] = Iotlb(entries, seed)  #: (domain, page) to (frame, rights)
        self.contexts: Iotlb[int, tuple[int, int, int]] = Iotlb(CONTEXTS, seed)  #: source to (domain, table, levels)
        self._memory = memory
        self._registers = bytearray(self.room)
        self._root = 0
        self._next = 0  # the record for the next fault
        self._poke(VER, 4, 0x10)
        self._poke(CAP, 8, CAP_VALUE)
        self._poke(ECAP, 8, ECAP_VALUE)
        self._poke(FECTL, 4, 1 << 31)

    def route(self, master: str, source: int, onward: Onward | None = None) -> TranslatedRoute:
        """The way of a master whose requests carry the id `source`: bus << 8 | device << 3 | function.

        Requests from behind a conventional PCI bridge all carry the bridge's (3.4.1).
        """
        return _Requester(self, source).route(master, onward)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """As `busdma.sim.bus.registers.Chip.read`: 32 or 64 bits."""
        if size < 4:
            return (1 << 8 * size) - 1
        return self._peek(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """As `busdma.sim.bus.registers.Chip.write`. Commands are done when it returns."""
        if size < 4:
            return
        for at in range(offset, offset + size, 4):
            self._write32(at, value >> 8 * (at - offset) & 0xFFFF_FFFF)

    def _write32(self, offset: int, value: int) -> None:
        if offset == GCMD:
            if value & SET_ROOT:
                self._root = self._peek(RTADDR, 8)
            status = self._peek(GSTS, 4) & SET_ROOT | value & (SET_ROOT | ENABLE)
            self._poke(GSTS, 4, status)
        elif offset in (RTADDR, RTADDR + 4):
            self._poke(offset, 4, value & _FRAME >> 8 * (offset - RTADDR) & 0xFFFF_FFFF)
        elif offset == FSTS:
            if value & OVERFLOW:
                self._poke(FSTS, 4, 0)
        elif offset == FECTL:
            self._poke(FECTL, 4, value & 1 << 31)
        elif offset in (CCMD, CCMD + 4, IVA, IVA + 4, IOTLB, IOTLB + 4):
            self._poke(offset, 4, value)
            if offset == CCMD + 4 and value >> 31:
                self._invalidate_contexts()
            elif offset == IOTLB + 4 and value >> 31:
                self._invalidate_pages()
        elif offset in range(FRCD + 12, FRCD + 16 * RECORDS, 16) and value >> 31:
            self._poke(offset, 4, self._peek(offset, 4) & ~(1 << 31))
        if offset == FSTS or offset >= FRCD:
            self._update_status()

    def _invalidate_contexts(self) -> None:
        command = self._peek(CCMD, 8)
        what = command >> 61 & 3
        if what == DOMAIN:
            domain = command & 0xFFFF
            self.contexts.drop_if(lambda _, context: context[0] == domain)
        elif what == ONE:
            ignored = (1 << (command >> 32 & 3)) - 1  # FM: so many bits of the function do not count
            self.contexts.drop_if(lambda source, _: not (source ^ command >> 16) & 0xFFFF & ~ignored)
        else:
            self.contexts.clear()
        self._poke(CCMD, 8, command & ~(INVALIDATE | 3 << 59) | (what or ALL) << 59)

    def _invalidate_pages(self) -> None:
        command, where = self._peek(IOTLB, 8), self._peek(IVA, 8)
        what, domain, mask = command >> 60 & 3, command >> 32 & 0xFFFF, where & 0x3F
        page, pages = where // PAGE, 1 << mask
        if what == ONE and (mask > LARGEST_MASK or page % pages):
            what = DOMAIN  # 6.5.1.2: it may do more than was asked for, and says so
        if what == ONE:
            self.tlb.drop_if(lambda key, _: key[0] == domain and page <= key[1] < page + pages)
        elif what == DOMAIN:
            self.tlb.drop_if(lambda key, _: key[0] == domain)
        else:
            self.tlb.clear()
        self._poke(IOTLB, 8, command & ~(INVALIDATE | 3 << 57) | (what or ALL) << 57)

    # -- translation --------------------------------------------------------------------------------------------------

    def span(self, source: int, master: str, address: int, length: int, write: bool) -> tuple[int | None, int]:
        """As `busdma.sim.iommu.translation.Translation.span`, for a request of `source`."""
        if not self._peek(GSTS, 4) & ENABLE:
            return address, length
        run = min(length, PAGE - address % PAGE)
        if address in INTERRUPTS and write and length == MESSAGE:
            return address, length  # never translated, and interrupts are not remapped here
        if address in INTERRUPTS:
            self.faults.record(Fault(master, address, write, "an interrupt request, not memory"))
            return None, run
        try:
            frame = self._translate(source, address // PAGE, WRITE if write else READ)
        except _Refused as refused:
            self.faults.record(Fault(master, address, write, REASONS[refused.code]))
            self._record(source, address, write, refused.code)
            return None, run
        return frame + address % PAGE, run

    def _translate(self, source: int, page: int, wanted: int) -> int:
        context = self.contexts.get(source)
        if context is None:
            context = self._context(source)
            self.contexts.put(source, context)
        domain, table, levels = context
        if not 0 <= page < 1 << 9 * levels:
            raise _Refused(BEYOND_WIDTH)
        found = self.tlb.get((domain, page))
        if found is None:
            found = self._walk(table, levels, page)
            if found[1]:
                self.tlb.put((domain, page), found)
        elif self.tlb.stale is not None and self._changed(found, table, levels, page):
            self.tlb.stale()
        frame, rights = found
        if not rights & wanted:
            raise _Refused(NO_WRITE if wanted == WRITE else NO_READ)
        return frame

    def _context(self, source: int) -> tuple[int, int, int]:
        root = self._entry(self._root + (source >> 8) * 16, BAD_ROOT)
        if not root & 1:
            raise _Refused(NO_ROOT)
        at = (root & _FRAME) + (source & 0xFF) * 16
        low, high = self._entry(at, BAD_CONTEXT_TABLE), self._entry(at + 8, BAD_CONTEXT_TABLE)
        if not low & 1:
            raise _Refused(NO_CONTEXT)
        if low >> 2 & 3:
            raise _Refused(BAD_TYPE)
        if high & 7 not in WIDTHS:
            raise _Refused(BAD_CONTEXT)
        return high >> 8 & 0xFFFF, low & _FRAME, WIDTHS[high & 7]

    def _walk(self, table: int, levels: int, page: int) -> tuple[int, int]:
        """(page frame, rights) by the page table. Rights must be there on every level."""
        rights = READ | WRITE
        for level in reversed(range(levels)):
            entry = self._entry(table + (page >> 9 * level & 511) * 8, BAD_TABLE)
            rights &= entry
            if not rights:
                return 0, 0
            if level and entry & LARGE:
                raise _Refused(RESERVED_BITS)
            table = entry & _FRAME
        return table, rights

    def _changed(self, found: tuple[int, int], table: int, levels: int, page: int) -> bool:
        """Would the page table give another answer than the cached one?"""
        try:
            return self._walk(table, levels, page) != found
        except _Refused:
            return True

    def _entry(self, address: int, code: int) -> int:
        entry = table_entry(self._memory, address, 8, "little")
        if entry is None:
            raise _Refused(code)
        return entry

    # -- faults -------------------------------------------------------------------------------------------------------

    def _record(self, source: int, address: int, write: bool, code: int) -> None:
        """Primary fault logging (7.3.1): a full record is never overwritten."""
        if self._peek(FSTS, 4) & OVERFLOW:
            return
        at = FRCD + 16 * self._next
        if self._peek(at + 8, 8) & RECORDED:
            self._poke(FSTS, 4, OVERFLOW)
        else:
            self._poke(at, 8, address & (1 << 64) - PAGE)
            self._poke(at + 8, 8, RECORDED | (0 if write else WAS_READ) | code << 32 | source)
            self._next = (self._next + 1) % RECORDS
        self._update_status()

    def _update_status(self) -> None:
        full = [n for n in range(RECORDS) if self._peek(FRCD + 16 * n + 8, 8) & RECORDED]
        # the oldest record follows the one that was written last
        first = min(full, key=lambda n: (n - self._next) % RECORDS, default=0)
        status = self._peek(FSTS, 4) & OVERFLOW
        self._poke(FSTS, 4, status | (PENDING | first << 8 if full else 0))

    def _peek(self, offset: int, size: int) -> int:
        return int.from_bytes(self._registers[offset : offset + size], "little")

    def _poke(self, offset: int, size: int, value: int) -> None:
        self._registers[offset : offset + size] = value.to_bytes(size, "little")


class _Requester(Translation):
    """The unit, as requests with one source id meet it."""

    def __init__(self, unit: DmaRemapping, source: int) -> None:
        self._unit = unit
        self._source = source

    def span(self, master: str, address: int, length: int, write: bool) -> tuple[int | None, int]:
        return self._unit.span(self._source, master, address, length, write)
