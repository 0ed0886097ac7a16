"""The controller's registers: reset, initialization, interrupts. They are used in 32 bits (DWIO).

Source: AMD Am79C970A data sheet (publication 19436): "I/O Resources", "Control and Status Registers",
"Initialization Block".
"""

from __future__ import annotations

import struct
from typing import Final

from busdma.errors import DeviceFault
from busdma.machine.attachment import MmioRegisters

RDP, RAP, RESET, BDP, WIO_RESET = 0x10, 0x14, 0x18, 0x1C, 0x14
APROM: Final = 0x00

# CSR0
INIT, STRT, STOP, TDMD, TXON, RXON, IENA = (1 << bit for bit in range(7))
IDON, TINT, RINT, MERR, MISS, CERR, BABL = (1 << bit for bit in range(8, 15))
ACKNOWLEDGE: Final = TINT | RINT | MERR | MISS | CERR | BABL  #: cleared by writing ones; IDON is `Chip.go`'s
IDON_MASK: Final = IDON  # CSR3: the driver looks for IDON itself
APAD_XMT, MFCOM, RCVCCOM, TXSTRTM, JABM = 1 << 11, 1 << 8, 1 << 4, 1 << 2, 1 << 0  # CSR4
SINT, SINTE = 1 << 11, 1 << 10  # CSR5
INTL, LOOP = 1 << 6, 1 << 2  # CSR15, MODE
STYLE: Final = 2  #: CSR58, BCR20: descriptors of 16 bytes with 32-bit addresses
MANUFACTURER: Final = 0x003  #: the lowest 12 bits of CSR88

BLOCK_SIZE: Final = 28
MODE_LOOP: Final = INTL | LOOP


class Chip:
    """One controller. The caller holds the driver's lock: a register takes two accesses."""

    def __init__(self, name: str, registers: MmioRegisters) -> None:
        self.name = name
        self._registers = registers

    def read(self, number: int) -> int:
        """Control and status register `number`, 16 bits."""
        self._registers.write32(RAP, number)
        return self._registers.read32(RDP) & 0xFFFF

    def write(self, number: int, value: int) -> None:
        """Write it. What was written to memory before is seen by the controller first."""
        self._registers.barrier()
        self._registers.write32(RAP, number)
        self._registers.write32(RDP, value)

    @property
    def station(self) -> bytes:
        """The station address that the board came with ("Address PROM Space")."""
        words = self._registers.read32(APROM), self._registers.read32(APROM + 4)
        return struct.pack("<II", *words)[:6]

    def reset(self) -> None:
        """S_RESET, in whichever mode it is; on return it touches memory no more. DeviceFault if it does not answer."""
        registers = self._registers
        registers.read32(RESET)
        registers.read16(WIO_RESET)
        registers.write32(RDP, 0)  # DWIO from here on
        self.write(0, STOP)
        status, identity = self.read(0), self.read(88)
        if status & 0xFF != STOP or identity & 0xFFF != MANUFACTURER:
            raise DeviceFault(
                f"{self.name} does not reset: its status stays {status:#06x}, its identity is {identity:#06x}; "
                "reset the machine"
            )

    def prepare(self, block: int) -> None:
        """Choose the software style, pad short frames, and begin the initialization from `block`, a bus address."""
        self._registers.write32(RAP, 20)
        self._registers.write32(BDP, STYLE)
        self.write(3, IDON_MASK)
        self.write(4, APAD_XMT | MFCOM | RCVCCOM | TXSTRTM | JABM)
        self.write(5, SINT | SINTE)
        self.write(1, block & 0xFFFF)
        self.write(2, block >> 16)
        self.write(0, INIT)

    @property
    def initialised(self) -> bool:
        """It has read the initialization block."""
        return bool(self.read(0) & IDON)

    def go(self) -> None:
        """Send and receive, and interrupt."""
        self.write(0, IDON | STRT | IENA)

    def demand(self) -> None:
        """There is something to send."""
        self.write(0, TDMD | IENA)

    def causes(self) -> tuple[int, bool]:
        """CSR0 as it was, acknowledged; and whether the bus failed the controller (CSR5, SINT)."""
        status = self.read(0)
        self.write(0, status & ACKNOWLEDGE | IENA)
        system = self.read(5)
        if system & SINT:
            self.write(5, SINT | SINTE)
        return status, bool(system & SINT)


def block(mode: int, station: bytes, receive: tuple[int, int], transmit: tuple[int, int]) -> bytes:
    """The initialization block. `receive`, `transmit`: the ring's bus address, and the logarithm of its size."""
    sizes = transmit[1] << 28 | receive[1] << 20 | mode
    return struct.pack("<I6s2xQII", sizes, station, 0, receive[0], transmit[0])
