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

What it does not model: caches (the PC is coherent), message-signalled interrupts, posted writes that arrive late, and
the time that buses and the CPU take.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.machine.machine import DataTraffic, Device, Machine
from busdma.machine.space import AddressSpace
from busdma.machine.spec import Options
from busdma.sim.des import DesPci, add_to_pci
from busdma.sim.disk import Disk
from busdma.sim.edu import Edu
from busdma.sim.grabber import Bt848
from busdma.sim.images import Images
from busdma.sim.memory import coherent
from busdma.sim.nic import Nic
from busdma.sim.nvme import NvmeController
from busdma.sim.pc_iommu import PcIommu
from busdma.sim.pci import PciBus, PciHost, PciSlot
from busdma.sim.pci_bridge import PciBridge
from busdma.sim.pci_firmware import assign
from busdma.sim.wire import Wire
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


class X8664(Machine):
    """See the module's text."""

    def __init__(self, spec: str, runtime: Runtime, options: Options) -> None:
        seed = options.number("seed", 1)
        limit = options.number("bounce", 128, least=1)
        images = Images(spec, options, seed=seed)
        iommu = options.text("iommu", "off")
        if iommu not in ("off", "on", "standing"):
            raise ConfigurationError(f"{spec}: iommu={iommu}: give off, on or standing")
        options.finish()
        ram = coherent(TOP, check=options.check)
        frames = FrameAllocator(0, TOP // PAGE, page_size=PAGE, seed=seed, reserved=BIOS_HOLE | DEVICE_HOLE, reuse=WARM)
        domain = ram.domain(frames, runtime, bounce_limit=limit)
        super().__init__(spec, domain, AddressSpace("kernel", ram.cpu, frames, pages=KERNEL_SPACE // PAGE))
        self.host = PciHost(ram.bus, frames, RAM)
        self.host.watch = ram.watch
        self.bridge = PciBridge(self.host.root, "bridge0", 30)
        self.slots: dict[str, PciSlot] = {}
        self.edus: dict[str, Edu] = {}  #: the models, for tests that inject faults
        self.checker = ram.checker
        self.at_close(images.close)
        pci0 = domain.root("pc").derive("pci0")
        self.iommu = PcIommu(self.host, domain, ram.bus, seed=seed, standing=iommu != "on") if iommu != "off" else None
        if self.iommu is not None:
            self.iommu.model.tlb.stale = ram.stale
        before = self.iommu.behind(pci0, self.bridge, 0, 30) if self.iommu else pci0
        bridge0 = before.derive("bridge0", lowaddr=self.bridge.limit, clip=True)
        try:
            self._add_edu("edu0", self.host.root, 3, pci0, irq=16, address_bits=28)
            self._add_edu("edu1", self.bridge.secondary, 0, bridge0, irq=17, address_bits=64)
            self.nvme = self._add_nvme("nvme0", self.host.root, 4, pci0, irq=18, medium=images.disk("nvme0", 0))
            self.des: DesPci | None = None
            if card := add_to_pci(self, self.host.root, "des0", 5, pci0, irq=19):
                self.des, self.slots["des0"] = card
            self.net = self._add_net("net0", self.host.root, 6, pci0, irq=20)
            self.grabber = self._add_grabber("grab0", self.host.root, 7, pci0, irq=21)
            for number, thing in self.host.root.plugged.items():
                if self.iommu is not None and isinstance(thing, PciSlot):
                    device = self.devices[thing.name]
                    tag = self.iommu.behind(device.tag, thing, 0, number)
                    self.devices[thing.name] = replace(device, tag=tag)
            assign(self.host.root, PCI_WINDOW)
        except BaseException:
            self.close()
            raise

    def traffic(self, device: str) -> DataTraffic:
        """See `Machine.traffic`."""
        return self.host.traffic(device)

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with the bus's own counts by device."""
        pci = {name: slot.statistics() for name, slot in self.slots.items()}
        found = {**super().statistics(), "bus": self.host.statistics(), "pci": pci}
        if self.iommu is not None:
            found["iommu"] = {name: pool.statistics() for name, pool in self.iommu.pools.items()}
            found["tlb"] = self.iommu.model.tlb.statistics()
        return found

    def _add_edu(self, name: str, bus: PciBus, number: int, tag: Tag, *, irq: int, address_bits: int) -> None:
        slot, line = self._slot(name, bus, number, irq)
        self.edus[name] = edu = Edu(slot.master, slot.pin, self._call_at, self.runtime.now, address_bits=address_bits)
        slot.plug(edu)
        self._found(slot, "edu", tag, line, {"irq": irq, "address_bits": address_bits})

    def _add_nvme(self, name: str, bus: PciBus, number: int, tag: Tag, *, irq: int, medium: Disk) -> NvmeController:
        slot, line = self._slot(name, bus, number, irq)
        nvme = NvmeController(slot.master, slot.pin, self._call_at, self.runtime.now, namespaces=[medium])
        slot.plug(nvme)
        self._found(slot, "nvme", tag, line, {"irq": irq})
        return nvme

    def _add_net(self, name: str, bus: PciBus, number: int, tag: Tag, *, irq: int) -> Nic:
        slot, line = self._slot(name, bus, number, irq)
        self.wire = Wire(self._call_at, self.runtime.now)
        net = Nic(slot.master, slot.pin, self._call_at, self.runtime.now, wire=self.wire, address=STATION)
        slot.plug(net)
        self._found(slot, "pcnet", tag, line, {"irq": irq}, bar=1)
        return net

    def _add_grabber(self, name: str, bus: PciBus, number: int, tag: Tag, *, irq: int) -> Bt848:
        slot, line = self._slot(name, bus, number, irq)
        grabber = Bt848(slot.master, slot.pin, self._call_at, self.runtime.now)
        slot.plug(grabber)
        self._found(slot, "bt848", tag, line, {"irq": irq})
        return grabber

    def _slot(self, name: str, bus: PciBus, number: int, irq: int) -> tuple[PciSlot, Interrupt]:
        line = Interrupt(f"irq {irq}", self.runtime)
        slot = self.slots[name] = bus.slot(name, number, line)
        return slot, line

    def _found(
        self, slot: PciSlot, driver: str, tag: Tag, line: Interrupt, properties: dict[str, int], *, bar: int = 0
    ) -> None:
        name, registers = slot.name, slot.registers(bar)
        self.devices[name] = Device(name, driver, "pci", tag, registers, line, properties, slot.config)

    def _call_at(self, when: int, fn: Any) -> object:
        return self.runtime.call_at(when, self.host.serialised(fn))


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the PC on."""
    return X8664(spec, runtime, options)
