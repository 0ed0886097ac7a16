"""Who holds each page frame of a machine's memory.

One byte a frame: 0 is free, any other value numbers the owner's label. Every search for free frames is then a search
for zero bytes, which Python does at memory speed, and 16 GiB of memory cost 4 MiB of table and no object a frame.

Single frames come from random places: memory that has been in use for a day is scattered, and drivers must meet that.
Runs come from the *highest* place that fits: low memory is what the narrowest devices need, so it is given out last.

Source: FreeBSD contigmalloc(9) for the meaning of alignment and boundary of a run.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Final, TypedDict

from busdma.addresses import AddressSet
from busdma.errors import ConstraintError, DriverError, ResourceShortage, ShortageReason
from busdma.tracebacks import hidden

__tracebackhide__ = hidden

RESERVED: Final = "reserved"  #: the label of frames that are never given out
DMA_SAFE: Final = "dma-safe"  #: and of those that were allocated to be shared with a device

_FREE: Final = 0
_NOTHING: Final = AddressSet()
_REGIONS_KEPT: Final = 64


class FrameStatistics(TypedDict):
    """Counts of frames. `lowest_free` and `peak` are the extremes since the machine started."""

    total: int
    reserved: int
    free: int
    lowest_free: int
    by_owner: dict[str, int]
    peak: dict[str, int]


class _Region:
    """An AddressSet as ranges of whole frames: [first, end) pairs, and how many frames lie before each."""

    __slots__ = ("before", "ranges", "size")

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self.ranges = ranges
        self.before: list[int] = []
        self.size = 0
        for first, end in ranges:
            self.before.append(self.size)
            self.size += end - first


class FrameAllocator:
    """The page frames from physical address `base` on: `pages` of them, `page_size` bytes each.

    Frames that touch `reserved` are never given out. `reuse`: so many of the single frames that came back last are
    given out again first, as real kernels do while a frame is warm; a machine larger than its host then touches no
    more of its memory than it uses at a time. Equal seeds and calls give equal frames. Any thread may call.
    """

    def __init__(
        self,
        base: int,
        pages: int,
        *,
        page_size: int = 4096,
        seed: int = 0,
        reserved: AddressSet = _NOTHING,
        reuse: int = 0,
    ) -> None:
        if page_size < 1 or page_size & (page_size - 1):
            raise ConstraintError(f"a page of {page_size} bytes: give a power of two")
        if base < 0 or base % page_size or pages < 1:
            raise ConstraintError(f"{pages} pages from {base:#x} on: give at least one page, and a page-aligned base")
        self.base: Final = base
        self.pages: Final = pages
        self.page_size: Final = page_size
        self._shift = page_size.bit_length() - 1
        self._owners = bytearray(pages)
        self._names: list[str | None] = [None, RESERVED]  # by number; a free frame has no owner
        self._labels = {RESERVED: 1}
        self._counts = [pages, 0]
        self._peaks = [pages, 0]
        self._random = Random(seed)
        self._warm: deque[int] = deque(maxlen=reuse)  # single frames that came back; some may be held again
        self._single = bytearray(pages if reuse else 0)  # 1: it was given out as a single frame
        self._reclaimers: list[Callable[[int], int]] = []
        self._releasers: list[Callable[[Sequence[int]], object]] = []
        self._listeners: list[Callable[[], object]] = []
        self._regions: dict[AddressSet | None, _Region] = {}
        self._lock = threading.Lock()
        touched = [
            (max((lo - base) >> self._shift, 0), min((hi - base) >> self._shift, pages - 1)) for lo, hi in reserved
        ]
        self._reserved = AddressSet(pair for pair in touched if pair[0] <= pair[1])  # frame numbers
        for first, last in self._reserved:
            self._owners[first : last + 1] = b"\1" * (last + 1 - first)
        self._counts[1] = self._peaks[1] = self._owners.count(1)
        self._counts[_FREE] = self._lowest = pages - self._counts[1]

    def allocate(self, count: int, owner: str, within: AddressSet | None = None) -> array[int]:
        """Take `count` single frames for `owner`, from anywhere within `within`: all of them or none.

        Returns their physical addresses in the order in which they were picked. ResourceShortage: too few are free,
        even after every reclaimer was asked.
        """
        label, region = self._request(count, owner, within)
        for _ in self._attempts(count):
            with self._lock:
                found = self._scatter(region, count, label)
            if found is not None:
                return array("Q", [self.base + (index << self._shift) for index in found])
        raise self._shortage(f"{count} frames for {owner!r}", count, region)

    def allocate_run(
        self, count: int, owner: str, *, within: AddressSet | None = None, alignment: int = 1, boundary: int = 0
    ) -> int:
        """Take `count` adjacent frames for `owner` and return the physical address of the first.

        The highest run within `within` that starts at a multiple of `alignment` bytes and does not cross a multiple of
        `boundary` bytes (both powers of two; boundary 0 means none). Errors: ConstraintError, ResourceShortage.
        """
        size = count << self._shift
        if alignment < 1 or alignment & (alignment - 1):
            raise ConstraintError(f"alignment {alignment:#x} is not a power of two")
        if boundary and (boundary < size or boundary & (boundary - 1)):
            raise ConstraintError(
                f"boundary {boundary:#x}: give a power of two, and at least the run's {size:#x} bytes"
            )
        label, region = self._request(count, owner, within)
        for _ in self._attempts(count):
            with self._lock:
                first = self._highest_run(self._owners, region, count, alignment, boundary)
                if first >= 0:
                    self._owners[first : first + count] = bytes((label,)) * count
                    self._account(label, count)
                    return self.base + (first << self._shift)
        # Would an empty memory hold it? Then it is only a matter of who must give something back.
        empty = self._owners.translate(bytes((0, 1)) + bytes(254))
        possible = self._highest_run(empty, region, count, alignment, boundary) >= 0
        raise self._shortage(f"a run of {count} frames for {owner!r}", count, region, possible=possible)

    def free(self, frames: Iterable[int]) -> None:
        """Give frames back, by physical address: all of them, or on any DriverError none."""
        owners = self._owners
        done: list[tuple[int, int]] = []
        if self._releasers:
            frames = list(frames)
            for release in tuple(self._releasers):
                release(frames)
        with self._lock:
            for address in frames:
                index = (address - self.base) >> self._shift
                inside = 0 <= index < self.pages and not (address - self.base) & (self.page_size - 1)
                label = owners[index] if inside else -1
                if label <= 1:
                    for index, label in done:
                        owners[index] = label
                    raise DriverError(f"cannot free frame {address:#x}: {_why_not(label)}; nothing was freed")
                owners[index] = _FREE
                done.append((index, label))
            for _, label in done:
                self._counts[label] -= 1
            self._counts[_FREE] += len(done)
            if self._single:
                self._warm.extend(index for index, _ in done if self._single[index])
                for index, _ in done:
                    self._single[index] = 0
        for listen in tuple(self._listeners):
            listen()

    def owner_of(self, address: int) -> str | None:
        """The label of the frame that holds this physical address; None if it is free or no memory at all."""
        index = (address - self.base) >> self._shift
        return self._names[self._owners[index]] if 0 <= index < self.pages else None

    def add_reclaimer(self, reclaim: Callable[[int], int]) -> None:
        """Have ``reclaim(wanted)`` asked for frames before an allocation fails; it returns how many it freed.

        It runs on the thread that allocates, without the allocator's lock. A pool that allocates while it holds a lock
        of its own is asked too: it must then answer 0, or hold a re-entrant one.
        """
        self._reclaimers.append(reclaim)

    def add_releaser(self, release: Callable[[Sequence[int]], object]) -> None:
        """Have ``release(frames)`` called before frames are given back, by physical address, without the lock.

        For whoever remembers where a frame is visible, such as standing entries of an IOMMU: on return it no longer is.
        """
        self._releasers.append(release)

    def add_listener(self, listen: Callable[[], object]) -> None:
        """Have `listen` called whenever frames came back, on the thread that freed them, without the lock."""
        self._listeners.append(listen)

    def usable(self, within: AddressSet | None = None) -> int:
        """How many frames within `within` may be given out at all, free or not."""
        frames = AddressSet((first, end - 1) for first, end in self._whole_frames(within).ranges)
        return (frames - self._reserved).size()

    def statistics(self) -> FrameStatistics:
        """Frames in all, free and held, now and at the extremes."""
        with self._lock:
            held = {name: number for name, number in self._labels.items() if name != RESERVED}
            return {
                "total": self.pages,
                "reserved": self._counts[1],
                "free": self._counts[_FREE],
                "lowest_free": self._lowest,
                "by_owner": {name: self._counts[number] for name, number in held.items()},
                "peak": {name: self._peaks[number] for name, number in held.items()},
            }

    def _request(self, count: int, owner: str, within: AddressSet | None) -> tuple[int, _Region]:
        if count < 1:
            raise DriverError(f"cannot allocate {count} frames: ask for at least one")
        with self._lock:
            label = self._labels.get(owner)
            if label is None:
                label = len(self._names)
                if label > 255:
                    raise DriverError(f"no room for the owner {owner!r}: a memory has at most 254 kinds of owners")
                self._labels[owner] = label
                self._names.append(owner)
                self._counts.append(0)
                self._peaks.append(0)
            if label == 1:
                raise DriverError(f"{RESERVED!r} frames are never given out: choose another owner")
            region = self._regions.get(within)
            if region is None:
                if len(self._regions) >= _REGIONS_KEPT:
                    self._regions.clear()
                region = self._regions[within] = self._whole_frames(within)
        return label, region

    def _whole_frames(self, within: AddressSet | None) -> _Region:
        if within is None:
            return _Region([(0, self.pages)])
        ranges = []
        for lo, hi in within:
            first = max(-((self.base - lo) >> self._shift), 0)  # rounded up: only frames that lie inside entirely
            end = min((hi + 1 - self.base) >> self._shift, self.pages)
            if first < end:
                ranges.append((first, end))
        return _Region(ranges)

    def _attempts(self, count: int) -> Iterator[None]:
        """One try, and one more after each reclaimer that gave something back."""
        yield
        for reclaim in tuple(self._reclaimers):
            if reclaim(count) > 0:
                yield

    def _scatter(self, region: _Region, count: int, label: int) -> list[int] | None:
        if count > min(region.size, self._counts[_FREE]):
            return None
        owners = self._owners
        found: list[int] = []
        for _ in range(count):
            index = self._pick(region)
            if index < 0:
                for taken in found:
                    owners[taken] = _FREE
                return None
            owners[index] = label
            found.append(index)
            if self._single:
                self._single[index] = 1
        self._account(label, count)
        return found

    def _pick(self, region: _Region) -> int:
        """A warm frame; or the first free one from a random place of the region on, going round. -1: there is none."""
        while self._warm:
            index = self._warm.pop()
            if self._owners[index] == _FREE and any(first <= index < end for first, end in region.ranges):
                return index
        target = int(self._random.random() * region.size)  # random() alone is the same on every Python version
        at = bisect_right(region.before, target) - 1
        start, end = region.ranges[at]
        start += target - region.before[at]
        index = self._owners.find(_FREE, start, end)
        if index >= 0:
            return index
        for first, end in region.ranges[at + 1 :] + region.ranges[: at + 1]:
            index = self._owners.find(_FREE, first, end)
            if index >= 0:
                return index
        return -1

    def _highest_run(self, owners: bytearray, region: _Region, count: int, alignment: int, boundary: int) -> int:
        zeros = bytes(count)
        size = count << self._shift
        for first, end in reversed(region.ranges):
            while (top := owners.rfind(zeros, first, end)) >= 0:
                # The highest legal start at or below `top`. No legal start lies between the two.
                address = (self.base + (top << self._shift)) & -alignment
                if boundary and (address ^ (address + size - 1)) & -boundary:
                    address = (((address + size - 1) & -boundary) - size) & -alignment
                start = (address - self.base) >> self._shift
                if start < first:
                    break
                if start == top or owners.find(zeros, start, start + count) == start:
                    return start
                end = start + count - 1
        return -1

    def _account(self, label: int, count: int) -> None:
        self._counts[_FREE] -= count
        self._counts[label] += count
        self._lowest = min(self._lowest, self._counts[_FREE])
        self._peaks[label] = max(self._peaks[label], self._counts[label])

    def _shortage(self, what: str, count: int, region: _Region, *, possible: bool = True) -> ResourceShortage:
        with self._lock:
            free = sum(self._owners.count(_FREE, first, end) for first, end in region.ranges)
            reserved = sum(self._owners.count(1, first, end) for first, end in region.ranges)
        usable = region.size - reserved
        if not possible or count > usable:
            return ResourceShortage(
                f"no memory for {what}: the {usable} frames that may be used could never hold it; ask for less",
                ShortageReason.TOO_LARGE,
            )
        if count <= free:
            return ResourceShortage(
                f"no memory for {what}: {free} of {usable} frames are free, but not in one legal run; free some, "
                "or take single frames",
                ShortageReason.FRAGMENTED,
            )
        return ResourceShortage(
            f"no memory for {what}: {free} of {usable} frames are free; free some and try again", ShortageReason.BUSY
        )


def _why_not(label: int) -> str:
    return {-1: "it is no page frame of this memory", 0: "it is free already (a double free?)"}.get(
        label, "it is reserved"
    )
