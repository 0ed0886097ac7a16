"""MSI-X: interrupts that a PCI function writes, each to an address and with data of its own.

The function says in its capability how many vectors it has and where their table is: an offset in the memory of one of
its base address registers. A vector is masked at power-on, and again by whoever stops.

Source: PCI Local Bus Specification 3.0, 6.7 (capabilities) and 6.8.2 (MSI-X capability and table).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from busdma.drivers.pci import PciDevice
from busdma.machine.attachment import InterruptLine, Message, MessageInterrupts

STATUS, CAPABILITIES = 0x06, 0x34
HAS_CAPABILITIES: Final = 0x0010  # of the status register
MSIX: Final = 0x11
MOST_CAPABILITIES: Final = 48  #: that fit into 192 bytes: more is a chain that goes round
CONTROL, TABLE = 2, 4  # in the capability
ENABLE, MASK_ALL, LAST_VECTOR = 0x8000, 0x4000, 0x07FF  # of the control word
WHICH_BAR: Final = 0b111  # of the table's place
ENTRY: Final = 16
LOW, HIGH, DATA, VECTOR_CONTROL = 0, 4, 8, 12  # in an entry
MASKED: Final = 1


class Msix:
    """The vectors of `device`, with messages from `messages`. Made by `find`; ``vectors``: how many there are."""

    def __init__(self, device: PciDevice, messages: MessageInterrupts, capability: int) -> None:
        self._device = device
        self._messages = messages
        self._control = capability + CONTROL
        self._table = device.config.read32(capability + TABLE) & ~WHICH_BAR
        self._given: list[Message] = []  # by vector; kept over stop and start
        self.vectors: Final = (device.config.read16(self._control) & LAST_VECTOR) + 1

    def start(self) -> None:
        """Take the place of the pin, with every vector masked. The function's memory space must be enabled."""
        self._set(ENABLE | MASK_ALL)  # no message leaves with what an entry held before
        for vector in range(self.vectors):
            self._write(vector, VECTOR_CONTROL, MASKED)
        self._set(ENABLE)

    def line(self, vector: int) -> InterruptLine:
        """The line that `vector` interrupts from now on. ResourceShortage if the machine has no message left for it."""
        while len(self._given) <= vector:
            self._given.append(self._messages.allocate())
        message = self._given[vector]
        self._write(vector, LOW, message.address & 0xFFFFFFFF)
        self._write(vector, HIGH, message.address >> 32)
        self._write(vector, DATA, message.data)
        self._write(vector, VECTOR_CONTROL, 0)
        return message.line

    def stop(self) -> None:
        """Send no message any more; the pin has its place back."""
        for vector in range(len(self._given)):
            self._write(vector, VECTOR_CONTROL, MASKED)
        self._set(0)

    def _set(self, bits: int) -> None:
        kept = self._device.config.read16(self._control) & ~(ENABLE | MASK_ALL)
        self._device.config.write16(self._control, kept | bits)

    def _write(self, vector: int, register: int, value: int) -> None:
        self._device.registers.write32(self._table + ENTRY * vector + register, value)


def find(device: PciDevice, messages: MessageInterrupts | None, *, bar: int = 0) -> Msix | None:
    """The function's MSI-X. `bar`: the base address register behind which ``device.registers`` are.

    None: the machine has no messages, the function no MSI-X, or its table is behind another base address register.
    """
    if messages is None:
        return None
    for offset, kind in capabilities(device):
        if kind == MSIX and device.config.read32(offset + TABLE) & WHICH_BAR == bar:
            return Msix(device, messages, offset)
    return None


def capabilities(device: PciDevice) -> Iterator[tuple[int, int]]:
    """(offset, id) of each capability of the function, in its order (6.7)."""
    if not device.config.read16(STATUS) & HAS_CAPABILITIES:
        return
    offset = device.config.read8(CAPABILITIES) & ~0b11
    for _ in range(MOST_CAPABILITIES):
        if not offset:
            return
        yield offset, device.config.read8(offset)
        offset = device.config.read8(offset + 1) & ~0b11
