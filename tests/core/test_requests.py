"""Requests, and lists of everything: each kind, nested, in one list, and what is wrong with some of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import PhysicalAddress
from busdma.buffers import HostBuffer
from busdma.errors import BufferGone, DriverError, MapStateError
from busdma.lists import DEEPEST, BufferList, ElementList, as_loadable, linear_parts
from busdma.mbuf import MbufPool
from busdma.requests import Bio, Ccb
from busdma.sync import Direction
from busdma.uio import Uio
from busdma.unmapped import PageArray, PhysicalList
from core.paths_machine import Behind
from core.small_machine import PAGE, SmallMachine

WINDOWS = [("direct",), ("mapped",), ("direct", "mapped")]


def read(buffer: Any) -> bytes:
    """What the CPU sees of anything that can be loaded."""
    return b"".join(part.read() for part in linear_parts(as_loadable(buffer)))  # type: ignore[attr-defined]


def write(buffer: Any, data: bytes) -> None:
    """The CPU writes all of it."""
    at = 0
    for part in linear_parts(as_loadable(buffer)):
        part.write(data[at : at + part.length])  # type: ignore[attr-defined]
        at += part.length


KINDS = ["low", "high", "host", "mbufs", "uio", "pages", "raw", "bio", "ccb", "nested", "empty"]
SIZES = st.one_of(st.sampled_from([1, 63, 224, PAGE - 1, PAGE, PAGE + 1]), st.integers(1, 2 * PAGE))


class Maker:
    """Makes loadable things on a machine, of a kind and a size."""

    def __init__(self, machine: SmallMachine) -> None:
        self.machine = machine
        self.pool = MbufPool(machine.kernel)
        self.process = machine.space("cp")

    def make(self, kind: str, size: int, offset: int) -> Any:
        """One of a kind."""
        machine = self.machine
        if kind == "low":
            return machine.low(size, offset)
        if kind == "high":
            return machine.high(size, offset)
        if kind == "host":
            return bytearray(size)
        if kind == "mbufs":
            chain = self.pool.chain_of(bytes(size), headroom=16)
            chain.append(self.pool.get())
            return chain
        if kind == "uio":
            buffer = self.process.allocate(size + 10, offset=offset)
            half = size // 2
            return Uio(self.process, [(buffer.address + 10, half), (0, 0), (buffer.address + 10 + half, size - half)])
        if kind == "pages":
            return PageArray.allocate(machine.domain, size, start=offset)
        if kind == "raw":
            address = machine.frames.allocate_run(-(-(size + offset) // PAGE), "raw")
            return PhysicalList(machine.domain, [(PhysicalAddress(address + offset), size)])
        if kind == "bio":
            return Bio(self.make("low", size + 100, offset), Direction.BOTH, offset=37, length=size)
        if kind == "ccb":
            return Ccb(self.make("high", size, offset))
        if kind == "nested":
            return [Ccb([self.make("host", size, 0)]), (self.make("mbufs", 40, 0), [])]
        return self.make("low", PAGE, offset)[3:3]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "empty"])
@pytest.mark.parametrize("windows", WINDOWS, ids="+".join)
def test_every_kind_by_every_route(kind: str, windows: tuple[str, ...]) -> None:
    machine = Behind(*windows, limit=64)
    thing = Maker(machine).make(kind, 2 * PAGE + 5, 100)
    data = random.Random(1).randbytes(len(read(thing)))
    write(thing, data)
    map = machine.bus.create_map()
    segments = map.load_nowait(thing)
    map.sync(Direction.BOTH.pre)
    assert machine.device_reads(segments) == data
    machine.device_writes(segments, data[::-1])
    map.sync(Direction.BOTH.post)
    assert read(thing) == data[::-1]
    map.unload()
    assert machine.pool.active == 0
    assert all(zone.active == 0 for zone in machine.domain.zones)


@pytest.mark.parametrize("windows", WINDOWS, ids="+".join)
@given(parts=st.lists(st.tuples(st.sampled_from(KINDS), SIZES, st.integers(0, PAGE - 1)), min_size=2, max_size=6))
def test_all_kinds_in_one_list(windows: tuple[str, ...], parts: list[tuple[str, int, int]]) -> None:
    machine = Behind(*windows, pages=1024, mapped=128, limit=128)
    maker = Maker(machine)
    things = [maker.make(*part) for part in parts]
    if not as_loadable(things).length:
        return
    data = random.Random(1).randbytes(len(read(things)))
    write(things, data)
    map = machine.bus.create_map()
    segments = map.load_nowait(tuple(things))
    map.sync(Direction.BOTH.pre)
    assert machine.device_reads(segments) == data
    machine.device_writes(segments, data[::-1])
    cut = len(data) // 3
    map.sync(Direction.BOTH.post, cut, len(data) - cut)
    assert read(things)[cut:] == data[::-1][cut:]
    map.unload()


def test_elements_that_share_a_page_and_bytes() -> None:
    for windows in WINDOWS:
        machine = Behind(*windows, limit=32)
        page = machine.low(PAGE)
        page.write(random.Random(1).randbytes(PAGE))
        shared = [page[0:100], page[50:150], page[4000:], page[0:100]]
        map = machine.bus.create_map()
        segments = map.load_nowait(shared, Direction.TO_DEVICE)
        map.sync(Direction.TO_DEVICE.pre)
        assert machine.device_reads(segments) == b"".join(part.read() for part in shared)
        map.unload()


def test_dma_safe_memory_in_a_list_and_a_part_of_it(small: SmallMachine) -> None:
    memory = small.isa.alloc(3 * PAGE)
    memory.view[:] = data = random.Random(1).randbytes(3 * PAGE)
    map = small.isa.create_map()
    for thing, wanted in (
        ([memory, memory], data * 2),
        (Bio(memory, Direction.BOTH, offset=100, length=PAGE), data[100 : 100 + PAGE]),
        (BufferList([memory, memory])[2 * PAGE : 4 * PAGE], data[2 * PAGE :] + data[:PAGE]),
    ):
        assert small.peek(map.load_nowait(thing)) == wanted
        map.unload()
    part = Bio(memory, Direction.BOTH, offset=5, length=6)
    assert "6 bytes of DMA-safe memory" in as_loadable(part).describe()
    memory.free()
    with pytest.raises(BufferGone):
        map.load_nowait([part])


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1), (5, 6), (11, None), (11, 0)])
def test_a_bio_outside_its_data(small: SmallMachine, offset: int, length: int | None) -> None:
    with pytest.raises(DriverError, match="give a range inside it"):
        small.root.create_map().load_nowait(Bio(bytearray(10), Direction.BOTH, offset=offset, length=length))


def test_a_bio_of_part_of_a_list(small: SmallMachine) -> None:
    parts = [bytearray(b"abcd"), bytearray(b""), bytearray(b"efgh")]
    map = small.isa.create_map()
    segments = map.load_nowait(Bio(parts, Direction.BOTH, offset=2, length=4))
    map.sync(Direction.BOTH.pre)
    assert small.peek(segments) == b"cdef"


def test_a_ccb_without_data(small: SmallMachine) -> None:
    with pytest.raises(DriverError, match="no data phase") as caught:
        small.root.create_map().load_nowait(Ccb(None))
    assert caught.value.tag == "pc"


# -- what refers to itself -------------------------------------------------------------------------------------------


def test_a_ccb_that_refers_to_itself(small: SmallMachine) -> None:
    ccb = Ccb(None)
    ccb.data = [bytearray(4), Bio(ccb, Direction.BOTH)]
    with pytest.raises(DriverError, match=f"refers to itself, or more than {DEEPEST} deep") as caught:
        small.root.create_map().load_nowait(ccb)
    assert caught.value.tag == "pc"
    mine: list[object] = []
    mine.append(mine)
    for loop in (mine, Bio(mine, Direction.BOTH), Ccb([(mine,)])):
        with pytest.raises(DriverError, match="refers to itself"):
            small.root.explain(loop)


def test_as_deep_as_it_may_be_and_one_more(small: SmallMachine) -> None:
    thing: object = bytearray(4)
    for _ in range(DEEPEST // 2):
        thing = [Ccb(thing)]
    map = small.isa.create_map()
    assert len(map.load_nowait(thing)) == 1
    map.unload()
    for _ in range(DEEPEST // 2):
        thing = [Ccb(thing)]
    with pytest.raises(DriverError, match="refers to itself"):
        map.load_nowait(thing)


def test_an_mbuf_chain_with_a_cycle(small: SmallMachine) -> None:
    pool = MbufPool(small.kernel)
    chain = pool.chain_of(bytes(5000))
    last = list(chain)[-1]
    last.next = chain.first
    map = small.root.create_map()
    for thing in (chain, [chain], Ccb(chain)):
        with pytest.raises(DriverError, match=r"a cycle: .* is in the chain twice"):
            map.load_nowait(thing)
    last.next = None
    assert map.load_nowait(chain)


@pytest.mark.parametrize("thing", [5, None, "text", object(), [5], (None,), [[bytearray(1), "text"]]])
def test_what_cannot_be_loaded(small: SmallMachine, thing: object) -> None:
    with pytest.raises(DriverError, match="cannot load"):
        small.root.create_map().load_nowait(thing)


# -- what was loaded stays loaded ------------------------------------------------------------------------------------


def test_a_list_that_changes_after_the_load_changes_nothing(small: SmallMachine) -> None:
    """What is loaded is what it was: it cannot be freed, the lengths stay, and a cycle harms nobody."""
    pool = MbufPool(small.kernel)
    chain = pool.chain_of(bytes(3000))
    first, second = list(chain)
    map = small.isa.create_map()
    segments = list(map.load_nowait(chain))
    chain.adjust(-100)
    first.next = None
    with pytest.raises(DriverError, match=r"cannot be freed: map '1' of tag pc/isa .loaded. has it loaded"):
        second.free()
    second.next = second
    first.next = second
    small.low(5).free()  # asks every map
    map.sync(Direction.BOTH.pre, 2999, 1)
    assert list(map.segments) == segments
    assert sum(length for _, length in segments) == 3000
    first.next = second.next = None
    map.unload()
    second.free()
    with pytest.raises(BufferGone):
        first.next = second
        map.load_nowait(chain)


def test_a_list_of_an_unloaded_map_is_nobodys(small: SmallMachine) -> None:
    buffer = small.low(100)
    map = small.isa.create_map()
    map.load_nowait([buffer[:10], buffer[50:]])
    with pytest.raises(DriverError, match="cannot be freed"):
        buffer.free()
    with pytest.raises(MapStateError):
        map.load_nowait([buffer])
    map.unload()
    buffer.free()


def test_a_list_that_waits_is_not_freed_either(small: SmallMachine) -> None:
    holder, map = small.isa.create_map(), small.isa.create_map()
    holder.load_nowait(bytearray(20 * PAGE))
    buffer = small.high(PAGE)

    async def main() -> None:
        task = small.runtime.start(map.load, [buffer])
        small.runtime.call_at(small.runtime.now() + 5, holder.unload)
        small.runtime.call_at(small.runtime.now() + 2, refused)
        await small.runtime.park(task.done)
        task.result()

    def refused() -> None:
        with pytest.raises(DriverError, match=r"\(waiting\) has it loaded"):
            buffer.free()

    small.runtime.run(main)
    map.unload()
    buffer.free()


class Own(ElementList):
    """A list of somebody else's making."""

    def __init__(self, *parts: bytearray) -> None:
        self.parts = parts

    def elements(self) -> list[Any]:
        return [HostBuffer(part) for part in self.parts]

    def describe(self) -> str:
        return "a list of one's own"


def test_a_list_of_ones_own(small: SmallMachine) -> None:
    own = Own(bytearray(b"one"), bytearray(), bytearray(b"two"))
    assert (own.length, own.readonly, len(own)) == (6, False, 6)
    map = small.isa.create_map()
    segments = map.load_nowait([own, own])
    map.sync(Direction.BOTH.pre)
    assert small.peek(segments) == b"onetwoonetwo"
    assert map.buffer is not None
    assert map.buffer.describe() == "a list of 2 buffers, 12 bytes"
    map.unload()
    map.load_nowait(own)
    assert map.buffer.describe() == repr(own)[1:-1] == "a list of one's own"
    with pytest.raises(DriverError, match="give a range of bytes"):
        own[3]  # type: ignore[index]


def test_what_may_only_be_read_goes_to_the_device_only(small: SmallMachine) -> None:
    map = small.isa.create_map()
    mixed = [bytearray(4), b"constant"]
    for direction in (Direction.BOTH, Direction.FROM_DEVICE):
        with pytest.raises(DriverError, match="it is read-only"):
            map.load_nowait(mixed, direction)
    segments = map.load_nowait(mixed, Direction.TO_DEVICE)
    map.sync(Direction.TO_DEVICE.pre)
    assert small.peek(segments) == bytes(4) + b"constant"
