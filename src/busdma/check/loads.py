"""What is loaded where: for each page frame, the loads that a device may reach there, and those that lately were."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from busdma.map import Map
from busdma.mechanisms.placement import Copied
from busdma.sync import Direction

REMEMBERED: Final = 4096  #: page frames of which the last load is known after its end
_BEHIND: Final = 1 << 80  # every address


class Span(NamedTuple):
    """Bytes [offset, offset + size) of a buffer, from `address` on."""

    offset: int
    size: int
    address: int


class Part(NamedTuple):
    """Bytes [address, address + size) that `load` has, the first of them at `offset` of its buffer."""

    load: Load
    address: int
    size: int
    offset: int


@dataclass(slots=True, eq=False)
class Load:
    """One load of one map. The bytearrays have a flag for each byte of the buffer."""

    map: Map
    tag: str
    name: str
    owner: str | None
    where: str
    direction: Direction
    direct: Sequence[Span]  #: what a device reaches where it lies, by physical address
    copies: Sequence[Copied]  #: what it reaches in bounce pages
    readable: bytearray  #: 1: given to the device with PREWRITE
    writable: bytearray  #: 1: given to it with PREREAD
    written: bytearray  #: 1: it has written the byte since
    standing: bool = False  #: of DMA-safe memory: loaded for as long as that lives
    past_caches: bool = False  #: the CPU was to see it past its caches
    ended: bool = False
    lent: list[tuple[int, int]] = field(default_factory=list)  #: (address, length) to be spoilt again after a sync
    shared: dict[Span, bytes] = field(default_factory=dict)  #: cache lines that a device may write in part; see `lines`

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.readable)

    def describe(self) -> str:
        """For messages about two loads."""
        return f"map {self.name!r} of tag {self.tag}, loaded at {self.where}"

    def spans(self) -> list[Span]:
        """Where a device reaches all of it."""
        return [*self.direct, *(Span(copy.offset, copy.size, copy.address) for copy in self.copies)]

    def direct_within(self, start: int, end: int) -> Iterator[Span]:
        """What lies where it is, of bytes [start, end)."""
        spans = self.direct
        for at in range(max(bisect_right(spans, (start, _BEHIND)) - 1, 0), len(spans)):
            offset, size, address = spans[at]
            lo, hi = max(start, offset), min(end, offset + size)
            if lo < hi:
                yield Span(lo, hi - lo, address + lo - offset)
            elif offset >= end:
                break

    def copies_within(self, start: int, end: int) -> Iterator[Copied]:
        """What was bounced, of bytes [start, end)."""
        for offset, size, memory, origin, address in self.copies:
            lo, hi = max(start, offset), min(end, offset + size)
            if lo < hi:
                yield Copied(lo, hi - lo, memory, origin + lo - offset, address + lo - offset)


class Loads:
    """Loads by the pages that their bytes lie in. The caller holds the checker's lock."""

    def __init__(self, page: int) -> None:
        self.page = page
        self._parts: dict[int, list[Part]] = {}  # by page
        self._ended: OrderedDict[int, Load] = OrderedDict()

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, load: Load, spans: Iterable[Span]) -> None:
        """It has begun."""
        page, parts = self.page, self._parts
        for offset, size, address in spans:
            while size:
                count = min(size, page - address % page)
                parts.setdefault(address // page, []).append(Part(load, address, count, offset))
                offset, address, size = offset + count, address + count, size - count

    def end(self, load: Load, spans: Iterable[Span], *, remember: bool = False) -> None:
        """It has ended; who comes late is told whose it was, if that is to be remembered."""
        page = self.page
        for _, size, address in spans:
            for number in range(address // page, (address + size - 1) // page + 1):
                left = [part for part in self._parts.get(number, ()) if part.load is not load]
                if left:
                    self._parts[number] = left
                else:
                    self._parts.pop(number, None)
                if remember:
                    self._ended[number] = load
                    self._ended.move_to_end(number)
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def at(self, address: int) -> Sequence[Part]:
        """What of the page of `address` is loaded."""
        return self._parts.get(address // self.page, ())

    def ended_at(self, address: int) -> Load | None:
        """The last load that had some of the page and has ended."""
        return self._ended.get(address // self.page)

    def within(self, address: int, length: int) -> list[Part]:
        """What of [address, address + length) is loaded."""
        page, end, found = self.page, address + length, list[Part]()
        for number in range(address // page, (end - 1) // page + 1):
            for part in self._parts.get(number, ()):
                load, first, size, offset = part
                if first >= address and first + size <= end:
                    found.append(part)
                    continue
                lo, hi = max(first, address), min(first + size, end)
                if lo < hi:
                    found.append(Part(load, lo, hi - lo, offset + lo - first))
        return found


def hull(flags: bytearray, value: int, start: int, end: int) -> tuple[int, int] | None:
    """The smallest [lo, hi) within [start, end) that has every byte which is `value`; None: there is none."""
    first = flags.find(value, start, end)
    return None if first < 0 else (first, flags.rfind(value, start, end) + 1)


def runs(left: bytearray, right: bytearray, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """[start, end) in stretches where both flags stay the same: (lo, hi, left's flag, right's)."""
    while start < end:
        stop = end
        for flags in (left, right):
            change = flags.find(1 - flags[start], start, stop)
            if change >= 0:
                stop = change
        yield start, stop, left[start], right[start]
        start = stop


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans that continue each other, in the buffer and in memory, as one."""
    found: list[Span] = []
    for span in spans:
        if found:
            last = found[-1]
            if last.offset + last.size == span.offset and last.address + last.size == span.address:
                found[-1] = Span(last.offset, last.size + span.size, last.address)
                continue
        found.append(span)
    return found
