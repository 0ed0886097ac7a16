"""What firmware does to a PCI bus at power-on: it numbers the buses, sizes the devices and gives them addresses.

Bridges are enabled, devices are not: that is their drivers' part. Everything goes through configuration space, as on a
real machine; the device models know nothing of it.

Source: PCI Local Bus Specification 3.0, 6.2.5.1 (how a base address register tells its size).
"""

from __future__ import annotations

from itertools import count
from typing import Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.sim.bus import pci_bridge
from busdma.sim.bus.pci import PciBus
from busdma.sim.bus.pci_bridge import GRAIN, PciBridge
from busdma.sim.bus.pci_config import BASE_ADDRESS, BUS_MASTER, COMMAND, HEADER, MEMORY_SPACE, ConfigSpace

BARS: Final = 6
_ONES: Final = 0xFFFF_FFFF
_TYPE, _WIDE, _PORTS = 0b1111, 0b100, 0b1


def assign(root: PciBus, where: AddressSet) -> None:
    """Give everything on `root` and behind it addresses within the first interval of `where`, from its start on.

    ConfigurationError if that is too small, or beyond 32 bits.
    """
    first, last = where.intervals[0]
    end = _assign_bus(root, 0, count(1), first)
    if end - 1 > min(last, _ONES):
        raise ConfigurationError(
            f"{root.name}: the devices need {end - first:#x} bytes of memory space from {first:#x} on, and there is "
            f"only {where}, within 32 bits: take some out"
        )


def _assign_bus(bus: PciBus, number: int, numbers: count[int], at: int) -> int:
    """The first address behind what was assigned."""
    for _, thing in sorted(bus.plugged.items()):
        config = thing.config
        if isinstance(thing, PciBridge):
            at = _align(at, GRAIN)
            behind = next(numbers)
            end = _align(_assign_bus(thing.secondary, behind, numbers, at), GRAIN)
            config.write8(pci_bridge.PRIMARY, number)
            config.write8(pci_bridge.SECONDARY, behind)
            config.write8(pci_bridge.SUBORDINATE, max(_highest(thing.secondary, behind), behind))
            config.write16(pci_bridge.MEMORY_BASE, at >> 16)
            config.write16(pci_bridge.MEMORY_LIMIT, (end - GRAIN) >> 16)  # below the base if nothing is behind it
            config.write16(COMMAND, MEMORY_SPACE | BUS_MASTER)
            at = end
        else:
            at = _assign_device(config, at)
    return at


def _assign_device(config: ConfigSpace, at: int) -> int:
    if config.read8(HEADER) & 0x7F:
        return at
    register = 0
    while register < BARS:
        offset = BASE_ADDRESS + 4 * register
        config.write32(offset, _ONES)
        answer = config.read32(offset)
        wide = answer & _WIDE
        if answer and not answer & _PORTS:
            size = (~(answer & ~_TYPE) & _ONES) + 1
            at = _align(at, size)
            config.write32(offset, at)
            at += size
        if wide:
            config.write32(offset + 4, 0)
        register += 2 if wide else 1
    return at


def _highest(bus: PciBus, number: int) -> int:
    """The highest bus number behind `bus`."""
    for thing in bus.plugged.values():
        if isinstance(thing, PciBridge):
            number = max(number, thing.config.read8(pci_bridge.SUBORDINATE))
    return number


def _align(at: int, size: int) -> int:
    return -(-at // size) * size
