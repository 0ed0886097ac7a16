"""The PCnet's descriptor rings in memory, as the controller walks them: software style 2, 16 bytes a descriptor.

=====  =====================================  ========================================
bytes  receive (RMD)                          transmit (TMD)
=====  =====================================  ========================================
0..3   buffer address                         buffer address
4..7   OWN, errors, STP, ENP; buffer length   OWN, ERR, ADD_FCS, STP, ENP; buffer length
8..11  length of the frame                    errors in detail
12..   software's                             software's
=====  =====================================  ========================================

Lengths of buffers are negative, in 12 bits: 0 means 4096. Whoever has OWN cleared, or set, for the other side may not
touch the descriptor any more; so the controller writes the word with OWN last.

Source: AMD Am79C970A data sheet (19436), "Receive Descriptors" (RMD0-3), "Transmit Descriptors" (TMD0-3), and
"Initialization Block".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from busdma.sim.wiring import Memory

OWN, ERR, STP, ENP = 1 << 31, 1 << 30, 1 << 25, 1 << 24  # of both
CRC, RX_BUFF, PAM, LAFM, BAM = 1 << 27, 1 << 26, 1 << 22, 1 << 21, 1 << 20  # RMD1
ADD_FCS: Final = 1 << 29  # TMD1
TX_BUFF, UFLO = 1 << 31, 1 << 30  # TMD2

DESCRIPTOR: Final = 16
BLOCK: Final = 28  #: bytes of the initialization block
MOST_BITS: Final = 9  #: a ring has at most 2**9 descriptors


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One descriptor as it was fetched from `at`."""

    at: int
    address: int
    word: int  #: RMD1 or TMD1

    @property
    def length(self) -> int:
        """Bytes of the buffer: 1 to 4096."""
        return 4096 - (self.word & 0xFFF)


class Ring:
    """A ring of ``1 << bits`` descriptors at bus address `base`."""

    def __init__(self, memory: Memory, base: int = 0, bits: int = 0) -> None:
        self._memory = memory
        self.base = base & ~(DESCRIPTOR - 1)
        self.size = 1 << min(bits, MOST_BITS)
        self.index = 0  #: of the current descriptor

    def fetch(self, ahead: int = 0) -> Descriptor:
        """The current descriptor, or one behind it."""
        at = self.base + (self.index + ahead) % self.size * DESCRIPTOR
        address, word, _, _ = struct.unpack("<4I", self._memory.dma_read(at, DESCRIPTOR))
        return Descriptor(at, address, word)

    def release(self, descriptor: Descriptor, word: int, detail: int | None = None) -> None:
        """Give the current descriptor back to the host with `word`, and with `detail` (RMD2, TMD2); go to the next."""
        if detail is not None:
            self._memory.dma_write(descriptor.at + 8, detail.to_bytes(4, "little"))
        self._memory.dma_write(descriptor.at + 4, (word & ~OWN).to_bytes(4, "little"))
        self.index = (self.index + 1) % self.size


@dataclass(frozen=True, slots=True)
class InitBlock:
    """The initialization block. `receive` and `transmit`: where each ring is, and how many bits its index has."""

    mode: int
    station: bytes  #: PADR
    filter: int  #: LADRF, 64 bits
    receive: tuple[int, int]
    transmit: tuple[int, int]

    @classmethod
    def fetch(cls, memory: Memory, address: int) -> InitBlock:
        """Read it from memory."""
        modes, station, logical, receive, transmit = struct.unpack("<I6s2xQII", memory.dma_read(address, BLOCK))
        return cls(modes & 0xFFFF, station, logical, (receive, modes >> 20 & 0xF), (transmit, modes >> 28))
