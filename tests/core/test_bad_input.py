"""Buffers that cannot be: each is refused with what is wrong and what to do, by every route; nothing stays held."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable

import pytest

from busdma.addresses import MAX_ADDRESS, PhysicalAddress
from busdma.buffers import Buffer
from busdma.errors import BufferGone, DriverError, MappingRefused, TooManySegments
from busdma.lifecycle import State
from busdma.lists import BufferList
from busdma.mbuf import MbufPool
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.paths import Window
from busdma.requests import Bio, Ccb
from busdma.segments import Frames
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.uio import Uio
from busdma.unmapped import PageArray, PhysicalList
from core.paths_machine import MAPPED, Behind, check_limits, contents, refill
from core.small_machine import PAGE, Pages, SmallMachine

WAYS = [("direct",), ("mapped",), ("direct", "mapped")]


def mbuf_cycle(machine: SmallMachine) -> object:
    """An mbuf chain whose last leads back into it."""
    chain = MbufPool(machine.kernel).chain_of(bytes(5000))
    first, *_, last = chain
    last.next = first.next
    return chain


def ccb_cycle(machine: SmallMachine) -> object:
    """A Ccb that refers to itself, in a list, by a bio."""
    ccb = Ccb(None)
    ccb.data = [machine.low(4), Bio(ccb, Direction.BOTH)]
    return ccb


def list_cycle(machine: SmallMachine) -> object:
    """A list that contains itself."""
    mine: list[object] = [machine.low(4)]
    mine.append((mine,))
    return mine


def missing_frame(machine: SmallMachine) -> object:
    """A page array with a page frame that the machine does not have."""
    return PageArray(machine.domain, [3 * PAGE, 5 * PAGE, 5000 * PAGE], 100, 2 * PAGE)


def broken_table(machine: SmallMachine) -> object:
    """A list with somebody else's buffer, whose page table names no memory."""
    return BufferList([machine.low(10), Pages([5000 * PAGE], 0, 10)])


def wrapping_list(machine: SmallMachine) -> object:
    """A physical range that goes on at address 0."""
    return PhysicalList(machine.domain, [(PhysicalAddress(0), 10), (PhysicalAddress(MAX_ADDRESS - 9), 20)])


def wrapping_uio(machine: SmallMachine) -> object:
    """The same, of a process."""
    process = machine.space("cp")
    buffer = process.allocate(PAGE)
    return Uio(process, [(buffer.address, 10), (MAX_ADDRESS - 9, 20)])


def hole(machine: SmallMachine) -> object:
    """Two buffers of a process, and what lies between them."""
    process = machine.space("cp")
    first, second = process.allocate(PAGE), process.allocate(PAGE)
    return Uio(process, [(first.address, second.address + 1 - first.address)])


def late_hole(machine: SmallMachine) -> object:
    """What was mapped when the list was made."""
    buffer = machine.space("cp").allocate(3 * PAGE)
    found = BufferList([machine.low(10), buffer[PAGE : 2 * PAGE]])
    buffer.free()
    return found


def torn_table(machine: SmallMachine) -> object:
    """A buffer of which one page is in no page frame."""
    return Pages([3 * PAGE, (1 << 64) - 1], 0, 2 * PAGE)


def no_right(machine: SmallMachine) -> object:
    """Memory that the process may only read."""
    process = machine.space("cp")
    shown = machine.root.alloc(100).mmap(process, writable=False)
    return Uio(process, [(shown.address, 100)])


def foreign(machine: SmallMachine) -> object:
    """Memory of the kernel of another machine."""
    return SmallMachine().kernel.allocate(100)


def foreign_element(machine: SmallMachine) -> object:
    """A list with a few bytes of another machine's process in it."""
    process = SmallMachine().space("cp")
    return BufferList([machine.low(10), *Uio(process, [(process.allocate(100).address, 100)]).elements()])


def foreign_memory(machine: SmallMachine) -> object:
    """Another machine's DMA-safe memory."""
    return SmallMachine().root.alloc(100)


def foreign_pages(machine: SmallMachine) -> object:
    """Another machine's pages, mapped nowhere."""
    return PageArray.allocate(SmallMachine().domain, 100)


CASES: list[tuple[Callable[[SmallMachine], object], type[DriverError], str]] = [
    (mbuf_cycle, DriverError, r"a cycle: .* is in the chain twice; end the chain with next = None"),
    (ccb_cycle, DriverError, "it refers to itself, or more than 16 deep; let its data lead to memory"),
    (list_cycle, DriverError, "it refers to itself, or more than 16 deep"),
    (missing_frame, DriverError, "no page frame 0x1388000: give addresses of its page frames"),
    (broken_table, DriverError, "no page frame 0x1388000; give page frames of its own"),
    (wrapping_list, DriverError, r"\(0xfffffffffffffff6, 20\) wraps around the address space: give ranges of memory"),
    (wrapping_uio, DriverError, "20 bytes at 0xfffffffffffffff6 of space 'cp' wrap around, .*give a range"),
    (hole, BufferGone, "nothing is mapped at .*, 4096 bytes into it; give a range within one allocation"),
    (late_hole, BufferGone, "it was released; allocate another"),
    (torn_table, BufferGone, "its page 1 is not mapped; give memory that is"),
    (foreign, DriverError, "it is memory of another machine; allocate it on the one of the tag"),
    (foreign_element, DriverError, "it is memory of another machine; allocate it on the one of the tag"),
    (foreign_memory, DriverError, "it is memory of another machine; allocate it on the one of the tag"),
    (foreign_pages, DriverError, "it is memory of another machine; allocate it on the one of the tag"),
    (no_right, DriverError, "is read-only there: make the uio with writable=False and load it to the device"),
]


@pytest.mark.parametrize("windows", WAYS, ids="+".join)
@pytest.mark.parametrize(("make", "error", "words"), CASES, ids=[case[0].__name__ for case in CASES])
def test_bad_buffers(
    windows: tuple[str, ...], make: Callable[[SmallMachine], object], error: type[DriverError], words: str
) -> None:
    machine = Behind(*windows)
    map = machine.bus.create_map()
    with pytest.raises(error, match=words) as caught:
        map.load_nowait(make(machine))
    assert type(caught.value) is error
    heard: list[object] = []
    with pytest.raises(error, match=words):
        machine.runtime.run(map.load, make(machine))
    with pytest.raises(error, match=words):
        map.load_callback(make(machine), lambda segments, error: heard.append(error))
    with pytest.raises(error, match=words):
        machine.bus.explain(make(machine))
    assert (map.state, map.buffer, len(map.segments), heard) == (State.IDLE, None, 0, [])
    assert machine.pool.active == sum(zone.active for zone in machine.domain.zones) == 0
    assert machine.domain.queue.waiters() == []
    assert map.load_nowait(machine.low(10))


def test_a_boundary_that_no_window_can_hold() -> None:
    """Bus pages 2053 to 2058, of which a line that must not be crossed cuts three off on either side."""
    machine = Behind("mapped")
    first = MAPPED // PAGE + 5
    pool = IovaPool("narrow", machine.domain.queue, machine.tables, IovaAllocator([(first, first + 5)]))
    bus = machine.root.bridge("odd", Window(MAPPED, 64 * PAGE, MAPPED, pool))
    card = bus.derive("card", boundary=8 * PAGE)
    map = card.create_map()
    map.load_nowait(machine.low(3 * PAGE))
    map.unload()
    whole = machine.low(4 * PAGE)
    for buffer in (whole, BufferList([whole[:PAGE], whole[PAGE:]])):
        words = (
            r"remap: 4 bus pages of narrow needed, adjacent and within alignment 1, boundary 8 .*"
            r"it may never hold so much: raise its limit, or split the transfer"
        )
        with pytest.raises(MappingRefused, match=words):
            map.load_blocking(buffer)
        assert card.explain(buffer).verdict.startswith("refused: remap: 4 bus pages of narrow needed")
    assert len(bus.create_map().load_nowait(whole)) == 1
    assert pool.active == 4


def thousand(machine: SmallMachine) -> BufferList:
    """A thousand elements of 48 bytes, none adjacent to the next."""
    kernel = machine.kernel.allocate(1000 * 64)
    return BufferList(kernel[at * 64 : at * 64 + 48] for at in range(1000))


def isa() -> tuple[SmallMachine, Tag]:
    """A bus that reaches half of memory."""
    machine = SmallMachine()
    return machine, machine.isa


def remap() -> tuple[SmallMachine, Tag]:
    """A bus with nothing but a translator."""
    machine = Behind("mapped")
    return machine, machine.bus


def window() -> tuple[SmallMachine, Tag]:
    """A bus with nothing but a direct-mapped window."""
    machine = Behind("direct")
    return machine, machine.bus


@pytest.mark.parametrize("make", [isa, window, remap])
@pytest.mark.parametrize("nsegments", [1, 17, 999])
def test_a_thousand_elements_become_as_many_segments_as_there_may_be(
    make: Callable[[], tuple[SmallMachine, Tag]], nsegments: int
) -> None:
    machine, bus = make()
    tag, buffer = bus.derive("device", nsegments=nsegments), thousand(machine)
    refill(buffer.elements(), random.Random(nsegments).randbytes(48000))
    said = tag.explain(buffer)
    map = tag.create_map()
    segments = map.load_nowait(buffer)
    check_limits(segments, tag.constraints, 48000)
    assert machine.zone.active == said.bounce_pages
    assert nsegments > 1 or said.bounce_pages == 12  # 48,000 bytes, and no page between them
    map.sync(Direction.BOTH.pre)
    seen = machine.device_reads(segments) if isinstance(machine, Behind) else machine.peek(segments)
    assert seen == contents(buffer)
    map.unload()
    assert machine.zone.active == 0


@pytest.mark.parametrize("make", [isa, window, remap])
def test_and_are_refused_with_the_reason_where_they_cannot(make: Callable[[], tuple[SmallMachine, Tag]]) -> None:
    machine, bus = make()
    buffer = thousand(machine)
    cut = bus.derive("cut", nsegments=46, maxsegsz=1024)
    words = r"even joined in one contiguous run it has more than 46 segments \(nsegments of tag 'cut', 1024 bytes"
    with pytest.raises(TooManySegments, match=words):
        cut.create_map().load_nowait(buffer)
    one_more = bus.derive("one more", nsegments=47, maxsegsz=1024).create_map()
    assert len(one_more.load_nowait(buffer)) == 47
    one_more.unload()
    assert machine.zone.active == 0


def test_or_where_there_is_too_little_to_join_them_in() -> None:
    enough, less = Behind("direct", limit=12), Behind("direct", limit=11)
    assert len(enough.bus.derive("device", nsegments=17).create_map().load_nowait(thousand(enough))) <= 17
    why = r"pages of bounce zone 0 needed.*raise its limit \(the machine's option bounce=13\), or split"
    with pytest.raises(MappingRefused, match=why):
        less.bus.derive("device", nsegments=17).create_map().load_nowait(thousand(less))
    assert less.zone.active == 0


def test_a_table_that_ends_too_early() -> None:
    class Short(Pages):
        """Longer than its page table."""

        def __init__(self) -> None:
            super().__init__([3 * PAGE], 0, 2 * PAGE)
            self.frames = Frames(array("Q", [3 * PAGE]))

    for windows in WAYS:
        machine = Behind(*windows)
        broken: list[Buffer | list[Buffer]] = [Short(), [Short()]]
        for buffer in broken:
            with pytest.raises(BufferGone, match="its page 1 is not mapped; give memory that is"):
                machine.bus.create_map().load_nowait(buffer)
