"""FrameAllocator against a set model, and its errors one by one."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from busdma.addresses import AddressSet
from busdma.errors import ConstraintError, DriverError, ResourceShortage, ShortageReason
from busdma.machine.frames import FrameAllocator

PAGE = 4096
BASE = 0x40000
PAGES = 64
RESERVED = AddressSet([(BASE + 5 * PAGE + 7, BASE + 7 * PAGE), (0, BASE + 10), (1 << 40, 1 << 41)])
RESERVED_FRAMES = {BASE, BASE + 5 * PAGE, BASE + 6 * PAGE, BASE + 7 * PAGE}
OWNERS = ["kernel", "process", "bounce"]

addresses = st.integers(BASE - 2 * PAGE, BASE + (PAGES + 2) * PAGE)
windows = st.one_of(
    st.none(),
    st.lists(st.tuples(addresses, st.integers(0, 24 * PAGE)), max_size=4).map(
        lambda pairs: AddressSet([(lo, lo + size) for lo, size in pairs])
    ),
)
powers = st.integers(0, 17).map(lambda k: 1 << k)


def inside(frame: int, within: AddressSet | None) -> bool:
    return within is None or within.covers(frame, frame + PAGE - 1)


class FramesAgainstModel(RuleBasedStateMachine):
    """The model is a dict of held frames; what is free, legal and possible is worked out anew for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = FrameAllocator(BASE, PAGES, seed=7, reserved=RESERVED)
        self.held: dict[int, str] = {}
        self.lowest = PAGES - len(RESERVED_FRAMES)

    def free(self, within: AddressSet | None) -> set[int]:
        every = set(range(BASE, BASE + PAGES * PAGE, PAGE)) - RESERVED_FRAMES - set(self.held)
        return {frame for frame in every if inside(frame, within)}

    def hold(self, frames: list[int], owner: str) -> None:
        self.held |= dict.fromkeys(frames, owner)
        self.lowest = min(self.lowest, len(self.free(None)))

    @rule(count=st.integers(1, 20), owner=st.sampled_from(OWNERS), within=windows)
    def singles(self, count: int, owner: str, within: AddressSet | None) -> None:
        free = self.free(within)
        if count > len(free):
            with pytest.raises(ResourceShortage) as caught:
                self.frames.allocate(count, owner, within)
            held = [frame for frame in self.held if inside(frame, within)]
            possible = count <= len(free) + len(held)
            assert caught.value.reason is (ShortageReason.BUSY if possible else ShortageReason.TOO_LARGE)
        else:
            got = list(self.frames.allocate(count, owner, within))
            assert len(set(got)) == count
            assert set(got) <= free
            self.hold(got, owner)

    @rule(
        count=st.integers(1, 12),
        owner=st.sampled_from(OWNERS),
        within=windows,
        alignment=powers,
        boundary=st.one_of(st.just(0), powers),
    )
    def run(self, count: int, owner: str, within: AddressSet | None, alignment: int, boundary: int) -> None:
        size = count * PAGE
        if boundary and boundary < size:
            with pytest.raises(ConstraintError, match="boundary"):
                self.frames.allocate_run(count, owner, within=within, alignment=alignment, boundary=boundary)
            return
        free = self.free(within)
        legal = [
            first
            for first in range(BASE, BASE + PAGES * PAGE, PAGE)
            if first % alignment == 0
            and (not boundary or first // boundary == (first + size - 1) // boundary)
            and (within is None or within.covers(first, first + size - 1))
            and all(frame in free for frame in range(first, first + size, PAGE))
        ]
        if legal:
            first = self.frames.allocate_run(count, owner, within=within, alignment=alignment, boundary=boundary)
            assert first == max(legal)
            self.hold(list(range(first, first + size, PAGE)), owner)
        else:
            with pytest.raises(ResourceShortage):
                self.frames.allocate_run(count, owner, within=within, alignment=alignment, boundary=boundary)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if self.held:
            some = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True, max_size=20))
            self.frames.free(some)
            for frame in some:
                del self.held[frame]

    @rule(data=st.data())
    def give_back_wrongly(self, data: st.DataObject) -> None:
        """One bad frame anywhere in the list, and nothing at all is freed."""
        some = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True, max_size=5)) if self.held else []
        bad = [*sorted(self.free(None) | RESERVED_FRAMES), BASE - PAGE, BASE + PAGES * PAGE, BASE + PAGE + 1, *some]
        some.insert(data.draw(st.integers(0, len(some))), data.draw(st.sampled_from(bad)))
        with pytest.raises(DriverError, match="nothing was freed"):
            self.frames.free(some)

    @invariant()
    def counts_and_owners_agree(self) -> None:
        counts = self.frames.statistics()
        assert (counts["total"], counts["reserved"]) == (PAGES, len(RESERVED_FRAMES))
        assert counts["free"] == PAGES - len(RESERVED_FRAMES) - len(self.held)
        assert counts["lowest_free"] == self.lowest
        for owner, number in counts["by_owner"].items():
            assert number == list(self.held.values()).count(owner)
            assert number <= counts["peak"][owner]
        for frame in range(BASE - PAGE, BASE + (PAGES + 1) * PAGE, PAGE):
            expected = "reserved" if frame in RESERVED_FRAMES else self.held.get(frame)
            assert self.frames.owner_of(frame) == self.frames.owner_of(frame + PAGE - 1) == expected


FramesAgainstModel.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestFramesAgainstModel = FramesAgainstModel.TestCase


def test_equal_seeds_give_equal_frames_and_others_do_not() -> None:
    def draw(seed: int) -> list[int]:
        return list(FrameAllocator(0, 8192, seed=seed).allocate(64, "kernel"))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_single_frames_are_scattered_over_all_memory() -> None:
    frames = sorted(FrameAllocator(0, 8192).allocate(256, "kernel"))
    adjacent = sum(b - a == PAGE for a, b in pairwise(frames))
    assert adjacent < 32
    assert all(any(lo <= frame < lo + (4 << 20) for frame in frames) for lo in range(0, 32 << 20, 4 << 20))


def test_runs_leave_low_memory_to_the_narrowest_devices() -> None:
    frames = FrameAllocator(0, 8192)
    assert frames.allocate_run(16, "kernel") == (8192 - 16) * PAGE
    low = AddressSet.span(0, 0xFFFFFF)
    assert frames.allocate_run(16, "bounce", within=low) == 0x1000000 - 16 * PAGE
    assert frames.allocate_run(3, "dma-safe", within=low, alignment=0x10000) == 0x1000000 - 0x20000


def test_a_fragmented_memory_says_so() -> None:
    frames = FrameAllocator(0, 8)
    frames.allocate(8, "kernel")
    frames.free([0, 2 * PAGE, 4 * PAGE])
    with pytest.raises(ResourceShortage, match="not in one legal run") as caught:
        frames.allocate_run(2, "bounce")
    assert caught.value.reason is ShortageReason.FRAGMENTED
    with pytest.raises(ResourceShortage) as caught:
        frames.allocate_run(4, "bounce")
    assert caught.value.reason is ShortageReason.BUSY


def test_a_run_that_no_empty_memory_could_hold_is_too_large() -> None:
    frames = FrameAllocator(0, 8, reserved=AddressSet.span(4 * PAGE, 5 * PAGE - 1))
    with pytest.raises(ResourceShortage) as caught:
        frames.allocate_run(5, "bounce")
    assert caught.value.reason is ShortageReason.TOO_LARGE


def test_reclaimers_are_asked_in_order_and_only_when_short() -> None:
    frames = FrameAllocator(0, 8)
    idle = list(frames.allocate(6, "bounce"))
    asked: list[tuple[str, int]] = []

    def stingy(wanted: int) -> int:
        asked.append(("stingy", wanted))
        return 0

    def generous(wanted: int) -> int:
        asked.append(("generous", wanted))
        frames.free(idle)
        return len(idle)

    frames.add_reclaimer(stingy)
    frames.add_reclaimer(generous)
    first = frames.allocate(2, "kernel")
    assert asked == []
    second = frames.allocate(5, "kernel")
    assert asked == [("stingy", 5), ("generous", 5)]
    assert len({*first, *second}) == 7
    assert frames.statistics()["by_owner"] == {"bounce": 0, "kernel": 7}
    assert frames.statistics()["peak"] == {"bounce": 6, "kernel": 7}


def test_reclaimers_help_runs_too() -> None:
    frames = FrameAllocator(0, 4)
    idle = frames.allocate_run(4, "bounce")

    def reclaim(_: int) -> int:
        frames.free(range(idle, idle + 4 * PAGE, PAGE))
        return 4

    frames.add_reclaimer(reclaim)
    assert frames.allocate_run(3, "dma-safe") == PAGE


def test_four_threads_never_share_a_frame() -> None:
    frames = FrameAllocator(0, 512)
    failures: list[str] = []

    def work(owner: str) -> None:
        for _ in range(100):
            got = [*frames.allocate(50, owner), *range(first := frames.allocate_run(4, owner), first + 4 * PAGE, PAGE)]
            if any(frames.owner_of(frame) != owner for frame in got) or len(set(got)) != 54:
                failures.append(owner)
            frames.free(got)

    threads = [threading.Thread(target=work, args=(f"owner {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    counts = frames.statistics()
    assert (counts["free"], set(counts["by_owner"].values())) == (512, {0})


@pytest.mark.parametrize(
    ("base", "pages", "page_size"), [(0, 0, PAGE), (100, 4, PAGE), (-PAGE, 4, PAGE), (0, 4, 3000), (0, 4, 0)]
)
def test_a_memory_that_cannot_be(base: int, pages: int, page_size: int) -> None:
    with pytest.raises(ConstraintError):
        FrameAllocator(base, pages, page_size=page_size)


def test_misuse_is_refused() -> None:
    frames = FrameAllocator(0, 512)
    with pytest.raises(DriverError, match="at least one"):
        frames.allocate(0, "kernel")
    with pytest.raises(DriverError, match="never given out"):
        frames.allocate(1, "reserved")
    with pytest.raises(ConstraintError, match="alignment"):
        frames.allocate_run(1, "kernel", alignment=3)
    for number in range(254):
        frames.allocate(1, f"owner {number}")
    with pytest.raises(DriverError, match="254"):
        frames.allocate(1, "one too many")
    assert frames.statistics()["free"] == 512 - 254


def test_sixteen_gibibytes_with_8_kib_pages() -> None:
    frames = FrameAllocator(0, 1 << 21, page_size=8192)
    high = AddressSet.span(1 << 33, (1 << 34) - 1)
    got = frames.allocate(5000, "process", high)
    assert all(address in high and address % 8192 == 0 for address in got)
    assert {frames.owner_of(address + 8191) for address in got} == {"process"}
    frames.free(got)
    assert frames.statistics()["free"] == 1 << 21
