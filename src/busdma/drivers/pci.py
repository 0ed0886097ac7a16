"""What the front ends of all PCI drivers do: see that it is their device, and enable it.

Source: PCI Local Bus Specification 3.0, 6.2.1 (device identification) and 6.2.2 (device control).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from busdma.errors import ConfigurationError, DeviceFault
from busdma.machine.attachment import Attachment, ConfigSpace, MmioRegisters

VENDOR, COMMAND, REVISION = 0x00, 0x04, 0x08
NOBODY: Final = 0xFFFF_FFFF
MEMORY_SPACE: Final = 0x0002
BUS_MASTER: Final = 0x0004


class PciDevice:
    """The function of `attachment`: ``registers``, those of its first base address register, and ``config``."""

    __slots__ = ("config", "name", "registers")

    def __init__(self, attachment: Attachment) -> None:
        """ConfigurationError: it is not on a PCI bus. DeviceFault: no function answers."""
        config, registers = attachment.config, attachment.registers
        if config is None or not isinstance(registers, MmioRegisters):
            raise ConfigurationError(f"{attachment.name} is not on a PCI bus: attach the front end of its own bus")
        self.name = attachment.name
        self.config: ConfigSpace = config
        self.registers: MmioRegisters = registers
        if config.read32(VENDOR) == NOBODY:
            raise DeviceFault(f"{self.name}: no function answers in its slot (vendor and device read as ones)")

    @property
    def identity(self) -> tuple[int, int]:
        """(vendor, device)."""
        both = self.config.read32(VENDOR)
        return both & 0xFFFF, both >> 16

    @property
    def class_code(self) -> int:
        """24 bits: base class, subclass, programming interface."""
        return self.config.read32(REVISION) >> 8

    def expect(self, known: Collection[tuple[int, int]]) -> None:
        """ConfigurationError unless the device is one of these (vendor, device)."""
        if self.identity not in known:
            names = ", ".join(f"{vendor:04x}:{device:04x}" for vendor, device in known)
            vendor, device = self.identity
            raise ConfigurationError(f"{self.name} is a {vendor:04x}:{device:04x}; this driver is for {names}")

    def enable(self, *, memory_space: bool = True, bus_master: bool = True) -> None:
        """Let the registers answer, and the device reach memory; or not. Other bits of the command stay."""
        command = self.config.read16(COMMAND) & ~(MEMORY_SPACE | BUS_MASTER)
        command |= (MEMORY_SPACE if memory_space else 0) | (BUS_MASTER if bus_master else 0)
        self.config.write16(COMMAND, command)
