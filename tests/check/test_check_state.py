"""Any legal use of several maps, by CPU and device, is found sound and moves the right bytes; one illegal step is not.

The model is a dict: for each buffer the CPU's bytes, and for each map what the device has of them.
"""

from __future__ import annotations

from random import Random
from typing import Any

import hypothesis.strategies as st
from hypothesis import assume, given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from busdma.lifecycle import State
from busdma.map import Map
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction
from check.bench import Bench, pairs

SIZE = 9000
BUFFERS = 5
TAGS = ("bus", "low")


class Use:
    """A map that has a buffer loaded, and what the model knows of it."""

    def __init__(self, map: Map, buffer: int, lo: int, hi: int) -> None:
        self.map = map
        self.buffer = buffer
        self.lo, self.hi = lo, hi  # the part of the buffer that is loaded
        self.reading = bytearray(hi - lo)  # 1: the device may read the byte
        self.writing = bytearray(hi - lo)  # 1: it may write it


class Legal(RuleBasedStateMachine):
    """CPU and device keep to the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(limit=64)
        self.uses: list[Use] = []
        self.random = Random(1)

    @initialize(remap=st.booleans(), standing=st.booleans(), caches=st.booleans())
    def switch_on(self, remap: bool, standing: bool, caches: bool = False) -> None:
        self.bench = Bench(remap=remap, standing=standing, caches=caches, limit=64)
        self.tags = ["tag" if remap else "bus", *([] if remap else ["low"])]
        bench = self.bench
        buffers: list[Any] = [bench.high(SIZE, offset=77), bench.near(SIZE), bytearray(SIZE), bytearray(SIZE)]
        buffers.append(bench.process("cp").allocate(SIZE, offset=4000))
        self.buffers = buffers
        self.truth = [bytearray(SIZE) for _ in buffers]  # what the bytes are, wherever they are

    # -- the CPU ------------------------------------------------------------------------------------------------------

    def put(self, buffer: int, at: int, data: bytes) -> None:
        target = self.buffers[buffer]
        if isinstance(target, bytearray):
            target[at : at + len(data)] = data
        else:
            target.write(data, at)

    def got(self, buffer: int, at: int, length: int) -> bytes:
        source = self.buffers[buffer]
        return bytes(source[at : at + length]) if isinstance(source, bytearray) else source.read(at, length)

    def away(self, buffer: int) -> bytearray:
        """1: the device owns the byte."""
        flags = bytearray(SIZE)
        for use in self.uses:
            if use.buffer == buffer:
                for at in range(use.hi - use.lo):
                    if use.reading[at] or use.writing[at]:
                        flags[use.lo + at] = 1
        return flags

    def is_written(self, buffer: int) -> bool:
        """May a device write some of it?"""
        return any(use.buffer == buffer and 1 in use.writing for use in self.uses)

    @rule(buffer=st.integers(0, BUFFERS - 1), at=st.integers(0, SIZE - 1), length=st.integers(1, 5000))
    def cpu_writes(self, buffer: int, at: int, length: int) -> None:
        flags = self.away(buffer)
        end = min(at + length, SIZE)
        if flags[at] or (self.bench.checker.line > 1 and self.is_written(buffer)):
            return  # there it might be in a cache line of what a device writes
        found = flags.find(1, at, end)
        end = end if found < 0 else found
        data = self.random.randbytes(end - at)
        self.put(buffer, at, data)
        self.truth[buffer][at:end] = data

    @invariant()
    def cpu_reads_what_it_owns(self) -> None:
        for buffer in range(BUFFERS) if hasattr(self, "buffers") else ():
            flags, seen = self.away(buffer), self.got(buffer, 0, SIZE)
            wrong = [at for at in range(SIZE) if not flags[at] and seen[at] != self.truth[buffer][at]]
            assert not wrong, (buffer, wrong[:5], len(wrong))

    # -- maps ---------------------------------------------------------------------------------------------------------

    @rule(
        buffer=st.integers(0, BUFFERS - 1),
        direction=st.sampled_from(list(Direction)),
        lo=st.integers(0, SIZE - 1),
        length=st.integers(1, SIZE),
        tag=st.integers(0, 1),
    )
    def load(self, buffer: int, direction: Direction, lo: int, length: int, tag: int) -> None:
        hi = min(lo + length, SIZE)
        for use in self.uses:
            both_read = direction is Direction.TO_DEVICE is use.map.direction
            if use.buffer == buffer and use.lo < hi and lo < use.hi and not both_read:
                return
        source = self.buffers[buffer]
        part = memoryview(source)[lo:hi] if isinstance(source, bytearray) else source[lo:hi]
        chosen = getattr(self.bench, self.tags[tag % len(self.tags)])
        self.uses.append(Use(self.bench.loaded(part, direction, chosen), buffer, lo, hi))

    def pick(self, which: int) -> Use:
        return self.uses[which % len(self.uses)]

    @precondition(lambda self: self.uses)
    @rule(
        which=st.integers(0, 99), at=st.integers(0, SIZE), length=st.integers(1, SIZE), ops=st.sampled_from((1, 2, 3))
    )
    def pre(self, which: int, at: int, length: int, ops: int) -> None:
        use = self.pick(which)
        size = use.hi - use.lo
        at %= size
        end = min(at + length, size)
        op = use.map.direction.pre & ((PREREAD if ops & 1 else 0) | (PREWRITE if ops & 2 else 0))
        if not op:
            return
        use.map.sync(op, at, end - at)
        if op & PREWRITE:
            use.reading[at:end] = b"\1" * (end - at)
        if op & PREREAD:
            use.writing[at:end] = b"\1" * (end - at)

    @precondition(lambda self: self.uses)
    @rule(which=st.integers(0, 99), at=st.integers(0, SIZE), length=st.integers(1, SIZE), read=st.booleans())
    def post(self, which: int, at: int, length: int, read: bool) -> None:
        """A part that the device owns is taken back."""
        use = self.pick(which)
        flags = use.writing if read else use.reading
        at = flags.find(1, at % len(flags))
        if at < 0:
            return
        stop = flags.find(0, at, min(at + length, len(flags)))
        end = min(at + length, len(flags)) if stop < 0 else stop
        use.map.sync(POSTREAD if read else POSTWRITE, at, end - at)
        flags[at:end] = bytes(end - at)

    @precondition(lambda self: self.uses)
    @rule(which=st.integers(0, 99))
    def finish(self, which: int) -> None:
        use = self.pick(which)
        while 1 in use.writing:
            self.post(which, 0, SIZE, True)
        while 1 in use.reading:
            self.post(which, 0, SIZE, False)
        use.map.unload()
        self.uses.remove(use)

    @precondition(lambda self: self.uses)
    @rule(which=st.integers(0, 99), loses=st.booleans())
    def reset(self, which: int, loses: bool) -> None:
        """The owner leaves, or the driver stops the device, and reports it idle."""
        use = self.pick(which)
        if loses:
            use.map.abandon()
        use.map.report_idle()
        use.reading[:] = use.writing[:] = bytes(use.hi - use.lo)
        if use.map.state is State.IDLE:
            self.uses.remove(use)

    # -- the device ---------------------------------------------------------------------------------------------------

    def runs(self, use: Use, flags: bytearray, at: int, length: int) -> list[tuple[int, int, int]]:
        """(bus address, offset, length) of the first stretch from `at` on that the device may use."""
        at = flags.find(1, at % len(flags))
        if at < 0:
            return []
        stop = flags.find(0, at, min(at + length, len(flags)))
        end = min(at + length, len(flags)) if stop < 0 else stop
        found, start = [], 0
        for address, size in pairs(use.map.segments):
            lo, hi = max(at, start), min(end, start + size)
            if lo < hi:
                found.append((address + lo - start, lo, hi - lo))
            start += size
        return found

    @precondition(lambda self: self.uses)
    @rule(which=st.integers(0, 99), at=st.integers(0, SIZE), length=st.integers(1, SIZE))
    def device_reads(self, which: int, at: int, length: int) -> None:
        use = self.pick(which)
        for address, offset, size in self.runs(use, use.reading, at, length):
            first = use.lo + offset
            assert self.bench.device.dma_read(address, size) == self.truth[use.buffer][first : first + size]

    @precondition(lambda self: self.uses)
    @rule(which=st.integers(0, 99), at=st.integers(0, SIZE), length=st.integers(1, SIZE))
    def device_writes(self, which: int, at: int, length: int) -> None:
        use = self.pick(which)
        for address, offset, size in self.runs(use, use.writing, at, length):
            data = self.random.randbytes(size)
            self.bench.device.dma_write(address, data)
            self.truth[use.buffer][use.lo + offset : use.lo + offset + size] = data

    # -- the verdict --------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_found(self) -> None:
        assert not len(self.bench.checker.findings), str(self.bench.checker.findings)

    def teardown(self) -> None:
        while self.uses:
            self.finish(0)
        self.cpu_reads_what_it_owns()
        self.bench.close()
        self.nothing_is_found()


def test_legal_use_is_sound() -> None:
    run_state_machine_as_test(
        Legal,
        settings=settings(max_examples=60, stateful_step_count=30, derandomize=True, deadline=None, database=None),
    )


@given(seed=st.integers(0, 10_000), wrong=st.integers(0, 6))
@settings(max_examples=150, derandomize=True, deadline=None, database=None)
def test_one_illegal_step_is_found(seed: int, wrong: int) -> None:
    random = Random(seed)
    model = Legal()
    model.switch_on(random.random() < 0.3, random.random() < 0.5)
    model.random = random
    for _ in range(random.randrange(3, 25)):
        which, at, length = random.randrange(99), random.randrange(SIZE), random.randrange(1, SIZE)
        match random.randrange(7 if model.uses else 2):
            case 0:
                model.cpu_writes(which % BUFFERS, at, length)
            case 1:
                model.load(which % BUFFERS, random.choice(list(Direction)), at, length, which % 2)
            case 2 | 3:
                model.pre(which, at, length, random.randrange(1, 4))
            case 4:
                model.device_reads(which, at, length)
            case 5:
                model.device_writes(which, at, length)
            case 6:
                model.post(which, at, length, random.random() < 0.5)
    model.nothing_is_found()
    assume(model.uses)
    use = model.pick(random.randrange(99))
    device, size = model.bench.device, use.hi - use.lo
    spans = pairs(use.map.segments)
    match wrong:
        case 0:  # the CPU stores what the device owns
            owned = [at for at in range(size) if use.reading[at] or use.writing[at]]
            assume(owned)
            at = use.lo + random.choice(owned)
            seen = model.got(use.buffer, at, 1)[0]
            also = model.truth[use.buffer][at]
            model.put(use.buffer, at, bytes((next(b for b in range(256) if b not in (seen, also)),)))
        case 1:  # the device reads what it was not given
            assume(0 in use.reading)
            assume(use.map.direction is not Direction.FROM_DEVICE or "tag" not in model.tags)
            assume(not shared(model, use))
            at = use.reading.find(0)
            device.dma_read(address_of(spans, at), 1)
        case 2:  # it writes what it was not given
            assume(0 in use.writing)
            at = use.writing.find(0)
            device.dma_write(address_of(spans, at), b"!")
        case 3:  # a POST of what it does not own
            flags = use.writing if use.map.direction is Direction.FROM_DEVICE else use.reading
            assume(0 in flags)
            use.map.sync(POSTREAD if use.map.direction is Direction.FROM_DEVICE else POSTWRITE, flags.find(0), 1)
        case 4:  # unloaded while it owns something
            assume(1 in use.reading or 1 in use.writing)
            use.map.unload()
            model.uses.remove(use)
        case 5:  # used after it is unloaded
            model.finish(model.uses.index(use))
            assume(not shared(model, use))
            device.dma_read(spans[0][0], 1)
        case _:  # somebody else loads a part of it
            source = model.buffers[use.buffer]
            part = memoryview(source)[use.lo : use.hi] if isinstance(source, bytearray) else source[use.lo : use.hi]
            model.bench.loaded(part, Direction.FROM_DEVICE, getattr(model.bench, model.tags[0])).unload()
    for use in model.uses:
        use.map.report_idle() if wrong else end(use)
    assert len(model.bench.checker.findings), wrong


def address_of(spans: list[tuple[int, int]], at: int) -> int:
    """The bus address of byte `at`."""
    for address, size in spans:
        if at < size:
            return address + at
        at -= size
    raise AssertionError("beyond the last segment")


def shared(model: Legal, use: Use) -> bool:
    """Has another map the same bytes, so that the device may well use them?"""
    return any(
        other is not use and other.buffer == use.buffer and other.lo < use.hi and use.lo < other.hi
        for other in model.uses
    )


def end(use: Use) -> None:
    """Everything that the device owns comes back."""
    for flags, op in ((use.writing, POSTREAD), (use.reading, POSTWRITE)):
        for at in range(len(flags)):
            if flags[at] and not (at and flags[at - 1]):
                stop = flags.find(0, at)
                use.map.sync(op, at, (len(flags) if stop < 0 else stop) - at)
