"""Bus masters, on any bus: a device's one way to a byte of memory, and the place where that is counted.

How an address travels is the bus's business, its `Route`; what arrives at memory is the same everywhere. What a machine
reports about DMA is counted here: how often a device accessed memory, how many bytes, and whose page frames they were.
Where nobody answers, reads give 0xFF and writes vanish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypedDict

from busdma.errors import ConfigurationError, DeviceFault
from busdma.machine.frames import FrameAllocator
from busdma.machine.machine import DataTraffic
from busdma.machine.ram import Watch
from busdma.sim.bus.messages import MessageController

DATA_OWNERS: Final = frozenset(
    {"kernel", "process", "unmapped", "bounce"}
)  #: labels of frames that hold what is transferred
FREE: Final = "free"  #: the label for accesses to frames that nobody holds: always a mistake
UNCLAIMED: Final = "unclaimed"  #: and to addresses where there is no memory
FAULTED: Final = "faulted"  #: and for the rest of an access that the route broke off

WAYS: Final = ("direct", "window", "remap", "bounce")  #: what a bus can say of how bytes came within a device's reach


class Traffic(TypedDict):
    """Accesses that touched an owner's frames, and the bytes in them."""

    accesses: int
    bytes: int


class MasterStatistics(TypedDict):
    """Counts of one bus master. An access is one burst of adjacent addresses, however long.

    `data_accesses` are those that touched frames of DATA_OWNERS, `data_bytes` the bytes in such frames. An access that
    spans frames of two owners counts once for each in `by_owner`, and its bytes where they lie. `wrapped` counts
    accesses whose address lost bits on the way; `unclaimed` those that left memory.
    """

    reads: int
    writes: int
    bytes: int
    data_accesses: int
    data_bytes: int
    wrapped: int
    unclaimed: int
    by_owner: dict[str, Traffic]


class Route(Protocol):
    """The way of a bus address to memory."""

    def pieces(self, address: int, length: int, write: bool) -> Iterator[tuple[int | None, int]]:
        """The access in its order, cut where its way changes: (physical address or None: unclaimed, bytes).

        A physical address beyond memory is unclaimed too. The pieces' bytes add up to `length`, which is at least 1.
        DeviceFault, also after some pieces: the rest of the access does not happen.
        """

    def wraps(self, address: int, length: int) -> bool:
        """True if the address of some byte loses bits on the way."""


class Wires:
    """A route of `width` address wires straight to memory at 0: the upper bits of an address are lost."""

    def __init__(self, width: int) -> None:
        self._span = 1 << width

    def pieces(self, address: int, length: int, write: bool) -> Iterator[tuple[int | None, int]]:
        """As `Route.pieces`: cut where the address begins again at 0."""
        while length > 0:
            at = address % self._span
            count = min(length, self._span - at)
            yield at, count
            address = 0
            length -= count

    def wraps(self, address: int, length: int) -> bool:
        """As `Route.wraps`: an address that needs more wires than there are."""
        return address < 0 or address + length > self._span


class BusMaster:
    """The device `name`'s way to memory. Made by its bus."""

    def __init__(self, name: str, bus: MasterBus, route: Route) -> None:
        self.name = name
        self._bus = bus
        self._route = route
        self._reads = 0
        self._writes = 0
        self._data_accesses = 0
        self._ways: set[str] = set()  # by which data was reached
        self._wrapped = 0
        self._traffic: dict[str, list[int]] = {}

    def dma_read(self, address: int, length: int) -> bytes:
        """The `length` bytes at bus address `address`: one access. 0xFF where nobody answers.

        DeviceFault, nothing read: where a translation on the way refuses it.
        """
        if length < 1:
            return b""
        memory, watch, found, done = self._bus.memory, self._bus.watch, [], 0
        with self._bus.lock:
            self._reads += 1
            for at, count in self._walk(address, length, False):
                if watch is not None:
                    if at is None:
                        watch.unanswered(address + done, count, self.name)
                    else:
                        watch.before_read(at, count, self.name)
                done += count
                found.append(b"\xff" * count if at is None else memory[at : at + count].tobytes())
        return found[0] if len(found) == 1 else b"".join(found)

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at bus address `address`: one access. What falls where nobody answers is lost.

        DeviceFault where a translation on the way refuses it; what came before that is written.
        """
        memory, watch, source = self._bus.memory, self._bus.watch, memoryview(data).cast("B")
        if not source:
            return
        done, messages = 0, self._bus.messages
        with self._bus.lock:
            if messages is not None and messages.takes(address, len(source)):
                if list(self._route.pieces(address, len(source), True)) == [(address, len(source))]:
                    messages.signal(address, int.from_bytes(source, "little"))
                return
            self._writes += 1
            for at, count in self._walk(address, len(source), True):
                if at is not None:
                    memory[at : at + count] = source[done : done + count]
                    if watch is not None:
                        watch.after_write(at, count, self.name)
                elif watch is not None:
                    watch.unanswered(address + done, count, self.name)
                done += count

    def statistics(self) -> MasterStatistics:
        """What the bus has counted for this master."""
        with self._bus.lock:
            owners: dict[str, Traffic] = {k: {"accesses": n, "bytes": size} for k, (n, size) in self._traffic.items()}
            return {
                "reads": self._reads,
                "writes": self._writes,
                "bytes": sum(entry["bytes"] for entry in owners.values()),
                "data_accesses": self._data_accesses,
                "data_bytes": sum(entry["bytes"] for label, entry in owners.items() if label in DATA_OWNERS),
                "wrapped": self._wrapped,
                "unclaimed": owners[UNCLAIMED]["accesses"] if UNCLAIMED in owners else 0,
                "by_owner": owners,
            }

    def _walk(self, address: int, length: int, write: bool) -> Iterator[tuple[int | None, int]]:
        """The pieces as offsets into memory, or None outside it; counted as they go by."""
        base, size = self._bus.frames.base, len(self._bus.memory)
        touched: dict[str, int] = {}
        left = length
        way = self._bus.way(address)
        if self._route.wraps(address, length):
            self._wrapped += 1
        try:
            for physical, count in self._route.pieces(address, length, write):
                at = size if physical is None else physical - base
                here = min(max(size - at, 0), count) if at >= 0 else 0
                if here:
                    self._own(touched, at + base, here)
                    yield at, here
                if here < count:
                    touched[UNCLAIMED] = touched.get(UNCLAIMED, 0) + count - here
                    yield None, count - here
                left -= count
        except DeviceFault:
            touched[FAULTED] = left
            raise
        finally:
            for label, count in touched.items():
                entry = self._traffic.setdefault(label, [0, 0])
                entry[0] += 1
                entry[1] += count
            if not DATA_OWNERS.isdisjoint(touched):
                self._data_accesses += 1
                if "bounce" in touched:
                    self._ways.add("bounce")
                if way != "direct" or any(label in DATA_OWNERS and label != "bounce" for label in touched):
                    self._ways.add(way)

    def _own(self, touched: dict[str, int], physical: int, length: int) -> None:
        frames = self._bus.frames
        page = frames.page_size
        while length > 0:
            count = min(page - physical % page, length)
            label = frames.owner_of(physical) or FREE
            touched[label] = touched.get(label, 0) + count
            physical += count
            length -= count


class MasterBus:
    """What every bus with masters is: `memory`, whose page frames `frames` hands out, and the masters by name.

    ``lock`` is the one re-entrant lock under which everything on the bus happens: accesses to registers and to memory,
    and, through `serialised`, the timers of devices. So a device model never runs twice at a time, on any runtime.
    """

    def __init__(self, memory: memoryview, frames: FrameAllocator) -> None:
        if frames.base != 0 or len(memory) != frames.pages * frames.page_size:
            raise ConfigurationError(
                f"this bus sees memory from address 0 on: give all {frames.pages * frames.page_size} bytes of "
                f"frames, not {len(memory)} bytes and base {frames.base:#x}"
            )
        self.memory = memory
        self.frames = frames
        self.lock = threading.RLock()
        self.barriers = 0
        self.watch: Watch | None = None  #: told of what masters do to memory
        self.messages: MessageController | None = None  #: takes interrupts by message, which are no access to memory
        self.way: Callable[[int], str] = lambda address: "direct"  #: which of WAYS a bus address goes
        self.masters: dict[str, BusMaster] = {}  #: by name

    def add_master(self, name: str, route: Route) -> BusMaster:
        """A new bus master, whose addresses go by `route`. ConfigurationError if the name is taken."""
        with self.lock:
            if name in self.masters:
                raise ConfigurationError(f"the bus has a master {name!r} already: give each device a name of its own")
            master = self.masters[name] = BusMaster(name, self, route)
            return master

    def serialised(self, fn: Callable[[], object]) -> Callable[[], object]:
        """`fn`, to be called under the bus's lock: wrap a device's timer with it."""

        def call() -> object:
            with self.lock:
                return fn()

        return call

    def statistics(self) -> dict[str, MasterStatistics]:
        """The counts of every master, by name."""
        return {name: master.statistics() for name, master in self.masters.items()}

    def traffic(self, name: str) -> DataTraffic:
        """What the master `name` has done to data, and by which mechanisms it was brought there."""
        master = self.masters[name]
        counts = master.statistics()
        with self.lock:
            ways = "+".join(way for way in WAYS if way in master._ways)
        return DataTraffic(counts["data_accesses"], counts["data_bytes"], ways)
