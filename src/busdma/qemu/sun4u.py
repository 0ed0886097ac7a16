"""``qemu:sun4u``: QEMU's UltraSPARC PC (an Ultra 5 of 1998). PCI behind a bridge, and the IOMMU of its sabre before it.

=========================  ==========================================================================
device                     what it is
=========================  ==========================================================================
``nvme0``, behind pciB     an NVMe controller with one disk
``esp0``, behind pciB      an Am53C974 SCSI controller with one disk, 32 address lines
=========================  ==========================================================================

Every load takes bus pages of 8 KiB, from 64 MiB of DVMA at PCI address 3 GiB. Their entries are left standing when they
are given back: who loads the same pages again takes the same bus pages, and nothing is flushed. The first page is never
taken: a device that was not programmed goes to address 0, which has the same place in the table.

Memory of this machine is not its DRAM, for QEMU lets nobody share that. It is the persistent memory region of one more
NVMe controller, which no driver sees: 64 MiB in PCI's memory space, where the CPU, the IOMMU and, through it, the
devices reach it as they would reach DRAM. The table of the IOMMU lies there too; DRAM is not used at all. What a device
does to memory has one more bridge to pass, and nothing else is different.

QEMU reports no interrupts of this machine. nvme0 is polled; for esp0, the status of its function says whether its line
is up.

Options of the spec: those of `busdma.qemu.setup`, where ``ram`` is a power of two up to 1024; ``dvma`` (MiB of DVMA: a
power of two from 8 to 1024, 64) and ``strict`` (1: no entry is left standing, 0).

What it does not model: the IOMMU's TLB (every access walks the table, so that a missing flush goes unseen); which PCI
addresses are DVMA, for it takes all of them; and errors: an access that leads nowhere, or has no right to write, is
dropped, and nothing is recorded. Everything else is under "What QEMU's models do not show" in docs/qemu.md.

Source: Sun, UltraSPARC-IIi User's Manual (805-0087), Table 6-6 and 19.3; Advanced PCI Bridge User's Manual (805-1251);
PCI Local Bus Specification 3.0, 6.2.3 (interrupt status); NVM Express Base Specification 1.4, 3.1 and 4.8 (persistent
memory region).
"""

from __future__ import annotations

from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.machine import Machine
from busdma.machine.pci_firmware import BASE_ADDRESS, COMMAND, MEMORY_SPACE
from busdma.machine.spec import Options
from busdma.paths import Window
from busdma.qemu import setup as common
from busdma.qemu.firmware import ROM
from busdma.qemu.guest import QemuMachine, made
from busdma.qemu.lines import Polled
from busdma.qemu.pci import Mapped, PciHost, Spaces
from busdma.qemu.ram import ID
from busdma.qemu.registers import Mmio
from busdma.qemu.setup import Setup
from busdma.translators.sabre import LARGEST, PAGE, SMALLEST, SabreTsb
from busdma.waiting import Runtime

TARGET: Final = "sparc64"
MIB: Final = 1 << 20
MOST: Final = 1024  #: MiB of memory: what has room below DVMA, naturally aligned
DVMA: Final = 0xC000_0000
SABRE, SABRE_ROOM, CONFIGURATION = 0x1FE_0000_0000, 0x1_0000, 0x1FE_0100_0000
SPACES: Final = Spaces(
    memory=AddressSet.span(0x2000_0000, DVMA - 1),
    ports=AddressSet.span(0x8000, 0xFF_FFFF),  # below are the board's own
    memory_at=0x1FF_0000_0000,
    ports_at=0x1FE_0200_0000,
)
BUS_B: Final = 1  #: the number that firmware gives pciB
NVME, ESP, MEMORY = 1, 2, 3  # slots there
POLL: Final = 100_000  #: ns between two looks at nvme0's completions
STATUS, INTERRUPT = 0x06, 1 << 3  # configuration
PMRCAP, PMRCTL, PMRSTS = 0xE00, 0xE04, 0xE08
REGION_ON: Final = 0x1  #: PMRCTL
NOT_READY: Final = 0x100  #: PMRSTS


def missing() -> str:
    """Why this host has no such machine; "" if it has."""
    return common.missing(TARGET)


class Sun4u(QemuMachine):
    """See the module's text. `view`: the memory; `dvma`: bytes; `standing`: whether entries are left."""

    def __init__(self, setup: Setup, view: memoryview, dvma: int, *, standing: bool) -> None:
        qtest = setup.start().qtest
        host = PciHost(qtest, Mapped(qtest, CONFIGURATION), SPACES)
        super().__init__(setup, view, base=_switch_on(host), page=PAGE)
        with self.building():
            table, where = self.ram.table(self.frames, dvma // PAGE * 8, PAGE)
            registers = Mmio(qtest, "sabre", SABRE, SABRE_ROOM, order="big", settled=True)
            self.iommu = SabreTsb(registers, table, where, base=DVMA, size=dvma)
            self.pool = self.add_pool("iommu", self.iommu, DVMA + PAGE, DVMA + dvma - 1, standing=standing)
            self.qtest.listen()  # no line is reported; but should QEMU die, all rise
            pci0 = self.domain.root("sun4u").bridge("pci0", Window(DVMA, dvma, DVMA, self.pool))
            bus = pci0.derive("pciB")
            self.add_pci(host, (BUS_B, NVME), "nvme0", "nvme", bus, poll=POLL)
            self.add_pci(host, (BUS_B, ESP), "esp0", "ncr53c9x", bus, line=self._line(host, BUS_B, ESP))
            self.add_extras(
                host,
                lambda extra: (bus if extra.bus == BUS_B else pci0, self._line(host, extra.bus, extra.slot)),
            )

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with QEMU's process and the IOMMU's pool."""
        return {**super().statistics(), "iommu": self.pool.statistics()}

    def _line(self, host: PciHost, bus: int, slot: int) -> Polled:
        config = host.config(bus, slot)
        return Polled(f"of {config!r}", self.runtime, lambda: bool(config.read16(STATUS) & INTERRUPT))


def _switch_on(host: PciHost) -> int:
    """Have the controller in slot MEMORY show its region. The region's physical address."""
    config = host.config(BUS_B, MEMORY)
    registers = host.registers(config, "memory")
    config.write16(COMMAND, MEMORY_SPACE)
    registers.write32(PMRCTL, REGION_ON)
    if registers.read32(PMRSTS) & NOT_READY:
        raise ConfigurationError("the controller that has the memory does not show it: give another QEMU with binary=")
    bar = registers.read32(PMRCAP) >> 5 & 0b111
    return SPACES.memory_at + (config.read32(BASE_ADDRESS + 4 * bar) & ~0xF)


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the machine on."""
    setup = Setup(spec, runtime, options, TARGET, most=MOST)
    dvma = options.number("dvma", 64, least=SMALLEST // MIB) * MIB
    standing = not options.flag("strict")
    setup.ready()
    if dvma & (dvma - 1) or dvma > LARGEST:
        raise ConfigurationError(f"{spec}: dvma={dvma // MIB}: give a power of two from 8 to {LARGEST // MIB}")
    if setup.size & (setup.size - 1):
        raise ConfigurationError(f"{spec}: ram={setup.size // MIB}: give a power of two from 8 to {MOST}")

    def make() -> Sun4u:
        ram = setup.memory(main=False)
        setup.add("-M", "sun4u", "-global", "cpu.start-powered-off=on")
        setup.add("-bios", setup.inherit("firmware", bytes(ROM)))  # it wants some
        setup.nvme("nvme0", f"bus=pciB,addr={NVME:#x}")
        setup.am53c974("esp0", f"bus=pciB,addr={ESP:#x}")
        setup.add("-device", f"nvme,serial=memory,pmrdev={ID},bus=pciB,addr={MEMORY:#x}")
        return Sun4u(setup, ram.view, dvma, standing=standing)

    return made(setup, make)
