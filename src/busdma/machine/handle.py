"""Handles on registers: every width over two methods, for back ends to derive from.

Which accesses there are, and what becomes of them, is the affair of whoever derives: `_read` and `_write` check the
offset first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from busdma.errors import DriverError


class Handle32(ABC):
    """Registers of up to 32 bits: `busdma.machine.attachment.ConfigSpace`."""

    __slots__ = ()

    def read8(self, offset: int) -> int:
        """The byte at `offset`."""
        return self._read(offset, 1)

    def read16(self, offset: int) -> int:
        """The 16-bit register at `offset`."""
        return self._read(offset, 2)

    def read32(self, offset: int) -> int:
        """The 32-bit register at `offset`."""
        return self._read(offset, 4)

    def write8(self, offset: int, value: int) -> None:
        """Write the byte at `offset`."""
        self._write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """Write the 16-bit register at `offset`."""
        self._write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """Write the 32-bit register at `offset`."""
        self._write(offset, 4, value)

    @abstractmethod
    def _read(self, offset: int, size: int) -> int:
        """The `size` bytes at `offset`, as a number."""

    @abstractmethod
    def _write(self, offset: int, size: int, value: int) -> None:
        """Write them."""


class Handle64(Handle32):
    """Registers of up to 64 bits: `busdma.machine.attachment.MmioRegisters`, but for the barrier."""

    __slots__ = ()

    def read64(self, offset: int) -> int:
        """The 64-bit register at `offset`."""
        return self._read(offset, 8)

    def write64(self, offset: int, value: int) -> None:
        """Write the 64-bit register at `offset`."""
        self._write(offset, 8, value)


def check_offset(name: str, offset: int, size: int, room: int) -> None:
    """DriverError unless the `size` bytes at `offset` are one register of the device `name`, which has `room` bytes."""
    if offset < 0 or offset + size > room or offset % size:
        raise DriverError(
            f"{name} has no {8 * size}-bit register at {offset:#x}: offsets are multiples of {size} below {room:#x}"
        )


def check_value(where: int, size: int, value: int) -> None:
    """DriverError unless `value` fits into the `size` bytes of the register at `where`."""
    if not 0 <= value < 1 << 8 * size:
        raise DriverError(f"cannot write {value:#x} to {where:#x}: that register has {8 * size} bits")
