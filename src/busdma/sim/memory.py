"""Memory of a simulated machine, from its two sides: what the CPU sees of it, and what devices reach.

On a coherent machine they are one. Under the checker, and behind a cache that DMA does not see, they are two, which
agree only at a sync.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from busdma.domain import DmaDomain
from busdma.machine.frames import FrameAllocator
from busdma.mechanisms.coherence import Coherence, WriteBack
from busdma.sim.bus.master import Watch
from busdma.sim.cache import WriteBackCache
from busdma.sim.ram import sparse
from busdma.waiting import Runtime

if TYPE_CHECKING:
    from busdma.check import Checker


@dataclass(frozen=True, slots=True)
class Ram:
    """`size` bytes from physical address 0 on."""

    cpu: memoryview  #: as the CPU sees them
    bus: memoryview  #: as devices do
    coherence: Coherence | None = None  #: who keeps the two apart until a sync; None: they are one
    uncached: memoryview | None = None  #: past the CPU's caches
    watch: Watch | None = None  #: told of what devices do
    checker: Checker | None = None

    def domain(self, frames: FrameAllocator, runtime: Runtime, *, bounce_limit: int) -> DmaDomain:
        """What the tags of the machine share."""
        domain = DmaDomain(
            self.cpu, frames, runtime, bounce_limit=bounce_limit, cache=self.coherence, uncached=self.uncached
        )
        if self.checker is not None:
            self.checker.attach(domain)
        return domain

    @property
    def stale(self) -> Callable[[], object] | None:
        """Who is told when a translation is used that is no more; see `busdma.sim.iommu.translation.Iotlb`."""
        return None if self.checker is None else self.checker.stale

    def table(self, frames: FrameAllocator, size: int, alignment: int) -> tuple[memoryview, int]:
        """Memory for a table that hardware reads: its bytes, as the hardware has them, and its physical address."""
        page = frames.page_size
        base = frames.allocate_run(-(-size // page), "tables", alignment=max(alignment, page))
        return self.bus[base : base + size], base


def coherent(size: int, *, check: bool = False) -> Ram:
    """Memory of a machine where DMA sees what the CPU sees; under the checker, if `check`."""
    memory = sparse(size)
    return _checked(size, 1) if check else Ram(memory, memory)


def cached(cache: WriteBackCache, *, check: bool = False) -> Ram:
    """Memory behind a cache that DMA does not see. The checker, if `check`, stands in for it: it forgives nothing."""
    if check:
        return _checked(len(cache.memory), cache.line)
    return Ram(cache.seen, cache.memory, WriteBack(cache), cache.uncached, cache)


def _checked(size: int, line: int) -> Ram:
    from busdma.check import Checker

    cpu, device = sparse(size), sparse(size)
    checker = Checker(cpu, device, line=line)
    return Ram(cpu, device, checker, None, checker, checker)
