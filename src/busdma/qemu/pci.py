"""PCI of a QEMU machine: configuration by the machine's own mechanism, memory and I/O space, and what was found.

Source: PCI Local Bus Specification 3.0, 3.2.2.3.2 (configuration mechanism #1) and chapter 6; PCI Express Base
Specification 3.0, 7.2.2 (memory-mapped configuration).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.attachment import MmioRegisters
from busdma.machine.handle import Handle32, check_offset, check_value
from busdma.machine.pci_firmware import BASE_ADDRESS, HEADER, assign
from busdma.qemu.qtest import Qtest
from busdma.qemu.registers import Mmio, Ports

NOBODY: Final = (0, 0xFFFF_FFFF)  #: vendor and device, where no function answers
DEVICES: Final = 32
MULTIFUNCTION: Final = 0x80  # HEADER
_SIZE: Final = 256
_PORTS, _WIDE = 0b1, 0b100  # base address register


class Mechanism(Protocol):
    """How configuration space is reached. `function`: device << 3 | function."""

    def read(self, bus: int, function: int, offset: int, size: int) -> int:
        """`size` bytes at `offset`; ones where nobody answers."""

    def write(self, bus: int, function: int, offset: int, size: int, value: int) -> None:
        """Write them."""


class Indirect:
    """Mechanism #1, by ports 0xCF8 and 0xCFC."""

    def __init__(self, qtest: Qtest) -> None:
        self._qtest = qtest
        self._lock = threading.Lock()  # two accesses that belong together

    def read(self, bus: int, function: int, offset: int, size: int) -> int:
        """See `Mechanism.read`."""
        with self._lock:
            self._select(bus, function, offset)
            return self._qtest.port_read(0xCFC + offset % 4, size)

    def write(self, bus: int, function: int, offset: int, size: int, value: int) -> None:
        """See `Mechanism.write`."""
        with self._lock:
            self._select(bus, function, offset)
            self._qtest.port_write(0xCFC + offset % 4, size, value)

    def _select(self, bus: int, function: int, offset: int) -> None:
        self._qtest.port_write(0xCF8, 4, 1 << 31 | bus << 16 | function << 8 | offset & 0xFC)


class Mapped:
    """Configuration space in memory from physical address `base` on: 256 bytes a function, or with `express` 4096."""

    def __init__(self, qtest: Qtest, base: int, *, express: bool = False) -> None:
        self._qtest = qtest
        self._base = base
        self._shift = 12 if express else 8

    def read(self, bus: int, function: int, offset: int, size: int) -> int:
        """See `Mechanism.read`."""
        return self._qtest.read(self._at(bus, function) + offset, size)

    def write(self, bus: int, function: int, offset: int, size: int, value: int) -> None:
        """See `Mechanism.write`."""
        self._qtest.write(self._at(bus, function) + offset, size, value)

    def _at(self, bus: int, function: int) -> int:
        return self._base + ((bus << 8 | function) << self._shift)


class Config(Handle32):
    """The configuration space of one function: `busdma.machine.attachment.ConfigSpace`."""

    __slots__ = ("_mechanism", "bus", "function")

    def __init__(self, mechanism: Mechanism, bus: int, function: int) -> None:
        self._mechanism, self.bus, self.function = mechanism, bus, function

    @property
    def source(self) -> int:
        """What its requests carry: bus << 8 | device << 3 | function."""
        return self.bus << 8 | self.function

    def _read(self, offset: int, size: int) -> int:
        check_offset(repr(self), offset, size, _SIZE)
        return self._mechanism.read(self.bus, self.function, offset, size)

    def _write(self, offset: int, size: int, value: int) -> None:
        check_offset(repr(self), offset, size, _SIZE)
        check_value(offset, size, value)
        self._mechanism.write(self.bus, self.function, offset, size, value)

    def __repr__(self) -> str:
        return f"{self.bus:02x}:{self.function >> 3:02x}.{self.function & 7}"


class PciBus:
    """Bus `number`, as `busdma.machine.pci_firmware.Bus`."""

    def __init__(self, mechanism: Mechanism, number: int = 0) -> None:
        self.name = f"pci{number}"
        self.number = number
        self._mechanism = mechanism

    def functions(self) -> Iterator[Config]:
        """As `busdma.machine.pci_firmware.Bus.functions`."""
        for device in range(DEVICES):
            for number in range(8):
                config = Config(self._mechanism, self.number, device << 3 | number)
                there = config.read32(0) not in NOBODY
                if there:
                    yield config
                if number == 0 and not (there and config.read8(HEADER) & MULTIFUNCTION):
                    break

    def behind(self, bridge: Config, number: int) -> PciBus:
        """As `busdma.machine.pci_firmware.Bus.behind`."""
        return PciBus(self._mechanism, number)


@dataclass(frozen=True, slots=True)
class Spaces:
    """Where a machine has its PCI spaces. `memory_at`: physical address of memory space's address 0.

    `memory` and `ports` are what firmware may hand out. `ports_at`: physical address of port 0; None: x86's own ports.
    """

    memory: AddressSet
    ports: AddressSet
    memory_at: int = 0
    ports_at: int | None = None


class PciHost:
    """All PCI of the machine: numbered, sized and given addresses when this is made."""

    def __init__(self, qtest: Qtest, mechanism: Mechanism, spaces: Spaces) -> None:
        self._qtest = qtest
        self._mechanism = mechanism
        self._spaces = spaces
        self.root = PciBus(mechanism)
        assign(self.root, spaces.memory, spaces.ports)

    def config(self, bus: int, device: int, function: int = 0) -> Config:
        """The configuration space of the function there. ConfigurationError: none answers."""
        config = Config(self._mechanism, bus, device << 3 | function)
        if config.read32(0) in NOBODY:
            raise ConfigurationError(f"no device answers at {config!r} on PCI: is it in this QEMU, and in this slot?")
        return config

    def registers(self, config: Config, name: str, bar: int = 0) -> MmioRegisters:
        """Those behind base address register `bar`, in memory or I/O space. ConfigurationError: there is none."""
        offset = BASE_ADDRESS + 4 * bar
        value = config.read32(offset)
        config.write32(offset, 0xFFFF_FFFF)  # decoding is not enabled: its driver does that
        mask = config.read32(offset)
        config.write32(offset, value)
        if not mask:
            raise ConfigurationError(f"{name} has no base address register {bar}")
        if mask & _PORTS:
            base, room = value & ~0b11, (~(mask & ~0b11) & 0xFFFF) + 1
            if self._spaces.ports_at is None:
                return Ports(self._qtest, name, base, room)
            return Mmio(self._qtest, name, self._spaces.ports_at + base, room)
        room = (~(mask & ~0b1111) & 0xFFFF_FFFF) + 1
        return Mmio(self._qtest, name, self._spaces.memory_at + (value & ~0b1111), room)
