"""The bounce zone: pages that many tags share, which grow with need and are given back when idle.

A zone serves every tag that can reach all of its pages. It starts empty, grows in chunks up to its limit, and looks
now and then at how many pages were really in use at once: whole chunks beyond that go back to the machine, at once if
the machine itself is short of memory. Slot numbers are stable while a page is held.

Source: Gibbs, tech-kern 10 June 1998 ("we tap out at around 512k, an easily tuned maximum").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.errors import ResourceShortage, ShortageReason
from busdma.machine.frames import FrameAllocator
from busdma.pool import PoolQueue
from busdma.segments import ABSENT, Segmenter, Slots

DEFAULT_LIMIT: Final = 128  #: pages, as in 1998: 512 KiB
CHUNK: Final = 16  #: pages by which a zone grows at least, if its limit allows
REVIEW: Final = 256  #: releases between two looks at what is idle


@dataclass(frozen=True, slots=True)
class Run:
    """Slots that must be contiguous: which pages of the buffer they stand for, and what the run must satisfy."""

    first: int  #: number of the first page, counted from the buffer's
    pages: int
    before: int  #: single slots for unreachable pages in front of the run
    after: int  #: and behind it
    alignment: int
    boundary: int
    lead: int  #: bytes of the first page in front of the buffer
    length: int  #: bytes that the run must hold


class Zone:
    """Bounce pages within `reach`. All methods but `statistics` are called under the queue's lock."""

    unit = "page"

    def __init__(
        self,
        name: str,
        queue: PoolQueue,
        frames: FrameAllocator,
        reach: AddressSet,
        limit: int,
        whole: Zone | None = None,
        *,
        fresh: Callable[[Sequence[int]], object] | None = None,
    ) -> None:
        """`fresh`: called with page frames, by physical address, that have just become the zone's."""
        self.name = name
        self.queue = queue
        self.reach = reach
        self.limit = limit
        self.apart = 0  #: pages that were split off: they count no more in the limit
        self.waiting = 0
        self.slots = Slots(limit)
        self.free = 0
        self.capacity = 0
        self.quarantined = 0
        self._whole = whole  # the zone this is a reserved part of; such a part keeps its pages
        self._frames = frames
        self._fresh = fresh
        self._page = frames.page_size
        self._chunks: list[tuple[int, int]] = []  # first slot, pages
        self._busiest = 0  # most pages in use since the last review
        self._releases = 0
        self._segmenters: set[Segmenter] = set()  # of every map that may bounce here
        self._growing = False
        self._scarce = ShortageReason.BUSY  # why the machine's memory could not let the zone grow
        self.counts = {"bounced_pages": 0, "copied_out": 0, "copied_in": 0, "deferred": 0, "refused": 0}
        self.counts |= {"grown_pages": 0, "returned_pages": 0, "peak_active": 0, "peak_pages": 0}
        if whole is None:
            frames.add_reclaimer(self.reclaim)
        else:
            self.counts = whole.counts
            self._segmenters = whole._segmenters

    @property
    def active(self) -> int:
        """Pages that somebody holds."""
        return self.capacity - self.free

    def serves(self, reach: AddressSet) -> bool:
        """True if a tag with this reach can use every page of the zone."""
        return self.reach <= reach

    # -- singles ------------------------------------------------------------------------------------------------------

    def ready(self, pages: int) -> bool:
        """Are `pages` slots free, or made free by growing?"""
        return self.free >= pages or self._grow(pages - self.free)

    def take(self, segmenter: Segmenter, pages: int) -> bool:
        """Have `segmenter` hold `pages` slots, or none."""
        if not self.ready(pages):
            return False
        segmenter.take(self.slots, pages)
        self.free -= pages
        return True

    def give(self, segmenter: Segmenter) -> None:
        """Take back all that `segmenter` holds."""
        active = self.capacity - self.free  # never more than just before somebody gives back
        if active > self._busiest:
            self._busiest = active
            self.counts["peak_active"] = max(self.counts["peak_active"], active)
        self.free += segmenter.release(self.slots)
        self._releases += 1
        if self._releases >= REVIEW and self._whole is None:
            self._review()

    # -- runs ---------------------------------------------------------------------------------------------------------

    def ready_run(self, run: Run) -> Sequence[int] | None:
        """The slots of a run that could be taken now, with the single slots around it; None: not now.

        ResourceShortage if the machine could never have such a run, or the zone is idle and still has none: no wait
        would make one.
        """
        pages = run.before + run.pages + run.after
        self._scarce = ShortageReason.BUSY
        found = self._find(run)
        if found is None and self._make(run):
            found = self._find(run)
        if found is None or not self.ready(pages):
            if self._scarce is ShortageReason.TOO_LARGE:
                raise ResourceShortage(
                    f"{self.name} can never have a contiguous run of {run.pages} pages within {self.reach}; "
                    "split the transfer",
                    self._scarce,
                )
            if self.active == 0:
                raise ResourceShortage(
                    f"{self.name} is idle and still has no contiguous run of {run.pages} pages within {self.reach}; "
                    "free some memory there, or split the transfer",
                    ShortageReason.FRAGMENTED,
                )
            return None
        return found

    def take_run(self, segmenter: Segmenter, run: Run) -> bool:
        """Have `segmenter` hold a contiguous run and the single slots around it, in the buffer's order, or none.

        Errors as `ready_run`.
        """
        found = self.ready_run(run)
        if found is None:
            return False
        for slot in found:
            self.slots.free[slot] = 0
        segmenter.take(self.slots, run.before)
        segmenter.hold(self.slots, found)
        segmenter.take(self.slots, run.after)
        self.free -= run.before + run.pages + run.after
        return True

    def _find(self, run: Run) -> Sequence[int] | None:
        """The slots of a free run that satisfies `run`."""
        free, addresses, page = bytes(self.slots.free), self.slots.addresses, self._page
        pattern = b"\x01" * run.pages
        at = free.find(pattern)
        while at >= 0:
            base = addresses[at]
            contiguous = all(addresses[at + i] == base + i * page for i in range(run.pages))
            if contiguous and _fits(base, run):
                return range(at, at + run.pages)
            at = free.find(pattern, at + 1)
        # Adjacent pages mostly have adjacent numbers, but not where they came when none were left in one piece.
        slots = {addresses[slot]: slot for slot, is_free in enumerate(free) if is_free}
        for base in slots:
            if _fits(base, run):
                found = [slots.get(base + i * page, -1) for i in range(run.pages)]
                if min(found) >= 0:
                    return found
        return None

    def _make(self, run: Run) -> bool:
        """Grow by one chunk that satisfies `run`, giving idle chunks back for it where the limit is in the way."""
        if self.capacity + run.pages > self.limit:
            self._return_chunks(self.active)
        if self.capacity + run.pages > self.limit:
            return False
        boundary = run.boundary if run.pages * self._page <= run.boundary else 0
        if self._add(run.pages, run.alignment, boundary):
            return True
        before = self.capacity  # idle pages of its own may lie where the run could be
        self._return_chunks(self.active)
        return self.capacity < before and self._add(run.pages, run.alignment, boundary)

    # -- reservations -------------------------------------------------------------------------------------------------

    def split(self, pages: int, alignment: int, boundary: int, scattered: bool) -> Zone:
        """A zone of exactly `pages` pages that this one gives up, for a map that must never wait; `join` ends it.

        The pages are one run that starts at a multiple of `alignment` and crosses none of `boundary` (0: any), so that
        every shorter run can be had from it; where that is not to be had and `scattered` will do, any pages.
        ResourceShortage if so many are not to be had now, or somebody waits for them.
        """
        with self.queue.lock:
            rest = self.limit - pages
            if not self.waiting:
                self._shrink(rest)
            if self.waiting or self.capacity > rest:
                raise ResourceShortage(
                    f"{pages} pages of {self.name} cannot be reserved now: {self.active} of its {self.limit} are in "
                    f"use, {self.waiting} loads wait for some; create the map while the zone is idle",
                    self.shortage(pages),
                )
            name = f"{self.name}, {pages} pages reserved"
            part = Zone(name, self.queue, self._frames, self.reach, pages, self, fresh=self._fresh)
            if not part._add(pages, alignment, boundary) and not (scattered and part._grow(pages)):
                raise ResourceShortage(
                    f"no memory within {self.reach} for {pages} reserved pages of {self.name}"
                    + ("" if scattered else " in one run"),
                    part._scarce,
                )
            self.limit = rest
            self.apart += pages
            return part

    def join(self) -> None:
        """End a `split`: the pages go back to the machine, and the right to have them to the zone they came from."""
        assert self._whole is not None
        with self.queue.lock:
            self._whole.limit += self.limit
            self._whole.apart -= self.limit
            self.limit = 0
            self._return_chunks(0)
            self.queue.serve()

    # -- size ---------------------------------------------------------------------------------------------------------

    def shortage(self, amount: int) -> ShortageReason:
        """Why `amount` pages cannot be had now."""
        if amount > self.limit:
            return ShortageReason.TOO_LARGE
        if amount > self.limit - self.quarantined:
            return ShortageReason.LEAK
        if self.waiting or amount > self.free + self.limit - self.capacity:
            return ShortageReason.BUSY
        return ShortageReason.FRAGMENTED if amount <= self.free else self._scarce

    def reclaim(self, pages: int) -> int:
        """The machine is short of memory: give back what is idle; how many pages."""
        with self.queue.lock:
            if self._growing:
                return 0  # it is this zone that is short
            before = self.capacity
            self._shrink(self.capacity - pages)
            return before - self.capacity

    def trim(self) -> int:
        """Give back every chunk that nobody uses; how many pages."""
        return self.reclaim(self.capacity)

    def count(self, what: str, amount: int) -> None:
        """Add to a counter of `statistics`. Takes the lock: drivers may be threads."""
        with self.queue.lock:
            self.counts[what] += amount

    def watch(self, segmenter: Segmenter) -> None:
        """`segmenter` may bounce here: what it has counted belongs to the zone's statistics."""
        with self.queue.lock:
            self._segmenters.add(segmenter)

    def retire(self, segmenter: Segmenter) -> None:
        """The end of `watch`: keep its counts."""
        with self.queue.lock:
            self._segmenters.remove(segmenter)
            for what, amount in _counted(segmenter).items():
                self.counts[what] += amount

    def statistics(self) -> dict[str, Any]:
        """Pages and counters: limit, pages (now), free, active, quarantined, waiting, and totals since the start."""
        totals = dict(self.counts)
        with self.queue.lock:
            for segmenter in self._segmenters:
                for what, amount in _counted(segmenter).items():
                    totals[what] += amount
        totals["peak_active"] = max(totals["peak_active"], self.active)
        return {
            "limit": self.limit,
            "pages": self.capacity,
            "free": self.free,
            "active": self.active,
            "quarantined": self.quarantined,
            "waiting": self.waiting,
            **totals,
        }

    def _grow(self, pages: int) -> bool:
        """`pages` more pages at least, or none."""
        spare = self.limit - self.capacity
        if pages > spare:
            return False
        self._growing = True
        try:
            return self._grow_within(pages, spare)
        finally:
            self._growing = False

    def _grow_within(self, pages: int, spare: int) -> bool:
        for wanted in dict.fromkeys((min(max(pages, CHUNK), spare), pages)):
            if self._add(wanted, 1, 0):
                return True
        try:
            scattered = self._frames.allocate(pages, "bounce", within=self.reach)
        except ResourceShortage as refusal:
            self._scarce = refusal.reason
            return False
        for frame in scattered:
            self._adopt([frame])
        return True

    def _add(self, pages: int, alignment: int, boundary: int) -> bool:
        try:
            base = self._frames.allocate_run(pages, "bounce", within=self.reach, alignment=alignment, boundary=boundary)
        except ResourceShortage as refusal:
            self._scarce = refusal.reason
            return False
        self._adopt([base + i * self._page for i in range(pages)])
        return True

    def _adopt(self, addresses: list[int]) -> None:
        """Give fresh frames slot numbers: in one piece where there is room, in several otherwise.

        They are given back chunk by chunk, however many came at once; a run may span chunks, and gaps.
        """
        slots, left = self.slots, list(addresses)
        if self._fresh is not None:
            self._fresh(addresses)
        while left:
            at, length = self._gap(len(left))
            for slot, address in zip(range(at, at + length), left, strict=False):
                slots.addresses[slot] = address
                slots.free[slot] = 1
            slots.hint = min(slots.hint, at)
            for part in range(at, at + length, CHUNK):
                self._chunks.append((part, min(CHUNK, at + length - part)))
            left = left[length:]
        self.free += len(addresses)
        self.capacity += len(addresses)
        self.counts["grown_pages"] += len(addresses)
        self.counts["peak_pages"] = max(self.counts["peak_pages"], self.capacity)

    def _gap(self, wanted: int) -> tuple[int, int]:
        """Unused slot numbers: the first gap of `wanted`, or the longest there is."""
        best = (0, 0)
        at = 0
        for begin, length in [*sorted(self._chunks), (self.slots.entries, 0)]:
            if begin - at >= wanted:
                return at, wanted
            best = max(best, (begin - at, at))
            at = begin + length
        return best[1], best[0]

    def _review(self) -> None:
        self._return_chunks(max(self._busiest, self.active))
        self._busiest = self.active
        self._releases = 0

    def _return_chunks(self, keep: int) -> None:
        """Give whole free chunks back as long as `keep` pages remain."""
        for chunk in sorted(self._chunks, reverse=True):
            if self.capacity - chunk[1] >= keep:
                self._return(chunk)

    def _shrink(self, most: int) -> None:
        """Give whole free chunks back until no more than `most` pages remain, or no chunk is free."""
        for chunk in sorted(self._chunks, reverse=True):
            if self.capacity > most:
                self._return(chunk)

    def _return(self, chunk: tuple[int, int]) -> None:
        """Give a chunk back to the machine, if all of it is free."""
        slots, (at, length) = self.slots, chunk
        if chunk not in self._chunks or not all(slots.free[at : at + length]):
            return  # or it was given back meanwhile, by somebody who was served when another was
        frames = list(slots.addresses[at : at + length])  # a copy in either form of the segmenter
        for slot in range(at, at + length):
            slots.free[slot] = 0
            slots.addresses[slot] = ABSENT
        self._chunks.remove(chunk)
        self.capacity -= length
        self.free -= length
        self.counts["returned_pages"] += length
        self._frames.free(frames)


def _counted(segmenter: Segmenter) -> dict[str, int]:
    return {
        "bounced_pages": segmenter.bounced,
        "copied_out": segmenter.sent,
        "copied_in": segmenter.received,
    }


def _fits(base: int, run: Run) -> bool:
    """True if the run may begin at page `base`: aligned, and across no boundary that its length could avoid."""
    if base & (run.alignment - 1):
        return False
    first = base + run.lead
    return not run.boundary or run.length > run.boundary or (first ^ (first + run.length - 1)) < run.boundary
