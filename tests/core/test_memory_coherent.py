"""DMA-safe memory on a machine whose caches DMA does not see: cached, and through an uncached alias."""

from __future__ import annotations

import pytest

from busdma.domain import DmaDomain
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import AddressSpace
from busdma.runtime import by_name
from busdma.sync import POSTREAD, PREREAD, PREWRITE
from core.small_machine import PAGE

LINE = 32


class TwoCopies:
    """The worst cache: it never writes back and never looks again by itself. Memory and cache are two bytearrays."""

    line = LINE

    def __init__(self, pages: int) -> None:
        self.cached = memoryview(bytearray(pages * PAGE))
        self.ram = memoryview(bytearray(pages * PAGE))
        self.moved: list[tuple[str, int, int]] = []

    def to_device(self, address: int, length: int) -> None:
        self._move("out", self.cached, self.ram, address, length)

    def to_cpu(self, address: int, length: int, written: bool) -> None:
        if written:
            self._move("in", self.ram, self.cached, address, length)

    def _move(self, way: str, source: memoryview, target: memoryview, address: int, length: int) -> None:
        first, end = address // LINE * LINE, -(-(address + length) // LINE) * LINE
        target[first:end] = source[first:end]
        self.moved.append((way, address, length))


class Machine:
    def __init__(self, alias: bool = True) -> None:
        self.cache = TwoCopies(64)
        self.frames = FrameAllocator(0, 64)
        uncached = self.cache.ram if alias else None
        self.domain = DmaDomain(self.cache.cached, self.frames, by_name("virtual"), cache=self.cache, uncached=uncached)
        self.tag = self.domain.root("mips")


def test_coherent_memory_is_seen_past_the_caches() -> None:
    machine = Machine()
    memory = machine.tag.alloc(2 * PAGE + 5, coherent=True)
    at = int(memory.address)
    assert memory.uncached
    memory.view[7] = 1
    assert machine.cache.ram[at + 7] == 1
    machine.cache.ram[at + 8] = 2  # the device writes
    assert memory.view[8] == 2
    machine.cache.moved.clear()
    memory.sync(PREWRITE | PREREAD)  # mandatory all the same; there is nothing to move
    memory.sync(POSTREAD)
    assert machine.cache.moved == []
    assert memory.view[7:9] == bytes([1, 2])
    memory.free()


def test_what_an_earlier_owner_left_in_the_cache_is_out_of_it() -> None:
    """A dirty line of an earlier owner would otherwise be written back over what the device and the driver write."""
    machine = Machine()
    machine.cache.cached[:] = b"\xee" * len(machine.cache.cached)
    memory = machine.tag.alloc(PAGE, coherent=True)
    assert [(way, length) for way, _, length in machine.cache.moved] == [("out", PAGE)]
    assert bytes(memory.view) == bytes(PAGE)  # zeroed behind it


def test_cached_memory_needs_its_syncs() -> None:
    machine = Machine()
    memory = machine.tag.alloc(2 * PAGE + 5)
    at = int(memory.address)
    assert not memory.uncached
    assert (len(memory), len(memory.view)) == (2 * PAGE + 5, 2 * PAGE + 5)
    memory.view[2 * PAGE + 4] = 1
    assert machine.cache.ram[at + 2 * PAGE + 4] == 0
    memory.sync(PREWRITE | PREREAD, 2 * PAGE, 5)
    assert machine.cache.ram[at + 2 * PAGE + 4] == 1
    machine.cache.ram[at + 40] = 2
    memory.sync(POSTREAD, 40, 1)
    assert memory.view[40] == 2
    memory.free()


def test_a_machine_without_an_alias() -> None:
    """It is a hint."""
    machine = Machine(alias=False)
    memory = machine.tag.alloc(PAGE, coherent=True)
    assert not memory.uncached
    memory.view[0] = 3
    memory.sync(PREWRITE)
    assert machine.cache.ram[int(memory.address)] == 3


@pytest.mark.parametrize("coherent", [True, False])
def test_a_process_sees_it_the_same_way(coherent: bool) -> None:
    machine = Machine()
    memory = machine.tag.alloc(PAGE, coherent=coherent)
    space = AddressSpace("tv", machine.cache.cached, machine.frames, pages=16, owner="process")
    buffer = memory.mmap(space)
    buffer.write(b"hello", 10)
    assert bytes(memory.view[10:15]) == b"hello"
    at = int(memory.address) + 10
    assert (bytes(machine.cache.ram[at : at + 5]) == b"hello") is coherent
    assert (memory.uncached, buffer.uncached) == (coherent, coherent)
    assert not space.allocate(PAGE).uncached
