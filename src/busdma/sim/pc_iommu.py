"""The IOMMU of a PC, wired up: a domain of its own for each PCI device, with bus pages of its own.

A device reaches what its driver has loaded for it, and nothing else. What sits behind a conventional bridge shares the
bridge's domain, as its requests carry the bridge's id.
"""

from __future__ import annotations

from typing import Final

from busdma.addresses import AddressSet
from busdma.mechanisms.iova import IovaPool
from busdma.paths import Window
from busdma.sim.bus.pci import PciHost, PciSlot
from busdma.sim.bus.pci_bridge import PciBridge
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.iommu.dmar import DmaRemapping
from busdma.sim.simulated import SimulatedMachine
from busdma.tag import Tag
from busdma.translators.dmar import DmarUnit

PAGE: Final = 4096
#: what a device has: enough for what it loads at once, little enough for all tables, also for devices of 28 lines. Bus
#: addresses below are never used: a device that was not programmed reads from 0 on
WINDOW: Final = AddressSet.span(1 << 20, (1 << 28) - 1)


class PcIommu:
    """The unit, and its software. `standing`: entries stay until their room is needed."""

    def __init__(self, machine: SimulatedMachine, host: PciHost, *, standing: bool = False) -> None:
        memory, frames = machine.ram.bus, machine.frames
        self.model = DmaRemapping(memory, seed=machine.seed)
        self.model.tlb.stale = machine.ram.stale
        self.pools: dict[str, IovaPool] = {}  #: by device
        self._machine = machine
        self._host = host
        self._standing = standing
        self.unit = DmarUnit(ChipRegisters(host, self.model), memory, lambda: frames.allocate_run(1, "tables"))
        host.way = lambda address: "remap"
        self.unit.enable()

    def behind(self, tag: Tag, thing: PciSlot | PciBridge, bus: int, number: int) -> Tag:
        """Put a device or bridge in slot `number` of `bus` behind the unit; the tag for it, from the bus's `tag`."""
        source = bus << 8 | number << 3
        thing.upstream = self.model.route(thing.name, source, self._host.to_memory).pieces
        translator = self.unit.domain(thing.name, source, WINDOW)
        first, last = WINDOW.intervals[0]
        translator.prepare(first, (last + 1 - first) // PAGE)  # a load must not wait for a table
        pool = self._machine.add_pool(f"dmar of {thing.name}", translator, first, last, standing=self._standing)
        self.pools[thing.name] = pool
        return tag.bridge(f"dmar-{thing.name}", Window(0, last + 1, 0, pool))
