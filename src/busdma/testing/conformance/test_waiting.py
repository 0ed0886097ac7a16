"""Waiting: four faces, one order; no wait for what can never come; nothing is lost when a wait ends otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import busdma
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
from busdma.faces import Progress
from busdma.lifecycle import State
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.runtime import NAMES
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.testing.conformance.rig import MS, exhaust, pause, release, state_of, tags
from busdma.waiting import Task

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose

OUT = Direction.TO_DEVICE


@pytest.fixture(params=NAMES)
def machine(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The machine under each runtime; nothing is left of any wait."""
    with busdma.open(machine.spec, runtime=request.param, check=False) as other:
        yield other
        assert other.leaks() == []
        assert other.statistics()["waiting"] == []


def one_page(tag: Tag) -> bytearray:
    """Memory that needs a page of what `exhaust` has taken."""
    return bytearray(tag.domain.page_size)


def start_load(machine: Machine, map: Map, **deadline: int) -> Task[Any]:
    """A driver that waits for a page."""

    async def load() -> int:
        return len(await map.load(one_page(map.tag), OUT, **deadline))

    return machine.runtime.start(load, name=map.name)


def let_run(machine: Machine) -> None:
    """Let every driver run until it waits."""
    machine.run(pause, machine.runtime)


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
    for number in range(1, 5):  # one page at a time
        machine.runtime.call_at(machine.runtime.now() + number * MS, give_back)
    maps["block"].load_blocking(one_page(tag), OUT)
    order.append("block")
    machine.runtime.block(task.done)
    let_run(machine)
    assert order == ["await", "callback", "turn", "block"]
    release([*maps.values(), *held])


def test_nobody_overtakes_a_waiter_of_the_same_pool(machine: Machine) -> None:
    """Neither by asking for less, nor by another face, nor from another device that shares the pool."""
    tag = tags(machine)[0]
    held = exhaust(tag)
    first = tag.create_map(name="first")
    page = tag.domain.page_size

    async def much() -> None:
        await first.load(bytearray(2 * page), OUT)

    task = machine.runtime.start(much)
    let_run(machine)
    small = held.pop()
    assert small.buffer is not None
    assert small.buffer.length == page
    release([small])  # one page is free, and the first waits for two
    newcomer = tag.create_map(name="newcomer")
    with pytest.raises(ResourceShortage, match="waiting before it") as caught:
        newcomer.load_nowait(one_page(tag), OUT)
    assert caught.value.reason is ShortageReason.BUSY
    later = start_load(machine, newcomer)
    let_run(machine)
    assert (first.state, newcomer.state) == (State.WAITING, State.WAITING)
    release(held)
    machine.runtime.block(task.done)
    machine.runtime.block(later.done)
    release([first, newcomer])


def test_a_load_that_needs_nothing_is_never_delayed(machine: Machine) -> None:
    """Not by those who wait: a buffer that stays where it is, and a map that took all that it needs before."""
    for tag in tags(machine):
        limited = tag.derive("limited", maxsize=2 * tag.domain.page_size)
        reserved = limited.create_map(name="reserved", reserve=True)
        direct, twin = tag.create_map(name="direct"), tag.create_map(name="twin")
        buffer = machine.allocate(100)
        stays = list(direct.load_nowait(buffer)) == list(twin.load_nowait(buffer))  # both see the memory itself
        release([twin])
        direct.unload()
        held = exhaust(tag)
        waiting = tag.create_map(name="waiting")
        task = start_load(machine, waiting)
        let_run(machine)
        assert state_of(waiting) is State.WAITING
        if stays:
            direct.load_nowait(buffer)
            direct.unload()
        reserved.load_nowait(bytearray(2 * tag.domain.page_size), OUT)
        assert state_of(waiting) is State.WAITING
        reserved.unload()
        release(held)
        machine.runtime.block(task.done)
        release([waiting])
        reserved.destroy()


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
        again = exhaust(tag)  # everything is there
        release(again)
    assert machine.leaks() == []


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


def test_nothing_waits_for_what_can_never_come(machine: Machine) -> None:
    """More than a pool may ever hold is refused at once, by every face."""
    for tag in tags(machine):
        map = tag.create_map()
        huge = bytearray(64 << 20)
        now = machine.runtime.now()
        for load in (map.load_nowait, map.load_blocking):
            with pytest.raises((ResourceShortage, MappingRefused)) as caught:
                load(huge, OUT)
            if isinstance(caught.value, ResourceShortage):
                assert caught.value.reason is ShortageReason.TOO_LARGE
        assert machine.runtime.now() == now
        assert state_of(map) is State.IDLE


def test_a_wait_that_nobody_could_end_is_reported(machine: Machine) -> None:
    """As a deadlock, by name, instead of a program that hangs."""
    for tag in tags(machine):
        held = exhaust(tag)
        map = tag.create_map()
        with pytest.raises(Deadlock):
            map.load_blocking(one_page(tag), OUT)
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


def test_a_turn_can_be_given_up(machine: Machine, tag: Tag) -> None:
    """Then its queue is not run, and the next in line is served."""
    held = exhaust(tag)
    with pytest.raises(ResourceShortage):
        tag.create_map().load_nowait(one_page(tag), OUT)
    turn = tag.on_available(lambda: pytest.fail("it was given up"))
    map = tag.create_map()
    task = start_load(machine, map)
    let_run(machine)
    assert turn.cancel()
    assert not turn.cancel()
    release(held)
    machine.runtime.block(task.done)
    release([map])


def test_a_turn_holds_its_place(machine: Machine, tag: Tag) -> None:
    """Until its queue has run nobody behind it is served, though there is enough."""
    held = exhaust(tag)
    first, second = tag.create_map(name="first"), tag.create_map(name="second")
    behind = tag.create_map(name="behind")
    with pytest.raises(ResourceShortage):
        first.load_nowait(one_page(tag), OUT)

    def run_queue() -> None:
        first.load_nowait(one_page(tag), OUT)
        release(held)
        assert behind.state is State.WAITING
        second.load_nowait(one_page(tag), OUT)

    turn = tag.on_available(run_queue)
    task = start_load(machine, behind)
    let_run(machine)
    release([held.pop()])
    machine.runtime.block(task.done)
    assert turn.done
    assert len(first.segments) == len(second.segments) == 1
    release([first, second, behind])


def test_all_or_nothing(machine: Machine) -> None:
    """Who waits for much holds nothing meanwhile: what is free is there for a shortage to be told from a leak."""
    for tag in tags(machine):
        held = exhaust(tag)
        map = tag.create_map()
        page = tag.domain.page_size
        with pytest.raises(ResourceShortage):
            map.load_nowait(bytearray(3 * page), OUT)
        small = held.pop()
        release([small])
        with pytest.raises(ResourceShortage):
            map.load_nowait(bytearray(3 * page), OUT)
        map.load_nowait(one_page(tag), OUT)  # the page that was free before is free again
        map.unload()
        release(held)


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
