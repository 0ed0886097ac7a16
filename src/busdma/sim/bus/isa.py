"""The ISA bus: I/O ports, and bus masters that reach memory through 24 address wires.

An address of 25 bits or more loses its upper bits on the way, as on the real wires, and so does an access that runs
past 16 MiB: it wraps to address 0. A bus address is a physical address here. Where there is no memory nobody answers.

Source: IEEE P996 (ISA), signals SA0-SA19 and LA17-LA23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from busdma.errors import ConfigurationError, DriverError
from busdma.machine.frames import FrameAllocator
from busdma.sim.bus.master import BusMaster, MasterBus, Wires

WIRES: Final = 24
PORTS: Final = 1 << 16


class PortDevice(Protocol):
    """What answers at claimed ports. Offsets count from the claim's base; values are bytes, 0..255."""

    def read8(self, offset: int) -> int:
        """The CPU reads a port."""

    def write8(self, offset: int, value: int) -> None:
        """The CPU writes a port."""


class PortRegisters:
    """A driver's handle on the ports from `base` on. Offsets count from `base`; values are bytes."""

    __slots__ = ("_bus", "base")

    def __init__(self, bus: IsaBus, base: int) -> None:
        self._bus = bus
        self.base = base

    def read8(self, offset: int) -> int:
        """Read a port; 0xFF where no device answers."""
        return self._bus.read8(self.base + offset)

    def write8(self, offset: int, value: int) -> None:
        """Write a byte to a port; it is lost where no device answers. DriverError if it is no byte."""
        self._bus.write8(self.base + offset, value)

    def barrier(self) -> None:
        """Complete every access made before this one. ISA does so by itself; other buses post their writes."""
        with self._bus.lock:
            self._bus.barriers += 1


class IsaBus(MasterBus):
    """The bus over `memory`, whose frames `frames` hands out, from physical address 0 on. See `MasterBus`.

    `host`, `upstream`: behind a bridge, the bus that it sits on, and the way of an access from there to memory.
    """

    def __init__(
        self,
        memory: memoryview,
        frames: FrameAllocator,
        *,
        host: MasterBus | None = None,
        upstream: Callable[[int, int, bool], Iterator[tuple[int | None, int]]] | None = None,
    ) -> None:
        super().__init__(memory, frames)
        self._upstream = upstream
        if host is not None:
            self.lock, self.watch, self.way = host.lock, host.watch, host.way
        self._claims: list[tuple[int, int]] = []
        self._ports: dict[int, tuple[PortDevice, int]] = {}  # by port: the device and the offset of the port in it

    def claim(self, base: int, length: int, device: PortDevice) -> None:
        """Have `device` answer at the `length` ports from `base` on. ConfigurationError if any is taken."""
        if base < 0 or length < 1 or base + length > PORTS:
            raise ConfigurationError(f"ports {base:#x}..{base + length - 1:#x}: give ports below {PORTS:#x}")
        with self.lock:
            for first, end in self._claims:
                if base < end and first < base + length:
                    raise ConfigurationError(
                        f"ports {base:#x}..{base + length - 1:#x} overlap {first:#x}..{end - 1:#x}, which another "
                        "device claimed: give one of them another base"
                    )
            self._claims.append((base, base + length))
            self._ports |= {base + offset: (device, offset) for offset in range(length)}

    def read8(self, port: int) -> int:
        """The CPU reads a port; 0xFF where no device answers."""
        with self.lock:
            device, offset = self._ports.get(port, (None, 0))
            return 0xFF if device is None else device.read8(offset)

    def write8(self, port: int, value: int) -> None:
        """The CPU writes a port. DriverError if `value` is no byte."""
        if not 0 <= value <= 0xFF:
            raise DriverError(f"cannot write {value:#x} to port {port:#x}: ports are bytes, 0..0xff")
        with self.lock:
            device, offset = self._ports.get(port, (None, 0))
            if device is not None:
                device.write8(offset, value)

    def registers(self, base: int) -> PortRegisters:
        """A driver's handle on the ports from `base` on. No claim is needed: a probe may look where nothing is."""
        return PortRegisters(self, base)

    def master(self, name: str) -> BusMaster:
        """A new bus master. ConfigurationError if the name is taken: its counts would mix."""
        wires = Wires(WIRES)
        return self.add_master(name, wires if self._upstream is None else _Behind(wires, self._upstream))


class _Behind:
    """The wires, and what is behind the bridge at their other end."""

    def __init__(self, wires: Wires, upstream: Callable[[int, int, bool], Iterator[tuple[int | None, int]]]) -> None:
        self._upstream = upstream
        self._wires = wires
        self.wraps = wires.wraps

    def pieces(self, address: int, length: int, write: bool) -> Iterator[tuple[int | None, int]]:
        for at, count in self._wires.pieces(address, length, write):
            assert at is not None
            yield from self._upstream(at, count, write)
