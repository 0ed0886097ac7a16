"""A machine under the checker with no device of its own: the test is the device, through a bus master."""

from __future__ import annotations

from random import Random

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.check import Checker, Finding
from busdma.machine.frames import FrameAllocator
from busdma.machine.machine import Machine
from busdma.machine.ram import sided, sparse
from busdma.machine.space import AddressSpace
from busdma.map import Map
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.paths import Window
from busdma.result import Segments
from busdma.runtime import by_name
from busdma.sim.bus.master import MasterBus, Wires
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.cache import WriteBackCache, cached
from busdma.sim.iommu.sun4m import Sun4mIommu
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp
from busdma.tag import Tag
from busdma.translators.sun4m import Sun4mTable

PAGE = 4096
LINE = 32
MIB = 1 << 20
TO, FROM, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BOTH
PRE: SyncOp = PREREAD | PREWRITE
POST: SyncOp = POSTREAD | POSTWRITE


class Bench(Machine):
    """`pages` of memory; if `caches`, behind some that DMA does not see; if not `watched`, nobody tells what they do.

    ``low`` is a bus that reaches the lower half of it, ``bus`` one that reaches everything, and ``dvma``, if `remap`,
    one behind an IOMMU. ``device`` is a master on the bus of `tag`.
    """

    def __init__(
        self,
        *,
        pages: int = 512,
        remap: bool = False,
        standing: bool = False,
        caches: bool = False,
        watched: bool = True,
        limit: int = 20,
        runtime: str = "virtual",
    ) -> None:
        size = pages * PAGE
        ram = cached(WriteBackCache(size, line=LINE), check=True) if caches else sided(sparse(size), watched=watched)
        frames = FrameAllocator(0, pages, seed=1)
        carrier = by_name(runtime)
        domain = ram.domain(frames, carrier, bounce_limit=limit)
        super().__init__("test:bench", domain, AddressSpace("kernel", ram.cpu, frames, pages=2048))
        self.at_close(carrier.close)
        assert ram.checker is not None
        self.checker: Checker = ram.checker
        self.half = pages * PAGE // 2
        self.master_bus = MasterBus(ram.bus, frames)
        self.master_bus.watch = ram.watch
        root = domain.root("pc")
        self.bus = root.derive("bus")
        self.low = root.derive("low", lowaddr=self.half - 1)
        self.tag: Tag = self.bus
        if remap:
            self.iommu = Sun4mIommu(ram.bus)
            self.iommu.tlb.stale = ram.stale if watched else None
            size = 16 * MIB
            table, where = ram.table(frames, size // PAGE * 4, size // PAGE * 4)
            translator = Sun4mTable(ChipRegisters(self.master_bus, self.iommu), table, where, size=size)
            first, last = translator.window.intervals[0]
            allocator = IovaAllocator([(first // PAGE, last // PAGE)])
            self.pool = IovaPool("iommu", domain.queue, translator, allocator, standing=standing)
            frames.add_releaser(self.pool.forget)
            self.tag = root.bridge("dvma", Window(first, size, first, self.pool))
            self.device = self.master_bus.add_master("dev0", self.iommu.route("dev0"))
        else:
            self.device = self.master_bus.add_master("dev0", Wires(32))
        self.other = self.master_bus.add_master("dev1", Wires(32))

    def high(self, length: int, offset: int = 0) -> LinearBuffer:
        """A kernel buffer that ``low`` does not reach."""
        return self.kernel.allocate(length, offset=offset, within=AddressSet.span(self.half, 2 * self.half - 1))

    def near(self, length: int, offset: int = 0) -> LinearBuffer:
        """A kernel buffer that ``low`` reaches."""
        return self.kernel.allocate(length, offset=offset, within=AddressSet.span(0, self.half - 1))

    def reads(self, segments: Segments | list[tuple[int, int]]) -> bytes:
        """What the device reads at the segments."""
        return b"".join(self.device.dma_read(address, length) for address, length in segments)

    def writes(self, segments: Segments | list[tuple[int, int]], data: bytes) -> None:
        """The device writes `data` to the segments, from the first on."""
        at = 0
        for address, length in segments:
            if at < len(data):
                self.device.dma_write(address, data[at : at + length])
            at += length

    def loaded(self, buffer: object, direction: Direction = BOTH, tag: Tag | None = None) -> Map:
        """A map that has `buffer` loaded."""
        map = (tag or self.tag).create_map()
        map.load_nowait(buffer, direction)
        return map

    def found(self) -> list[Finding]:
        """All findings."""
        return list(self.checker.findings)

    def labels(self) -> list[str]:
        """Their kinds, each once."""
        return sorted({finding.kind.label for finding in self.checker.findings})


def pairs(segments: Segments) -> list[tuple[int, int]]:
    """What a device has noted of the segments."""
    return [(int(address), length) for address, length in segments]


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes without a pattern."""
    return Random(seed).randbytes(length)
