"""``qemu:virt``: QEMU's aarch64 board, behind an SMMUv3. 64 MiB of memory from 1 GiB on, PCI Express.

==============  =====================================================================================
device          what it is
==============  =====================================================================================
``nvme0``       an NVMe controller with one disk, which interrupts by message (MSI-X)
``esp0``        an Am53C974 SCSI controller with one disk, 32 address lines
``edu0``        QEMU's device for teaching; its 28 address lines end below all memory
==============  =====================================================================================

Each has a domain of its own, with bus addresses below 256 MiB. The doorbell of message interrupts is a register at a
physical address, so it is in the domain of ``nvme0`` as well, at a bus address that no load gets.

Options of the spec: those of `busdma.qemu.setup` and `busdma.machine.remapping` (``iommu``, on; without it there is no
``edu0``, as it would reach nothing), and ``warp`` (see `busdma.qemu.pc`).

What it does not model: see "What QEMU's models do not show" in docs/qemu.md.

Source: QEMU, hw/arm/virt.c for where the board has what, which is also in the device tree that it makes; SMMUv3: see
`busdma.translators.smmu`.
"""

from __future__ import annotations

from typing import Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.machine import Machine
from busdma.machine.remapping import asked
from busdma.machine.spec import Options
from busdma.qemu import setup as common
from busdma.qemu.extras import Extra
from busdma.qemu.guest import made
from busdma.qemu.pci import Mapped, PciHost, Spaces
from busdma.qemu.registers import Mmio
from busdma.qemu.remapped import RemappedMachine
from busdma.qemu.setup import Setup
from busdma.qemu.v2m import ROOM, V2m
from busdma.tag import Tag
from busdma.translators.pages import PAGE
from busdma.translators.smmu import SmmuUnit
from busdma.waiting import Runtime

TARGET: Final = "aarch64"
MEMORY: Final = 0x4000_0000
CONFIGURATION: Final = 0x40_1000_0000
SPACES: Final = Spaces(AddressSet.span(0x1000_0000, 0x3EFE_FFFF), AddressSet.span(0x1000, 0xFFFF), ports_at=0x3EFF_0000)
SMMU, SMMU_ROOM = 0x0905_0000, 0x2_0000
GICV2M: Final = 0x0802_0000
PIN_A: Final = 3  #: of slot 0: SPI, and input of the interrupt controller
DOORBELL: Final = 0x8000_0000  #: bus address of the GICv2m in a domain
NVME, ESP, EDU = 4, 5, 6  # slots


def missing() -> str:
    """Why this host has no such machine; "" if it has."""
    return common.missing(TARGET)


class Virt(RemappedMachine):
    """See the module's text."""

    def __init__(self, setup: Setup, iommu: str) -> None:
        super().__init__(setup, setup.memory().view, base=MEMORY)
        with self.building():
            host = PciHost(self.qtest, Mapped(self.qtest, CONFIGURATION, express=True), SPACES)
            self.listen(self.board("arm_gic"))
            frame = V2m(Mmio(self.qtest, "v2m", GICV2M, ROOM), self.lines)
            if iommu != "off":
                registers = Mmio(self.qtest, "smmu", SMMU, SMMU_ROOM, settled=True)
                self.remap(
                    lambda allocate: SmmuUnit(registers, self.ram.bus, allocate, base=MEMORY),
                    standing=iommu == "standing",
                )
            pci0 = self.domain.root("virt").derive("pci0")
            page = AddressSet.span(DOORBELL, DOORBELL + PAGE - 1)
            tag = self.behind(pci0, NVME << 3, "nvme0", besides=page)
            if self.domains is not None:
                self.domains.fix("nvme0", DOORBELL, GICV2M)
            messages = frame.at(GICV2M if self.domains is None else DOORBELL)
            self.add_pci(host, (0, NVME), "nvme0", "nvme", tag, irq=_irq(NVME), messages=messages)
            tag = self.behind(pci0, ESP << 3, "esp0")
            self.add_pci(host, (0, ESP), "esp0", "ncr53c9x", tag, irq=_irq(ESP))
            if self.domains is None:
                self.absent["edu0"] = "its 28 address lines reach no memory: open the machine with iommu=on"
            else:
                tag = self.behind(pci0, EDU << 3, "edu0")
                self.add_pci(host, (0, EDU), "edu0", "edu", tag, irq=_irq(EDU))

            def wire(extra: Extra) -> tuple[Tag, int]:
                if extra.bus:
                    raise ConfigurationError(f"{setup.spec}: put {extra.name} on bus=pcie.0")
                return self.behind(pci0, extra.slot << 3, extra.name), _irq(extra.slot)

            self.add_extras(host, wire)


def _irq(slot: int) -> int:
    """Where pin A of the slot ends: the board turns the pins round, one a slot."""
    return PIN_A + slot % 4


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the board on."""
    setup = Setup(spec, runtime, options, TARGET)
    iommu = asked(spec, options, "on")
    setup.ask_to_warp()
    setup.ready()

    def make() -> Virt:
        setup.add("-M", "virt,gic-version=2" + ("" if iommu == "off" else ",iommu=smmuv3"))
        setup.add("-cpu", "cortex-a57", "-global", "cpu.start-powered-off=on")
        setup.nvme("nvme0", f"addr={NVME:#x}")
        setup.am53c974("esp0", f"addr={ESP:#x}")
        setup.add("-device", f"edu,addr={EDU:#x}")
        return Virt(setup, iommu)

    return made(setup, make)
