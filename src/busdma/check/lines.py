"""Cache lines of which a device may write one part while the CPU has another.

A cache that DMA does not see moves whole lines. What the CPU stores into such a line is lost when the device's part is
fetched back, for then the line is thrown away; or it takes what the device wrote with it, when it is written back. No
load shares its lines with other data, because what would is bounced; but syncs of parts of a load can cut one.

Memory that the CPU was to see past its caches (``alloc(..., coherent=True)``) has no lines.

Source: Thorpe, USENIX 1998, section 2 (write-back caches).
"""

from __future__ import annotations

from collections.abc import Iterator

from busdma.check.findings import Kind, Report
from busdma.check.loads import Load, Span
from busdma.check.sides import Sides, poison
from busdma.sync import Direction


class Lines:
    """Lines of `line` bytes of memory with two `sides`. The caller holds the checker's lock."""

    def __init__(self, sides: Sides, line: int, report: Report) -> None:
        self._sides = sides
        self._line = line
        self._report = report

    def concern(self, load: Load) -> bool:
        """May a device write lines of it?"""
        return self._line > 1 and not load.past_caches and load.direction is not Direction.TO_DEVICE

    def before(self, load: Load, start: int, end: int) -> None:
        """Bytes [start, end) are about to be synced: has the CPU stored into lines that they share since the last?"""
        for span in [span for span in load.shared if span.offset < end and start < span.offset + span.size]:
            offset, size, address = span
            seen, here = load.shared.pop(span), self._cpu(span)
            wrong = [at for at in range(size) if here[at] != seen[at] and _with_the_cpu(load, offset + at)]
            for at in wrong:
                here[at : at + 1] = poison(address + at, 1)
            if wrong:
                self._report(Kind.SHARED_LINE, load, (offset + wrong[0], offset + wrong[-1] + 1), noticed=True)

    def after(self, load: Load, start: int, end: int) -> None:
        """They were synced: remember what the CPU has in lines of which a device may write another part."""
        for span in self._cut(load, start, end):
            if load.writable.find(1, span.offset, span.offset + span.size) >= 0:
                load.shared[span] = self._cpu(span).tobytes()

    def _cut(self, load: Load, start: int, end: int) -> Iterator[Span]:
        """The lines that an end of [start, end) cuts, as far as they are the load's."""
        for offset, size, address in load.direct:
            for at in (max(start, offset), min(end, offset + size)):
                ahead = (address + at - offset) % self._line
                if ahead and offset <= at <= offset + size:
                    lo, hi = max(at - ahead, offset), min(at - ahead + self._line, offset + size)
                    yield Span(lo, hi - lo, address + lo - offset)

    def _cpu(self, span: Span) -> memoryview:
        at = span.address - self._sides.base
        return self._sides.cpu[at : at + span.size]


def _with_the_cpu(load: Load, at: int) -> bool:
    return not (load.readable[at] or load.writable[at])
