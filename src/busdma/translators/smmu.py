"""An SMMUv3, as its software sees it: one unit, and a domain of its own for each stream, which is a device.

A stream table of two levels chooses by the stream's id; every stream without a domain is aborted. A domain has a
context, whose address space id (ASID) tags what the unit caches for it, and a page table of three levels (stage 1, 39
bits, 4 KiB pages). Every table is a page frame that the machine hands out.

Source: Arm, System Memory Management Unit Architecture Specification, version 3, IHI 0070: 3.21.3.1 (making a stream
valid), 4.3 and 4.4 (commands), 5.1 (L1STD), 5.2 (STE), 5.4 (CD), 6.3 (registers), 7.3 (events); entries of page tables:
Arm Architecture Reference Manual, A-profile, DDI 0487, VMSAv8-64 descriptor formats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.attachment import MmioRegisters
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.pages import BITS, PAGE, PageTree, TranslationUnit
from busdma.translators.smmu_queues import (
    GERROR,
    GERRORN,
    LOG2_COMMANDS,
    LOG2_EVENTS,
    CommandQueue,
    EventQueue,
)

IDR0, IDR1, IDR5, CR0, CR0ACK, CR1, CR2, IRQ_CTRL = 0x00, 0x04, 0x14, 0x20, 0x24, 0x28, 0x2C, 0x50
STRTAB_BASE, STRTAB_BASE_CFG = 0x80, 0x88
TRANSLATE, EVENTS, COMMANDS = 1 << 0, 1 << 2, 1 << 3  # CR0: SMMUEN, EVENTQEN, CMDQEN
CACHED: Final = 0xD75  #: CR1: tables and queues are in memory that is written back, inner shareable
RECORD_UNKNOWN: Final = 1 << 1  #: CR2: an event for a stream that the table does not have
ALLOCATE: Final = 1 << 62  #: STRTAB_BASE: a hint to caches
TWO_LEVELS: Final = 1 << 16  #: STRTAB_BASE_CFG
SPLIT: Final = 6  #: so many bits of a stream's id choose in the second level; its tables are page frames
MOST_STREAMS: Final = 15  #: bits of a stream's id, with a first level of a page frame

CFGI_STE, CFGI_ALL, TLBI_NH_ASID, TLBI_NH_VA, TLBI_ALL = 0x03, 0x04, 0x11, 0x12, 0x30  # commands
LEAF: Final = 1  #: only what the last level says
EVERY_STREAM: Final = 31  #: CFGI_STE_RANGE is CFGI_ALL

SPAN: Final = SPLIT + 1  #: L1STD
STREAM: Final = 64  #: bytes of an STE, and of a CD
ABORT: Final = 1  #: STE: valid, and all requests are aborted
STAGE_1: Final = 1 | 0b101 << 1
CONTEXT_CACHED: Final = 3 << 6 | 1 << 4 | 1 << 2  #: STE, second number: how the context is read
SHARED_AS_IS: Final = 1 << 44

SIZE: Final = 64 - (PAGE.bit_length() - 1 + 3 * BITS)  #: CD: T0SZ of three levels, 39 bits
WALKS_CACHED: Final = 3 << 12 | 1 << 10 | 1 << 8
NO_UPPER_HALF, VALID = 1 << 30, 1 << 31
AARCH64, RECORD_FAULTS, ABORT_FAULTS = 1 << 41, 1 << 45, 1 << 46
CONTEXT: Final = SIZE | WALKS_CACHED | NO_UPPER_HALF | VALID | AARCH64 | RECORD_FAULTS | ABORT_FAULTS
ATTRIBUTES: Final = 0x04FF  #: MAIR: 0 is memory that is written back, 1 a device

TABLE: Final = 0b11  #: entry: leads to a table, or in the last level to a page
DEVICE: Final = 1 << 2  # attributes 1
UNPRIVILEGED, READ_ONLY = 1 << 6, 1 << 7
INNER_SHAREABLE, ACCESSED, OWN_ASID = 3 << 8, 1 << 10, 1 << 11

F_UUT, C_BAD_STREAMID, F_TRANSL_FORBIDDEN, F_WALK_EABT = 0x01, 0x02, 0x07, 0x0B
F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION, F_TLB_CONFLICT = 0x10, 0x11, 0x12, 0x13, 0x20
#: events that say which address and whether it was read
WITH_ADDRESS: Final = frozenset(
    (F_UUT, F_TRANSL_FORBIDDEN, F_WALK_EABT, F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION, F_TLB_CONFLICT)
)
WAS_READ: Final = 1 << 35  #: of an event's second number

FEW: Final = 16  #: pages that are forgotten one by one
WIDTHS: Final = (32, 36, 40, 42, 44, 48)  #: IDR5.OAS; with 4 KiB pages an entry names no more than the last


class SmmuUnit(TranslationUnit):
    """The unit: its stream table, its queues, and its caches. As `busdma.translators.pages.TranslationUnit`.

    ConfigurationError if it lacks what is needed; DeviceFault if it does not answer.
    """

    name = "smmu"

    def __init__(
        self, registers: MmioRegisters, memory: memoryview, allocate: Callable[[], int], *, base: int = 0
    ) -> None:
        super().__init__(registers, memory, allocate, base)
        identity, sizes, addresses = (registers.read32(register) for register in (IDR0, IDR1, IDR5))
        _check_features(identity, sizes, addresses)
        self.width: Final = min(addresses & 7, len(WIDTHS) - 1)  #: of physical addresses, as an index of WIDTHS
        self._stream_bits = min(sizes & 0x3F, MOST_STREAMS)
        self._asids = 1 << (16 if identity >> 12 & 1 else 8)
        self._groups: dict[int, int] = {}  # tables of the second level that are no longer the common one
        self._contexts: list[int] = []  # page frames of CDs
        self._set(0)
        registers.write32(IRQ_CTRL, 0)
        registers.write32(GERRORN, registers.read32(GERROR))  # whatever it was, it was before
        registers.write32(CR1, CACHED)
        registers.write32(CR2, RECORD_UNKNOWN)
        self._streams = self.new_table()
        aborted = self._new_group()  # of all groups in which no stream has a domain
        groups = 1 << max(0, self._stream_bits - SPLIT)
        self.write(self._streams, *[aborted | SPAN] * groups)
        registers.write64(STRTAB_BASE, self._streams | ALLOCATE)
        registers.write32(STRTAB_BASE_CFG, TWO_LEVELS | SPLIT << 6 | self._stream_bits)
        self.commands = CommandQueue(self)
        self._events = EventQueue(self)
        registers.barrier()
        self._set(COMMANDS)
        self.commands.run((CFGI_ALL, EVERY_STREAM), (TLBI_ALL, 0))
        self._set(COMMANDS | EVENTS)

    @property
    def overflows(self) -> int:
        """How often there was no room for events; nobody knows how many were lost."""
        return self._events.overflows

    def enable(self) -> None:
        """Translate from this moment on: a stream without a domain reaches nothing."""
        self._set(COMMANDS | EVENTS | TRANSLATE)

    def domain(self, name: str, source: int, window: AddressSet | None = None) -> SmmuDomain:
        """A domain for the device whose stream has the id `source`: bus << 8 | device << 3 | function behind PCI.

        `window`: the addresses to use of those that it can have. DriverError if the device has a domain already;
        ConfigurationError if the unit has no such stream, or no more domains.
        """
        number = self.next_domain(name, source)
        if not 0 <= source < 1 << self._stream_bits:
            raise ConfigurationError(
                f"smmu: {name} is stream {source:#x}, and the table ends before {1 << self._stream_bits:#x}: put it on "
                "a bus with a lower number"
            )
        if number >= self._asids:
            raise ConfigurationError(
                f"smmu: no domain is left for {name}: the unit can tell {self._asids - 1} apart; use fewer devices"
            )
        domain = SmmuDomain(self, name, number, window)
        context, stream = self._context(number), self._stream(source)
        self._sources[source] = name
        self.write(context, CONTEXT | self.width << 32 | number << 48, domain.table, 0, ATTRIBUTES)
        self.write(stream + 8, CONTEXT_CACHED | SHARED_AS_IS)
        # the unit reads in any order: all the rest must be there before what makes it count (3.21.3.1)
        self.commands.run((CFGI_STE | source << 32, 0))
        self.write(stream, STAGE_1 | context)
        self.commands.run((CFGI_STE | source << 32, LEAF))
        return domain

    def pending(self) -> bool:
        """As `busdma.translators.pages.TranslationUnit.pending`. It looks at memory only."""
        return self._events.pending()

    def take_fault(self) -> HardwareFault | None:
        """As `busdma.translators.pages.TranslationUnit.take_fault`. Without one, it looks at memory only.

        An event about a stream's configuration has no address: it is 0, and `write` is None.
        """
        event = self._events.take()
        if event is None:
            return None
        code, source = event[0] & 0xFF, event[0] >> 32
        if code in WITH_ADDRESS:
            return HardwareFault(event[2], not event[1] & WAS_READ, source, code)
        return HardwareFault(0, None, source, code)

    def _set(self, bits: int) -> None:
        self.registers.write32(CR0, bits)
        self.until(lambda: self.registers.read32(CR0ACK) == bits, "CR0ACK")

    def _new_group(self) -> int:
        """A table of the second level, in which all streams are aborted."""
        table = self.new_table()
        for number in range(1 << SPLIT):
            self.write(table + number * STREAM, ABORT)
        return table

    def _stream(self, source: int) -> int:
        """The address of a stream's STE, in a table that is its own group's."""
        group, index = source >> SPLIT, source % (1 << SPLIT)
        if group not in self._groups:
            self._groups[group] = self._new_group()
            self.write(self._streams + group * 8, self._groups[group] | SPAN)
        return self._groups[group] + index * STREAM

    def _context(self, number: int) -> int:
        """The address of a domain's CD."""
        frame, index = divmod(number - 1, PAGE // STREAM)
        if frame == len(self._contexts):
            self._contexts.append(self.new_table())
        return self._contexts[frame] + index * STREAM


class SmmuDomain(PageTree[SmmuUnit]):
    """The pages of one stream. Made by `SmmuUnit.domain`. Its `number` is its ASID.

    A device may read whatever it may write: stage 1 has no right to write only. Frames need not be memory: a doorbell
    for message interrupts is entered like any other page.
    """

    branch = TABLE

    def __init__(self, unit: SmmuUnit, owner: str, number: int, window: AddressSet | None) -> None:
        self.reach = AddressSet.span(0, (1 << WIDTHS[unit.width]) - 1)
        super().__init__(unit, owner, number, 3, AddressSet.span(0, (1 << 64 - SIZE) - 1), window)

    def entry(self, frame: int, direction: Direction) -> int:
        """The address in bits 47:12, the right to write, and what kind of thing is there."""
        rights = UNPRIVILEGED | (READ_ONLY if direction is Direction.TO_DEVICE else 0)
        kind = 0 if self.unit.is_memory(frame) else DEVICE
        return frame | TABLE | kind | rights | INNER_SHAREABLE | ACCESSED | OWN_ASID

    def forget(self, page: int, pages: int) -> None:
        """A command for each of a few pages, or one for the whole domain."""
        asid = self.number << 48
        if pages > FEW:
            self.unit.commands.run((TLBI_NH_ASID | asid, 0))
        else:
            self.unit.commands.run(*((TLBI_NH_VA | asid, at * PAGE | LEAF) for at in range(page, page + pages)))


def _check_features(identity: int, sizes: int, addresses: int) -> None:
    """ConfigurationError unless IDR0, IDR1 and IDR5 have what this module uses."""
    has = {
        "stage 1": identity >> 1 & 1,
        "64-bit page tables": identity >> 3 & 1,
        "coherent table walks": identity >> 4 & 1,
        "little-endian tables": identity >> 21 & 3 != 3,
        "stream table of two levels": identity >> 27 & 3 == 1,
        "tables and queues wherever they are wanted": not sizes >> 29 & 3,
        f"queues of {1 << LOG2_COMMANDS} commands": sizes >> 21 & 0x1F >= LOG2_COMMANDS,
        f"queues of {1 << LOG2_EVENTS} events": sizes >> 16 & 0x1F >= LOG2_EVENTS,
        "pages of 4 KiB": addresses >> 4 & 1,
    }
    lacking = [name for name, there in has.items() if not there]
    if lacking:
        raise ConfigurationError(
            f"smmu: this unit has no {', no '.join(lacking)} (IDR0 {identity:#x}, IDR1 {sizes:#x}, IDR5 "
            f"{addresses:#x}): use the machine without it"
        )
