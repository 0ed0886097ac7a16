"""A buffer that was placed in another way than where it lies: what it holds, and what keeps its two copies equal.

Whatever is bounced exists twice, in the client's memory and in a bounce page; whatever lies in a cache that DMA does
not see exists twice, in the cache and in memory. The two agree only at a sync: PREREAD and PREWRITE send the CPU's
bytes to the device's side, POSTREAD fetches them back, each by range, and of a cache by whole lines.

Source: Thorpe, USENIX 1998, section 2 ("DMA bouncing is conceptually trivial if viewed as a non-DMA-coherent cache").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from busdma.buffers import Buffer
from busdma.mechanisms.iova import IovaNeed
from busdma.mechanisms.plan import Plan, bus_layout, cut, frames_of, merged
from busdma.mechanisms.translation import Translator
from busdma.pool import Need, Pool
from busdma.segments import ABSENT, Segmenter
from busdma.sync import Direction

if TYPE_CHECKING:
    from busdma.mechanisms.composed import Composed


class Copied(NamedTuple):
    """Bytes [offset, offset + size) of the buffer: the client's copy, and the device's in a bounce page."""

    offset: int
    size: int
    memory: memoryview
    origin: int  #: of the client's copy in `memory`
    address: int  #: of the device's: physical


class Cached(NamedTuple):
    """Bytes [offset, offset + size) of the buffer: one copy in memory, from physical `address` on, one in the cache."""

    offset: int
    size: int
    address: int


class Placement:
    """One load of one map, by a `Composed` mechanism. It is the lender while it waits and the holder afterwards."""

    __slots__ = ("_bus", "_cached", "_copied", "_direction", "_mechanism", "_plan")

    def __init__(self, mechanism: Composed, plan: Plan, direction: Direction) -> None:
        self._mechanism = mechanism
        self._plan = plan
        self._direction = direction
        self._copied: list[Copied] = []
        self._cached: list[Cached] = []
        self._bus: IovaNeed | None = None

    def deferred(self) -> None:
        """See `busdma.mechanisms.Lender`: each pool that the load waits for counts it."""
        if self._plan.slots:
            assert self._mechanism.zone is not None
            self._mechanism.zone.count("deferred", 1)
        if self._mechanism.pool is not None:
            self._mechanism.pool.count("deferred", 1)

    def finish(self, segmenter: Segmenter, buffer: Buffer, needs: Sequence[Need]) -> Placement:
        """Place the buffer with all needs granted. Under the pools' lock."""
        mechanism, plan = self._mechanism, self._plan
        if mechanism.pool is not None:
            self._bus = cast(IovaNeed, needs[-1])
        slots: list[int] = []
        if plan.slots:
            assert mechanism.zone is not None
            addresses = mechanism.zone.slots.addresses
            slots = [addresses[slot] for slot in segmenter.held[: segmenter.nheld]]
            mechanism.zone.counts["bounced_pages"] += len(slots)
        spans = merged(list(self._walk(slots)))
        if self._bus is not None:
            spans = self._enter(self._bus, slots)
        limits, shift = mechanism.limits, mechanism.route.shift
        flat: list[int] = []
        for start, length in spans:
            for at, size in cut(start, length, limits):
                flat += (at + shift) & ABSENT, size
        if len(flat) > 2 * limits.nsegments.value:
            raise AssertionError("a plan came out with too many segments")
        segmenter.adopt(flat)
        return self

    def _walk(self, slots: list[int]) -> Iterator[tuple[int, int]]:
        """(physical address, length) of everything, in order; what has two copies is noted on the way."""
        mechanism, page = self._mechanism, self._mechanism.page
        watched = mechanism.ground.cache is not None
        through = watched and mechanism.ground.uncached is None  # bounce pages are in the cache too
        offset = used = 0
        for stretch in self._plan.stretches:
            within = stretch.lead
            for piece in self._plan.pieces[stretch.first : stretch.end]:
                if not stretch.copied:
                    if watched and not piece.uncached:
                        self._cached.append(Cached(offset, piece.size, piece.address))
                    offset += piece.size
                    yield piece.address, piece.size
                    continue
                done = 0
                while done < piece.size:
                    size = min(page - within, piece.size - done)
                    address = slots[used] + within
                    self._copied.append(Copied(offset, size, piece.memory, piece.origin + done, address))
                    if through:
                        self._cached.append(Cached(offset, size, address))
                    yield address, size
                    done, offset, within = done + size, offset + size, within + size
                    if within == page:
                        within, used = 0, used + 1
            if stretch.copied and within:
                used += 1

    def _enter(self, bus: IovaNeed, slots: list[int]) -> list[tuple[int, int]]:
        """Write the page-table entries; the runs on the bus."""
        mechanism, plan = self._mechanism, self._plan
        spans, _ = bus_layout(mechanism.layout(self._direction), plan.pieces, plan.stretches)
        bus.enter(frames_of(plan, slots, mechanism.page))
        return merged([(bus.address + at, size) for at, size in spans])

    def copy_out(self, segmenter: Segmenter, offset: int, length: int) -> None:
        """PREREAD, PREWRITE: the CPU's bytes of the range become the device's."""
        ground = self._mechanism.ground
        pages, base, end = ground.uncached or ground.memory, ground.base, offset + length
        cache, moved = ground.cache, 0
        for copy in self._copied:
            lo, hi = max(offset - copy.offset, 0), min(end - copy.offset, copy.size)
            if lo < hi:
                at, source = copy.address - base + lo, copy.origin + lo
                pages[at : at + hi - lo] = copy.memory[source : source + hi - lo]
                moved += hi - lo
        if cache is not None:
            for line in self._cached:
                lo, hi = max(offset - line.offset, 0), min(end - line.offset, line.size)
                if lo < hi:
                    cache.to_device(line.address + lo, hi - lo)
        if moved and self._mechanism.zone is not None:
            self._mechanism.zone.count("copied_out", moved)

    def copy_in(self, segmenter: Segmenter, offset: int, length: int) -> None:
        """POSTREAD: the device's bytes of the range become the CPU's."""
        self._fetch(offset, length, True)
        ground = self._mechanism.ground
        pages, base, end = ground.uncached or ground.memory, ground.base, offset + length
        moved = 0
        for copy in self._copied:
            lo, hi = max(offset - copy.offset, 0), min(end - copy.offset, copy.size)
            if lo < hi:
                at, target = copy.address - base + lo, copy.origin + lo
                copy.memory[target : target + hi - lo] = pages[at : at + hi - lo]
                moved += hi - lo
        if moved and self._mechanism.zone is not None:
            self._mechanism.zone.count("copied_in", moved)

    def done(self, segmenter: Segmenter, offset: int, length: int) -> None:
        """POSTWRITE: the device has read the range, and no longer will."""
        self._fetch(offset, length, False)

    def copied(self) -> tuple[Copied, ...]:
        """What has two copies, one of them in a bounce page: for instruments."""
        return tuple(self._copied)

    def direct(self) -> list[Cached]:
        """What lies where it was, of memory that has a `Coherence`: for instruments."""
        bounced = {copy.offset for copy in self._copied}
        return [line for line in self._cached if line.offset not in bounced]

    def holdings(self, segmenter: Segmenter) -> Iterator[tuple[Pool, int]]:
        """What it holds, and how much of it: for instruments."""
        if self._plan.slots and self._mechanism.zone is not None:
            yield self._mechanism.zone, segmenter.nheld
        if self._bus is not None:
            yield self._bus.pool, self._bus.amount

    @property
    def translator(self) -> Translator | None:
        """Behind which it lies, if behind any; for instruments."""
        return None if self._bus is None else self._bus.pool.translator

    def _fetch(self, offset: int, length: int, written: bool) -> None:
        cache, end = self._mechanism.ground.cache, offset + length
        if cache is not None:
            for line in self._cached:
                lo, hi = max(offset - line.offset, 0), min(end - line.offset, line.size)
                if lo < hi:
                    cache.to_cpu(line.address + lo, hi - lo, written)

    def release(self, segmenter: Segmenter) -> None:
        """Everything back to its pools, and on to whoever waits."""
        mechanism = self._mechanism
        queue = mechanism.ground.queue
        with queue.lock:
            if self._bus is not None:  # first: no entry may name a bounce page that is somebody else's already
                self._bus.give()
                self._bus = None
            if self._plan.slots:
                assert mechanism.zone is not None
                mechanism.zone.give(segmenter)
            self._copied.clear()
            self._cached.clear()
            if queue.line:
                queue.serve()

    def quarantine(self, segmenter: Segmenter, entering: bool) -> None:
        """Count what nobody may have until the device is idle."""
        mechanism = self._mechanism
        with mechanism.ground.queue.lock:
            if mechanism.zone is not None:
                mechanism.zone.quarantined += segmenter.nheld if entering else -segmenter.nheld
            if self._bus is not None:
                self._bus.quarantine(entering)
