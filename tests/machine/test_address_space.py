"""AddressSpace and LinearBuffer against bytearrays: contents, views, frees, and everything that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from busdma.addresses import AddressSet
from busdma.buffers import Buffer, LinearBuffer
from busdma.errors import BufferGone, ConstraintError, DriverError, ResourceShortage, ShortageReason
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import POISON, AddressSpace
from busdma.segments import ABSENT

PAGE = 4096


class Memory:
    """64 pages of RAM full of 0x55, and a space over it."""

    def __init__(self, pages: int = 64, virtual: int = 256, owner: str = "kernel", base: int = 0) -> None:
        self.ram = bytearray(b"\x55") * (pages * PAGE)
        self.frames = FrameAllocator(base, pages, seed=1)
        self.space = AddressSpace(
            "kernel" if owner == "kernel" else "camdd",
            memoryview(self.ram),
            self.frames,
            pages=virtual,
            owner="kernel" if owner == "kernel" else "process",
        )

    def physical(self, buffer: LinearBuffer) -> list[int]:
        """Physical addresses of the pages that the buffer touches."""
        first, last = buffer.start // PAGE, (buffer.start + buffer.length - 1) // PAGE
        return list(self.space.page_table[first : last + 1])


class SpaceAgainstModel(RuleBasedStateMachine):
    """Every live allocation is shadowed by a bytearray; reads and writes go through random views."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(pages=40, virtual=64, base=0x100000)
        self.space = self.memory.space
        self.live: list[tuple[LinearBuffer, bytearray]] = []
        self.dead: list[LinearBuffer] = []

    @rule(length=st.integers(1, 9 * PAGE), offset=st.integers(0, PAGE - 1), contiguous=st.booleans())
    def allocate(self, length: int, offset: int, contiguous: bool) -> None:
        before = self.memory.frames.statistics()["free"]
        try:
            buffer = self.space.allocate(length, offset=offset, contiguous=contiguous)
        except ResourceShortage:
            assert self.memory.frames.statistics()["free"] == before
            return
        assert buffer.address % PAGE == offset
        assert buffer.read() == bytes(length)
        if contiguous:
            found = self.memory.physical(buffer)
            assert found == list(range(found[0], found[0] + len(found) * PAGE, PAGE))
        self.live.append((buffer, bytearray(length)))

    def pick(self, data: st.DataObject) -> tuple[LinearBuffer, memoryview]:
        """A live buffer, cut down by up to two slices, with the same cut of its shadow."""
        buffer, model = data.draw(st.sampled_from(self.live))
        shadow = memoryview(model)
        for _ in range(data.draw(st.integers(0, 2))):
            cut = slice(data.draw(st.integers(-PAGE, 2 * PAGE)), data.draw(st.integers(-PAGE, 10 * PAGE)))
            buffer, shadow = buffer[cut], shadow[cut]
        return buffer, shadow

    @precondition(lambda self: self.live)
    @rule(data=st.data(), byte=st.integers(0, 255))
    def write(self, data: st.DataObject, byte: int) -> None:
        buffer, shadow = self.pick(data)
        offset = data.draw(st.integers(0, len(shadow)))
        count = data.draw(st.integers(0, len(shadow) - offset))
        text = bytes((byte + i) % 256 for i in range(count))
        buffer.write(text, offset)
        shadow[offset : offset + count] = text

    @precondition(lambda self: self.live)
    @rule(data=st.data(), byte=st.integers(0, 255))
    def fill(self, data: st.DataObject, byte: int) -> None:
        buffer, shadow = self.pick(data)
        buffer.fill(byte)
        shadow[:] = bytes((byte,)) * len(shadow)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        buffer, shadow = self.pick(data)
        offset = data.draw(st.integers(0, len(shadow)))
        count = data.draw(st.integers(0, len(shadow) - offset))
        assert buffer.read(offset, count) == shadow[offset : offset + count]
        assert len(buffer) == buffer.length == len(shadow)
        if count:
            assert buffer[offset] == shadow[offset]
            assert buffer[offset - len(shadow)] == shadow[offset]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        buffer, _ = entry = data.draw(st.sampled_from(self.live))
        view = buffer[len(buffer) // 2 :]
        found = self.memory.physical(buffer)
        self.live.remove(entry)
        buffer.free()
        self.dead += [buffer, view]
        for frame in found:
            at = frame - 0x100000
            assert self.memory.ram[at : at + PAGE] == bytes((POISON,)) * PAGE

    @invariant()
    def pages_agree(self) -> None:
        counts = self.space.statistics()
        pages = [len(self.memory.physical(buffer)) for buffer, _ in self.live]
        assert counts == {
            "pages": 64,
            "resident": sum(pages),
            "paged_out": 0,
            "page_ins": 0,
            "allocations": len(self.live),
        }
        assert self.memory.frames.statistics()["free"] == 40 - sum(pages)
        for buffer, model in self.live:
            assert buffer.read() == model
            last = (buffer.start + buffer.length - 1) // PAGE
            assert self.space.page_table[last + 1] == ABSENT

    @invariant()
    def the_dead_stay_dead(self) -> None:
        for buffer in self.dead:
            assert buffer.frames.entries == 0
            with pytest.raises(BufferGone, match="released"):
                buffer.read()


SpaceAgainstModel.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestSpaceAgainstModel = SpaceAgainstModel.TestCase


def test_a_buffer_is_scattered_zeroed_and_described() -> None:
    memory = Memory(pages=1024)
    buffer = memory.space.allocate(65536, offset=0x345)
    assert buffer.describe() == "kernel buffer 0x00010345, 65536 bytes"
    assert len(memory.physical(buffer)) == 17
    steps = {b - a for a, b in pairwise(memory.physical(buffer))}
    assert len(steps) > 10
    assert buffer.read() == bytes(65536)
    assert isinstance(buffer, Buffer)
    assert (buffer.host, buffer.readonly, buffer.gone) == (None, False, "")
    assert buffer.frames is memory.space.frames
    assert buffer.space is memory.space


def test_a_write_goes_where_the_page_table_says() -> None:
    memory = Memory()
    buffer = memory.space.allocate(3 * PAGE, offset=PAGE - 2)
    buffer.write(b"abcdef", 0)
    first, second = memory.physical(buffer)[:2]
    assert memory.ram[first + PAGE - 2 : first + PAGE] == b"ab"
    assert memory.ram[second : second + 4] == b"cdef"


def test_frames_come_from_within() -> None:
    memory = Memory()
    low = AddressSet.span(0, 16 * PAGE - 1)
    buffer = memory.space.allocate(8 * PAGE, within=low)
    assert all(frame in low for frame in memory.physical(buffer))
    with pytest.raises(ResourceShortage):
        memory.space.allocate(9 * PAGE, within=low)


def test_first_fit_reuses_the_lowest_gap() -> None:
    space = Memory().space
    buffers = [space.allocate(2 * PAGE) for _ in range(4)]
    assert [b.address for b in buffers] == [0x10000 + 3 * PAGE * i for i in range(4)]
    buffers[1].free()
    assert space.allocate(PAGE).address == buffers[1].address
    assert space.allocate(2 * PAGE).address == 0x10000 + 12 * PAGE


@pytest.mark.parametrize(("length", "offset"), [(0, 0), (-1, 0), (5, -1), (5, PAGE)])
def test_a_buffer_that_cannot_be(length: int, offset: int) -> None:
    with pytest.raises(ConstraintError):
        Memory().space.allocate(length, offset=offset)


def test_a_shortage_of_addresses_holds_no_frames() -> None:
    memory = Memory(virtual=8)
    with pytest.raises(ResourceShortage, match="never fit") as caught:
        memory.space.allocate(8 * PAGE)
    assert caught.value.reason is ShortageReason.TOO_LARGE
    first = memory.space.allocate(2 * PAGE)
    memory.space.allocate(PAGE)
    first.free()
    with pytest.raises(ResourceShortage) as caught:
        memory.space.allocate(4 * PAGE)
    assert caught.value.reason is ShortageReason.FRAGMENTED
    with pytest.raises(ResourceShortage) as caught:
        memory.space.allocate(6 * PAGE)
    assert caught.value.reason is ShortageReason.BUSY
    assert memory.frames.statistics()["by_owner"] == {"kernel": 1}


def test_only_whole_allocations_are_freed_and_only_once() -> None:
    memory = Memory()
    buffer = memory.space.allocate(PAGE)
    with pytest.raises(DriverError, match="is a view: free the whole allocation of 4096 bytes"):
        buffer[1:].free()
    with pytest.raises(DriverError, match="not of space"):
        Memory().space.free(buffer)
    buffer[:].free()
    with pytest.raises(BufferGone, match="freed before: it was released"):
        buffer.free()


def test_a_view_of_a_released_buffer_does_not_see_its_successor() -> None:
    memory = Memory()
    old = memory.space.allocate(PAGE)
    view = old[10:20]
    old.free()
    new = memory.space.allocate(PAGE)
    assert new.address == old.address
    uses: list[Callable[[], object]] = [view.read, lambda: view.write(b"x"), lambda: view.fill(1), lambda: view[0]]
    for use in uses:
        with pytest.raises(BufferGone, match="released"):
            use()
    assert view.frames.entries == 0
    assert view.gone == "it was released"
    assert "gone" in repr(view)
    assert new.read() == bytes(PAGE)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 11), (11, 0), (5, -1), (4, 7)])
def test_access_outside_is_refused(offset: int, length: int) -> None:
    buffer = Memory().space.allocate(10)
    with pytest.raises(DriverError, match="not inside"):
        buffer.read(offset, length)


def test_a_write_that_does_not_fit_writes_nothing() -> None:
    buffer = Memory().space.allocate(10)
    with pytest.raises(DriverError, match="not inside"):
        buffer.write(b"0123456789a")
    assert buffer.read() == bytes(10)
    with pytest.raises(IndexError):
        buffer[10]
    with pytest.raises(DriverError, match="step 1"):
        buffer[::2]


def test_nothing_is_freed_while_a_map_has_it_loaded() -> None:
    memory = Memory(owner="process")
    buffers = [memory.space.allocate(PAGE) for _ in range(2)]
    loaded = buffers[1]
    asked: list[LinearBuffer] = []

    def in_use(buffer: LinearBuffer) -> str | None:
        asked.append(buffer)
        return "map 3 of tag aha0" if buffer.address == loaded.address else None

    memory.space.in_use = in_use
    with pytest.raises(DriverError, match="map 3 of tag aha0 has it loaded"):
        loaded.free()
    with pytest.raises(DriverError, match="map 3 of tag aha0 has it loaded"):
        memory.space.destroy()
    assert [(b.address, b.length) for b in asked[1:]] == [(b.address, b.length) for b in buffers]
    assert loaded.read() == bytes(PAGE)
    assert memory.space.statistics()["allocations"] == 2


def test_a_freed_process_takes_its_buffers_with_it() -> None:
    memory = Memory(owner="process")
    buffer = memory.space.allocate(3 * PAGE)
    assert buffer.describe() == "process 'camdd' buffer 0x00010000, 12288 bytes"
    view = buffer[5:]
    assert not memory.space.destroyed
    memory.space.destroy()
    assert memory.space.destroyed
    with pytest.raises(BufferGone, match="its process 'camdd' was freed"):
        view.read()
    with pytest.raises(BufferGone, match="its process 'camdd' was freed"):
        buffer.free()
    with pytest.raises(BufferGone, match="its process 'camdd' was freed"):
        memory.space.allocate(1)
    with pytest.raises(BufferGone):
        memory.space.destroy()
    assert memory.frames.statistics()["free"] == 64
    assert memory.space.statistics() == {
        "pages": 256,
        "resident": 0,
        "paged_out": 0,
        "page_ins": 0,
        "allocations": 0,
    }


def test_the_kernel_is_not_destroyed() -> None:
    with pytest.raises(DriverError, match="lives as long as its machine"):
        Memory().space.destroy()


def test_a_space_that_cannot_be() -> None:
    frames = FrameAllocator(0, 4)
    ram = bytearray(4 * PAGE)
    for memory, pages, base in [
        (memoryview(ram), 1, 0),
        (memoryview(ram), 8, 10),
        (memoryview(ram)[1:], 8, 0),
        (memoryview(bytes(ram)), 8, 0),
        (memoryview(ram).cast("I"), 8, 0),
    ]:
        with pytest.raises(ConstraintError):
            AddressSpace("kernel", memory, frames, pages=pages, base=base)
