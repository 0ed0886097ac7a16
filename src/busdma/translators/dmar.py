"""VT-d, as its software sees it: one unit, and a domain of its own for each device.

Page tables grow as they are needed and are never given back. Every table is a page frame that the machine hands out.

Source: Intel, Virtualization Technology for Directed I/O, Architecture Specification, revision 2.x: 3.4, 6.5.1, 7.2.1,
7.3, 9.1, 9.3, 9.8, 10.4. Registers are those of `busdma.sim.iommu.dmar`; where IOTLB and FRCD are, the unit says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.pages import ENTRIES, PAGE, PageTree, TranslationUnit

CAP, ECAP, GCMD, GSTS, RTADDR, CCMD, FSTS = 0x08, 0x10, 0x18, 0x1C, 0x20, 0x28, 0x34
ENABLE, SET_ROOT = 1 << 31, 1 << 30  # GCMD, GSTS
ONE_SHOT: Final = 0x6900_0000  #: GSTS bits that must not be written back (10.4.4)
INVALIDATE: Final = 1 << 63
ALL_CONTEXTS: Final = 1 << 61  #: CCMD
ALL_PAGES, DOMAIN_PAGES, SOME_PAGES = 1 << 60, 2 << 60, 3 << 60  # IOTLB
DRAIN: Final = 3 << 48  #: IOTLB: reads and writes that are on their way
RECORDED, WAS_READ = 1 << 63, 1 << 62  # upper half of FRCD
PENDING, OVERFLOW = 0x2, 0x1  # FSTS
CLEAR_STATUS: Final = 0x7F  #: FSTS
PRESENT: Final = 1
READ, WRITE = 0x1, 0x2  # page-table entry
RIGHTS: Final = {Direction.TO_DEVICE: READ, Direction.FROM_DEVICE: WRITE, Direction.BOTH: READ | WRITE}
INTERRUPTS: Final = AddressSet.span(0xFEE0_0000, 0xFEEF_FFFF)  #: never translated


class DmarUnit(TranslationUnit):
    """The unit: its root table, and its caches. As `busdma.translators.pages.TranslationUnit`.

    DeviceFault if the unit does not answer.
    """

    name = "dmar"

    def __init__(
        self, registers: MmioRegisters, memory: memoryview, allocate: Callable[[], int], *, base: int = 0
    ) -> None:
        super().__init__(registers, memory, allocate, base)
        self._contexts: dict[int, int] = {}  # context tables by bus
        cap, ecap = registers.read64(CAP), registers.read64(ECAP)
        widths = cap >> 8 & 0x1F
        if not widths & 0b110:
            raise ConfigurationError(f"dmar: the unit has page tables of neither 3 nor 4 levels (CAP is {cap:#x})")
        self.levels: Final = 3 if widths & 0b010 else 4
        self.largest_mask: Final = cap >> 48 & 0x3F if cap >> 39 & 1 else -1  #: pages by power of two; -1: domains only
        self._iotlb = (ecap >> 8 & 0x3FF) * 16 + 8
        self._records = [(cap >> 24 & 0x3FF) * 16 + 16 * n for n in range((cap >> 40 & 0xFF) + 1)]
        self.overflows = 0  #: how often there was no room for a fault; nobody knows how many were lost
        self._root = self.new_table()
        registers.write64(RTADDR, self._root)
        self._command(SET_ROOT)
        self.flush_contexts()

    def enable(self) -> None:
        """Translate from this moment on: a device without a domain reaches nothing."""
        self._command(ENABLE)

    def domain(self, name: str, source: int, window: AddressSet | None = None) -> DmarDomain:
        """A domain for the device whose requests carry `source`: bus << 8 | device << 3 | function.

        `window`: the addresses to use of those that it can have. DriverError if the device has a domain already.
        """
        number = self.next_domain(name, source)
        bus, device = divmod(source, 256)
        if bus not in self._contexts:
            table = self._contexts[bus] = self.new_table()
            self.write(self._root + bus * 16, table | PRESENT)
        domain = DmarDomain(self, name, number, window)
        self._sources[source] = name
        at = self._contexts[bus] + device * 16
        self.write(at + 8, domain.number << 8 | self.levels - 2)
        self.write(at, domain.table | PRESENT)
        self.flush_contexts()
        return domain

    def pending(self) -> bool:
        """As `busdma.translators.pages.TranslationUnit.pending`. It reads a register: the unit says it nowhere else."""
        return bool(self.registers.read32(FSTS) & (PENDING | OVERFLOW))

    def take_fault(self) -> HardwareFault | None:
        """As `busdma.translators.pages.TranslationUnit.take_fault`. One may stand for several of its source (7.2.1)."""
        status = self.registers.read32(FSTS)
        record = self._records[(status >> 8 & 0xFF) % len(self._records)]
        high = self.registers.read64(record + 8)
        if not high & RECORDED:
            self.overflows += status & OVERFLOW
            self.registers.write32(FSTS, CLEAR_STATUS)
            return None
        address = self.registers.read64(record) & -PAGE
        self.registers.write64(record + 8, RECORDED)
        return HardwareFault(address, not high & WAS_READ, high & 0xFFFF, high >> 32 & 0xFF)

    # -- for the domains ----------------------------------------------------------------------------------------------

    def flush_contexts(self) -> None:
        """Have the unit forget all contexts, and then all pages: it may have found them by the old ones (6.5.1)."""
        self.registers.barrier()
        self.registers.write64(CCMD, INVALIDATE | ALL_CONTEXTS)
        self.until(lambda: not self.registers.read64(CCMD) & INVALIDATE, "CCMD")
        self.flush_pages(ALL_PAGES)

    def flush_pages(self, what: int, domain: int = 0, address: int = 0) -> None:
        """Have the unit forget pages. `address`: with the mask of SOME_PAGES in its lowest bits."""
        registers, at = self.registers, self._iotlb
        registers.barrier()
        if what == SOME_PAGES:
            registers.write64(at - 8, address)
        registers.write64(at, INVALIDATE | what | DRAIN | domain << 32)
        self.until(lambda: not registers.read64(at) & INVALIDATE, "IOTLB")

    def _command(self, bit: int) -> None:
        registers = self.registers
        registers.barrier()
        registers.write32(GCMD, registers.read32(GSTS) & ~ONE_SHOT | bit)
        self.until(lambda: registers.read32(GSTS) & bit, "GSTS")


class DmarDomain(PageTree[DmarUnit]):
    """The pages of one device. Made by `DmarUnit.domain`."""

    reach = AddressSet.span(0, (1 << 52) - 1)
    branch = READ | WRITE

    def __init__(self, unit: DmarUnit, owner: str, number: int, window: AddressSet | None) -> None:
        whole = AddressSet.span(0, PAGE * ENTRIES**unit.levels - 1) - INTERRUPTS
        super().__init__(unit, owner, number, unit.levels, whole, window)

    def entry(self, frame: int, direction: Direction) -> int:
        """The address in bits 51:12, and the rights."""
        return frame | RIGHTS[direction]

    def forget(self, page: int, pages: int) -> None:
        """One command for the smallest block that has them all."""
        mask = (page ^ (page + pages - 1)).bit_length()
        if mask > self.unit.largest_mask:
            self.unit.flush_pages(DOMAIN_PAGES, self.number)
        else:
            self.unit.flush_pages(SOME_PAGES, self.number, page >> mask << mask + 12 | mask)
