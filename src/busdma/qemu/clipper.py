"""``qemu:clipper``: QEMU's Alpha (a DP264 with a Typhoon). 72 MiB of memory behind three ways of the Pchip; PCI.

Nothing on PCI has the address that memory has. What leads to memory:

====================  ====================  ==========================================================================
PCI addresses         lead to               mechanism
====================  ====================  ==========================================================================
2^40 and on, 32 GiB   all memory            window: the *monster window*, for devices with 64 address lines
2 GiB and on, 64 MiB  the first 64 MiB      window: a constant is subtracted
8 to 16 MiB           any 8 MiB of memory   remap: a scatter-gather map of 1024 pages of 8 KiB
====================  ====================  ==========================================================================

Devices that drive 64 address lines (PCI's dual address cycles) have the first and the third, the others the second and
the third. They use the third where the other does not lead to memory, or in too many segments.

=======================  ============================================================================
device                   what it is
=======================  ============================================================================
``nvme0``, on PCI        an NVMe controller with one disk, 64 address lines
``esp0``, on PCI         an Am53C974 SCSI controller with one disk, 32 address lines
=======================  ============================================================================

QEMU reports no interrupts of this machine: nvme0 is polled, for esp0 the Cchip's register DRIR is looked at.

Options of the spec: those of `busdma.qemu.setup`; ``monster`` (0: the monster window stays closed, so that nvme0 goes
the way of esp0, 1), ``direct`` (MiB that the second window leads to: a power of two up to 1024, 64; 0: it stays closed)
and ``strict`` (0: entries of the map are left standing, 1).

What it does not model: the map's TLB (every access walks the table, so that a missing flush goes unseen), fetching
ahead, and errors: what leads nowhere reads as zeros, and nothing is recorded. See also "What QEMU's models do not show"
in docs/qemu.md.

Source: Compaq, Tsunami/Typhoon 21272 Chipset Hardware Reference Manual, 10.1 (address map) and 10.2 (registers); for
the interrupt lines of a Clipper, QEMU. Windows and map are where NetBSD has them on these machines.
"""

from __future__ import annotations

from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.machine import Machine
from busdma.machine.spec import Options
from busdma.paths import Window
from busdma.qemu import setup as common
from busdma.qemu.extras import Extra
from busdma.qemu.firmware import alpha
from busdma.qemu.guest import QemuMachine, made
from busdma.qemu.lines import Polled
from busdma.qemu.pci import Mapped, PciHost, Spaces
from busdma.qemu.registers import Mmio
from busdma.qemu.setup import Setup
from busdma.tag import Tag
from busdma.translators.tsunami import (
    MONSTER_BASE,
    MONSTER_SIZE,
    TABLE_GRAIN,
    PchipSgmap,
    open_monster,
    open_window,
)
from busdma.translators.windows import PAGE
from busdma.waiting import Runtime

TARGET: Final = "alpha"
CODE: Final = AddressSet.span(0, PAGE - 1)  #: what the CPU runs
PCHIP, CCHIP, ROOM = 0x801_8000_0000, 0x801_A000_0000, 0x1000
DRIR: Final = 0x300  #: Cchip: the levels of all interrupt lines
CONFIGURATION: Final = 0x801_FE00_0000
SPACES: Final = Spaces(
    memory=AddressSet.span(0x1000_0000, 0x7FFF_FFFF),  # between the map and the window
    ports=AddressSet.span(0xC000, 0xFFFF),
    memory_at=0x800_0000_0000,
    ports_at=0x801_FC00_0000,
)
DIRECT: Final = 0x8000_0000
MAPPED, MAPPED_SIZE = 8 << 20, 8 << 20
MOST_DIRECT: Final = 1024  #: MiB
NVME, ESP = 4, 5  # slots
POLL: Final = 100_000  #: ns between two looks at nvme0's completions


def missing() -> str:
    """Why this host has no such machine; "" if it has."""
    return common.missing(TARGET)


class Clipper(QemuMachine):
    """See the module's text. `direct`: bytes of the second window."""

    def __init__(self, setup: Setup, direct: int, *, monster: bool, strict: bool) -> None:
        super().__init__(setup, setup.memory().view, page=PAGE, reserved=CODE)
        with self.building():
            host = PciHost(self.qtest, Mapped(self.qtest, CONFIGURATION), SPACES)
            self.pchip = Mmio(self.qtest, "pchip", PCHIP, ROOM, settled=True)
            table, where = self.ram.table(self.frames, MAPPED_SIZE // PAGE * 8, TABLE_GRAIN)
            sgmap = PchipSgmap(self.pchip, table, where, base=MAPPED, size=MAPPED_SIZE)
            self.pool = self.add_pool("sgmap", sgmap, MAPPED, MAPPED + MAPPED_SIZE - 1, standing=not strict)
            mapped = Window(MAPPED, MAPPED_SIZE, MAPPED, self.pool)
            ways = [mapped]
            if direct:
                open_window(self.pchip, 1, DIRECT, direct, 0)
                ways.insert(0, Window(DIRECT, direct))
            self.qtest.listen()  # no line is reported; but should QEMU die, all rise
            root = self.domain.root("clipper")
            pci0 = dual = root.bridge("pci0", *ways)
            if monster:
                open_monster(self.pchip)
                dual = root.bridge("pci0-dual", Window(MONSTER_BASE, MONSTER_SIZE), mapped)
            self.add_pci(host, (0, NVME), "nvme0", "nvme", dual, poll=POLL)
            self.cchip = Mmio(self.qtest, "cchip", CCHIP, ROOM)
            self.add_pci(host, (0, ESP), "esp0", "ncr53c9x", pci0, irq=_irq(ESP), line=self._line(ESP))

            def wire(extra: Extra) -> tuple[Tag, Polled]:
                if extra.bus:
                    raise ConfigurationError(f"{setup.spec}: put {extra.name} on bus=pci")
                return pci0, self._line(extra.slot)

            self.add_extras(host, wire)

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with the map's pool."""
        return {**super().statistics(), "sgmap": self.pool.statistics()}

    def _line(self, slot: int) -> Polled:
        irq = _irq(slot)
        return Polled(f"irq {irq}", self.runtime, lambda: bool(self.cchip.read64(DRIR) >> irq & 1))


def _irq(slot: int) -> int:
    """The bit of DRIR that is pin A of the slot."""
    return (slot + 1) * 4


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the machine on."""
    setup = Setup(spec, runtime, options, TARGET, ram=72)
    monster, direct, strict = options.flag("monster", True), options.number("direct", 64), options.flag("strict", True)
    if direct & (direct - 1) or direct > MOST_DIRECT:
        raise ConfigurationError(f"{spec}: direct={direct}: give 0 or a power of two up to {MOST_DIRECT}, in MiB")
    setup.ready()

    def make() -> Clipper:
        setup.add("-M", "clipper", "-bios", setup.inherit("firmware", alpha()))
        setup.nvme("nvme0", f"addr={NVME:#x}")
        setup.am53c974("esp0", f"addr={ESP:#x}")
        return Clipper(setup, direct << 20, monster=monster, strict=strict)

    return made(setup, make)
