"""Registers of the Bt848, and the program of its RISC engine for a ring of pictures.

Source: Brooktree (Conexant), "Bt848/848A/849A Single-Chip Video Capture for PCI" data sheet; the sections are named
beside the constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

# "Local Registers"
DSTATUS, SRESET, COLOR_FMT, CAP_CTL = 0x000, 0x07C, 0x0D4, 0x0DC
CROP, VACTIVE_LO, HACTIVE_LO = 0x00C, 0x014, 0x01C
EVEN, ODD = 0x000, 0x080  # the bank of each field
INT_STAT, INT_MASK, GPIO_DMA_CTL, RISC_STRT_ADD = 0x100, 0x104, 0x10C, 0x114

PRESENT, LOCKED = 0x80, 0x40  # "Device Status Register"
GREY: Final = 0x66  # "Color Format Register": Y8, one byte a pixel, in both fields
CAPTURE_BOTH: Final = 0x3  # "Capture Control Register"
RUN: Final = 0x3 | 0x3 << 2  # "GPIO and DMA Control Register": FIFO and RISC enabled, packed trigger point 32 dwords
RISCI, PABORT, OCERR, SCERR = 1 << 11, 1 << 17, 1 << 18, 1 << 19  # "Interrupt Status Register"
FATAL: Final = PABORT | OCERR | SCERR
CAUSES: Final = 0x000F_FFFF
STATUS_SHIFT: Final = 28  # RISCS

# "RISC Instructions"
WRITE, JUMP, SYNC = 0x1 << 28, 0x7 << 28, 0x8 << 28
SOL, EOL, IRQ, RESYNC = 1 << 27, 1 << 26, 1 << 24, 1 << 15
FM1, VRE, VRO = 0x6, 0x4, 0xC
MOST_SLOTS: Final = 15  #: what four status bits can number, and no slot is 0: that is the status at the start

WIDEST, TALLEST = 768, 480  # of the picture, in pixels; of 525 lines 480 show something
_PAIR: Final = Struct("<II")


@dataclass(frozen=True, slots=True)
class Shape:
    """A ring of `slots` pictures, of `width` by `height` pixels of one byte."""

    width: int
    height: int
    slots: int

    @property
    def picture(self) -> int:
        """Bytes of one."""
        return self.width * self.height

    @property
    def program_size(self) -> int:
        """Bytes of the RISC program."""
        return self.slots * (self.height + 5) * _PAIR.size

    def registers(self) -> Iterator[tuple[int, int]]:
        """(offset, value) that make the decoder deliver it ("Video Timing Unit": HACTIVE, VACTIVE, CROP)."""
        for bank in (EVEN, ODD):
            yield bank + CROP, self.width >> 8 | self.height >> 8 << 4
            yield bank + HACTIVE_LO, self.width & 0xFF
            yield bank + VACTIVE_LO, self.height & 0xFF
        yield COLOR_FMT, GREY
        yield CAP_CTL, CAPTURE_BOTH

    def program(self, pictures: int, at: int) -> bytes:
        """The RISC program, to lie at bus address `at`: fills the slots from bus address `pictures` on, for ever.

        A picture comes as two fields. The odd field, which has its first line, follows the sync code VRE. The jump to
        the next slot interrupts, and tells by the status bits which slot is full: its number, from 1 on.
        """
        words: list[tuple[int, int]] = []
        for slot in range(self.slots):
            first = pictures + slot * self.picture
            for code, parity in ((VRE, 0), (VRO, 1)):
                words += (SYNC | RESYNC | code, 0), (SYNC | FM1, 0)
                lines = range(parity, self.height, 2)
                words += ((WRITE | SOL | EOL | self.width, first + number * self.width) for number in lines)
            status = slot + 1
            after = at if status == self.slots else at + _PAIR.size * (len(words) + 1)
            words.append((JUMP | IRQ | (~status & 0xF) << 20 | status << 16, after))
        return b"".join(_PAIR.pack(*pair) for pair in words)
