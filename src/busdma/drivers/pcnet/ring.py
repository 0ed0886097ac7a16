"""A ring of descriptors, in memory that driver and controller share: software style 2, 16 bytes each.

While the controller runs, every descriptor is its own in the sense of sync; the driver takes back the one it is about
to look at or to write, for as long as that takes. Bit OWN says whose turn it is. After a reset that was reported with
`Tag.report_idle` all of it is the driver's, until `begin`.

Source: AMD Am79C970A data sheet (publication 19436), "Receive Descriptors", "Transmit Descriptors".
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from busdma.tag import Tag

OWN, ERR, STP, ENP = 1 << 31, 1 << 30, 1 << 25, 1 << 24
FRAM, OFLO, CRC, RX_BUFF = 1 << 29, 1 << 28, 1 << 27, 1 << 26  # RMD1
TX_BUFF, UFLO, EXDEF, LCOL, LCAR, RTRY = 1 << 31, 1 << 30, 1 << 29, 1 << 28, 1 << 27, 1 << 26  # TMD2
ONES: Final = 0xF000  #: must be set beside the length

DESCRIPTOR: Final = 16
_FORMAT: Final = struct.Struct("<4I")
_TO_DEVICE: Final = PREREAD | PREWRITE
_TO_CPU: Final = POSTREAD | POSTWRITE

RECEIVE_ERRORS: Final = {FRAM: "framing", OFLO: "overflow", CRC: "check sequence", RX_BUFF: "out of buffers"}
TRANSMIT_ERRORS: Final = {
    TX_BUFF: "out of buffers",
    UFLO: "underflow",
    EXDEF: "excessive deferral",
    LCOL: "late collision",
    LCAR: "loss of carrier",
    RTRY: "too many collisions",
}


class Status(NamedTuple):
    """What the controller has written: RMD1 and RMD2, or TMD1 and TMD2."""

    word: int
    detail: int


class DescriptorRing:
    """``1 << bits`` descriptors, in memory of `tag`. The caller holds the driver's lock."""

    def __init__(self, tag: Tag, bits: int) -> None:
        self.bits = bits
        self.size = 1 << bits
        self._memory = tag.alloc(DESCRIPTOR * self.size)

    @property
    def place(self) -> tuple[int, int]:
        """What the initialization block says of it: bus address, and the logarithm of its size."""
        return self._memory.address, self.bits

    def begin(self) -> None:
        """Empty it, and give it to the controller, which was reset and owns none of it."""
        self._memory.view[:] = bytes(self._memory.size)
        self._memory.sync(_TO_DEVICE)

    def put(self, index: int, address: int, length: int, flags: int) -> None:
        """Give descriptor `index` to the controller: `length` bytes, 1 to 4095, at bus address `address`."""
        at = index % self.size * DESCRIPTOR
        self._memory.sync(_TO_CPU, at, DESCRIPTOR)
        _FORMAT.pack_into(self._memory.view, at, address, OWN | flags | ONES | -length & 0xFFF, 0, 0)
        self._memory.sync(_TO_DEVICE, at, DESCRIPTOR)

    def look(self, index: int) -> Status | None:
        """What became of descriptor `index`; None while the controller has it."""
        at = index % self.size * DESCRIPTOR
        self._memory.sync(_TO_CPU, at, DESCRIPTOR)
        _, word, detail, _ = _FORMAT.unpack_from(self._memory.view, at)
        self._memory.sync(_TO_DEVICE, at, DESCRIPTOR)
        return None if word & OWN else Status(word, detail)

    def free(self) -> None:
        """Give the memory back. The controller was reset."""
        self._memory.free()


def in_words(bits: int, names: dict[int, str]) -> str:
    """The errors in `bits`, for messages."""
    return ", ".join(name for bit, name in names.items() if bits & bit) or "an error that it does not name"
