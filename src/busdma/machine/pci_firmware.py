"""What firmware does to a PCI bus at power-on: it numbers the buses, sizes the devices and gives them addresses.

Bridges are enabled, devices are not: that is their drivers' part. Everything goes through configuration space, as on a
real machine, and so it is the same on every back end.

Source: PCI Local Bus Specification 3.0, 6.2.5.1 (how a base address register tells its size); PCI-to-PCI Bridge
Architecture Specification 1.2, 3.2 (bus numbers, base and limit registers) and 3.2.5.6 (bridges of 32-bit I/O).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, Protocol, Self, TypeVar

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.attachment import ConfigSpace

COMMAND, CLASS, HEADER, BASE_ADDRESS = 0x04, 0x08, 0x0E, 0x10
PRIMARY, SECONDARY, SUBORDINATE = 0x18, 0x19, 0x1A
IO_BASE, IO_LIMIT, MEMORY_BASE, MEMORY_LIMIT, PREFETCH_BASE, PREFETCH_LIMIT = 0x1C, 0x1D, 0x20, 0x22, 0x24, 0x26
IO_BASE_UPPER, IO_LIMIT_UPPER = 0x30, 0x32
IO_SPACE, MEMORY_SPACE, BUS_MASTER = 0x1, 0x2, 0x4  # COMMAND
HOST_BRIDGE: Final = 0x0600  #: class: its base address registers, if it has any, are not a device's
BARS: Final = {0: 6, 1: 2}  #: by header type
MEMORY_GRAIN, PORT_GRAIN = 1 << 20, 1 << 12  # of what a bridge forwards
PORTS: Final = 1 << 16  #: I/O space of a bridge that does not have _WIDE_PORTS in IO_BASE
_WIDE_PORTS: Final = 0x1
_ONES: Final = 0xFFFF_FFFF
_TYPE, _WIDE, _PORTS = 0b1111, 0b100, 0b1
_CLOSED: Final = 0xFFF0  # a base, and below it the limit: nothing is forwarded


C = TypeVar("C", bound=ConfigSpace)


class Bus(Protocol[C]):
    """One PCI bus, as configuration reaches it."""

    name: str

    def functions(self) -> Iterable[C]:
        """Those that answer, in the order of their numbers."""

    def behind(self, bridge: C, number: int) -> Self:
        """The bus behind one of them, which has just been told that it is bus `number`."""


class _Space:
    """Addresses that are handed out from the lowest on."""

    def __init__(self, what: str, within: AddressSet | None, top: int) -> None:
        self.what = what
        self.within = within
        self.first, last = within.intervals[0] if within is not None else (0, -1)
        self.at = self.first
        self._last = min(last, top)

    def align(self, size: int) -> int:
        self.at = -(-self.at // size) * size
        return self.at

    def take(self, size: int) -> int:
        at = self.align(size)
        self.at += size
        return at

    def check(self, name: str) -> None:
        if self.at - 1 > self._last and self.at > self.first:
            raise ConfigurationError(
                f"{name}: the devices need {self.at - self.first:#x} bytes of {self.what} from {self.first:#x} on, and "
                f"there is only {self.within or 'none'}, within {self._last.bit_length()} bits: take some out"
            )


class _Firmware(Generic[C]):
    def __init__(self, memory: AddressSet, ports: AddressSet | None) -> None:
        self.memory = _Space("memory space", memory, _ONES)
        self.ports = _Space("I/O space", ports, _ONES)
        self.last_bus = 0

    def bus(self, bus: Bus[C], number: int) -> None:
        for config in bus.functions():
            header = config.read8(HEADER) & 0x7F
            if config.read32(CLASS) >> 16 != HOST_BRIDGE:
                self.device(config, BARS.get(header, 0))
            if header == 1:
                self.bridge(bus, config, number)

    def bridge(self, bus: Bus[C], config: C, number: int) -> None:
        self.last_bus = behind = self.last_bus + 1
        config.write8(PRIMARY, number)
        config.write8(SECONDARY, behind)
        config.write8(SUBORDINATE, 0xFF)
        memory, ports = self.memory.align(MEMORY_GRAIN), self.ports.align(PORT_GRAIN)
        self.bus(bus.behind(config, behind), behind)
        config.write8(SUBORDINATE, self.last_bus)
        memory_end, ports_end = self.memory.align(MEMORY_GRAIN), self.ports.align(PORT_GRAIN)
        config.write16(MEMORY_BASE, memory >> 16)
        config.write16(MEMORY_LIMIT, (memory_end - MEMORY_GRAIN) >> 16 if memory_end else 0)  # below: nothing is there
        config.write16(PREFETCH_BASE, _CLOSED)
        config.write16(PREFETCH_LIMIT, 0)
        if self.ports.within is not None:
            self.forward_ports(bus.name, config, ports, ports_end)
        config.write16(COMMAND, IO_SPACE | MEMORY_SPACE | BUS_MASTER)

    def forward_ports(self, name: str, config: ConfigSpace, first: int, end: int) -> None:
        base, limit = (first, end - PORT_GRAIN) if end > first else (_CLOSED & 0xF000, 0)
        if config.read8(IO_BASE) & _WIDE_PORTS:
            config.write16(IO_BASE_UPPER, base >> 16)
            config.write16(IO_LIMIT_UPPER, limit >> 16)
        elif end > PORTS:
            raise ConfigurationError(
                f"{name}: what is behind {config!r} needs I/O space up to {end:#x}, and that bridge forwards 64 KiB: "
                "take some out"
            )
        config.write8(IO_BASE, base >> 8 & 0xF0)
        config.write8(IO_LIMIT, limit >> 8 & 0xF0)

    def device(self, config: ConfigSpace, bars: int) -> None:
        register = 0
        while register < bars:
            offset = BASE_ADDRESS + 4 * register
            config.write32(offset, _ONES)
            answer = config.read32(offset)
            wide = answer & _PORTS == 0 and answer & _WIDE
            if answer & _PORTS:
                if self.ports.within is not None:
                    config.write32(offset, self.ports.take((~(answer & ~0b11) & 0xFFFF) + 1))
            elif answer:
                config.write32(offset, self.memory.take((~(answer & ~_TYPE) & _ONES) + 1))
            if wide:
                config.write32(offset + 4, 0)
            register += 2 if wide else 1


def assign(root: Bus[C], memory: AddressSet, ports: AddressSet | None = None) -> None:
    """Give everything on `root`, which is bus 0, and behind it addresses within the first interval of `memory`.

    `ports`: I/O space; without it base address registers for ports are left alone. ConfigurationError if one of them is
    too small, or beyond what 32-bit registers hold, or the 16 bits of some bridges' I/O space.
    """
    firmware: _Firmware[C] = _Firmware(memory, ports)
    firmware.bus(root, 0)
    firmware.memory.check(root.name)
    firmware.ports.check(root.name)
