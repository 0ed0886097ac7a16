"""Interrupts by message: writes to one range of addresses reach an interrupt controller, and no memory.

As on a PC: bits 19:12 of the address name a processor, the low byte of the data one of its vectors. The first 32
vectors of each are the processor's own.

Source: Intel 64 and IA-32 Architectures SDM, volume 3A, 11.11 (message signalled interrupts).
"""

from __future__ import annotations

from typing import Final

from busdma.errors import ResourceShortage, ShortageReason
from busdma.machine.attachment import Message
from busdma.machine.interrupt import Interrupt
from busdma.waiting import Runtime

RANGE: Final = range(0xFEE0_0000, 0xFEF0_0000)
SIZE: Final = 4  #: bytes of a message
FIRST_VECTOR: Final = 32
VECTORS: Final = 256 - FIRST_VECTOR  #: of a processor
PROCESSORS: Final = 8


class MessageController:
    """Turns messages into interrupts: a `busdma.machine.attachment.MessageInterrupts`. Its bus's lock is held."""

    def __init__(self, runtime: Runtime) -> None:
        self.lines: dict[tuple[int, int], Interrupt] = {}  #: by address and data
        self.strays = 0  #: messages that nobody asked for
        self._runtime = runtime

    def allocate(self) -> Message:
        """As `busdma.machine.attachment.MessageInterrupts.allocate`."""
        processor, vector = divmod(len(self.lines), VECTORS)
        if processor == PROCESSORS:
            raise ResourceShortage(
                f"all {VECTORS * PROCESSORS} messages of this machine are given out: use a device's pin",
                ShortageReason.TOO_LARGE,
            )
        address, data = RANGE.start + (processor << 12), FIRST_VECTOR + vector
        line = self.lines[address, data] = Interrupt(f"message {data:#x} to processor {processor}", self._runtime)
        return Message(address, data, line)

    def takes(self, address: int, size: int) -> bool:
        """Is a write of so many bytes at `address`, as it arrives from a bus, a message?"""
        return address in RANGE and size == SIZE and address % SIZE == 0

    def signal(self, address: int, data: int) -> None:
        """A device has written it. A message is an edge: it is over when it has been seen."""
        line = self.lines.get((address, data))
        if line is None:
            self.strays += 1
        else:
            line.assert_()  # noqa: PT009  # it is the line's
            line.deassert()
