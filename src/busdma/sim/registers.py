"""The CPU's way to the registers of a chip that sits on no bus of its own: a bridge, an IOMMU.

The machine says where the chip is and hands out this handle; the software that programs it knows offsets only.
"""

from __future__ import annotations

from typing import Protocol

from busdma.errors import DriverError
from busdma.sim.master import MasterBus


class Chip(Protocol):
    """A model with registers. The bus's lock is held in all calls."""

    name: str
    room: int  #: bytes of address space that its registers take

    def read(self, offset: int, size: int) -> int:
        """The CPU reads `size` bytes (1, 2, 4, 8; naturally aligned) at `offset`; ones where no register answers."""

    def write(self, offset: int, size: int, value: int) -> None:
        """The CPU writes them. `value` is unsigned and fits. It is lost where no register answers."""


class ChipRegisters:
    """A handle on the registers of `chip`: `busdma.machine.attachment.MmioRegisters`, under the lock of `bus`."""

    __slots__ = ("_bus", "_chip")

    def __init__(self, bus: MasterBus, chip: Chip) -> None:
        self._bus = bus
        self._chip = chip

    def barrier(self) -> None:
        """Push posted writes to the chip. Here nothing is ever left behind; it is counted."""
        with self._bus.lock:
            self._bus.barriers += 1

    def read8(self, offset: int) -> int:
        """The byte at `offset`."""
        return self._read(offset, 1)

    def read16(self, offset: int) -> int:
        """The 16-bit register at `offset`."""
        return self._read(offset, 2)

    def read32(self, offset: int) -> int:
        """The 32-bit register at `offset`."""
        return self._read(offset, 4)

    def read64(self, offset: int) -> int:
        """The 64-bit register at `offset`."""
        return self._read(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        """Write the byte at `offset`."""
        self._write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """Write the 16-bit register at `offset`."""
        self._write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """Write the 32-bit register at `offset`."""
        self._write(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        """Write the 64-bit register at `offset`."""
        self._write(offset, 8, value)

    def _read(self, offset: int, size: int) -> int:
        self._check(offset, size)
        with self._bus.lock:
            return self._chip.read(offset, size)

    def _write(self, offset: int, size: int, value: int) -> None:
        self._check(offset, size)
        if not 0 <= value < 1 << 8 * size:
            raise DriverError(f"cannot write {value:#x} to {offset:#x}: that register has {8 * size} bits")
        with self._bus.lock:
            self._chip.write(offset, size, value)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > self._chip.room or offset % size:
            raise DriverError(
                f"{self._chip.name} has no {8 * size}-bit register at {offset:#x}: offsets are multiples of {size} "
                f"below {self._chip.room:#x}"
            )
