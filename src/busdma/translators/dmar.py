"""VT-d, as its software sees it: one unit, and a domain of its own for each device.

Page tables grow as they are needed and are never given back. Every table is a page frame that the machine hands out.

Source: Intel, Virtualization Technology for Directed I/O, Architecture Specification, revision 2.x: 3.4, 6.5.1, 7.3,
9.1, 9.3, 9.8, 10.4. Registers are those of `busdma.sim.iommu.dmar`; where IOTLB and FRCD are, the unit says itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.table import check_frames

PAGE: Final = 4096
CAP, ECAP, GCMD, GSTS, RTADDR, CCMD, FSTS = 0x08, 0x10, 0x18, 0x1C, 0x20, 0x28, 0x34
ENABLE, SET_ROOT = 1 << 31, 1 << 30  # GCMD, GSTS
ONE_SHOT: Final = 0x6900_0000  #: GSTS bits that must not be written back (10.4.4)
INVALIDATE: Final = 1 << 63
ALL_CONTEXTS: Final = 1 << 61  #: CCMD
ALL_PAGES, DOMAIN_PAGES, SOME_PAGES = 1 << 60, 2 << 60, 3 << 60  # IOTLB
DRAIN: Final = 3 << 48  #: IOTLB: reads and writes that are on their way
RECORDED, WAS_READ = 1 << 63, 1 << 62  # upper half of FRCD
CLEAR_STATUS: Final = 0x7F  #: FSTS
PRESENT: Final = 1
READ, WRITE = 0x1, 0x2  # page-table entry
RIGHTS: Final = {Direction.TO_DEVICE: READ, Direction.FROM_DEVICE: WRITE, Direction.BOTH: READ | WRITE}
INTERRUPTS: Final = AddressSet.span(0xFEE0_0000, 0xFEEF_FFFF)  #: never translated
PATIENCE: Final = 100_000  #: looks at a register before the unit is given up

_FRAME: Final = 0x000F_FFFF_FFFF_F000
_ENTRIES: Final = PAGE // 8


class DmarUnit:
    """The unit: its root table, and its caches.

    `memory` is all of memory as the CPU sees it, its first byte at physical address `base`; `allocate` hands out a page
    frame for a table, by physical address, and may raise what it likes. DeviceFault if the unit does not answer.
    """

    def __init__(
        self, registers: MmioRegisters, memory: memoryview, allocate: Callable[[], int], *, base: int = 0
    ) -> None:
        self.registers = registers
        self.tables = 0  #: page frames that hold tables
        self._memory = memory
        self._allocate = allocate
        self._base = base
        self._contexts: dict[int, int] = {}  # context tables by bus
        self._sources: dict[int, str] = {}
        cap, ecap = registers.read64(CAP), registers.read64(ECAP)
        widths = cap >> 8 & 0x1F
        if not widths & 0b110:
            raise ConfigurationError(f"dmar: the unit has page tables of neither 3 nor 4 levels (CAP is {cap:#x})")
        self.levels: Final = 3 if widths & 0b010 else 4
        self.largest_mask: Final = cap >> 48 & 0x3F if cap >> 39 & 1 else -1  #: pages by power of two; -1: domains only
        self._iotlb = (ecap >> 8 & 0x3FF) * 16 + 8
        self._records = [(cap >> 24 & 0x3FF) * 16 + 16 * n for n in range((cap >> 40 & 0xFF) + 1)]
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
        if source in self._sources:
            raise DriverError(
                f"dmar: {self._sources[source]} has a domain for requests of {source:#06x}: share that one, or give "
                f"{name} another address on its bus"
            )
        bus, device = divmod(source, 256)
        if bus not in self._contexts:
            table = self._contexts[bus] = self.new_table()
            self.write(self._root + bus * 16, table | PRESENT)
        domain = DmarDomain(self, name, len(self._sources) + 1, window)
        self._sources[source] = name
        at = self._contexts[bus] + device * 16
        self.write(at + 8, domain.number << 8 | self.levels - 2)
        self.write(at, domain.table | PRESENT)
        self.flush_contexts()
        return domain

    def take_fault(self) -> HardwareFault | None:
        """The oldest fault that the unit has recorded and nobody has taken; the last one is followed by None."""
        status = self.registers.read32(FSTS)
        record = self._records[(status >> 8 & 0xFF) % len(self._records)]
        high = self.registers.read64(record + 8)
        if not high & RECORDED:
            self.registers.write32(FSTS, CLEAR_STATUS)
            return None
        address = self.registers.read64(record) & -PAGE
        self.registers.write64(record + 8, RECORDED)
        return HardwareFault(address, not high & WAS_READ, high & 0xFFFF, high >> 32 & 0xFF)

    # -- for the domains ----------------------------------------------------------------------------------------------

    def new_table(self) -> int:
        """A page frame of zeros."""
        frame = self._allocate()
        at = frame - self._base
        self._memory[at : at + PAGE] = bytes(PAGE)
        self.tables += 1
        return frame

    def read(self, address: int) -> int:
        """The entry at a physical address."""
        value: int = struct.unpack_from("<Q", self._memory, address - self._base)[0]
        return value

    def write(self, address: int, *entries: int) -> None:
        """Write entries from a physical address on."""
        struct.pack_into(f"<{len(entries)}Q", self._memory, address - self._base, *entries)

    def flush_contexts(self) -> None:
        """Have the unit forget all contexts, and then all pages: it may have found them by the old ones (6.5.1)."""
        self.registers.barrier()
        self.registers.write64(CCMD, INVALIDATE | ALL_CONTEXTS)
        self._until(lambda: not self.registers.read64(CCMD) & INVALIDATE, "CCMD")
        self.flush_pages(ALL_PAGES)

    def flush_pages(self, what: int, domain: int = 0, address: int = 0) -> None:
        """Have the unit forget pages. `address`: with the mask of SOME_PAGES in its lowest bits."""
        registers, at = self.registers, self._iotlb
        registers.barrier()
        if what == SOME_PAGES:
            registers.write64(at - 8, address)
        registers.write64(at, INVALIDATE | what | DRAIN | domain << 32)
        self._until(lambda: not registers.read64(at) & INVALIDATE, "IOTLB")

    def _command(self, bit: int) -> None:
        registers = self.registers
        registers.barrier()
        registers.write32(GCMD, registers.read32(GSTS) & ~ONE_SHOT | bit)
        self._until(lambda: registers.read32(GSTS) & bit, "GSTS")

    def _until(self, done: Callable[[], object], register: str) -> None:
        for _ in range(PATIENCE):
            if done():
                return
        raise DeviceFault(f"dmar: {register} does not say that the command is done: reset the machine")


class DmarDomain:
    """The pages of one device: a `busdma.mechanisms.translation.Translator`. Made by `DmarUnit.domain`."""

    name = "dmar"
    page_size = PAGE
    prefetch = 0
    reach = AddressSet.span(0, (1 << 52) - 1)

    def __init__(self, unit: DmarUnit, owner: str, number: int, window: AddressSet | None) -> None:
        whole = AddressSet.span(0, PAGE * _ENTRIES**unit.levels - 1) - INTERRUPTS
        self.unit = unit
        self.owner = owner
        self.number = number
        self.window = whole if window is None else window
        if not self.window <= whole:
            raise ConfigurationError(f"dmar: {owner} can have bus addresses in {whole}, and not all of {window}")
        self.table = unit.new_table()

    def prepare(self, address: int, pages: int) -> None:
        """Have all tables for these pages: to enter them takes no more page frames from now on, and cannot fail.

        2 MiB of bus addresses take one frame. Errors are those of `enter`; what was taken by then stays.
        """
        self._check(address, pages)
        for _ in self._runs(address, pages, make=True):
            pass

    def enter(self, address: int, frames: Sequence[int], direction: Direction) -> None:
        """As `busdma.mechanisms.translation.Translator.enter`. Nothing is entered where the unit gets no page frame for
        a table, or, DriverError, where there are no such pages.
        """
        self._check(address, len(frames))
        check_frames(self.name, frames, PAGE, self.reach)
        rights = RIGHTS[direction]
        done = 0
        for at, count in list(self._runs(address, len(frames), make=True)):
            self.unit.write(at, *(frame | rights for frame in frames[done : done + count]))
            done += count
        self.unit.registers.barrier()

    def clear(self, address: int, pages: int) -> None:
        """As `busdma.mechanisms.translation.Translator.clear`. DriverError: no such pages."""
        self._check(address, pages)
        for at, count in self._runs(address, pages, make=False):
            if at >= 0:
                self.unit.write(at, *bytes(count))
        self.unit.registers.barrier()

    def flush(self, address: int, pages: int) -> None:
        """As `busdma.mechanisms.translation.Translator.flush`: one command for the smallest block that has them all."""
        self._check(address, pages)
        first = address // PAGE
        mask = (first ^ (first + pages - 1)).bit_length()
        if mask > self.unit.largest_mask:
            self.unit.flush_pages(DOMAIN_PAGES, self.number)
        else:
            self.unit.flush_pages(SOME_PAGES, self.number, first >> mask << mask + 12 | mask)

    def _check(self, address: int, pages: int) -> None:
        if address % PAGE or pages < 1 or not self.window.covers(address, address + pages * PAGE - 1):
            raise DriverError(
                f"dmar: no {pages} pages from {address:#x} on for {self.owner}: it has whole pages of {PAGE:#x} bytes "
                f"in {self.window}"
            )

    def _runs(self, address: int, pages: int, *, make: bool) -> Iterator[tuple[int, int]]:
        """(physical address of an entry, how many pages have theirs from there on); -1 where there is no table."""
        page = address // PAGE
        while pages > 0:
            count = min(pages, _ENTRIES - page % _ENTRIES)
            table = self.table
            for level in range(self.unit.levels - 1, 0, -1):
                at = table + (page >> 9 * level) % _ENTRIES * 8
                entry = self.unit.read(at)
                if not entry and make:
                    # every right here: the last level decides
                    entry = self.unit.new_table() | READ | WRITE
                    self.unit.write(at, entry)
                table = entry & _FRAME
                if not entry:
                    break
            yield (table + page % _ENTRIES * 8 if table else -1), count
            page += count
            pages -= count
