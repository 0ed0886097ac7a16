"""VT-d: domains that keep devices apart, caches that software must invalidate, and faults, by registers and tables."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.iommu.dmar import (
    BAD_CONTEXT,
    BAD_CONTEXT_TABLE,
    BAD_ROOT,
    BAD_TABLE,
    BAD_TYPE,
    BEYOND_WIDTH,
    CAP,
    CCMD,
    FRCD,
    FSTS,
    GCMD,
    GSTS,
    IOTLB,
    IVA,
    NO_CONTEXT,
    NO_READ,
    NO_ROOT,
    NO_WRITE,
    RECORDS,
    RESERVED_BITS,
    RTADDR,
    DmaRemapping,
)
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.dmar import DmarDomain, DmarUnit
from sim.translation_rig import DATA, SIZE, SOURCE, new_bus, tables

PAGE = 4096
READ, WRITE, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BOTH
OTHER = 0x0320  #: bus 3, device 4
FAR = 0x0008  #: bus 0, device 1
IOVA = 0x40_0000_0000 + 77 * PAGE


class Pc:
    """Three devices, of which two have a domain."""

    def __init__(self, enable: bool = True, **unit: int) -> None:
        self.bus = new_bus()
        self.chip = DmaRemapping(self.bus.memory, **unit)
        self.registers = ChipRegisters(self.bus, self.chip)
        self.unit = DmarUnit(self.registers, self.bus.memory, tables())
        self.one = self.bus.add_master("one", self.chip.route("one", SOURCE))
        self.two = self.bus.add_master("two", self.chip.route("two", OTHER))
        self.far = self.bus.add_master("far", self.chip.route("far", FAR))
        self.domain = self.unit.domain("one", SOURCE)
        self.second = self.unit.domain("two", OTHER)
        if enable:
            self.unit.enable()

    def frame(self, number: int, byte: int | None = None) -> int:
        at = DATA + number * PAGE
        if byte is not None:
            self.bus.memory[at : at + PAGE] = bytes([byte]) * PAGE
        return at

    def entry(self, address: int, *entries: int) -> None:
        struct.pack_into(f"<{len(entries)}Q", self.bus.memory, address, *entries)

    def leaf(self, domain: DmarDomain, iova: int) -> tuple[int, int]:
        """(address of the last level's entry, of the one above it)"""
        table, above = domain.table, 0
        for level in (2, 1):
            above = table + (iova >> 12 + 9 * level & 511) * 8
            table = self.unit.read(above) & -PAGE
        return table + (iova >> 12 & 511) * 8, above

    def faults(self) -> list[HardwareFault]:
        found = []
        while (fault := self.unit.take_fault()) is not None:
            found.append(fault)
        return found


def test_until_it_is_enabled_addresses_are_physical() -> None:
    pc = Pc(enable=False)
    pc.frame(1, 7)
    assert pc.far.dma_read(pc.frame(1), 2) == b"\7\7"
    pc.unit.enable()
    assert pc.registers.read32(GSTS) == 0xC000_0000
    assert pc.far.dma_read(pc.frame(1), 2) == b"\xff\xff"
    pc.registers.write32(GCMD, 0)
    assert pc.far.dma_read(pc.frame(1), 2) == b"\7\7"


def test_one_device_does_not_reach_what_another_has_mapped() -> None:
    pc = Pc()
    pc.domain.enter(IOVA, [pc.frame(1, 1)], BOTH)
    pc.second.enter(IOVA + PAGE, [pc.frame(2, 2)], BOTH)
    assert pc.one.dma_read(IOVA, 1) == b"\1"
    assert pc.two.dma_read(IOVA, 1) == b"\xff"
    assert pc.two.dma_read(IOVA + PAGE, 1) == b"\2"
    pc.one.dma_write(IOVA + PAGE, b"x")
    assert pc.bus.memory[pc.frame(2)] == 2
    # the same address leads both to their own
    pc.second.enter(IOVA, [pc.frame(3, 3)], BOTH)
    assert (pc.one.dma_read(IOVA, 1), pc.two.dma_read(IOVA, 1)) == (b"\1", b"\3")
    assert pc.chip.faults.statistics() == {"one": 1, "two": 1}
    assert pc.faults() == [
        HardwareFault(IOVA, False, OTHER, NO_READ),
        HardwareFault(IOVA + PAGE, True, SOURCE, NO_WRITE),
    ]


def test_entries_are_as_the_specification_says() -> None:
    pc = Pc()
    pc.domain.enter(IOVA, [pc.frame(1)], READ)
    pc.domain.enter(IOVA + PAGE, [pc.frame(2)], WRITE)
    memory = pc.bus.memory
    (root,) = struct.unpack_from("<Q", memory, pc.registers.read64(RTADDR) + 3 * 16)
    low, high = struct.unpack_from("<2Q", memory, (root & -PAGE) + 0x18 * 16)
    assert (root & 1, low, high) == (1, pc.domain.table | 1, 1 << 8 | 1)
    leaf, above = pc.leaf(pc.domain, IOVA)
    assert struct.unpack_from("<2Q", memory, leaf) == (pc.frame(1) | 1, pc.frame(2) | 2)
    assert struct.unpack_from("<Q", memory, above)[0] & 0xFFF == 3


def test_interrupts_are_no_memory() -> None:
    pc = Pc()
    with pytest.raises(DriverError, match="whole pages"):
        pc.domain.enter(0xFEE0_0000, [pc.frame(1)], BOTH)
    with pytest.raises(DriverError, match="whole pages"):
        pc.domain.enter(0xFEDF_F000, [pc.frame(1), pc.frame(2)], BOTH)
    pc.domain.enter(0xFEDF_F000, [pc.frame(1, 1)], BOTH)
    assert pc.one.dma_read(0xFEDF_FFFF, 2) == b"\1\xff"
    assert pc.chip.faults.recent[-1].reason == "an interrupt request, not memory"
    assert pc.faults() == []


def test_tables_grow_as_needed_and_a_refused_one_enters_nothing() -> None:
    pc = Pc()
    at = 511 * PAGE
    pc.domain.enter(at, [pc.frame(1, 1)], BOTH)
    used = pc.unit.tables
    pc.domain.enter(at, [pc.frame(1, 1)], BOTH)
    assert pc.unit.tables == used

    def none_left() -> int:
        raise MemoryError

    pc.unit._allocate = none_left
    with pytest.raises(MemoryError):
        pc.domain.enter(at, [pc.frame(2), pc.frame(3)], BOTH)
    assert pc.one.dma_read(at, 1) == b"\1"
    pc.domain.clear(at, 1000)  # where there are no tables there is nothing to clear
    pc.domain.flush(at, 1000)
    assert pc.one.dma_read(at, 1) == b"\xff"


def test_tables_can_be_prepared() -> None:
    pc = Pc()
    used = pc.unit.tables
    pc.domain.prepare(512 * PAGE, 1025)
    assert pc.unit.tables == used + 1 + 3  # one of the level above
    assert pc.one.dma_read(512 * PAGE, 1) == b"\xff"
    pc.domain.enter(1536 * PAGE, [pc.frame(1, 1)], BOTH)
    pc.domain.enter(1000 * PAGE, [pc.frame(1, 1)] * 200, BOTH)
    assert pc.unit.tables == used + 4
    with pytest.raises(DriverError, match="whole pages"):
        pc.domain.prepare(0xFEE0_0000, 1)


@pytest.mark.parametrize(
    ("first", "count", "gone"),
    [(8, 1, {8}), (8, 2, {8, 9}), (9, 2, {8, 9, 10, 11}), (7, 2, set(range(16))), (0, 16, set(range(16)))],
)
def test_a_flush_is_the_smallest_block_of_pages(first: int, count: int, gone: set[int]) -> None:
    pc = Pc()
    base = 0x10_0000_0000
    pc.domain.enter(base, [pc.frame(1, 1)] * 16, BOTH)
    pc.second.enter(base, [pc.frame(2, 2)] * 16, BOTH)
    pc.one.dma_read(base, 16 * PAGE)
    pc.two.dma_read(base, 16 * PAGE)
    pc.domain.clear(base, 16)
    pc.second.clear(base, 16)
    pc.domain.flush(base + first * PAGE, count)
    assert {n for n in range(16) if pc.one.dma_read(base + n * PAGE, 1) == b"\xff"} == gone
    assert pc.two.dma_read(base, 16 * PAGE) == b"\2" * 16 * PAGE


def test_more_than_the_unit_can_flush_is_a_domain() -> None:
    pc = Pc(entries=1024)
    pc.domain.enter(0, [pc.frame(1, 1)] * 700, BOTH)
    pc.second.enter(0, [pc.frame(2, 2)], BOTH)
    pc.one.dma_read(0, 700 * PAGE)
    pc.two.dma_read(0, 1)
    pc.domain.clear(0, 700)
    pc.second.clear(0, 1)
    pc.domain.flush(0, 513)
    assert pc.registers.read64(IOTLB) >> 60 & 3 == 2  # asked for
    assert pc.registers.read64(IOTLB) >> 57 & 3 == 2  # done
    assert pc.one.dma_read(699 * PAGE, 1) == b"\xff"
    assert pc.two.dma_read(0, 1) == b"\2"


@pytest.mark.parametrize(
    ("command", "mask", "actual", "left"),
    [
        (1 << 60, 0, 1, set()),
        (2 << 60 | 1 << 32, 0, 2, {"two"}),
        (3 << 60 | 1 << 32, 0, 3, {"one's second", "two"}),
        (3 << 60 | 1 << 32, 1, 3, {"two"}),
        (3 << 60 | 1 << 32, 10, 2, {"two"}),
        (3 << 60 | 9 << 32, 0, 3, {"one", "one's second", "two"}),
        (0, 0, 1, set()),
    ],
)
def test_invalidating_by_register(command: int, mask: int, actual: int, left: set[str]) -> None:
    pc = Pc()
    at = 0x10_0000_0000
    pc.domain.enter(at, [pc.frame(1, 1)] * 2, BOTH)
    pc.second.enter(at, [pc.frame(2, 2)], BOTH)
    pc.one.dma_read(at, 2 * PAGE)
    pc.two.dma_read(at, 1)
    pc.domain.clear(at, 2)
    pc.second.clear(at, 1)
    # by halves, the upper one last
    pc.registers.write32(IVA, (at | mask) & 0xFFFF_FFFF)
    pc.registers.write32(IVA + 4, at >> 32)
    pc.registers.write64(IOTLB, command)
    assert pc.one.dma_read(at, 1) == b"\1"
    pc.registers.write32(IOTLB + 4, (command | 1 << 63) >> 32)
    assert pc.registers.read64(IOTLB) >> 63 == 0
    assert pc.registers.read64(IOTLB) >> 57 & 3 == actual
    stale = {
        "one": pc.one.dma_read(at, 1),
        "one's second": pc.one.dma_read(at + PAGE, 1),
        "two": pc.two.dma_read(at, 1),
    }
    assert {name for name, byte in stale.items() if byte != b"\xff"} == left


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (1 << 61, set()),
        (2 << 61 | 2, {"one"}),
        (3 << 61 | OTHER << 16, {"one"}),
        (3 << 61 | (OTHER | 7) << 16, {"one", "two"}),
        (3 << 61 | (OTHER | 7) << 16 | 3 << 32, {"one"}),
    ],
)
def test_contexts_are_cached_too(command: int, left: set[str]) -> None:
    pc = Pc()
    for domain, master, number in ((pc.domain, pc.one, 1), (pc.second, pc.two, 2)):
        domain.enter(IOVA, [pc.frame(number, number)], BOTH)
        assert master.dma_read(IOVA, 1) == bytes([number])
    (root,) = struct.unpack_from("<Q", pc.bus.memory, pc.registers.read64(RTADDR) + 3 * 16)
    pc.entry((root & -PAGE) + 0x18 * 16, 0, 0)
    pc.entry((root & -PAGE) + 0x20 * 16, 0, 0)
    assert (pc.one.dma_read(IOVA, 1), pc.two.dma_read(IOVA, 1)) == (b"\1", b"\2")
    pc.registers.write64(CCMD, command | 1 << 63)
    assert pc.registers.read64(CCMD) >> 63 == 0
    reached = {"one": pc.one.dma_read(IOVA, 1), "two": pc.two.dma_read(IOVA, 1)}
    assert {name for name, byte in reached.items() if byte != b"\xff"} == left


def test_a_new_root_table_counts_when_it_is_set() -> None:
    pc = Pc()
    pc.domain.enter(IOVA, [pc.frame(1, 1)], BOTH)
    pc.registers.write64(RTADDR, pc.frame(5))
    pc.unit.flush_contexts()
    assert pc.one.dma_read(IOVA, 1) == b"\1"
    pc.registers.write32(GCMD, 0xC000_0000)
    pc.unit.flush_contexts()
    assert pc.one.dma_read(IOVA, 1) == b"\xff"
    assert pc.faults()[0].code == NO_ROOT


def _no_root_table(pc: Pc) -> None:
    pc.registers.write64(RTADDR, SIZE)
    pc.registers.write32(GCMD, 0xC000_0000)


def _context(low: int, high: int) -> Callable[[Pc], None]:
    def change(pc: Pc) -> None:
        root = pc.unit.read(pc.registers.read64(RTADDR) + 3 * 16) & -PAGE
        pc.entry(root + 0x18 * 16, low, high)

    return change


def _context_table(pc: Pc) -> None:
    pc.entry(pc.registers.read64(RTADDR) + 3 * 16, SIZE | 1)


def _leaf(change: int) -> Callable[[Pc], None]:
    return lambda pc: pc.entry(pc.leaf(pc.domain, IOVA)[0], pc.frame(1) | change)


def _above(entry: int) -> Callable[[Pc], None]:
    return lambda pc: pc.entry(pc.leaf(pc.domain, IOVA)[1], entry)


@pytest.mark.parametrize(
    ("change", "write", "code"),
    [
        (_no_root_table, False, BAD_ROOT),
        (_context_table, True, BAD_CONTEXT_TABLE),
        (_context(0, 0), False, NO_CONTEXT),
        (_context(1, 1 << 8 | 5), False, BAD_CONTEXT),
        (_context(1 | 2 << 2, 1 << 8 | 1), False, BAD_TYPE),
        (_context(SIZE | 1, 1 << 8 | 1), True, BAD_TABLE),
        (_leaf(1), True, NO_WRITE),
        (_leaf(2), False, NO_READ),
        (_leaf(0), True, NO_WRITE),
        (_above(0x83), False, RESERVED_BITS),
        (_above(0), True, NO_WRITE),
        (_above(SIZE | 3), True, BAD_TABLE),
    ],
)
def test_faults_are_recorded_with_their_reason(change: Callable[[Pc], None], write: bool, code: int) -> None:
    pc = Pc()
    pc.domain.enter(IOVA, [pc.frame(1, 1)], BOTH)
    change(pc)
    pc.unit.flush_contexts()
    if write:
        pc.one.dma_write(IOVA + 5, b"x")
    else:
        assert pc.one.dma_read(IOVA + 5, 1) == b"\xff"
    assert pc.bus.memory[pc.frame(1) + 5] == 1
    assert pc.faults() == [HardwareFault(IOVA, write, SOURCE, code)]
    assert pc.chip.faults.recent[-1].address == IOVA + 5


def test_rights_must_be_there_on_every_level() -> None:
    pc = Pc()
    pc.domain.enter(IOVA, [pc.frame(1, 1)], BOTH)
    above = pc.leaf(pc.domain, IOVA)[1]
    pc.entry(above, pc.unit.read(above) & ~2)
    assert pc.one.dma_read(IOVA, 1) == b"\1"
    pc.one.dma_write(IOVA, b"x")
    assert pc.bus.memory[pc.frame(1)] == 1


def test_addresses_beyond_the_width_are_faults() -> None:
    pc = Pc()
    assert pc.domain.window == AddressSet.span(0, (1 << 39) - 1) - AddressSet.span(0xFEE0_0000, 0xFEEF_FFFF)
    assert pc.one.dma_read(1 << 39, 1) == b"\xff"
    assert pc.faults() == [HardwareFault(1 << 39, False, SOURCE, BEYOND_WIDTH)]


def test_full_records_are_not_overwritten() -> None:
    pc = Pc()
    for n in range(RECORDS + 2):
        pc.one.dma_read(IOVA + n * PAGE, 1)
    assert pc.registers.read32(FSTS) & 3 == 3
    assert [fault.address for fault in pc.faults()] == [IOVA + n * PAGE for n in range(RECORDS)]
    assert pc.registers.read32(FSTS) == 0
    pc.two.dma_write(IOVA, b"x")
    assert pc.faults() == [HardwareFault(IOVA, True, OTHER, NO_WRITE)]
    assert len(pc.chip.faults.recent) == RECORDS + 3


def test_the_unit_says_whether_there_is_a_fault() -> None:
    pc = Pc()
    assert not pc.unit.pending()
    for n in range(RECORDS + 1):
        pc.one.dma_read(IOVA + n * PAGE, 1)
        assert pc.unit.pending()
    for _ in range(RECORDS):
        assert pc.unit.pending()
        assert pc.unit.take_fault() is not None
    assert pc.unit.pending()  # that some were lost
    assert pc.unit.take_fault() is None
    assert not pc.unit.pending()


@given(st.lists(st.sampled_from(["fault", "take"]), max_size=30))
def test_records_are_taken_in_order(steps: list[str]) -> None:
    pc = Pc()
    waiting: list[int] = []
    lost = False
    for n, step in enumerate(steps):
        if step == "fault":
            pc.one.dma_read(IOVA + n * PAGE, 1)
            lost = lost or len(waiting) == RECORDS
            if not lost:
                waiting.append(IOVA + n * PAGE)
        else:
            fault = pc.unit.take_fault()
            assert (None if fault is None else fault.address) == (waiting.pop(0) if waiting else None)
            if fault is None:
                lost = False
        assert bool(pc.registers.read32(FSTS) & 1) == lost
        assert bool(pc.registers.read32(FSTS) & 2) == bool(waiting)


def test_registers_can_be_read_by_halves_but_not_less() -> None:
    pc = Pc()
    whole = pc.registers.read64(CAP)
    assert pc.registers.read32(CAP) | pc.registers.read32(CAP + 4) << 32 == whole
    assert pc.registers.read16(CAP) == 0xFFFF
    pc.registers.write64(CAP, 0)
    pc.registers.write16(FRCD, 1)
    assert pc.registers.read64(CAP) == whole
    assert pc.registers.read64(FRCD) == 0


def test_a_unit_with_four_levels() -> None:
    bus = new_bus()
    chip = DmaRemapping(bus.memory)
    chip._poke(CAP, 8, chip.read(CAP, 8) & ~0x1F00 | 0x400 | 1 << 39)
    unit = DmarUnit(ChipRegisters(bus, chip), bus.memory, tables())
    domain = unit.domain("m", SOURCE)
    unit.enable()
    master = bus.add_master("m", chip.route("m", SOURCE))
    at = (1 << 47) + 5 * PAGE
    domain.enter(at, [DATA], BOTH)
    master.dma_write(at + 1, b"far")
    assert bytes(bus.memory[DATA + 1 : DATA + 4]) == b"far"
    assert unit.levels == 4


def test_a_unit_that_cannot_be_used() -> None:
    bus = new_bus()
    chip = DmaRemapping(bus.memory)
    registers = ChipRegisters(bus, chip)
    chip._poke(CAP, 8, 0)
    with pytest.raises(ConfigurationError, match="neither 3 nor 4 levels"):
        DmarUnit(registers, bus.memory, tables())


class Deaf:
    """A unit that takes no command."""

    name = "deaf"
    room = 0x1000

    def read(self, offset: int, size: int) -> int:
        return DmaRemapping(memoryview(b"")).read(offset, size) if offset < 0x18 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def test_a_unit_that_does_not_answer() -> None:
    bus = new_bus()
    with pytest.raises(DeviceFault, match="GSTS does not say"):
        DmarUnit(ChipRegisters(bus, Deaf()), bus.memory, tables())


def test_every_device_has_one_domain() -> None:
    pc = Pc()
    with pytest.raises(DriverError, match="one has a domain for requests of 0x0318"):
        pc.unit.domain("three", SOURCE)
    with pytest.raises(ConfigurationError, match="far can have bus addresses in"):
        pc.unit.domain("far", FAR, AddressSet.span(0, 1 << 39))
    window = AddressSet.span(PAGE, (1 << 32) - 1) - AddressSet.span(0xFEE0_0000, 0xFEEF_FFFF)
    narrow = pc.unit.domain("far", FAR, window)
    with pytest.raises(DriverError, match="whole pages"):
        narrow.enter(0, [pc.frame(1)], BOTH)
    narrow.enter(PAGE, [pc.frame(1, 1)], BOTH)
    assert pc.far.dma_read(PAGE, 1) == b"\1"
