"""Whatever is asked of the pool of bus pages: no device sees a frame through pages, or after a time, that are not its.

A device touches bus pages at random, so that the hardware caches entries, old ones too. After every step, for every bus
page: what an access might reach is what its holder entered; or, where nobody holds it and the pool lets mappings stand,
one frame that has not been forgotten since. And nothing is refused for which there is a place.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from busdma.addresses import AddressSet
from busdma.errors import ResourceShortage, ShortageReason
from busdma.mechanisms.iova import IovaNeed, IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.pool import PoolQueue
from busdma.sync import Direction
from core.fake_translator import PAGE, FakeTranslator

WINDOWS = ((3, 10), (12, 15))
LOW = AddressSet.span(0, 12 * PAGE - 1)
ALL = [number for lo, hi in WINDOWS for number in range(lo, hi + 1)]

buffers = st.lists(st.integers(0, 5).map(lambda number: number * PAGE), min_size=1, max_size=5)
directions = st.sampled_from([Direction.TO_DEVICE, Direction.BOTH])
limits = st.sampled_from(
    [(1, 0, None), (1, 0, None), (1, 0, None), (4, 0, None), (1, 4, None), (2, 8, LOW), (1, 0, LOW)]
)


class PoolMachine(RuleBasedStateMachine):
    """One pool and its parts."""

    @initialize(standing=st.booleans())
    def start(self, standing: bool) -> None:
        self.hardware = FakeTranslator(*WINDOWS)
        self.pool = IovaPool("dvma", PoolQueue(), self.hardware, IovaAllocator(WINDOWS), standing=standing)
        self.parts: list[IovaPool] = []
        self.own: dict[IovaPool, set[int]] = {self.pool: set(ALL)}  # the pages of each pool
        self.held: list[IovaNeed] = []
        self.entered: dict[int, tuple[int, Direction]] = {}  # by page: what its holder entered
        self.quarantined: list[IovaNeed] = []

    def pages(self, need: IovaNeed) -> range:
        return range(need.first, need.first + need.amount)

    def free(self, pool: IovaPool) -> set[int]:
        return self.own[pool].difference(*map(self.pages, self.held))

    def place(self, pool: IovaPool, free: set[int], pages: int, limits: tuple[int, int, AddressSet | None]) -> bool:
        alignment, boundary, within = limits
        return any(
            first % alignment == 0
            and (not boundary or first // boundary == (first + pages - 1) // boundary)
            and (within is None or within.covers(first * PAGE, (first + pages) * PAGE - 1))
            and free.issuperset(range(first, first + pages))
            for first in free
        )

    @rule(
        frames=buffers,
        direction=directions,
        limits=limits,
        known=st.booleans(),
        looks=st.booleans(),
        which=st.integers(0, 3),
    )
    def load(
        self,
        frames: list[int],
        direction: Direction,
        limits: tuple[int, int, AddressSet | None],
        known: bool,
        looks: bool,
        which: int,
    ) -> None:
        pool = [self.pool, *self.parts][which % (len(self.parts) + 1)]
        spare = which // 3
        alignment, boundary, within = limits
        need = IovaNeed(
            pool,
            len(frames) + spare,
            alignment_pages=alignment,
            boundary_pages=boundary,
            within=within,
            direction=direction,
            frames=frames if known else None,
        )
        if not self.place(pool, self.own[pool], need.amount, limits):
            with pytest.raises(ResourceShortage) as error:
                need.take()
            assert error.value.reason is ShortageReason.TOO_LARGE
            return
        fits = self.place(pool, self.free(pool), need.amount, limits)
        before = pool.statistics()["active"]
        if looks:
            assert need.ready() == fits
            assert pool.statistics()["active"] == before
        assert need.take() == fits
        if not fits:
            assert pool.shortage(need.amount) is not ShortageReason.TOO_LARGE
            return
        taken = self.pages(need)
        assert taken.start % alignment == 0
        assert self.free(pool).issuperset(taken)
        if not need.entered:  # a new owner, who must find nothing of an earlier one
            assert not [number for number in taken if self.hardware.visible(number)]
        self.held.append(need)

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 99), frames=buffers, other=st.booleans())
    def enter(self, at: int, frames: list[int], other: bool) -> None:
        need = self.held[at % len(self.held)]
        frames = frames[: need.amount] if other or need.mapping is None else self.frames_of(need)
        for number in self.pages(need):
            self.entered.pop(number, None)
        need.enter(frames)
        whole = [*frames, *[frames[-1]] * (need.amount - len(frames))]
        for number, frame in zip(self.pages(need), whole, strict=True):
            self.entered[number] = (frame, need.direction)
            assert self.hardware.touch(number) == (frame, need.direction)

    def frames_of(self, need: IovaNeed) -> list[int]:
        assert need.mapping is not None
        return list(memoryview(need.mapping.key.frames).cast("Q"))

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 99))
    def give(self, at: int) -> None:
        need = self.held[at % len(self.held)]
        if need in self.quarantined:
            self.quarantined.remove(need)
            need.quarantine(False)
        self.held.remove(need)
        for number in self.pages(need):
            self.entered.pop(number, None)
        need.give()
        need.pool.queue.serve()

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 99))
    def quarantine(self, at: int) -> None:
        need = self.held[at % len(self.held)]
        if need not in self.quarantined:
            need.quarantine(True)
            self.quarantined.append(need)

    @rule(frames=st.sets(st.integers(0, 5).map(lambda number: number * PAGE), max_size=3))
    def forget(self, frames: set[int]) -> None:
        self.pool.forget(frames)
        holders = {number for need in self.held for number in self.pages(need)}
        for number in ALL:
            if number not in holders:
                assert not frames & {frame for frame, _ in self.hardware.visible(number)}

    @rule(number=st.sampled_from(ALL))
    def touch(self, number: int) -> None:
        self.hardware.touch(number)

    @rule(pages=st.integers(1, 6))
    def split(self, pages: int) -> None:
        if len(self.parts) == 2:
            part = self.parts.pop(pages % 2)
            for need in [need for need in self.held if need.pool is part]:
                self.give(self.held.index(need))
            part.join()
            self.own[self.pool] |= self.own.pop(part)
            return
        if self.place(self.pool, self.free(self.pool), pages, (1, 0, None)):
            part = self.pool.split(pages)
            lo = part.statistics()
            assert lo["pages"] == lo["free"] == lo["largest_free"] == pages
            mine = IovaNeed(part, pages)
            assert mine.take()
            self.own[part] = set(self.pages(mine))
            mine.give()
            assert self.free(self.pool) >= self.own[part]
            assert not [number for number in self.own[part] if self.hardware.visible(number)]
            self.own[self.pool] -= self.own[part]
            self.parts.append(part)
        else:
            with pytest.raises(ResourceShortage):
                self.pool.split(pages)

    @invariant()
    def nothing_is_visible_that_should_not_be(self) -> None:
        for number in ALL:
            seen = self.hardware.visible(number)
            if number in self.entered:
                assert seen == {self.entered[number]}
            else:
                assert len(seen) <= self.pool.standing

    @invariant()
    def the_numbers_are_right(self) -> None:
        for pool in (self.pool, *self.parts):
            found = pool.statistics()
            free = self.free(pool)
            assert found["pages"] == len(self.own[pool])
            assert found["free"] == len(free) == found["pages"] - found["active"]
            assert found["standing"] == sum(bool(self.hardware.visible(number)) for number in free)
            assert found["quarantined"] == sum(need.amount for need in self.quarantined if need.pool is pool)
            runs = [pages for pages in range(1, len(ALL) + 1) if self.place(pool, free, pages, (1, 0, None))]
            assert found["largest_free"] == max(runs, default=0)
        counts = self.pool.statistics()
        assert counts["entered"] == counts["cleared"] + len(self.hardware.table)

    def teardown(self) -> None:
        if not hasattr(self, "held"):
            return
        while self.held:
            self.give(0)
        for part in self.parts:
            part.join()
        self.pool.forget(range(0, 6 * PAGE, PAGE))
        assert not self.hardware.table
        assert not self.hardware.cached
        assert self.pool.statistics()["largest_free"] == 8


PoolMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, derandomize=True, deadline=None, database=None
)
TestPoolMachine: Callable[[], object] = PoolMachine.TestCase
