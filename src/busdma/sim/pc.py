"""What the PCs with disk controllers at I/O ports have in common: memory, an ISA bus, and disks in image files.

Four options of every such machine: ``bounce``, ``seed``, ``images``, ``disk_mib``; their tables say what they mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.machine.machine import DataTraffic, Device, Machine
from busdma.machine.space import AddressSpace
from busdma.machine.spec import Options
from busdma.sim.images import Images
from busdma.sim.isa import IsaBus, PortDevice
from busdma.sim.memory import coherent
from busdma.tag import Tag
from busdma.waiting import Runtime

PAGE: Final = 4096
PORTS: Final = 4  #: of each controller
BIOS_HOLE: Final = AddressSet.span(0xA0000, 0xFFFFF)  # video memory and ROMs: no RAM for anybody


class Pc(Machine):
    """A PC with `ram` bytes and no cards yet. Whoever derives from it has asked for its own options before."""

    def __init__(self, spec: str, runtime: Runtime, options: Options, *, ram: int) -> None:
        self.seed: Final = options.number("seed", 1)
        limit = options.number("bounce", 128, least=1)
        self.images = Images(spec, options, seed=self.seed)
        options.finish()
        memory = coherent(ram, check=options.check)
        frames = FrameAllocator(0, ram // PAGE, page_size=PAGE, seed=self.seed, reserved=BIOS_HOLE)
        domain = memory.domain(frames, runtime, bounce_limit=limit)
        super().__init__(spec, domain, AddressSpace("kernel", memory.cpu, frames, pages=2 * ram // PAGE))
        self.checker = memory.checker
        self.bus = IsaBus(memory.bus, frames)
        self.bus.watch = memory.watch
        self.at_close(self.images.close)

    def plug(
        self,
        name: str,
        driver: str,
        bus: str,
        tag: Tag,
        card: PortDevice,
        port: int,
        line: Interrupt,
        properties: dict[str, int],
    ) -> None:
        """Have `card` answer at its ports, and make it the device `name`."""
        self.bus.claim(port, PORTS, card)
        self.devices[name] = Device(name, driver, bus, tag, self.bus.registers(port), line, properties)

    def call_at(self, when: int, fn: Callable[[], object]) -> object:
        """The clock of the cards: `fn` is called under the bus's lock."""
        return self.runtime.call_at(when, self.bus.serialised(fn))

    def traffic(self, device: str) -> DataTraffic:
        """See `Machine.traffic`."""
        return self.bus.traffic(device)

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with the bus's own counts by device."""
        return {**super().statistics(), "bus": self.bus.statistics()}
