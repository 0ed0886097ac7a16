"""Page arrays and physical lists: memory that nobody has mapped."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import MAX_ADDRESS, PhysicalAddress
from busdma.domain import DmaDomain
from busdma.errors import BufferGone, BusdmaError, DriverError, ResourceShortage
from busdma.machine.frames import FrameAllocator
from busdma.runtime import by_name
from busdma.segments import ABSENT, FOREIGN, Frames
from busdma.sync import Direction
from busdma.unmapped import OWNER, PageArray, PhysicalList
from core.paths_machine import Behind, contents
from core.small_machine import PAGE, SmallMachine


def test_given_frames_are_what_a_device_meets(small: SmallMachine) -> None:
    kernel = small.low(3 * PAGE)
    table = small.kernel.page_table
    first = kernel.start // PAGE
    frames = [table[first + 2], table[first]]
    pages = PageArray(small.domain, frames, 100, PAGE)
    map = small.root.create_map()
    assert next(address for address, _ in map.load_nowait(pages)) == frames[0] + 100
    small.poke(map.segments, b"unmapped", PAGE - 104)
    assert kernel.read(2 * PAGE + PAGE - 4, 4) == b"unma"
    assert kernel.read(0, 4) == b"pped"
    assert pages.read(PAGE - 104, 8) == b"unmapped"


@given(st.integers(0, PAGE - 1), st.integers(1, 3 * PAGE), st.booleans(), st.data())
def test_it_reads_and_writes_as_memory(start: int, length: int, contiguous: bool, data: st.DataObject) -> None:
    small = SmallMachine()
    pages = PageArray.allocate(small.domain, length, start=start, contiguous=contiguous)
    model = bytearray(length)
    assert pages.read() == model
    for _ in range(3):
        lo = data.draw(st.integers(0, length))
        piece = random.Random(lo).randbytes(data.draw(st.integers(0, length - lo)))
        pages.write(piece, lo)
        model[lo : lo + len(piece)] = piece
    lo, hi = sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length))))
    assert pages.read() == model
    assert pages[lo:hi].read() == model[lo:hi]
    for map in (small.isa.create_map(), small.root.create_map()):
        segments = map.load_nowait(pages, Direction.TO_DEVICE)
        map.sync(Direction.TO_DEVICE.pre)
        assert small.peek(segments) == model
        map.unload()
    pages.free()
    assert small.frames.statistics()["by_owner"].get(OWNER, 0) == 0


@pytest.mark.parametrize("frame", [512 * PAGE, 513 * PAGE, 7, PAGE + 1, MAX_ADDRESS & -PAGE, -PAGE, ABSENT, FOREIGN])
def test_a_frame_that_does_not_exist(small: SmallMachine, frame: int) -> None:
    with pytest.raises(DriverError, match="this machine has no page frame"):
        PageArray(small.domain, [0, frame], 0, 10)


def test_a_frame_below_the_first() -> None:
    frames = FrameAllocator(64 * PAGE, 8)
    domain = DmaDomain(memoryview(bytearray(8 * PAGE)), frames, by_name("virtual"))
    with pytest.raises(DriverError, match="no page frame 0x0"):
        PageArray(domain, [0], 0, 1)
    pages = PageArray(domain, [71 * PAGE], 8, 8)
    pages.write(b"the last")
    assert bytes(domain.memory[7 * PAGE + 8 : 7 * PAGE + 16]) == b"the last"


@pytest.mark.parametrize(("start", "length"), [(0, 2 * PAGE + 1), (1, 2 * PAGE), (-1, 5), (0, -1), (3 * PAGE, 0)])
def test_what_does_not_fit_its_pages(small: SmallMachine, start: int, length: int) -> None:
    with pytest.raises(DriverError, match="they do not fit"):
        PageArray(small.domain, [0, PAGE], start, length)


def test_nothing_outside_it(small: SmallMachine) -> None:
    pages = PageArray.allocate(small.domain, 100)
    for offset, length in ((0, 101), (-1, 1), (100, 1)):
        with pytest.raises(DriverError, match="are not inside it"):
            pages.read(offset, length)
    with pytest.raises(DriverError, match="step 1"):
        pages[::2]
    with pytest.raises(DriverError, match="give at least one"):
        PageArray.allocate(small.domain, 0)
    with pytest.raises(DriverError, match="it is empty"):
        small.root.create_map().load_nowait(pages[5:5])


def test_it_is_freed_once_and_whole_and_not_while_it_is_loaded(small: SmallMachine) -> None:
    pages = PageArray.allocate(small.domain, 2 * PAGE)
    view = pages[10:20]
    map = small.isa.create_map()
    for buffer in (view, [pages[:5], view]):
        map.load_nowait(buffer)
        with pytest.raises(DriverError, match=r"cannot be freed: map '1' of tag pc/isa .loaded. has it loaded"):
            pages.free()
        map.unload()
    with pytest.raises(DriverError, match="free the whole"):
        view.free()
    with pytest.raises(DriverError, match="was not allocated as such"):
        PageArray(small.domain, [0], 0, 1).free()
    pages.free()
    with pytest.raises(BufferGone, match="was freed before"):
        pages.free()
    for use in (view.read, lambda: map.load_nowait(view), lambda: map.load_nowait([view])):
        with pytest.raises(BufferGone, match="it was freed"):
            use()
    assert "gone" in repr(view)


def test_a_machine_without_memory(small: SmallMachine) -> None:
    with pytest.raises(ResourceShortage):
        PageArray.allocate(small.domain, 600 * PAGE)


# -- physical lists --------------------------------------------------------------------------------------------------


def test_ranges_in_their_order() -> None:
    machine = Behind("direct", "mapped")
    first = machine.frames.allocate_run(4, "grabber")
    machine.memory[first : first + 4 * PAGE] = data = random.Random(1).randbytes(4 * PAGE)
    ranges = [(first + 2 * PAGE + 5, PAGE), (first, 0), (first + 100, PAGE + 300), (first + 100, 8)]
    raw = PhysicalList(machine.domain, [(PhysicalAddress(address), length) for address, length in ranges])
    assert raw.describe() == f"a list of 4 physical ranges, {2 * PAGE + 308} bytes"
    wanted = b"".join(data[address - first : address - first + length] for address, length in ranges)
    assert contents(raw) == wanted
    for limits in ({}, {"nsegments": 1}):
        map = machine.bus.derive("card", **limits).create_map()  # type: ignore[arg-type]
        segments = map.load_nowait(raw, Direction.TO_DEVICE)
        map.sync(Direction.TO_DEVICE.pre)
        assert machine.device_reads(segments) == wanted


@pytest.mark.parametrize(
    ("address", "length", "words"),
    [
        (MAX_ADDRESS, 2, "wraps around"),
        (MAX_ADDRESS - PAGE, 2 * PAGE, "wraps around"),
        (1 << 64, 1, "wraps around"),
        (-1, 1, "wraps around"),
        (0, -1, "wraps around"),
        (511 * PAGE, PAGE + 1, "no page frame 0x200000"),
        (512 * PAGE, 1, "no page frame 0x200000"),
        (MAX_ADDRESS, 1, "no page frame"),
        (MAX_ADDRESS - 5 * PAGE, PAGE, "no page frame"),
        (0, 1 << 60, "no page frame"),
    ],
)
def test_ranges_outside_memory(small: SmallMachine, address: int, length: int, words: str) -> None:
    with pytest.raises(DriverError, match=words):
        PhysicalList(small.domain, [(PhysicalAddress(address), length)])


class Broken:
    """A buffer whose page table names what is no memory."""

    host = None
    readonly = False

    def __init__(self, frame: int) -> None:
        self.frames, self.start, self.length = Frames(array("Q", [frame])), 0, 10

    def describe(self) -> str:
        return "a broken buffer"


@pytest.mark.parametrize("frame", [1 << 40, 512 * PAGE])
@pytest.mark.parametrize("windows", ["direct", "mapped"])
def test_a_page_table_that_names_no_memory(frame: int, windows: str) -> None:
    machine = Behind(windows, limit=4)
    map = machine.bus.create_map()
    for buffer in (Broken(frame), [Broken(frame)]):
        with pytest.raises((BusdmaError, ValueError)):
            map.load_nowait(buffer)
            map.sync(Direction.BOTH.pre)
    assert machine.pool.active == 0
