"""Run planning against brute force over all windows, and against what the segmenter then makes of the plan."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from busdma import segments
from busdma.addresses import AddressSet
from busdma.mechanisms.runs import plan_run
from busdma.segments import FOREIGN, TOO_MANY, UNREACHABLE, Frames
from core.oracle import TOP, Limits, Shape, cut_runs, has_to_bounce, limits, pages_of

FAR = 1 << 56  #: where lone bounce pages of the model lie, none of them next to another
HOLES = st.tuples(st.integers(0, 19 * 16), st.integers(0, 3 * 16)).map(lambda pair: (pair[0], pair[0] + pair[1]))
RUN = 1 << 63  #: where its run begins: at every boundary line


@dataclass
class Pages:
    """The least that is a Buffer."""

    frames: Frames
    start: int
    length: int
    host: memoryview | None = None
    readonly: bool = False

    def describe(self) -> str:
        return "pages of a test"


def buffer(shape: Shape) -> Pages:
    return Pages(Frames(array("Q", shape.table)), shape.start, shape.length)


def cost(limit: Limits, shape: Shape, first: int, pages: int) -> int:
    """Segments with this window in a run, and nothing bounced touching anything by luck."""
    best = TOP
    offset = shape.start % limit.page if first == 0 else 0
    for lead in {0, offset if offset % limit.alignment == 0 else 0}:
        spans, at = [], RUN + lead
        for number, (index, head, size) in enumerate(pages_of(shape, limit.page)):
            frame = shape.table[index]
            if first <= number < first + pages:
                spans.append((at, size))
                at += size
            elif has_to_bounce(limit, frame, head, size):
                spans.append((FAR + 2 * number * limit.page + (0 if head % limit.alignment else head), size))
            else:
                spans.append((frame + head, size))
        best = min(best, len(cut_runs(spans, limit)))
    return best


@st.composite
def crowded(draw: st.DrawFn, page: int = 16) -> tuple[Limits, Shape]:
    """A mapped buffer within its table, and limits of few segments that keep the model's own pages out of the way."""
    wide = AddressSet.span(0, FAR - 1 - page)
    limit = draw(limits(page, (wide - AddressSet(draw(st.lists(HOLES, max_size=2)))).intervals))
    table: list[int] = []
    for first, count in draw(st.lists(st.tuples(st.integers(0, 18), st.integers(1, 3)), min_size=1, max_size=7)):
        table += [(first + i) * page for i in range(count)]
    if draw(st.integers(0, 3)) == 3:
        table[draw(st.integers(0, len(table) - 1))] = FOREIGN
    start = draw(st.one_of(st.sampled_from([0, page // 2]), st.integers(0, page - 1)))
    left = len(table) * page - start
    length = draw(st.one_of(st.just(left), st.integers(1, left)))
    few = Limits(page, limit.reach, limit.alignment, limit.boundary, limit.maxsegsz, draw(st.integers(1, 9)))
    return few, Shape(tuple(table), start, length)


@settings(max_examples=400)
@given(crowded())
def test_plans_are_as_short_as_brute_force_finds(case: tuple[Limits, Shape]) -> None:
    limit, shape = case
    count = sum(1 for _ in pages_of(shape, limit.page))
    windows = [(first, pages) for pages in range(1, count + 1) for first in range(count - pages + 1)]
    windows.append((0, 0))  # single bounce pages may do
    if limit.alignment > limit.page:
        windows = [(0, count)]
    enough = [window for window in windows if cost(limit, shape, *window) <= limit.nsegments]
    plan = plan_run(buffer(shape), limit.constraints(), limit.page)
    if not enough:
        assert plan is None
        return
    assert plan is not None
    assert plan.pages == min(pages for _, pages in enough)
    assert (plan.first, plan.pages) in enough
    lengths = [size for _, _, size in pages_of(shape, limit.page)]
    assert plan.length == sum(lengths[plan.first : plan.first + plan.pages])
    bounced = [has_to_bounce(limit, shape.table[i], head, size) for i, head, size in pages_of(shape, limit.page)]
    assert plan.before == sum(bounced[: plan.first])
    assert plan.after == sum(bounced[plan.first + plan.pages :])
    assert plan.lead % limit.alignment == 0
    assert plan.lead + plan.length <= plan.pages * limit.page


@settings(max_examples=400)
@given(crowded(), st.integers(0, 15), st.permutations(range(20, 36)))
def test_a_plan_never_comes_out_with_too_many_segments(
    case: tuple[Limits, Shape], where: int, order: list[int]
) -> None:
    """Wherever the run may begin, and whatever its neighbours and the single bounce pages come to touch."""
    limit, shape = case
    plan = plan_run(buffer(shape), limit.constraints(), limit.page)
    if plan is None:
        return
    base = RUN + where * plan.alignment
    assert base % limit.page == 0
    if plan.boundary:
        last = base + plan.lead + plan.length - 1
        assume((base + plan.lead) // plan.boundary == last // plan.boundary)
    segmenter = limit.segmenter(segments)
    reach = AddressSet([*limit.reach, (20 * 16, 36 * 16 - 1), (RUN, TOP - 1)])
    segmenter.intervals = array("Q", (edge for span in reach for edge in span))
    bounced = [has_to_bounce(limit, shape.table[i], head, size) for i, head, size in pages_of(shape, limit.page)]
    widened = [
        has_to_bounce(Limits(limit.page, reach.intervals, limit.alignment), shape.table[i], head, size)
        for i, head, size in pages_of(shape, limit.page)
    ]
    inside = range(plan.first, plan.first + plan.pages)
    assume(all(a == b for i, (a, b) in enumerate(zip(bounced, widened, strict=True)) if i not in inside))
    slots = segments.Slots(64)
    for slot, number in enumerate(order):
        slots.addresses[slot] = number * limit.page
        slots.free[slot] = 1
    for i in range(plan.pages):
        slots.addresses[32 + i] = base + i * limit.page
        slots.free[32 + i] = 1
    assert segmenter.take(slots, plan.before) == plan.before
    segmenter.hold(slots, range(32, 32 + plan.pages))
    assert segmenter.take(slots, plan.after) == plan.after
    frames = segments.Frames(array("Q", shape.table))
    numbers = (plan.first, plan.pages, plan.lead)
    assert 1 <= segmenter.place(frames, shape.start, shape.length, slots, *numbers) <= limit.nsegments


@settings(max_examples=300)
@given(crowded())
def test_a_run_can_be_had_from_an_idle_machine(case: tuple[Limits, Shape]) -> None:
    """There is a place that satisfies the run: the first page of a boundary block."""
    limit, shape = case
    plan = plan_run(buffer(shape), limit.constraints(), limit.page)
    if plan is not None:
        assert RUN % plan.alignment == 0
        assert plan.alignment >= limit.page
        assert not plan.boundary or plan.pages * limit.page <= plan.boundary
        assert not plan.boundary or plan.lead + plan.length <= plan.boundary


def plan(limit: Limits, shape: Shape) -> tuple[int, int] | None:
    """First page and pages of the plan."""
    found = plan_run(buffer(shape), limit.constraints(), limit.page)
    return None if found is None else (found.first, found.pages)


def test_a_run_in_the_middle_leaves_the_ends_where_they_are() -> None:
    pages = [0, 1, 2, 3, 10, 20, 30, 31, 32]
    table = tuple(0x1000 * n for n in pages)
    everything = ((0, (1 << 32) - 1),)
    assert plan(Limits(4096, everything, nsegments=3), Shape(table, 0, 9 * 4096)) == (4, 2)
    assert plan(Limits(4096, everything, nsegments=2), Shape(table, 0, 9 * 4096)) == (4, 5)
    assert plan(Limits(4096, everything, nsegments=1), Shape(table, 0, 9 * 4096)) == (0, 9)


def test_a_shorter_run_further_on_is_found() -> None:
    """The run from page 0 would need two segments itself; the one from page 2 does not."""
    table = tuple(0x1000 * n for n in (0, 1, 10, 20, 30))
    limit = Limits(4096, ((0, (1 << 32) - 1),), maxsegsz=3 * 4096, nsegments=2)
    assert plan(limit, Shape(table, 0, 5 * 4096)) == (2, 3)


def test_a_bounced_page_is_not_taken_to_touch_its_neighbour() -> None:
    table = tuple(0x1000 * n for n in (5, 1, 9))
    limit = Limits(4096, ((0, 0x4FFF), (0x6000, (1 << 32) - 1)), nsegments=2)
    assert plan(limit, Shape(table, 0, 3 * 4096)) == (0, 2)


def test_a_run_leaves_the_offset_in_the_page_where_keeping_it_would_cost_a_segment() -> None:
    shape = Shape((0x5000, 0x1000), 4000, 200)
    limit = Limits(4096, ((0, (1 << 32) - 1),), boundary=4096, nsegments=1)
    run = plan_run(buffer(shape), limit.constraints(), 4096)
    assert run is not None
    assert (run.pages, run.lead, run.alignment, run.boundary) == (2, 0, 4096, 0)
    limit = Limits(4096, ((0, (1 << 32) - 1),), boundary=8192, nsegments=1)
    run = plan_run(buffer(shape), limit.constraints(), 4096)
    assert run is not None
    assert (run.pages, run.lead, run.alignment, run.boundary) == (2, 4000, 4096, 8192)


def test_pages_that_are_cut_themselves_are_counted_so() -> None:
    table = tuple(0x1000 * n for n in (1, 3, 5, 7))
    everything = ((0, (1 << 32) - 1),)
    assert plan(Limits(4096, everything, maxsegsz=1024, nsegments=12), Shape(table, 0, 4 * 4096)) is None
    assert plan(Limits(4096, everything, maxsegsz=3 * 1024, nsegments=7), Shape(table, 0, 4 * 4096)) == (0, 2)


def test_a_large_buffer_is_planned_page_by_page_but_not_window_by_window() -> None:
    """16 MiB scattered where one run of all is just enough: a search of all windows would visit eight million."""
    count = 4096
    table = tuple(0x2000 * n for n in range(count))
    limit = Limits(4096, ((0, (1 << 32) - 1),), maxsegsz=8192, nsegments=count // 2)
    assert plan(limit, Shape(table, 0, count * 4096)) == (0, count)
    short = Limits(4096, ((0, (1 << 32) - 1),), maxsegsz=4096, nsegments=count - 1)
    assert plan(short, Shape(table, 0, count * 4096)) is None


@given(crowded())
def test_a_plan_is_only_needed_where_the_segmenter_asks(case: tuple[Limits, Shape]) -> None:
    """One run of the whole buffer always does, unless even that has too many segments."""
    limit, shape = case
    segmenter = limit.segmenter(segments)
    code = segmenter.load(segments.Frames(array("Q", shape.table)), shape.start, shape.length)
    count = sum(1 for _ in pages_of(shape, limit.page))
    if code in (TOO_MANY, UNREACHABLE) and cost(limit, shape, 0, count) <= limit.nsegments:
        assert plan(limit, shape) is not None
