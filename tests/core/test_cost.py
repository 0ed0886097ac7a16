"""Where nothing ever needs doing, a map costs only itself and a transfer nothing but the segments it returns.

Counted by tracemalloc, not timed: what is still allocated after a thousand cycles, and the most that ever was.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

import busdma
from busdma.map import Map
from busdma.sync import POSTREAD, PREREAD
from core.small_machine import PAGE, SmallMachine

FILTERS = (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, "<unknown>"))
CYCLES = 1000


@pytest.fixture
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def retained(cycle: Callable[[], object]) -> tuple[int, int]:
    """Bytes that 1000 cycles leave allocated, and the highest peak above what there was before, in bytes."""
    for _ in range(50):
        cycle()
    gc.collect()
    gc.disable()
    try:
        before = tracemalloc.take_snapshot().filter_traces(FILTERS)
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        for _ in range(CYCLES):
            cycle()
        peak = tracemalloc.get_traced_memory()[1] - start
        after = tracemalloc.take_snapshot().filter_traces(FILTERS)
    finally:
        gc.enable()
    core = [each for each in after.compare_to(before, "filename") if "busdma" in each.traceback[0].filename]
    return sum(each.size_diff for each in core), peak


def cycle_of(map: Map, buffer: busdma.LinearBuffer) -> Callable[[], object]:
    def cycle() -> None:
        map.load_nowait(buffer)
        map.sync(PREREAD)
        map.sync(POSTREAD)
        map.unload()

    return cycle


@pytest.mark.usefixtures("traced")
def test_a_direct_transfer_leaves_nothing(small: SmallMachine) -> None:
    """Counters grow past the small integers, and that is all: a counter is one int, however often it is replaced."""
    map, pages = small.isa.create_map(), 16
    left, peak = retained(cycle_of(map, small.low(pages * PAGE)))
    assert left <= 5 * 32  # the five counters of the map
    assert peak < 2048 + 16 * pages
    assert small.zone.statistics()["pages"] == 0
    assert small.domain.queue.waiters() == []
    assert map.statistics()["loads"] == CYCLES + 50


@pytest.mark.usefixtures("traced")
def test_the_awaiting_face_leaves_nothing_either(small: SmallMachine) -> None:
    map, buffer = small.isa.create_map(), small.low(16 * PAGE)

    def cycle() -> None:
        coroutine = map.load(buffer)
        with pytest.raises(StopIteration):
            coroutine.send(None)
        map.unload()

    left, _ = retained(cycle)
    assert left <= 5 * 32


@pytest.mark.usefixtures("traced")
def test_a_transfer_block_leaves_nothing(small: SmallMachine) -> None:
    buffer = small.low(16 * PAGE)

    def cycle() -> None:
        with small.isa.transfer(buffer, to_device=True):
            pass

    left, peak = retained(cycle)
    assert left <= 5 * 32
    assert peak < 4096
    assert small.isa.statistics()["maps"] == 1


@pytest.mark.usefixtures("traced")
def test_a_map_takes_no_page_and_no_place(small: SmallMachine) -> None:
    """On a tag that never bounces: nothing in the zone, the pool or the machine's memory, only its own objects."""
    for map in [small.isa.create_map() for _ in range(100)]:
        map.destroy()  # sets and lists have their size now
    free = small.frames.statistics()["free"]
    before = tracemalloc.get_traced_memory()[0]
    maps = [small.isa.create_map(name="m") for _ in range(100)]
    each = (tracemalloc.get_traced_memory()[0] - before) / 100
    assert each < 4608  # the map and its segmenter; compiled, its typed views of the arrays too
    assert small.frames.statistics()["free"] == free
    assert small.zone.statistics()["pages"] == 0
    assert (small.zone.waiting, len(small.domain.queue.waiters())) == (0, 0)
    for map in maps:
        map.destroy()
    maps.clear()
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] - before < 4096


@pytest.mark.usefixtures("traced")
def test_a_bounced_transfer_leaves_nothing_once_the_zone_has_grown(small: SmallMachine) -> None:
    left, peak = retained(cycle_of(small.isa.create_map(), small.high(16 * PAGE)))
    assert left <= 12 * 32  # the counters of map and zone
    assert peak < 16384
