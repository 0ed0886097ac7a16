"""The SMMUv3's software against registers and memory: structures by the specification, commands, and the event ring."""

from __future__ import annotations

import struct
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.machine.handle import Handle64
from busdma.sync import Direction
from busdma.translators import HardwareFault, pages
from busdma.translators.smmu import C_BAD_STREAMID, F_PERMISSION, F_TRANSLATION, SmmuUnit

READ, WRITE, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BOTH
PAGE = 4096
BASE = 0x4000_0000  #: where memory begins
FRAMES = 64
STREAM = 0x0320  #: bus 3, device 4
#: IDR0, IDR1, IDR5: what the specification's names for them are worth
STAGE_1, AARCH64, COHERENT, ASIDS, BIG_ONLY, LEVELS = 1 << 1, 2 << 2, 1 << 4, 1 << 12, 3 << 21, 1 << 27
IDR0 = STAGE_1 | AARCH64 | COHERENT | ASIDS | LEVELS
IDR1 = 19 << 21 | 19 << 16 | 16
IDR5 = 1 << 4 | 4


class Registers(Handle64):
    """What an SMMUv3 does at its registers and with its two rings, and nothing else."""

    def __init__(self, idr0: int = IDR0, idr1: int = IDR1, idr5: int = IDR5) -> None:
        self.memory = memoryview(bytearray(b"\xee" * (FRAMES * PAGE)))
        self.values = {0x00: idr0, 0x04: idr1, 0x14: idr5}
        self.reads: list[int] = []
        self.commands: list[tuple[int, int]] = []
        self.refuse: int | None = None  #: a command
        self.deaf = False
        self.aborts = False  #: a full ring is an abort, and no overflow

    def barrier(self) -> None:
        pass

    def _read(self, offset: int, size: int) -> int:
        self.reads.append(offset)
        return self.values.get(offset, 0)

    def _write(self, offset: int, size: int, value: int) -> None:
        self.values[offset] = value
        if offset == 0x20:
            self.values[0x24] = value
        elif offset == 0x98 and self.values[0x20] & 8 and not self.deaf:
            self.obey()

    def errors(self) -> int:
        """Those that nobody has acknowledged."""
        return self.values.get(0x60, 0) ^ self.values.get(0x64, 0)

    def obey(self) -> None:
        base, log2 = self.values[0x90] & 0xF_FFFF_FFFF_FFE0, self.values[0x90] & 0x1F
        while self.values[0x9C] & 0xFFFFF != self.values[0x98] and not self.errors() & 1:
            index = self.values[0x9C] % (1 << log2)
            command = struct.unpack_from("<2Q", self.memory, base - BASE + index * 16)
            if command[0] & 0xFF == self.refuse:
                self.values[0x9C] |= 1 << 24
                self.values[0x60] = self.values.get(0x60, 0) ^ 1
                return
            self.commands.append(command)
            self.values[0x9C] = (self.values[0x9C] + 1) % (2 << log2)

    def record(self, *event: int, visible: bool = True) -> bool:
        """Write an event. False: there was no room for it."""
        base, log2 = self.values[0xA0] & 0xF_FFFF_FFFF_FFE0, self.values[0xA0] & 0x1F
        produced, consumed = self.values[0x100A8], self.values[0x100AC]
        index = produced % (2 << log2)
        if (index ^ consumed) % (2 << log2) == 1 << log2:
            if self.aborts:
                if not self.errors() & 4:
                    self.values[0x60] = self.values.get(0x60, 0) ^ 4
            elif not (produced ^ consumed) >> 31:
                self.values[0x100A8] ^= 1 << 31
            return False
        at = base - BASE + index % (1 << log2) * 32
        assert not any(self.memory[at : at + 32]), "the entry has not been zeroed"
        struct.pack_into("<4Q", self.memory, at, *event)
        if visible:
            self.values[0x100A8] = produced & 1 << 31 | (index + 1) % (2 << log2)
        return True

    def numbers(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}Q", self.memory, address - BASE)


def new_unit(registers: Registers, room: int = FRAMES - 16) -> SmmuUnit:
    left = list(range(BASE + 16 * PAGE, BASE + (16 + room) * PAGE, PAGE))
    return SmmuUnit(registers, registers.memory, lambda: left.pop(0), base=BASE)


def stream_entry(registers: Registers, stream: int) -> tuple[int, ...]:
    """As the hardware finds it (5.1, 5.2)."""
    table = registers.values[0x80] & 0xFF_FFFF_FFFF_FFC0
    config = registers.values[0x88]
    assert config >> 16 == 1
    assert stream < 1 << (config & 0x3F)
    split = config >> 6 & 0x1F
    (descriptor,) = registers.numbers(table + (stream >> split) * 8, 1)
    assert descriptor & 0x1F == split + 1
    return registers.numbers((descriptor & -64) + stream % (1 << split) * 64, 8)


def test_every_stream_is_aborted_until_it_has_a_domain() -> None:
    registers = Registers()
    unit = new_unit(registers)
    assert registers.commands == [(0x04, 31), (0x30, 0), (0x46, 0)]
    assert unit.tables == 4  # two levels of streams, two queues
    for stream in (0, STREAM, 0x7FFF):
        assert stream_entry(registers, stream) == (1, *bytes(7))
    unit.enable()
    assert registers.values[0x20] == 0b1101
    unit.domain("one", STREAM)
    assert unit.tables == 4 + 3  # its group of streams, contexts, and pages
    unit.domain("two", STREAM + 8)
    assert unit.tables == 4 + 4
    assert [stream for stream in range(1 << 15) if stream_entry(registers, stream)[0] != 1] == [STREAM, STREAM + 8]


def test_what_an_earlier_owner_left_does_not_count() -> None:
    registers = Registers()
    registers.values |= {0x20: 0b1101, 0x24: 0b1101, 0x50: 5, 0x60: 0b101, 0x9C: 1 << 24 | 17, 0x100A8: 1 << 31 | 9}
    unit = new_unit(registers)
    assert registers.values[0x20] == 0b1100  # it translates no more, until it is enabled
    assert registers.values[0x50] == 0
    registers.record(*fault_event(F_TRANSLATION, 0x1000, read=True))
    assert unit.take_fault() == HardwareFault(0x1000, False, STREAM, F_TRANSLATION)
    assert unit.overflows == 0
    unit.domain("one", 0).flush(0, 1)


def test_structures_are_as_the_specification_says() -> None:
    registers = Registers()
    unit = new_unit(registers)
    unit.domain("zero", 0)
    domain = unit.domain("one", STREAM)
    first, second, *rest = stream_entry(registers, STREAM)
    assert first & 0xF == 0b1011  # valid, stage 1 only
    assert first >> 56 == 0  # one context
    assert second & 3 == 0
    assert (second >> 2 & 3, second >> 4 & 3, second >> 6 & 3, second >> 44 & 3) == (1, 1, 3, 1)
    assert second >> 27 & 0x1F == 0  # no stalls to forbid, no ATS, EL1
    assert rest == [0] * 6
    context = registers.numbers(first & 0xFF_FFFF_FFFF_FFC0, 8)
    low = context[0]
    assert 64 - (low & 0x3F) == 39
    assert low >> 6 & 3 == 0  # 4 KiB
    assert (low >> 14 & 1, low >> 30 & 1, low >> 31 & 1, low >> 41 & 1) == (0, 1, 1, 1)  # EPD0, EPD1, V, AA64
    assert low >> 32 & 7 == 4  # as the unit: 44 bits
    assert (low >> 44 & 1, low >> 45 & 1, low >> 46 & 1) == (0, 1, 1)  # S, R, A
    assert low >> 48 == domain.number == 2
    assert context[1] == domain.table
    assert context[2:] == (0, 0x04FF, 0, 0, 0, 0)
    assert registers.commands[-4:] == [
        (0x03 | STREAM << 32, 0),  # with the first level, which has changed
        (0x46, 0),
        (0x03 | STREAM << 32, 1),
        (0x46, 0),
    ]


def test_entries_of_pages() -> None:
    registers = Registers()
    unit = new_unit(registers)
    domain = unit.domain("one", STREAM)
    doorbell = 0x0802_0000
    for page, (frame, way) in enumerate([(BASE, READ), (BASE, WRITE), (BASE + PAGE, BOTH), (doorbell, WRITE)]):
        domain.enter((1 << 38) + page * PAGE, [frame], way)
    (above,) = registers.numbers(domain.table + 256 * 8, 1)
    (table,) = registers.numbers(above & -PAGE, 1)
    assert (above & 0xFFF, table & 0xFFF) == (3, 3)
    common = 3 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11  # page, EL0, inner shareable, accessed, of this ASID only
    assert registers.numbers(table & -PAGE, 5) == (
        BASE | common | 1 << 7,
        BASE | common,
        BASE + PAGE | common,
        doorbell | common | 1 << 2,
        0,
    )


def test_what_is_flushed() -> None:
    registers = Registers()
    unit = new_unit(registers)
    unit.domain("one", 0)
    domain = unit.domain("two", 8)
    asid = 2 << 48
    registers.commands.clear()
    domain.flush(0x7000, 2)
    assert registers.commands == [(0x12 | asid, 0x7001), (0x12 | asid, 0x8001), (0x46, 0)]
    registers.commands.clear()
    domain.flush(0x7000, 16)
    assert len(registers.commands) == 17
    registers.commands.clear()
    domain.flush(0x7000, 17)
    assert registers.commands == [(0x11 | asid, 0), (0x46, 0)]
    for _ in range(600):  # round the ring
        domain.flush(0, 1)
    assert registers.commands[-2:] == [(0x12 | asid, 1), (0x46, 0)]
    assert len(registers.commands) == 2 + 1200


def test_addresses_that_a_domain_can_have() -> None:
    registers = Registers(idr5=1 << 4 | 1)
    unit = new_unit(registers)
    assert unit.domain("one", 0).window == AddressSet.span(0, (1 << 39) - 1)
    domain = unit.domain("two", 8, AddressSet.span(0x10_0000, 0x1F_FFFF))
    assert domain.reach == AddressSet.span(0, (1 << 36) - 1)
    with pytest.raises(DriverError, match="smmu: no entry can name 0x1000000000"):
        domain.enter(0x10_0000, [1 << 36], READ)
    with pytest.raises(DriverError, match="smmu: no 1 pages from 0x200000 on for two"):
        domain.flush(0x20_0000, 1)
    with pytest.raises(ConfigurationError, match="smmu: three can have bus addresses in"):
        unit.domain("three", 16, AddressSet.span(0, 1 << 39))
    # 52 bits cannot be named with pages of 4 KiB
    assert new_unit(Registers(idr5=1 << 4 | 6)).domain("one", 0).reach == AddressSet.span(0, (1 << 48) - 1)


@pytest.mark.parametrize(
    ("idr0", "idr1", "idr5", "what"),
    [
        (IDR0 & ~STAGE_1, IDR1, IDR5, "no stage 1"),
        (IDR0 & ~AARCH64 | 1 << 2, IDR1, IDR5, "no 64-bit page tables"),
        (IDR0 & ~COHERENT, IDR1, IDR5, "no coherent table walks"),
        (IDR0 | BIG_ONLY, IDR1, IDR5, "no little-endian tables"),
        (IDR0 & ~LEVELS, IDR1, IDR5, "no stream table of two levels"),
        (IDR0, IDR1 | 1 << 30, IDR5, "no tables and queues wherever"),
        (IDR0, IDR1 | 1 << 29, IDR5, "no tables and queues wherever"),
        (IDR0, IDR1 & ~(0x1F << 21) | 7 << 21, IDR5, "no queues of 256 commands"),
        (IDR0, IDR1 & ~(0x1F << 16) | 6 << 16, IDR5, "no queues of 128 events"),
        (IDR0, IDR1, 5, "no pages of 4 KiB"),
        (0, IDR1, 0, "no stage 1, no 64-bit page tables, no coherent"),
    ],
)
def test_a_unit_that_lacks_something_is_refused(idr0: int, idr1: int, idr5: int, what: str) -> None:
    registers = Registers(idr0, idr1, idr5)
    with pytest.raises(ConfigurationError, match=f"smmu: this unit has {what}"):
        new_unit(registers)
    assert set(registers.values) == {0x00, 0x04, 0x14}


def test_streams_and_domains_come_to_an_end() -> None:
    unit = new_unit(Registers())
    with pytest.raises(ConfigurationError, match="stream 0x8000, and the table ends before 0x8000"):
        unit.domain("one", 0x8000)
    unit = new_unit(Registers(idr1=IDR1 & ~0x3F | 4))
    unit.domain("last", 0xF)
    with pytest.raises(ConfigurationError, match="the table ends before 0x10: put it on a bus with a lower number"):
        unit.domain("one", 0x10)
    registers = Registers(idr0=IDR0 & ~ASIDS)
    registers.memory = memoryview(bytearray(300 * PAGE))
    unit = new_unit(registers, room=284)
    for number in range(255):
        unit.domain(f"device {number}", number)
    with pytest.raises(ConfigurationError, match="no domain is left for one more: the unit can tell 255 apart"):
        unit.domain("one more", 255)
    with pytest.raises(DriverError, match="device 7 has a domain for requests of 0x0007"):
        unit.domain("another", 7)


def test_a_device_whose_tables_could_not_be_had_can_try_again() -> None:
    registers = Registers()
    unit = new_unit(registers, room=6)
    with pytest.raises(IndexError):
        unit.domain("one", STREAM)
    assert stream_entry(registers, STREAM) == (1, *bytes(7))
    left = [BASE, BASE + PAGE]
    unit._allocate = left.pop
    assert unit.domain("one", STREAM).number == 1
    assert stream_entry(registers, STREAM)[0] & 0xF == 0b1011


def test_a_refused_command_is_named_and_the_unit_obeys_no_more() -> None:
    registers = Registers()
    unit = new_unit(registers)
    domain = unit.domain("one", 0)
    registers.refuse = 0x11
    for _ in range(2):
        with pytest.raises(DeviceFault, match=r"smmu: command 0x11 is refused \(CERROR_ILL.*\).*: reset the machine"):
            domain.flush(0, 100)
    registers.refuse = None
    with pytest.raises(DeviceFault, match="reset the machine"):
        domain.flush(0, 1)


def test_a_unit_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PATIENCE", 10)
    registers = Registers()
    unit = new_unit(registers)
    domain = unit.domain("one", 0)
    registers.deaf = True
    registers.reads.clear()
    with pytest.raises(DeviceFault, match="smmu: CMDQ_CONS does not say that the command is done: reset the machine"):
        domain.flush(0, 1)
    assert registers.reads == [0x9C] * 10
    registers.deaf = False
    with pytest.raises(DeviceFault, match="CMDQ_CONS"):
        domain.flush(0, 1)


# -- events -----------------------------------------------------------------------------------------------------------


def fault_event(code: int, address: int, *, read: bool, stream: int = STREAM) -> tuple[int, int, int, int]:
    return code | stream << 32, read << 35, address, 0


def test_events_are_faults_and_looking_for_them_costs_nothing() -> None:
    registers = Registers()
    unit = new_unit(registers)
    registers.reads.clear()
    assert not unit.pending()
    assert unit.take_fault() is None
    registers.record(*fault_event(F_PERMISSION, 0x12_3456, read=False))
    assert unit.pending()
    assert registers.reads == []
    registers.record(*fault_event(F_TRANSLATION, 0x7F_FFFF_FFFF, read=True, stream=7))
    registers.record(C_BAD_STREAMID | 0x8000 << 32, 0, 0, 0)
    assert unit.take_fault() == HardwareFault(0x12_3456, True, STREAM, F_PERMISSION)
    assert unit.take_fault() == HardwareFault(0x7F_FFFF_FFFF, False, 7, F_TRANSLATION)
    assert unit.take_fault() == HardwareFault(0, None, 0x8000, C_BAD_STREAMID)
    assert not unit.pending()
    assert unit.take_fault() is None
    assert registers.values[0x100AC] == registers.values[0x100A8] == 3


def test_an_event_that_is_being_written_is_not_taken() -> None:
    registers = Registers()
    unit = new_unit(registers)
    registers.record(F_TRANSLATION, 0, 0, 0, visible=False)
    assert unit.pending()
    assert unit.take_fault() is None
    registers.values[0x100A8] = 1
    assert unit.take_fault() == HardwareFault(0, True, 0, F_TRANSLATION)


@given(
    st.lists(st.tuples(st.sampled_from(["record", "take"]), st.integers(1, 150)), max_size=12),
    st.booleans(),
)
def test_events_are_taken_in_order_and_losses_are_counted(steps: list[tuple[str, int]], aborts: bool) -> None:
    registers = Registers()
    registers.aborts = aborts
    unit = new_unit(registers)
    waiting: deque[int] = deque()
    number = 0
    losses = 0  # conditions that the hardware has told of, and that have been seen or will be
    told = False
    for step, count in steps:
        for _ in range(count):
            if step == "record":
                number += 1
                if registers.record(*fault_event(F_TRANSLATION, number * PAGE, read=True)):
                    waiting.append(number * PAGE)
                elif not told:
                    told = True
                    losses += 1
            else:
                fault = unit.take_fault()
                assert (None if fault is None else fault.address) == (waiting.popleft() if waiting else None)
                told = told and _is_told(registers)
            assert unit.pending() == bool(waiting)
    while unit.take_fault() is not None:
        pass
    assert unit.overflows == losses
    assert not _is_told(registers)


def _is_told(registers: Registers) -> bool:
    """A loss that has not been acknowledged."""
    overflow = (registers.values[0x100A8] ^ registers.values[0x100AC]) >> 31
    return bool(overflow or registers.errors() & 4)
