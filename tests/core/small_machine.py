"""A small machine without devices: scattered memory, a bus that reaches the low part of it, and what a device sees."""

from __future__ import annotations

from array import array

from busdma.addresses import AddressSet
from busdma.buffers import Buffer, LinearBuffer
from busdma.domain import DmaDomain
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import AddressSpace
from busdma.mechanisms.zone import Zone
from busdma.result import Segments
from busdma.runtime import by_name
from busdma.segments import Frames
from busdma.waiting import Runtime

PAGE = 4096


class SmallMachine:
    """`pages` page frames from address 0 on; the tag ``isa`` reaches the lowest `low` of them."""

    def __init__(
        self, runtime: Runtime | None = None, *, pages: int = 512, low: int = 128, limit: int = 20, seed: int = 1
    ) -> None:
        self.runtime: Runtime = by_name("virtual") if runtime is None else runtime
        self.memory = memoryview(bytearray(pages * PAGE))
        self.frames = FrameAllocator(0, pages, seed=seed)
        self.domain = DmaDomain(self.memory, self.frames, self.runtime, bounce_limit=limit)
        self.kernel = self.space("kernel")
        self.root = self.domain.root("pc")
        self.isa = self.root.derive("isa", lowaddr=low * PAGE - 1)
        self.below = AddressSet.span(0, low * PAGE - 1)
        self.above = AddressSet.span(low * PAGE, pages * PAGE - 1)

    def space(self, name: str) -> AddressSpace:
        """An address space: the kernel's, or a process of that name."""
        kernel = name == "kernel"
        space = AddressSpace(name, self.memory, self.frames, pages=1024, owner="kernel" if kernel else "process")
        space.in_use = self.domain.in_use
        return space

    def high(self, length: int, offset: int = 0) -> LinearBuffer:
        """A kernel buffer that ``isa`` does not reach."""
        return self.kernel.allocate(length, offset=offset, within=self.above)

    def low(self, length: int, offset: int = 0) -> LinearBuffer:
        """A kernel buffer that ``isa`` reaches."""
        return self.kernel.allocate(length, offset=offset, within=self.below)

    @property
    def zone(self) -> Zone:
        """The first bounce zone."""
        return self.domain.zones[0]

    def peek(self, segments: Segments) -> bytes:
        """What a device reads at the segments."""
        return b"".join(bytes(self.memory[address : address + length]) for address, length in segments)

    def poke(self, segments: Segments, data: bytes, offset: int = 0) -> None:
        """A device writes `data` at byte `offset` of the segments."""
        at = 0
        for address, length in segments:
            lo, hi = max(offset, at), min(offset + len(data), at + length)
            if lo < hi:
                self.memory[address + lo - at : address + hi - at] = data[lo - offset : hi - offset]
            at += length


class Pages:
    """A buffer made of given page frames: to choose exactly how memory lies."""

    host = None
    readonly = False

    def __init__(self, frames: list[int], start: int, length: int) -> None:
        self.frames = Frames(array("Q", frames))
        self.start = start
        self.length = length

    def describe(self) -> str:
        """For messages."""
        return f"{self.length} bytes of chosen frames"


def addresses(segments: Segments) -> list[int]:
    """The bus address of every byte."""
    return [byte for address, length in segments for byte in range(address, address + length)]


def page_starts(buffer: Buffer) -> list[tuple[int, int, int]]:
    """For each page of a buffer: its entry in the page table, the first byte's offset in the page, and how many."""
    index, head = divmod(buffer.start, PAGE)
    left, found = buffer.length, []
    while left:
        size = min(PAGE - head, left)
        found.append((buffer.frames.table[index], head, size))
        index, head, left = index + 1, 0, left - size
    return found
