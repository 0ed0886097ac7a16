"""What another thread does at the worst moment, and somebody else's mistake. Moments are chosen, not raced for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from busdma.buffers import LinearBuffer
from busdma.errors import BusdmaError, DeviceFault, DriverError
from busdma.lists import part_of
from busdma.map import Map
from busdma.sync import Direction
from busdma.unmapped import PageArray
from busdma.waiting import Waiter
from core.paths_machine import Behind
from core.small_machine import PAGE, Pages, SmallMachine


def test_a_page_is_not_taken_while_a_load_reads_the_page_table(small: SmallMachine) -> None:
    process = small.space("cp")
    buffer = process.allocate(3 * PAGE)
    taken: list[int] = []

    def page_out(first: int, last: int) -> bool:
        taken.append(process.page_out())
        return False

    map = small.root.derive("asked", lowaddr=0, filter=page_out).create_map()
    map.load_nowait(buffer, Direction.BOTH)
    assert taken
    assert sum(taken) == 0
    assert [small.frames.owner_of(address) for address, _ in map.segments] == ["process"] * len(map.segments)


def test_a_page_that_a_load_has_just_seen_stays(small: SmallMachine) -> None:
    """The pager has found that nobody uses it; before it takes it, a load reads the page table."""
    process, map = small.space("cp"), small.root.create_map()
    buffer = process.allocate(PAGE)
    buffer.write(b"stays")

    def in_use(asked: LinearBuffer) -> str | None:
        found = small.domain.in_use(asked)
        if not len(map.segments):
            map.load_nowait(buffer)
        return found

    process.in_use = in_use
    assert process.page_out() == 0
    assert process.statistics()["paged_out"] == 0
    assert small.peek(map.segments)[:5] == b"stays"
    map.unload()
    process.in_use = small.domain.in_use
    assert process.page_out() == 1
    assert buffer.read(0, 5) == b"stays"


def test_a_load_that_meets_a_pager_which_thinks_better_of_it_works(small: SmallMachine) -> None:
    """It sees no frame, and a moment later the page has the one that it always had."""
    process, map = small.space("cp"), small.root.create_map()
    buffer = process.allocate(PAGE)
    page = buffer.start // PAGE
    frame = process.page_table[page]
    process.page_table[page] = 0xFFFFFFFFFFFFFFFF
    arrived = process.page_in

    def page_in(start: int, length: int) -> int:
        process.page_table[page] = frame
        return arrived(start, length)

    process.page_in = page_in  # type: ignore[method-assign]
    map.load_nowait(buffer)
    assert map.segments[0][0] == frame


@pytest.mark.parametrize("quarantined", [False, True])
def test_pages_stay_until_no_translation_leads_to_them(quarantined: bool) -> None:
    machine = Behind("mapped")
    process = machine.space("cp")
    buffer = process.allocate(PAGE)
    map = machine.bus.create_map()
    map.load_nowait(buffer)
    clear, taken = machine.tables.clear, list[int]()

    def clear_later(address: int, pages: int) -> None:
        taken.append(process.page_out())
        clear(address, pages)

    machine.tables.clear = clear_later  # type: ignore[method-assign]
    if quarantined:
        map.quarantine()
        map.report_idle()
    else:
        map.unload()
    assert taken == [0]
    assert process.page_out() == 1


def test_a_load_that_fails_leaves_its_buffer_alone(small: SmallMachine) -> None:
    process = small.space("cp")
    buffer = process.allocate(PAGE)
    holder, map = small.isa.create_map(), small.isa.derive("short", maxsize=10).create_map()
    with pytest.raises(DriverError):
        map.load_nowait(buffer)
    holder.load_nowait(bytearray(20 * PAGE))
    with pytest.raises(BusdmaError):
        small.isa.create_map().load_nowait([bytearray(1), buffer])
    assert small.domain.in_use(buffer) is None
    assert map.buffer is None
    process.free(buffer)


def test_maps_that_go_meanwhile_hide_no_other(small: SmallMachine) -> None:
    maps = [small.isa.create_map() for _ in range(3)]
    seen = small.domain.maps()
    assert next(seen) is maps[0]
    maps[0].destroy()
    assert list(seen) == maps[1:]


def test_two_threads_may_make_a_tags_chain_at_once(small: SmallMachine) -> None:
    """`functools.cached_property` has no lock: each thread may have a chain of its own."""
    first = small.isa.create_map()
    del small.isa.__dict__["_chain"]
    second = small.isa.create_map()
    first.destroy()
    second.destroy()


def test_who_waits_hears_that_hardware_failed_and_not_who_gives_back() -> None:
    machine = Behind("mapped", mapped=4, standing=True)
    holder, late = machine.bus.create_map(), machine.bus.create_map()
    holder.load_nowait(machine.kernel.allocate(4 * PAGE))
    heard: list[Exception | None] = []
    late.load_callback(machine.kernel.allocate(4 * PAGE), lambda segments, error: heard.append(error))
    flush = machine.tables.flush

    def fail(address: int, pages: int) -> None:
        raise DeviceFault("no answer")

    machine.tables.flush = fail  # type: ignore[method-assign]
    holder.unload()
    machine.tables.flush = flush  # type: ignore[method-assign]
    machine.runtime.run(_nothing)
    assert [type(error) for error in heard] == [DeviceFault]
    assert machine.domain.queue.waiters() == []
    assert machine.pool.active == 0
    late.load_nowait(machine.kernel.allocate(4 * PAGE))


def test_ctrl_c_is_not_told_to_a_callback_as_a_shortage(small: SmallMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, late = small.isa.create_map(), small.isa.create_map()
    holder.load_nowait(small.high(20 * PAGE))
    heard: list[object] = []
    late.load_callback(small.high(PAGE), lambda segments, error: heard.append(error))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Map, "_granted", interrupted)
    holder.unload()
    with pytest.raises(KeyboardInterrupt):
        small.runtime.block(Waiter())
    assert heard == []
    assert small.zone.active == 0


def _filter(answers: Callable[[int], bool], asked: list[int]) -> Callable[[int, int], bool]:
    def avoid(first: int, last: int) -> bool:
        asked.append(first)
        return answers(len(asked))

    return avoid


def test_a_filter_that_raises_leaves_no_lengths_behind(small: SmallMachine) -> None:
    """The load that it ends had joined two pages; the next one of the map has single pages there."""

    def avoid(first: int, last: int) -> bool:
        if first == 50 * PAGE:
            raise ZeroDivisionError
        return False

    map = small.root.derive("asked", lowaddr=9 * PAGE - 1, filter=avoid).create_map()
    with pytest.raises(ZeroDivisionError):
        map.load_nowait(Pages([page * PAGE for page in (1, 3, 4, 6, 50, 60)], 0, 6 * PAGE))
    map.load_nowait(Pages([page * PAGE for page in (1, 3, 5, 7)], 0, 4 * PAGE))
    assert [length for _, length in map.segments] == [PAGE] * 4


@pytest.mark.parametrize("at", range(1, 6))
def test_a_filter_that_raises_takes_no_bounce_pages_with_it(small: SmallMachine, at: int) -> None:
    warm = small.isa.create_map()
    warm.load_nowait(small.high(PAGE))
    warm.unload()
    asked: list[int] = []

    def avoid(count: int) -> bool:
        if count == at:
            raise ZeroDivisionError
        return True

    map = small.root.derive("asked", lowaddr=128 * PAGE - 1, filter=_filter(avoid, asked)).create_map()
    pages = Pages([200 * PAGE, 203 * PAGE], 0, 2 * PAGE)
    with pytest.raises(ZeroDivisionError):
        map.load_nowait(pages)
    assert small.zone.free == sum(small.zone.slots.free) == small.zone.capacity
    asked[:] = [0] * 100
    map.load_nowait(pages)
    assert small.zone.active == 2


def test_a_filter_that_changes_its_mind_is_told_so(small: SmallMachine) -> None:
    asked: list[int] = []
    tag = small.root.derive("asked", lowaddr=128 * PAGE - 1, filter=_filter(lambda count: count != 3, asked))
    warm = small.isa.create_map()
    warm.load_nowait(small.high(PAGE))
    warm.unload()
    with pytest.raises(DriverError, match="always answer the same"):
        tag.create_map().load_nowait(Pages([200 * PAGE, 203 * PAGE], 0, 2 * PAGE))
    assert small.zone.active == 0
    assert small.zone.free == sum(small.zone.slots.free)


def test_a_part_says_nothing_that_is_only_true_of_the_whole(small: SmallMachine) -> None:
    memory = small.isa.alloc(100)
    part = part_of(memory, 10, 20)
    assert getattr(part, "gone", None) == ""
    for name in ("size", "segments", "free", "view"):
        assert not hasattr(part, name)


def test_a_page_array_has_no_single_bytes(small: SmallMachine) -> None:
    with pytest.raises(DriverError, match="give a range of bytes"):
        PageArray.allocate(small.domain, 10)[0]  # type: ignore[index]


async def _nothing() -> None:
    pass
