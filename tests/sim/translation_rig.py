"""A bus with one of each translation unit, programmed by its translator, and a master behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from busdma.machine.frames import FrameAllocator
from busdma.mechanisms.translation import Translator
from busdma.sim.bus.master import BusMaster, MasterBus
from busdma.sim.bus.registers import Chip, ChipRegisters
from busdma.sim.iommu.dmar import DmaRemapping
from busdma.sim.iommu.rc4030 import Rc4030
from busdma.sim.iommu.sgmap import CiaBridge
from busdma.sim.iommu.sun4m import Sun4mIommu
from busdma.sim.iommu.translation import FaultLog
from busdma.translators.cia import CiaSgmap
from busdma.translators.dmar import DmarUnit
from busdma.translators.rc4030 import Rc4030Table
from busdma.translators.sun4m import Sun4mTable

SIZE = 1 << 20  #: of memory; tables are in its lower half, and DATA begins where they end
DATA = SIZE // 2
SOURCE = 0x0318  #: of the master behind the DMAR: bus 3, device 3, function 0


@dataclass
class Rig:
    """`base`: a bus address that the translator has, with many pages after it."""

    bus: MasterBus
    chip: Chip
    registers: ChipRegisters
    faults: FaultLog
    translator: Translator
    master: BusMaster
    base: int

    @property
    def page(self) -> int:
        return self.translator.page_size

    def frame(self, number: int) -> int:
        """The physical address of data frame `number`."""
        return DATA + number * self.page

    def paint(self, number: int, byte: int) -> int:
        """Fill a data frame; its address."""
        at = self.frame(number)
        self.bus.memory[at : at + self.page] = bytes([byte]) * self.page
        return at


def new_bus(page: int = 4096) -> MasterBus:
    return MasterBus(memoryview(bytearray(SIZE)), FrameAllocator(0, SIZE // page, page_size=page))


def cia() -> Rig:
    bus = new_bus(8192)
    chip = CiaBridge(bus.memory)
    registers = ChipRegisters(bus, chip)
    translator = CiaSgmap(registers, bus.memory[0x8000:0xA000], 0x8000)
    return Rig(bus, chip, registers, chip.faults, translator, bus.add_master("m", chip.route("m")), 0x80_0000)


def sun4m() -> Rig:
    bus = new_bus()
    chip = Sun4mIommu(bus.memory)
    registers = ChipRegisters(bus, chip)
    translator = Sun4mTable(registers, bus.memory[0x4000:0x8000], 0x4000, size=16 << 20)
    return Rig(bus, chip, registers, chip.faults, translator, bus.add_master("m", chip.route("m")), 0xFF00_0000)


def rc4030() -> Rig:
    bus = new_bus()
    chip = Rc4030(bus.memory)
    registers = ChipRegisters(bus, chip)
    translator = Rc4030Table(registers, bus.memory[0x1000:0x2000], 0x1000)
    return Rig(bus, chip, registers, chip.faults, translator, bus.add_master("m", chip.route("m")), 0)


def tables(start: int = 0x1000) -> Callable[[], int]:
    """Page frames for tables, one after the other."""
    state = [start]

    def allocate() -> int:
        state[0] += 4096
        assert state[0] < DATA
        return state[0]

    return allocate


def dmar() -> Rig:
    bus = new_bus()
    chip = DmaRemapping(bus.memory, entries=8)
    registers = ChipRegisters(bus, chip)
    unit = DmarUnit(registers, bus.memory, tables())
    domain = unit.domain("m", SOURCE)
    unit.enable()
    # the last pages of one table, the first of another
    base = 0x1234_0000_0000 % (1 << 39) + 508 * 4096
    return Rig(bus, chip, registers, chip.faults, domain, bus.add_master("m", chip.route("m", SOURCE)), base)


RIGS: dict[str, Callable[[], Rig]] = {"cia": cia, "sun4m": sun4m, "rc4030": rc4030, "dmar": dmar}
RIGHTS = {"cia": False, "sun4m": True, "rc4030": False, "dmar": True}  #: whether a mapping can be read-only
