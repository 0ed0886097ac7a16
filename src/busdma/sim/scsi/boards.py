"""How a 53C9x and its DMA engine are wired on boards without PCI: the registers of both in one region.

A driver's front end finds them at the offsets that its bus's documentation gives.
"""

from __future__ import annotations

from typing import Final, Protocol

from busdma.sim.scsi.ncr53c9x import Ncr53c9x

REGISTERS: Final = 16  #: of the chip


class Engine(Protocol):
    """A model with 32-bit registers."""

    def read32(self, offset: int) -> int:
        """Read one."""

    def write32(self, offset: int, value: int) -> None:
        """Write one."""


class Board:
    """A `busdma.sim.bus.registers.Chip`: the chip's registers of 8 bits, `stride` bytes apart from `chip_at` on, and
    those of its engine, of 32, from `engine_at` on.
    """

    def __init__(
        self, name: str, chip: Ncr53c9x, engine: Engine, *, chip_at: int, stride: int, engine_at: int, engine_room: int
    ) -> None:
        self.name = name
        self.room = max(chip_at + REGISTERS * stride, engine_at + engine_room)
        self._chip = chip
        self._engine = engine
        self._numbers = {chip_at + n * stride: n for n in range(REGISTERS)}
        self._words = range(engine_at, engine_at + engine_room)

    def read(self, offset: int, size: int) -> int:
        """As `busdma.sim.bus.registers.Chip.read`."""
        if size == 1 and offset in self._numbers:
            return self._chip.read(self._numbers[offset])
        if size == 4 and offset in self._words:
            return self._engine.read32(offset - self._words.start)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """As `busdma.sim.bus.registers.Chip.write`."""
        if size == 1 and offset in self._numbers:
            self._chip.write(self._numbers[offset], value)
        elif size == 4 and offset in self._words:
            self._engine.write32(offset - self._words.start, value)
