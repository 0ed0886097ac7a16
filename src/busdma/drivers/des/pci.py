"""The DES card on a PCI bus: is it there, what can it address, and how are its registers reached?

Source: docs/des-card.md, "Registers".
"""

from __future__ import annotations

from typing import Final

from busdma.drivers.des.core import MAX_PIECE, NSEGMENTS, Des
from busdma.drivers.pci import PciDevice
from busdma.machine.attachment import Attachment

IDENTITY: Final = (0x1998, 0x0DE5)
ADDRESS, STATUS, CONTROL, SIGNATURE = 0, 4, 8, 12


class PciCard:
    """`busdma.drivers.des.core.Card` in memory space."""

    def __init__(self, device: PciDevice) -> None:
        self._device = device
        self._registers = device.registers

    def identity(self) -> int:
        """See `Card`."""
        return self._registers.read32(SIGNATURE)

    def status(self) -> int:
        """See `Card`."""
        return self._registers.read32(STATUS)

    def control(self, bits: int) -> None:
        """See `Card`. A write may be posted; the read behind it comes back when it has arrived."""
        self._registers.write32(CONTROL, bits)
        self._registers.read32(STATUS)

    def start(self, address: int) -> None:
        """See `Card`."""
        self._registers.barrier()
        self._registers.write32(ADDRESS, address)

    def connect(self, registers: bool, memory: bool) -> bool:
        """See `Card`."""
        self._device.enable(memory_space=registers, bus_master=memory)
        return True


def attach(attachment: Attachment) -> Des:
    """The driver of the card at the attachment. DeviceFault if nothing answers, ConfigurationError if it is another."""
    device = PciDevice(attachment)
    device.expect([IDENTITY])
    tag = attachment.tag.derive(name="data", lowaddr=0xFFFF_FFFF, nsegments=NSEGMENTS, maxsize=MAX_PIECE, clip=True)
    return Des(attachment, tag, PciCard(device))
