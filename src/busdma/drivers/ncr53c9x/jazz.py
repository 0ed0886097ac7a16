"""A 53C9x on the local bus of a MIPS Jazz machine, served by a channel of the rc4030's DMA controller.

The channel moves 16 bits at a time, so an odd last byte may stay in the chip's FIFO. It keeps nothing back itself.

Source: Acer M1314 / Jazz "RC4030 System Address Path Controller", DMA channel registers: mode, enable, byte count,
address, 8 bytes apart.
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

MODE, ENABLE, COUNT, ADDRESS = 0x1000, 0x1008, 0x1010, 0x1018
WIDTH_16, ACCESS_160_NS = 0x10, 0x03  # MODE
RUN, TO_DEVICE, COUNTED_OUT, MEMORY_ERROR, TRANSLATION_ERROR = 0x001, 0x002, 0x100, 0x200, 0x400  # ENABLE
FLAGS: Final = COUNTED_OUT | MEMORY_ERROR | TRANSLATION_ERROR  #: are cleared by writing ones


class JazzChannel:
    """As `busdma.drivers.ncr53c9x.engine.DmaEngine`."""

    __slots__ = ("_in", "_read", "_write")

    def __init__(self, registers: MmioRegisters) -> None:
        self._read, self._write = registers.read32, registers.write32
        self._in = False

    def reset(self) -> None:
        """Stop the channel, and set it up for the chip."""
        self._write(ENABLE, FLAGS)
        self._write(ENABLE, 0)
        self._write(MODE, WIDTH_16 | ACCESS_160_NS)

    def close(self) -> None:
        """Stop the channel."""
        self._write(ENABLE, 0)

    def aim(self, address: int, count: int, to_memory: bool) -> None:
        """Program and start it; it waits for the chip's requests."""
        self._in = to_memory
        self._write(ENABLE, FLAGS)
        self._write(ADDRESS, address)
        self._write(COUNT, count)
        self._write(ENABLE, RUN | (0 if to_memory else TO_DEVICE))

    def go(self) -> None:
        """It runs already."""

    def emptied(self, left: int, held: int) -> bool:
        """True as soon as the chip has no more than the odd byte."""
        return not self._in or held < 2

    def stop(self) -> None:
        """Stop the channel."""
        self._write(ENABLE, 0)

    def fault(self) -> str:
        """An address without memory, or without a translation."""
        status = self._read(ENABLE)
        if status & (MEMORY_ERROR | TRANSLATION_ERROR):
            what = "an address that is not translated" if status & TRANSLATION_ERROR else "a memory error"
            return f"{what} near bus address {self._read(ADDRESS):#x}"
        return ""


def attach(attachment: Attachment, *, maxio: int = MAX_TRANSFER) -> Ncr53c9x:
    """The driver of the chip: at most `maxio` bytes a command. Registers: the chip's, and at 0x1000 the channel's.

    Properties: ``counter``, 16 (default) or 24 bits of the transfer counter; ``clock``, MHz, 25 if left out;
    ``scsi_id``, its own SCSI address, 7 if left out.
    """
    registers, properties = attachment.registers, attachment.properties
    if not isinstance(registers, MmioRegisters):
        raise ConfigurationError(f"{attachment.name} is not on a Jazz bus: attach the front end of its own bus")
    chip = Chip(
        attachment.name,
        registers,
        stride=1,
        counter=properties.get("counter", 16),
        clock=properties.get("clock", 25),
        own=properties.get("scsi_id", 7),
    )
    tag = attachment.tag.derive("data", lowaddr=REACH, nsegments=SEGMENTS, maxsegsz=chip.most, maxsize=maxio, clip=True)
    return Ncr53c9x(attachment, tag, chip, JazzChannel(registers), maxio=maxio)
