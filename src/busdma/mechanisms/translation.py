"""What the mechanisms ask of the machine's hardware: translation, and caches that DMA does not see.

A back end implements these two protocols for its IOMMU, scatter-gather map or cache; *remap* and the second copies of
bytes work through them and know no register.

Source: Thorpe, USENIX 1998, section 2 (scatter-gather-mapped DMA; caches); bus_dma(9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from busdma.addresses import AddressSet
from busdma.sync import Direction


class Translator(Protocol):
    """Hardware that turns bus pages into page frames. Every method is called under the lock of the machine's pools."""

    name: str  #: for messages and statistics, such as ``sgmap``
    page_size: int  #: the machine's
    window: AddressSet  #: the bus addresses that it translates, whole pages, as it sees them
    reach: AddressSet  #: physical addresses that an entry can name
    prefetch: int  #: bytes that the bridge may read past the last byte that a device asked for; 0: it does not

    def enter(self, address: int, frames: Sequence[int], direction: Direction) -> None:
        """Let the pages from bus address `address` on be these page frames, by physical address.

        `direction`: TO_DEVICE lets a device read, FROM_DEVICE write, BOTH both. The entries replace what was there and
        are visible to the device on return, unless it still caches an older one: that is what `flush` is for.
        """

    def clear(self, address: int, pages: int) -> None:
        """Invalidate the entries. A device may go on using what the hardware caches, until `flush`."""

    def flush(self, address: int, pages: int) -> None:
        """On return no cached translation of these pages is left in the hardware."""


class Cache(Protocol):
    """A cache that DMA does not see. Addresses are physical; whole lines are concerned, and nothing else."""

    line: int  #: bytes; a power of two

    def clean(self, address: int, length: int) -> None:
        """Write the lines of [address, address + length) back to memory where they are dirty. They stay valid."""

    def invalidate(self, address: int, length: int) -> None:
        """Forget these lines: the CPU's next look goes to memory. What was dirty is lost: `clean` first."""
