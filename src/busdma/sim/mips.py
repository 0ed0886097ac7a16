"""``sim:mips``: a Magnum of 1992 (Jazz). 32 MiB of memory, behind write-back caches that DMA does not see.

``esp0`` is a 53C9x SCSI controller with one disk, on a channel of the RC4030, which translates: every load takes bus
pages, as well as care of the cache. What the CPU writes stays in its cache until it is cleaned, what a device writes is
not seen until lines are invalidated, and in between the cache evicts and refills lines as it likes. A buffer that a
device writes and that shares a line of 32 bytes with other data is bounced. Bounce pages, and DMA-safe memory that asks
for it, are used through the uncached alias.

Options of the spec: ``bounce`` (pages that each bounce zone may grow to, 128), ``seed`` (page frames, platters, and
what the cache does of its own accord, 1), ``images`` (folder of the disk image ``esp0.img``, kept when closed) and
``disk_mib`` (size of an image that does not exist yet, 64).

What it does not model: the size of the caches, the second level, and the time that buses and the CPU take.

Source: MIPS R4000 User's Manual; QEMU and NetBSD for the RC4030 (`busdma.sim.iommu.rc4030`).
"""

from __future__ import annotations

from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.machine.interrupt import Interrupt
from busdma.machine.machine import Device, Machine
from busdma.machine.spec import Options
from busdma.paths import Window
from busdma.sim.bus.master import MasterBus
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.cache import WriteBackCache, cached
from busdma.sim.iommu.rc4030 import Rc4030
from busdma.sim.scsi.boards import Board
from busdma.sim.scsi.jazz_dma import JazzChannel
from busdma.sim.scsi.ncr53c9x import Ncr53c9x
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.simulated import SimulatedMachine
from busdma.translators.rc4030 import Rc4030Table
from busdma.waiting import Runtime

PAGE: Final = 4096
RAM: Final = 32 << 20
LINE: Final = 32
LOGICAL: Final = 16 << 20  #: bytes that the table translates
VECTORS: Final = AddressSet.span(0, PAGE - 1)  #: of exceptions; no entry can name this frame
CHANNEL_AT, CHANNEL_ROOM = 0x1000, 0x20


class Mips(SimulatedMachine):
    """See the module's text."""

    def __init__(self, spec: str, runtime: Runtime, options: Options) -> None:
        seed = options.number("seed", 1)
        self.cache = WriteBackCache(RAM, line=LINE, seed=seed)
        super().__init__(spec, runtime, options, cached(self.cache, check=options.check), page=PAGE, reserved=VECTORS)
        ram = self.ram
        self.bus = self.add_bus(MasterBus(ram.bus, self.frames))
        self.bus.way = lambda address: "remap"
        self.rc4030 = Rc4030(ram.bus, seed=seed)
        self.rc4030.tlb.stale = ram.stale
        with self.building():
            table, where = ram.table(self.frames, LOGICAL // PAGE * 8, PAGE)
            translator = Rc4030Table(ChipRegisters(self.bus, self.rc4030), table, where)
            self.pool = self.add_pool("rc4030", translator, 0, LOGICAL - 1)
            jazz = self.domain.root("magnum").bridge("jazz0", Window(0, LOGICAL, 0, self.pool))
            line = Interrupt("irq 5", runtime)
            self.chip = Ncr53c9x(line, self.call_at, runtime.now, targets={0: ScsiTarget(self.images.disk("esp0", 0))})
            self.channel = JazzChannel(self.bus.add_master("esp0", self.rc4030.route("esp0")), self.chip)
            board = Board(
                "esp0",
                self.chip,
                self.channel,
                chip_at=0,
                stride=1,
                engine_at=CHANNEL_AT,
                engine_room=CHANNEL_ROOM,
            )
            registers = ChipRegisters(self.bus, board)
            self.devices["esp0"] = Device("esp0", "ncr53c9x", "jazz", jazz, registers, line, {"clock": 25})

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with the table's pool, its TLB and the cache."""
        return {
            **super().statistics(),
            "rc4030": self.pool.statistics(),
            "tlb": self.rc4030.tlb.statistics(),
            "cache": self.cache.statistics(),
        }


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the machine on."""
    return Mips(spec, runtime, options)
