"""``sim:pc-isa``: the PC of 1998. 32 MiB of memory, and cards that reach only 16 MiB of it.

Three AHA-1542s, ``aha0`` to ``aha2``; a DES card, ``des0``, if ``busdma[des]`` is installed; and a floppy, ``fd0``,
whose controller has no address lines of its own: the PC's 8237s move its data, never across a multiple of 64 KiB.

Options of the spec, as in ``sim:pc-isa?bounce=17&seed=3``:

============  ===============  ====================================================================================
option        default          meaning
============  ===============  ====================================================================================
``bounce``    128              pages that the bounce zone may grow to
``seed``      1                where page frames are scattered, and where the platters stand
``images``    a temporary one  folder of the disk images ``aha0.img``, ``aha1.img``, ``aha2.img``, ``fd0.img``; kept
``disk_mib``  64               size of an ``aha`` image that does not exist yet, in MiB; a floppy is one of 1.44 MB
============  ===============  ====================================================================================

What it does not model: caches (the PC is coherent), that the adapters become masters through a cascaded 8237, and the
time that the CPU takes.

Source: Gibbs, tech-kern 10 June 1998 (three 1542 cards in a system with 32 MB of RAM).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from busdma.machine.i8237 import DmaController
from busdma.machine.machine import Machine
from busdma.machine.spec import Options
from busdma.sim.bus.i8237 import DmaControllers
from busdma.sim.bus.isa import WIRES
from busdma.sim.bus.master import BusMaster
from busdma.sim.cards import add_des_isa, add_ports
from busdma.sim.chips import fdc
from busdma.sim.pc import PORTS, Pc
from busdma.sim.scsi.aha1542 import Aha1542
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.wiring import CallAt, Pin
from busdma.tag import Tag
from busdma.waiting import Runtime

RAM: Final = 32 << 20
ADAPTERS: Final = (("aha0", 0x330, 11, 5), ("aha1", 0x334, 10, 6), ("aha2", 0x230, 12, 7))  # ports, irq, drq
FLOPPY: Final = ("fd0", 0x3F0, 6, 2)
FLOPPY_BLOCKS: Final = 2880


class PcIsa(Pc):
    """See the module's text."""

    def __init__(self, spec: str, runtime: Runtime, options: Options) -> None:
        super().__init__(spec, runtime, options, ram=RAM)
        tag = self.domain.root("pc").derive("isa", lowaddr=(1 << WIRES) - 1)
        self.adapters: dict[str, Aha1542] = {}  #: the models, for tests that inject faults
        with self.building():
            for number, (name, port, irq, drq) in enumerate(ADAPTERS):
                make = partial(
                    Aha1542,
                    irq=irq,
                    dma_channel=drq,
                    targets={0: ScsiTarget(self.images.disk(name, number))},
                    seed=self.seed + number,
                )
                self.adapters[name] = add_ports(
                    self, self.bus, port, PORTS, name, "aha1542", tag, make, irq=irq, drq=drq
                )
            self.des = add_des_isa(self, self.bus, 0x240, "des0", tag, irq=5)
            self.fdc = self._add_floppy(tag)

    def _add_floppy(self, tag: Tag) -> fdc.Fdc:
        name, port, irq, drq = FLOPPY
        controllers = DmaControllers(self.bus)
        medium = self.images.disk(name, len(ADAPTERS), blocks=FLOPPY_BLOCKS)

        def make(master: BusMaster, line: Pin, call_at: CallAt, now: Callable[[], int]) -> fdc.Fdc:
            return fdc.Fdc(controllers.request(drq, master), line, call_at, now, medium=medium)

        channel = DmaController(self.bus.registers(0)).channel(drq)
        return add_ports(self, self.bus, port, fdc.PORTS, name, "fdc", tag, make, irq=irq, drq=drq, dma=channel)


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the PC on."""
    return PcIsa(spec, runtime, options)
