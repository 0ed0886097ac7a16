"""Machine and model side by side: what the rules of the state machine use, and what must hold after each of them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from unittest import mock

from hypothesis.stateful import RuleBasedStateMachine, invariant

from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.buffers import HostBuffer, LinearBuffer
from busdma.errors import (
    BusdmaError,
    DeadlineExpired,
    ResourceShortage,
    WaitCancelled,
)
from busdma.lifecycle import State
from busdma.map import Map
from busdma.mechanisms import zone
from busdma.runtime.virtual import VirtualRuntime
from busdma.waiting import Waiter
from core.model import MapModel, Memory, PoolModel
from core.small_machine import PAGE, SmallMachine, addresses, page_starts

LIMIT = 6  # pages of each zone: few, so that loads wait
LOW = 64  # frames that the ISA bus reaches


class TearingRuntime(VirtualRuntime):
    """Tears a driver away from its wait after the wait was granted, as a foreign loop may when it cancels."""

    def __init__(self) -> None:
        super().__init__()
        self.torn: set[str] = set()

    def drop(self) -> None:
        """After a failure: end the drivers that would wait for ever."""
        for task in list(self._tasks):
            with suppress(Exception):
                task.coroutine.close()

    async def park(self, waiter: Waiter, deadline: int | None = None) -> Any:
        result = await super().park(waiter, deadline)
        name = self.current
        if name in self.torn:
            self.torn.remove(name)
            raise WaitCancelled(f"{name} was torn away")
        return result


class SideBySide(RuleBasedStateMachine):
    """Three tags on two zones; the first two share one. The rules are in `core.test_statemachine`."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [mock.patch.object(zone, "CHUNK", 2), mock.patch.object(zone, "REVIEW", 3)]
        for patch in self.patches:
            patch.start()
        self.runtime = TearingRuntime()
        self.machine = SmallMachine(self.runtime, pages=256, low=LOW, limit=LIMIT)
        self.process = self.machine.space("shell")
        beyond = AddressSet(((0, LOW * PAGE - 1), (2 * LOW * PAGE, MAX_ADDRESS)))
        self.tags = [self.machine.isa.derive("aha0"), self.machine.isa.derive("aha1")]
        self.tags.append(self.machine.root.derive("fdc", exclude=beyond))
        self.pools = [PoolModel(LIMIT), PoolModel(LIMIT)]
        self.maps: list[Map] = []
        self.models: list[MapModel] = []
        for number, which in enumerate((0, 0, 0, 1, 1, 2, 2)):
            tag = self.tags[which]
            self.maps.append(tag.create_map(name=f"m{number}"))
            self.models.append(MapModel(f"m{number}", self.pools[which // 2], tag.constraints.reach))
        self.outcomes: dict[str, list[object]] = {map.name: [] for map in self.maps}
        self.expected: dict[str, list[object]] = {map.name: [] for map in self.maps}
        self.memories: list[Memory] = []
        self.granted: list[MapModel] = []  # in the model; to be checked once the machine has done it too
        self.asked = 0
        self.byte = 0
        for kind in ((1, 3, 9), (0, 2, 5), (1, 5, 31), (2, 4, 77), (4, 2, 0), (0, 3, 100)):
            self.memories.append(self.fresh(*kind))

    # -- what the rules use -------------------------------------------------------------------------------------------

    def fresh(self, kind: int, pages: int, cut: int) -> Memory:
        """A new buffer with a pattern of its own in it."""
        self.byte = (self.byte + 1) % 251
        length = max(1, pages * PAGE - 37 * cut)
        buffer: LinearBuffer | HostBuffer
        if kind == 0:
            buffer = HostBuffer(bytearray(length))
        elif kind == 1:
            buffer = self.machine.high(length, 4 * cut)
        elif kind == 4:
            buffer = self.machine.low(length, 4 * cut)
        else:
            buffer = (self.process if kind == 2 else self.machine.kernel).allocate(length, offset=4 * cut)
        client = bytearray((self.byte + i) & 0xFF for i in range(256)) * (length // 256 + 1)
        del client[length:]
        buffer.write(client)
        return Memory(buffer, client)

    def pump(self) -> None:
        """Let everything run that can run; time stands still."""

        async def last() -> None:
            waiter = Waiter("everybody else")
            self.runtime.call_at(self.runtime.now(), waiter.wake)
            await self.runtime.park(waiter)

        self.runtime.run(last)
        for pool in self.pools:
            before = [m for m in self.models if m.state is State.WAITING and m.pool is pool]
            pool.settle()
            for model in before:
                if model.state is not State.WAITING:
                    self.ended(model, "loaded" if model.state is State.LOADED else WaitCancelled)
        for model in self.granted:
            if model.state is State.LOADED:
                self.check_loaded(model)
        self.granted.clear()

    def ended(self, model: MapModel, outcome: object) -> None:
        """The wait of a model has ended."""
        if model.face in ("await", "callback"):
            heard = ResourceShortage if model.face == "callback" and outcome is WaitCancelled else outcome
            self.expected[model.name].append(heard)
        self.runtime.torn.discard(model.name)
        if model.state is State.LOADED:
            self.granted.append(model)  # the machine itself may be about to do it

    def check_loaded(self, model: MapModel) -> None:
        """Reachable pages stay where they are; the others lie in pages of the zone, which nobody else has."""
        assert model.memory is not None
        segments = self.maps[self.models.index(model)].segments
        at = addresses(segments)
        assert len(at) == model.memory.buffer.length
        offset = 0
        for frame, head, size in page_starts(model.memory.buffer):
            if model.bounced[offset]:
                assert model.reach.covers(at[offset], at[offset] + size - 1)
                assert self.machine.frames.owner_of(at[offset]) == "bounce"
                assert at[offset + size - 1] == at[offset] + size - 1
            else:
                assert at[offset : offset + size] == list(range(frame + head, frame + head + size))
            offset += size

    def next_deadline(self, among: list[MapModel]) -> MapModel | None:
        """Whose wait ends first."""
        timed = [m for m in among if m.state is State.WAITING and m.deadline is not None]
        return min(timed, key=lambda m: m.deadline or 0, default=None)

    def expire(self, model: MapModel) -> None:
        """A deadline passes in the model."""
        pool = model.pool
        others = [m for m in self.models if m.state is State.WAITING and m.pool is pool and m is not model]
        pool.leave(model)
        self.ended(model, DeadlineExpired)
        pool.settle()
        for other in others:
            if other.state is not State.WAITING:
                self.ended(other, "loaded" if other.state is State.LOADED else WaitCancelled)

    def listen(self, name: str, segments: object, error: Exception | None) -> None:
        """What load_callback calls."""
        self.outcomes[name].append("loaded" if error is None else type(error))

    async def driver(self, map: Map, buffer: object, deadline: int | None) -> None:
        """What awaits a load."""
        try:
            await map.load(buffer, deadline=deadline)
        except (BusdmaError, WaitCancelled) as error:
            self.outcomes[map.name].append(type(error))
        else:
            self.outcomes[map.name].append("loaded")

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def states(self) -> None:
        for map, model in zip(self.maps, self.models, strict=True):
            assert map.state is model.state, map
            assert (map.buffer is None) is (model.memory is None)
        assert self.outcomes == self.expected

    @invariant()
    def pages(self) -> None:
        total = 0
        for which, pool in enumerate(self.pools):
            each = self.machine.domain.zones[which]
            mine = [model for model in self.models if model.pool is pool]
            assert pool.held == sum(model.pages for model in mine if model.state in (State.LOADED, State.QUARANTINED))
            figures = each.statistics()
            assert figures["active"] == pool.held
            assert figures["free"] + figures["active"] == figures["pages"] <= figures["limit"] == LIMIT
            assert figures["waiting"] == len(pool.queue)
            assert figures["quarantined"] == sum(m.pages for m in mine if m.state is State.QUARANTINED)
            assert sum(each.slots.free) == figures["free"]
            held: list[int] = []
            for map, model in zip(self.maps, self.models, strict=True):
                if model.pool is pool and model.state in (State.LOADED, State.QUARANTINED):
                    segmenter = map._segmenter
                    held += segmenter.held[: segmenter.nheld]
            assert len(held) == len(set(held)) == pool.held
            total += figures["pages"]
        assert self.machine.frames.statistics()["by_owner"].get("bounce", 0) == total

    @invariant()
    def order(self) -> None:
        """Everybody stands where he joined."""
        real = self.machine.domain.queue.waiters()
        for pool in self.pools:
            wanted = [each.name for each in pool.queue]
            paths = {map.describe(): map.name for map in self.maps}
            names = [paths.get(owner, owner) for owner in real]
            assert [name for name in names if name in wanted] == wanted
        assert len(real) == sum(len(pool.queue) for pool in self.pools)

    @invariant()
    def contents(self) -> None:
        for memory in self.memories:
            assert isinstance(memory.buffer, LinearBuffer | HostBuffer)
            assert memory.buffer.read() == memory.client

    def teardown(self) -> None:
        try:
            self.give_everything_back()
        finally:
            for patch in self.patches:
                patch.stop()
            self.runtime.drop()

    def give_everything_back(self) -> None:
        """Nothing may be left."""
        for tag in self.tags:
            tag.abandon()  # waits are cancelled, turns given up
        for pool in self.pools:
            pool.queue.clear()
        self.pump()
        for tag in self.tags:
            tag.report_idle()
            for map in list(tag.maps):
                if map.state is State.LOADED:
                    map.unload()
                map.destroy()
        assert self.machine.domain.leaks() == []
        assert self.machine.domain.queue.waiters() == []
        for each in self.machine.domain.zones:
            each.trim()
            assert each.statistics()["pages"] == 0
        for memory in self.memories:
            if isinstance(memory.buffer, LinearBuffer):
                memory.buffer.free()
            else:
                assert isinstance(memory.buffer.host, memoryview)
                memory.buffer.host.release()
        assert self.machine.frames.statistics()["free"] == 256
        for tag in [*self.tags, self.machine.isa]:
            tag.destroy()
