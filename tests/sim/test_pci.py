"""PCI: configuration space, who answers, who may master the bus, and what a bridge lets through."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.errors import ConfigurationError, DriverError
from busdma.machine.attachment import MmioRegisters
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.machine.pci_firmware import assign
from busdma.runtime.virtual import VirtualRuntime
from busdma.sim.bus.pci import PciHost, PciSlot, split
from busdma.sim.bus.pci_bridge import PciBridge
from busdma.sim.bus.pci_config import (
    BUS_MASTER,
    COMMAND,
    INTERRUPT_STATUS,
    INTX_DISABLE,
    MEMORY_SPACE,
    RECEIVED_MASTER_ABORT,
    STATUS,
    Bar,
    ConfigSpace,
)

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
WINDOW = AddressSet.span(0xE000_0000, 0xEFFF_FFFF)


class Echo:
    """A function whose registers remember."""

    vendor = 0x1AF4
    device = 0x0042
    class_code = 0x01_08_02

    def __init__(self, bars: Mapping[int, Bar]) -> None:
        self.bars = bars
        self.values: dict[tuple[int, int], tuple[int, int]] = {}

    def read(self, bar: int, offset: int, size: int) -> int:
        return self.values.get((bar, offset), (size, 0))[1]

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.values[bar, offset] = (size, value)


class Pc:
    """64 pages of memory at 0, of which the last 16 do not answer; a device on the root bus, one behind a bridge."""

    def __init__(self, limit: int = 20 * PAGE) -> None:
        self.memory = memoryview(bytearray(64 * PAGE))
        self.host = PciHost(self.memory, FrameAllocator(0, 64), AddressSet.span(0, 48 * PAGE - 1))
        self.line = Interrupt("irq 16", VirtualRuntime())
        self.bridge = PciBridge(self.host.root, "bridge0", 9, limit=limit)
        self.near, self.near_device = self.add(self.host.root.slot("near", 3, self.line), {0: Bar(MIB)})
        slot = self.bridge.secondary.slot("far", 0, self.line)
        self.far, self.far_device = self.add(slot, {0: Bar(4096), 2: Bar(256, wide=True)})
        assign(self.host.root, WINDOW)

    def add(self, slot: PciSlot, bars: Mapping[int, Bar]) -> tuple[PciSlot, Echo]:
        device = Echo(bars)
        slot.plug(device)
        return slot, device


def enable(slot: PciSlot, bits: int = MEMORY_SPACE | BUS_MASTER) -> None:
    slot.config.write16(COMMAND, bits)


def test_configuration_space_identifies_the_function() -> None:
    config = Pc().near.config
    assert config.read32(0) == 0x0042_1AF4
    assert config.read32(8) == 0x0108_0200
    assert (config.read8(0x0E), config.read8(0x3D)) == (0, 1)
    config.write32(0, 0)
    config.write8(0x3C, 16)
    assert (config.read16(0), config.read8(0x3C)) == (0x1AF4, 16)


def test_a_base_address_register_tells_its_size() -> None:
    config = ConfigSpace(1, 2, 3, {1: Bar(64 << 10), 2: Bar(1 << 14, wide=True)})
    for offset in (0x10, 0x14, 0x18, 0x1C, 0x20):
        config.write32(offset, 0xFFFF_FFFF)
    found = [config.read32(offset) for offset in (0x10, 0x14, 0x18, 0x1C, 0x20)]
    assert found == [0, 0xFFFF_0000, 0xFFFF_C004, 0xFFFF_FFFF, 0]
    config.write32(0x18, 0x1234_C000)
    config.write32(0x1C, 7)
    assert config.base(2) == 0x7_1234_C000


@pytest.mark.parametrize(
    ("bars", "why"),
    [
        ({6: Bar(16)}, "has no place"),
        ({5: Bar(16, wide=True)}, "has no place"),
        ({0: Bar(16, wide=True), 1: Bar(16)}, "has no place"),
        ({0: Bar(24)}, "no power of two"),
        ({0: Bar(8)}, "no power of two"),
    ],
)
def test_base_address_registers_that_cannot_be(bars: dict[int, Bar], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        ConfigSpace(1, 2, 3, bars)


@pytest.mark.parametrize(("offset", "size"), [(-4, 4), (2, 4), (1, 2), (256, 1), (254, 4)])
def test_configuration_registers_that_do_not_exist(offset: int, size: int) -> None:
    config = ConfigSpace(1, 2, 3, {})
    with pytest.raises(DriverError, match="not one register"):
        {1: config.read8, 2: config.read16, 4: config.read32}[size](offset)
    with pytest.raises(DriverError, match="not one register"):
        {1: config.write8, 2: config.write16, 4: config.write32}[size](offset, 0)


def test_a_value_that_does_not_fit() -> None:
    pc = Pc()
    enable(pc.near)
    with pytest.raises(DriverError, match="cannot write 0x100 "):
        pc.near.config.write8(0x3C, 0x100)
    with pytest.raises(DriverError, match="has 16 bits"):
        pc.near.registers(0).write16(0, 1 << 16)
    with pytest.raises(DriverError, match="cannot write -0x1"):
        pc.near.registers(0).write32(0, -1)


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 63), st.integers(0, (1 << 32) - 1)), max_size=20))
def test_configuration_space_against_a_model_of_bits(steps: list[tuple[int, int, int]]) -> None:
    """Every bit of the header is constant, writable, or cleared by a one."""
    config = ConfigSpace(0x1AF4, 0x42, 0x010802, {0: Bar(1 << 14, wide=True)})
    bits = [config.read8(at // 8) >> at % 8 & 1 for at in range(512)]
    writable = {*range(0x3C * 8, 0x3C * 8 + 8), *range(0x10 * 8 + 14, 0x18 * 8), 0x20 + 1, 0x20 + 2, 0x20 + 10}
    config.signal(RECEIVED_MASTER_ABORT)
    bits[0x30 + 13] = 1
    for size, index, value in steps:
        offset = index // size * size
        {1: config.write8, 2: config.write16, 4: config.write32}[size](offset, value & ((1 << 8 * size) - 1))
        for bit in range(8 * size):
            at, one = 8 * offset + bit, value >> bit & 1
            if at in writable:
                bits[at] = one
            elif at == 0x30 + 13 and one:
                bits[at] = 0
    assert bits == [config.read8(at // 8) >> at % 8 & 1 for at in range(512)]


def test_firmware_gives_every_region_its_own_addresses() -> None:
    pc = Pc()
    regions = [(pc.near.config.base(0), MIB), (pc.far.config.base(0), 4096), (pc.far.config.base(2), 256)]
    for base, size in regions:
        assert base % size == 0
        assert WINDOW.covers(base, base + size - 1)
    assert sum(size for _, size in regions) == AddressSet((base, base + size - 1) for base, size in regions).size()
    assert pc.bridge.window().covers(*sorted((regions[1][0], regions[2][0])))
    assert not pc.bridge.window() & AddressSet.span(regions[0][0], regions[0][0] + MIB - 1)
    assert [pc.bridge.config.read8(at) for at in (0x18, 0x19, 0x1A)] == [0, 1, 1]
    assert pc.near.config.read16(COMMAND) == pc.far.config.read16(COMMAND) == 0  # enabling them is their drivers' part


def test_firmware_numbers_bridges_behind_bridges() -> None:
    host = PciHost(memoryview(bytearray(PAGE)), FrameAllocator(0, 1), AddressSet.span(0, PAGE - 1))
    outer = PciBridge(host.root, "outer", 1)
    inner = PciBridge(outer.secondary, "inner", 1)
    other = PciBridge(host.root, "other", 2)
    slot = inner.secondary.slot("deep", 0, Interrupt("irq", VirtualRuntime()))
    slot.plug(Echo({0: Bar(4096)}))
    assign(host.root, WINDOW)
    numbers = [[bridge.config.read8(at) for at in (0x18, 0x19, 0x1A)] for bridge in (outer, inner, other)]
    assert numbers == [[0, 1, 2], [1, 2, 2], [0, 3, 3]]
    assert inner.window() <= outer.window()
    assert not other.window()
    enable(slot)
    slot.registers(0).write32(8, 5)
    assert slot.registers(0).read32(8) == 5
    slot.master.dma_write(0, b"deep")
    assert bytes(host.memory[:4]) == b"deep"


def test_too_little_memory_space() -> None:
    pc = Pc()
    with pytest.raises(ConfigurationError, match="take some out"):
        assign(pc.host.root, AddressSet.span(0xE000_0000, 0xE00F_FFFF))


@pytest.mark.parametrize("where", ["near", "far"])
def test_registers_answer_when_they_are_enabled(where: str) -> None:
    pc = Pc()
    slot, device = (pc.near, pc.near_device) if where == "near" else (pc.far, pc.far_device)
    registers = slot.registers(0)
    assert isinstance(registers, MmioRegisters)
    registers.write32(8, 1)
    assert (registers.read8(8), registers.read64(8), device.values) == (0xFF, MAX_ADDRESS, {})
    enable(slot, MEMORY_SPACE)
    registers.write8(1, 0x11)
    registers.write16(2, 0x2222)
    registers.write32(4, 0x3333_3333)
    registers.write64(8, 0x4444_4444_4444_4444)
    assert [registers.read8(1), registers.read16(2)] == [0x11, 0x2222]
    assert [registers.read32(4), registers.read64(8)] == [0x3333_3333, 0x4444_4444_4444_4444]
    assert [device.values[0, at][0] for at in (1, 2, 4, 8)] == [1, 2, 4, 8]
    registers.barrier()
    assert pc.host.barriers == 1


def test_every_base_address_register_is_a_region_of_its_own() -> None:
    pc = Pc()
    enable(pc.far)
    pc.far.registers(2).write64(0xF8, 9)
    pc.far.registers(0).write32(0xF8, 7)
    assert pc.far_device.values == {(2, 0xF8): (8, 9), (0, 0xF8): (4, 7)}
    with pytest.raises(ConfigurationError, match="no base address register 1"):
        pc.far.registers(1)


@pytest.mark.parametrize(("offset", "width"), [(-4, 32), (2, 32), (4, 64), (4096, 8), (4095, 16), (4092, 64)])
def test_registers_that_do_not_exist(offset: int, width: int) -> None:
    registers = Pc().far.registers(0)
    with pytest.raises(DriverError, match=f"no {width}-bit register"):
        getattr(registers, f"read{width}")(offset)
    with pytest.raises(DriverError, match=f"no {width}-bit register"):
        getattr(registers, f"write{width}")(offset, 0)


def test_a_closed_bridge_answers_nobody() -> None:
    pc = Pc()
    enable(pc.far)
    enable(pc.near)
    pc.bridge.config.write16(COMMAND, 0)
    assert pc.far.registers(0).read32(0) == 0xFFFF_FFFF
    assert pc.near.registers(0).read32(0) == 0
    pc.far.master.dma_write(0, b"x")
    assert pc.memory[0] == 0
    assert pc.far.statistics() == {"aborts": 1, "not_enabled": 0}


def test_who_is_not_enabled_reaches_nothing() -> None:
    pc = Pc()
    pc.memory[:4] = b"data"
    enable(pc.near, MEMORY_SPACE)
    assert pc.near.master.dma_read(0, 4) == b"\xff" * 4
    pc.near.master.dma_write(0, b"evil")
    assert bytes(pc.memory[:4]) == b"data"
    assert pc.near.statistics() == {"aborts": 0, "not_enabled": 2}
    assert pc.near.master.statistics()["by_owner"] == {"unclaimed": {"accesses": 2, "bytes": 8}}
    enable(pc.near, BUS_MASTER)
    assert pc.near.master.dma_read(0, 4) == b"data"
    assert pc.near.config.read16(STATUS) & RECEIVED_MASTER_ABORT == 0


def test_where_no_memory_is_the_master_aborts() -> None:
    pc = Pc()
    enable(pc.near)
    pc.near.master.dma_write(48 * PAGE - 2, b"abcd")
    assert bytes(pc.memory[48 * PAGE - 2 : 48 * PAGE + 2]) == b"ab\0\0"
    assert pc.near.config.read16(STATUS) & RECEIVED_MASTER_ABORT
    pc.near.config.write16(STATUS, RECEIVED_MASTER_ABORT)
    assert not pc.near.config.read16(STATUS) & RECEIVED_MASTER_ABORT
    assert pc.near.master.dma_read(MAX_ADDRESS, 1) == b"\xff"
    assert pc.near.statistics()["aborts"] == 2


def test_a_bridge_narrows() -> None:
    """A master behind it does not reach what lies above the bridge's limit, and gets no other bytes instead."""
    pc = Pc(limit=20 * PAGE - 1)
    enable(pc.near)
    enable(pc.far)
    pc.near.master.dma_write(20 * PAGE - 2, b"wxyz")
    assert pc.far.master.dma_read(20 * PAGE - 2, 4) == b"wx\xff\xff"
    pc.far.master.dma_write(20 * PAGE - 1, b"!!")
    assert bytes(pc.memory[20 * PAGE - 2 : 20 * PAGE + 2]) == b"w!yz"
    assert pc.far.statistics()["aborts"] == 2
    assert pc.near.statistics()["aborts"] == 0


def test_a_bridge_does_not_forward_its_own_window_upstream() -> None:
    pc = Pc()
    enable(pc.far)
    pc.bridge.config.write16(0x20, 0)  # the window now covers all memory
    pc.bridge.config.write16(0x22, 0)
    assert pc.far.master.dma_read(PAGE, 2) == b"\xff\xff"


def test_the_interrupt_pin() -> None:
    pc = Pc()
    pin, config = pc.near.pin, pc.near.config
    interrupt = pin.assert_
    interrupt()
    assert pc.line.pending
    assert config.read16(STATUS) & INTERRUPT_STATUS
    pin.deassert()
    assert not config.read16(STATUS) & INTERRUPT_STATUS
    assert pc.line.statistics()["raised"] == 1


def test_software_can_switch_the_interrupt_off() -> None:
    pc = Pc()
    pin, config = pc.near.pin, pc.near.config
    interrupt = pin.assert_
    config.write16(COMMAND, INTX_DISABLE)
    interrupt()
    assert not pc.line.pending
    assert config.read16(STATUS) & INTERRUPT_STATUS  # it says so all the same
    config.write16(COMMAND, 0)
    assert pc.line.pending


def test_slots() -> None:
    pc = Pc()
    with pytest.raises(ConfigurationError, match="slot 3 of pci0 is taken"):
        pc.host.root.slot("other", 3, pc.line)
    with pytest.raises(ConfigurationError, match="slot 32 of pci0"):
        PciBridge(pc.host.root, "other", 32)
    with pytest.raises(ConfigurationError, match="a master 'near' already"):
        pc.host.root.slot("near", 4, pc.line)
    with pytest.raises(ConfigurationError, match="a device in slot 'near' already"):
        pc.near.plug(Echo({}))
    empty = pc.host.root.slot("empty", 4, pc.line)
    with pytest.raises(ConfigurationError, match="plug a device in first"):
        empty.registers(0)
    assert pc.host.read(0, 4) == 0xFFFF_FFFF


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda p: (p[0], p[0] + p[1])), max_size=5)


@given(st.integers(-5, 60), st.integers(1, 30), spans)
def test_split_against_bytes(address: int, length: int, among: list[tuple[int, int]]) -> None:
    inside = AddressSet(among)
    pieces = list(split(address, length, inside))
    numbered = [(at + i, yes) for yes, at, count in pieces for i in range(count)]
    assert [at for at, _ in numbered] == list(range(address, address + length))
    if address >= 0:
        assert all(yes == (at in inside) for at, yes in numbered)
        assert all(one[0] != two[0] for one, two in pairwise(pieces))
    else:
        assert [yes for yes, _, _ in pieces] == [False]


def test_split_beyond_64_bits() -> None:
    everything = AddressSet.everything()
    assert list(split(MAX_ADDRESS, 1, everything)) == [(True, MAX_ADDRESS, 1)]
    assert list(split(MAX_ADDRESS, 2, everything)) == [(False, MAX_ADDRESS, 2)]
