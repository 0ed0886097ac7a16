"""What the PCs with disk controllers at I/O ports have in common: memory with a hole for the BIOS, and an ISA bus."""

from __future__ import annotations

from typing import Final

from busdma.addresses import AddressSet
from busdma.machine.ram import coherent
from busdma.machine.spec import Options
from busdma.sim.bus.isa import IsaBus
from busdma.sim.simulated import SimulatedMachine
from busdma.waiting import Runtime

PAGE: Final = 4096
PORTS: Final = 4  #: of each disk controller
BIOS_HOLE: Final = AddressSet.span(0xA0000, 0xFFFFF)  # video memory and ROMs: no RAM for anybody


class Pc(SimulatedMachine):
    """A PC with `ram` bytes and no cards yet. Whoever derives from it has asked for its own options before."""

    def __init__(self, spec: str, runtime: Runtime, options: Options, *, ram: int) -> None:
        super().__init__(spec, runtime, options, coherent(ram, check=options.check), page=PAGE, reserved=BIOS_HOLE)
        self.bus = self.add_bus(IsaBus(self.ram.bus, self.frames))
