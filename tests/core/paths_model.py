"""What the state machine of the routes compares with: every byte, where its owner and where a device should find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from busdma.buffers import HostBuffer, LinearBuffer
from busdma.lifecycle import State
from busdma.map import Map
from busdma.result import Segments
from busdma.sync import Direction
from core.paths_machine import DIRECT
from core.small_machine import PAGE


@dataclass(eq=False)
class Store:
    """Some memory, and what its owner should find in it."""

    buffer: LinearBuffer | HostBuffer
    data: bytearray

    def home(self, at: int) -> int | None:
        """Where byte `at` is in memory; None: not in the machine's."""
        if isinstance(self.buffer, HostBuffer):
            return None
        index, within = divmod(self.buffer.start + at, PAGE)
        return self.buffer.frames.table[index] + within

    def frames(self) -> list[int]:
        """The page frames that hold it now, absent ones included."""
        if isinstance(self.buffer, HostBuffer):
            return []
        first, last = self.buffer.start // PAGE, (self.buffer.start + self.buffer.length - 1) // PAGE
        return list(self.buffer.frames.table[first : last + 1])


@dataclass(frozen=True)
class View:
    """Bytes [at, at + length) of a store: an element of what is loaded."""

    store: Store
    at: int
    length: int

    def buffer(self) -> LinearBuffer | HostBuffer:
        """What is loaded."""
        return self.store.buffer[self.at : self.at + self.length]


@dataclass(frozen=True)
class Chunk:
    """Bytes of a load that lie in one page frame, on either side."""

    offset: int  #: in the load
    size: int
    store: Store
    at: int  #: in the store
    bus: int
    place: int  #: where in memory a device finds them
    home: int | None  #: where in memory the CPU has them

    @property
    def copied(self) -> bool:
        """Are there two copies?"""
        return self.place != self.home


@dataclass(eq=False)
class Load:
    """What a map should be."""

    map: Map
    state: State = State.IDLE
    views: list[View] = field(default_factory=list)
    direction: Direction = Direction.BOTH
    chunks: list[Chunk] = field(default_factory=list)
    view: bytearray = field(default_factory=bytearray)  #: the device's copy of what has two
    seen: bytearray = field(default_factory=bytearray)  #: 1: a PRE sync or the device has written it
    owned: bool = False  #: the device may own bytes

    @property
    def length(self) -> int:
        """Bytes of the load."""
        return sum(view.length for view in self.views)

    @property
    def held(self) -> bool:
        """Does it hold what it took?"""
        return self.state in (State.LOADED, State.QUARANTINED)

    def uses(self, store: Store) -> bool:
        """Is some of this memory loaded, or waiting to be?"""
        return self.state is not State.IDLE and any(view.store is store for view in self.views)

    def loaded(self, physical: Callable[[int, bool], int]) -> None:
        """It has been granted."""
        self.state, self.owned = State.LOADED, False
        write = self.direction is Direction.FROM_DEVICE
        self.chunks = list(chunks_of(self.views, self.map.segments, lambda address: physical(address, write)))
        self.view, self.seen = bytearray(self.length), bytearray(self.length)

    def idle(self) -> None:
        """Nothing is loaded."""
        self.state, self.owned = State.IDLE, False
        self.views, self.chunks = [], []

    def within(self, lo: int, hi: int) -> Iterator[tuple[Chunk, int, int]]:
        """The chunks of bytes [lo, hi), and which of their bytes."""
        for chunk in self.chunks:
            first, end = max(lo - chunk.offset, 0), min(hi - chunk.offset, chunk.size)
            if first < end:
                yield chunk, first, end

    def bus_pages(self, ahead: int) -> int:
        """Those that a translator maps, and `ahead` more if the device reads: numbers below the direct window's."""
        pages = {chunk.bus // PAGE for chunk in self.chunks if chunk.bus < DIRECT}
        return len(pages) + (ahead if pages and self.direction is not Direction.FROM_DEVICE else 0)

    def bounce_frames(self) -> set[int]:
        """The bounce pages that a device meets."""
        return {chunk.place - chunk.place % PAGE for chunk in self.chunks if chunk.copied}


def chunks_of(views: list[View], segments: Segments, place: Callable[[int], int]) -> Iterator[Chunk]:
    """Cut both sides at every page, element and segment."""
    ends = iter([(int(address), length) for address, length in segments])
    bus, left = next(ends)
    offset = 0
    for view in views:
        at, rest = view.at, view.length
        while rest:
            if not left:
                bus, left = next(ends)
            home = view.store.home(at)
            size = min(rest, left, PAGE - bus % PAGE, rest if home is None else PAGE - home % PAGE)
            yield Chunk(offset, size, view.store, at, bus, place(bus), home)
            offset, at, rest, bus, left = offset + size, at + size, rest - size, bus + size, left - size
    assert left == 0
    assert next(ends, None) is None
