"""``sim:x86-64``: a PC of today. 16 GiB of memory, and PCI devices of 28, 32 and 64 address lines.

====================  =================================================================================
device                reaches
====================  =================================================================================
``nvme0``, on pci0    everything: an NVMe controller with one namespace
``edu0``, on pci0     256 MiB: the device drives 28 address lines
``des0``, on pci0     3 GiB: the DES card's words have 32 bits; it is there if ``busdma[des]`` is installed
``net0``, on pci0     3 GiB, as its addresses have 32 bits: a PCnet-PCI II, 10 Mb/s, at a wire that loops back to it
``grab0``, on pci0    3 GiB, for the same reason: a Bt848 frame grabber, with a camera at its input
``edu1``, on bridge0  3 GiB: the device drives 64, but the PCI-to-PCI bridge before it forwards only 32
====================  =================================================================================

Options of the spec, as in ``sim:x86-64?bounce=32&seed=3``:

============  ===============  ============================================================
option        default          meaning
============  ===============  ============================================================
``iommu``     off              ``on``: each device has a domain of its own, strictly kept;
                               ``standing``: entries stay until their room is needed
``bounce``    128              pages that each bounce zone may grow to
``seed``      1                where page frames are scattered
``images``    a temporary one  folder of the disk image ``nvme0.img``; kept when closed
``disk_mib``  64               size of an image that does not exist yet, in MiB
============  ===============  ============================================================

Below 4 GiB the last GiB is for devices' registers; the memory that would be there lies above 4 GiB, so physical
addresses go up to 17 GiB. Memory of this machine takes memory of the host only where it was used.

``nvme0`` interrupts by message (MSI-X), all others by their pins; and it has shadow doorbells, as emulated ones do.

What it does not model: caches (the PC is coherent), remapping of interrupts, posted writes that arrive late, and the
time that buses and the CPU take.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.machine.machine import Machine
from busdma.machine.pci_firmware import assign
from busdma.machine.ram import coherent
from busdma.machine.remapping import asked
from busdma.machine.spec import Options
from busdma.sim.bus.messages import MessageController
from busdma.sim.bus.pci import PciBus, PciHost, PciSlot
from busdma.sim.bus.pci_bridge import PciBridge
from busdma.sim.cards import add_des_pci, add_pci
from busdma.sim.chips.edu import Edu
from busdma.sim.chips.grabber import Bt848
from busdma.sim.chips.nic import Nic
from busdma.sim.chips.wire import Wire
from busdma.sim.nvme.controller import NvmeController
from busdma.sim.pc_iommu import PcIommu
from busdma.sim.simulated import SimulatedMachine
from busdma.tag import Tag
from busdma.waiting import Runtime

PAGE: Final = 4096
TOP: Final = 17 << 30  #: the first physical address behind memory
KERNEL_SPACE: Final = 256 << 20  #: bytes of virtual addresses
BIOS_HOLE: Final = AddressSet.span(0xA0000, 0xFFFFF)  # video memory and ROMs
DEVICE_HOLE: Final = AddressSet.span(0xC000_0000, 0xFFFF_FFFF)
WARM: Final = 16384  #: frames that are given out again first, so that a long run does not fill the host's memory
RAM: Final = AddressSet.span(0, TOP - 1) - BIOS_HOLE - DEVICE_HOLE
STATION: Final = bytes.fromhex("020000000001")  #: net0's address
PCI_WINDOW: Final = AddressSet.span(0xE000_0000, 0xFBFF_FFFF)  # where firmware puts the devices' registers


class X8664(SimulatedMachine):
    """See the module's text."""

    def __init__(self, spec: str, runtime: Runtime, options: Options) -> None:
        iommu = asked(spec, options, "off")
        super().__init__(
            spec,
            runtime,
            options,
            coherent(TOP, check=options.check),
            page=PAGE,
            reserved=BIOS_HOLE | DEVICE_HOLE,
            reuse=WARM,
            kernel_space=KERNEL_SPACE,
        )
        self.host = self.add_bus(PciHost(self.ram.bus, self.frames, RAM))
        self.host.messages = MessageController(runtime)
        self.bridge = PciBridge(self.host.root, "bridge0", 30)
        self.wire = Wire(self.call_at, runtime.now)
        self.edus: dict[str, Edu] = {}  #: the models, for tests that inject faults
        pci0 = self.domain.root("pc").derive("pci0")
        self.iommu = None if iommu == "off" else PcIommu(self, self.host, standing=iommu == "standing")
        before = self.iommu.behind(pci0, self.bridge, 0, 30) if self.iommu else pci0
        bridge0 = before.derive("bridge0", lowaddr=self.bridge.limit, clip=True)
        with self.building():
            self._add_to_root(pci0)
            self._add_edu(self.bridge.secondary, 0, "edu1", bridge0, irq=17, address_bits=64)
            for number, thing in self.host.root.plugged.items():
                if self.iommu is not None and isinstance(thing, PciSlot):
                    device = self.devices[thing.name]
                    tag = self.iommu.behind(device.tag, thing, 0, number)
                    self.devices[thing.name] = replace(device, tag=tag)
            assign(self.host.root, PCI_WINDOW)

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with each slot's, and the IOMMU's pools and its TLB."""
        pci = {name: slot.statistics() for name, slot in self.host.slots.items()}
        found = {**super().statistics(), "pci": pci}
        if self.iommu is not None:
            found["iommu"] = self.iommu.domains.statistics()
            found["tlb"] = self.iommu.model.tlb.statistics()
        return found

    def _add_to_root(self, tag: Tag) -> None:
        root = self.host.root
        self._add_edu(root, 3, "edu0", tag, irq=16, address_bits=28)
        ssd = partial(NvmeController, namespaces=[self.images.disk("nvme0", 0)], shadow_doorbells=True)
        self.nvme = add_pci(self, root, 4, "nvme0", "nvme", tag, ssd, irq=18)
        self.des = add_des_pci(self, root, 5, "des0", tag, irq=19)
        net = partial(Nic, wire=self.wire, address=STATION)
        self.net = add_pci(self, root, 6, "net0", "pcnet", tag, net, irq=20, bar=1)
        self.grabber = add_pci(self, root, 7, "grab0", "bt848", tag, Bt848, irq=21)

    def _add_edu(self, bus: PciBus, number: int, name: str, tag: Tag, *, irq: int, address_bits: int) -> None:
        make = partial(Edu, address_bits=address_bits)
        self.edus[name] = add_pci(self, bus, number, name, "edu", tag, make, irq=irq, address_bits=address_bits)


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the PC on."""
    return X8664(spec, runtime, options)
