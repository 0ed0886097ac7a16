"""Loads by all four faces, syncs, unloads, cancels, deadlines, turns, quarantines: against the simple model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from busdma.buffers import HostBuffer, LinearBuffer
from busdma.errors import (
    BusdmaError,
    DeadlineExpired,
    Deadlock,
    DriverError,
    MappingRefused,
    MapStateError,
    ResourceShortage,
    ShortageReason,
    SyncError,
    WaitCancelled,
)
from busdma.faces import Progress
from busdma.lifecycle import State
from busdma.map import Map
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, SyncOp
from busdma.waiting import Waiter
from core.model import MapModel, Memory, TurnModel
from core.side_by_side import SideBySide

PRE = [PREREAD, PREWRITE, PREREAD | PREWRITE]
POST = [POSTREAD, POSTREAD | POSTWRITE]

slots = st.integers(0, 5)
maps = st.integers(0, 6)
spans = st.tuples(st.integers(0, 15), st.integers(0, 15))


class DmaMachine(SideBySide):
    """The rules."""

    # -- loads --------------------------------------------------------------------------------------------------------

    @rule(number=maps, slot=slots)
    def load_nowait(self, number: int, slot: int) -> None:
        self.load(number, slot, "nowait", 0)

    @rule(number=maps, slot=slots, delay=st.integers(0, 9))
    def load_awaited(self, number: int, slot: int, delay: int) -> None:
        self.load(number, slot, "await", delay)

    @rule(number=maps, slot=slots, delay=st.integers(0, 9))
    def load_callback(self, number: int, slot: int, delay: int) -> None:
        self.load(number, slot, "callback", delay)

    @rule(number=maps, slot=slots, delay=st.integers(0, 9))
    def load_blocking(self, number: int, slot: int, delay: int) -> None:
        self.load(number, slot, "block", delay)

    @rule(
        numbers=st.permutations(range(7)),
        slot=slots,
        faces=st.lists(st.sampled_from(["nowait", "await", "callback"]), min_size=3),
    )
    def load_many(self, numbers: list[int], slot: int, faces: list[str]) -> None:
        for number, face in zip(numbers, faces, strict=False):
            self.load(number, (slot + number) % 6, face, 0)

    def load(self, number: int, slot: int, face: str, delay: int) -> None:
        """By any face."""
        idle = [at for at, model in enumerate(self.models) if model.state is State.IDLE]
        if not idle:
            with pytest.raises(MapStateError):
                self.maps[number].load_nowait(self.memories[slot].buffer)
            return
        number = idle[number % len(idle)]
        map, model, memory = self.maps[number], self.models[number], self.memories[slot]
        pool = model.pool
        self.asked += 1
        deadline = None if delay < 5 else self.runtime.now() + (delay << 16) + self.asked
        model.want(memory)
        free = pool.limit - pool.held
        if model.pages > pool.limit:
            model.idle()
            with pytest.raises(MappingRefused, match="may hold 6"):
                map.load_nowait(memory.buffer)
            with pytest.raises(MappingRefused, match="may hold 6"):
                map.load_blocking(memory.buffer)
            assert map.load_callback(memory.buffer, partial(self.listen, map.name)) is Progress.DONE
            self.expected[map.name].append(MappingRefused)
            return
        model.face, model.deadline = face, deadline
        now = model.pages == 0 or (not pool.queue and model.pages <= free)
        if now:
            pool.held += model.pages
            model.loaded()
        elif face != "nowait":
            model.state = State.WAITING
            pool.queue.append(model)
        if face == "nowait":
            if now:
                map.load_nowait(memory.buffer)
            else:
                leak = sum(m.pages for m in self.models if m.state is State.QUARANTINED and m.pool is pool)
                with pytest.raises(ResourceShortage) as refusal:
                    map.load_nowait(memory.buffer)
                lost = model.pages > pool.limit - leak
                assert refusal.value.reason is (ShortageReason.LEAK if lost else ShortageReason.BUSY)
                model.idle()
        elif face == "await":
            self.runtime.start(self.driver, map, memory.buffer, deadline, name=map.name)
        elif face == "callback":
            progress = map.load_callback(memory.buffer, partial(self.listen, map.name), deadline=deadline)
            assert progress is (Progress.DONE if now else Progress.IN_PROGRESS)
        else:
            self.block(map, model, memory, deadline)
        if now and face in ("await", "callback"):
            self.expected[map.name].append("loaded")
        self.pump()
        if now:
            self.check_loaded(model)

    def block(self, map: Map, model: MapModel, memory: Memory, deadline: int | None) -> None:
        """Time passes until the load is granted, its deadline comes, or nothing is left that could end the wait."""
        outcome: type[BusdmaError] | None = None
        while model.state is State.WAITING:
            first = self.next_deadline(self.models)
            if first is None:
                model.pool.leave(model)
                outcome = Deadlock
            else:
                if first is model:
                    outcome = DeadlineExpired
                self.expire(first)
        if outcome is None:
            map.load_blocking(memory.buffer, deadline=deadline)
        else:
            with pytest.raises(outcome):
                map.load_blocking(memory.buffer, deadline=deadline)

    @rule(number=maps, slot=slots)
    def on_available(self, number: int, slot: int) -> None:
        """A refused load, then a turn in which it is tried again."""
        pages = 0
        for at in [*range(number, 7), *range(number)]:
            map, model = self.maps[at], self.models[at]
            pool, memory = model.pool, self.memories[slot]
            if model.state is State.IDLE:
                model.want(memory)
                pages = model.pages
                model.idle()
                if 0 < pages <= pool.limit and (pool.queue or pages > pool.limit - pool.held):
                    break
        else:
            return  # everybody has what he wants
        with pytest.raises(ResourceShortage):
            map.load_nowait(memory.buffer)

        def run_queue() -> None:
            if map.state is State.IDLE:
                try:
                    map.load_nowait(self.memories[slot].buffer)
                except BusdmaError:
                    return

        map.tag.on_available(run_queue)
        pool.queue.append(TurnModel(f"the queue of tag {map.tag.path}", pages, model, self.memories, slot))
        self.pump()

    @rule(number=maps)
    def cancel(self, number: int) -> None:
        map, model = self.maps[number], self.models[number]
        waiting = model.state is State.WAITING
        assert map.cancel_load() is waiting
        if waiting:
            model.pool.leave(model)
            self.ended(model, WaitCancelled)
            self.pump()

    def awaiting(self) -> list[MapModel]:
        """Whose drivers are parked."""
        return [model for model in self.models if model.state is State.WAITING and model.face == "await"]

    @precondition(lambda self: self.awaiting())
    @rule(number=maps)
    def tear(self, number: int) -> None:
        """Pages come back until the load is granted, and then the driver is torn away."""
        waiting = self.awaiting()
        model = waiting[number % len(waiting)]
        model.torn = True
        self.runtime.torn.add(model.name)
        for other, holder in enumerate(self.models):
            if model.torn and holder.pool is model.pool and holder.state is State.LOADED:
                self.unload(other)

    @rule(delay=st.integers(1, 6))
    def time_passes(self, delay: int) -> None:
        until = self.runtime.now() + (delay << 16)
        while (first := self.next_deadline(self.models)) is not None and (first.deadline or 0) <= until:
            self.expire(first)
        waiter = Waiter("time")
        self.runtime.call_at(until, waiter.wake)
        self.runtime.block(waiter)
        self.pump()

    # -- bytes --------------------------------------------------------------------------------------------------------

    def loaded(self) -> list[int]:
        """Which maps are."""
        return [number for number, model in enumerate(self.models) if model.state is State.LOADED]

    @precondition(lambda self: self.loaded())
    @rule(number=maps, span=spans, op=st.sampled_from(PRE))
    def sync_pre(self, number: int, span: tuple[int, int], op: SyncOp) -> None:
        map, model, memory, lo, hi = self.pick(number, span)
        map.sync(op, lo, hi - lo)
        model.owned = True
        for at in range(lo, hi):
            if model.bounced[at]:
                model.view[at] = memory.client[at]
                model.seen[at] = 1
        seen = self.machine.peek(map.segments)
        assert seen[lo:hi] == memory.client[lo:hi]

    @precondition(lambda self: self.loaded())
    @rule(number=maps, span=spans, op=st.sampled_from(POST))
    def sync_post(self, number: int, span: tuple[int, int], op: SyncOp) -> None:
        map, model, memory, lo, hi = self.pick(number, span)
        if not all(model.seen[at] for at in range(lo, hi) if model.bounced[at]):
            return  # no device was ever given these bytes
        map.sync(op, lo, hi - lo)
        model.owned = map.device_may_own is not None
        for at in range(lo, hi):
            if model.bounced[at]:
                memory.client[at] = model.view[at]

    @precondition(lambda self: self.loaded())
    @rule(number=maps, out=spans, back=spans, pre=st.sampled_from(PRE), post=st.sampled_from(POST), fail=st.booleans())
    def round_trip(
        self, number: int, out: tuple[int, int], back: tuple[int, int], pre: SyncOp, post: SyncOp, fail: bool
    ) -> None:
        """What a transfer does; it may fail in the middle."""
        self.sync_pre(number, out, pre)
        self.device_writes(number, back)
        if fail:
            loaded = self.loaded()
            self.abandon(loaded[number % len(loaded)])
        else:
            self.sync_post(number, back, post)

    @precondition(lambda self: self.loaded())
    @rule(number=maps, span=spans)
    def device_writes(self, number: int, span: tuple[int, int]) -> None:
        map, model, memory, lo, hi = self.pick(number, span)
        self.byte = (self.byte + 1) % 251
        data = bytes((self.byte + 3 * i) & 0xFF for i in range(hi - lo))
        self.machine.poke(map.segments, data, lo)
        for at in range(lo, hi):
            (model.view if model.bounced[at] else memory.client)[at] = data[at - lo]
            model.seen[at] = 1

    @rule(slot=slots, span=spans)
    def cpu_writes(self, slot: int, span: tuple[int, int]) -> None:
        memory = self.memories[slot]
        lo, hi = _range(span, memory.buffer.length)
        self.byte = (self.byte + 1) % 251
        data = bytes((self.byte + 5 * i) & 0xFF for i in range(hi - lo))
        assert isinstance(memory.buffer, LinearBuffer | HostBuffer)
        memory.buffer.write(data, lo)
        memory.client[lo:hi] = data

    def pick(self, number: int, span: tuple[int, int]) -> tuple[Map, MapModel, Memory, int, int]:
        """A loaded map, and a range of it."""
        loaded = self.loaded()
        at = loaded[number % len(loaded)]
        memory = self.models[at].memory
        assert memory is not None
        return self.maps[at], self.models[at], memory, *_range(span, memory.buffer.length)

    @rule(number=maps)
    def bad_syncs(self, number: int) -> None:
        map, model = self.maps[number], self.models[number]
        if model.state is State.LOADED:
            assert model.memory is not None
            for op, offset, length in (
                (PREREAD | POSTREAD, 0, 1),
                (PREREAD, 0, model.memory.buffer.length + 1),
                (POSTREAD, -1, 1),
            ):
                with pytest.raises(SyncError):
                    map.sync(op, offset, length)
        else:
            with pytest.raises(MapStateError):
                map.sync(PREREAD)

    # -- ends ---------------------------------------------------------------------------------------------------------

    @rule(number=maps)
    def unload(self, number: int) -> None:
        map, model = self.maps[number], self.models[number]
        if model.state is not State.LOADED:
            with pytest.raises(MapStateError):
                map.unload()
            return
        map.unload()
        model.pool.release(model)
        self.pump()

    @precondition(lambda self: self.loaded())
    @rule(number=maps)
    def unload_any(self, number: int) -> None:
        loaded = self.loaded()
        self.unload(loaded[number % len(loaded)])

    @rule(number=maps)
    def abandon(self, number: int) -> None:
        map, model = self.maps[number], self.models[number]
        if model.state is State.WAITING:
            self.cancel(number)
            return
        map.abandon()
        if model.state is State.LOADED:
            if model.owned:
                model.state = State.QUARANTINED
            else:
                model.pool.release(model)
        self.pump()

    @rule(which=st.integers(0, 2))
    def report_idle(self, which: int) -> None:
        self.tags[which].report_idle()
        for map, model in zip(self.maps, self.models, strict=True):
            if map.tag is self.tags[which]:
                model.owned = False
                if model.state is State.QUARANTINED:
                    model.pool.release(model)
        self.pump()

    @rule(slot=slots, kind=st.integers(0, 4), pages=st.integers(1, 7), cut=st.integers(0, 100))
    def free(self, slot: int, kind: int, pages: int, cut: int) -> None:
        memory = self.memories[slot]
        if isinstance(memory.buffer, LinearBuffer):
            if any(model.memory is memory for model in self.models):
                with pytest.raises(DriverError, match="has it loaded"):
                    memory.buffer.free()
                return
            memory.buffer.free()
        self.memories[slot] = self.fresh(kind, pages, cut)

    @rule()
    def trim(self) -> None:
        for each in self.machine.domain.zones:
            each.trim()


def _range(span: tuple[int, int], length: int) -> tuple[int, int]:
    """Where it begins and how long it is, in sixteenths, as a range of at least one byte."""
    lo = span[0] * length // 16
    return lo, lo + max(1, (16 - span[1]) * (length - lo) // 16)


SMALL = settings(max_examples=200, stateful_step_count=40, derandomize=True, deadline=None, database=None)
DmaMachine.TestCase.settings = SMALL
TestDmaMachine: Callable[[], object] = DmaMachine.TestCase
