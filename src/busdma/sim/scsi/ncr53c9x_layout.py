"""The registers of the NCR 53C9x family by number and bit, and what the chip is connected to.
from busdma.sim.wiring import Pin

Source: NCR 53C94/53C95/53C96 data manual; AMD Am53C94/Am53C96 data sheet (register description, command set).
"""

from __future__ import annotations

from typing import Final, Protocol

# Registers; the second of a pair is what is written there
COUNT_LOW, COUNT_MIDDLE, FIFO, COMMAND, STATUS, INTERRUPTS, STEP, FLAGS, CONFIG1 = range(9)
DESTINATION, TIMEOUT, SYNC_PERIOD, SYNC_OFFSET, CLOCK_FACTOR = STATUS, INTERRUPTS, STEP, FLAGS, 0x9
CONFIG2, CONFIG3, CONFIG4, COUNT_HIGH = 0xB, 0xC, 0xD, 0xE

# Commands; with DMA the transfer counter is loaded first
DMA: Final = 0x80
NOP, FLUSH_FIFO, RESET_CHIP, RESET_BUS = 0x00, 0x01, 0x02, 0x03
TRANSFER, COMPLETE_STEPS, MESSAGE_ACCEPTED, TRANSFER_PAD, SET_ATN, RESET_ATN = 0x10, 0x11, 0x12, 0x18, 0x1A, 0x1B
SELECT, SELECT_ATN, SELECT_ATN_STOP, SELECT_ATN3 = 0x41, 0x42, 0x43, 0x46
ENABLE_RESELECTION, DISABLE_RESELECTION = 0x44, 0x45

# Status
TERMINAL_COUNT, PARITY_ERROR, GROSS_ERROR, INTERRUPT = 0x10, 0x20, 0x40, 0x80
# Interrupts
RESELECTED, FUNCTION_COMPLETE, BUS_SERVICE, DISCONNECTED, ILLEGAL_COMMAND, BUS_RESET = (
    0x04,
    0x08,
    0x10,
    0x20,
    0x40,
    0x80,
)
# Configuration 1, and 2
OWN_ID, CHECK_PARITY, NO_RESET_INTERRUPT = 0x07, 0x10, 0x40
FEATURES = 0x40

FIFO_SIZE: Final = 16


class DmaEngine(Protocol):
    """What moves bytes between the chip and memory. It calls `Ncr53c9x.kick` when it becomes able to."""

    @property
    def inward(self) -> bool:
        """True: it is set up to write memory."""

    def room(self) -> int:
        """How many bytes it can move before it must be set up again; 0 while it is off."""

    def store(self, data: bytes) -> None:
        """Take bytes for memory, at most `room`."""

    def fetch(self, count: int) -> bytes:
        """At most `count` bytes of memory, at most `room`; fewer where memory cannot be read."""
