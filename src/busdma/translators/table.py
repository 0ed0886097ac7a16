"""Translation through one linear table: an entry a page, in memory, in the byte order of the hardware.

Entries are written through the CPU's view of memory; on a machine with caches that DMA does not see, through the
uncached one.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, DriverError
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction


class LinearTable(ABC):
    """A `busdma.mechanisms.translation.Translator` whose entry n is for the page ``first + n * page_size``.

    `table` is where the entries are, and as long as they are. It is cleared.
    """

    name: str
    page_size: int
    order: str  #: of an entry, as the `struct` module has it, with its width: ``<Q``
    window: AddressSet
    reach: AddressSet
    prefetch: int = 0

    def __init__(self, registers: MmioRegisters, table: memoryview, first: int) -> None:
        self.registers = registers
        self._table = table
        self._first = first
        self._entry_size = struct.calcsize(self.order)
        self._pages = len(table) // self._entry_size
        self.window = AddressSet.span(first, first + self._pages * self.page_size - 1)
        table[:] = bytes(len(table))

    @abstractmethod
    def entry(self, frame: int, direction: Direction) -> int:
        """The entry that leads to the page frame."""

    @abstractmethod
    def flush(self, address: int, pages: int) -> None:
        """As `busdma.mechanisms.translation.Translator.flush`."""

    def enter(self, address: int, frames: Sequence[int], direction: Direction) -> None:
        """As `busdma.mechanisms.translation.Translator.enter`. DriverError, and nothing is entered: no such pages."""
        index = self._index(address, len(frames))
        check_frames(self.name, frames, self.page_size, self.reach)
        entries = [self.entry(frame, direction) for frame in frames]
        struct.pack_into(
            f"{self.order[0]}{len(entries)}{self.order[1]}", self._table, index * self._entry_size, *entries
        )
        self.registers.barrier()

    def clear(self, address: int, pages: int) -> None:
        """As `busdma.mechanisms.translation.Translator.clear`. DriverError, and nothing is cleared: no such pages."""
        start = self._index(address, pages) * self._entry_size
        size = pages * self._entry_size
        self._table[start : start + size] = bytes(size)
        self.registers.barrier()

    def _index(self, address: int, pages: int) -> int:
        index, offset = divmod(address - self._first, self.page_size)
        if offset or index < 0 or pages < 1 or index + pages > self._pages:
            raise DriverError(
                f"{self.name}: no {pages} pages from {address:#x} on: it translates whole pages of "
                f"{self.page_size:#x} bytes in {self.window}"
            )
        return index


def check_frames(name: str, frames: Sequence[int], page_size: int, reach: AddressSet) -> None:
    """DriverError unless an entry can name every one of the frames."""
    inside = page_size - 1
    if any(frame & inside for frame in frames) or not reach.covers(min(frames), max(frames)):
        wrong = [frame for frame in frames if frame & inside or frame not in reach]
        raise DriverError(
            f"{name}: no entry can name {wrong[0]:#x}: page frames are multiples of {page_size:#x} within {reach}"
        )


def check_table(name: str, table: memoryview, address: int, size: int, alignment: int) -> None:
    """ConfigurationError unless the table has `size` bytes, and its physical address is a multiple of `alignment`."""
    if len(table) != size or address < 0 or address % alignment:
        raise ConfigurationError(
            f"{name}: a table of {len(table):#x} bytes at {address:#x}: give {size:#x} bytes at a multiple of "
            f"{alignment:#x}"
        )
