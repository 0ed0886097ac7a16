"""The pool of bus pages behind a translator: IOVA, DVMA, slots of a scatter-gather map.

*Strict*: what is given back is invalidated at once. *Standing*: it keeps its page-table entries and counts as free; who
loads the same page frames again takes the same bus pages and touches no hardware. What stands longest goes first when
the allocator has no room, with one flush for all that one request drives out. Either way an entry and what the hardware
caches of it are gone before its bus pages go to somebody else, and, by `IovaPool.forget`, before its page frames do.

Source: Hannum, port-sparc 6 June 1995 (standing entries); Thorpe, USENIX 1998, section 2 (scatter-gather-mapped DMA).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from busdma.addresses import AddressSet
from busdma.errors import DriverError, ResourceShortage, ShortageReason
from busdma.mechanisms.free_list import NO_ROOM, place
from busdma.mechanisms.iova_allocator import IovaAllocator, whole_pages
from busdma.mechanisms.standing import Holding, Key, Mapping, Standing
from busdma.mechanisms.translation import Translator
from busdma.pool import PoolQueue
from busdma.sync import Direction


class IovaNeed:
    """So many adjacent bus pages, and what they stand for. All methods are called under the queue's lock.

    `alignment_pages` and `boundary_pages`: powers of two; boundary 0 means none. `within`: bus addresses, as the
    translator sees them, in one interval of which all pages must lie. `frames`, where they are known beforehand: what
    will be entered, so that a standing mapping of it is found before any other is driven out. `lasting`: entries may
    stand; those of frames that go from hand to hand without a change of owner, such as bounce pages, must not.
    """

    __slots__ = (
        "alignment_pages",
        "amount",
        "boundary_pages",
        "direction",
        "entered",
        "first",
        "key",
        "lasting",
        "mapping",
        "pool",
        "within",
    )

    def __init__(
        self,
        pool: IovaPool,
        pages: int,
        *,
        alignment_pages: int = 1,
        boundary_pages: int = 0,
        within: AddressSet | None = None,
        direction: Direction = Direction.BOTH,
        frames: Sequence[int] | None = None,
        lasting: bool = True,
    ) -> None:
        self.pool = pool
        self.amount = pages
        self.alignment_pages = alignment_pages
        self.boundary_pages = boundary_pages
        self.within = None if within is None else pool.pages_within(within)
        self.direction = direction
        self.lasting = lasting and pool.standing
        self.key = None if frames is None or not self.lasting else Key.of(self.filled(frames), direction)
        self.first = NO_ROOM  #: page number of the first bus page, while it is held
        self.entered = False  #: entries of these bus pages may be visible to a device
        self.mapping: Mapping | None = None  #: what the entries say, in a pool where they may stand

    @property
    def address(self) -> int:
        """The first bus address, as the translator sees it."""
        return self.first * self.pool.page_size

    def filled(self, frames: Sequence[int]) -> Sequence[int]:
        """A frame for each bus page: those behind the last, which only a bridge that reads ahead sees, repeat it."""
        spare = self.amount - len(frames)
        if not frames or spare < 0:
            raise DriverError(
                f"{len(frames)} page frames for {self.amount} bus pages of {self.pool.name}: ask for enough bus pages, "
                "and give at least one frame"
            )
        return [*frames, *[frames[-1]] * spare] if spare else frames

    def ready(self) -> bool:
        """See `busdma.pool.Need`."""
        return self.pool.ready(self)

    def take(self) -> bool:
        """See `busdma.pool.Need`."""
        return self.pool.take(self)

    def give(self) -> None:
        """See `busdma.pool.Need`."""
        self.pool.give(self)

    def enter(self, frames: Sequence[int]) -> None:
        """Let the bus pages be these page frames, by physical address; from here on a device reaches them."""
        self.pool.enter(self, frames)

    def quarantine(self, entering: bool) -> None:
        """A device may still use them: nobody else may, until that ends."""
        self.pool.quarantine(self, entering)


class IovaPool:
    """Bus pages that one translator maps. Methods that take a need are called under the queue's lock.

    `standing`: leave entries in place when they are given back.
    """

    unit = "bus page"

    def __init__(
        self,
        name: str,
        queue: PoolQueue,
        translator: Translator,
        allocator: IovaAllocator,
        *,
        standing: bool = False,
        whole: IovaPool | None = None,
    ) -> None:
        self.name = name
        self.queue = queue
        self.translator = translator
        self.standing = standing
        self.page_size = translator.page_size
        self.pages = allocator.pages  #: how many may be held at once
        self.active = 0  #: how many somebody holds
        self.waiting = 0
        self._allocator = allocator
        self._whole = whole  # the pool this is a reserved part of
        self._parts: list[IovaPool] = []
        self._usable = AddressSet((first, end - 1) for first, end in allocator.windows)  # page numbers
        self._largest = _longest(self._usable)
        self._stand = Standing()
        self._cleared: list[tuple[int, int]] = []  # (first, pages) that the hardware may still cache: flush, then grant
        self._quarantined: dict[int, int] = {}
        self._ranges: dict[AddressSet, list[tuple[int, int]]] = {}
        self.counts = {"allocated": 0, "refused": 0, "deferred": 0, "reused": 0, "evicted": 0}
        self.counts |= {"entered": 0, "cleared": 0, "flushes": 0, "peak_active": 0}
        if whole is not None:
            self.counts = whole.counts

    @property
    def quarantined(self) -> int:
        """Bus pages that a device may still use, though their owner has left."""
        return sum(self._quarantined.values())

    def pages_within(self, addresses: AddressSet) -> list[tuple[int, int]]:
        """The bus pages that lie within a set of bus addresses: (first, last) ranges."""
        ranges = self._ranges.get(addresses)
        if ranges is None:
            ranges = self._ranges[addresses] = whole_pages(addresses, self.page_size)
        return ranges

    # -- needs --------------------------------------------------------------------------------------------------------

    def possible(self, need: IovaNeed) -> bool:
        """Would the pool have room for `need` if nobody held anything?"""
        limits = (need.amount, need.alignment_pages, need.boundary_pages, need.within)
        return place(((lo, hi + 1) for lo, hi in self._usable), *limits) >= 0

    def ready(self, need: IovaNeed) -> bool:
        """Could `need` be taken now? ResourceShortage: it never could."""
        if self._standing_for(need, need.key) is not None:
            return True
        first = self._find(need)
        if first >= 0:
            self._allocator.free(first, need.amount)
        return first >= 0

    def take(self, need: IovaNeed) -> bool:
        """Bus pages for `need`: those that stand for its frames, or any. ResourceShortage: there never could be any."""
        mapping = self._standing_for(need, need.key)
        if mapping is not None:
            self._reuse(need, mapping)
        else:
            need.first = self._find(need)
            if need.first < 0:
                return False
        self._took(need.amount)
        return True

    def recall(self, frames: bytes, direction: Direction, mechanism: object) -> Holding | None:
        """As `take`, for whoever of `mechanism` left what stands for these page frames. None: it is not so simple."""
        mapping = None if self.waiting else self._stand.latest(frames, direction)
        holder = None if mapping is None else mapping.holder
        if mapping is None or holder is None or holder.mechanism is not mechanism:
            return None
        need: IovaNeed = holder.need
        self._reuse(need, mapping)
        self._took(need.amount)
        return holder

    def enter(self, need: IovaNeed, frames: Sequence[int]) -> None:
        """See `IovaNeed.enter`. `need.first` may change: to where these frames stand already."""
        if need.first < 0:
            raise DriverError(f"no bus pages of {self.name} are held: take them before page frames are entered")
        frames = need.filled(frames)
        key = None
        if need.lasting:
            key = Key.of(frames, need.direction)
            if need.mapping is not None and need.mapping.key == key and not need.mapping.forgotten:
                return
            mapping = self._standing_for(need, key)
            if mapping is not None and not need.entered:
                self._allocator.free(need.first, need.amount)
                self._reuse(need, mapping)
                return
        if need.entered:
            self._invalidate(need)
            self._flush()
        need.entered = True
        self.translator.enter(need.address, frames, need.direction)
        self.counts["entered"] += need.amount
        if key is not None:
            need.mapping = Mapping(need.first, need.amount, key)
            self._stand.enter(need.mapping)

    def give(self, need: IovaNeed) -> None:
        """Take the bus pages back; what becomes of their entries is the pool's policy. DriverError: none are held."""
        if need.first < 0 or need.first in self._quarantined:
            state = "are held" if need.first < 0 else "can come back from quarantine; report the device idle first"
            raise DriverError(f"no bus pages of {self.name} {state}")
        mapping = need.mapping
        if mapping is not None and not mapping.forgotten:
            need.first, need.mapping, need.entered = NO_ROOM, None, False
            self._stand.keep(mapping)
            self.active -= mapping.pages
            return
        if need.entered:
            self._invalidate(need)
        self._allocator.free(need.first, need.amount)
        self.active -= need.amount
        need.first = NO_ROOM
        self._flush()

    def quarantine(self, need: IovaNeed, entering: bool) -> None:
        """See `IovaNeed.quarantine`."""
        if entering:
            self._quarantined[need.first] = need.amount
        else:
            self._quarantined.pop(need.first, None)

    # -- page frames that change owner --------------------------------------------------------------------------------

    def forget(self, frames: Iterable[int]) -> None:
        """These page frames, by physical address, change owner: on return no standing mapping names them.

        What somebody holds remains visible, that is what he holds it for; but it will not stand when he gives it back.
        """
        with self.queue.lock:
            if not self.standing:
                return
            frames = list(frames)
            for pool in (self, *self._parts):
                stand, held = pool._stand.naming(frames)
                for mapping in stand:
                    pool._evict(mapping)
                for mapping in held:
                    mapping.forgotten = True
                    pool._stand.drop(mapping)
                pool._flush()

    # -- reservations -------------------------------------------------------------------------------------------------

    def split(
        self, pages: int, *, alignment_pages: int = 1, boundary_pages: int = 0, within: AddressSet | None = None
    ) -> IovaPool:
        """A pool of exactly `pages` adjacent bus pages that this one gives up, for a map that must never wait.

        `join` ends it. ResourceShortage if so many are not to be had now, or somebody waits for them.
        """
        need = IovaNeed(self, pages, alignment_pages=alignment_pages, boundary_pages=boundary_pages, within=within)
        with self.queue.lock:
            first = NO_ROOM if self.waiting else self._find(need)
            if first < 0:
                raise ResourceShortage(
                    f"{pages} adjacent bus pages of {self.name} cannot be reserved now: {self.active} of its "
                    f"{self.pages} are in use, {self.waiting} loads wait for some; create the map while it is idle",
                    self.shortage(pages),
                )
            part = IovaPool(
                f"{self.name}, {pages} bus pages reserved",
                self.queue,
                self.translator,
                IovaAllocator([(first, first + pages - 1)]),
                standing=self.standing,
                whole=self,
            )
            self._parts.append(part)
            self._resize(-pages, self._usable - part._usable)
            return part

    def join(self) -> None:
        """End a `split`: the bus pages go back to where they came from. DriverError if some are held."""
        with self.queue.lock:
            whole = self._whole
            if whole is None or self.active:
                why = f"{self.active} of its bus pages are in use; unload first" if whole else "it is no reserved part"
                raise DriverError(f"cannot give {self.name} back: {why}")
            while len(self._stand):
                self._evict(self._stand.oldest())
            self._flush()
            (window,) = self._usable
            whole._parts.remove(self)
            whole._resize(self.pages, whole._usable | self._usable)
            whole._allocator.free(window[0], self.pages)
            self._whole = None
            self._resize(-self.pages, AddressSet())
            self.queue.serve()

    # -- what there is ------------------------------------------------------------------------------------------------

    def shortage(self, amount: int) -> ShortageReason:
        """Why `amount` adjacent bus pages cannot be had now."""
        if amount > self._largest:
            return ShortageReason.TOO_LARGE
        if self._quarantined:
            with self.queue.lock:
                lost = AddressSet((first, first + pages - 1) for first, pages in self._quarantined.items())
            if amount > _longest(self._usable - lost):
                return ShortageReason.LEAK
        if self.waiting or amount > self.pages - self.active:
            return ShortageReason.BUSY
        return ShortageReason.FRAGMENTED

    def count(self, what: str, amount: int) -> None:
        """Add to a counter of `statistics`. Takes the lock: drivers may be threads."""
        with self.queue.lock:
            self.counts[what] += amount

    def statistics(self) -> dict[str, Any]:
        """Bus pages now, and totals since the start.

        What stands is free. `largest_free`: the longest run that could be had. `allocated`, `reused`, `evicted`,
        `deferred` and `refused` count requests and mappings, `entered` and `cleared` page-table entries.
        """
        with self.queue.lock:
            runs = self._allocator.runs(self._stand.ranges())
            return {
                "pages": self.pages,
                "free": self.pages - self.active,
                "active": self.active,
                "standing": self._stand.pages,
                "quarantined": self.quarantined,
                "waiting": self.waiting,
                "largest_free": max((end - first for first, end in runs), default=0),
                **self.counts,
            }

    # -- underneath ---------------------------------------------------------------------------------------------------

    def _took(self, pages: int) -> None:
        counts = self.counts
        self.active = active = self.active + pages
        counts["allocated"] += 1
        if active > counts["peak_active"]:
            counts["peak_active"] = active

    def _standing_for(self, need: IovaNeed, key: Key | None) -> Mapping | None:
        if key is None:
            return None
        return self._stand.find(key, need.alignment_pages, need.boundary_pages, need.within)

    def _reuse(self, need: IovaNeed, mapping: Mapping) -> None:
        self._stand.take(mapping)
        need.first, need.mapping, need.entered = mapping.first, mapping, True
        self.counts["reused"] += 1

    def _find(self, need: IovaNeed) -> int:
        """Bus pages of which no entry is left anywhere; NO_ROOM. ResourceShortage: even an idle pool has none."""
        limits = (need.amount, need.alignment_pages, need.boundary_pages, need.within)
        first = NO_ROOM
        if need.amount <= self._unused:
            first = self._allocator.allocate(*limits)
        if first < 0:
            if not self.possible(need):
                self.counts["refused"] += 1
                raise ResourceShortage(
                    f"{self.name} can never have {need.amount} adjacent bus pages with alignment "
                    f"{need.alignment_pages} and boundary {need.boundary_pages}: its longest run is {self._largest}; "
                    "split the transfer",
                    ShortageReason.TOO_LARGE,
                )
            first = self._find_by_eviction(limits)
        try:
            self._flush()
        except BaseException:
            if first >= 0:
                self._allocator.free(first, need.amount)
            raise
        return first

    def _find_by_eviction(self, limits: tuple[int, int, int, Sequence[tuple[int, int]] | None]) -> int:
        """Drive out what stands longest until there is room; nothing if that would not make any."""
        stand, pages = self._stand, limits[0]
        if pages > self._unused + stand.pages:
            return NO_ROOM
        if pages > self._unused:
            while pages > self._unused:
                self._evict(stand.oldest())
            first = self._allocator.allocate(*limits)
            if first >= 0:
                return first
        if not len(stand) or place(self._allocator.runs(stand.ranges()), *limits) < 0:
            return NO_ROOM
        batch = 1
        while len(stand):  # it need not run dry: with all that stands gone, there is a place
            for _ in range(min(batch, len(stand))):
                self._evict(stand.oldest())
            first = self._allocator.allocate(*limits)
            if first >= 0:
                return first
            batch *= 2
        return NO_ROOM

    @property
    def _unused(self) -> int:
        """Bus pages that neither are held nor stand."""
        return self.pages - self.active - self._stand.pages

    def _evict(self, mapping: Mapping) -> None:
        """End a mapping that stands. Before anything is granted, or any frame changes owner, comes `_flush`."""
        self._clear(mapping.first, mapping.pages)
        self._stand.take(mapping)
        self._stand.drop(mapping)
        self._allocator.free(mapping.first, mapping.pages)
        self.counts["evicted"] += 1

    def _invalidate(self, need: IovaNeed) -> None:
        """No entry of the bus pages of `need` is left; the hardware may still cache some, until `_flush`."""
        self._clear(need.first, need.amount)
        if need.mapping is not None and not need.mapping.forgotten:
            self._stand.drop(need.mapping)
        need.mapping, need.entered = None, False

    def _clear(self, first: int, pages: int) -> None:
        self.translator.clear(first * self.page_size, pages)
        self._cleared.append((first, pages))
        self.counts["cleared"] += pages

    def _flush(self) -> None:
        """Have the hardware forget what was cleared: at once, from the lowest to the highest page of each window."""
        if not self._cleared:
            return
        for start, end in self._allocator.windows:
            cleared = [(first, first + pages) for first, pages in self._cleared if start <= first < end]
            if cleared:
                lo, hi = min(cleared)[0], max(last for _, last in cleared)
                self.translator.flush(lo * self.page_size, hi - lo)
                self.counts["flushes"] += 1
        self._cleared.clear()

    def _resize(self, pages: int, usable: AddressSet) -> None:
        self.pages += pages
        self._usable = usable
        self._largest = _longest(usable)


def _longest(ranges: AddressSet) -> int:
    return max((hi - lo + 1 for lo, hi in ranges), default=0)
