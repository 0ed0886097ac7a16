"""A machine with a cache that DMA does not see: two arrays of bytes, and what moves between them."""

from __future__ import annotations

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.domain import DmaDomain
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import AddressSpace
from busdma.map import Map
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.paths import Window
from busdma.runtime import by_name
from busdma.tag import Tag
from core.paths_machine import MAPPED, Tables
from core.small_machine import PAGE

LINE = 32
PAGES = 256


class LazyCache:
    """Nothing moves by itself but what a test asks for: dirty lines that are evicted, clean ones that are fetched."""

    line = LINE

    def __init__(self, size: int) -> None:
        self.cpu = memoryview(bytearray(size))
        self.ram = memoryview(bytearray(size))
        self._agreed = bytearray(size)
        self.touched: list[tuple[int, int]] = []

    def to_device(self, address: int, length: int) -> None:
        self.touched.append((address, length))
        self._clean(address, length)
        self._fetch(address, length)

    def to_cpu(self, address: int, length: int, written: bool) -> None:
        self.touched.append((address, length))
        if written:
            self._fetch(address, length)

    def evict(self) -> None:
        """The cache needs the room: all dirty lines go to memory."""
        self._clean(0, len(self.cpu))

    def _lines(self, address: int, length: int) -> list[slice]:
        first = address // LINE * LINE
        return [slice(at, at + LINE) for at in range(first, address + length, LINE)]

    def _clean(self, address: int, length: int) -> None:
        for line in self._lines(address, length):
            if self.cpu[line] != self._agreed[line]:
                self.ram[line] = self.cpu[line]
                self._agreed[line] = self.cpu[line]

    def _fetch(self, address: int, length: int) -> None:
        for line in self._lines(address, length):
            self.cpu[line] = self.ram[line]
            self._agreed[line] = self.ram[line]


class Machine:
    """`alias`: all of memory can be used uncached, too. `translated`: the bus has nothing but a translated window."""

    def __init__(self, *, alias: bool = True, translated: bool = False, limit: int = 32, low: int = PAGES) -> None:
        self.cache = LazyCache(PAGES * PAGE)
        self.frames = FrameAllocator(0, PAGES, seed=3)
        self.domain = DmaDomain(
            self.cache.cpu,
            self.frames,
            by_name("virtual"),
            bounce_limit=limit,
            cache=self.cache,
            uncached=self.cache.ram if alias else None,
        )
        self.kernel = AddressSpace("kernel", self.cache.cpu, self.frames, pages=2 * PAGES)
        self.kernel.in_use = self.domain.in_use
        self.tables = Tables(MAPPED, 64, AddressSet.span(0, PAGES * PAGE - 1))
        pool = IovaPool(
            "tables", self.domain.queue, self.tables, IovaAllocator([(MAPPED // PAGE, MAPPED // PAGE + 63)])
        )
        self.pool = pool
        root = self.domain.root("mips")
        window = Window(MAPPED, 64 * PAGE, MAPPED, pool)
        self.tag: Tag = root.bridge("jazz", window) if translated else root.derive("isa", lowaddr=low * PAGE - 1)

    def buffer(self, length: int, offset: int = 0) -> LinearBuffer:
        """A kernel buffer, of nothing but its own contents: the rest of its pages is other data."""
        return self.kernel.allocate(length, offset=offset)

    @property
    def bounced(self) -> int:
        """Bounce pages in use."""
        return sum(zone.active for zone in self.domain.zones)

    def physical(self, address: int, write: bool) -> int:
        """Where a bus address leads."""
        return self.tables.translate(address, write) if self.tag.routes[0].pool is not None else address

    def device_reads(self, map: Map) -> bytes:
        """What a device finds in memory."""
        places = [self.physical(address + at, False) for address, length in map.segments for at in range(length)]
        return bytes(self.cache.ram[place] for place in places)

    def device_writes(self, map: Map, data: bytes) -> None:
        """A device writes to memory."""
        source = iter(data)
        for address, length in map.segments:
            for at in range(length):
                self.cache.ram[self.physical(address + at, True)] = next(source)
