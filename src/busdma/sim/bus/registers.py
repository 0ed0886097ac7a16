"""The CPU's way to the registers of a chip that sits on no bus of its own: a bridge, an IOMMU.

The machine says where the chip is and hands out this handle; the software that programs it knows offsets only.
"""

from __future__ import annotations

from typing import Protocol

from busdma.machine.handle import Handle64, check_offset, check_value
from busdma.sim.bus.master import MasterBus


class Chip(Protocol):
    """A model with registers. The bus's lock is held in all calls."""

    name: str
    room: int  #: bytes of address space that its registers take

    def read(self, offset: int, size: int) -> int:
        """The CPU reads `size` bytes (1, 2, 4, 8; naturally aligned) at `offset`; ones where no register answers."""

    def write(self, offset: int, size: int, value: int) -> None:
        """The CPU writes them. `value` is unsigned and fits. It is lost where no register answers."""


class ChipRegisters(Handle64):
    """A handle on the registers of `chip`: `busdma.machine.attachment.MmioRegisters`, under the lock of `bus`."""

    __slots__ = ("_bus", "_chip")

    def __init__(self, bus: MasterBus, chip: Chip) -> None:
        self._bus = bus
        self._chip = chip

    def barrier(self) -> None:
        """Push posted writes to the chip. Here nothing is ever left behind; it is counted."""
        with self._bus.lock:
            self._bus.barriers += 1

    def _read(self, offset: int, size: int) -> int:
        check_offset(self._chip.name, offset, size, self._chip.room)
        with self._bus.lock:
            return self._chip.read(offset, size)

    def _write(self, offset: int, size: int, value: int) -> None:
        check_offset(self._chip.name, offset, size, self._chip.room)
        check_value(offset, size, value)
        with self._bus.lock:
            self._chip.write(offset, size, value)
