"""Who waits is served in the order of asking, and nobody who needs something else is held up."""

from __future__ import annotations

import pytest

from busdma.errors import ResourceShortage, ShortageReason
from busdma.lifecycle import State
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.runtime import NAMES
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.testing.conformance.rig import (
    exhaust,
    let_run,
    noise,
    one_page,
    release,
    start_load,
    state_of,
    tags,
)

pytestmark = pytest.mark.busdma(runtimes=NAMES, check=False)  # mistakes are made on purpose

OUT = Direction.TO_DEVICE


def full(tag: Tag) -> bool:
    """A load through this tag would have to wait for a page."""
    map = tag.create_map()
    try:
        map.load_nowait(one_page(tag), OUT)
        map.unload()
    except ResourceShortage:
        return True
    finally:
        map.destroy()
    return False


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


def test_a_device_that_shares_the_pool_queues_too(machine: Machine) -> None:
    """It does not overtake another device; a device with a pool of its own is not held up by anybody's wait."""
    for tag in tags(machine):
        held = exhaust(tag)
        others = {other: full(other) for other in tags(machine)}
        first = tag.create_map(name="first")
        task = start_load(machine, first, bytearray(2 * tag.domain.page_size))
        let_run(machine)
        release([held.pop()])  # one page is free, and the first waits for two
        assert state_of(first) is State.WAITING
        for other, shares in others.items():
            assert full(other) is shares
        release(held)
        machine.runtime.block(task.done)
        release([first])


def test_many_waiters_are_served_in_order(machine: Machine, tag: Tag) -> None:
    """Long and short loads, given back in another order: at any time those are loaded who asked first."""
    held = exhaust(tag)
    tasks, maps = [], list[Map]()
    for number, byte in enumerate(noise(12, 4)):
        maps.append(tag.create_map(name=f"waiter {number}"))
        tasks.append(start_load(machine, maps[-1], bytearray((1 + byte % 3) * tag.domain.page_size)))
        let_run(machine)
    assert len(machine.statistics()["waiting"]) == len(maps)
    while held:
        release([held.pop(len(held) // 2)])
        let_run(machine)
        waiting = [map.state is State.WAITING for map in maps]
        assert waiting == sorted(waiting)
    for task in tasks:
        machine.runtime.block(task.done)
        task.result()
    release(maps)


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


def test_a_turn_may_ask_for_the_next(machine: Machine, tag: Tag) -> None:
    """A driver's own queue, longer than what there is: turn by turn all of it is run, in order."""
    held, done, kept = exhaust(tag), list[str](), list[Map]()
    jobs = [tag.create_map(name=f"job {number}") for number in range(6)]

    def run_queue() -> None:
        while jobs:
            try:
                jobs[0].load_nowait(one_page(tag), OUT)
            except ResourceShortage:
                tag.on_available(run_queue)
                return
            done.append(jobs[0].name)
            kept.append(jobs.pop(0))

    run_queue()
    assert not done
    while jobs and held:
        release([held.pop()])
        let_run(machine)
    assert done == [f"job {number}" for number in range(6)]
    release([*held, *kept])


def test_an_unload_needs_no_turn(machine: Machine, tag: Tag) -> None:
    """Cleanup never waits: sync, unload and the end of a transfer work where everything is taken and others wait.

    So a driver whose load waits for pages that its own finished commands hold still gets them.
    """
    transfer = tag.transfer(one_page(tag), to_device=True)
    transfer.__enter__()
    held = exhaust(tag)
    command, following = held.pop(), tag.create_map(name="following")

    def finished() -> None:  # in the context of completions, which never waits for a pool
        command.sync(OUT.post)
        command.unload()

    command.sync(OUT.pre)
    machine.runtime.call_at(machine.runtime.now() + 1000, finished)
    task = start_load(machine, following)
    machine.runtime.block(task.done)
    assert task.result() == 1
    last = start_load(machine, command)
    let_run(machine)
    assert state_of(command) is State.WAITING
    transfer.__exit__(None, None, None)
    machine.runtime.block(last.done)
    release([command, following, *held])
