"""The IOMMU of a simulated PC, wired up: see `busdma.machine.remapping`."""

from __future__ import annotations

from busdma.machine.remapping import Domains
from busdma.sim.bus.pci import PciHost, PciSlot
from busdma.sim.bus.pci_bridge import PciBridge
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.iommu.dmar import DmaRemapping
from busdma.sim.simulated import SimulatedMachine
from busdma.tag import Tag
from busdma.translators.dmar import DmarUnit


class PcIommu:
    """The unit, and its software. `standing`: entries stay until their room is needed."""

    def __init__(self, machine: SimulatedMachine, host: PciHost, *, standing: bool = False) -> None:
        memory, frames = machine.ram.bus, machine.frames
        self.model = DmaRemapping(memory, seed=machine.seed)
        self.model.tlb.stale = machine.ram.stale
        self._host = host
        self.unit = DmarUnit(ChipRegisters(host, self.model), memory, lambda: frames.allocate_run(1, "tables"))
        self.domains = Domains(machine, self.unit, standing=standing)
        self.pools = self.domains.pools
        host.way = lambda address: "remap"
        self.unit.enable()

    def behind(self, tag: Tag, thing: PciSlot | PciBridge, bus: int, number: int) -> Tag:
        """Put a device or bridge in slot `number` of `bus` behind the unit; the tag for it, from the bus's `tag`."""
        source = bus << 8 | number << 3
        thing.upstream = self.model.route(thing.name, source, self._host.to_memory).pieces
        return self.domains.behind(tag, thing.name, source)
