"""What mechanisms stand on: the memory of a machine as CPU and devices see it, and the one queue of all its pools."""

from __future__ import annotations

from busdma.buffers import Buffer
from busdma.errors import DriverError
from busdma.machine.frames import FrameAllocator
from busdma.mechanisms.coherence import Coherence
from busdma.pool import PoolQueue


class Ground:
    """`memory`: all RAM, whose page `frames` are handed out; its first byte has the physical address ``frames.base``.

    `cache`: who keeps the CPU's copy of memory and the device's apart until a sync, on a machine where DMA does not see
    the caches; `uncached`: all of RAM past them, if the machine has that too. `force_bounce`: whatever is loaded is
    copied to bounce pages, within reach or not; memory that was allocated DMA-safe stays where it is.
    """

    def __init__(
        self,
        memory: memoryview,
        frames: FrameAllocator,
        *,
        cache: Coherence | None = None,
        uncached: memoryview | None = None,
        force_bounce: bool = False,
    ) -> None:
        self.memory = memory
        self.frames = frames
        self.base = frames.base
        self.page_size = frames.page_size
        self.cache = cache
        self.uncached = uncached
        self.force_bounce = force_bounce
        self.queue = PoolQueue()

    def check_home(self, buffer: Buffer) -> None:
        """DriverError if a linear buffer is memory of another machine: its addresses mean nothing here."""
        home = buffer.frames.home
        if home is not self.frames and home is not None:
            raise DriverError(
                f"cannot load {buffer.describe()}: it is memory of another machine; allocate it on the one of the tag"
            )
