"""A PCI-to-PCI bridge: a bus behind a bus, whose masters reach only what the bridge forwards.

Downstream it forwards the CPU's accesses within its memory window. Upstream it forwards its masters' accesses outside
that window, once software has enabled it as a master, up to the highest address that it understands: a bridge without
dual address cycles has 32 address lines, and nobody behind it reaches memory above 4 GiB.

Source: PCI-to-PCI Bridge Architecture Specification 1.2: 3.2 (configuration), 4.3 (memory window), 4.6 (upstream).
"""

from __future__ import annotations

from typing import Final

from busdma.addresses import AddressSet
from busdma.sim.bus.pci import Claim, PciBus, Pieces, split
from busdma.sim.bus.pci_config import BUS_MASTER, MEMORY_SPACE, ConfigSpace

CLASS_CODE: Final = 0x060400
HEADER: Final = 1
PRIMARY, SECONDARY, SUBORDINATE, MEMORY_BASE, MEMORY_LIMIT = 0x18, 0x19, 0x1A, 0x20, 0x22
GRAIN: Final = 1 << 20  #: the window begins and ends at multiples of this
NO_DAC: Final = (1 << 32) - 1  #: the highest address without dual address cycles


class PciBridge:
    """A bridge in slot `number` of `parent`; ``secondary`` is the bus behind it. `limit`: the highest address upstream.

    At power-on it forwards nothing: see `busdma.machine.pci_firmware`.
    """

    def __init__(self, parent: PciBus, name: str, number: int, *, limit: int = NO_DAC) -> None:
        parent.check_free(number)
        self.name = name
        self.limit = limit
        self.upstream = parent.upstream  #: the way of what it forwards; through an IOMMU, one of its own
        self.config = ConfigSpace(0x8086, 0x244E, CLASS_CODE, {}, header=HEADER, pin=0)
        for register in (PRIMARY, SECONDARY, SUBORDINATE):
            self.config.define(register, 1, writable=0xFF)
        for register in (MEMORY_BASE, MEMORY_LIMIT):
            self.config.define(register, 2, writable=0xFFF0)
        self.secondary = PciBus(parent.host, name, self._forward)
        parent.plugged[number] = self

    def window(self) -> AddressSet:
        """The addresses of memory space that lie behind the bridge; none if the limit is below the base (3.2.5.8)."""
        config = self.config
        base = config.peek(MEMORY_BASE, 2) << 16
        last = (config.peek(MEMORY_LIMIT, 2) << 16) | (GRAIN - 1)
        return AddressSet.span(base, last) if config.command(MEMORY_SPACE) and base <= last else AddressSet()

    def claim(self, address: int, size: int) -> Claim | None:
        """As `busdma.sim.bus.pci.Plugged.claim`."""
        return self.secondary.claim(address, size) if self.window().covers(address, address + size - 1) else None

    def _forward(self, address: int, length: int, write: bool) -> Pieces:
        if not self.config.command(BUS_MASTER):
            yield None, length
            return
        for inside, at, count in split(address, length, AddressSet.span(0, self.limit) - self.window()):
            if inside:
                yield from self.upstream(at, count, write)
            else:
                yield None, count
