"""MSI-X and messages on the simulated PCI bus: a write that interrupts and reaches no memory."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, ResourceShortage
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.runtime import by_name
from busdma.sim.bus.messages import PROCESSORS, RANGE, VECTORS, MessageController
from busdma.sim.bus.msix import MsixTable
from busdma.sim.bus.pci import PciHost, PciSlot
from busdma.sim.bus.pci_bridge import PciBridge
from busdma.sim.bus.pci_config import BUS_MASTER, COMMAND, FIRST_CAPABILITY, MEMORY_SPACE, Bar, ConfigSpace

SIZE = 1 << 20
ENABLE, MASK_ALL = 0x8000, 0x4000
DOORBELL = RANGE.start


class Card:
    """Nothing but MSI-X: three vectors, the table at 0x800, the pending bits at 0xC00."""

    vendor, device, class_code = 0x1234, 0x0001, 0xFF0000
    bars: Mapping[int, Bar] = MappingProxyType({0: Bar(0x1000)})

    def __init__(self, slot: PciSlot) -> None:
        self.msix: MsixTable | None = MsixTable(slot.master, 3, bar=0, table=0x800, pending=0xC00)

    def read(self, bar: int, offset: int, size: int) -> int:
        assert self.msix is not None
        return self.msix.read32(offset) if self.msix.claims(offset) else 0

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        assert self.msix is not None
        if self.msix.claims(offset):
            self.msix.write32(offset, value)


class Pc:
    def __init__(self, *, behind: bool = False) -> None:
        self.runtime = by_name("virtual")
        self.memory = memoryview(bytearray(SIZE))
        self.host = PciHost(self.memory, FrameAllocator(0, SIZE // 4096), AddressSet.span(0, SIZE - 1))
        self.messages = self.host.messages = MessageController(self.runtime)
        bus = self.host.root
        if behind:
            self.bridge = PciBridge(bus, "bridge0", 30)
            bus = self.bridge.secondary
        self.slot = bus.slot("card0", 3, Interrupt("pin", self.runtime))
        self.card = Card(self.slot)
        self.slot.plug(self.card)
        self.config = self.slot.config
        self.config.write32(0x10, 0xE000_0000)
        self.config.write16(COMMAND, MEMORY_SPACE | BUS_MASTER)
        self.registers = self.slot.registers(0)

    @property
    def msix(self) -> MsixTable:
        assert self.card.msix is not None
        return self.card.msix

    def control(self, value: int) -> None:
        self.config.write16(FIRST_CAPABILITY + 2, value)

    def program(self, vector: int, address: int, data: int, masked: int = 0) -> None:
        at = 0x800 + 16 * vector
        for offset, value in ((0, address & 0xFFFFFFFF), (4, address >> 32), (8, data), (12, masked)):
            self.registers.write32(at + offset, value)

    def rises(self) -> list[int]:
        return [line.statistics()["raised"] for line in self.messages.lines.values()]


def test_the_capability_says_where_everything_is() -> None:
    pc = Pc()
    config = pc.config
    assert config.read16(0x06) & 0x10
    assert config.read8(0x34) == FIRST_CAPABILITY
    assert config.read16(FIRST_CAPABILITY) == 0x0011  # and no other behind it
    assert config.read16(FIRST_CAPABILITY + 2) == 2
    assert (config.read32(FIRST_CAPABILITY + 4), config.read32(FIRST_CAPABILITY + 8)) == (0x800, 0xC00)
    config.write32(FIRST_CAPABILITY + 4, 0xFFFFFFFF)
    config.write16(FIRST_CAPABILITY + 2, 0xFFFF)
    assert (config.read32(FIRST_CAPABILITY + 4), config.read16(FIRST_CAPABILITY + 2)) == (0x800, 0xC002)


def test_capabilities_are_a_list() -> None:
    config = ConfigSpace(1, 2, 3, {})
    assert config.read16(0x06) & 0x10 == 0
    first, second, third = (config.add_capability(kind, size) for kind, size in ((0x01, 8), (0x05, 10), (0x11, 12)))
    assert (first, second, third) == (0x40, 0x48, 0x54)
    assert [config.read16(at) for at in (first, second, third)] == [0x4801, 0x5405, 0x0011]


def test_a_message_is_an_interrupt_and_no_access_to_memory() -> None:
    pc = Pc()
    one, other = pc.messages.allocate(), pc.messages.allocate()
    assert (one.address, one.data, other.data) == (DOORBELL, 32, 33)
    pc.control(ENABLE)
    pc.program(0, one.address, one.data)
    pc.program(2, other.address, other.data)
    for vector in (2, 0, 2, 2):
        pc.msix.signal(vector)
    assert pc.rises() == [1, 3]
    assert pc.host.statistics()["card0"]["writes"] == 0
    assert pc.host.statistics()["card0"]["by_owner"] == {}
    assert pc.slot.statistics() == {"aborts": 0, "not_enabled": 0}
    assert pc.runtime.run(pc.messages.lines[other.address, other.data].wait) == 3  # edges are latched
    assert bytes(pc.memory) == bytes(SIZE)


def test_nothing_is_sent_that_is_not_enabled() -> None:
    pc = Pc()
    message = pc.messages.allocate()
    pc.program(0, message.address, message.data)
    pc.msix.signal(0)
    pc.control(ENABLE)  # what was signalled before is the pin's
    assert pc.rises() == [0]
    pc.config.write16(COMMAND, MEMORY_SPACE)
    pc.msix.signal(0)
    assert (pc.rises(), pc.slot.statistics()["not_enabled"]) == ([0], 1)


def test_what_is_masked_is_pending_until_it_is_not() -> None:
    pc = Pc()
    message = pc.messages.allocate()
    pc.control(ENABLE | MASK_ALL)
    pc.program(1, message.address, message.data)
    pc.msix.signal(1)
    pc.msix.signal(1)
    assert (pc.rises(), pc.registers.read32(0xC00)) == ([0], 0b010)
    pc.registers.write32(0xC00, 0)  # read-only
    pc.control(ENABLE)
    assert (pc.rises(), pc.registers.read32(0xC00)) == ([1], 0)
    pc.registers.write32(0x81C, 1)
    pc.msix.signal(1)
    assert (pc.rises(), pc.registers.read32(0xC00)) == ([1], 0b010)
    pc.registers.write32(0x81C, 0)
    assert pc.rises() == [2]
    pc.registers.write32(0x81C, 1)
    pc.msix.signal(1)
    pc.msix.clear()
    pc.registers.write32(0x81C, 0)
    assert pc.rises() == [2]


def test_the_table_keeps_what_it_should() -> None:
    pc = Pc()
    assert [pc.registers.read32(0x80C + 16 * vector) for vector in range(3)] == [1, 1, 1]  # masked at power-on
    pc.program(1, 0xFEE0_1003, 0x55, masked=0xFFFF_FFFF)
    assert [pc.registers.read32(0x810 + at) for at in (0, 4, 8, 12)] == [0xFEE0_1000, 0, 0x55, 1]


def test_a_message_to_memory_is_a_write() -> None:
    """It is an address like any other."""
    pc = Pc()
    pc.control(ENABLE)
    pc.program(0, 0x4000, 0x12345678)
    pc.msix.signal(0)
    assert pc.memory[0x4000:0x4004] == bytes.fromhex("78563412")
    assert pc.host.statistics()["card0"]["writes"] == 1


@pytest.mark.parametrize(("address", "data"), [(DOORBELL, b"\0" * 8), (DOORBELL + 2, b"\0" * 4), (DOORBELL, b"\x20")])
def test_what_is_no_message_goes_nowhere(address: int, data: bytes) -> None:
    pc = Pc()
    pc.messages.allocate()
    pc.slot.master.dma_write(address, data)
    assert pc.rises() == [0]
    assert (pc.messages.strays, pc.slot.statistics()["aborts"]) == (0, 1)


def test_a_message_that_nobody_asked_for_is_counted() -> None:
    pc = Pc()
    pc.slot.master.dma_write(DOORBELL, b"\x99\0\0\0")
    assert pc.messages.strays == 1
    assert pc.slot.master.dma_read(DOORBELL, 4) == b"\xff" * 4


def test_messages_go_through_a_bridge_that_forwards() -> None:
    pc = Pc(behind=True)
    message = pc.messages.allocate()
    data = message.data.to_bytes(4, "little")
    pc.slot.master.dma_write(message.address, data)
    assert pc.rises() == [0]
    pc.bridge.config.write16(COMMAND, BUS_MASTER | MEMORY_SPACE)
    pc.slot.master.dma_write(message.address, data)
    assert pc.rises() == [1]


def test_there_are_so_many_and_no_more() -> None:
    messages = MessageController(by_name("virtual"))
    given = [messages.allocate() for _ in range(VECTORS * PROCESSORS)]
    assert len({(message.address, message.data) for message in given}) == len(given)
    assert all(message.address in RANGE and 32 <= message.data < 256 for message in given)
    with pytest.raises(ResourceShortage, match="use a device's pin"):
        messages.allocate()


@pytest.mark.parametrize(("vectors", "table", "pending"), [(0, 0, 0x800), (2049, 0, 0x800), (1, 4, 8), (1, 0, 0x804)])
def test_tables_that_cannot_be(vectors: int, table: int, pending: int) -> None:
    pc = Pc()
    with pytest.raises(ConfigurationError, match="MSI-X has"):
        MsixTable(pc.slot.master, vectors, bar=0, table=table, pending=pending)
