"""Any buffer by any route: windows, translators, bounce pages and caches that DMA does not see, composed.

`Direct` and `Bounce` are the short ways of linear buffers on machines without such caches. Everything else comes here:
lists of elements, scatter-gather maps, memory whose cache lines must be looked after. Bounce pages and bus pages are
asked for together and granted together.

Source: Thorpe, USENIX 1998, section 2; his window chain, NetBSD alpha (direct first, then SGMAP).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from busdma.buffers import Buffer
from busdma.constraints import Constraints
from busdma.errors import ShortageReason
from busdma.lists import ElementList
from busdma.machine.frames import DMA_SAFE
from busdma.mechanisms import Holder, Recall, Shortage, Unreachable
from busdma.mechanisms.bounce import OPTION, BounceNeed, reserve
from busdma.mechanisms.ground import Ground
from busdma.mechanisms.iova import IovaNeed, IovaPool
from busdma.mechanisms.mapped import map_linear, recall
from busdma.mechanisms.pieces import Piece, pieces_of
from busdma.mechanisms.placement import Placement
from busdma.mechanisms.plan import Layout, Plan, frames_of, make_plan
from busdma.mechanisms.zone import Zone
from busdma.paths import Route
from busdma.pool import Need, in_words
from busdma.segments import FOREIGN, Segmenter
from busdma.sync import Direction


class Planned(NamedTuple):
    """A plan, and everything that it must hold."""

    plan: Plan
    needs: tuple[Need, ...]
    never: Need | None  #: which of the needs no wait would fulfil


class Composed:
    """One route of a tag. `limits` are the tag's, in the addresses that the route leads to (`Constraints.moved`).

    Without `zone` nothing can be copied.
    """

    def __init__(self, ground: Ground, route: Route, limits: Constraints, zone: Zone | None) -> None:
        self.ground = ground
        self.route = route
        self.name = route.name
        self.zone = zone
        self.pool: IovaPool | None = route.pool
        self.limits = limits
        self.page = ground.page_size
        self._reserved = False
        reach = self.limits.reach
        self._within = None if self.pool is None or self.pool.translator.window <= reach else reach
        first, end = self.memory = ground.base, ground.base + len(ground.memory)  #: physical, to below `end`
        entered = self.pool is not None and self.pool.translator.reach.covers(first, end - 1)
        self._forced = ground.force_bounce and zone is not None
        self._simple = entered and ground.cache is None and not self._forced  # any page may stay where it is
        self._spill = 0 if self.pool is None else -(-self.pool.translator.prefetch // self.page)

        alignment, boundary = limits.alignment.value, limits.boundary.value
        plain = self._simple and not self._spill and not boundary and alignment <= self.page
        #: The longest buffer that is one segment wherever its bus pages lie, and bits that are 0 where it begins.
        self.undivided, self.askew = limits.segment_size, alignment - 1
        self.recall: Recall | None = None
        if self.pool is not None and self.pool.standing and plain:
            self.recall = partial(recall, self, self.pool)

    def reaches(self, address: int, size: int) -> bool:
        """Can these bytes of one page frame, by physical address, stay where they are?"""
        if address == FOREIGN or (self._forced and self.ground.frames.owner_of(address) != DMA_SAFE):
            return False
        if self.pool is not None:
            return self.pool.translator.reach.covers(address, address + size - 1)
        return self.limits.admits(address, address + size - 1)

    def layout(self, direction: Direction) -> Layout:
        """What this route demands of pieces."""
        cache = self.ground.cache
        shared = 1 if cache is None or direction is Direction.TO_DEVICE else cache.line
        return Layout(self.limits, self.page, self.pool is not None, shared)

    def plan(self, segmenter: Segmenter, pieces: list[Piece], direction: Direction) -> Planned | Unreachable:
        """How these pieces would lie, and what that must hold: with the fewest copies, or in the fewest pages."""
        layout = self.layout(direction)
        plan = make_plan(layout, pieces, [self.reaches(each.address, each.size) for each in pieces])
        if plan is None:
            return Unreachable(self.name, self._crowded, too_many_segments=True)
        if plan.slots and self.zone is None:
            return Unreachable(self.name, partial(self._cannot_copy, plan))
        needs = self.needs(segmenter, plan, direction)
        large = self.never(needs)
        if large is not None and self.zone is not None:
            packed = make_plan(layout, pieces, [False] * len(pieces))
            fewer = () if packed is None else self.needs(segmenter, packed, direction)
            if packed is not None and self.never(fewer) is None:
                return Planned(packed, fewer, None)
        return Planned(plan, needs, large)

    def place(
        self, segmenter: Segmenter, buffer: Buffer, answer: int, direction: Direction
    ) -> Holder | Shortage | Unreachable:
        """See `busdma.mechanisms.Mechanism`."""
        if self._simple and buffer.host is None and not isinstance(buffer, ElementList):
            mapped = map_linear(self, segmenter, buffer, direction)
            if mapped is not None:
                return mapped
        planned = self.plan(segmenter, pieces_of(buffer, self.ground), direction)
        if isinstance(planned, Unreachable):
            return planned
        plan, needs, never = planned
        if never is not None:
            never.pool.count("refused", 1)
            return Unreachable(self.name, partial(too_much, never))
        placement = Placement(self, plan, direction)
        queue = self.ground.queue
        with queue.lock:
            if not needs or queue.take(needs):
                try:
                    return placement.finish(segmenter, buffer, needs)
                except BaseException:
                    placement.release(segmenter)
                    raise
        return Shortage(placement, needs)

    def needs(self, segmenter: Segmenter, plan: Plan, direction: Direction) -> tuple[Need, ...]:
        """Everything that the plan must hold."""
        found: list[Need] = []
        if plan.slots:
            assert self.zone is not None
            found.append(BounceNeed(self.zone, segmenter, plan.slots, plan.run))
        if self.pool is not None:
            found.append(self.bus_need(plan, direction))
        return tuple(found)

    def bus_need(self, plan: Plan, direction: Direction) -> IovaNeed:
        """The plan's bus pages, and behind them one that a bridge may read ahead from."""
        spill = 0 if direction is Direction.FROM_DEVICE else self._spill
        frames = None if plan.slots else frames_of(plan, (), self.page)
        return self._bus_need(plan.bus_pages + spill, direction, frames, lasting=not plan.slots)

    def linear_need(self, frames: Sequence[int], direction: Direction) -> IovaNeed:
        """Bus pages for these page frames, one for each; and behind them one that a bridge may read ahead from."""
        spill = 0 if direction is Direction.FROM_DEVICE else self._spill
        return self._bus_need(len(frames) + spill, direction, frames)

    def _bus_need(
        self,
        pages: int,
        direction: Direction = Direction.BOTH,
        frames: Sequence[int] | None = None,
        *,
        lasting: bool = True,
    ) -> IovaNeed:
        assert self.pool is not None
        alignment, boundary = max(self.limits.alignment.value // self.page, 1), self.limits.boundary.value // self.page
        if 0 < boundary < pages:  # from a boundary line on, as the plan has counted
            alignment, boundary = max(alignment, boundary), 0
        return IovaNeed(
            self.pool,
            pages,
            alignment_pages=alignment,
            boundary_pages=boundary,
            within=self._within,
            direction=direction,
            frames=frames,
            lasting=lasting,
        )

    def least(self, segmenter: Segmenter) -> tuple[Need, ...]:
        """See `busdma.mechanisms.Mechanism`: a bus page, or a bounce page."""
        if self.pool is not None:
            return (IovaNeed(self.pool, 1, within=self._within),)
        return () if self.zone is None else (BounceNeed(self.zone, segmenter, 1, None),)

    def watch(self, segmenter: Segmenter) -> None:
        """See `busdma.mechanisms.Mechanism`: what is copied here is counted by the zone itself."""

    def retire(self, segmenter: Segmenter) -> None:
        """See `busdma.mechanisms.Mechanism`."""

    def reserved(self, maxsize: int) -> Composed:
        """See `busdma.mechanisms.Mechanism`: bounce pages and bus pages of its own."""
        route, part, own = self.route, None, None
        if self.zone is not None:
            part = reserve(self.zone, maxsize, self.page, self.limits, translated=self.pool is not None)
        try:
            if self.pool is not None:
                need = self._bus_need((maxsize + self.page - 2) // self.page + 1 + self._spill)
                own = self.pool.split(
                    need.amount,
                    alignment_pages=need.alignment_pages,
                    boundary_pages=need.boundary_pages,
                    within=self._within,
                )
        except BaseException:
            if part is not None:
                part.join()
            raise
        made = Composed(self.ground, Route(route.span, route.shift, own), self.limits, part)
        made._reserved = True
        return made

    def give_up(self) -> None:
        """See `busdma.mechanisms.Mechanism`."""
        if self._reserved and self.zone is not None:
            self.zone.join()
        if self._reserved and self.pool is not None:
            self.pool.join()

    def without_copies(self) -> Composed:
        """The same for what needs none."""
        return Composed(self.ground, self.route, self.limits, None)

    def never(self, needs: Sequence[Need]) -> Need | None:
        """What an idle pool would not have."""
        for need in needs:
            if need.pool.shortage(need.amount) is ShortageReason.TOO_LARGE or (
                isinstance(need, IovaNeed) and not need.pool.possible(need)
            ):
                return need
        return None

    def _crowded(self, segmenter: Segmenter) -> str:
        limit = self.limits.nsegments
        return (
            f"even joined in one contiguous run it has more than {limit.value} segments (nsegments of tag "
            f"{limit.origin!r}, {self.limits.segment_size} bytes each), so split the transfer"
        )

    def _cannot_copy(self, plan: Plan, segmenter: Segmenter) -> str:
        pages = "1 page" if plan.slots == 1 else f"{plan.slots} pages"
        return f"{pages} would have to be copied, and there is nothing to copy through: {self.limits.summary()}"


def too_much(need: Need, _: Segmenter | None = None) -> str:
    """What its pool can never grant, in words."""
    limits = ""
    if isinstance(need, IovaNeed) and (need.alignment_pages > 1 or need.boundary_pages or need.within):
        limits = f", adjacent and within alignment {need.alignment_pages}, boundary {need.boundary_pages} and its reach"
    more = f" ({OPTION}{need.amount + need.pool.apart})" if isinstance(need, BounceNeed) else ""
    return (
        f"{in_words(need)} needed{limits}, and it may never hold so much: raise its limit{more}, or split the transfer"
    )
