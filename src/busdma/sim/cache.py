"""A write-back cache that DMA does not see, between the CPU and memory.

The bytes exist twice: as the CPU sees them, and as memory holds them. The cache is as large as memory: every line is in
it until something takes it out. A line is dirty if the CPU's bytes differ from those that it and memory last agreed
upon, so the CPU's stores need not be trapped. Nor are its loads: a load alone brings no line into the cache.

* A device writes to memory. The CPU sees that only in lines that are not in the cache.
* A device reads memory. It sees nothing of dirty lines.
* `WriteBackCache.clean` and `WriteBackCache.invalidate` are what software can do about it.
* The cache also does things of its own accord, drawn from a seed, in the pages that an access or a maintenance touches.
  It *evicts* a line: dirty bytes go to memory, over what a device wrote there. It *fills* a line again, as a CPU does
  that guesses what will be read next: from then on the CPU does not see what a device writes.

So a buffer must be cleaned before a device reads or writes it, must be invalidated after a device wrote it, although it
may have been before as well, and must share no line with anybody.

Source: MIPS R4000 Microprocessor User's Manual, chapter 11 (write-back caches; Hit Writeback, Hit Invalidate);
Thorpe, USENIX 1998, section 2. That the CPU may read ahead is from later members of the family (R10000, chapter 4).
"""

from __future__ import annotations

import struct
import threading
from operator import ne
from random import Random
from typing import Final, TypedDict

from busdma.errors import ConfigurationError, DriverError
from busdma.machine.ram import Ram, sided, sparse
from busdma.mechanisms.coherence import WriteBack

NEIGHBOURHOOD: Final = 4096  #: bytes: where one thing may happen of the cache's own accord


class CacheStatistics(TypedDict):
    """Lines: dirty ones that went to memory; dirty ones that were invalidated; evicted ones; filled ones.

    `hidden`: lines that a device wrote while they were in the cache; the CPU did not see it.
    """

    written_back: int
    lost: int
    evicted: int
    filled: int
    hidden: int


class WriteBackCache:
    """A cache over `size` bytes of memory from physical address 0 on, all zeros, in lines of `line` bytes.

    ``seen`` is what the CPU loads and stores; ``memory`` is what memory holds: what devices reach, and what the CPU
    reaches through its uncached alias. `activity` is the chance that the cache does something of its own accord in a
    page that is touched: 0 is never, 1 always. It is a `busdma.mechanisms.translation.Cache`, and a
    `busdma.machine.ram.Watch`. Any thread may call.
    """

    def __init__(self, size: int, *, line: int = 32, seed: int = 1, activity: float = 0.25) -> None:
        if line < 1 or line & (line - 1) or line > NEIGHBOURHOOD or size < 1 or size % NEIGHBOURHOOD:
            raise ConfigurationError(
                f"a cache of lines of {line} bytes over {size:#x}: give a line that is a power of two up to "
                f"{NEIGHBOURHOOD}, and a multiple of {NEIGHBOURHOOD} of memory"
            )
        if not 0 <= activity <= 1:
            raise ConfigurationError(f"an activity of {activity}: give a chance from 0 to 1")
        self.line = line
        self.seen: Final = sparse(size)
        self.memory: Final = sparse(size)
        self._agreed = sparse(size)
        self._present = bytearray(b"\1") * (size // line)
        self._lines_of = struct.Struct(f"{line}s").iter_unpack
        self._activity = activity
        self._random = Random(seed)
        self._lock = threading.Lock()
        self._counts: CacheStatistics = {"written_back": 0, "lost": 0, "evicted": 0, "filled": 0, "hidden": 0}

    @property
    def uncached(self) -> memoryview:
        """The uncached alias: memory's own bytes."""
        return self.memory

    def clean(self, address: int, length: int) -> None:
        """As `busdma.mechanisms.translation.Cache.clean`."""
        start, end = self._lines(address, length)
        with self._lock:
            for at, stop in self._dirty(start, end):
                self._write_back(at, stop)
            self._stir(start, end)

    def invalidate(self, address: int, length: int) -> None:
        """As `busdma.mechanisms.translation.Cache.invalidate`."""
        start, end = self._lines(address, length)
        with self._lock:
            self._counts["lost"] += sum((stop - at) // self.line for at, stop in self._dirty(start, end))
            self._take_from_memory(start, end)
            self._present[start // self.line : end // self.line] = bytes((end - start) // self.line)
            self._stir(start, end)

    def before_read(self, address: int, length: int, master: str = "") -> None:
        """A device is about to read memory."""
        with self._lock:
            self._stir(*self._lines(address, length))

    def after_write(self, address: int, length: int, master: str = "") -> None:
        """A device has written memory: the CPU sees it where it has no line of its own."""
        start, end = self._lines(address, length)
        with self._lock:
            absent = self._absent(start, end)
            self._counts["hidden"] += (end - start) // self.line - sum(stop - at for at, stop in absent) // self.line
            for at, stop in absent:
                self._take_from_memory(at, stop)
            self._stir(start, end)

    def unanswered(self, address: int, length: int, master: str = "") -> None:
        """See `busdma.machine.ram.Watch`: nothing that a cache could hold."""

    def statistics(self) -> CacheStatistics:
        """See `CacheStatistics`."""
        with self._lock:
            return self._counts.copy()

    # -- lines --------------------------------------------------------------------------------------------------------

    def _lines(self, address: int, length: int) -> tuple[int, int]:
        """The whole lines that [address, address + length) touches."""
        if length < 1 or address < 0 or address + length > len(self.memory):
            raise DriverError(
                f"the cache has no {length} bytes at {address:#x}: give at least one, below {len(self.memory):#x}"
            )
        return address & -self.line, -(-(address + length) // self.line) * self.line

    def _dirty(self, start: int, end: int) -> list[tuple[int, int]]:
        """The runs of dirty lines in [start, end), whole lines."""
        found: list[tuple[int, int]] = []
        lines = self._lines_of
        for at in range(start, end, NEIGHBOURHOOD):
            stop = min(at + NEIGHBOURHOOD, end)
            # as bytes: ten times faster than views
            mine, agreed = self.seen[at:stop].tobytes(), self._agreed[at:stop].tobytes()
            if mine != agreed:
                differ = bytes(map(ne, lines(mine), lines(agreed)))
                found += [(at + first, at + last) for first, last in self._runs(differ, 1, 0, len(differ))]
        return found

    def _absent(self, start: int, end: int) -> list[tuple[int, int]]:
        """The runs of lines in [start, end) that are not in the cache. A dirty line is: the CPU stored to it."""
        present, line = self._present, self.line
        first, last = start // line, end // line
        for at, stop in self._dirty(start, end) if present.find(0, first, last) >= 0 else []:
            present[at // line : stop // line] = b"\1" * ((stop - at) // line)
        return self._runs(present, 0, first, last)

    def _runs(self, flags: bytes | bytearray, wanted: int, first: int, last: int) -> list[tuple[int, int]]:
        """The runs of lines whose flag, 0 or 1, is the wanted one, as [start, end) in bytes."""
        found = []
        while (at := flags.find(wanted, first, last)) >= 0:
            first = flags.find(1 - wanted, at, last)
            if first < 0:
                first = last
            found.append((at * self.line, first * self.line))
        return found

    def _write_back(self, start: int, end: int) -> None:
        mine = self.seen[start:end].tobytes()  # taken once: another thread may be storing
        self.memory[start:end] = mine
        self._agreed[start:end] = mine
        self._present[start // self.line : end // self.line] = b"\1" * ((end - start) // self.line)
        self._counts["written_back"] += (end - start) // self.line

    def _take_from_memory(self, start: int, end: int) -> None:
        for at in range(start, end, NEIGHBOURHOOD):
            stop = min(at + NEIGHBOURHOOD, end)
            held = self.memory[at:stop].tobytes()
            if self.seen[at:stop].tobytes() != held:  # or it would undo what another thread stores meanwhile
                self.seen[at:stop] = held
            self._agreed[at:stop] = held

    # -- of its own accord --------------------------------------------------------------------------------------------

    def _stir(self, start: int, end: int) -> None:
        """Perhaps evict or fill one line in each page."""
        if not self._activity:
            return
        for page in range(start & -NEIGHBOURHOOD, end, NEIGHBOURHOOD):
            if self._random.random() < self._activity:
                at = page + int(self._random.random() * (NEIGHBOURHOOD // self.line)) * self.line
                stop = at + self.line
                dirty = bool(self._dirty(at, stop))
                if dirty or self._present[at // self.line]:
                    if dirty:
                        self._write_back(at, stop)
                    else:
                        self._take_from_memory(at, stop)
                    self._present[at // self.line] = 0
                    self._counts["evicted"] += 1
                else:
                    self._take_from_memory(at, stop)
                    self._present[at // self.line] = 1
                    self._counts["filled"] += 1


def cached(cache: WriteBackCache, *, check: bool = False) -> Ram:
    """Memory behind `cache`. The checker, if `check`, stands in for it: it forgives nothing."""
    if check:
        return sided(sparse(len(cache.memory)), line=cache.line)
    return Ram(cache.seen, cache.memory, WriteBack(cache), cache.uncached, cache)
