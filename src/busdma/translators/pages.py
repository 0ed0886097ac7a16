"""Translation through page tables that grow: 512 entries of 8 bytes in each, and every table a page frame.

A unit has a tree of tables for each domain, and takes the page frames for all of them from the machine as they are
needed. They are never given back. What differs from one kind of unit to the next is what an entry looks like, and how
the unit is told to forget.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.table import check_frames

PAGE: Final = 4096
BITS: Final = 9  #: of a page's number that one level takes
ENTRIES: Final = 1 << BITS
PATIENCE: Final = 100_000  #: looks at a register before the unit is given up

_FRAME: Final = 0x000F_FFFF_FFFF_F000  # of an entry: bits 51:12


class TranslationUnit(ABC):
    """Registers, the page frames of tables, and whose requests have a domain.

    `memory` is all of memory as the CPU sees it, its first byte at physical address `base`; `allocate` hands out a page
    frame for a table, by physical address, and may raise what it likes.
    """

    name: str

    def __init__(
        self, registers: MmioRegisters, memory: memoryview, allocate: Callable[[], int], base: int = 0
    ) -> None:
        self.registers = registers
        self.tables = 0  #: page frames that hold tables
        self._memory = memory
        self._allocate = allocate
        self._base = base
        self._sources: dict[int, str] = {}  # who has a domain, by the id of its requests

    @abstractmethod
    def pending(self) -> bool:
        """Whether there is a fault to take."""

    @abstractmethod
    def take_fault(self) -> HardwareFault | None:
        """The oldest fault that the unit has recorded and nobody has taken; the last one is followed by None."""

    # -- for the kinds of units and their domains ---------------------------------------------------------------------

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

    def is_memory(self, address: int) -> bool:
        """Whether there is memory at a physical address, and not a device."""
        return 0 <= address - self._base < len(self._memory)

    def next_domain(self, owner: str, source: int) -> int:
        """The number of the next domain, from 1 on. DriverError if requests of `source` have one already."""
        if source in self._sources:
            raise DriverError(
                f"{self.name}: {self._sources[source]} has a domain for requests of {source:#06x}: share that one, or "
                f"give {owner} another address on its bus"
            )
        return len(self._sources) + 1

    def until(self, done: Callable[[], object], register: str) -> None:
        """Return when `done` says so. DeviceFault if `register` has been looked at many times in vain."""
        for _ in range(PATIENCE):
            if done():
                return
        raise DeviceFault(f"{self.name}: {register} does not say that the command is done: reset the machine")


Unit = TypeVar("Unit", bound=TranslationUnit)


class PageTree(ABC, Generic[Unit]):
    """The pages of one domain: a `busdma.mechanisms.translation.Translator` with `levels` levels of tables.

    `whole`: the bus addresses that it can have; `window`: those to use. ConfigurationError if it cannot have them all.
    """

    page_size = PAGE
    prefetch = 0
    reach: AddressSet
    branch: int  #: an entry that leads to a table, but for the address. It takes no right away: the last level decides

    def __init__(
        self, unit: Unit, owner: str, number: int, levels: int, whole: AddressSet, window: AddressSet | None
    ) -> None:
        self.name = unit.name
        self.unit = unit
        self.owner = owner
        self.number = number
        self.window = whole if window is None else window
        if not self.window <= whole:
            raise ConfigurationError(
                f"{self.name}: {owner} can have bus addresses in {whole}, and not all of {window}: give others"
            )
        self._levels = levels
        self.table = unit.new_table()

    @abstractmethod
    def entry(self, frame: int, direction: Direction) -> int:
        """The entry that leads to the page frame."""

    @abstractmethod
    def forget(self, page: int, pages: int) -> None:
        """Return when the unit has forgotten at least these bus pages, by number, which are the domain's."""

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
        done = 0
        for at, count in list(self._runs(address, len(frames), make=True)):
            self.unit.write(at, *(self.entry(frame, direction) for frame in frames[done : done + count]))
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
        """As `busdma.mechanisms.translation.Translator.flush`. DriverError: no such pages."""
        self._check(address, pages)
        self.forget(address // PAGE, pages)

    def _check(self, address: int, pages: int) -> None:
        if address % PAGE or pages < 1 or not self.window.covers(address, address + pages * PAGE - 1):
            raise DriverError(
                f"{self.name}: no {pages} pages from {address:#x} on for {self.owner}: it has whole pages of {PAGE:#x} "
                f"bytes in {self.window}"
            )

    def _runs(self, address: int, pages: int, *, make: bool) -> Iterator[tuple[int, int]]:
        """(physical address of an entry, how many pages have theirs from there on); -1 where there is no table."""
        page = address // PAGE
        while pages > 0:
            count = min(pages, ENTRIES - page % ENTRIES)
            table = self.table
            for level in range(self._levels - 1, 0, -1):
                at = table + (page >> BITS * level) % ENTRIES * 8
                entry = self.unit.read(at)
                if not entry and make:
                    entry = self.unit.new_table() | self.branch
                    self.unit.write(at, entry)
                table = entry & _FRAME
                if not entry:
                    break
            yield (table + page % ENTRIES * 8 if table else -1), count
            page += count
            pages -= count
