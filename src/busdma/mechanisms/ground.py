"""What mechanisms stand on: the memory of a machine as CPU and devices see it, and the one queue of all its pools."""

from __future__ import annotations

from busdma.mechanisms.coherence import Coherence
from busdma.pool import PoolQueue


class Ground:
    """`memory`: all RAM; its first byte has the physical address `base`. `page_size`: bytes of a page frame.

    `cache`: who keeps the CPU's copy of memory and the device's apart until a sync, on a machine where DMA does not see
    the caches; `uncached`: all of RAM past them, if the machine has that too.
    """

    def __init__(
        self,
        memory: memoryview,
        base: int,
        page_size: int,
        *,
        cache: Coherence | None = None,
        uncached: memoryview | None = None,
    ) -> None:
        self.memory = memory
        self.base = base
        self.page_size = page_size
        self.cache = cache
        self.uncached = uncached
        self.queue = PoolQueue()
