"""Go run your queue: a turn keeps its place until run_queue has returned, and takes nothing itself."""

from __future__ import annotations

import pytest

from busdma.errors import DriverError, ResourceShortage
from busdma.lifecycle import State
from busdma.runtime.carrier import Carrier
from core.small_machine import PAGE, SmallMachine
from core.test_faces import MS, fill, pause


def test_a_driver_that_keeps_its_own_queue(machine: SmallMachine, runtime: Carrier) -> None:
    """Six jobs of 8 pages through a zone of 20, in order; another tag's small loads wait behind the turns."""
    tag = machine.isa.derive("aha0")
    jobs = [machine.high(8 * PAGE) for _ in range(6)]
    started: list[int] = []
    turns = 0
    queue = list(range(6))

    def run_queue() -> None:
        nonlocal turns
        turns += 1
        while queue:
            map = tag.create_map()
            try:
                map.load_nowait(jobs[queue[0]])
            except ResourceShortage:
                map.destroy()
                tag.on_available(run_queue)
                return
            job = queue.pop(0)
            started.append(job)
            runtime.call_at(runtime.now() + (6 - job) * MS, map.unload)  # the device finishes in another order

    async def main() -> None:
        run_queue()
        small = machine.isa.derive("aha1").create_map(name="small")
        await small.load(machine.high(8 * PAGE))  # behind the first turn
        assert started == [0, 1, 2]
        small.unload()
        while queue:
            await pause(runtime, MS)
        await pause(runtime, 10 * MS)

    runtime.run(main)
    assert started == [0, 1, 2, 3, 4, 5]
    assert turns == 5  # the first call, and a turn for each job that did not fit
    assert machine.zone.active == 0
    assert machine.domain.queue.waiters() == []


def test_nobody_is_served_while_run_queue_runs(small: SmallMachine) -> None:
    holder = fill(small)
    tag = small.isa.derive("aha0")
    first, second, behind = tag.create_map(), tag.create_map(), small.isa.create_map(name="behind")
    with pytest.raises(ResourceShortage):
        first.load_nowait(small.high(2 * PAGE))
    log: list[object] = []

    def run_queue() -> None:
        log.append(behind.state)
        first.load_nowait(small.high(2 * PAGE))
        second.load_nowait(small.high(10 * PAGE))
        first.unload()  # what comes back does not go to who waits behind, yet
        log.append(behind.state)

    turn = tag.on_available(run_queue)

    async def main() -> None:
        task = small.runtime.start(behind.load, small.high(10 * PAGE))
        await pause_on(small, MS)
        assert small.domain.queue.waiters() == ["the queue of tag pc/isa/aha0", "map 'behind' of tag pc/isa"]
        assert not turn.done
        holder.unload()
        assert log == []  # only posted, not called in the middle of an unload
        await small.runtime.park(task.done)

    small.runtime.run(main)
    assert log == [State.WAITING, State.WAITING]
    assert turn.done
    assert not turn.cancel()
    assert small.zone.active == 20


async def pause_on(machine: SmallMachine, ns: int) -> None:
    assert isinstance(machine.runtime, Carrier)
    await pause(machine.runtime, ns)


def test_without_a_refusal_one_page_is_enough(small: SmallMachine) -> None:
    called: list[int] = []
    small.isa.on_available(lambda: called.append(1))
    small.root.on_available(lambda: called.append(2))  # reaches all memory, but what it does not know it bounces
    small.runtime.run(lambda: pause_on(small, 1))
    assert called == [1, 2]


def test_a_turn_can_be_given_up(small: SmallMachine) -> None:
    holder = fill(small)
    called: list[int] = []
    tag = small.isa.derive("aha0")
    turn = tag.on_available(lambda: called.append(1))
    other = tag.on_available(lambda: called.append(2))
    granted = tag.on_available(lambda: called.append(3))
    assert turn.cancel()
    assert not turn.cancel()
    holder.unload()
    assert granted.cancel()
    assert small.domain.queue.waiters() == ["the queue of tag pc/isa/aha0"]
    tag.abandon()  # the driver died: so do its turns, also one that has come
    assert other.done
    small.runtime.run(lambda: pause_on(small, 1))
    assert called == []
    assert small.domain.queue.waiters() == []
    tag.destroy()
    with pytest.raises(DriverError, match="was destroyed"):
        tag.on_available(lambda: None)


def test_an_error_in_run_queue_ends_the_turn(small: SmallMachine) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    small.isa.on_available(fails)
    with pytest.raises(ZeroDivisionError):
        small.runtime.run(lambda: pause_on(small, 1))
    small.runtime.run(lambda: pause_on(small, 1))  # the runtime goes on, also with what was started before
    assert small.domain.queue.waiters() == []
    small.isa.create_map().load_nowait(small.high(20 * PAGE))


def test_a_turn_waits_for_what_was_refused(small: SmallMachine) -> None:
    """Not for any page: or it would come again and again for a job that still does not fit."""
    one, other = fill(small, 12), fill(small, 6)
    map = small.isa.create_map()
    called: list[int] = []
    with pytest.raises(ResourceShortage):
        map.load_nowait(small.high(9 * PAGE))
    small.isa.on_available(lambda: called.append(small.zone.free))
    small.runtime.run(lambda: pause_on(small, 1))
    assert called == []
    other.unload()
    small.runtime.run(lambda: pause_on(small, 1))
    assert called == []
    one.unload()
    small.runtime.run(lambda: pause_on(small, 1))
    assert called == [20]
