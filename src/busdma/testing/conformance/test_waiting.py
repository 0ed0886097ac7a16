"""Waiting: four faces; no wait for what can never come; nothing is lost when a wait ends otherwise."""

from __future__ import annotations

import pytest

from busdma.errors import (
    BlockingInsideLoop,
    BusdmaError,
    DeadlineExpired,
    Deadlock,
    MappingRefused,
    ResourceShortage,
    ShortageReason,
    WaitCancelled,
)
from busdma.faces import Callback, Progress
from busdma.lifecycle import State
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.result import Segments
from busdma.runtime import NAMES
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.testing.conformance.rig import (
    MS,
    exhaust,
    in_real_time,
    let_run,
    one_page,
    pages_of,
    release,
    start_load,
    state_of,
    tags,
)

pytestmark = pytest.mark.busdma(runtimes=NAMES, check=False)  # mistakes are made on purpose

OUT = Direction.TO_DEVICE


@pytest.fixture(scope="module")
def huge() -> bytearray:
    """Memory of the host, more of it than any pool may ever hold."""
    return bytearray(64 << 20)


def test_a_load_waits_until_somebody_unloads(machine: Machine) -> None:
    """And takes what was given back."""
    for tag in tags(machine):
        held = exhaust(tag)
        map = tag.create_map()
        task = start_load(machine, map)
        let_run(machine)
        assert state_of(map) is State.WAITING
        assert machine.statistics()["waiting"]
        release(held)
        machine.runtime.block(task.done)
        assert task.result() == 1
        assert state_of(map) is State.LOADED
        map.unload()
    assert machine.leaks() == []


def test_every_face_waits_in_one_line(machine: Machine, tag: Tag) -> None:
    """A driver that awaits, a callback, a turn and a plain thread, in the order in which they asked."""
    order: list[str] = []
    held = exhaust(tag)
    maps = {name: tag.create_map(name=name) for name in ("await", "callback", "turn", "block")}

    async def awaiting() -> None:
        await maps["await"].load(one_page(tag), OUT)
        order.append("await")

    def called(segments: object, error: Exception | None) -> None:
        assert error is None
        order.append("callback")

    def run_queue() -> None:
        maps["turn"].load_nowait(one_page(tag), OUT)
        order.append("turn")

    def give_back() -> None:
        release([held.pop()])

    task = machine.runtime.start(awaiting)
    let_run(machine)
    assert maps["callback"].load_callback(one_page(tag), called, OUT) is Progress.IN_PROGRESS
    with pytest.raises(ResourceShortage):
        maps["turn"].load_nowait(one_page(tag), OUT)
    tag.on_available(run_queue)
    step = 50 * MS if in_real_time(machine) else MS  # threads must have had their turn before the next page
    for number in range(1, 5):  # one page at a time
        machine.runtime.call_at(machine.runtime.now() + number * step, give_back)
    maps["block"].load_blocking(one_page(tag), OUT)
    order.append("block")
    machine.runtime.block(task.done)
    let_run(machine)
    assert order == ["await", "callback", "turn", "block"]
    release([*maps.values(), *held])


def test_a_deadline_ends_a_wait(machine: Machine) -> None:
    """With DeadlineExpired, at its time; nothing is held, the map is idle, and the next in line is served."""
    for tag in tags(machine):
        held = exhaust(tag)
        runtime = machine.runtime
        hasty, patient = tag.create_map(name="hasty"), tag.create_map(name="patient")
        until = runtime.now() + 5 * MS
        first, second = start_load(machine, hasty, deadline=until), start_load(machine, patient)
        runtime.block(first.done)
        with pytest.raises(DeadlineExpired):
            first.result()
        assert runtime.now() >= until
        assert state_of(hasty) is State.IDLE
        with pytest.raises(DeadlineExpired):
            hasty.load_blocking(one_page(tag), OUT, deadline=runtime.now() + MS)
        release(held)
        runtime.block(second.done)
        assert second.result() == 1
        release([patient])
        hasty.destroy()
    assert machine.statistics()["waiting"] == []


def test_a_cancel_ends_a_wait(machine: Machine) -> None:
    """By the map or by the driver, before the grant and after it; what was granted goes back."""
    for tag in tags(machine):
        held = exhaust(tag)
        maps = [tag.create_map(name=f"waiter {number}") for number in range(3)]
        tasks = [start_load(machine, map) for map in maps]
        let_run(machine)
        assert maps[0].cancel_load()
        tasks[1].cancel()
        let_run(machine)
        for task in tasks[:2]:
            with pytest.raises(WaitCancelled):
                task.result()
        release(held)
        tasks[2].cancel()  # it was granted, and has not run since
        machine.runtime.block(tasks[2].done)
        if maps[2].state is State.LOADED:  # the grant came first
            maps[2].unload()
        assert [map.state for map in maps] == [State.IDLE] * 3
        assert not maps[0].cancel_load()
    assert machine.leaks() == []


def test_what_is_granted_to_nobody_is_not_lost(machine: Machine) -> None:
    """A grant that comes after the cancel, and one whose driver is abandoned before it runs again, go back.

    Afterwards there is as much of everything as before.
    """
    for tag in tags(machine):
        held = exhaust(tag)
        all_of_it = pages_of(held)
        maps = [tag.create_map(name=name) for name in ("cancelled", "abandoned", "patient")]
        tasks = [start_load(machine, map, bytearray(2 * tag.domain.page_size)) for map in maps]
        let_run(machine)
        assert maps[0].cancel_load()  # it is still in the line when the grant comes
        release(held)
        maps[1].abandon()  # it was granted, and may not have run since
        for task in tasks:
            machine.runtime.block(task.done)
        assert [map.state for map in maps] == [State.IDLE, State.IDLE, State.LOADED]
        with pytest.raises(WaitCancelled):
            tasks[0].result()
        release([maps[2]])
        again = exhaust(tag)
        assert pages_of(again) == all_of_it
        release(again)


def test_a_callback_hears_of_every_end(machine: Machine, tag: Tag) -> None:
    """Segments, a refusal, a deadline and a cancel: the callback is called once, and for misuse not at all."""
    told: list[str] = []

    def called(segments: object, error: Exception | None) -> None:
        told.append("segments" if error is None else type(error).__name__)

    map = tag.create_map()
    assert map.load_callback(machine.allocate(10), called) is Progress.DONE
    map.unload()
    assert tag.derive("small", maxsize=4).create_map().load_callback(bytearray(5), called) is Progress.DONE
    held = exhaust(tag)
    until = machine.runtime.now() + MS
    assert map.load_callback(one_page(tag), called, OUT, deadline=until) is Progress.IN_PROGRESS
    let_run(machine)
    let_run(machine)
    assert map.load_callback(one_page(tag), called, OUT) is Progress.IN_PROGRESS
    assert map.cancel_load()
    let_run(machine)
    assert told[:3] == ["segments", "BufferTooLong", "DeadlineExpired"]
    assert len(told) == 4
    with pytest.raises(BusdmaError):
        held[0].load_callback(one_page(tag), called, OUT)
    assert len(told) == 4
    release(held)


def test_a_callback_brings_the_segments(machine: Machine, tag: Tag) -> None:
    """The map's own, valid from then until unload as with every other face; and where drivers run, not where one asks.

    FreeBSD's callback is the only place where segments are valid; here they stay.
    """
    brought: list[Segments | None] = []

    def called(segments: Segments | None, error: Exception | None) -> None:
        brought.append(segments)

    map = tag.create_map()
    assert map.load_callback(machine.allocate(10), called) is Progress.DONE
    assert brought == [map.segments]
    map.unload()
    held = exhaust(tag)
    assert map.load_callback(one_page(tag), called, OUT) is Progress.IN_PROGRESS
    release(held)
    let_run(machine)
    assert brought == [map.segments, map.segments]
    (segment,) = list(map.segments)
    let_run(machine)
    assert list(map.segments) == [segment]
    map.unload()


def test_nothing_waits_for_what_can_never_come(machine: Machine, huge: bytearray) -> None:
    """More than a pool may ever hold is refused at once, by every face."""
    for tag in tags(machine):
        map = tag.create_map()
        told: list[BaseException | None] = []

        def called(segments: object, error: Exception | None, told: list[BaseException | None] = told) -> None:
            told.append(error)

        def by_callback(buffer: object, direction: Direction, map: Map = map, called: Callback = called) -> None:
            assert map.load_callback(buffer, called, direction) is Progress.DONE

        def awaiting(buffer: object, direction: Direction, map: Map = map) -> None:
            machine.run(map.load, buffer, direction)

        for load in (map.load_nowait, map.load_blocking, awaiting):
            with pytest.raises((ResourceShortage, MappingRefused)) as caught:
                load(huge, OUT)
            told.append(caught.value)
        by_callback(huge, OUT)
        assert len(told) == 4
        for error in told:
            assert isinstance(error, MappingRefused) or (
                isinstance(error, ResourceShortage) and error.reason is ShortageReason.TOO_LARGE
            )
        assert map.statistics()["deferred"] == 0
        assert state_of(map) is State.IDLE
        assert machine.statistics()["waiting"] == []


def test_a_wait_that_nobody_could_end_is_reported(machine: Machine) -> None:
    """As a deadlock, by name, instead of a program that hangs; in real time only its deadline can tell."""
    for tag in tags(machine):
        held = exhaust(tag)
        map = tag.create_map()
        deadline = machine.runtime.now() + MS if in_real_time(machine) else None
        with pytest.raises(DeadlineExpired if deadline else Deadlock):
            map.load_blocking(one_page(tag), OUT, deadline=deadline)
        assert state_of(map) is State.IDLE
        release(held)


def test_a_blocking_load_inside_a_driver_is_reported(machine: Machine, tag: Tag) -> None:
    """Where it has to wait; where it has not, it is as good as any."""
    map = tag.create_map()

    async def driver() -> None:
        map.load_blocking(one_page(tag), OUT)

    machine.run(driver)
    map.unload()
    held = exhaust(tag)
    with pytest.raises(BlockingInsideLoop):
        machine.run(driver)
    release(held)
    machine.run(driver)
    map.unload()


def test_a_reserved_map_never_waits(machine: Machine) -> None:
    """It took all that a buffer of maxsize could need when it was made, and gives it back when it is destroyed."""
    for tag in tags(machine):
        page = tag.domain.page_size
        limited = tag.derive("limited", maxsize=3 * page)
        reserved = limited.create_map(reserve=True)
        held = exhaust(tag)
        for offset in (0, 1):
            reserved.load_nowait(memoryview(bytearray(4 * page))[offset : offset + 2 * page], OUT)
            reserved.unload()
        with pytest.raises(ResourceShortage):
            limited.create_map(reserve=True)
        release(held)
        reserved.destroy()
        with pytest.raises(BusdmaError):
            tag.create_map(reserve=True)  # of a tag without a maxsize: of any length
