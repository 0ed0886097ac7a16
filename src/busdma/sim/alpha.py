"""``sim:alpha``: an AlphaStation of 1996. 1.5 GiB of memory behind the 21172 (CIA), PCI and, behind a bridge, ISA.

Nothing on these buses has the address that memory has. The bridge offers two windows:

===============  ====================  ==========================================================================
PCI addresses    lead to               mechanism
===============  ====================  ==========================================================================
1 GiB to 2 GiB   the first GiB         window: a constant is added
8 to 16 MiB      any 8 MiB of memory   remap: a scatter-gather map of 1024 pages of 8 KiB; reads fetch 256 bytes
                                       ahead
===============  ====================  ==========================================================================

PCI devices use the first where they can, and the second for memory above 1 GiB. ISA devices have 24 address lines and
see only the second.

===================  ========================================================================
device               what it is
===================  ========================================================================
``esp0``, on PCI     an Am53C974 SCSI controller with one disk
``des0``, on PCI     the DES card, if ``busdma[des]`` is installed
``net0``, on PCI     a PCnet-PCI II at a wire that loops back to it
``aha0``, on ISA     an AHA-1542 with one disk
``des1``, on ISA     the DES card for ISA
===================  ========================================================================

Options of the spec: ``bounce`` (pages that each bounce zone may grow to, 128), ``seed`` (1), ``images`` (folder of the
disk images, kept when closed) and ``disk_mib`` (size of an image that does not exist yet, 64).

What it does not model: the other two windows, byte order tricks of ISA, and the time that buses and the CPU take.

Source: Digital, 21172 data; NetBSD's windows on these machines; Thorpe, USENIX 1998 (a 1542 in an Alpha).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.machine.machine import Machine
from busdma.machine.pci_firmware import assign
from busdma.machine.ram import coherent
from busdma.machine.spec import Options
from busdma.paths import Window
from busdma.sim.bus.isa import WIRES, IsaBus
from busdma.sim.bus.pci import PciHost
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.cards import add_des_isa, add_des_pci, add_pci, add_ports
from busdma.sim.chips.nic import Nic
from busdma.sim.chips.wire import Wire
from busdma.sim.iommu.sgmap import CiaBridge
from busdma.sim.scsi.aha1542 import Aha1542
from busdma.sim.scsi.am53c974 import Am53c974
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.simulated import SimulatedMachine
from busdma.tag import Tag
from busdma.translators.cia import CiaSgmap, open_window
from busdma.waiting import Runtime

PAGE: Final = 8192
GIB: Final = 1 << 30
RAM: Final = 3 * GIB // 2
KERNEL_SPACE: Final = 256 << 20  #: bytes of virtual addresses
DIRECT: Final = Window(GIB, GIB)
MAPPED, MAPPED_SIZE = 8 << 20, 8 << 20
WARM: Final = 16384  #: frames that are given out again first, so that a long run does not fill the host's memory
PCI_REGISTERS: Final = AddressSet.span(0x8000_0000, 0xBFFF_FFFF)  # above both windows
AHA_PORTS: Final = 4
STATION: Final = bytes.fromhex("08002b000001")


class Alpha(SimulatedMachine):
    """See the module's text."""

    def __init__(self, spec: str, runtime: Runtime, options: Options) -> None:
        super().__init__(
            spec,
            runtime,
            options,
            coherent(RAM, check=options.check),
            page=PAGE,
            reuse=WARM,
            kernel_space=KERNEL_SPACE,
        )
        ram = self.ram
        self.cia = CiaBridge(ram.bus)
        self.cia.tlb.stale = ram.stale
        self.host = self.add_bus(PciHost(ram.bus, self.frames, AddressSet.span(0, RAM - 1)))
        self.host.way = _way
        self.host.root.upstream = self.cia.route("pci0", self.host.to_memory).pieces
        upstream = self.cia.route("isa0", self.host.to_memory).pieces
        self.isa = self.add_bus(IsaBus(ram.bus, self.frames, host=self.host, upstream=upstream))
        with self.building():
            registers = ChipRegisters(self.host, self.cia)
            open_window(registers, 1, DIRECT.base, DIRECT.size, DIRECT.target)
            table, where = ram.table(self.frames, MAPPED_SIZE // PAGE * 8, 32768)
            self.sgmap = CiaSgmap(registers, table, where, base=MAPPED, size=MAPPED_SIZE)
            self.pool = self.add_pool("sgmap", self.sgmap, MAPPED, MAPPED + MAPPED_SIZE - 1)
            pci0 = self.domain.root("alpha").bridge("pci0", DIRECT, Window(MAPPED, MAPPED_SIZE, MAPPED, self.pool))
            self._add_to_pci(pci0)
            self._add_to_isa(pci0.derive("isa0", lowaddr=(1 << WIRES) - 1))
            assign(self.host.root, PCI_REGISTERS)

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with the map's pool and its TLB."""
        return {**super().statistics(), "sgmap": self.pool.statistics(), "tlb": self.cia.tlb.statistics()}

    def _add_to_pci(self, tag: Tag) -> None:
        root = self.host.root
        scsi = partial(Am53c974, targets={0: ScsiTarget(self.images.disk("esp0", 0))})
        add_pci(self, root, 5, "esp0", "ncr53c9x", tag, scsi, irq=0)
        add_des_pci(self, root, 6, "des0", tag, irq=1)
        net = partial(Nic, wire=Wire(self.call_at, self.runtime.now), address=STATION)
        add_pci(self, root, 7, "net0", "pcnet", tag, net, irq=2, bar=1)

    def _add_to_isa(self, tag: Tag) -> None:
        irq, drq = 11, 5
        make = partial(Aha1542, irq=irq, dma_channel=drq, targets={0: ScsiTarget(self.images.disk("aha0", 1))})
        add_ports(self, self.isa, 0x330, AHA_PORTS, "aha0", "aha1542", tag, make, irq=irq, drq=drq)
        add_des_isa(self, self.isa, 0x240, "des1", tag, irq=5)


def _way(address: int) -> str:
    """Which of the bridge's windows a PCI address goes through."""
    if DIRECT.base <= address < DIRECT.base + DIRECT.size:
        return "window"
    return "remap" if MAPPED <= address < MAPPED + MAPPED_SIZE else "direct"


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the machine on."""
    return Alpha(spec, runtime, options)
