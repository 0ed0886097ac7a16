"""Memory of which CPU and device have different copies until a sync: what a placement asks for; real caches as that.

Source: Thorpe, USENIX 1998, section 2 (the four synchronisation operations).
"""

from __future__ import annotations

from typing import Protocol

from busdma.mechanisms.translation import Cache


class Coherence(Protocol):
    """Who keeps the two copies of memory. Addresses are physical, lengths bytes; whole lines may be concerned."""

    line: int  #: bytes that move together; a power of two

    def to_device(self, address: int, length: int) -> None:
        """PREREAD, PREWRITE: the device's copy becomes what the CPU's is."""

    def to_cpu(self, address: int, length: int, written: bool) -> None:
        """POSTREAD (`written`): the CPU's copy becomes what the device's is. POSTWRITE: the device has only read it."""


class WriteBack:
    """A write-back cache that DMA does not see.

    What goes to the device is cleaned and forgotten, lest an eviction write an old line over what the device wrote.
    What comes from it is forgotten once more, as the CPU may have fetched lines ahead meanwhile.
    """

    def __init__(self, cache: Cache) -> None:
        self.line = cache.line
        self._cache = cache

    def to_device(self, address: int, length: int) -> None:
        """See `Coherence.to_device`."""
        self._cache.clean(address, length)
        self._cache.invalidate(address, length)

    def to_cpu(self, address: int, length: int, written: bool) -> None:
        """See `Coherence.to_cpu`."""
        if written:
            self._cache.invalidate(address, length)
