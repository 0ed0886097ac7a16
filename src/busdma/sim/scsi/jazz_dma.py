"""One DMA channel of the R4030, the bus controller of Jazz machines (MIPS Magnum), as the 53C9x uses it.

Registers of 32 bits, 8 bytes apart:

====  ============  ====================================================================================
0x00  mode          bit 5: its interrupts are enabled; width, access time and burst are kept, without effect
0x08  enable        bit 0: on; 1: memory to device; 8, 9, 10: terminal count, memory error, address error
0x10  byte count    counts down
0x18  address       a logical one, counts up; the chip's translation table makes it a physical one
====  ============  ====================================================================================

The translation is the way that the bus master's addresses take; this model has no table. The channel is on until its
byte count is 0, an error comes, or it is switched off. The three upper bits of the enable register are cleared by
writing ones.

Source: no data sheet of the R4030 is at hand; offsets and bits are those that QEMU's model of it and the drivers of
the time agree on. What they leave open, and what this model does: the address counts up; a translation that does not
exist is a memory error; a channel without bytes left moves nothing, and keeps no byte back.
"""

from __future__ import annotations

from typing import Final

from busdma.errors import DeviceFault
from busdma.sim.scsi.ncr53c9x import Ncr53c9x
from busdma.sim.wiring import Memory, Pin

MODE, ENABLE, COUNT, ADDRESS = 0x00, 0x08, 0x10, 0x18
INTERRUPT_ENABLE = 0x20  # mode
ON, FROM_MEMORY, TERMINAL_COUNT, MEMORY_ERROR, ADDRESS_ERROR = 0x001, 0x002, 0x100, 0x200, 0x400  # enable

_FLAGS: Final = TERMINAL_COUNT | MEMORY_ERROR | ADDRESS_ERROR
_MASK: Final = 0xFFFF_FFFF


class JazzChannel:
    """The channel of `chip` at power-on: a `busdma.sim.scsi.ncr53c9x_layout.DmaEngine`.

    `pin`: the channel's own interrupt, apart from the chip's. The caller holds the bus's lock around register accesses.
    """

    def __init__(self, master: Memory, chip: Ncr53c9x, pin: Pin | None = None) -> None:
        self._master, self._chip, self._pin = master, chip, pin
        self._registers = dict.fromkeys((MODE, ENABLE, COUNT, ADDRESS), 0)
        self._counts = {"transfers": 0, "faults": 0}
        chip.attach(self)

    def statistics(self) -> dict[str, int]:
        """Accesses made to memory, and those that the bus refused."""
        return dict(self._counts)

    def read32(self, offset: int) -> int:
        """Read a register; what is none reads as 0."""
        return self._registers.get(offset, 0)

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""
        if offset not in self._registers:
            return
        if offset == ENABLE:
            value = value & ~_FLAGS | self._registers[ENABLE] & ~value & _FLAGS
        self._registers[offset] = value & _MASK
        self._update()
        if self.room():
            self._chip.kick()

    def _flag(self, bit: int) -> None:
        self._registers[ENABLE] = self._registers[ENABLE] & ~ON | bit
        self._update()

    def _update(self) -> None:
        if self._pin is None:
            return
        raised, lowered = self._pin.assert_, self._pin.deassert
        asked = self._registers[MODE] & INTERRUPT_ENABLE and self._registers[ENABLE] & _FLAGS
        (raised if asked else lowered)()

    # -- what the chip asks for: `busdma.sim.scsi.ncr53c9x_layout.DmaEngine` ------------------------------------------

    @property
    def inward(self) -> bool:
        """True if the channel writes memory."""
        return not self._registers[ENABLE] & FROM_MEMORY

    def room(self) -> int:
        """Bytes that it can move now."""
        return self._registers[COUNT] if self._registers[ENABLE] & ON else 0

    def store(self, data: bytes) -> None:
        """Write memory: one access."""
        try:
            self._master.dma_write(self._registers[ADDRESS], data)
        except DeviceFault:
            self._fault()
        else:
            self._moved(len(data))

    def fetch(self, count: int) -> bytes:
        """Read memory: one access; nothing if the bus refuses it."""
        if not count:
            return b""
        try:
            data = self._master.dma_read(self._registers[ADDRESS], count)
        except DeviceFault:
            self._fault()
            return b""
        self._moved(count)
        return data

    def _moved(self, count: int) -> None:
        registers = self._registers
        self._counts["transfers"] += 1
        registers[ADDRESS] = registers[ADDRESS] + count & _MASK
        registers[COUNT] -= count
        if not registers[COUNT]:
            self._flag(TERMINAL_COUNT)

    def _fault(self) -> None:
        self._counts["faults"] += 1
        self._flag(MEMORY_ERROR)
