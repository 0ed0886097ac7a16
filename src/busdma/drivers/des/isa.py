"""The DES card on an ISA bus: is it there, what can it address, and how are its registers reached?

Source: docs/des-card.md, "Registers".
"""

from __future__ import annotations

from typing import Final

from busdma.drivers.des.core import MAX_PIECE, NSEGMENTS, Des
from busdma.errors import DeviceFault
from busdma.machine.attachment import Attachment, Registers

ADDRESS, STATUS, CONTROL, SIGNATURE = 0, 4, 8, 12  # the lowest byte of each
NOBODY: Final = 0xFFFF_FFFF


class IsaCard:
    """`busdma.drivers.des.core.Card` at I/O ports, a byte at a time."""

    def __init__(self, registers: Registers) -> None:
        self._registers = registers

    def identity(self) -> int:
        """See `Card`."""
        return int.from_bytes((self._registers.read8(SIGNATURE + i) for i in range(4)), "little")

    def status(self) -> int:
        """See `Card`."""
        return self._registers.read8(STATUS)

    def control(self, bits: int) -> None:
        """See `Card`."""
        self._registers.write8(CONTROL, bits)

    def start(self, address: int) -> None:
        """See `Card`. The highest byte starts it."""
        self._registers.barrier()
        for at, byte in enumerate(address.to_bytes(4, "little"), ADDRESS):
            self._registers.write8(at, byte)

    def connect(self, registers: bool, memory: bool) -> bool:
        """See `Card`. On ISA a card reaches memory whenever it likes."""
        return False


def attach(attachment: Attachment) -> Des:
    """The driver of the card at the attachment. DeviceFault if nothing drives the bus there."""
    card = IsaCard(attachment.registers)
    if card.identity() == NOBODY:
        raise DeviceFault(f"{attachment.name}: no card answers at its ports (they read 0xff)")
    tag = attachment.tag.derive(
        name="data",
        lowaddr=0xFFFFFF,  # 24 address lines
        nsegments=NSEGMENTS,
        maxsize=MAX_PIECE,
        clip=True,
    )
    return Des(attachment, tag, card)
