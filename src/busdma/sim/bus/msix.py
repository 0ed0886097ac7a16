"""MSI-X of a device model: its capability, its table and pending bits, and the messages that it sends.

Source: PCI Local Bus Specification 3.0, 6.8.2 (capability, table, pending bits), 6.8.3 (masking).
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

from busdma.errors import ConfigurationError
from busdma.sim.bus.pci_config import ConfigSpace
from busdma.sim.wiring import Memory

CAPABILITY: Final = 0x11
SIZE: Final = 12  #: bytes of the capability
ENABLE, MASK_ALL = 0x8000, 0x4000  # the control word
ENTRY: Final = 16
MASKED: Final = 1
MOST: Final = 2048


class MsixTable:
    """`vectors` of a function: the table is at `table` of base address register `bar`, the pending bits at `pending`.

    The function passes accesses to them on, and says what happened with `signal`. Until it is `connect`-ed it is not
    enabled.
    """

    def __init__(self, master: Memory, vectors: int, *, bar: int, table: int, pending: int) -> None:
        if not 1 <= vectors <= MOST or table % 8 or pending % 8:
            raise ConfigurationError(f"MSI-X has 1 to {MOST} vectors, and its tables begin at a multiple of 8")
        self.vectors: Final = vectors
        self._master = master
        self._places = table | bar, pending | bar
        self._table, self._pending_at = range(table, table + ENTRY * vectors), pending
        self._entries = bytearray(ENTRY * vectors)
        self._pending = bytearray(8 * -(-vectors // 64))
        self._config: ConfigSpace | None = None
        self._at = 0
        for vector in range(vectors):
            self._entries[ENTRY * vector + 12] = MASKED

    def connect(self, config: ConfigSpace) -> None:
        """Have the capability in the function's configuration space."""
        self._config, self._at = config, config.add_capability(CAPABILITY, SIZE)
        config.define(self._at + 2, 2, value=self.vectors - 1, writable=ENABLE | MASK_ALL)
        for number, place in enumerate(self._places):
            config.define(self._at + 4 + 4 * number, 4, value=place)
        config.watchers.append(self._release)

    @property
    def enabled(self) -> bool:
        """Software wants messages, and no pin."""
        return self._config is not None and bool(self._config.peek(self._at + 2, 2) & ENABLE)

    def claims(self, offset: int) -> bool:
        """Does `offset` lie in the table or in the pending bits?"""
        return offset in self._table or 0 <= offset - self._pending_at < len(self._pending)

    def read32(self, offset: int) -> int:
        """The CPU reads 32 bits that this `claims`."""
        data, at = self._entries, offset - self._table.start
        if offset not in self._table:
            data, at = self._pending, offset - self._pending_at
        return int.from_bytes(data[at : at + 4], "little")

    def write32(self, offset: int, value: int) -> None:
        """The CPU writes them. The pending bits are read-only, as all of a vector's control but its mask."""
        if offset in self._table:
            at = offset - self._table.start
            value &= MASKED if at % ENTRY == 12 else 0xFFFFFFFC if at % ENTRY == 0 else 0xFFFFFFFF
            self._entries[at : at + 4] = value.to_bytes(4, "little")
            self._release()

    def signal(self, vector: int) -> None:
        """The function interrupts by `vector`: at once, or when it is no longer masked."""
        if self.enabled:
            self._pending[vector // 8] |= 1 << vector % 8
            self._release()

    def clear(self) -> None:
        """The function has been reset: nothing is pending."""
        self._pending[:] = bytes(len(self._pending))

    def _release(self) -> None:
        """Send what is pending and not masked."""
        if not self.enabled or self._config is None or self._config.peek(self._at + 2, 2) & MASK_ALL:
            return
        for number, byte in enumerate(self._pending):
            for vector in range(8 * number, 8 * number + 8) if byte else ():
                at = ENTRY * vector
                if byte >> vector % 8 & 1 and not self._entries[at + 12] & MASKED:
                    self._pending[number] &= ~(1 << vector % 8)
                    address = int.from_bytes(self._entries[at : at + 8], "little")
                    self._master.dma_write(address, self._entries[at + 8 : at + 12])


@runtime_checkable
class HasMsix(Protocol):
    """A function that may have MSI-X."""

    msix: MsixTable | None
