"""Loads against the simple models, in whichever form the module was installed, and both forms against each other."""

from __future__ import annotations

import importlib.util
from array import array
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import busdma
from busdma import segments
from busdma.result import Segments
from busdma.segments import ABSENT, FOREIGN, NOT_MAPPED, TOO_MANY, UNREACHABLE
from core.oracle import (
    TOP,
    Limits,
    Shape,
    cut_bytes,
    cut_runs,
    expect_load,
    limits,
    pages_of,
    shapes,
    tuples,
)


def load_pure() -> ModuleType:
    """The Python file beside the module in use, run as Python."""
    path = Path(busdma.__file__).with_name("segments.py")
    spec = importlib.util.spec_from_file_location("busdma_segments_pure", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PURE = load_pure()
FORMS: list[Any] = [segments, PURE] if busdma.COMPILED else [PURE]


def frames(shape: Shape, module: Any = segments) -> Any:
    return module.Frames(array("Q", shape.table))


def pairs(segmenter: Any) -> list[list[int]]:
    """The output as a user sees it, an (n, 2) array."""
    array = Segments(segmenter).buffer
    assert (array.format, array.shape) == ("Q", (segmenter.count, 2))
    return cast(list[list[int]], array.tolist())


def check(segmenter: Any, shape: Shape, limit: Limits, module: Any = segments, by_bytes: bool = False) -> None:
    """One load says what the model says."""
    expected = expect_load(limit, shape, by_bytes)
    code = segmenter.load(frames(shape, module), shape.start, shape.length)
    assert code == expected.code
    if code == NOT_MAPPED:
        assert segmenter.fault in expected.faults
    elif code == UNREACHABLE:
        assert segmenter.needed == expected.needed
    elif code == TOO_MANY:
        assert segmenter.wanted == len(expected.segments)
    else:
        assert tuples(segmenter.out)[:code] == expected.segments
        assert pairs(segmenter) == [list(span) for span in expected.segments]
    assert segmenter.count == max(code, 0)


def loads(page: int) -> st.SearchStrategy[tuple[Limits, list[Shape]]]:
    """Limits, and some buffers for one segmenter after another."""
    return st.tuples(limits(page), st.lists(shapes(page), min_size=1, max_size=4))


# -- the models, and loads in place -----------------------------------------------------------------------------------


@given(limits(16), shapes(16, holes=False))
def test_the_two_models_agree(limit: Limits, shape: Shape) -> None:
    assert expect_load(limit, shape, by_bytes=True) == expect_load(limit, shape)


@settings(max_examples=400)
@given(limits(16), st.lists(shapes(16), min_size=1, max_size=4))
def test_load_byte_by_byte(limit: Limits, several: list[Shape]) -> None:
    segmenter = limit.segmenter(segments)
    for shape in several:
        check(segmenter, shape, limit, by_bytes=True)


@settings(max_examples=300)
@given(st.sampled_from([4096, 8192]).flatmap(loads))
def test_load_page_by_page(case: tuple[Limits, list[Shape]]) -> None:
    limit, several = case
    segmenter = limit.segmenter(segments)
    for shape in several:
        check(segmenter, shape, limit)


@given(limits(16, ((0, TOP - 1),)), st.lists(shapes(16, holes=False), min_size=2, max_size=6))
def test_loads_where_all_is_in_reach_leave_nothing_behind(limit: Limits, several: list[Shape]) -> None:
    segmenter = limit.segmenter(segments)
    for shape in several:
        check(segmenter, shape, limit, by_bytes=True)


@settings(max_examples=400)
@given(
    st.sampled_from([0, 0, 16, 32, 64]),
    st.sampled_from([TOP - 1, TOP - 1, 16, 24, 40]),
    st.lists(st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=10), st.integers(0, 15), st.integers(0, 3))),
)
@example(0, TOP - 1, [([0, 2, 3, 5, 6, 0, 2], 0, 1), ([0, 2, 4, 0], 0, 1)])
def test_no_length_of_an_earlier_load_is_left(
    boundary: int, maxsegsz: int, several: list[tuple[list[int], int, int]]
) -> None:
    """Pages that stand alone may take their length from the output as they find it, whatever came before."""
    limit = Limits(16, ((0, 6 * 16 - 1), (7 * 16, TOP - 1)), boundary=boundary, maxsegsz=maxsegsz)
    segmenter = limit.segmenter(segments)
    for numbers, start, kind in several:
        shape = Shape(tuple(16 * n for n in numbers), start, 16 * len(numbers) - start)
        expected = expect_load(limit, shape)
        if kind == 0 and expected.code > 0:
            segmenter.needed = 0  # left by a refusal; all of this shape is in reach
            code = segmenter.place(frames(shape), start, shape.length, segments.Slots(0), 0, 0, 0)
            assert tuples(segmenter.out)[:code] == expected.segments
        else:
            check(segmenter, shape, limit)


def test_every_start_and_length_of_two_pages() -> None:
    limit = Limits(16, ((0, 0xFF),), boundary=8, maxsegsz=5)
    segmenter = limit.segmenter(segments)
    for table in ((0x40, 0x50), (0x50, 0x40)):
        for start in range(33):
            for length in range(35 - start):
                check(segmenter, Shape(table, start, length), limit, by_bytes=True)


@pytest.mark.parametrize("boundary", [0, 256])
@pytest.mark.parametrize("maxsegsz", [TOP - 1, 64])
def test_a_page_may_be_cut_into_more_pieces_than_there_was_room_for(boundary: int, maxsegsz: int) -> None:
    limit = Limits(4096, ((0, TOP - 1),), boundary=boundary, maxsegsz=maxsegsz)
    segmenter = limit.segmenter(segments)
    check(segmenter, Shape((0x7000,), 1, 4095), limit)


@pytest.mark.parametrize("size", [1, 4096, 4097, 3 * 4096])
def test_the_last_byte_of_the_address_space(size: int) -> None:
    limit = Limits(4096, ((0, TOP - 1),), maxsegsz=1 << 63, boundary=1 << 63)
    table = (TOP - 3 * 4096, TOP - 2 * 4096, TOP - 4096)
    segmenter = limit.segmenter(segments)
    assert segmenter.load(frames(Shape(table, 0, 0)), 3 * 4096 - size, size) == 1
    assert pairs(segmenter) == [[TOP - size, size]]
    low = Limits(4096, ((0, TOP - 2),))
    segmenter = low.segmenter(segments)
    assert segmenter.load(frames(Shape(table, 0, 0)), 3 * 4096 - size, size) == UNREACHABLE
    assert segmenter.needed == 1


def test_page_zero_does_not_follow_the_last_page() -> None:
    limit = Limits(4096, ((0, TOP - 1),))
    segmenter = limit.segmenter(segments)
    assert segmenter.load(segments.Frames(array("Q", [TOP - 4096, 0, 4096])), 0, 3 * 4096) == 2
    assert pairs(segmenter) == [[TOP - 4096, 4096], [0, 8192]]


@pytest.mark.parametrize(("start", "length"), [(TOP - 1, TOP - 1), (0, TOP - 1), (4095, TOP - 1), (TOP - 1, 1), (0, 0)])
def test_ranges_that_leave_the_table(start: int, length: int) -> None:
    for reach in (((0, TOP - 1),), ((0x9000, 0x9FFF),)):
        limit = Limits(4096, reach)
        check(limit.segmenter(segments), Shape((0x1000, 0x2000), start, length), limit)


@pytest.mark.parametrize("nsegments", [2, 3, 1 << 63, TOP - 1])
def test_the_count_is_compared_without_overflow(nsegments: int) -> None:
    limit = Limits(4096, ((0, TOP - 1),), nsegments=nsegments)
    check(limit.segmenter(segments), Shape((0x1000, 0x3000, 0x5000), 0, 12288), limit)


# -- what the map shows -----------------------------------------------------------------------------------------------


def test_segments_are_views_of_the_output() -> None:
    limit = Limits(4096, ((0, TOP - 1),))
    segmenter = limit.segmenter(segments)
    shown = Segments(segmenter)
    assert segmenter.load(segments.Frames(array("Q", [0x3000, 0x1000])), 1, 8191) == 2
    buffer = shown.buffer
    assert buffer.readonly
    assert (buffer.shape, buffer.format, buffer.itemsize) == ((2, 2), "Q", 8)
    assert [list(row) for row in cast(Any, buffer.tolist())] == [[0x3001, 4095], [0x1000, 4096]]
    assert [(int(a), n) for a, n in shown] == [(0x3001, 4095), (0x1000, 4096)]
    assert (len(shown), shown[1]) == (2, (0x1000, 4096))
    assert shown.flat().tolist() == [0x3001, 4095, 0x1000, 4096]


# -- bounce pages: a small machine ------------------------------------------------------------------------------------

PAGE = 16
PAGES = 64  #: of the machine; buffers lie in the first 48, bounce pages in the others
SINGLES = range(48, 56)
RUN = range(56, 64)  #: begins at a multiple of 128 bytes, which is above every alignment used here


class SmallMachine:
    """RAM, slots, one segmenter, and a device that has nothing but segments."""

    def __init__(self, limit: Limits, base: int, order: list[int], seed: int, foreign: bool) -> None:
        self.base = base
        self.ram = bytearray((seed + 37 * i) % 251 for i in range(PAGES * PAGE))
        self.slots = segments.Slots(PAGES - 48)
        for slot, number in enumerate([*order, *RUN]):
            self.slots.addresses[slot] = base + number * PAGE
            self.slots.free[slot] = 1
        self.segmenter = limit.segmenter(segments, memoryview(self.ram), base)
        self.host = bytearray((seed + 101 * i) % 249 for i in range(48 * PAGE))
        if foreign:
            self.segmenter.client = self.segmenter.target = memoryview(self.host)

    def device_reads(self) -> bytes:
        return b"".join(self.ram[a - self.base : a - self.base + n] for a, n in pairs(self.segmenter))

    def device_writes(self, data: bytes) -> None:
        for address, length in pairs(self.segmenter):
            self.ram[address - self.base : address - self.base + length] = data[:length]
            data = data[length:]


@st.composite
def bounces(draw: st.DrawFn) -> dict[str, Any]:
    """A buffer of distinct pages, limits that leave the bounce pages in reach, and which pages go into a run."""
    base = draw(st.sampled_from([0, 1 << 20, TOP - PAGES * PAGE]))
    inside = st.integers(0, 48 * PAGE - 1).map(lambda at: at + base)
    spans = draw(st.lists(st.tuples(inside, inside), max_size=4))
    reach = busdma.AddressSet([(min(s), max(s)) for s in spans] + [(base + 48 * PAGE, base + PAGES * PAGE - 1)])
    limit = draw(limits(PAGE, reach.intervals))
    foreign = draw(st.integers(0, 3)) == 0
    numbers: list[int] = []
    for first, count in draw(st.lists(st.tuples(st.integers(0, 47), st.integers(1, 4)), min_size=1, max_size=3)):
        numbers += [n for n in range(first, min(first + count, 48)) if n not in numbers]
    table = tuple(FOREIGN if foreign else base + n * PAGE for n in numbers[:8])
    start = draw(st.integers(0, min(2, len(table)) * PAGE - 1))
    length = draw(st.one_of(st.just(len(table) * PAGE - start), st.integers(1, len(table) * PAGE - start)))
    shape = Shape(table, start, length)
    count = sum(1 for _ in pages_of(shape, PAGE))
    first = pages = lead = 0
    if limit.alignment > PAGE:
        pages = count
    elif draw(st.booleans()):
        first = draw(st.integers(0, count - 1))
        pages = draw(st.integers(1, count - first))
    head = start % PAGE if first == 0 else 0
    if pages and head % limit.alignment == 0 and draw(st.booleans()):
        lead = head
    machine = SmallMachine(limit, base, draw(st.permutations(SINGLES)), draw(st.integers(0, 99)), foreign)
    return {"limit": limit, "shape": shape, "first": first, "pages": pages, "lead": lead, "machine": machine}


def expect_place(case: dict[str, Any]) -> list[tuple[int, int, bool]]:
    """For each byte of the buffer: its bus address, its index in the client's memory, and whether it is bounced."""
    limit, shape, machine = case["limit"], case["shape"], case["machine"]
    singles = iter(machine.slots.addresses[: len(SINGLES)])
    run = machine.base + RUN[0] * PAGE + case["lead"]
    found = []
    for number, (index, head, size) in enumerate(pages_of(shape, PAGE)):
        frame = shape.table[index]
        crooked = head % limit.alignment != 0
        home = index * PAGE + head if frame == FOREIGN else frame + head - machine.base
        if case["first"] <= number < case["first"] + case["pages"]:
            address, run, bounced = run, run + size, True
        elif crooked or frame == FOREIGN or not limit.reaches(frame + head, frame + head + size - 1):
            address, bounced = next(singles) + (0 if crooked else head), True
        else:
            address, bounced = frame + head, False
        found += [(address + i, home + i, bounced) for i in range(size)]
    return found


def hold_and_place(case: dict[str, Any], expected: list[tuple[int, int, bool]]) -> int:
    """Take what the buffer needs, in its order, as a zone does, and place it."""
    limit, shape, machine = case["limit"], case["shape"], case["machine"]
    at, single = 0, []
    for number, (_, _, size) in enumerate(pages_of(shape, PAGE)):
        single.append(expected[at][2] and not case["first"] <= number < case["first"] + case["pages"])
        at += size
    before, after = sum(single[: case["first"]]), sum(single[case["first"] :])
    segmenter = machine.segmenter
    assert segmenter.take(machine.slots, before) == before
    segmenter.hold(machine.slots, range(len(SINGLES), len(SINGLES) + case["pages"]))
    assert segmenter.take(machine.slots, after) == after
    numbers = (case["first"], case["pages"], case["lead"])
    code = segmenter.place(frames(shape), shape.start, shape.length, machine.slots, *numbers)
    assert limit.nsegments >= code
    return int(code)


@settings(max_examples=300)
@given(bounces())
def test_place_puts_every_byte_where_the_model_does(case: dict[str, Any]) -> None:
    expected = expect_place(case)
    wanted = cut_bytes((address for address, _, _ in expected), case["limit"])
    code = hold_and_place(case, expected)
    segmenter = case["machine"].segmenter
    if len(wanted) > case["limit"].nsegments:
        assert (code, segmenter.wanted, segmenter.count) == (TOO_MANY, len(wanted), 0)
    else:
        assert code == len(wanted)
        assert tuples(segmenter.out)[:code] == wanted
        assert all(address % case["limit"].alignment == 0 for address, _ in wanted)


def test_a_run_that_begins_in_mid_page_is_cut_where_its_pages_are_not() -> None:
    limit = Limits(PAGE, ((0, PAGES * PAGE - 1),), boundary=2 * PAGE)
    shape = Shape((0, 5 * PAGE, 7 * PAGE, 9 * PAGE), PAGE // 2, 3 * PAGE)
    machine = SmallMachine(limit, 0, list(SINGLES), 1, False)
    case = {"limit": limit, "shape": shape, "first": 0, "pages": 3, "lead": 0, "machine": machine}
    assert hold_and_place(case, expect_place(case)) == 3
    run = RUN[0] * PAGE
    assert tuples(machine.segmenter.out)[:3] == ((run, 32), (run + 32, 8), (9 * PAGE, 8))


@settings(max_examples=300)
@given(bounces(), st.data())
def test_copies_by_sub_range(case: dict[str, Any], data: st.DataObject) -> None:
    expected = expect_place(case)
    if hold_and_place(case, expected) < 0:
        return
    machine, length = case["machine"], case["shape"].length
    foreign = FOREIGN in case["shape"].table
    model, host = bytearray(machine.ram), bytearray(machine.host)
    client = host if foreign else model
    for direction in (machine.segmenter.copy_out, machine.segmenter.copy_in):
        offset = data.draw(st.integers(0, length - 1))
        size = data.draw(st.integers(1, length - offset))
        bounced = [(a - machine.base, home) for a, home, out in expected[offset : offset + size] if out]
        for slot, home in bounced:
            if direction == machine.segmenter.copy_out:
                model[slot] = client[home]
            else:
                client[home] = model[slot]
        assert direction(offset, size) == len(bounced)
        assert (machine.ram, machine.host) == (model, host)
        if direction == machine.segmenter.copy_out:
            assert machine.device_reads() == bytes(model[a - machine.base] for a, _, _ in expected)
            written = bytes((7 * i + 3) % 256 for i in range(length))
            machine.device_writes(written)
            for byte, (a, _, _) in zip(written, expected, strict=True):
                model[a - machine.base] = byte


@settings(max_examples=300)
@given(limits(16), shapes(16), st.permutations(range(30, 46)))
def test_what_survey_promises_place_keeps(limit: Limits, shape: Shape, order: list[int]) -> None:
    keeps_promise(limit, shape, order)


@settings(max_examples=300)
@given(
    st.sampled_from([0, 16, 32, 64]),
    st.sampled_from([TOP - 1, 16, 24, 40]),
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), min_size=1, max_size=5),
    st.integers(0, 15),
    st.permutations(range(30, 46)),
)
def test_what_survey_promises_for_long_runs(
    boundary: int, maxsegsz: int, runs: list[tuple[int, int]], start: int, order: list[int]
) -> None:
    limit = Limits(16, ((0, 3 * 16 - 1), (4 * 16, TOP - 1)), boundary=boundary, maxsegsz=maxsegsz)
    table = (3 * 16, *(16 * (first + i) for first, count in runs for i in range(count) if first + i != 3))
    keeps_promise(limit, Shape(table, start, len(table) * 16 - start), order)


def keeps_promise(limit: Limits, shape: Shape, order: list[int]) -> None:
    """Bounce pages may come to touch anything, each other too: that never makes more segments than were announced."""
    segmenter = limit.segmenter(segments)
    code = segmenter.load(frames(shape), shape.start, shape.length)
    if code != UNREACHABLE or limit.alignment > limit.page:
        return
    wide = busdma.AddressSet([*limit.reach, (30 * 16, 46 * 16 - 1)])
    segmenter.intervals = array("Q", (edge for span in wide for edge in span))
    needed, wanted = segmenter.needed, segmenter.wanted
    slots = segments.Slots(16)
    for slot, number in enumerate(order):
        slots.addresses[slot] = number * 16
        slots.free[slot] = 1
    assert segmenter.take(slots, needed) == needed
    segmenter.nsegments = wanted
    assert 1 <= segmenter.place(frames(shape), shape.start, shape.length, slots, 0, 0, 0) <= wanted


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["take", "hold", "release"]), st.integers(0, 9))))
def test_slots_are_never_lost_and_never_shared(steps: list[tuple[int, str, int]]) -> None:
    limit = Limits(16, ((0, TOP - 1),))
    owners = [limit.segmenter(segments) for _ in range(3)]
    slots = segments.Slots(12)
    slots.free[:] = bytes([1]) * 12
    free = set(range(12))
    held: list[list[int]] = [[], [], []]
    for who, what, amount in steps:
        if what == "take":
            got = sorted(free)[:amount]
            assert owners[who].take(slots, amount) == len(got)
            held[who] += got
            free -= set(got)
        elif what == "hold":
            got = list(range(amount, min(amount + 2, 12)))
            if free.issuperset(got):
                owners[who].hold(slots, got)
                held[who] += got
                free -= set(got)
        else:
            assert owners[who].release(slots) == len(held[who])
            free |= set(held[who])
            held[who] = []
        assert {i for i in range(12) if slots.free[i]} == free
        for owner, mine in zip(owners, held, strict=True):
            assert list(owner.held)[: owner.nheld] == mine


# -- both forms -------------------------------------------------------------------------------------------------------


def record(module: Any, limit: Limits, several: list[Shape]) -> list[Any]:
    """Everything a segmenter says about these loads, with as many lone bounce pages as they need."""
    segmenter = limit.segmenter(module)
    slots = module.Slots(64)
    for slot in range(64):
        slots.addresses[slot] = ((1 << 40) + 2 * slot * limit.page) % TOP
        slots.free[slot] = 1
    found: list[Any] = []
    for shape in several:
        table = frames(shape, module)
        code = segmenter.load(table, shape.start, shape.length)
        found.append((code, segmenter.count, tuples(segmenter.out)[: segmenter.count]))
        if code in (NOT_MAPPED, TOO_MANY):
            found.append((segmenter.fault, segmenter.wanted))
        elif code == UNREACHABLE:
            found.append((segmenter.needed, segmenter.wanted))
            segmenter.take(slots, segmenter.needed)
            placed = segmenter.place(table, shape.start, shape.length, slots, 0, 0, 0)
            found.append((placed, tuples(segmenter.out)[: segmenter.count], segmenter.npieces))
            found.append((list(segmenter.held)[: segmenter.nheld], list(segmenter.pieces)[: 4 * segmenter.npieces]))
            found.append(segmenter.release(slots))
    return found


extreme = st.one_of(
    st.integers(0, TOP - 1),
    st.sampled_from([0, 1, 4095, 4096, (1 << 63) - 1, 1 << 63, TOP - 4097, TOP - 4096, TOP - 2, TOP - 1]),
)


@settings(max_examples=300)
@given(
    st.sampled_from([16, 4096, 8192]).flatmap(loads),
    st.tuples(extreme, extreme),
)
def test_every_form_gives_the_same_answers(case: tuple[Limits, list[Shape]], odd: tuple[int, int]) -> None:
    limit, several = case
    start, length = odd
    if limit.alignment <= limit.page:
        # Bounce pages of `record` are in reach, so that placing never leaves it.
        low = 1 << 40
        limit = Limits(
            limit.page,
            busdma.AddressSet([*limit.reach, (low, low + 128 * limit.page)]).intervals,
            limit.alignment,
            limit.boundary,
            limit.maxsegsz,
            limit.nsegments,
        )
        several = [*several, Shape(several[0].table, start, length)]
        answers = [record(module, limit, several) for module in FORMS]
        assert all(answer == answers[0] for answer in answers)
    for module in FORMS:
        segmenter = limit.segmenter(module)
        for shape in several:
            check(segmenter, shape, limit, module)


@given(st.lists(extreme, min_size=1, max_size=6), st.integers(0, 52), extreme, st.integers(1, 5 * 4096))
def test_extreme_frames_in_every_form(raw: list[int], low_bit: int, end: int, length: int) -> None:
    table = tuple(frame - frame % 4096 for frame in raw)
    limit = Limits(4096, ((0, end),), 1, 1 << (low_bit + 12), TOP - 1)
    shape = Shape(table, raw[0] % 4096, length)
    expected = expect_load(limit, shape)
    for module in FORMS:
        check(limit.segmenter(module), shape, limit, module)
    if expected.code > 0:
        pages = [(table[i] + head, size) for i, head, size in pages_of(shape, 4096)]
        assert cut_runs(pages, limit) == expected.segments


def test_the_constants_of_all_forms_are_equal() -> None:
    for module in FORMS:
        assert (module.ABSENT, module.FOREIGN) == (ABSENT, FOREIGN) == (TOP - 1, TOP - 2)
        assert (module.UNREACHABLE, module.TOO_MANY, module.NOT_MAPPED) == (UNREACHABLE, TOO_MANY, NOT_MAPPED)
