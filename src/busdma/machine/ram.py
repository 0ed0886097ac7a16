"""The memory of a machine that lies in this process, from its two sides: what the CPU sees of it, what devices reach.

On a coherent machine they are one. Under the checker, and behind a cache that DMA does not see, they are two, which
agree only at a sync.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from busdma.addresses import AddressSet
from busdma.domain import DmaDomain
from busdma.errors import ConfigurationError
from busdma.machine.frames import FrameAllocator
from busdma.mechanisms.coherence import Coherence
from busdma.waiting import Runtime

if TYPE_CHECKING:
    from busdma.check import Checker


class Watch(Protocol):
    """What stands between the CPU and memory, and must know what masters do: a cache that they do not see."""

    def before_read(self, address: int, length: int, master: str) -> None:
        """A master is about to read these bytes of memory, by physical address. The bus's lock is held."""

    def after_write(self, address: int, length: int, master: str) -> None:
        """A master has written them."""

    def unanswered(self, address: int, length: int, master: str) -> None:
        """A master has used these bus addresses, and nobody answered."""


@dataclass(frozen=True, slots=True)
class Ram:
    """All of it; the first byte has the physical address of the first page frame."""

    cpu: memoryview  #: as the CPU sees them
    bus: memoryview  #: as devices do
    coherence: Coherence | None = None  #: who keeps the two apart until a sync; None: they are one
    uncached: memoryview | None = None  #: past the CPU's caches
    watch: Watch | None = None  #: told of what devices do
    checker: Checker | None = None

    def domain(
        self, frames: FrameAllocator, runtime: Runtime, *, bounce_limit: int, force_bounce: bool = False
    ) -> DmaDomain:
        """What the tags of the machine share."""
        domain = DmaDomain(
            self.cpu,
            frames,
            runtime,
            bounce_limit=bounce_limit,
            cache=self.coherence,
            uncached=self.uncached,
            force_bounce=force_bounce,
        )
        if self.checker is not None:
            self.checker.attach(domain)
        return domain

    @property
    def stale(self) -> Callable[[], object] | None:
        """Who is told when a translation is used that is no more; see `busdma.sim.iommu.translation.Iotlb`."""
        return None if self.checker is None else self.checker.stale

    def table(
        self, frames: FrameAllocator, size: int, alignment: int, within: AddressSet | None = None
    ) -> tuple[memoryview, int]:
        """Memory for a table that hardware reads: its bytes, as the hardware has them, and its physical address."""
        page = frames.page_size
        where = frames.allocate_run(-(-size // page), "tables", within=within, alignment=max(alignment, page))
        at = where - frames.base
        return self.bus[at : at + size], where


def sided(devices: memoryview, *, base: int = 0, line: int = 1, watched: bool = True) -> Ram:
    """What `devices` reach from physical address `base` on, under the checker: the CPU's side is another memory.

    `line`: bytes of a line of the CPU's caches; `watched`: the machine can tell the checker what devices do.
    """
    from busdma.check import Checker

    cpu = sparse(len(devices))
    checker = Checker(cpu, devices, base=base, line=line, sees_devices=watched)
    return Ram(cpu, devices, checker, None, checker if watched else None, checker)


def coherent(size: int, *, check: bool = False) -> Ram:
    """Memory of a machine where DMA sees what the CPU sees; under the checker, if `check`."""
    memory = sparse(size)
    return sided(memory) if check else Ram(memory, memory)


def sparse(size: int) -> memoryview:
    """`size` bytes of zeros. ConfigurationError if this host cannot number so many bytes."""
    if size - 1 > sys.maxsize:
        raise ConfigurationError(f"{size >> 20} MiB of memory need a Python of 64 bits")
    try:
        if hasattr(os, "memfd_create"):  # Linux, which would otherwise want to be able to hold all of it
            fd = os.memfd_create("busdma")
            try:
                os.ftruncate(fd, size)
                return memoryview(mmap.mmap(fd, size))
            finally:
                os.close(fd)
        return memoryview(mmap.mmap(-1, size))
    except OSError as error:
        raise ConfigurationError(
            f"this host does not give {size >> 20} MiB of address space ({error.strerror}); raise its limit (ulimit -v)"
        ) from None
