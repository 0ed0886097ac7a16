"""What a device model is wired to, whatever machine it is in: memory, its interrupt, and the machine's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

#: Has a function called at a time, in ns; the buses' lock is held then.
CallAt = Callable[[int, Callable[[], object]], object]


class Memory(Protocol):
    """A device's only way to memory: a bus master, which takes bus addresses as they appear on its address wires."""

    def dma_read(self, address: int, length: int) -> bytes:
        """Read memory. DeviceFault where a translation on the way refuses it."""

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write memory. The same."""


class Pin(Protocol):
    """The device's side of its interrupt."""

    def assert_(self) -> None:
        """Raise it."""

    def deassert(self) -> None:
        """Lower it."""
