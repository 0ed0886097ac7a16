"""PCI: functions in slots, their registers in memory space, and bus masters that must be enabled first.

A device model is a `PciFunction`. It is plugged into a `PciSlot`, which has everything else that a function is: its
configuration space, its bus master and its interrupt pin::

    slot = host.root.slot("edu0", 3, line)
    slot.plug(Edu(slot.master, slot.pin, call_at, runtime.now))  # the device's side
    slot.registers(0), slot.config, line                         # what its driver is given

Software must enable what it uses, in the command register: registers answer only with memory space enabled, and the
device's master reaches nothing before bus mastering is, nor do its messages. What nobody answers ends in a master
abort: reads give ones, writes are lost, and the slot's status register says so. A bus address is a physical address
here, within memory.

Source: PCI Local Bus Specification 3.0: 3.3.3.1 (master abort), 6.2 (configuration), 2.2.6 (interrupt pins).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol, TypeAlias

from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.frames import FrameAllocator
from busdma.machine.handle import Handle64, check_offset, check_value
from busdma.machine.interrupt import Interrupt
from busdma.sim.bus.master import MasterBus
from busdma.sim.bus.msix import HasMsix
from busdma.sim.bus.pci_config import (
    BUS_MASTER,
    INTERRUPT_STATUS,
    INTX_DISABLE,
    MEMORY_SPACE,
    RECEIVED_MASTER_ABORT,
    Bar,
    ConfigSpace,
)

SLOTS: Final = 32

Pieces: TypeAlias = Iterator[tuple[int | None, int]]  #: as those of `busdma.sim.bus.master.Route`


class PciFunction(Protocol):
    """A device model. The bus's lock is held in all calls; its timers must be made with ``host.serialised``."""

    vendor: int
    device: int
    class_code: int  #: 24 bits: base class, subclass, programming interface
    bars: Mapping[int, Bar]  #: by register, 0..5

    def read(self, bar: int, offset: int, size: int) -> int:
        """The CPU reads `size` bytes (1, 2, 4, 8; naturally aligned) at `offset` of base address register `bar`."""

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """The CPU writes them. `value` is unsigned and fits."""


Claim: TypeAlias = tuple[PciFunction, int, int]  #: who answers, in which base address register, at which offset


class Plugged(Protocol):
    """What sits in a slot: a device, or a bridge to another bus."""

    @property
    def config(self) -> ConfigSpace:
        """Its configuration space."""

    @property
    def secondary(self) -> PciBus | None:
        """The bus behind it, if it is a bridge."""

    def claim(self, address: int, size: int) -> Claim | None:
        """Who of it answers to these addresses of memory space, if anybody."""


class IntxPin:
    """The device's side of its interrupt pin: an interrupt line that software can switch off (6.2.2, 6.2.3)."""

    def __init__(self, slot: PciSlot, line: Interrupt) -> None:
        self._slot = slot
        self._raise, self._lower = line.assert_, line.deassert
        self._level = False

    def assert_(self) -> None:
        """Ask for an interrupt, until `deassert`."""
        self._level = True
        self.update()

    def deassert(self) -> None:
        """No longer ask for one."""
        self._level = False
        self.update()

    def update(self) -> None:
        """Drive the line as the device and software want it."""
        config = self._slot.config
        config.signal(INTERRUPT_STATUS, self._level)
        if self._level and not config.command(INTX_DISABLE):
            self._raise()
        else:
            self._lower()


class PciSlot:
    """The function `name` on `bus`. Made by `PciBus.slot`; it is the route of its own master."""

    secondary = None  #: as `Plugged.secondary`

    def __init__(self, bus: PciBus, name: str, line: Interrupt) -> None:
        self.name = name
        self.bus = bus
        self.pin = IntxPin(self, line)
        self.master = bus.host.add_master(name, self)
        self.upstream = bus.upstream  #: the way of its accesses; through an IOMMU, one of its own
        self._aborts = self._not_enabled = 0
        self._function: PciFunction | None = None
        self._config: ConfigSpace | None = None

    def plug(self, function: PciFunction) -> None:
        """Put the device in. ConfigurationError if there is one, or its base address registers cannot be."""
        if self._function is not None:
            raise ConfigurationError(f"there is a device in slot {self.name!r} already: take another slot")
        self._config = ConfigSpace(function.vendor, function.device, function.class_code, function.bars)
        self._config.watchers.append(self.pin.update)
        if isinstance(function, HasMsix) and function.msix is not None:
            function.msix.connect(self._config)
        self._function = function

    @property
    def config(self) -> ConfigSpace:
        """The function's configuration space. ConfigurationError before `plug`."""
        if self._config is None:
            raise ConfigurationError(f"slot {self.name!r} is empty: plug a device in first")
        return self._config

    def registers(self, bar: int) -> PciRegisters:
        """The driver's handle on the registers behind base address register `bar`. ConfigurationError: no such one."""
        if bar not in self.config.bars:
            raise ConfigurationError(f"{self.name} has no base address register {bar} for memory")
        return PciRegisters(self, bar)

    def claim(self, address: int, size: int) -> Claim | None:
        """As `Plugged.claim`."""
        config, function = self._config, self._function
        if config is not None and function is not None and config.command(MEMORY_SPACE):
            for number, bar in config.bars.items():
                offset = address - config.base(number)
                if 0 <= offset <= bar.size - size:
                    return function, number, offset
        return None

    def wraps(self, address: int, length: int) -> bool:
        """As `busdma.sim.bus.master.Route.wraps`: PCI carries whole addresses."""
        return False

    def pieces(self, address: int, length: int, write: bool) -> Pieces:
        """As `busdma.sim.bus.master.Route.pieces`: what of the master's access reaches memory."""
        if not self.config.command(BUS_MASTER):
            self._not_enabled += 1
            yield None, length
            return
        aborted = False
        for at, count in self.upstream(address, length, write):
            aborted = aborted or at is None
            yield at, count
        if aborted:
            self._aborts += 1
            self.config.signal(RECEIVED_MASTER_ABORT)

    def statistics(self) -> dict[str, int]:
        """Accesses of the master that went nowhere: not answered, or not all of it; and made before it was enabled."""
        return {"aborts": self._aborts, "not_enabled": self._not_enabled}


class PciRegisters(Handle64):
    """A driver's handle on one region of a function's registers: `busdma.machine.attachment.MmioRegisters`.

    Where nobody answers, reads give ones and writes are lost, in all widths.
    """

    __slots__ = ("_bar", "_slot")

    def __init__(self, slot: PciSlot, bar: int) -> None:
        self._slot = slot
        self._bar = bar

    def barrier(self) -> None:
        """Push posted writes to the device. Here nothing is ever left behind; it is counted."""
        host = self._slot.bus.host
        with host.lock:
            host.barriers += 1

    def _read(self, offset: int, size: int) -> int:
        return self._slot.bus.host.read(self._address(offset, size), size)

    def _write(self, offset: int, size: int, value: int) -> None:
        self._slot.bus.host.write(self._address(offset, size), size, value)

    def _address(self, offset: int, size: int) -> int:
        config = self._slot.config
        check_offset(self._slot.name, offset, size, config.bars[self._bar].size)
        return config.base(self._bar) + offset


class PciBus:
    """The slots of one bus, and the way of its masters' accesses to memory, `upstream`."""

    def __init__(self, host: PciHost, name: str, upstream: Callable[[int, int, bool], Pieces]) -> None:
        self.host = host
        self.name = name
        self.upstream = upstream
        self.plugged: dict[int, Plugged] = {}  #: by slot number

    def slot(self, name: str, number: int, line: Interrupt) -> PciSlot:
        """Slot `number` for a device called `name`. ConfigurationError if it is taken, or the name is."""
        self.check_free(number)
        slot = self.host.slots[name] = PciSlot(self, name, line)
        self.plugged[number] = slot
        return slot

    def check_free(self, number: int) -> None:
        """ConfigurationError unless something can be put into slot `number`."""
        if number not in range(SLOTS) or number in self.plugged:
            raise ConfigurationError(
                f"slot {number} of {self.name} is taken, or none of its {SLOTS}: free ones begin at "
                f"{min(set(range(SLOTS)) - set(self.plugged), default=SLOTS)}"
            )

    def functions(self) -> list[ConfigSpace]:
        """As `busdma.machine.pci_firmware.Bus.functions`."""
        return [thing.config for _, thing in sorted(self.plugged.items())]

    def behind(self, bridge: ConfigSpace, number: int) -> PciBus:
        """As `busdma.machine.pci_firmware.Bus.behind`."""
        (bus,) = (thing.secondary for thing in self.plugged.values() if thing.config is bridge)
        assert bus is not None
        return bus

    def claim(self, address: int, size: int) -> Claim | None:
        """Who on this bus, or behind it, answers to these addresses of memory space."""
        for thing in self.plugged.values():
            claim = thing.claim(address, size)
            if claim is not None:
                return claim
        return None


class PciHost(MasterBus):
    """The host bridge: the CPU's way to memory space, and the masters' way from the `root` bus to memory.

    `ram`: the physical addresses where there is memory. All others are unclaimed.
    """

    def __init__(self, memory: memoryview, frames: FrameAllocator, ram: AddressSet) -> None:
        super().__init__(memory, frames)
        self.ram = ram
        self.slots: dict[str, PciSlot] = {}  #: of all buses, by name
        self.root = PciBus(self, "pci0", self.to_memory)

    def read(self, address: int, size: int) -> int:
        """The CPU reads memory space: ones if nobody answers."""
        with self.lock:
            claim = self.root.claim(address, size)
            if claim is None:
                return (1 << 8 * size) - 1
            function, bar, offset = claim
            return function.read(bar, offset, size)

    def write(self, address: int, size: int, value: int) -> None:
        """The CPU writes memory space; in vain if nobody answers. DriverError if `value` does not fit."""
        check_value(address, size, value)
        with self.lock:
            claim = self.root.claim(address, size)
            if claim is not None:
                function, bar, offset = claim
                function.write(bar, offset, size, value)

    def to_memory(self, address: int, length: int, write: bool) -> Pieces:
        """What of an access is memory, or a message, by physical address: the end of every way upstream."""
        if write and self.messages is not None and self.messages.takes(address, length):
            yield address, length
            return
        for inside, at, count in split(address, length, self.ram):
            yield (at if inside else None), count


def split(address: int, length: int, among: AddressSet) -> Iterator[tuple[bool, int, int]]:
    """[address, address + length) in its order, cut where it enters or leaves `among`: (inside, address, length)."""
    end = address + length
    if address < 0 or end - 1 > MAX_ADDRESS:
        yield False, address, length
    elif among.covers(address, end - 1):
        yield True, address, length
    else:
        for lo, hi in among & AddressSet.span(address, end - 1):
            if address < lo:
                yield False, address, lo - address
            yield True, lo, hi + 1 - lo
            address = hi + 1
        if address < end:
            yield False, address, end - address
