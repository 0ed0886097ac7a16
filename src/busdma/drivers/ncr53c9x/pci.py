"""The Am53C974 PCscsi: a 53C9x with 24-bit counter and its own PCI DMA engine, 32 address lines.

The engine writes bursts: after a transfer that ended early, what is left of one is only written when it is told to
BLAST it. The last odd byte stays in the chip's FIFO.

Source: AMD Am53C974 PCscsi data sheet, "DMA registers" and "DMA BLAST Command"; also in the Am79C974's, page 76.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from busdma.drivers.ncr53c9x.chip import Chip
from busdma.drivers.ncr53c9x.core import Ncr53c9x
from busdma.drivers.pci import COMMAND, PciDevice
from busdma.machine.attachment import Attachment, MmioRegisters

IDENTITY: Final = (0x1022, 0x2020)
IO_SPACE: Final = 0x0001
MAX_TRANSFER: Final = 128 << 10
SEGMENTS: Final = 33  #: pages of 4 KiB, and one more for a buffer that begins inside a page
REACH: Final = (1 << 32) - 1
CLOCK: Final = 40  #: MHz

# the engine's registers: command, starting count and address, working count and address, status
DMA_COMMAND, START_COUNT, START_ADDRESS, WORKING_COUNT, WORKING_ADDRESS, DMA_STATUS = 0x40, 0x44, 0x48, 0x4C, 0x50, 0x54
IDLE, BLAST, START, TO_MEMORY = 0x00, 0x01, 0x03, 0x80  # DMA_COMMAND
BLASTED, ABORTED, ERROR = 0x20, 0x04, 0x02  # DMA_STATUS


class PciEngine:
    """As `busdma.drivers.ncr53c9x.engine.DmaEngine`."""

    __slots__ = ("_blasting", "_enable", "_read", "_way", "_write")

    def __init__(self, registers: MmioRegisters, enable: Callable[[bool], object]) -> None:
        """`enable`: may it reach memory? Its registers answer in any case then."""
        self._read, self._write, self._enable = registers.read32, registers.write32, enable
        self._way = 0
        self._blasting = False

    def reset(self) -> None:
        """Let it be a bus master, and have nothing to do."""
        self._enable(True)
        self._write(DMA_COMMAND, IDLE)
        self._read(DMA_STATUS)  # which clears it

    def close(self) -> None:
        """Take the bus from it."""
        self._write(DMA_COMMAND, IDLE)
        self._enable(False)

    def aim(self, address: int, count: int, to_memory: bool) -> None:
        """Fill the starting registers."""
        self._way, self._blasting = TO_MEMORY if to_memory else 0, False
        self._write(DMA_COMMAND, IDLE | self._way)
        self._write(START_COUNT, count)
        self._write(START_ADDRESS, address)

    def go(self) -> None:
        """START comes after the chip's own command."""
        self._write(DMA_COMMAND, START | self._way)

    def emptied(self, left: int, held: int) -> bool:
        """All that has left the chip's FIFO has been written, perhaps after a BLAST."""
        if not self._way:
            return True
        if held > 1:  # the chip still hands them over
            return False
        if self._read(WORKING_COUNT) == left + held:
            return True
        if not self._blasting:
            self._blasting = True
            self._write(DMA_COMMAND, BLAST | self._way)
        return bool(self._read(DMA_STATUS) & BLASTED)

    def stop(self) -> None:
        """Have nothing to do."""
        self._write(DMA_COMMAND, IDLE | self._way)

    def fault(self) -> str:
        """A master or target abort, or a parity error, on PCI."""
        status = self._read(DMA_STATUS)
        if status & (ABORTED | ERROR):
            return f"status {status:#04x} near bus address {self._read(WORKING_ADDRESS):#x}"
        return ""


def attach(attachment: Attachment, *, maxio: int = MAX_TRANSFER) -> Ncr53c9x:
    """The driver of the chip: at most `maxio` bytes a command. DeviceFault if nothing answers in its slot.

    The property ``scsi_id`` is its own SCSI address, 7 if left out. ConfigurationError for another device.
    """
    device = PciDevice(attachment)
    device.expect([IDENTITY])

    def enable(memory: bool) -> None:
        device.enable(bus_master=memory)
        command = device.config.read16(COMMAND)
        device.config.write16(COMMAND, command | IO_SPACE)  # its registers are in I/O space

    chip = Chip(
        attachment.name,
        device.registers,
        stride=4,
        counter=24,
        clock=CLOCK,
        own=attachment.properties.get("scsi_id", 7),
    )
    tag = attachment.tag.derive("data", lowaddr=REACH, nsegments=SEGMENTS, maxsegsz=chip.most, maxsize=maxio, clip=True)
    return Ncr53c9x(attachment, tag, chip, PciEngine(device.registers, enable), maxio=maxio)
