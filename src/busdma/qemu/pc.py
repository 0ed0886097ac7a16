"""``qemu:pc``: QEMU's i440FX and PIIX3, a PC of 1996. 384 MiB of memory, PCI and ISA, no IOMMU.

=======================  ============================================================================
device                   what it is
=======================  ============================================================================
``nvme0``, on PCI        an NVMe controller with one disk
``esp0``, on PCI         an Am53C974 SCSI controller with one disk, 32 address lines
``edu0``, on PCI         QEMU's device for teaching, 28 address lines
``fd0``, on ISA          a floppy controller on channel 2 of the 8237, with one drive and a disk of 1.44 MB in it
=======================  ============================================================================

Options of the spec: those of `busdma.qemu.setup`, and ``warp`` (1: while the CPU idles, the devices' timers do not wait
for real time, so that edu's 100 ms pass at once; 0: they do, 1).

What it does not model: see "What QEMU's models do not show" in docs/qemu.md.

Source: Intel 82371FB/82371SB (PIIX3) data sheet, 2.2.5 (PIRQ route control); QEMU, docs/specs/edu.rst.
"""

from __future__ import annotations

from typing import Final

from busdma.addresses import AddressSet
from busdma.machine.i8237 import DmaController
from busdma.machine.machine import Device, Machine
from busdma.machine.spec import Options
from busdma.qemu import setup as common
from busdma.qemu.firmware import quiet, x86
from busdma.qemu.guest import QemuMachine, made
from busdma.qemu.pci import Indirect, PciHost, Spaces
from busdma.qemu.registers import Ports
from busdma.qemu.setup import Setup
from busdma.waiting import Runtime

TARGET: Final = "x86_64"
LOW: Final = AddressSet.span(0, (1 << 20) - 1)  # ROMs, video memory, and what the first MiB was ever used for
SPACES: Final = Spaces(AddressSet.span(0xE000_0000, 0xFEBF_FFFF), AddressSet.span(0xC000, 0xFFFF))
IOAPIC: Final = "/machine/i440fx/ioapic"
PIIX3: Final = 1  #: its slot
PIRQ_ROUTES: Final = 0x60
ROUTES: Final = 0x0B0A_0905  #: PIRQ A to D to IRQ 5, 9, 10 and 11
NVME, ESP, EDU = 4, 5, 6  # slots
FLOPPY_PORTS, FLOPPY_IRQ, FLOPPY_DRQ = 0x3F0, 6, 2
RAM: Final = 384  #: MiB: more than edu reaches
FLOPPY_SIZE: Final = 1440 << 10


def missing() -> str:
    """Why this host has no such machine; "" if it has."""
    return common.missing(TARGET)


class Pc(QemuMachine):
    """See the module's text."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, setup.memory().view, reserved=LOW)
        with self.building():
            host = PciHost(self.qtest, Indirect(self.qtest), SPACES)
            host.config(0, PIIX3).write32(PIRQ_ROUTES, ROUTES)
            self.listen(IOAPIC)
            quiet(self.qtest)
            pci0 = self.domain.root("pc").derive("pci0")
            self.add_pci(host, (0, NVME), "nvme0", "nvme", pci0, irq=_irq(NVME))
            self.add_pci(host, (0, ESP), "esp0", "ncr53c9x", pci0, irq=_irq(ESP))
            self.add_pci(host, (0, EDU), "edu0", "edu", pci0, irq=_irq(EDU))
            channel = DmaController(Ports(self.qtest, "8237", 0, 0x100)).channel(FLOPPY_DRQ)
            isa0 = pci0.derive("isa0", lowaddr=(1 << 24) - 1)
            ports, line = Ports(self.qtest, "fd0", FLOPPY_PORTS, 8), self.lines.interrupt(FLOPPY_IRQ)
            numbers = {"irq": FLOPPY_IRQ, "drq": FLOPPY_DRQ}
            self.devices["fd0"] = Device("fd0", "fdc", "isa", isa0, ports, line, numbers, dma=channel)
            self.add_extras(host, lambda extra: (pci0, _irq(extra.slot)))


def _irq(slot: int) -> int:
    """Where pin A of the slot ends: the board turns the pins round, one a slot, and PIIX3 routes them."""
    return ROUTES.to_bytes(4, "little")[(slot - 1) % 4]


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the PC on."""
    setup = Setup(spec, runtime, options, TARGET, ram=RAM)
    setup.ask_to_warp()
    setup.ready()

    def make() -> Pc:
        setup.add("-M", "pc", "-bios", setup.inherit("firmware", x86()))
        setup.nvme("nvme0", f"addr={NVME:#x}")
        setup.am53c974("esp0", f"addr={ESP:#x}")
        setup.add("-device", f"edu,addr={EDU:#x}")
        setup.add("-device", f"floppy,drive={setup.drive('fd0', FLOPPY_SIZE)}")
        return Pc(setup)

    return made(setup, make)
