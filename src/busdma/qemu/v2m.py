"""Interrupts by message on an Arm machine with a GICv2m frame: a write of an SPI's number to its doorbell.

The doorbell is a register like any other, at a physical address: behind an IOMMU a device reaches it at the bus address
that leads there, and not without one.

Source: Arm, Server Base System Architecture 3.0 (DEN0029), appendix E: GICv2m (MSI_TYPER, MSI_SETSPI_NS).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from busdma.errors import ResourceShortage, ShortageReason
from busdma.machine.attachment import Message
from busdma.machine.handle import Handle32
from busdma.qemu.lines import Lines

MSI_TYPER, MSI_SETSPI_NS = 0x008, 0x040
ROOM: Final = 0x1000  #: bytes of the frame
FIRST_SPI: Final = 32  #: interrupt numbers below are no SPIs


class V2m:
    """The frame at `registers`, whose interrupts are `lines` of the GIC that QEMU reports, the first SPI's being 0."""

    def __init__(self, registers: Handle32, lines: Lines) -> None:
        kind = registers.read32(MSI_TYPER)
        self.count: Final = kind & 0x3FF  #: of messages
        first = kind >> 16 & 0x3FF
        self._free: Iterator[int] = iter(range(first, first + self.count))
        self._lines = lines

    def at(self, page: int) -> V2mMessages:
        """The messages for a device that reaches the frame at bus address `page`."""
        return V2mMessages(self, page + MSI_SETSPI_NS)

    def allocate(self, address: int) -> Message:
        """One for a device that reaches the doorbell at `address`. ResourceShortage: all are given out."""
        number = next(self._free, None)
        if number is None:
            raise ResourceShortage(
                f"all {self.count} messages of this machine are given out: use a device's pin",
                ShortageReason.TOO_LARGE,
            )
        return Message(address, number, self._lines.interrupt(number - FIRST_SPI))


class V2mMessages:
    """Those of one device: `busdma.machine.attachment.MessageInterrupts`."""

    def __init__(self, frame: V2m, address: int) -> None:
        self._frame, self._address = frame, address

    def allocate(self) -> Message:
        """As `busdma.machine.attachment.MessageInterrupts.allocate`."""
        return self._frame.allocate(self._address)
