"""What the 53C9x needs beside it: a DMA engine with one address and one count, one for each bus the chip sits on.

A transfer: ``aim``; the chip is told; ``go``; the chip interrupts; ``emptied`` until it is; ``stop``. So a transfer is
one segment.
"""

from __future__ import annotations

from typing import Protocol


class DmaEngine(Protocol):
    """Carries the bytes between the chip's FIFO and memory. Called under the driver's lock; nothing waits in here."""

    def reset(self) -> None:
        """End everything, forget errors, and let interrupts through."""

    def close(self) -> None:
        """End everything; it must not reach memory from now on."""

    def aim(self, address: int, count: int, to_memory: bool) -> None:
        """Prepare to move `count` bytes to or from bus address `address`."""

    def go(self) -> None:
        """The chip has been told of the transfer."""

    def emptied(self, left: int, held: int) -> bool:
        """True once every byte that is to reach memory has.

        Called again and again after the chip's interrupt: `left` bytes were not counted by the chip, `held` are in its
        FIFO.
        """

    def stop(self) -> None:
        """The transfer is over. What is still on the way to the chip is dropped."""

    def fault(self) -> str:
        """What went wrong with memory, in words; empty if nothing did."""
