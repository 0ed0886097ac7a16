"""Four faces of a load over one engine: they keep one order, lose nothing, and end every wait with a named error."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from busdma.buffers import Buffer
from busdma.errors import (
    BlockingInsideLoop,
    BufferGone,
    BufferTooLong,
    DeadlineExpired,
    Deadlock,
    DriverError,
    MappingRefused,
    MapStateError,
    ResourceShortage,
    ShortageReason,
    WaitCancelled,
)
from busdma.faces import Progress
from busdma.lifecycle import State
from busdma.map import Map
from busdma.runtime import by_name
from busdma.runtime.aio import AsyncioRuntime
from busdma.runtime.carrier import Carrier
from busdma.sync import POSTREAD, PREREAD, Direction, SyncOp
from busdma.waiting import Runtime, Waiter
from core.small_machine import PAGE, Pages, SmallMachine

MS = 1_000_000


async def pause(runtime: Runtime, ns: int) -> None:
    """Wait for a timer."""
    waiter = Waiter("a timer")
    runtime.call_at(runtime.now() + ns, waiter.wake)
    await runtime.park(waiter)


def fill(machine: SmallMachine, pages: int = 20) -> Map:
    """A map that holds `pages` pages of the zone."""
    map = machine.isa.create_map(name="holder")
    map.load_nowait(machine.high(pages * PAGE))
    return map


def active(machine: SmallMachine) -> int:
    """Pages in use."""
    return machine.zone.active


# ---------------------------------------------------------------- order


def test_every_face_keeps_its_place(machine: SmallMachine, runtime: Carrier) -> None:
    """A callback, an awaiting driver and another callback; 12 pages each, so only one at a time."""
    log: list[str] = []
    maps = {name: machine.isa.create_map(name=name) for name in ("first", "second", "third")}
    buffers = {name: machine.high(12 * PAGE) for name in maps}

    def told(name: str, segments: object, error: Exception | None) -> None:
        assert error is None
        log.append(name)
        runtime.start(finish, name)

    async def finish(name: str) -> None:
        await pause(runtime, MS)
        maps[name].unload()

    async def awaiting(name: str) -> None:
        await maps[name].load(buffers[name])
        log.append(name)
        await finish(name)

    async def main() -> None:
        holder = fill(machine)
        assert maps["first"].load_callback(buffers["first"], partial(told, "first")) is Progress.IN_PROGRESS
        task = runtime.start(awaiting, "second")
        await pause(runtime, MS)
        assert maps["third"].load_callback(buffers["third"], partial(told, "third")) is Progress.IN_PROGRESS
        assert [owner.split("'")[1] for owner in machine.domain.queue.waiters()] == ["first", "second", "third"]
        small = machine.isa.create_map()
        with pytest.raises(ResourceShortage, match="3 waiting before it"):
            small.load_nowait(machine.high(1))  # a newcomer waits his turn too
        holder.unload()
        with pytest.raises(ResourceShortage):
            small.load_nowait(machine.high(9 * PAGE))
        await runtime.park(task.done)
        task.result()
        await pause(runtime, 3 * MS)

    runtime.run(main)
    assert log == ["first", "second", "third"]
    assert machine.domain.leaks() == []
    assert active(machine) == 0


def test_what_needs_nothing_is_never_delayed(machine: SmallMachine, runtime: Carrier) -> None:
    holder = fill(machine)
    waiting = machine.isa.create_map(name="waiting")
    direct = machine.isa.create_map(name="direct")
    buffer = machine.low(3 * PAGE)

    async def main() -> None:
        task = runtime.start(waiting.load, machine.high(PAGE))
        await pause(runtime, MS)
        assert waiting.state is State.WAITING
        before = runtime.now()
        await direct.load(buffer)
        direct.unload()
        direct.load_nowait(buffer)
        direct.unload()
        assert direct.load_callback(buffer, lambda segments, error: None) is Progress.DONE
        direct.unload()
        assert runtime.now() == before
        holder.unload()
        await runtime.park(task.done)
        task.result()

    runtime.run(main)
    direct.load_blocking(buffer)
    assert waiting.state is State.LOADED


def test_the_callback_runs_neither_inside_the_call_nor_inside_an_unload(
    machine: SmallMachine, runtime: Carrier
) -> None:
    """Whoever gives pages back must not find himself in another driver's callback."""
    holder = fill(machine)
    late = machine.isa.create_map(name="late")
    log: list[str] = []

    def told(segments: object, error: Exception | None) -> None:
        log.append("called")
        assert machine.domain.queue.lock.acquire(blocking=False)
        machine.domain.queue.lock.release()

    async def main() -> None:
        assert late.load_callback(machine.high(PAGE), told) is Progress.IN_PROGRESS
        log.append("returned")
        if runtime.name == "threads":  # there another thread may call at any time after the grant
            holder.unload()
        else:
            holder.unload()
            log.append("unloaded")
        await pause(runtime, MS)

    runtime.run(main)
    wanted = ["returned", "called"] if runtime.name == "threads" else ["returned", "unloaded", "called"]
    assert log == wanted
    assert late.state is State.LOADED


# ---------------------------------------------------------------- what can never be


def test_64_kib_at_an_odd_offset_are_17_pages() -> None:
    tight, enough = SmallMachine(limit=16), SmallMachine(limit=17)
    refused = tight.isa.create_map(name="dma0")
    for load in (refused.load_nowait, refused.load_blocking):
        with pytest.raises(
            MappingRefused, match="17 bounce pages needed and bounce zone 0 may hold 16: raise the zone's limit"
        ):
            load(tight.high(65536, 1))
    with pytest.raises(MappingRefused, match="map 'dma0' of tag pc/isa"):
        tight.runtime.run(refused.load, tight.high(65536, 1))
    with pytest.raises(MappingRefused, match=r"17 pages out of reach or not aligned to 4 \(tag 'words'\)"):
        tight.isa.derive("words", alignment=4).create_map().load_nowait(tight.high(65536, 1))
    heard: list[object] = []
    assert refused.load_callback(tight.high(65536, 4095), lambda s, error: heard.append(type(error))) is Progress.DONE
    assert heard == [MappingRefused]
    assert tight.zone.statistics()["refused"] == 5
    refused.load_nowait(tight.high(65536))
    map = enough.isa.create_map()
    map.load_nowait(enough.high(65536, 1))
    assert enough.zone.active == 17
    map.unload()


def test_the_errors_of_a_load(small: SmallMachine) -> None:
    """Each names tag, map, buffer and length, and says what to do; the map stays usable."""
    tag = small.isa.derive("aha0", maxsize=8192)
    map = tag.create_map(name="ccb")
    with pytest.raises(
        BufferTooLong, match=r"9000 bytes into map 'ccb' of tag pc/isa/aha0: .*maxsize 8192, set by tag 'aha0'"
    ):
        map.load_nowait(small.low(9000))
    with pytest.raises(BufferTooLong, match="maxsize 8192"):
        map.load_nowait(small.high(9000))
    assert len(map.segments) == 0
    with pytest.raises(DriverError, match="it is empty"):
        map.load_nowait(bytearray())
    with pytest.raises(DriverError, match=r"from device: it is read-only.*Direction.TO_DEVICE"):
        map.load_nowait(b"constant", Direction.FROM_DEVICE)
    buffer = small.high(100)
    buffer.free()
    with pytest.raises(
        BufferGone, match=r"kernel buffer.*100 bytes into map 'ccb' of tag pc/isa/aha0: it was released"
    ):
        map.load_nowait(buffer)
    process = small.space("shell")
    theirs = process.allocate(5000)
    process.destroy()
    with pytest.raises(BufferGone, match="its process 'shell' was freed"):
        small.runtime.run(map.load, theirs)
    mine = small.high(4096)
    map.load_nowait(mine)
    with pytest.raises(MapStateError, match=r"cannot load map 'ccb'.*it is loaded; unload it first"):
        map.load_nowait(small.high(5))
    with pytest.raises(MapStateError):
        map.load_callback(small.high(5), lambda segments, error: None)
    with pytest.raises(DriverError, match=r"map 'ccb' of tag pc/isa/aha0 \(loaded\) has it loaded"):
        mine.free()
    map.unload()
    mine.free()
    assert small.domain.leaks() == []


def test_what_waits_cannot_be_freed(machine: SmallMachine, runtime: Carrier) -> None:
    holder = fill(machine)
    process = machine.space("shell")
    buffer = process.allocate(3 * PAGE, within=machine.above)
    map = machine.isa.create_map(name="waits")

    async def main() -> None:
        task = runtime.start(map.load, buffer)
        await pause(runtime, MS)
        for free in (buffer.free, process.destroy):
            with pytest.raises(DriverError, match="waiting"):
                free()
        with pytest.raises(MapStateError, match="a load is waiting"):
            map.unload()
        with pytest.raises(MapStateError):
            map.destroy()
        holder.unload()
        await runtime.park(task.done)
        map.unload()

    runtime.run(main)
    process.destroy()


# ---------------------------------------------------------------- why it is short


def test_busy_and_leak_and_fragmented_and_too_large(small: SmallMachine) -> None:
    map = small.isa.create_map(name="late")

    def reason(buffer: Buffer) -> tuple[ShortageReason, str]:
        with pytest.raises(ResourceShortage) as refusal:
            map.load_nowait(buffer)
        return refusal.value.reason, str(refusal.value)

    holder = fill(small, 15)
    why, words = reason(small.high(6 * PAGE))
    assert why is ShortageReason.BUSY
    assert words == (
        "map 'late' of tag pc/isa needs 6 pages of bounce zone 0 (busy): others will give it back; wait with load(), "
        "or try again after an unload"
    )
    with small.isa.transfer(small.high(PAGE), to_device=True):
        assert reason(small.high(5 * PAGE))[0] is ShortageReason.BUSY
    holder.sync(Direction.BOTH.pre)
    holder.abandon()
    why, words = reason(small.high(6 * PAGE))
    assert why is ShortageReason.LEAK
    assert "leak" in words
    small.isa.report_idle()
    map.load_nowait(small.high(20 * PAGE))
    assert small.zone.shortage(21) is ShortageReason.TOO_LARGE


def test_fragmented() -> None:
    """Enough pages are free, and no two of them touch."""
    small = SmallMachine(pages=64, low=8, limit=8)
    keep = [small.kernel.allocate(1, within=small.below) for _ in range(8)]
    for buffer in keep:
        if buffer.frames.table[buffer.start // PAGE] // PAGE % 2 == 0:
            buffer.free()  # every other frame of the eight
    one = small.isa.derive("one", nsegments=1).create_map(name="one")
    some = small.isa.create_map()
    some.load_nowait(small.high(PAGE))
    with pytest.raises(ResourceShortage, match="fragmented") as refusal:
        one.load_nowait(small.high(2 * PAGE))
    assert refusal.value.reason is ShortageReason.FRAGMENTED
    some.unload()
    with pytest.raises(
        ResourceShortage, match=r"cannot load .* into map 'one' of tag pc/isa/one: .*no contiguous run of 2 pages"
    ) as idle:
        one.load_nowait(small.high(2 * PAGE))  # the zone is idle: no wait would make a run
    assert idle.value.reason is ShortageReason.FRAGMENTED
    heard: list[object] = []
    assert one.load_callback(small.high(2 * PAGE), lambda s, error: heard.append(type(error))) is Progress.DONE
    assert heard == [ResourceShortage]
    with pytest.raises(ResourceShortage):
        small.runtime.run(one.load, small.high(2 * PAGE))
    assert one.state is State.IDLE


# ---------------------------------------------------------------- ends of a wait


def test_a_deadline_is_an_argument_of_the_wait(machine: SmallMachine, runtime: Carrier) -> None:
    holder = fill(machine)
    map = machine.isa.create_map(name="hasty")
    heard: list[object] = []

    async def main() -> int:
        with pytest.raises(DeadlineExpired, match=r"4 pages of bounce zone 0 \(for map 'hasty' of tag pc/isa\)"):
            await map.load(machine.high(4 * PAGE), deadline=5 * MS)
        at = runtime.now()
        map.load_callback(
            machine.high(4 * PAGE), lambda segments, error: heard.append((segments, type(error))), deadline=7 * MS
        )
        await pause(runtime, 4 * MS)
        return at

    assert runtime.run(main) == 5 * MS
    assert heard == [(None, DeadlineExpired)]
    with pytest.raises(DeadlineExpired):
        map.load_blocking(machine.high(4 * PAGE), deadline=20 * MS)
    assert runtime.now() == 20 * MS
    assert machine.domain.queue.waiters() == []
    assert (map.state, map.buffer) == (State.IDLE, None)
    holder.unload()
    map.load_nowait(machine.high(20 * PAGE))


def test_cancel_while_it_waits(machine: SmallMachine, runtime: Carrier) -> None:
    fill(machine)
    awaits, calls = machine.isa.create_map(name="awaits"), machine.isa.create_map(name="calls")
    heard: list[object] = []

    async def main() -> None:
        task = runtime.start(awaits.load, machine.high(PAGE))
        other = runtime.start(machine.isa.create_map().load, machine.high(PAGE))
        calls.load_callback(machine.high(PAGE), lambda segments, error: heard.append(error))
        await pause(runtime, MS)
        assert awaits.cancel_load()
        assert calls.cancel_load()
        other.cancel()
        await pause(runtime, MS)
        for each in (task, other):
            with pytest.raises(WaitCancelled):
                each.result()

    runtime.run(main)
    assert isinstance(heard[0], ResourceShortage)
    assert not awaits.cancel_load()
    assert machine.domain.queue.waiters() == []


def test_a_cancel_after_the_grant_loses_nothing(machine: SmallMachine, runtime: Carrier) -> None:
    """Granted and cancelled in one step: the load has succeeded; the driver hears of the cancel at its next wait."""
    holder = fill(machine)
    map = machine.isa.create_map(name="late")

    async def driver() -> None:
        await map.load(machine.high(8 * PAGE))
        try:
            await pause(runtime, MS)
        finally:
            map.unload()

    async def main() -> None:
        task = runtime.start(driver)
        await pause(runtime, MS)
        holder.unload()
        task.cancel()
        await runtime.park(task.done)
        with pytest.raises(WaitCancelled):
            task.result()

    runtime.run(main)
    assert active(machine) == 0
    assert map.statistics()["loads"] == 1
    assert machine.domain.leaks() == []


def test_a_native_cancel_after_the_grant_gives_the_grant_back() -> None:
    """asyncio throws its own error into the wait although it was granted; the next in the queue gets the pages."""
    runtime = AsyncioRuntime()
    machine = SmallMachine(runtime)
    first, second = machine.isa.create_map(name="first"), machine.isa.create_map(name="second")

    async def main() -> None:
        holder = fill(machine)
        task = runtime.start(first.load, machine.high(20 * PAGE))
        other = runtime.start(second.load, machine.high(20 * PAGE))
        await pause(runtime, MS)
        holder.unload()
        assert active(machine) == 20  # granted to the first, which has not gone on yet
        assert isinstance(task.carrier, asyncio.Task)
        task.carrier.cancel()
        await runtime.park(task.done)
        await runtime.park(other.done)
        with pytest.raises(asyncio.CancelledError):
            task.result()
        other.result()

    with runtime:
        runtime.run(main)
    assert (first.state, second.state) == (State.IDLE, State.LOADED)
    assert active(machine) == 20


def test_blocking_inside_a_driver_is_a_named_error(machine: SmallMachine, runtime: Carrier) -> None:
    holder = fill(machine)
    map = machine.isa.create_map(name="blocks")

    async def main() -> None:
        with pytest.raises(BlockingInsideLoop):
            map.load_blocking(machine.high(PAGE))
        assert map.state is State.IDLE
        map.load_blocking(machine.low(PAGE))  # nothing to wait for
        map.unload()

    runtime.run(main)
    assert machine.domain.queue.waiters() == []
    holder.unload()


def test_a_wait_that_only_the_waiter_could_end_is_a_deadlock(machine: SmallMachine, runtime: Carrier) -> None:
    fill(machine)
    map = machine.isa.create_map(name="stuck")
    with pytest.raises(Deadlock, match="map 'stuck' of tag pc/isa"):
        map.load_blocking(machine.high(PAGE))
    assert map.state is State.IDLE
    assert machine.domain.queue.waiters() == []


def test_a_load_goes_on_when_memory_comes_back(machine: SmallMachine, runtime: Carrier) -> None:
    """The zone could not grow because the kernel had all of the low memory; then the kernel frees some."""
    hog = machine.low(128 * PAGE)
    map = machine.isa.create_map()

    async def main() -> None:
        with pytest.raises(ResourceShortage) as refusal:
            map.load_nowait(machine.high(2 * PAGE))
        assert refusal.value.reason is ShortageReason.BUSY
        task = runtime.start(map.load, machine.high(2 * PAGE))
        await pause(runtime, MS)
        assert map.state is State.WAITING
        hog.free()
        await runtime.park(task.done)
        task.result()

    runtime.run(main)
    assert map.state is State.LOADED


def test_many_threads_lose_no_page_and_no_count() -> None:
    """Six drivers on threads of their own, each with 40 loads, three at a time: what they did adds up exactly."""
    with by_name("threads") as runtime:
        machine = SmallMachine(runtime)

        async def driver(number: int) -> None:
            map = machine.isa.create_map(name=str(number))
            data = bytearray(6 * PAGE)
            for round in range(40):
                await map.load(data)
                map.sync(PREREAD)
                machine.poke(map.segments, bytes((number, round)), 4 * PAGE - 1)
                if round % 4 == 0:
                    await pause(runtime, MS)
                map.sync(POSTREAD)
                map.unload()
                assert data[4 * PAGE - 1 : 4 * PAGE + 1] == bytes((number, round))

        async def main() -> None:
            tasks = [runtime.start(driver, number) for number in range(6)]
            for task in tasks:
                await runtime.park(task.done)
                task.result()

        runtime.run(main)
        figures = machine.zone.statistics()
        assert figures["bounced_pages"] == 6 * 40 * 6
        assert figures["copied_out"] == figures["copied_in"] == 6 * 40 * 6 * PAGE
        assert (figures["active"], figures["waiting"]) == (0, 0)
        assert figures["peak_active"] <= figures["limit"]
        assert machine.isa.statistics()["deferred"] == figures["deferred"] > 0


# ---------------------------------------------------------------- abandoned


def test_a_map_abandoned_after_the_grant_and_before_its_context_ran_gives_the_grant_back(small: SmallMachine) -> None:
    holder, late, next_one = fill(small), small.isa.create_map(), small.isa.create_map()
    heard: list[object] = []

    async def driver() -> None:
        await late.load(small.high(20 * PAGE))

    async def main() -> None:
        task = small.runtime.start(driver)
        await pause(small.runtime, 1)
        next_one.load_callback(small.high(20 * PAGE), lambda segments, error: heard.append(error))
        holder.unload()
        assert not late.cancel_load()
        assert late.state.name == "WAITING"
        late.abandon()
        late.abandon()
        await pause(small.runtime, 1)
        assert heard == [None]
        assert late.state is State.IDLE
        with pytest.raises(WaitCancelled, match="abandoned while waiting for 20 pages"):
            task.result()

    small.runtime.run(main)
    next_one.unload()
    assert active(small) == 0


def test_an_abandoned_callback_hears_that_it_was(small: SmallMachine) -> None:
    holder, late = fill(small), small.isa.create_map(name="late")
    heard: list[Exception | None] = []
    late.load_callback(small.high(PAGE), lambda segments, error: heard.append(error))
    holder.unload()
    late.abandon()
    small.runtime.run(pause, small.runtime, 1)
    assert [type(error) for error in heard] == [ResourceShortage]
    assert (late.state, active(small)) == (State.IDLE, 0)


def test_a_buffer_that_vanishes_from_under_a_waiting_load_leaves_nothing_held(small: SmallMachine) -> None:
    """A machine refuses to free it; a custom buffer may have nobody who does."""
    holder, late = fill(small), small.isa.create_map()
    buffer = Pages([400 * PAGE, 402 * PAGE], 0, 2 * PAGE)
    heard: list[Exception | None] = []
    late.load_callback(buffer, lambda segments, error: heard.append(error))
    buffer.frames = Pages([], 0, 0).frames
    holder.unload()
    small.runtime.run(pause, small.runtime, 1)
    assert [type(error) for error in heard] == [BufferGone]
    assert (late.state, active(small)) == (State.IDLE, 0)


class Complains:
    """An instrument that finds fault with everything."""

    def loaded(self, map: Map) -> None:
        raise ValueError("loaded")

    def deferred(self, map: Map) -> None:
        raise ValueError("deferred")

    def syncing(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        raise ValueError("syncing")

    def synced(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        raise ValueError("synced")

    def unloading(self, map: Map) -> None:
        """Nothing to say."""

    def quarantined(self, map: Map) -> None:
        """Nothing to say."""

    def idled(self, map: Map) -> None:
        """Nothing to say."""

    def refused(self, map: Map | None, error: DriverError) -> None:
        """Nothing to say."""


def test_an_instrument_that_raises_leaves_no_map_stuck(small: SmallMachine) -> None:
    holder = fill(small)
    small.domain.instruments.append(Complains())
    map, buffer = small.isa.create_map(), small.high(PAGE)
    with pytest.raises(ValueError, match="deferred"):
        map.load_blocking(buffer)
    assert (map.state, small.domain.queue.waiters()) == (State.IDLE, [])
    holder.unload()
    with pytest.raises(ValueError, match="loaded"), small.isa.transfer(buffer, to_device=True):
        pytest.fail("the transfer was entered")
    assert active(small) == 0
    with pytest.raises(ValueError, match="loaded"):
        map.load_nowait(buffer)
    assert map.state is State.LOADED
    map.unload()
    assert active(small) == 0
