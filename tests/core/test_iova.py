"""The pool of bus pages: strict and standing, forgetting, quarantine, reservations, order, and what is short."""

from __future__ import annotations

import pytest

from busdma.addresses import AddressSet
from busdma.errors import DriverError, ResourceShortage, ShortageReason
from busdma.mechanisms.iova import IovaNeed, IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.pool import PoolQueue
from busdma.sync import Direction
from busdma.waiting import PENDING, WOKEN
from core.fake_translator import PAGE, FakeTranslator

OUT, IN = Direction.TO_DEVICE, Direction.FROM_DEVICE
WINDOW = (16, 31)


class Rig:
    """A pool of 16 bus pages from number 16 on, over a fake translator."""

    def __init__(self, *windows: tuple[int, int], standing: bool = False) -> None:
        windows = windows or (WINDOW,)
        self.queue = PoolQueue()
        self.hardware = FakeTranslator(*windows)
        self.pool = IovaPool("dvma", self.queue, self.hardware, IovaAllocator(windows), standing=standing)

    def load(self, *frames: int, direction: Direction = OUT, touch: bool = True) -> IovaNeed:
        """What a load does, with known frames; then the device uses every page."""
        need = IovaNeed(self.pool, len(frames), direction=direction, frames=frames)
        assert self.queue.take([need])
        need.enter(frames)
        for number in range(need.first, need.first + need.amount) if touch else ():
            self.hardware.touch(number)
        return need

    def statistics(self) -> dict[str, int]:
        """Those that are not zero."""
        return {name: value for name, value in self.pool.statistics().items() if value}


def unload(*needs: IovaNeed) -> None:
    for need in needs:
        need.give()


# -- strict ------------------------------------------------------------------------------------------------------------


def test_strict_gives_nothing_back_before_nobody_can_see_it() -> None:
    rig = Rig()
    need = rig.load(0x5000, 0x9000)
    assert need.address == need.first * PAGE == 16 * PAGE
    assert rig.hardware.touch(17) == (0x9000, OUT)
    assert rig.hardware.calls() == [("enter", 16, 2)]
    need.give()
    assert rig.hardware.calls() == [("clear", 16, 2), ("flush", 16, 2)]
    assert not rig.hardware.table
    assert not rig.hardware.cached
    assert rig.statistics() == {
        "pages": 16,
        "free": 16,
        "largest_free": 16,
        "allocated": 1,
        "entered": 2,
        "cleared": 2,
        "flushes": 1,
        "peak_active": 2,
    }
    assert rig.load(0x5000, 0x9000).first == 16
    assert rig.statistics()["entered"] == 4


def test_what_was_never_entered_needs_no_invalidation() -> None:
    rig = Rig()
    need = IovaNeed(rig.pool, 3)
    assert need.ready()
    assert need.first < 0
    assert rig.pool.active == 0
    assert need.take()
    assert rig.pool.active == 3
    need.give()
    assert rig.hardware.calls() == []
    with pytest.raises(DriverError, match="no bus pages of dvma are held"):
        need.give()
    with pytest.raises(DriverError, match="take them before page frames are entered"):
        need.enter([0])


def test_entering_again_leaves_nothing_of_what_was_there() -> None:
    rig = Rig()
    need = rig.load(0x5000)
    need.enter([0x7000])
    assert rig.hardware.touch(need.first) == (0x7000, OUT)
    assert rig.hardware.calls() == [("enter", 16, 1), ("clear", 16, 1), ("flush", 16, 1), ("enter", 16, 1)]


def test_pages_that_a_bridge_reads_ahead_from_repeat_the_last_frame() -> None:
    rig = Rig()
    need = IovaNeed(rig.pool, 3, direction=OUT)
    assert need.take()
    need.enter([0x1000, 0x2000])
    assert [rig.hardware.touch(need.first + i) for i in range(3)] == [(0x1000, OUT), (0x2000, OUT), (0x2000, OUT)]
    for frames in ([], [0] * 4):
        with pytest.raises(DriverError, match=f"{len(frames)} page frames for 3 bus pages of dvma: ask for enough"):
            need.enter(frames)


def test_limits_are_those_of_the_need() -> None:
    rig = Rig()
    low = AddressSet.span(0, 20 * PAGE - 1)
    assert IovaNeed(rig.pool, 1).take()
    need = IovaNeed(rig.pool, 2, alignment_pages=2, boundary_pages=4, within=low)
    assert need.take()
    assert need.first == 18
    assert not IovaNeed(rig.pool, 2, within=low).take()
    with pytest.raises(ResourceShortage, match="never have 5 adjacent bus pages") as error:
        IovaNeed(rig.pool, 5, within=low).take()
    assert error.value.reason is ShortageReason.TOO_LARGE
    with pytest.raises(ResourceShortage, match=r"alignment 1 and boundary 4: its longest run is 16; split"):
        IovaNeed(rig.pool, 5, boundary_pages=4).ready()
    assert rig.statistics()["refused"] == 2


# -- standing ----------------------------------------------------------------------------------------------------------


def test_a_reload_of_the_same_frames_touches_no_hardware() -> None:
    rig = Rig(standing=True)
    need = rig.load(0x5000, 0x9000)
    need.give()
    assert rig.hardware.calls() == [("enter", 16, 2)]
    assert rig.statistics()["standing"] == 2
    assert rig.statistics()["free"] == rig.statistics()["largest_free"] == 16
    for _ in range(3):
        again = rig.load(0x5000, 0x9000)
        assert again.first == 16
        assert rig.pool.statistics()["standing"] == 0
        again.give()
    assert rig.hardware.calls() == []
    assert rig.hardware.touch(17) == (0x9000, OUT)
    assert rig.statistics()["reused"] == 3
    assert rig.statistics()["entered"] == 2


def test_what_differs_is_another_mapping() -> None:
    rig = Rig(standing=True)
    unload(rig.load(0x5000, 0x9000), rig.load(0x9000, 0x5000), rig.load(0x5000), rig.load(0x5000, direction=IN))
    assert rig.pool.statistics()["standing"] == 6
    assert rig.pool.statistics()["reused"] == 0
    moved = IovaNeed(rig.pool, 1, direction=OUT, frames=[0x5000], within=AddressSet.span(24 * PAGE, 32 * PAGE))
    assert moved.take()
    assert moved.first >= 24
    assert rig.pool.statistics()["reused"] == 0


def test_the_same_frames_twice_at_once_stand_twice() -> None:
    rig = Rig(standing=True)
    first, second = rig.load(0x5000), rig.load(0x5000)
    places = {first.first, second.first}
    assert len(places) == 2
    unload(first, second)
    assert {rig.load(0x5000).first, rig.load(0x5000).first} == places
    assert rig.statistics()["reused"] == 2


def test_frames_that_are_known_late_are_found_too() -> None:
    rig = Rig(standing=True)
    rig.load(0x5000).give()
    need = IovaNeed(rig.pool, 1, direction=OUT)
    assert need.take()
    assert need.first == 17
    need.enter([0x5000])
    assert need.first == 16
    assert rig.pool.active == 1
    need.give()
    assert rig.hardware.calls() == [("enter", 16, 1)]


def test_frames_that_changed_while_waiting_are_what_is_entered() -> None:
    rig = Rig(standing=True)
    rig.load(0x5000).give()
    need = IovaNeed(rig.pool, 1, direction=OUT, frames=[0x5000])
    assert need.take()
    need.enter([0x7000])
    assert rig.hardware.touch(need.first) == (0x7000, OUT)
    need.give()
    assert rig.load(0x7000).first == 16


def test_the_oldest_goes_first_and_all_that_go_share_a_flush() -> None:
    rig = Rig(standing=True)
    unload(*[rig.load(frame * PAGE) for frame in range(16)])
    unload(rig.load(0))  # the oldest becomes the youngest
    rig.hardware.calls()
    big = rig.load(*[frame * PAGE for frame in range(100, 104)])
    assert rig.hardware.calls() == [*[("clear", 17 + i, 1) for i in range(4)], ("flush", 17, 4), ("enter", 17, 4)]
    assert big.first == 17
    assert rig.statistics()["evicted"] == 4
    assert rig.statistics()["flushes"] == 1


def test_a_flush_never_leaves_the_windows() -> None:
    rig = Rig((16, 19), (24, 27), standing=True)
    unload(*[rig.load(frame * PAGE) for frame in range(8)])
    rig.hardware.calls()
    part = AddressSet.span(16 * PAGE, 20 * PAGE - 1)
    for within, first in ((part, 16), (None, 24)):
        need = IovaNeed(rig.pool, 4, within=within)
        assert need.take()
        assert need.first == first
    flushes = [(number, pages) for what, number, pages in rig.hardware.calls() if what == "flush"]
    assert flushes == [(16, 4), (24, 4)]
    assert not rig.hardware.table
    assert not rig.hardware.cached


def test_nothing_is_driven_out_for_what_would_still_not_fit() -> None:
    rig = Rig(standing=True)
    loads = [rig.load(frame * PAGE) for frame in range(16)]
    unload(*loads[::2])
    assert not IovaNeed(rig.pool, 9).take()
    assert rig.pool.statistics()["standing"] == 8
    unused = IovaNeed(rig.pool, 1)
    assert unused.take()
    unload(unused)
    assert rig.pool.statistics()["standing"] == 7
    assert not IovaNeed(rig.pool, 2).take()
    assert rig.pool.statistics()["standing"] == 6  # as many as make two pages, though not in one run
    assert not IovaNeed(rig.pool, 2).take()
    assert rig.pool.statistics()["standing"] == 6
    assert rig.pool.shortage(2) is ShortageReason.FRAGMENTED


# -- page frames that change owner -------------------------------------------------------------------------------------


def test_forget_ends_what_names_a_frame_before_it_returns() -> None:
    rig = Rig(standing=True)
    unload(rig.load(0x5000, 0x9000), rig.load(0x9000), rig.load(0x7000))
    rig.hardware.calls()
    rig.pool.forget([0x1000])
    assert rig.hardware.calls() == []
    rig.pool.forget([0x9000, 0x9000])
    assert rig.hardware.calls() == [("clear", 16, 2), ("clear", 18, 1), ("flush", 16, 3)]
    assert {frame for number in range(16, 32) for frame, _ in rig.hardware.visible(number)} == {0x7000}
    rig.pool.forget([0x9000])
    assert rig.hardware.calls() == []
    assert rig.load(0x7000).first == 19
    assert rig.statistics()["reused"] == 1


def test_what_is_held_when_its_frame_is_forgotten_does_not_stand() -> None:
    rig = Rig(standing=True)
    need = rig.load(0x5000)
    rig.pool.forget([0x5000])
    assert rig.hardware.touch(16) == (0x5000, OUT)
    rig.hardware.calls()
    need.give()
    assert rig.hardware.calls() == [("clear", 16, 1), ("flush", 16, 1)]
    assert rig.pool.statistics()["standing"] == 0
    rig.pool.forget([0x5000])
    assert rig.hardware.calls() == []


def test_what_was_forgotten_between_grant_and_entry_is_entered_anew() -> None:
    rig = Rig(standing=True)
    rig.load(0x5000).give()
    need = IovaNeed(rig.pool, 1, direction=OUT, frames=[0x5000])
    assert need.take()
    rig.pool.forget([0x5000])
    need.enter([0x5000])  # the frame has a new owner, who loads it
    assert rig.hardware.calls()[1:] == [("clear", 16, 1), ("flush", 16, 1), ("enter", 16, 1)]
    rig.pool.forget([0x5000])
    need.give()
    assert not rig.hardware.table


def test_nothing_is_granted_after_a_failed_flush_until_one_succeeds() -> None:
    rig = Rig()
    need = rig.load(0x5000)
    rig.hardware.broken = {"flush"}
    with pytest.raises(OSError, match="flush timed out"):
        need.give()
    for _ in range(2):
        with pytest.raises(OSError, match="flush timed out"):
            IovaNeed(rig.pool, 1).take()
    assert rig.hardware.visible(16) == {(0x5000, OUT)}
    assert rig.pool.active == 0
    rig.hardware.broken = set()
    again = IovaNeed(rig.pool, 16)
    assert again.take()
    assert not rig.hardware.cached


def test_entries_that_were_written_in_part_are_cleared_all_the_same() -> None:
    rig = Rig(standing=True)
    need = IovaNeed(rig.pool, 1)
    assert need.take()
    rig.hardware.broken = {"enter"}
    rig.hardware.table[need.first] = (0x5000, OUT)  # it got so far
    with pytest.raises(OSError, match="enter timed out"):
        need.enter([0x5000])
    need.give()
    assert not rig.hardware.table
    assert rig.pool.statistics()["standing"] == 0


# -- quarantine, shortages, order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("standing", [False, True])
def test_quarantined_pages_are_nobodys_until_the_device_is_idle(standing: bool) -> None:
    rig = Rig(standing=standing)
    need = rig.load(*[frame * PAGE for frame in range(6)])
    need.quarantine(True)
    assert rig.statistics()["quarantined"] == 6
    with pytest.raises(DriverError, match="quarantine; report the device idle first"):
        need.give()
    assert not IovaNeed(rig.pool, 11).take()
    assert rig.pool.shortage(11) is ShortageReason.LEAK
    assert rig.pool.shortage(10) is ShortageReason.FRAGMENTED
    need.quarantine(False)
    need.give()
    assert rig.pool.quarantined == 0
    assert IovaNeed(rig.pool, 16).take()


def test_a_shortage_says_which() -> None:
    rig = Rig()
    loads = [rig.load(frame * PAGE) for frame in range(16)]
    assert rig.pool.shortage(17) is ShortageReason.TOO_LARGE
    assert rig.pool.shortage(1) is ShortageReason.BUSY
    loads[3].give()
    loads[5].give()
    assert rig.pool.shortage(2) is ShortageReason.FRAGMENTED
    assert rig.pool.shortage(3) is ShortageReason.BUSY
    waits = rig.queue.join([IovaNeed(rig.pool, 2)], "disk0")
    assert rig.pool.shortage(1) is ShortageReason.BUSY
    waits.withdraw()
    loads[8].quarantine(True)  # two runs of eight and seven are left
    assert rig.pool.shortage(9) is ShortageReason.LEAK
    assert rig.pool.shortage(8) is ShortageReason.BUSY
    assert Rig((0, 3), (8, 11)).pool.shortage(5) is ShortageReason.TOO_LARGE


def test_waiters_are_served_in_order_and_standing_pages_count_as_free() -> None:
    rig = Rig(standing=True)
    all_of_it = rig.load(*[frame * PAGE for frame in range(16)])
    large = rig.queue.join([IovaNeed(rig.pool, 12)], "large")
    small = rig.queue.join([IovaNeed(rig.pool, 4)], "small")
    rig.pool.count("deferred", 2)
    assert (large.waiter.state, small.waiter.state) == (PENDING, PENDING)
    assert rig.statistics()["waiting"] == rig.statistics()["deferred"] == 2
    all_of_it.give()
    rig.queue.serve()
    assert (large.waiter.state, small.waiter.state) == (WOKEN, WOKEN)
    assert rig.pool.active == 16
    assert not rig.hardware.cached
    never = rig.queue.join([IovaNeed(rig.pool, 17)], "huge")
    with pytest.raises(ResourceShortage, match="huge: dvma can never have 17"):
        never.outcome()


# -- reservations ------------------------------------------------------------------------------------------------------


def test_a_reserved_part_is_taken_once_and_always_there() -> None:
    rig = Rig(standing=True)
    part = rig.pool.split(4)
    assert part.name == "dvma, 4 bus pages reserved"
    assert rig.pool.pages == rig.pool.statistics()["largest_free"] == 12
    assert rig.pool.shortage(13) is ShortageReason.TOO_LARGE
    rest = IovaNeed(rig.pool, 12)
    assert rest.take()
    assert not IovaNeed(rig.pool, 1).take()
    mine = IovaNeed(part, 4, direction=OUT)
    assert mine.take()
    mine.enter([0x1000, 0x2000, 0x3000, 0x4000])
    with pytest.raises(DriverError, match="4 of its bus pages are in use; unload first"):
        part.join()
    mine.give()
    rig.pool.forget([0x2000])  # reaches the parts too
    assert not rig.hardware.table
    again = IovaNeed(part, 1)
    assert again.take()
    again.enter([0x1000])
    rig.hardware.touch(again.first)
    again.give()
    waits = rig.queue.join([IovaNeed(rig.pool, 4)], "waits")
    part.join()
    assert waits.waiter.state == WOKEN
    assert not rig.hardware.table
    assert not rig.hardware.cached
    assert rig.pool.pages == rig.pool.active == 16
    assert part.shortage(1) is ShortageReason.TOO_LARGE
    with pytest.raises(DriverError, match="it is no reserved part"):
        part.join()


def test_what_cannot_be_reserved() -> None:
    rig = Rig()
    rig.load(*[0x1000] * 9)
    with pytest.raises(
        ResourceShortage, match="8 adjacent bus pages of dvma cannot be reserved now: 9 of its 16"
    ) as no:
        rig.pool.split(8)
    assert no.value.reason is ShortageReason.BUSY
    with pytest.raises(ResourceShortage, match="can never have 17"):
        rig.pool.split(17)
    assert rig.pool.split(2, alignment_pages=2, within=AddressSet.span(28 * PAGE, 32 * PAGE - 1)).pages == 2
    assert rig.pool.pages == 14
