"""Too many segments: which pages to join in one contiguous bounce run.

The fewest pages whose joining brings the buffer within nsegments; pages outside the run that are reachable stay where
they are. Single bounce pages are taken not to touch each other or anything else. Where they do touch, they only save
segments, so a plan that is found works.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from operator import neg

from busdma.buffers import Buffer
from busdma.constraints import Constraints
from busdma.mechanisms.zone import Run
from busdma.segments import FOREIGN


@dataclass(frozen=True, slots=True)
class Extent:
    """What of the buffer lies in one page."""

    address: int  #: bus address of its first byte; of a page that is bounced, the offset in its bounce page
    size: int  #: bytes of the buffer in it
    bounced: bool


def plan_run(buffer: Buffer, constraints: Constraints, page: int) -> Run | None:
    """The shortest run that makes `buffer` fit, or None if even one run of the whole buffer has too many segments.

    A run of no pages: single bounce pages will do.
    """
    pages = _pages(buffer, constraints, page)
    count = len(pages)
    sizes = [0, *accumulate(p.size for p in pages)]
    head = buffer.start % page
    if constraints.alignment.value > page or shifted(buffer, constraints, page):
        # Single bounce pages are aligned to a page and no better, or would not join, so everything goes into the run.
        fits = run_pieces(0, buffer.length, constraints)[0] <= constraints.nsegments.value
        best = (0, count) if fits else None
    else:
        best = shortest(pages, sizes, head, constraints)
    if best is None:
        return None
    first, end = best
    length = sizes[end] - sizes[first]
    boundary = constraints.boundary.value
    # A run longer than the boundary starts on one of its lines, and its cuts were counted from there.
    across = 0 < boundary < (end - first) * page
    return Run(
        first=first,
        pages=end - first,
        before=sum(p.bounced for p in pages[:first]),
        after=sum(p.bounced for p in pages[end:]),
        alignment=max(constraints.alignment.value, boundary if across else 1, page),
        boundary=0 if across else boundary,
        lead=run_pieces(head if first == 0 < end else 0, length, constraints)[1],
        length=length,
    )


def shifted(buffer: Buffer, constraints: Constraints, page: int) -> bool:
    """True if the buffer begins where no segment may, and its pages could not join were the first moved alone."""
    head = buffer.start % page
    return constraints.joint.value > 1 and head % constraints.alignment.value != 0 and buffer.length > page - head


def shortest(pages: list[Extent], sizes: list[int], head: int, constraints: Constraints) -> tuple[int, int] | None:
    """The shortest window [first, end) that is enough."""
    count, size = len(pages), constraints.segment_size
    before, after = _before(pages, constraints), _after(pages, constraints)
    if before[count] <= constraints.nsegments.value:
        return (0, 0)
    # A run of n bytes has n/size segments at least; least[end] is the best any window ending there or later can do.
    least = list(accumulate((after[i] * size + sizes[i] for i in range(count, -1, -1)), min))[::-1]
    best: tuple[int, int] | None = None
    width = count
    for first in range(count):
        allowed = constraints.nsegments.value - before[first]
        if allowed < 1:
            break
        end = first + 1
        while end <= min(count, first + width) and least[end] <= allowed * size + sizes[first]:
            run, _ = run_pieces(head if first == 0 else 0, sizes[end] - sizes[first], constraints)
            over = run + after[end] - allowed
            if over <= 0:
                best, width = (first, end), end - first - 1
                break
            # The run itself gets no cheaper by growing: what is behind it has to.
            end = bisect_left(after, over - after[end], lo=end + 1, key=neg)
    return best


def _pages(buffer: Buffer, constraints: Constraints, page: int) -> list[Extent]:
    """The pages of the buffer, in order."""
    found: list[Extent] = []
    index, head = divmod(buffer.start, page)
    left = buffer.length
    alignment = constraints.alignment.value
    while left:
        size = min(page - head, left)
        frame = buffer.frames.table[index]
        address = frame + head
        bounced = head % alignment != 0 or frame >= FOREIGN or not constraints.admits(address, address + size - 1)
        found.append(Extent(head if bounced else address, size, bounced))
        left -= size
        head = 0
        index += 1
    return found


def _touch(left: Extent, right: Extent) -> bool:
    return not left.bounced and not right.bounced and left.address + left.size == right.address


def _before(pages: list[Extent], constraints: Constraints) -> list[int]:
    """How many segments the first n pages make, for each n."""
    found = [0]
    begin = closed = 0  # where the last run begins, and the segments in front of it
    for i, p in enumerate(pages):
        if i == 0 or not _touch(pages[i - 1], p):
            begin, closed = p.address, found[-1]
        found.append(closed + cuts(begin, p.address + p.size - begin, constraints))
    return found


def _after(pages: list[Extent], constraints: Constraints) -> list[int]:
    """How many segments the pages from number n on make, for each n."""
    found = [0]
    end = behind = 0
    for i in range(len(pages) - 1, -1, -1):
        p = pages[i]
        if i == len(pages) - 1 or not _touch(p, pages[i + 1]):
            end, behind = p.address + p.size, found[-1]
        found.append(behind + cuts(p.address, end - p.address, constraints))
    return found[::-1]


def cuts(start: int, length: int, constraints: Constraints) -> int:
    """Segments of one run of `length` bytes from `start`."""
    size, boundary = constraints.segment_size, constraints.boundary.value
    if not boundary:
        return -(-length // size)
    first = min(length, boundary - start % boundary)
    full, rest = divmod(length - first, boundary)
    return -(-first // size) + full * -(-boundary // size) + -(-rest // size)


def run_pieces(head: int, length: int, constraints: Constraints) -> tuple[int, int]:
    """Segments of a bounce run from a boundary line, and its lead: the buffer's own offset where that costs nothing."""
    plain = cuts(0, length, constraints)
    kept = constraints.joint.value > 1  # or the run's end would not be where the next page begins
    if head % constraints.alignment.value or (cuts(head, length, constraints) > plain and not kept):
        return plain, 0
    return cuts(head, length, constraints), head
