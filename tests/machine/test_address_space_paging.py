"""Pages of a process without a frame: out, in again by access and by load, wired while loaded; against a bytearray."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.errors import BufferGone, DriverError, ResourceShortage
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import POISON, AddressSpace
from busdma.map import Map
from busdma.segments import ABSENT
from busdma.sync import POSTREAD, PREREAD, Direction
from core.small_machine import PAGE, SmallMachine


@pytest.fixture
def small() -> SmallMachine:
    return SmallMachine()


class Process:
    """A process on 32 page frames."""

    def __init__(self, pages: int = 32) -> None:
        self.ram = memoryview(bytearray(pages * PAGE))
        self.frames = FrameAllocator(0, pages, seed=3)
        self.space = AddressSpace("cp", self.ram, self.frames, pages=128, owner="process")

    def paging(self) -> tuple[int, int, int]:
        """Resident, paged out, page-ins."""
        found = self.space.statistics()
        return found["resident"], found["paged_out"], found["page_ins"]


def entries(buffer: LinearBuffer) -> list[int]:
    first, last = buffer.start // PAGE, (buffer.start + buffer.length - 1) // PAGE
    return list(buffer.space.page_table[first : last + 1])


def test_out_and_in_again() -> None:
    process = Process()
    buffer = process.space.allocate(3 * PAGE, offset=5)
    text = bytes(n % 241 for n in range(3 * PAGE))
    buffer.write(text)
    held = entries(buffer)
    assert process.space.page_out() == 4
    assert entries(buffer) == [ABSENT] * 4
    assert process.paging() == (0, 4, 0)
    assert process.frames.statistics()["free"] == 32
    assert all(process.ram[frame : frame + PAGE] == bytes((POISON,)) * PAGE for frame in held)
    assert buffer.read(PAGE, 10) == text[PAGE : PAGE + 10]  # one page, for ten bytes
    assert process.paging() == (1, 3, 1)
    buffer[2 * PAGE :].write(b"new")
    assert buffer.read() == text[: 2 * PAGE] + b"new" + text[2 * PAGE + 3 :]
    assert process.paging() == (4, 0, 4)


def test_so_many_pages_from_an_address_on() -> None:
    process = Process()
    first, second = process.space.allocate(3 * PAGE), process.space.allocate(3 * PAGE)
    assert process.space.page_out(2, address=first.address + 2 * PAGE + 17) == 2
    assert [entry == ABSENT for entry in entries(first) + entries(second)] == [False, False, True, True, False, False]
    assert process.space.page_out(0) == 0
    assert process.space.page_out(100) == 4
    assert process.space.page_out() == 0


def test_page_in_brings_back_what_it_is_asked_for() -> None:
    process = Process()
    buffer = process.space.allocate(4 * PAGE)
    process.space.page_out()
    assert process.space.page_in(buffer.start + PAGE - 1, 2) == 2
    assert process.space.page_in(buffer.start, 2 * PAGE) == 0
    assert process.space.page_in(buffer.start, 0) == 0
    assert process.paging() == (2, 2, 2)


def test_all_or_no_pages_come_back() -> None:
    process = Process(4)
    buffer = process.space.allocate(3 * PAGE)
    buffer.write(b"x" * 3 * PAGE)
    process.space.page_out()
    held = process.frames.allocate(2, "kernel")
    with pytest.raises(ResourceShortage, match="frames are free"):
        process.space.page_in(buffer.start, 3 * PAGE)
    assert process.paging() == (0, 3, 0)
    process.frames.free(held)
    assert buffer.read() == b"x" * 3 * PAGE


def test_the_kernel_and_chosen_frames_are_wired() -> None:
    process = Process()
    process.space.allocate(2 * PAGE, contiguous=True)
    process.space.allocate(2 * PAGE, within=AddressSet.span(0, 16 * PAGE - 1))
    assert process.space.page_out() == 0
    kernel = AddressSpace("kernel", process.ram, process.frames, pages=16)
    with pytest.raises(DriverError, match="is the kernel's, and never paged out"):
        kernel.page_out()


def test_released_while_paged_out() -> None:
    process = Process()
    buffer = process.space.allocate(3 * PAGE)
    process.space.page_out(2)
    buffer.free()
    assert process.paging() == (0, 0, 0)
    assert process.frames.statistics()["free"] == 32
    with pytest.raises(BufferGone, match="released"):
        buffer.read()
    again = process.space.allocate(3 * PAGE)
    assert again.read() == bytes(3 * PAGE)  # nothing of the old contents comes back
    process.space.page_out()
    process.space.destroy()
    assert process.paging() == (0, 0, 0)


def test_a_load_brings_pages_back_and_wires_them(small: SmallMachine) -> None:
    cp = small.space("cp")
    buffer = cp.allocate(4 * PAGE)
    buffer.write(b"z" * 4 * PAGE)
    assert cp.page_out() == 4
    map = small.root.create_map(name="disk")
    map.load_nowait(buffer[PAGE : 3 * PAGE], Direction.BOTH)
    assert cp.statistics()["page_ins"] == 2
    assert small.peek(map.segments) == b"z" * 2 * PAGE
    assert cp.page_out() == 0  # two are out, two are wired
    map.sync(PREREAD)
    small.poke(map.segments, b"device")
    map.sync(POSTREAD)
    map.unload()
    assert cp.page_out() == 2
    assert buffer.read(PAGE, 8) == b"devicezz"


def test_part_of_a_page_wires_the_page(small: SmallMachine) -> None:
    cp = small.space("cp")
    buffer = cp.allocate(2 * PAGE)
    map = small.root.create_map()
    map.load_nowait(buffer[PAGE + 5 : PAGE + 6], Direction.TO_DEVICE)
    assert cp.page_out() == 1
    assert entries(buffer)[0] == ABSENT != entries(buffer)[1]
    map.unload()
    assert cp.page_out() == 1


def test_a_load_without_frames_for_its_pages(small: SmallMachine) -> None:
    cp = small.space("cp")
    buffer = cp.allocate(3 * PAGE)
    cp.page_out()
    free = small.frames.statistics()["free"]
    held = small.frames.allocate(free - 1, "kernel")
    map = small.root.create_map()
    with pytest.raises(ResourceShortage):
        map.load_nowait(buffer, Direction.TO_DEVICE)
    small.frames.free(held)
    map.load_nowait(buffer, Direction.TO_DEVICE)
    map.unload()


class PagingAgainstModel(RuleBasedStateMachine):
    """A process with little memory: whatever is paged out and loaded meanwhile, every byte is what was written last."""

    def __init__(self) -> None:
        super().__init__()
        self.small = SmallMachine(pages=24, low=20)
        self.space = self.small.space("cp")
        self.live: list[tuple[LinearBuffer, bytearray]] = []
        self.loaded: list[tuple[Map, LinearBuffer]] = []

    def chosen(self, data: st.DataObject) -> tuple[LinearBuffer, memoryview]:
        buffer, model = data.draw(st.sampled_from(self.live))
        first = data.draw(st.integers(0, len(model) - 1))
        end = data.draw(st.integers(first + 1, len(model)))
        return buffer[first:end], memoryview(model)[first:end]

    @rule(length=st.integers(1, 5 * PAGE), offset=st.integers(0, PAGE - 1))
    def allocate(self, length: int, offset: int) -> None:
        try:
            self.live.append((self.space.allocate(length, offset=offset), bytearray(length)))
        except ResourceShortage:
            assert self.small.frames.statistics()["free"] < 6

    @precondition(lambda self: self.live)
    @rule(data=st.data(), byte=st.integers(0, 255))
    def write(self, data: st.DataObject, byte: int) -> None:
        buffer, shadow = self.chosen(data)
        if self.fits(buffer):
            buffer.fill(byte)
            shadow[:] = bytes((byte,)) * len(shadow)

    def fits(self, buffer: LinearBuffer) -> bool:
        missing = entries(buffer).count(ABSENT)
        return missing <= self.small.frames.statistics()["free"]

    @rule(data=st.data(), pages=st.none() | st.integers(0, 6))
    def page_out(self, data: st.DataObject, pages: int | None) -> None:
        before = self.space.statistics()
        address = self.space.base + data.draw(st.integers(0, 40 * PAGE)) if data.draw(st.booleans()) else None
        taken = self.space.page_out(pages, address=address)
        after = self.space.statistics()
        assert (after["resident"], after["paged_out"]) == (before["resident"] - taken, before["paged_out"] + taken)
        if pages is not None:
            assert taken <= pages

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        buffer, shadow = self.chosen(data)
        map = self.small.root.create_map()
        try:
            map.load_nowait(buffer, Direction.TO_DEVICE)
        except ResourceShortage:
            assert not self.fits(buffer)
            return
        assert self.small.peek(map.segments) == shadow
        self.loaded.append((map, buffer))

    @precondition(lambda self: self.loaded)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.loaded))
        self.loaded.remove(entry)
        entry[0].unload()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.live))
        if any(buffer.allocation is entry[0].allocation for _, buffer in self.loaded):
            with pytest.raises(DriverError, match="has it loaded"):
                entry[0].free()
        else:
            self.live.remove(entry)
            entry[0].free()

    @invariant()
    def nothing_is_lost(self) -> None:
        counts = self.space.statistics()
        pages = sum(len(entries(buffer)) for buffer, _ in self.live)
        assert counts["resident"] + counts["paged_out"] == pages
        assert self.small.frames.statistics()["by_owner"].get("process", 0) == counts["resident"]
        for _, buffer in self.loaded:
            assert ABSENT not in entries(buffer)
        for buffer, model in self.live:
            if ABSENT not in entries(buffer):
                assert buffer.read() == model


PagingAgainstModel.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True
)
TestPagingAgainstModel = PagingAgainstModel.TestCase
