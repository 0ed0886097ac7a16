"""A 53C9x on SBus, behind the DMA controller that the machine's documentation calls espdma or DMA2.

The controller collects bytes before it writes them, and must be drained before anybody looks at memory. Its address
counter has 24 bits: no transfer crosses a line of 16 MiB.

Sources: LSI Logic L64853A SBus DMA Controller, L64854 "DMA2" Technical Manual, control/status register; the register's
revisions as in the drivers of the time: what "drain" does on one, a later one does by itself.
"""

from __future__ import annotations

from typing import Final

from busdma.drivers.ncr53c9x.chip import Chip
from busdma.drivers.ncr53c9x.core import Ncr53c9x
from busdma.errors import ConfigurationError
from busdma.machine.attachment import Attachment, MmioRegisters

MAX_TRANSFER: Final = 128 << 10
SEGMENTS: Final = 33  #: pages of 4 KiB, and one more for a buffer that begins inside a page
REACH: Final = (1 << 32) - 1
BOUNDARY: Final = 1 << 24
CHIP_AT: Final = 0x10000

# the controller's registers
CSR, ADDRESS = 0x0, 0x4
# CSR
ERROR_PENDING, DRAINING, INTERRUPT_ENABLE, INVALIDATE, DRAIN, RESET = 0x002, 0x00C, 0x010, 0x020, 0x040, 0x080
TO_MEMORY, ENABLE, REQUEST_PENDING = 0x100, 0x200, 0x400


class EspDma:
    """As `busdma.drivers.ncr53c9x.engine.DmaEngine`."""

    __slots__ = ("_asked", "_read", "_way", "_write")

    def __init__(self, registers: MmioRegisters) -> None:
        self._read, self._write = registers.read32, registers.write32
        self._way = 0
        self._asked = False  # to drain

    def reset(self) -> None:
        """The chip's reset line is the controller's: it goes along."""
        self._write(CSR, RESET)
        self._write(CSR, INTERRUPT_ENABLE | INVALIDATE)

    def close(self) -> None:
        """Leave it in reset: no interrupt, no access."""
        self._write(CSR, RESET)

    def aim(self, address: int, count: int, to_memory: bool) -> None:
        """The chip counts; the controller only needs to know where."""
        self._way, self._asked = TO_MEMORY if to_memory else 0, False
        self._write(CSR, INTERRUPT_ENABLE | INVALIDATE)
        self._write(ADDRESS, address)
        self._write(CSR, INTERRUPT_ENABLE | ENABLE | self._way)

    def go(self) -> None:
        """It waits for the chip's requests already."""

    def emptied(self, left: int, held: int) -> bool:
        """Drain it, once the chip has nothing more for it."""
        if not self._way:
            return True
        if held or self._read(CSR) & REQUEST_PENDING:  # it must be left alone then
            return False
        if not self._asked:
            self._asked = True
            self._write(CSR, INTERRUPT_ENABLE | ENABLE | self._way | DRAIN)
        return not self._read(CSR) & DRAINING

    def stop(self) -> None:
        """What it has read ahead is dropped by the next `aim`."""
        self._write(CSR, INTERRUPT_ENABLE)

    def fault(self) -> str:
        """A translation that failed, or a bus error."""
        if self._read(CSR) & ERROR_PENDING:
            return f"a memory error near bus address {self._read(ADDRESS):#x}"
        return ""


def attach(attachment: Attachment, *, maxio: int = MAX_TRANSFER) -> Ncr53c9x:
    """The driver of the chip: at most `maxio` bytes a command. The registers: the controller's, and at 0x10000 its own.

    Properties: ``counter``, 16 (default) or 24 bits of the transfer counter, which the chip cannot be asked in time;
    ``clock``, MHz, 40 if left out; ``scsi_id``, its own SCSI address, 7 if left out.
    """
    registers, properties = attachment.registers, attachment.properties
    if not isinstance(registers, MmioRegisters):
        raise ConfigurationError(f"{attachment.name} is not on SBus: attach the front end of its own bus")
    chip = Chip(
        attachment.name,
        registers,
        base=CHIP_AT,
        stride=4,
        counter=properties.get("counter", 16),
        clock=properties.get("clock", 40),
        own=properties.get("scsi_id", 7),
    )
    tag = attachment.tag.derive(
        "data",
        lowaddr=REACH,
        boundary=BOUNDARY,
        nsegments=SEGMENTS,
        maxsegsz=chip.most,
        maxsize=maxio,
        clip=True,
    )
    return Ncr53c9x(attachment, tag, chip, EspDma(registers), maxio=maxio)
