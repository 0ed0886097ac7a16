"""Bounce: pages that the device cannot reach are copied through pages that it can.

Only the pages that need it are bounced, one page of the zone each. Where the tag allows fewer segments than the buffer
has, a contiguous run joins just enough of them. A bounce page is a second copy of bytes that agrees with the first only
at a sync, like a cache that DMA does not see: PREREAD and PREWRITE copy out, POSTREAD copies in.

Source: Thorpe, USENIX 1998, section 2 (bouncing as a non-coherent cache); Gibbs, tech-kern 10 June 1998.
"""

from __future__ import annotations

from typing import Final, cast

from busdma.buffers import Buffer
from busdma.constraints import Constraints
from busdma.errors import BufferGone, ConstraintError, DriverError
from busdma.mechanisms import Holder, Shortage, Unreachable
from busdma.mechanisms.runs import plan_run, shifted
from busdma.mechanisms.zone import Run, Zone
from busdma.pool import Need
from busdma.segments import NOT_MAPPED, TOO_MANY, UNREACHABLE, Segmenter
from busdma.sync import Direction

OPTION: Final = "the machine's option bounce="  #: how the errors call what limits a zone; the number follows


class BounceNeed:
    """So many pages of a zone for one segmenter: singles, or a run with singles around it."""

    __slots__ = ("amount", "pool", "run", "segmenter")

    def __init__(self, zone: Zone, segmenter: Segmenter, amount: int, run: Run | None) -> None:
        self.pool = zone
        self.segmenter = segmenter
        self.amount = amount
        self.run = run

    def ready(self) -> bool:
        """See `busdma.pool.Need`."""
        return self.pool.ready(self.amount) if self.run is None else self.pool.ready_run(self.run) is not None

    def take(self) -> bool:
        """See `busdma.pool.Need`."""
        if self.run is None:
            return self.pool.take(self.segmenter, self.amount)
        return self.pool.take_run(self.segmenter, self.run)

    def give(self) -> None:
        """See `busdma.pool.Need`."""
        self.pool.give(self.segmenter)


class Bounce:
    """Bouncing through one zone, under one tag's constraints."""

    name = "bounce"

    def __init__(self, zone: Zone, constraints: Constraints, page_size: int) -> None:
        self.zone = zone
        self._constraints = constraints
        self._page = page_size
        self._reserved = False
        self._lock = zone.queue.lock
        self._nsegments = constraints.nsegments.value
        self._particular = constraints.alignment.value > page_size or constraints.joint.value > 1

    def place(
        self, segmenter: Segmenter, buffer: Buffer, answer: int, direction: Direction
    ) -> Holder | Shortage | Unreachable:
        """Bounce what ``segmenter.load`` found out of reach, or join what has too many segments."""
        run: Run | None = None
        pages = segmenter.needed
        crowded = answer == TOO_MANY or segmenter.wanted > self._nsegments
        if crowded or (self._particular and self.moves_as_one(buffer)):
            run = plan_run(buffer, self._constraints, self._page)
            if run is None:
                return Unreachable(self.name, self._crowded, too_many_segments=True)
            pages = run.before + run.pages + run.after
            if not run.pages:
                run = None  # single pages will do
        zone = self.zone
        with self._lock:
            if run is None and zone.free >= pages and not zone.waiting:
                try:
                    if buffer.host is not None:
                        self._attach(segmenter, buffer, None)
                    else:
                        answer = segmenter.place(buffer.frames, buffer.start, buffer.length, zone.slots)
                        if answer < 1:
                            raise _failure(answer, buffer)
                except BaseException:  # a filter that raises, or a buffer that is not what its protocol says
                    segmenter.release(zone.slots)
                    raise
                zone.free -= pages  # the segmenter took them itself
                return self
            if pages > zone.limit:
                zone.counts["refused"] += 1
                return Unreachable(self.name, lambda _: self._too_many(pages))
            need = BounceNeed(zone, segmenter, pages, run)
            if zone.queue.take((need,)):
                try:
                    self._attach(segmenter, buffer, run)
                except BaseException:
                    self.release(segmenter)
                    raise
                return self
        return Shortage(self, (need,))

    def moves_as_one(self, buffer: Buffer) -> bool:
        """Would single pages be misaligned, or joined where they may not be?"""
        limits = self._constraints
        return limits.alignment.value > self._page or shifted(buffer, limits, self._page)

    def watch(self, segmenter: Segmenter) -> None:
        """See `busdma.mechanisms.Mechanism`."""
        self.zone.watch(segmenter)

    def retire(self, segmenter: Segmenter) -> None:
        """See `busdma.mechanisms.Mechanism`."""
        self.zone.retire(segmenter)

    def least(self, segmenter: Segmenter) -> tuple[Need, ...]:
        """See `busdma.mechanisms.Mechanism`: one page."""
        return (BounceNeed(self.zone, segmenter, 1, None),)

    def deferred(self) -> None:
        """See `busdma.mechanisms.Lender`."""
        self.zone.count("deferred", 1)

    def finish(self, segmenter: Segmenter, buffer: Buffer, needs: tuple[Need, ...]) -> Bounce:
        """See `busdma.mechanisms.Lender`."""
        self._attach(segmenter, buffer, cast(BounceNeed, needs[0]).run)
        return self

    copy_out = staticmethod(Segmenter.copy_out)  #: client to bounce pages
    copy_in = staticmethod(Segmenter.copy_in)  #: bounce pages to client

    def done(self, segmenter: Segmenter, offset: int, length: int) -> None:
        """POSTWRITE: the bounce pages hold nothing new."""

    def release(self, segmenter: Segmenter) -> None:
        """Pages back to the zone, and on to whoever waits."""
        if segmenter.foreign:  # let go of the host's memory
            segmenter.foreign = False
            segmenter.client = segmenter.target = segmenter.ram
        zone = self.zone
        with self._lock:
            zone.give(segmenter)
            if zone.queue.line:
                zone.queue.serve()  # of every pool: an idle page here may be the memory that another zone needs to grow

    def reserved(self, maxsize: int) -> Bounce:
        """See `busdma.mechanisms.Mechanism`: a part of the zone, for a map that must never wait."""
        part = reserve(self.zone, maxsize, self._page, self._constraints)
        made = Bounce(part, self._constraints, self._page)
        made._reserved = True
        return made

    def give_up(self) -> None:
        """See `busdma.mechanisms.Mechanism`."""
        if self._reserved:
            self.zone.join()

    def quarantine(self, segmenter: Segmenter, entering: bool) -> None:
        """Count the pages that nobody may have until the device is idle."""
        with self.zone.queue.lock:
            self.zone.quarantined += segmenter.nheld if entering else -segmenter.nheld

    def _attach(self, segmenter: Segmenter, buffer: Buffer, run: Run | None) -> None:
        """Place the buffer with the pages that are held, or else free. Under the lock."""
        if run is None:
            answer = segmenter.place(buffer.frames, buffer.start, buffer.length, self.zone.slots)
        else:
            where = (run.first, run.pages, run.lead)
            answer = segmenter.place(buffer.frames, buffer.start, buffer.length, self.zone.slots, *where)
        if answer < 1:
            raise _failure(answer, buffer)
        host = buffer.host
        if host is not None:
            segmenter.foreign = True
            segmenter.client = host
            if not host.readonly:  # if it is, only Direction.TO_DEVICE is loaded, and nothing is copied in
                segmenter.target = host

    def _crowded(self, segmenter: Segmenter) -> str:
        limit = self._constraints.nsegments
        return (
            f"even one contiguous run has more than {limit.value} segments (nsegments of tag {limit.origin!r}, "
            f"{self._constraints.segment_size} bytes each), so split the transfer"
        )

    def _too_many(self, pages: int) -> str:
        return (
            f"{pages} bounce pages needed and {self.zone.name} may hold {self.zone.limit}: raise the zone's limit "
            f"({OPTION}{pages + self.zone.apart}), or split the transfer"
        )


def reserve(zone: Zone, maxsize: int, page: int, limits: Constraints, *, translated: bool = False) -> Zone:
    """A part of `zone` that any buffer of `maxsize` bytes fits, however it lies; `translated`: any pages are adjacent.

    ConstraintError if the zone can never have so many pages, ResourceShortage if it has not now.
    """
    pages = (maxsize + page - 2) // page + 1
    if pages > zone.limit:
        raise ConstraintError(
            f"a buffer of {maxsize} bytes, wherever it lies, needs {pages} bounce pages, and {zone.name} may hold "
            f"{zone.limit}{f' besides the {zone.apart} reserved' if zone.apart else ''}: raise the zone's limit "
            f"({OPTION}{pages + zone.apart}), or derive a tag with a smaller maxsize"
        )
    if translated:
        return zone.split(pages, alignment=page, boundary=0, scattered=True)
    boundary = limits.boundary.value
    across = 0 < boundary < pages * page
    return zone.split(
        pages,
        alignment=max(limits.alignment.value, page, boundary if across else 1),
        boundary=0 if across else boundary,
        scattered=limits.nsegments.value >= pages
        and limits.segment_size >= page >= limits.alignment.value
        and (limits.joint.value == 1 or limits.alignment.value == 1),  # or a load could need one run
    )


def _failure(answer: int, buffer: Buffer) -> Exception:
    if answer == NOT_MAPPED:
        return BufferGone(f"cannot load {buffer.describe()}: it was released meanwhile; keep it until the unload")
    if answer == UNREACHABLE:
        return DriverError(
            f"cannot load {buffer.describe()}: a filter of its tag objects to more than when it was asked just before; "
            "let a filter always answer the same of the same address"
        )
    return AssertionError("a bounce plan came out with too many segments")
