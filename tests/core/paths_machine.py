"""A small machine behind a bridge with a direct-mapped and a translated window, and what a device sees through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from busdma.addresses import AddressSet
from busdma.buffers import Buffer, HostBuffer
from busdma.constraints import Constraints
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.paths import Window
from busdma.result import Segments
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.waiting import Runtime
from core.small_machine import PAGE, SmallMachine

MIB = 1 << 20
DIRECT = 1 << 30  #: where the direct-mapped window begins on the bus
MAPPED = 8 * MIB  #: and the translated one


class Tables:
    """A translator with a page table and an IOTLB that keeps everything until it is flushed."""

    name = "tables"
    page_size = PAGE

    def __init__(self, first: int, pages: int, reach: AddressSet, prefetch: int = 0) -> None:
        self.window = AddressSet.span(first, first + pages * PAGE - 1)
        self.reach = reach
        self.prefetch = prefetch
        self.entries: dict[int, tuple[int, Direction]] = {}
        self.cached: dict[int, tuple[int, Direction]] = {}
        self.written = 0

    def enter(self, address: int, frames: Sequence[int], direction: Direction) -> None:
        """See `busdma.mechanisms.translation.Translator`."""
        assert address % PAGE == 0
        for at, frame in enumerate(frames):
            assert frame % PAGE == 0
            assert self.reach.covers(frame, frame + PAGE - 1)
            self.entries[address + at * PAGE] = (frame, direction)
            self.written += 1

    def clear(self, address: int, pages: int) -> None:
        """See `busdma.mechanisms.translation.Translator`."""
        for at in range(pages):
            self.entries.pop(address + at * PAGE, None)

    def flush(self, address: int, pages: int) -> None:
        """See `busdma.mechanisms.translation.Translator`."""
        for at in range(pages):
            self.cached.pop(address + at * PAGE, None)

    def translate(self, address: int, write: bool) -> int:
        """The physical address that a device reaches. LookupError: none, or not this way."""
        page = address - address % PAGE
        frame, direction = self.cached.setdefault(page, self.entries[page])
        if direction is (Direction.TO_DEVICE if write else Direction.FROM_DEVICE):
            raise LookupError("no right")
        return frame + address % PAGE


class Behind(SmallMachine):
    """`windows`: of ``direct`` and ``mapped``, which the bridge has, in the order of preference."""

    def __init__(
        self,
        *windows: str,
        pages: int = 512,
        covered: int = 256,
        mapped: int = 64,
        limit: int = 20,
        prefetch: int = 0,
        standing: bool = False,
        seed: int = 1,
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__(runtime, pages=pages, limit=limit, seed=seed)
        self.tables = Tables(MAPPED, mapped, AddressSet.span(0, pages * PAGE - 1), prefetch)
        allocator = IovaAllocator([(MAPPED // PAGE, MAPPED // PAGE + mapped - 1)])
        self.pool = IovaPool("tables", self.domain.queue, self.tables, allocator, standing=standing)
        self.frames.add_releaser(self.pool.forget)
        made = {"direct": Window(DIRECT, covered * PAGE), "mapped": Window(MAPPED, mapped * PAGE, MAPPED, self.pool)}
        self.bus: Tag = self.root.bridge("pci", *(made[name] for name in windows))
        self.covered = covered * PAGE

    def physical(self, address: int, write: bool) -> int:
        """Where in memory a bus address leads."""
        if DIRECT <= address < DIRECT + self.covered:
            return address - DIRECT
        return self.tables.translate(address, write)

    def device_reads(self, segments: Segments) -> bytes:
        """What a device reads at the segments, byte by byte."""
        return bytes(
            self.memory[self.physical(address + at, False)] for address, length in segments for at in range(length)
        )

    def device_writes(self, segments: Segments, data: bytes) -> None:
        """A device writes `data` to the segments, from the first on."""
        source = iter(data)
        for address, length in segments:
            for at in range(length):
                self.memory[self.physical(address + at, True)] = next(source)


def check_limits(segments: Segments, limits: Constraints, length: int) -> None:
    """Every limit of the tag, on the bus."""
    pairs = [(int(address), size) for address, size in segments]
    assert sum(size for _, size in pairs) == length
    assert len(pairs) <= limits.nsegments.value
    for at, (address, size) in enumerate(pairs):
        assert limits.admits_run(address, address + size - 1, PAGE)
        assert address % limits.alignment.value == 0
        assert size <= limits.maxsegsz.value
        if limits.boundary.value:
            assert address // limits.boundary.value == (address + size - 1) // limits.boundary.value
        if at:
            assert address % limits.joint.value == 0
        if at < len(pairs) - 1:
            assert (address + size) % limits.joint.value == 0


def contents(buffer: Any) -> bytes:
    """The CPU's view of a list's elements."""
    return b"".join(element.read() for element in buffer.elements())


def refill(elements: list[Buffer], data: bytes) -> None:
    """The CPU writes `data` over the elements."""
    at = 0
    for element in elements:
        assert isinstance(element, HostBuffer) or hasattr(element, "write")
        element.write(data[at : at + element.length])
        at += element.length
