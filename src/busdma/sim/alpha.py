"""``sim:alpha``: an AlphaStation of 1996. 1.5 GiB of memory behind the 21172 (CIA), PCI and, behind a bridge, ISA.

Nothing on these buses has the address that memory has. The bridge offers two windows:

===============  ====================  ==========================================================================
PCI addresses    lead to               mechanism
===============  ====================  ==========================================================================
1 GiB to 2 GiB   the first GiB         window: a constant is added
8 to 16 MiB      any 8 MiB of memory   remap: a scatter-gather map of 1024 pages of 8 KiB; reads fetch 256 bytes
                                       ahead
===============  ====================  ==========================================================================

PCI devices use the first where they can, and the second for memory above 1 GiB. ISA devices have 24 address lines and
see only the second.

===================  ========================================================================
device               what it is
===================  ========================================================================
``esp0``, on PCI     an Am53C974 SCSI controller with one disk
``des0``, on PCI     the DES card, if ``busdma[des]`` is installed
``net0``, on PCI     a PCnet-PCI II at a wire that loops back to it
``aha0``, on ISA     an AHA-1542 with one disk
``des1``, on ISA     the DES card for ISA
===================  ========================================================================

Options of the spec: ``bounce`` (pages that each bounce zone may grow to, 128), ``seed`` (1), ``images`` (folder of the
disk images, kept when closed) and ``disk_mib`` (size of an image that does not exist yet, 64).

What it does not model: the other two windows, byte order tricks of ISA, and the time that buses and the CPU take.

Source: Digital, 21172 data; NetBSD's windows on these machines; Thorpe, USENIX 1998 (a 1542 in an Alpha).
"""

from __future__ import annotations

from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.machine.machine import DataTraffic, Device, Machine
from busdma.machine.space import AddressSpace
from busdma.machine.spec import Options
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.paths import Window
from busdma.sim.aha1542 import Aha1542
from busdma.sim.am53c974 import Am53c974
from busdma.sim.des import add_to_isa, add_to_pci
from busdma.sim.images import Images
from busdma.sim.isa import WIRES, IsaBus
from busdma.sim.memory import coherent
from busdma.sim.nic import Nic
from busdma.sim.pci import PciFunction, PciHost, PciSlot
from busdma.sim.pci_firmware import assign
from busdma.sim.registers import ChipRegisters
from busdma.sim.scsi import ScsiTarget
from busdma.sim.sgmap import CiaBridge
from busdma.sim.wire import Wire
from busdma.tag import Tag
from busdma.translators.cia import CiaSgmap, open_window
from busdma.waiting import Runtime

PAGE: Final = 8192
GIB: Final = 1 << 30
RAM: Final = 3 * GIB // 2
KERNEL_SPACE: Final = 256 << 20  #: bytes of virtual addresses
DIRECT: Final = Window(GIB, GIB)
MAPPED, MAPPED_SIZE = 8 << 20, 8 << 20
WARM: Final = 16384  #: frames that are given out again first, so that a long run does not fill the host's memory
PCI_REGISTERS: Final = AddressSet.span(0x8000_0000, 0xBFFF_FFFF)  # above both windows
AHA_PORTS: Final = 4
STATION: Final = bytes.fromhex("08002b000001")


class Alpha(Machine):
    """See the module's text."""

    def __init__(self, spec: str, runtime: Runtime, options: Options) -> None:
        seed = options.number("seed", 1)
        limit = options.number("bounce", 128, least=1)
        images = Images(spec, options, seed=seed)
        options.finish()
        ram = coherent(RAM, check=options.check)
        frames = FrameAllocator(0, RAM // PAGE, page_size=PAGE, seed=seed, reuse=WARM)
        domain = ram.domain(frames, runtime, bounce_limit=limit)
        super().__init__(spec, domain, AddressSpace("kernel", ram.cpu, frames, pages=KERNEL_SPACE // PAGE))
        self.checker = ram.checker
        self.at_close(images.close)
        self.slots: dict[str, PciSlot] = {}
        self.cia = CiaBridge(ram.bus)
        self.cia.tlb.stale = ram.stale
        self.host = PciHost(ram.bus, frames, AddressSet.span(0, RAM - 1))
        self.host.watch, self.host.way = ram.watch, _way
        self.host.root.upstream = self.cia.route("pci0", self.host.to_memory).pieces
        upstream = self.cia.route("isa0", self.host.to_memory).pieces
        self.isa = IsaBus(ram.bus, frames, host=self.host, upstream=upstream)
        registers = ChipRegisters(self.host, self.cia)
        open_window(registers, 1, DIRECT.base, DIRECT.size, DIRECT.target)
        table, where = ram.table(frames, MAPPED_SIZE // PAGE * 8, 32768)
        self.sgmap = CiaSgmap(registers, table, where, base=MAPPED, size=MAPPED_SIZE)
        pages = (MAPPED // PAGE, (MAPPED + MAPPED_SIZE) // PAGE - 1)
        self.pool = IovaPool("sgmap", domain.queue, self.sgmap, IovaAllocator([pages]))
        frames.add_releaser(self.pool.forget)
        pci0 = domain.root("alpha").bridge("pci0", DIRECT, Window(MAPPED, MAPPED_SIZE, MAPPED, self.pool))
        isa0 = pci0.derive("isa0", lowaddr=(1 << WIRES) - 1)
        try:
            self._add_cards(images, pci0, isa0)
            assign(self.host.root, PCI_REGISTERS)
        except BaseException:
            self.close()
            raise

    def traffic(self, device: str) -> DataTraffic:
        """See `Machine.traffic`."""
        return (self.isa if self.devices[device].bus == "isa" else self.host).traffic(device)

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with the buses' own counts by device, the map's pool and its TLB."""
        return {
            **super().statistics(),
            "bus": {**self.host.statistics(), **self.isa.statistics()},
            "sgmap": self.pool.statistics(),
            "tlb": self.cia.tlb.statistics(),
        }

    def _add_cards(self, images: Images, pci0: Tag, isa0: Tag) -> None:
        slot, line = self._slot("esp0", 5, irq=0)
        targets = {0: ScsiTarget(images.disk("esp0", 0))}
        self._plug(slot, "ncr53c9x", pci0, line, Am53c974(*self._wiring(slot), targets=targets), irq=0)
        add_to_pci(self, self.host.root, "des0", 6, pci0, irq=1)
        slot, line = self._slot("net0", 7, irq=2)
        wire = Wire(self._call_at, self.runtime.now)
        self._plug(slot, "pcnet", pci0, line, Nic(*self._wiring(slot), wire=wire, address=STATION), irq=2, bar=1)
        self._add_aha("aha0", images, isa0)
        add_to_isa(self, self.isa, "des1", 0x240, isa0, irq=5)

    def _add_aha(self, name: str, images: Images, tag: Tag) -> None:
        line, port = Interrupt("irq 11", self.runtime), 0x330
        card = Aha1542(
            self.isa.master(name),
            line,
            self._call_at,
            self.runtime.now,
            irq=11,
            dma_channel=5,
            targets={0: ScsiTarget(images.disk(name, 1))},
        )
        self.isa.claim(port, AHA_PORTS, card)
        properties = {"irq": 11, "drq": 5}
        self.devices[name] = Device(name, "aha1542", "isa", tag, self.isa.registers(port), line, properties)

    def _slot(self, name: str, number: int, *, irq: int) -> tuple[PciSlot, Interrupt]:
        line = Interrupt(f"irq {irq}", self.runtime)
        slot = self.slots[name] = self.host.root.slot(name, number, line)
        return slot, line

    def _wiring(self, slot: PciSlot) -> tuple[Any, Any, Any, Any]:
        """What every model is given: its master, its pin and the clock."""
        return slot.master, slot.pin, self._call_at, self.runtime.now

    def _plug(
        self, slot: PciSlot, driver: str, tag: Tag, line: Interrupt, card: PciFunction, *, irq: int, bar: int = 0
    ) -> None:
        slot.plug(card)
        registers = slot.registers(bar)
        self.devices[slot.name] = Device(slot.name, driver, "pci", tag, registers, line, {"irq": irq}, slot.config)

    def _call_at(self, when: int, fn: Any) -> object:
        return self.runtime.call_at(when, self.host.serialised(fn))


def _way(address: int) -> str:
    """Which of the bridge's windows a PCI address goes through."""
    if DIRECT.base <= address < DIRECT.base + DIRECT.size:
        return "window"
    return "remap" if MAPPED <= address < MAPPED + MAPPED_SIZE else "direct"


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the machine on."""
    return Alpha(spec, runtime, options)
