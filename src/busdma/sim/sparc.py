"""``sim:sparc``: a SPARCstation of 1993 (sun4m). 64 MiB of memory; all DMA is DVMA, through the IOMMU.

``esp0``, on SBus, is a 53C9x SCSI controller with one disk behind an espdma, whose address counter cannot cross 16 MiB.
Every load takes bus pages, from the top 64 MiB of the 32-bit space. Their entries are left standing when they are given
back: who loads the same pages again takes the same bus pages, and nothing is flushed.

Options of the spec: ``bounce`` (pages that each bounce zone may grow to, 128), ``dvma`` (MiB of DVMA: a power of two
from 16 to 1024, 64), ``strict`` (1: no entry is left standing, 0), ``seed`` (1), ``images`` (folder of the disk image
``esp0.img``, kept when closed) and ``disk_mib`` (size of an image that does not exist yet, 64).

What it does not model: the virtually indexed cache (DMA sees it on this machine), and the time that buses and the CPU
take.

Source: Sun, Sun-4M System Architecture 2.0; Hannum, port-sparc 6 June 1995 (DVMA pages, entries left standing).
"""

from __future__ import annotations

from typing import Any, Final

from busdma.errors import ConfigurationError
from busdma.machine.interrupt import Interrupt
from busdma.machine.machine import Device, Machine
from busdma.machine.ram import coherent
from busdma.machine.spec import Options
from busdma.paths import Window
from busdma.sim.bus.master import MasterBus
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.iommu.sun4m import Sun4mIommu
from busdma.sim.scsi.boards import Board
from busdma.sim.scsi.espdma import EspDma
from busdma.sim.scsi.ncr53c9x import Ncr53c9x
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.simulated import SimulatedMachine
from busdma.translators.sun4m import Sun4mTable
from busdma.waiting import Runtime

PAGE: Final = 4096
MIB: Final = 1 << 20
RAM: Final = 64 * MIB
LARGEST: Final = 1 << 30  #: bytes of DVMA
ENGINE_ROOM, CHIP_AT, STRIDE = 0x10, 0x10000, 4


class Sparc(SimulatedMachine):
    """See the module's text."""

    def __init__(self, spec: str, runtime: Runtime, options: Options) -> None:
        size = options.number("dvma", 64, least=16) * MIB
        if size & (size - 1) or size > LARGEST:
            raise ConfigurationError(f"{spec}: dvma={size // MIB}: give a power of two from 16 to {LARGEST // MIB}")
        standing = not options.number("strict", 0)
        super().__init__(spec, runtime, options, coherent(RAM, check=options.check), page=PAGE)
        ram = self.ram
        self.bus = self.add_bus(MasterBus(ram.bus, self.frames))
        self.bus.way = lambda address: "remap"
        self.iommu = Sun4mIommu(ram.bus, seed=self.seed)
        self.iommu.tlb.stale = ram.stale
        with self.building():
            table, where = ram.table(self.frames, size // PAGE * 4, size // PAGE * 4)
            translator = Sun4mTable(ChipRegisters(self.bus, self.iommu), table, where, size=size)
            first, last = translator.window.intervals[0]
            self.pool = self.add_pool("iommu", translator, first, last, standing=standing)
            sbus = self.domain.root("sun4m").bridge("sbus0", Window(first, size, first, self.pool))
            line = Interrupt("sbus level 4", runtime)
            self.chip = Ncr53c9x(
                line, self.call_at, runtime.now, targets={0: ScsiTarget(self.images.disk("esp0", 0))}, clock_mhz=40
            )
            self.engine = EspDma(self.bus.add_master("esp0", self.iommu.route("esp0")), self.chip, line)
            board = Board(
                "esp0", self.chip, self.engine, chip_at=CHIP_AT, stride=STRIDE, engine_at=0, engine_room=ENGINE_ROOM
            )
            registers = ChipRegisters(self.bus, board)
            self.devices["esp0"] = Device("esp0", "ncr53c9x", "sbus", sbus, registers, line, {"clock": 40})

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with the IOMMU's pool and its TLB."""
        return {
            **super().statistics(),
            "iommu": self.pool.statistics(),
            "tlb": self.iommu.tlb.statistics(),
        }


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the machine on."""
    return Sparc(spec, runtime, options)
