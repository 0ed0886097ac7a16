"""``sim:pc-vlb``: a PC with a VESA local bus. 64 MiB of memory, and a BT-445S that goes astray in some of it.

With firmware before 3.37 and its BIOS switched on, the adapter reads and writes wrong bytes above 16 MiB where an
address is, modulo 16 MiB, in page 0 or in its ROM: in 15 of the 12,288 pages there. See `busdma.sim.bus.vlb`.

Options of the spec, as in ``sim:pc-vlb?bounce=17&firmware=3.37``:

============  ===============  ====================================================================================
option        default          meaning
============  ===============  ====================================================================================
``bios``      0xdc000          where the adapter's ROM is, from 0xc8000 in steps of 16 KiB; 0: switched off
``bounce``    128              pages that each bounce zone may grow to
``firmware``  3.36             the adapter's; from 3.35 on it knows queue tags, from 3.37 on it has no bug
``seed``      1                where page frames are scattered, and where the platters stand
``slots``     30               commands that the adapter works on at a time, 2 to 255
``images``    a temporary one  folder of the disk image ``bt0.img``; kept when closed
``disk_mib``  64               size of an image that does not exist yet, in MiB
``tags``      63               commands that the disk queues; 0: it knows no queue tags
============  ===============  ====================================================================================

What it does not model: caches (the PC is coherent), and the time that the CPU takes.

Source: Gibbs, tech-kern 10 June 1998, part 3 (the VLB bug; a disk with 63 tags).
"""

from __future__ import annotations

from functools import partial
from typing import Final

from busdma.machine.machine import Machine
from busdma.machine.spec import Options
from busdma.sim.bus.master import Wires
from busdma.sim.bus.vlb import WIRES, Bt445sWires
from busdma.sim.cards import add_ports
from busdma.sim.pc import PORTS, Pc
from busdma.sim.scsi.bt445s import BIOS, SLOTS, SOUND_SINCE, Bt445s
from busdma.sim.scsi.target import ScsiTarget
from busdma.waiting import Runtime

RAM: Final = 64 << 20
NAME, PORT, IRQ = "bt0", 0x330, 11


class PcVlb(Pc):
    """See the module's text. ``adapter`` is the model, ``wires`` its way to memory: for tests."""

    def __init__(self, spec: str, runtime: Runtime, options: Options) -> None:
        firmware = options.text("firmware", "3.36")
        bios = options.number("bios", BIOS)
        slots = options.number("slots", SLOTS, least=2)
        tags = options.number("tags", 63)
        super().__init__(spec, runtime, options, ram=RAM)
        tag = self.domain.root("pc").derive("vlb", lowaddr=(1 << WIRES) - 1)
        with self.building():
            self.wires: Wires = Bt445sWires(bios) if bios and firmware < SOUND_SINCE else Wires(WIRES)
            make = partial(
                Bt445s,
                irq=IRQ,
                targets={0: ScsiTarget(self.images.disk(NAME, 0), tags=tags)},
                firmware=firmware,
                bios=bios,
                slots=slots,
            )
            master = self.bus.add_master(NAME, self.wires)
            self.adapter = add_ports(
                self,
                self.bus,
                PORT,
                PORTS,
                NAME,
                "bt",
                tag,
                make,
                irq=IRQ,
                kind="vlb",
                master=master,
                bios=bios,
                slots=slots,
            )


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the PC on."""
    return PcVlb(spec, runtime, options)
