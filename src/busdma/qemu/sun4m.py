"""``qemu:SS-5`` and ``qemu:SS-10``: QEMU's SPARCstations (sun4m). 64 MiB of memory; all DMA is DVMA, through the IOMMU.

``esp0``, on SBus, is a 53C9x SCSI controller with one disk behind an espdma. Every load takes bus pages, from the top
64 MiB of the 32-bit space. Their entries are left standing when they are given back.

A SPARCstation 5 takes up to 256 MiB. A SPARCstation 10 has its devices at physical addresses of 36 bits, and takes up
to 4 GiB: the model's IOMMU loses bits 35:32 of what an entry leads to.

Options of the spec: those of `busdma.qemu.setup` and `busdma.qemu.disks`; ``dvma`` (MiB of DVMA: a power of two from 16
to 1024, 64) and ``strict`` (1: no entry is left standing, 0).

What it does not model: the IOMMU's TLB, so that a flush that is missing goes unseen; and its range: an address below it
is answered by the entry that has the same place in the table. Of several faults AFSR and AFAR have the last, and AFAR
the page only. Everything else is under "What QEMU's models do not show" in docs/qemu.md.

Source: Sun, Sun-4M System Architecture 2.0; LSI Logic L64854 (the espdma's registers); QEMU for where a board has what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.machine import Device, Machine
from busdma.machine.spec import Options, parse
from busdma.paths import Window
from busdma.qemu import setup as common
from busdma.qemu.disks import BoardDisks
from busdma.qemu.firmware import sparc
from busdma.qemu.guest import QemuMachine, made
from busdma.qemu.lines import Level
from busdma.qemu.registers import Joined, Mmio
from busdma.qemu.setup import Setup
from busdma.translators import HardwareFault
from busdma.translators.sun4m import TABLES, Sun4mTable
from busdma.waiting import Runtime

TARGET: Final = "sparc"
PAGE: Final = 4096
MIB: Final = 1 << 20
LARGEST: Final = 1 << 30  #: bytes of DVMA
INTERRUPTS: Final = "slavio_intctl"
ESP_LINE, IOMMU_LINE = 18, 30
IOMMU_ROOM: Final = 0x3000
ENGINE_ROOM, CHIP_AT, CHIP_ROOM = 0x10, 0x10000, 0x40


@dataclass(frozen=True, slots=True)
class Board:
    """Where a SPARCstation has its devices, by physical address."""

    most: int  #: MiB of memory
    iommu: int
    engine: int
    chip: int
    power_down: int


BOARDS: Final = {
    "SS-5": Board(256, 0x1000_0000, 0x7840_0000, 0x7880_0000, 0x6A00_0000),
    "SS-10": Board(4096, 0xF_E000_0000, 0xE_F040_0000, 0xE_F080_0000, 0xE_FA00_0000),
}


def missing() -> str:
    """Why this host has no such machine; "" if it has."""
    return common.missing(TARGET)


class Faults:
    """The IOMMU as `busdma.machine.faults.FaultUnit`: its interrupt says whether there is a fault to take."""

    def __init__(self, table: Sun4mTable, line: Level) -> None:
        self._table, self._line = table, line

    def pending(self) -> bool:
        """Whether the IOMMU has refused an access that nobody has taken. Costs no access to a register."""
        return self._line.high

    def take_fault(self) -> HardwareFault | None:
        """See `busdma.translators.sun4m.Sun4mTable.take_fault`."""
        return self._table.take_fault()


class Sun4m(QemuMachine):
    """See the module's text. `dvma`: bytes; `standing`: whether entries are left."""

    def __init__(self, setup: Setup, board: Board, dvma: int, *, standing: bool) -> None:
        super().__init__(setup, setup.memory().view, page=PAGE)
        with self.building():
            self.listen(self.board(INTERRUPTS))
            size = dvma // PAGE * 4
            table, where = self.ram.table(self.frames, size, size, AddressSet.span(0, TABLES - 1))
            registers = Mmio(self.qtest, "iommu", board.iommu, IOMMU_ROOM, order="big", settled=True)
            self.iommu = Sun4mTable(registers, table, where, size=dvma)
            faults = Faults(self.iommu, self.lines.level(IOMMU_LINE))
            self.watch_faults(faults, {None: ("esp0",)}, name="IOMMU", grain=PAGE, merges=True)  # it keeps one alone
            first, last = self.iommu.window.intervals[0]
            self.pool = self.add_pool("iommu", self.iommu, first, last, standing=standing)
            sbus = self.domain.root("sun4m").bridge("sbus0", Window(first, dvma, first, self.pool))
            engine = Mmio(self.qtest, "esp0's espdma", board.engine, ENGINE_ROOM, order="big")
            chip = Mmio(self.qtest, "esp0", board.chip, CHIP_ROOM, order="big")
            line = self.lines.interrupt(ESP_LINE)
            joined = Joined({0: engine, CHIP_AT: chip})
            self.devices["esp0"] = Device("esp0", "ncr53c9x", "sbus", sbus, joined, line, {"clock": 40})

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with QEMU's process and the IOMMU's pool."""
        return {**super().statistics(), "iommu": self.pool.statistics()}


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the SPARCstation on that `spec` names."""
    model = parse(spec)[0].partition(":")[2]
    board = BOARDS[model]
    setup = Setup(spec, runtime, options, TARGET, most=board.most)
    mib = options.number("dvma", 64, least=16)
    standing = not options.number("strict", 0)
    disks = BoardDisks(spec, options)
    if mib & (mib - 1) or mib * MIB > LARGEST:
        raise ConfigurationError(f"{spec}: dvma={mib}: give a power of two from 16 to {LARGEST // MIB}")
    setup.ready()

    def make() -> Sun4m:
        setup.add("-M", model, "-bios", setup.inherit("firmware", sparc(board.power_down)))
        disks.plug(setup, "esp0")
        return Sun4m(setup, board, mib * MIB, standing=standing)

    return made(setup, make)
