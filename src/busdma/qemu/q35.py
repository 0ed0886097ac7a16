"""``qemu:q35``: QEMU's Q35 and ICH9, a PC of 2009, behind a VT-d. 64 MiB of memory, PCI with a PCI-to-PCI bridge.

===========================  ========================================================================
device                       what it is
===========================  ========================================================================
``nvme0``, on bus 0          an NVMe controller with one disk
``edu0``, on bus 0           QEMU's device for teaching, 28 address lines
``esp0``, behind ``bridge0``  an Am53C974 SCSI controller with one disk, 32 address lines
``edu1``, behind ``bridge0``  another edu
===========================  ========================================================================

Each device on bus 0 has a domain of its own. Behind the bridge, a conventional one, all requests carry the bridge's id:
``esp0`` and ``edu1`` share its domain, and could reach what is loaded for one another.

Options of the spec: those of `busdma.qemu.setup` and `busdma.machine.remapping` (``iommu``, on), ``warp`` (see
`busdma.qemu.pc`) and ``faults`` (1: the VT-d is asked after every transfer whether it has refused something, which
reads a register; 0: only when the machine's ``fault_log`` is looked at, and no driver is told).

What it does not model: the VT-d keeps one fault of each device until it is taken, and says nothing of an access that a
cached translation refuses. Everything else is under "What QEMU's models do not show" in docs/qemu.md.

Source: Intel ICH9 data sheet, 5.10 (interrupt swizzling, PIRQ E to H at I/O APIC inputs 20 to 23); VT-d: see
`busdma.translators.dmar`.
"""

from __future__ import annotations

from typing import Final

from busdma.errors import ConfigurationError
from busdma.machine.machine import Machine
from busdma.machine.pci_firmware import SECONDARY
from busdma.machine.remapping import asked
from busdma.machine.spec import Options
from busdma.qemu import setup as common
from busdma.qemu.extras import Extra
from busdma.qemu.firmware import quiet, x86
from busdma.qemu.guest import made
from busdma.qemu.pc import LOW, SPACES
from busdma.qemu.pci import Indirect, PciHost
from busdma.qemu.registers import Mmio
from busdma.qemu.remapped import RemappedMachine
from busdma.qemu.setup import Setup
from busdma.tag import Tag
from busdma.translators.dmar import DmarUnit
from busdma.translators.pages import PAGE
from busdma.waiting import Runtime

TARGET: Final = "x86_64"
IOAPIC: Final = "/machine/q35/ioapic"
PIRQ_E: Final = 20  #: its input of the I/O APIC
DMAR, DMAR_ROOM = 0xFED9_0000, 0x1000
NVME, EDU, BRIDGE = 4, 6, 30  # slots of bus 0
ESP_BEHIND, EDU_BEHIND = 5, 6  # slots behind the bridge


def missing() -> str:
    """Why this host has no such machine; "" if it has."""
    return common.missing(TARGET)


class Q35(RemappedMachine):
    """See the module's text."""

    def __init__(self, setup: Setup, iommu: str, *, faults: bool) -> None:
        super().__init__(setup, setup.memory().view, reserved=LOW)
        with self.building():
            host = PciHost(self.qtest, Indirect(self.qtest), SPACES)
            self.listen(IOAPIC)
            quiet(self.qtest)
            if iommu != "off":
                registers = Mmio(self.qtest, "dmar", DMAR, DMAR_ROOM, settled=True)
                self.remap(
                    lambda allocate: DmarUnit(registers, self.ram.bus, allocate),
                    standing=iommu == "standing",
                    each=faults,
                    grain=PAGE,
                    merges=True,
                )
            pci0 = self.domain.root("pc").derive("pci0")
            tag = self.behind(pci0, NVME << 3, "nvme0")
            self.add_pci(host, (0, NVME), "nvme0", "nvme", tag, irq=_irq(NVME))
            tag = self.behind(pci0, EDU << 3, "edu0")
            self.add_pci(host, (0, EDU), "edu0", "edu", tag, irq=_irq(EDU))
            bridge0 = self.behind(pci0, BRIDGE << 3, "bridge0", "esp0", "edu1").derive("bridge0")
            number = host.config(0, BRIDGE).read8(SECONDARY)
            self.add_pci(host, (number, ESP_BEHIND), "esp0", "ncr53c9x", bridge0, irq=_irq(ESP_BEHIND))
            self.add_pci(host, (number, EDU_BEHIND), "edu1", "edu", bridge0, irq=_irq(EDU_BEHIND))

            def wire(extra: Extra) -> tuple[Tag, int]:
                if extra.bus not in (0, number):
                    raise ConfigurationError(f"{setup.spec}: put {extra.name} on bus=pcie.0 or bus=bridge0")
                if extra.bus:
                    self.carried(BRIDGE << 3, extra.name)
                    return bridge0, _irq(extra.slot)
                return self.behind(pci0, extra.slot << 3, extra.name), _irq(extra.slot)

            self.add_extras(host, wire)


def _irq(slot: int) -> int:
    """Where pin A of the slot ends, on bus 0 and behind the bridge, which turns the pins round in the same way."""
    return PIRQ_E + slot % 4


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the PC on."""
    setup = Setup(spec, runtime, options, TARGET)
    iommu = asked(spec, options, "on")
    faults = options.flag("faults", True)
    setup.ask_to_warp()
    setup.ready()

    def make() -> Q35:
        setup.add("-M", "q35", "-bios", setup.inherit("firmware", x86()))
        if iommu != "off":
            setup.add("-device", "intel-iommu")  # before all devices that it is to translate for
        setup.add("-device", f"i82801b11-bridge,id=bridge0,addr={BRIDGE:#x}")
        setup.nvme("nvme0", f"addr={NVME:#x}")
        setup.add("-device", f"edu,addr={EDU:#x}")
        setup.am53c974("esp0", f"bus=bridge0,addr={ESP_BEHIND:#x}")
        setup.add("-device", f"edu,bus=bridge0,addr={EDU_BEHIND:#x}")
        return Q35(setup, iommu, faults=faults)

    return made(setup, make)
