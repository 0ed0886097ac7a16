"""The cache that DMA does not see: what goes wrong without maintenance, and that with it nothing can."""

from __future__ import annotations

from random import Random
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from busdma.errors import ConfigurationError, DriverError
from busdma.machine.frames import FrameAllocator
from busdma.mechanisms.translation import Cache
from busdma.sim.bus.master import BusMaster, MasterBus, Wires
from busdma.sim.cache import WriteBackCache

PAGE = 4096
PAGES = 8
LINE = 32


class Rig:
    """A cache that does nothing of its own accord unless told to, and a device behind it."""

    def __init__(self, seed: int = 1, activity: float = 0.0) -> None:
        self.cache = WriteBackCache(PAGES * PAGE, line=LINE, seed=seed, activity=activity)
        self.cpu = self.cache.seen
        bus = MasterBus(self.cache.memory, FrameAllocator(0, PAGES))
        bus.watch = self.cache
        self.device: BusMaster = bus.add_master("m", Wires(32))


def test_without_a_clean_the_device_reads_old_bytes() -> None:
    rig = Rig()
    rig.cpu[100:105] = b"hello"
    assert rig.device.dma_read(100, 5) == bytes(5)
    rig.cache.clean(100, 5)
    assert rig.device.dma_read(100, 5) == b"hello"
    assert rig.cache.statistics()["written_back"] == 1


def test_without_an_invalidate_the_cpu_reads_old_bytes() -> None:
    rig = Rig()
    rig.device.dma_write(100, b"hello")
    assert bytes(rig.cpu[100:105]) == bytes(5)
    assert rig.cache.statistics()["hidden"] == 1
    rig.cache.invalidate(100, 5)
    assert bytes(rig.cpu[100:105]) == b"hello"
    # invalidated before the device writes: the CPU sees it at once
    rig.device.dma_write(101, b"u")
    assert bytes(rig.cpu[100:105]) == b"hullo"
    assert rig.cache.statistics()["hidden"] == 1


def test_a_shared_line_costs_the_neighbour_its_bytes() -> None:
    rig = Rig()
    buffer, neighbour = slice(64, 80), slice(80, 96)
    rig.cpu[buffer] = b"\0" * 16
    rig.cache.invalidate(64, 16)  # PREREAD
    rig.device.dma_write(64, b"D" * 16)
    rig.cpu[neighbour] = b"N" * 16
    rig.cache.invalidate(64, 16)  # POSTREAD
    assert bytes(rig.cpu[buffer]) == b"D" * 16
    assert bytes(rig.cpu[neighbour]) == bytes(16)
    assert rig.cache.statistics()["lost"] == 1


def test_a_shared_line_costs_the_device_its_bytes() -> None:
    rig = Rig()
    rig.cache.invalidate(64, 16)
    rig.cpu[80:96] = b"N" * 16  # the CPU stores: the line is in the cache again
    rig.device.dma_write(64, b"D" * 16)
    rig.cache.clean(80, 16)
    assert bytes(rig.cache.memory[64:96]) == bytes(16) + b"N" * 16


def test_cleaning_what_is_clean_writes_nothing_over_the_device() -> None:
    rig = Rig()
    rig.cpu[0:PAGE] = b"A" * PAGE
    rig.cache.clean(0, PAGE)
    rig.device.dma_write(0, b"D" * 64)
    rig.cpu[96:100] = b"BBBB"
    rig.cache.clean(0, PAGE)
    assert bytes(rig.cache.memory[0:64]) == b"D" * 64
    assert bytes(rig.cache.memory[96:100]) == b"BBBB"
    assert rig.cache.statistics()["written_back"] == PAGE // LINE + 1


def test_the_alias_is_memory() -> None:
    rig = Rig()
    rig.cpu[0:4] = b"seen"
    rig.cache.uncached[4:8] = b"held"
    assert rig.device.dma_read(0, 8) == b"\0\0\0\0held"
    rig.device.dma_write(8, b"here")
    assert bytes(rig.cache.uncached[4:12]) == b"heldhere"


def test_an_eviction_writes_over_the_device() -> None:
    """A dirty buffer is given to the device without PREREAD; every page is stirred at each access."""
    rig = Rig(activity=1.0)
    rig.cpu[0:PAGE] = b"A" * PAGE
    for _ in range(4 * PAGE // LINE):
        rig.device.dma_write(0, b"D" * PAGE)
    counts = rig.cache.statistics()
    assert counts["evicted"]
    assert counts["written_back"]
    assert counts["hidden"]
    rig = Rig(activity=1.0)
    rig.cpu[0:PAGE] = b"A" * PAGE
    rig.device.dma_write(0, b"D" * PAGE)
    assert bytes(rig.cache.memory[0:PAGE]).count(b"A") == LINE


def test_a_fill_hides_what_the_device_writes_next() -> None:
    """PREREAD alone is not enough, although nobody looked at the buffer meanwhile."""
    rig = Rig(activity=1.0)
    rig.cache.invalidate(0, PAGE)
    for n in range(8):
        rig.device.dma_write(0, bytes([n + 1]) * PAGE)
    assert rig.cache.statistics()["filled"]
    assert bytes(rig.cpu[0:PAGE]) != b"\x08" * PAGE
    rig.cache.invalidate(0, PAGE)
    assert bytes(rig.cpu[0:PAGE]) == b"\x08" * PAGE


def test_a_fill_may_come_between_preread_and_the_first_write() -> None:
    stale = 0
    for seed in range(8):
        rig = Rig(seed=seed, activity=1.0)
        rig.cache.invalidate(0, PAGE)
        rig.device.dma_write(0, b"D" * PAGE)
        stale += bytes(rig.cpu[0:PAGE]) != b"D" * PAGE
    assert stale == 8


def test_equal_seeds_do_equal_things() -> None:
    def run(seed: int) -> tuple[bytes, bytes, object]:
        rig, random = Rig(seed=seed, activity=0.5), Random(9)
        for _ in range(300):
            at, count = random.randrange(PAGES * PAGE - 200), random.randrange(1, 200)
            match random.randrange(5):
                case 0:
                    rig.cpu[at : at + count] = random.randbytes(count)
                case 1:
                    rig.device.dma_write(at, random.randbytes(count))
                case 2:
                    rig.device.dma_read(at, count)
                case 3:
                    rig.cache.clean(at, count)
                case 4:
                    rig.cache.invalidate(at, count)
        return bytes(rig.cpu), bytes(rig.cache.memory), rig.cache.statistics()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_cache_is_what_sync_asks_for() -> None:
    cache: Cache = WriteBackCache(PAGE, line=64)
    assert cache.line == 64
    for address, length in ((-1, 1), (0, 0), (PAGE, 1), (0, PAGE + 1)):
        with pytest.raises(DriverError, match="give at least one"):
            cache.clean(address, length)
        with pytest.raises(DriverError, match="give at least one"):
            cache.invalidate(address, length)


@pytest.mark.parametrize(("size", "line", "activity"), [(PAGE + 1, 32, 0), (0, 32, 0), (PAGE, 24, 0), (PAGE, 8192, 0)])
def test_caches_that_cannot_be(size: int, line: int, activity: float) -> None:
    with pytest.raises(ConfigurationError, match="a power of two"):
        WriteBackCache(size, line=line, activity=activity)


def test_an_activity_is_a_chance() -> None:
    for activity in (-0.1, 1.5):
        with pytest.raises(ConfigurationError, match="from 0 to 1"):
            WriteBackCache(PAGE, activity=activity)


def test_masters_are_watched_by_physical_address_and_only_in_memory() -> None:
    told: list[tuple[str, int, int]] = []

    class Watcher:
        def before_read(self, address: int, length: int, master: str) -> None:
            told.append(("read", address, length))

        def after_write(self, address: int, length: int, master: str) -> None:
            told.append((bytes(bus.memory[address : address + length]).decode(), address, length))

        def unanswered(self, address: int, length: int, master: str) -> None:
            told.append(("nobody", address, length))

    bus = MasterBus(memoryview(bytearray(PAGE)), FrameAllocator(0, 1))
    master = bus.add_master("m", Wires(20))
    bus.watch = Watcher()
    master.dma_write(PAGE - 2, b"abc")
    master.dma_read(PAGE - 1, 5)
    master.dma_read(2 * PAGE, 5)
    master.dma_write((1 << 20) + 3, b"xyz")
    assert told == [
        ("ab", PAGE - 2, 2),
        ("nobody", PAGE, 1),
        ("read", PAGE - 1, 1),
        ("nobody", PAGE, 4),
        ("nobody", 2 * PAGE, 5),
        ("xyz", 3, 3),
    ]


SMALL = 2 * PAGE


class Lines:
    """The simple model: by line the CPU's bytes, or None; dirty or not; and memory. Nothing of its own accord."""

    def __init__(self) -> None:
        self.memory = bytearray(SMALL)
        self.lines: dict[int, tuple[bytearray, bool]] = {n: (bytearray(LINE), False) for n in range(SMALL // LINE)}

    def load(self) -> bytes:
        found = (self.lines.get(n, (self.memory[n * LINE : (n + 1) * LINE],))[0] for n in range(SMALL // LINE))
        return b"".join(found)

    def store(self, at: int, data: bytes) -> None:
        for i, byte in enumerate(data, at):
            line, offset = divmod(i, LINE)
            content = self.lines.get(line, (self.memory[line * LINE : (line + 1) * LINE], False))[0]
            if content[offset] != byte:  # a store of what is there already cannot be told from none
                content[offset] = byte
                self.lines[line] = (content, True)

    def touched(self, at: int, length: int) -> range:
        return range(at // LINE, (at + length - 1) // LINE + 1)

    def clean(self, at: int, length: int) -> None:
        for line in self.touched(at, length):
            if line in self.lines and self.lines[line][1]:
                content = self.lines[line][0]
                self.memory[line * LINE : (line + 1) * LINE] = content
                self.lines[line] = (content, False)

    def invalidate(self, at: int, length: int) -> None:
        for line in self.touched(at, length):
            self.lines.pop(line, None)


ranges = st.tuples(st.integers(0, SMALL - 1), st.integers(1, 200)).map(lambda r: (r[0], min(r[1], SMALL - r[0])))


class AgreesWithLines(RuleBasedStateMachine):
    """A quiet cache is the simple model, whatever is done to it, sensible or not."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = WriteBackCache(SMALL, line=LINE, activity=0)
        bus = MasterBus(self.cache.memory, FrameAllocator(0, 2))
        bus.watch = self.cache
        self.device = bus.add_master("m", Wires(32))
        self.model = Lines()
        self.byte = 0

    def data(self, length: int) -> bytes:
        """Bytes unlike the last 249: a line that is stored back to what it was counts as clean."""
        self.byte = self.byte % 250 + 1
        return bytes([self.byte]) * length

    @rule(where=ranges)
    def store(self, where: tuple[int, int]) -> None:
        data = self.data(where[1])
        self.cache.seen[where[0] : sum(where)] = data
        self.model.store(where[0], data)

    @rule(where=ranges)
    def device_writes(self, where: tuple[int, int]) -> None:
        data = self.data(where[1])
        self.device.dma_write(where[0], data)
        self.model.memory[where[0] : sum(where)] = data

    @rule(where=ranges)
    def device_reads(self, where: tuple[int, int]) -> None:
        assert self.device.dma_read(*where) == self.model.memory[where[0] : sum(where)]

    @rule(where=ranges)
    def clean(self, where: tuple[int, int]) -> None:
        self.cache.clean(*where)
        self.model.clean(*where)

    @rule(where=ranges)
    def invalidate(self, where: tuple[int, int]) -> None:
        self.cache.invalidate(*where)
        self.model.invalidate(*where)

    @invariant()
    def same(self) -> None:
        assert self.cache.seen.tobytes() == self.model.load()
        assert self.cache.memory.tobytes() == self.model.memory


class AlwaysWorks(RuleBasedStateMachine):
    """A busy cache, buffers that share no lines, and a driver that syncs: each side sees what the other wrote."""

    BUFFERS: ClassVar = [(0, 96), (96, 32), (128, 2048), (2176, 4000), (6176, 2016)]

    def __init__(self) -> None:
        super().__init__()
        self.cache = WriteBackCache(SMALL, line=LINE, seed=7, activity=1)
        bus = MasterBus(self.cache.memory, FrameAllocator(0, 2))
        bus.watch = self.cache
        self.device = bus.add_master("m", Wires(32))
        self.now = [bytes(length) for _, length in self.BUFFERS]
        self.random = Random(3)

    numbers = st.integers(0, 4)

    @rule(number=numbers)
    def cpu_stores(self, number: int) -> None:
        at, length = self.BUFFERS[number]
        self.now[number] = self.random.randbytes(length)
        self.cache.seen[at : at + length] = self.now[number]

    @rule(number=numbers, parts=st.integers(1, 5))
    def to_device(self, number: int, parts: int) -> None:
        at, length = self.BUFFERS[number]
        self.cache.clean(at, length)  # PREWRITE
        step = -(-length // parts)
        got = [self.device.dma_read(at + i, min(step, length - i)) for i in range(0, length, step)]
        assert b"".join(got) == self.now[number]

    @rule(number=numbers, parts=st.integers(1, 5), passes=st.integers(1, 3))
    def from_device(self, number: int, parts: int, passes: int) -> None:
        at, length = self.BUFFERS[number]
        self.cache.clean(at, length)  # PREREAD: what the device does not write keeps its value
        self.cache.invalidate(at, length)
        for _ in range(passes):
            self.now[number] = self.random.randbytes(length)
            step = -(-length // parts)
            for i in range(0, length, step):
                self.device.dma_write(at + i, self.now[number][i : i + step])
        self.cache.invalidate(at, length)  # POSTREAD

    @invariant()
    def the_cpu_sees_all(self) -> None:
        assert self.cache.seen.tobytes() == b"".join(self.now)


@pytest.mark.parametrize("machine", [AgreesWithLines, AlwaysWorks])
def test_properties(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=80, stateful_step_count=40, derandomize=True, deadline=None, database=None),
    )
