"""The state machine is only worth something if it finds errors: each of these, planted, makes it fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import busdma
from busdma.domain import DmaDomain
from busdma.errors import BusdmaError
from busdma.lifecycle import SYNCS_BY_DIRECTION, State, SyncEffect
from busdma.map import Map
from busdma.mechanisms.bounce import Bounce
from busdma.mechanisms.zone import Zone
from busdma.pool import Need, PoolQueue, Requisition
from busdma.segments import Segmenter
from busdma.sync import PREREAD, Direction
from core.test_statemachine import DmaMachine

Plant = Callable[[pytest.MonkeyPatch], None]

HUNT = settings(
    max_examples=400,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
)


def give_loses_a_page(patch: pytest.MonkeyPatch) -> None:
    real = Zone.give

    def give(self: Zone, segmenter: Segmenter) -> None:
        held = segmenter.nheld
        real(self, segmenter)
        if held > 2:
            self.free -= 1

    patch.setattr(Zone, "give", give)


def serve_begins_with_the_last(patch: pytest.MonkeyPatch) -> None:
    real = PoolQueue._serve_one

    def serve_one(self: PoolQueue) -> bool:
        self.line.reverse()
        try:
            return real(self)
        finally:
            self.line.reverse()

    patch.setattr(PoolQueue, "_serve_one", serve_one)


def serve_skips_a_head_that_does_not_fit(patch: pytest.MonkeyPatch) -> None:
    real = PoolQueue._serve_one

    def serve_one(self: PoolQueue) -> bool:
        whole = self.line
        for at in range(len(whole)):
            self.line = whole[at:]
            try:
                if real(self):
                    return True
            finally:
                self.line = whole[:at] + self.line
        return False

    patch.setattr(PoolQueue, "_serve_one", serve_one)


def a_newcomer_passes_those_who_wait(patch: pytest.MonkeyPatch) -> None:
    def take(self: PoolQueue, needs: Sequence[Need]) -> bool:
        with self.lock:
            return all(need.take() for need in needs)

    patch.setattr(PoolQueue, "take", take)


def a_grant_that_nobody_took_is_lost(patch: pytest.MonkeyPatch) -> None:
    real = PoolQueue.withdraw

    def withdraw(self: PoolQueue, requisition: Requisition) -> None:
        if requisition in self.line:
            real(self, requisition)

    patch.setattr(PoolQueue, "withdraw", withdraw)


def a_deadline_leaves_its_place_in_the_queue(patch: pytest.MonkeyPatch) -> None:
    def give_up(self: Map, requisition: Requisition, error: BaseException) -> None:
        self._requisition = None
        self.buffer = None
        self.state = State.IDLE

    patch.setattr(Map, "_give_up", give_up)


def a_release_serves_nobody(patch: pytest.MonkeyPatch) -> None:
    def release(self: Bounce, segmenter: Segmenter) -> None:
        self.zone.give(segmenter)

    patch.setattr(Bounce, "release", release)


def unload_forgets_to_release(patch: pytest.MonkeyPatch) -> None:
    real = Bounce.release

    def release(self: Bounce, segmenter: Segmenter) -> None:
        if segmenter.nheld != 3:
            real(self, segmenter)

    patch.setattr(Bounce, "release", release)


def unload_copies_in(patch: pytest.MonkeyPatch) -> None:
    real = Bounce.release

    def release(self: Bounce, segmenter: Segmenter) -> None:
        segmenter.copy_in(0, 16)
        real(self, segmenter)

    patch.setattr(Bounce, "release", release)


def copy_in_ignores_the_offset(patch: pytest.MonkeyPatch) -> None:
    def copy_in(self: Bounce, segmenter: Segmenter, offset: int, length: int) -> None:
        segmenter.copy_in(0, length)

    patch.setattr(Bounce, "copy_in", copy_in)


def copy_in_takes_one_byte_more(patch: pytest.MonkeyPatch) -> None:
    def copy_in(self: Bounce, segmenter: Segmenter, offset: int, length: int) -> None:
        segmenter.copy_in(offset, length + 1)

    patch.setattr(Bounce, "copy_in", copy_in)


def preread_copies_nothing_out(patch: pytest.MonkeyPatch) -> None:
    nothing = SyncEffect(to_device=False, copy_out=False, copy_in=False, reads=True, writes=False)
    patch.setitem(SYNCS_BY_DIRECTION[Direction.BOTH.number], int(PREREAD), nothing)


def quarantine_releases_the_pages(patch: pytest.MonkeyPatch) -> None:
    def quarantine(self: Bounce, segmenter: Segmenter, entering: bool) -> None:
        if entering:
            self.release(segmenter)

    patch.setattr(Bounce, "quarantine", quarantine)


def report_idle_keeps_the_pages(patch: pytest.MonkeyPatch) -> None:
    real = Bounce.quarantine

    def quarantine(self: Bounce, segmenter: Segmenter, entering: bool) -> None:
        if entering:
            real(self, segmenter, entering)

    patch.setattr(Bounce, "quarantine", quarantine)


def take_grants_in_part(patch: pytest.MonkeyPatch) -> None:
    def take(self: Zone, segmenter: Segmenter, pages: int) -> bool:
        pages = min(pages, max(self.limit - self.active, 0))
        if not pages or not self.ready(pages):
            return False
        segmenter.take(self.slots, pages)
        self.free -= pages
        return True

    patch.setattr(Zone, "take", take)


def two_maps_get_the_same_page(patch: pytest.MonkeyPatch) -> None:
    real = Zone.take

    def take(self: Zone, segmenter: Segmenter, pages: int) -> bool:
        taken = real(self, segmenter, pages)
        if taken and self.active > 4:
            self.slots.free[segmenter.held[0]] = 1
        return taken

    patch.setattr(Zone, "take", take)


def trim_gives_back_what_is_held(patch: pytest.MonkeyPatch) -> None:
    def reclaim(self: Zone, pages: int) -> int:
        for chunk in list(self._chunks):
            self.slots.free[chunk[0] : sum(chunk)] = b"\1" * chunk[1]
            self._return(chunk)
        return 0

    patch.setattr(Zone, "reclaim", reclaim)


def the_zone_grows_past_its_limit(patch: pytest.MonkeyPatch) -> None:
    real = Zone._grow

    def grow(self: Zone, pages: int) -> bool:
        if self.capacity + pages > self.limit:
            self.capacity += pages
            self.free += pages
            return True
        return real(self, pages)

    patch.setattr(Zone, "_grow", grow)


def a_loaded_buffer_may_be_freed(patch: pytest.MonkeyPatch) -> None:
    def in_use(self: DmaDomain, buffer: object) -> None:
        return None

    patch.setattr(DmaDomain, "in_use", in_use)


def a_turn_does_not_keep_its_place(patch: pytest.MonkeyPatch) -> None:
    real = PoolQueue._serve_one

    def serve_one(self: PoolQueue) -> bool:
        changed = real(self)
        for requisition in [r for r in self.line if r.waiter.state == "woken" and r.thread is None]:
            self.line.remove(requisition)
            self.line.append(requisition)
            requisition.thread = 0
            changed = True
        return changed

    def at_turn(self: PoolQueue, pool: Any) -> bool:
        return False

    patch.setattr(PoolQueue, "_serve_one", serve_one)
    patch.setattr(PoolQueue, "_at_turn", at_turn)


PLANTS: list[Plant] = [
    serve_begins_with_the_last,
    serve_skips_a_head_that_does_not_fit,
    a_newcomer_passes_those_who_wait,
    a_grant_that_nobody_took_is_lost,
    a_release_serves_nobody,
    unload_forgets_to_release,
    unload_copies_in,
    copy_in_ignores_the_offset,
    copy_in_takes_one_byte_more,
    preread_copies_nothing_out,
    quarantine_releases_the_pages,
    report_idle_keeps_the_pages,
    a_turn_does_not_keep_its_place,
]

#: after these the engine works on pages that are not there; the compiled form, which trusts its caller, could crash
UNSAFE: list[Plant] = [
    a_deadline_leaves_its_place_in_the_queue,
    a_loaded_buffer_may_be_freed,
    give_loses_a_page,
    take_grants_in_part,
    the_zone_grows_past_its_limit,
    trim_gives_back_what_is_held,
    two_maps_get_the_same_page,
]


@pytest.mark.parametrize("plant", PLANTS if busdma.COMPILED else PLANTS + UNSAFE, ids=lambda plant: plant.__name__)
def test_a_planted_error_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, BusdmaError, BufferError)):
        run_state_machine_as_test(DmaMachine, settings=HUNT)


def test_without_one_it_passes() -> None:
    run_state_machine_as_test(DmaMachine, settings=settings(HUNT, max_examples=40))
