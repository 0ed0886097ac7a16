"""Loads by every route in any order, against a plain model: bytes, pools, and what a device could reach and may not.

Two devices behind one bridge, with windows of one or two kinds and entries that stand or do not; maps that wait, sync
in part, unload, and are abandoned; memory that is freed and paged out meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from busdma.buffers import HostBuffer, LinearBuffer
from busdma.errors import DriverError, MappingRefused, ResourceShortage
from busdma.explain import Explanation
from busdma.faces import Progress
from busdma.lifecycle import State
from busdma.lists import BufferList
from busdma.sync import Direction
from busdma.waiting import Waiter
from core.paths_machine import DIRECT, Behind, check_limits
from core.paths_model import Load, Store, View
from core.small_machine import PAGE

WAYS = [("direct",), ("mapped",), ("direct", "mapped"), ("mapped", "direct")]
KINDS = ["low", "high", "process", "host"]
LIMIT = 6  # bounce pages: few, so that loads wait
MAPPED = 8  # bus pages, the same

numbers = st.integers(0, 63)
spans = st.tuples(st.integers(0, 15), st.integers(0, 15))
shapes = st.lists(st.tuples(numbers, spans), min_size=1, max_size=4)


class Request(NamedTuple):
    """What is to be loaded: which elements, and how."""

    number: int
    shape: list[tuple[int, tuple[int, int]]]
    direction: Direction
    later: bool
    single: bool


requests = st.builds(Request, numbers, shapes, st.sampled_from(list(Direction)), st.booleans(), st.booleans())


class PathsMachine(RuleBasedStateMachine):
    """Machine and model side by side."""

    @initialize(windows=st.sampled_from(WAYS), standing=st.booleans(), prefetch=st.sampled_from([0, 256]))
    def build(self, windows: tuple[str, ...], standing: bool, prefetch: int) -> None:
        self.machine = Behind(*windows, limit=LIMIT, mapped=MAPPED, standing=standing, prefetch=prefetch)
        self.standing = standing
        self.process = self.machine.space("cp")
        bus = self.machine.bus
        self.devices = [bus.derive("any"), bus.derive("few", nsegments=3, alignment=4, boundary=4 * PAGE)]
        self.loads = [Load(self.devices[which].create_map(name=f"m{at}")) for at, which in enumerate((0, 0, 0, 1, 1))]
        self.heard: list[str] = []
        self.byte = 0
        self.known: dict[int, tuple[int, object]] = {}  # bus page: the frame that its entry names, and whose that was
        self.stores = [self.fresh(kind, pages, 100) for kind, pages in zip(KINDS * 2, (2, 3, 3, 2) * 2, strict=True)]

    # -- what the rules use -------------------------------------------------------------------------------------------

    def fresh(self, kind: str, pages: int, cut: int) -> Store:
        """New memory with a pattern of its own in it."""
        length, offset = pages * PAGE - 16 * cut, 4 * cut
        buffer: LinearBuffer | HostBuffer
        if kind == "host":
            buffer = HostBuffer(bytearray(length))
        elif kind == "process":
            buffer = self.process.allocate(length, offset=offset)
        else:
            buffer = (self.machine.low if kind == "low" else self.machine.high)(length, offset)
        data = self.pattern(length)
        buffer.write(data)
        return Store(buffer, bytearray(data))

    def pattern(self, length: int) -> bytes:
        """Bytes that were never used before, nearly."""
        self.byte = (self.byte + 1) % 251
        row = bytes((self.byte + 7 * at) & 0xFF for at in range(256))
        return (row * (length // 256 + 1))[:length]

    def pump(self) -> None:
        """Let everything run that can run; time stands still."""

        async def last() -> None:
            waiter = Waiter("everybody else")
            self.machine.runtime.call_at(self.machine.runtime.now(), waiter.wake)
            await self.machine.runtime.park(waiter)

        self.machine.runtime.run(last)
        for load in self.loads:
            if load.state is State.WAITING and load.map.state is not State.WAITING:
                assert load.map.state is State.LOADED
                self.granted(load)

    def granted(self, load: Load, said: Explanation | None = None) -> None:
        """A load has succeeded: within every limit; and as was `said`, if every pool was free."""
        load.loaded(self.machine.physical)
        check_limits(load.map.segments, load.map.tag.constraints, load.length)
        for fate in () if said is None else said.pages:
            part = {chunk.copied for chunk, _, _ in load.within(fate.offset, fate.offset + fate.length)}
            assert part == {fate.mechanism.startswith("bounce")}

    def pick(self, number: int, *states: State) -> Load | None:
        """One of those in these states."""
        found = [load for load in self.loads if load.state in states]
        return found[number % len(found)] if found else None

    def any_in(self, *states: State) -> bool:
        """Is there one?"""
        return any(load.state in states for load in self.loads)

    def held(self) -> tuple[int, int]:
        """Bounce pages and bus pages in use."""
        return sum(zone.active for zone in self.machine.domain.zones), self.machine.pool.active

    # -- loads --------------------------------------------------------------------------------------------------------

    @rule(asked=st.lists(requests, min_size=1, max_size=5))
    def load(self, asked: list[Request]) -> None:
        for each in asked:
            load = self.pick(each.number, State.IDLE)
            if load is not None:
                self.load_one(load, each)

    def load_one(self, load: Load, asked: Request) -> None:
        """By one of two faces."""
        _, shape, direction, later, single = asked
        views = []
        for which, span in shape[: 1 if single else 4]:
            store = self.stores[which % len(self.stores)]
            lo, hi = _range(span, len(store.data))
            views.append(View(store, lo, hi - lo))
        parts = [view.buffer() for view in views]
        buffer = parts[0] if single else BufferList(parts)
        said = load.map.tag.explain(buffer, direction)
        before = self.held()
        load.views, load.direction = views, direction
        if said.verdict.startswith("refused"):
            with pytest.raises(MappingRefused):
                load.map.load_nowait(buffer, direction)
            load.idle()
        elif later:
            if load.map.load_callback(buffer, partial(self.listen, load.map.name), direction) is Progress.DONE:
                assert self.heard.pop() == f"{load.map.name} loaded"
                self.granted(load, said if before == (0, 0) else None)
            else:
                load.state = State.WAITING
                assert self.held() == before  # who waits holds nothing
                self.pump()
        else:
            try:
                load.map.load_nowait(buffer, direction)
            except ResourceShortage:
                assert self.held() == before != (0, 0)
                load.idle()
            else:
                self.granted(load, said if before == (0, 0) else None)

    def listen(self, name: str, segments: object, error: Exception | None) -> None:
        """What load_callback calls."""
        self.heard.append(f"{name} {'loaded' if error is None else type(error).__name__}")

    @precondition(lambda self: self.any_in(State.WAITING))
    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        load = self.pick(number, State.WAITING)
        assert load is not None
        assert load.map.cancel_load()
        load.idle()
        self.pump()
        assert f"{load.map.name} ResourceShortage" in self.heard

    # -- bytes --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.any_in(State.LOADED))
    @rule(number=numbers, span=spans)
    def sync_pre(self, number: int, span: tuple[int, int]) -> None:
        load = self.pick(number, State.LOADED)
        assert load is not None
        lo, hi = _range(span, load.length)
        load.map.sync(load.direction.pre, lo, hi - lo)
        load.owned = True
        for chunk, first, end in load.within(lo, hi):
            if chunk.copied:
                at = chunk.offset
                load.view[at + first : at + end] = chunk.store.data[chunk.at + first : chunk.at + end]
                load.seen[at + first : at + end] = b"\1" * (end - first)

    @precondition(lambda self: self.any_in(State.LOADED))
    @rule(number=numbers, span=spans)
    def sync_post(self, number: int, span: tuple[int, int]) -> None:
        load = self.pick(number, State.LOADED)
        assert load is not None
        lo, hi = _range(span, load.length)
        pieces = list(load.within(lo, hi))
        if not all(all(load.seen[c.offset + first : c.offset + end]) for c, first, end in pieces if c.copied):
            return  # no device was ever given these bytes
        load.map.sync(load.direction.post, lo, hi - lo)
        load.owned = load.map.device_may_own is not None
        for chunk, first, end in pieces:
            if chunk.copied and load.direction is not Direction.TO_DEVICE:
                at = chunk.offset
                chunk.store.data[chunk.at + first : chunk.at + end] = load.view[at + first : at + end]

    @precondition(lambda self: self.any_in(State.LOADED))
    @rule(number=numbers, out=spans, back=spans, seen=st.booleans())
    def round_trip(self, number: int, out: tuple[int, int], back: tuple[int, int], seen: bool) -> None:
        """What a transfer does."""
        self.sync_pre(number, out)
        self.device_writes(number, back)
        if seen:
            self.device_reads(number, out)
        self.sync_post(number, back)

    @precondition(lambda self: self.any_in(State.LOADED, State.QUARANTINED))
    @rule(number=numbers, span=spans)
    def device_writes(self, number: int, span: tuple[int, int]) -> None:
        """In quarantine too."""
        load = self.pick(number, State.LOADED) or self.pick(number, State.QUARANTINED)
        assert load is not None
        lo, hi = _range(span, load.length)
        data = self.pattern(hi - lo)
        for chunk, first, end in load.within(lo, hi):
            part = data[chunk.offset + first - lo : chunk.offset + end - lo]
            if load.direction is Direction.TO_DEVICE:
                if chunk.bus < DIRECT:
                    with pytest.raises(LookupError):
                        self.machine.physical(chunk.bus + first, True)
                continue
            place = self.machine.physical(chunk.bus + first, True)
            self.machine.memory[place : place + len(part)] = part
            if chunk.copied:
                load.view[chunk.offset + first : chunk.offset + end] = part
                load.seen[chunk.offset + first : chunk.offset + end] = b"\1" * len(part)
            else:
                chunk.store.data[chunk.at + first : chunk.at + end] = part

    @precondition(lambda self: self.any_in(State.LOADED, State.QUARANTINED))
    @rule(number=numbers, span=spans)
    def device_reads(self, number: int, span: tuple[int, int]) -> None:
        load = self.pick(number, State.LOADED) or self.pick(number, State.QUARANTINED)
        assert load is not None
        for chunk, first, end in load.within(*_range(span, load.length)):
            if load.direction is Direction.FROM_DEVICE and chunk.bus < DIRECT:
                with pytest.raises(LookupError):
                    self.machine.physical(chunk.bus + first, False)
                continue
            place = self.machine.physical(chunk.bus + first, False)
            found = self.machine.memory[place : place + end - first]
            if not chunk.copied:
                assert found == chunk.store.data[chunk.at + first : chunk.at + end]
            elif all(load.seen[chunk.offset + first : chunk.offset + end]):
                assert found == load.view[chunk.offset + first : chunk.offset + end]

    @rule(number=numbers)
    def device_looks_ahead(self, number: int) -> None:
        """Or strays: the hardware caches an entry, whosoever it is."""
        entries = self.machine.tables.entries
        if entries:
            page = sorted(entries)[number % len(entries)]
            self.machine.tables.translate(page, entries[page][1] is Direction.FROM_DEVICE)

    @rule(number=numbers, span=spans)
    def cpu_writes(self, number: int, span: tuple[int, int]) -> None:
        store = self.stores[number % len(self.stores)]
        lo, hi = _range(span, len(store.data))
        data = self.pattern(hi - lo)
        store.buffer.write(data, lo)
        store.data[lo:hi] = data

    # -- ends ---------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.any_in(State.LOADED))
    @rule(number=numbers)
    def unload(self, number: int) -> None:
        load = self.pick(number, State.LOADED)
        assert load is not None
        load.map.unload()
        load.idle()
        self.pump()

    @precondition(lambda self: self.any_in(State.LOADED))
    @rule(number=numbers, span=spans)
    def abandon(self, number: int, span: tuple[int, int]) -> None:
        if span[0] % 2:
            self.sync_pre(number, span)
        load = self.pick(number, State.LOADED)
        assert load is not None
        load.map.abandon()
        if load.owned:
            load.state = State.QUARANTINED
        else:
            load.idle()
        self.pump()

    @rule(which=st.integers(0, 1))
    def report_idle(self, which: int) -> None:
        self.devices[which].report_idle()
        for load in self.loads:
            if load.map.tag is self.devices[which]:
                load.owned = False
                if load.state is State.QUARANTINED:
                    load.idle()
        self.pump()

    @rule(number=numbers, pages=st.integers(1, 3), cut=st.integers(0, 200))
    def free(self, number: int, pages: int, cut: int) -> None:
        """Memory goes, and other memory comes, into the same frames perhaps."""
        at = number % len(self.stores)
        store = self.stores[at]
        if isinstance(store.buffer, LinearBuffer):
            if any(load.uses(store) for load in self.loads):
                with pytest.raises(DriverError, match="has it loaded"):
                    store.buffer.free()
                return
            store.buffer.free()
        self.stores[at] = self.fresh(KINDS[at % len(KINDS)], pages, cut)

    @rule(pages=st.integers(1, 6))
    def page_out(self, pages: int) -> None:
        self.process.page_out(pages)

    @rule(number=numbers)
    def page_in(self, number: int) -> None:
        store = self.stores[number % len(self.stores)]
        assert store.buffer.read() == store.data

    @rule()
    def trim(self) -> None:
        for zone in self.machine.domain.zones:
            zone.trim()

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def states(self) -> None:
        assert [load.map.state for load in self.loads] == [load.state for load in self.loads]
        assert len(self.machine.domain.queue.waiters()) == sum(load.state is State.WAITING for load in self.loads)
        if not self.any_in(State.LOADED, State.QUARANTINED):
            assert not self.any_in(State.WAITING)  # nobody waits for what nobody has

    @invariant()
    def pools(self) -> None:
        """Nothing is lost and nothing is held twice."""
        holding = [load for load in self.loads if load.held]
        astray = [load for load in holding if load.state is State.QUARANTINED]
        for loads, pages, bus in (
            (holding, sum(zone.active for zone in self.machine.domain.zones), self.machine.pool.active),
            (astray, sum(zone.quarantined for zone in self.machine.domain.zones), self.machine.pool.quarantined),
        ):
            assert pages == sum(len(load.bounce_frames()) for load in loads)
            assert bus == sum(load.bus_pages(-(-self.machine.tables.prefetch // PAGE)) for load in loads)
        bounced = [frame for load in holding for frame in load.bounce_frames()]
        assert len(bounced) == len(set(bounced))
        capacity = sum(zone.capacity for zone in self.machine.domain.zones)
        assert self.machine.frames.statistics()["by_owner"].get("bounce", 0) == capacity
        assert all(zone.capacity <= LIMIT for zone in self.machine.domain.zones)

    @invariant()
    def wired(self) -> None:
        """What a map has loaded stays where it is, and leads there, in quarantine too."""
        for load in self.loads:
            if load.held:
                for chunk in load.chunks:
                    assert chunk.store.home(chunk.at) == chunk.home
                    write = load.direction is Direction.FROM_DEVICE
                    assert self.machine.physical(chunk.bus, write) == chunk.place
                    if chunk.copied:
                        assert self.machine.frames.owner_of(chunk.place) == "bounce"

    @invariant()
    def entries(self) -> None:
        """No entry, in the table or cached, names a frame that is free, or has gone to somebody else since."""
        tables, pool = self.machine.tables, self.machine.pool
        assert all(tables.entries.get(page) == entry for page, entry in tables.cached.items())
        assert len(tables.entries) == pool.active + pool.statistics()["standing"]
        assert self.standing or len(tables.entries) == pool.active
        owners: dict[int, object] = {frame: store for store in self.stores for frame in store.frames()}
        known = {}
        for page, (frame, _) in tables.entries.items():
            owner = self.machine.frames.owner_of(frame)
            assert owner is not None
            known[page] = (frame, "bounce" if owner == "bounce" else owners[frame])
            before = self.known.get(page)
            assert before is None or before[0] != frame or before == known[page]
        self.known = known

    @invariant()
    def contents(self) -> None:
        for store in self.stores:
            if not isinstance(store.buffer, LinearBuffer) or store.buffer.allocation.space is not self.process:
                assert store.buffer.read() == store.data  # a look at a process's would bring it back

    def teardown(self) -> None:
        """Nothing may be left."""
        if not hasattr(self, "machine"):
            return
        for device in self.devices:
            device.abandon()
        self.machine.runtime.run(_nothing)
        for device in self.devices:
            device.report_idle()
            for map in list(device.maps):
                map.destroy()
        assert self.held() == (0, 0)
        for store in self.stores:
            assert store.buffer.read() == store.data
            if isinstance(store.buffer, LinearBuffer):
                store.buffer.free()
        for zone in self.machine.domain.zones:
            zone.trim()
        assert self.machine.frames.statistics()["free"] == 512
        assert not self.machine.tables.entries
        assert not self.machine.tables.cached
        for tag in [*self.devices, self.machine.bus]:
            tag.destroy()


async def _nothing() -> None:
    """For whatever waits to run."""


def _range(span: tuple[int, int], length: int) -> tuple[int, int]:
    """Where it begins and ends, in sixteenths: at least one byte."""
    lo = span[0] * length // 16
    return lo, lo + max(1, (16 - span[1]) * (length - lo) // 16)


PathsMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=50)
TestPathsMachine: Callable[[], object] = PathsMachine.TestCase
