"""Every translator with its unit: what a device reaches, goes on reaching until a flush, and never reaches."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from busdma.errors import DriverError
from busdma.sync import Direction
from sim.translation_rig import RIGHTS, RIGS, Rig

READ, WRITE, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BOTH
PAGES = 12
FRAMES = 16

kinds = pytest.mark.parametrize("kind", RIGS)


@kinds
def test_scattered_frames_are_one_run_of_bus_addresses(kind: str) -> None:
    rig = RIGS[kind]()
    frames = [rig.paint(number, number + 1) for number in (5, 2, 9, 3)]
    rig.translator.enter(rig.base, [*frames, frames[-1]], BOTH)  # the last one twice: it may be fetched ahead
    page = rig.page
    assert rig.master.dma_read(rig.base + page - 3, 6) == b"\x06\x06\x06\x03\x03\x03"
    assert rig.master.dma_read(rig.base, 4 * page) == b"".join(bytes([b]) * page for b in (6, 3, 10, 4))
    rig.master.dma_write(rig.base + 2 * page - 1, b"abc")
    assert rig.bus.memory[rig.frame(2) + page - 1] == ord("a")
    assert bytes(rig.bus.memory[rig.frame(9) : rig.frame(9) + 2]) == b"bc"
    assert rig.faults.recent == ()


@kinds
def test_what_is_not_mapped_is_answered_by_nobody(kind: str) -> None:
    rig = RIGS[kind]()
    rig.translator.enter(rig.base, [rig.paint(1, 7)], BOTH)
    before = bytes(rig.bus.memory)
    unmapped = rig.base + 3 * rig.page
    assert rig.master.dma_read(unmapped + 5, 3) == b"\xff\xff\xff"
    rig.master.dma_write(unmapped + 6, b"lost")
    assert bytes(rig.bus.memory) == before
    faults = rig.faults.recent
    assert [(f.master, f.address, f.write) for f in faults] == [("m", unmapped + 5, False), ("m", unmapped + 6, True)]
    assert rig.faults.statistics() == {"m": 2}
    # a burst goes as far as it can
    rig.master.dma_write(rig.base + rig.page - 1, b"xy")
    assert rig.bus.memory[rig.frame(1) + rig.page - 1] == ord("x")
    assert rig.faults.recent[-1].address == rig.base + rig.page
    assert rig.master.statistics()["unclaimed"] == 3


@kinds
def test_without_a_flush_the_old_frame_is_still_reached(kind: str) -> None:
    rig = RIGS[kind]()
    old, new = rig.paint(1, 1), rig.paint(2, 2)
    translator, base = rig.translator, rig.base
    translator.enter(base, [old], BOTH)
    assert rig.master.dma_read(base, 1) == b"\1"
    translator.clear(base, 1)
    assert rig.master.dma_read(base, 1) == b"\1"  # cleared in memory, and yet
    rig.master.dma_write(base, b"\x55")
    assert rig.bus.memory[old] == 0x55
    translator.enter(base, [new], BOTH)
    assert rig.master.dma_read(base, 1) == b"\x55"
    assert rig.faults.recent == ()
    translator.flush(base, 1)
    assert rig.master.dma_read(base, 1) == b"\2"
    translator.clear(base, 1)
    translator.flush(base, 1)
    assert rig.master.dma_read(base, 1) == b"\xff"
    assert len(rig.faults.recent) == 1


@kinds
def test_what_was_not_mapped_needs_no_flush(kind: str) -> None:
    """No unit keeps what is not there: an entry is seen at once."""
    rig = RIGS[kind]()
    for number in range(4):
        at = rig.base + number * rig.page
        assert rig.master.dma_read(at, 1) == b"\xff"
        rig.translator.enter(at, [rig.paint(number, number + 1)], BOTH)
        assert rig.master.dma_read(at, 1) == bytes([number + 1])


@kinds
def test_a_busy_unit_forgets_by_itself(kind: str) -> None:
    rig = RIGS[kind]()
    translator, page = rig.translator, rig.page
    translator.enter(rig.base, [rig.paint(1, 1)], BOTH)
    assert rig.master.dma_read(rig.base, 1) == b"\1"
    translator.enter(rig.base, [rig.paint(2, 2)], BOTH)
    many = 200
    translator.enter(rig.base + page, [rig.frame(3)] * many, BOTH)
    for number in range(1, many):
        rig.master.dma_read(rig.base + number * page, 1)
    assert rig.master.dma_read(rig.base, 1) == b"\2"


@kinds
def test_rights_come_from_the_direction(kind: str) -> None:
    rig = RIGS[kind]()
    translator, page = rig.translator, rig.page
    for number, direction in enumerate((READ, WRITE, BOTH)):
        translator.enter(rig.base + number * page, [rig.paint(number, 1)], direction)
    translator.enter(rig.base + 3 * page, [rig.frame(3)], BOTH)
    written = []
    for number in range(3):
        rig.master.dma_write(rig.base + number * page, b"\2")
        written.append(rig.bus.memory[rig.frame(number)] == 2)
    assert written == [not RIGHTS[kind], True, True]
    read = [rig.master.dma_read(rig.base + number * page, 1)[0] for number in range(3)]
    assert read == [1 if RIGHTS[kind] else 2, 0xFF if kind == "dmar" else 2, 2]
    refused = [fault.write for fault in rig.faults.recent]
    assert refused == {"sun4m": [True], "dmar": [True, False]}.get(kind, [])


@kinds
def test_misuse_is_told_and_changes_nothing(kind: str) -> None:
    rig = RIGS[kind]()
    translator, page = rig.translator, rig.page
    before = bytes(rig.bus.memory)
    lo, hi = translator.window.intervals[0][0], translator.window.intervals[-1][1]
    for address, count in ((rig.base + 1, 1), (lo - page, 1), (hi + 1, 1), (hi + 1 - page, 2)):
        with pytest.raises(DriverError, match="whole pages"):
            translator.enter(address, [rig.frame(1)] * count, BOTH)
        with pytest.raises(DriverError, match="whole pages"):
            translator.clear(address, count)
    for frame in (rig.frame(1) + 1, translator.reach.intervals[-1][1] + 1, -page):
        with pytest.raises(DriverError, match="no entry can name"):
            translator.enter(rig.base, [rig.frame(2), frame], BOTH)
    assert bytes(rig.bus.memory) == before


class Agreement(RuleBasedStateMachine):
    """A dictionary of what each page may lead to: what it does, or did since its last flush."""

    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.rig: Rig = RIGS[self.kind]()
        for number in range(FRAMES):
            self.rig.paint(number, number + 1)
        self.now: dict[int, tuple[int, Direction]] = {}
        self.may: dict[int, set[tuple[int, Direction] | None]] = {page: {None} for page in range(PAGES + 1)}
        # what is fetched ahead behind the last page is always there
        self.rig.translator.enter(self.at(PAGES), [self.rig.frame(FRAMES - 1)], BOTH)
        self.now[PAGES] = (FRAMES, BOTH)
        self.may[PAGES] = {self.now[PAGES]}

    def at(self, page: int) -> int:
        return self.rig.base + page * self.rig.page

    @rule(
        page=st.integers(0, PAGES - 1),
        frames=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=4),
        way=st.sampled_from(list(Direction)),
    )
    def enter(self, page: int, frames: list[int], way: Direction) -> None:
        frames = frames[: PAGES - page]
        self.rig.translator.enter(self.at(page), [self.rig.frame(number) for number in frames], way)
        for number, frame in enumerate(frames, page):
            self.now[number] = (frame + 1, way)
            self.may[number].add(self.now[number])

    @rule(page=st.integers(0, PAGES - 1), count=st.integers(1, 4))
    def clear(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        self.rig.translator.clear(self.at(page), count)
        for number in range(page, page + count):
            self.now.pop(number, None)
            self.may[number].add(None)

    @rule(page=st.integers(0, PAGES - 1), count=st.integers(1, PAGES))
    def flush(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        self.rig.translator.flush(self.at(page), count)
        for number in range(page, page + count):
            self.may[number] = {self.now.get(number)}

    @rule(page=st.integers(0, PAGES - 1), offset=st.integers(0, 4095), write=st.booleans())
    def access(self, page: int, offset: int, write: bool) -> None:
        rig, at = self.rig, self.at(page) + offset
        seen = len(rig.faults.recent)
        if write:
            rig.master.dma_write(at, b"\xee")
            hit = [n for n in range(FRAMES) if rig.bus.memory[rig.frame(n) + offset] == 0xEE]
            assert len(hit) <= 1
            reached = hit[0] + 1 if hit else None
            for n in hit:
                rig.bus.memory[rig.frame(n) + offset] = n + 1
        else:
            byte = rig.master.dma_read(at, 1)[0]
            reached = None if byte == 0xFF else byte
        assert (len(rig.faults.recent) > seen) == (reached is None)
        # a unit without rights lets everybody in
        forbidden = (
            {} if not RIGHTS[self.kind] else {True: {READ}} if self.kind == "sun4m" else {True: {READ}, False: {WRITE}}
        )
        possible = {
            None if entry is None or entry[1] in forbidden.get(write, set()) else entry[0] for entry in self.may[page]
        }
        fetched = offset + 1 + rig.translator.prefetch > rig.page and not write and None in self.may[page + 1]
        assert reached in (possible | {None} if fetched else possible)
        if len(self.may[page]) == 1 and not fetched:
            assert len(possible) == 1


@kinds
def test_agrees_with_a_dictionary(kind: str) -> None:
    machine = type(f"Agreement_{kind}", (Agreement,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=60, stateful_step_count=40, derandomize=True, deadline=None, database=None),
    )
