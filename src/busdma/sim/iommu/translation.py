"""What all simulated translation hardware has in common: a cache that goes stale, a log of faults, the way through it.

The hardware is asked what becomes of a burst, piece by piece, and answers with a physical address or with nobody. What
is not mapped, or lacks the right, is answered by nobody: reads give ones, writes vanish, and the fault is logged. No
device model ever sees more of it than that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, Generic, Literal, TypeAlias, TypedDict, TypeVar

from busdma.errors import ConfigurationError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

KEPT: Final = 256  #: faults that a log remembers one by one; all are counted

Pieces: TypeAlias = Iterator[tuple[int | None, int]]  #: as those of `busdma.sim.bus.master.Route`
Onward: TypeAlias = Callable[[int, int, bool], Pieces]  #: (physical address, length, write) to pieces


class IotlbStatistics(TypedDict):
    """Look-ups that hit and missed; entries that made room for others, and that software had dropped."""

    hits: int
    misses: int
    evicted: int
    flushed: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An access that was not translated. `address` is the bus address of its first byte that went nowhere."""

    master: str
    address: int
    write: bool
    reason: str


class FaultLog:
    """The faults of one translation unit, newest last, and how many each master had."""

    def __init__(self, keep: int = KEPT) -> None:
        self._recent: deque[Fault] = deque(maxlen=keep)
        self._counts: Counter[str] = Counter()

    def record(self, fault: Fault) -> None:
        """Add a fault; the oldest is forgotten when there are too many."""
        self._recent.append(fault)
        self._counts[fault.master] += 1

    @property
    def recent(self) -> tuple[Fault, ...]:
        """The last faults, in order."""
        return tuple(self._recent)

    def statistics(self) -> dict[str, int]:
        """All faults ever, by master."""
        return dict(self._counts)


class Iotlb(Generic[K, V]):
    """A cache of `entries` translations that knows nothing of memory: an entry answers until dropped or evicted.

    Which entry makes room is drawn from `seed`; without one it is the oldest.
    """

    def __init__(self, entries: int, seed: int | None = None) -> None:
        if entries < 1:
            raise ConfigurationError(f"a cache of {entries} translations: give it room for at least one")
        self.capacity: Final = entries
        self._entries: dict[K, V] = {}
        self.stale: Callable[[], object] | None = None  #: told of an answer that the table would no longer give
        self._random = None if seed is None else Random(seed)
        self._counts: IotlbStatistics = {"hits": 0, "misses": 0, "evicted": 0, "flushed": 0}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """What is cached for `key`, however old."""
        found = self._entries.get(key)
        self._counts["misses" if found is None else "hits"] += 1
        return found

    def put(self, key: K, value: V) -> None:
        """Cache `value`; another entry makes room if none is free."""
        entries = self._entries
        if key not in entries and len(entries) >= self.capacity:
            # random() alone is the same on every Python version
            at = 0 if self._random is None else int(self._random.random() * len(entries))
            victim = next(iter(entries)) if at == 0 else list(entries)[at]
            del entries[victim]
            self._counts["evicted"] += 1
        entries[key] = value

    def drop(self, key: K) -> None:
        """Forget the entry, if there is one."""
        if self._entries.pop(key, None) is not None:
            self._counts["flushed"] += 1

    def drop_if(self, wanted: Callable[[K, V], bool]) -> None:
        """Forget the entries of which ``wanted(key, value)`` is true."""
        for key in [key for key, value in self._entries.items() if wanted(key, value)]:
            self.drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._counts["flushed"] += len(self._entries)
        self._entries.clear()

    def statistics(self) -> IotlbStatistics:
        """See `IotlbStatistics`."""
        return self._counts.copy()


class Translation(ABC):
    """Hardware between masters and memory. The bus's lock is held in all calls."""

    def route(self, master: str, onward: Onward | None = None) -> TranslatedRoute:
        """The way of a master, for `busdma.sim.bus.master.MasterBus`; its ``pieces`` can be a bus's upstream."""
        return TranslatedRoute(master, self, onward)

    @abstractmethod
    def span(self, master: str, address: int, length: int, write: bool) -> tuple[int | None, int]:
        """Where a burst of `length` bytes (at least 1) goes from bus address `address` on.

        (physical address of the first byte, or None: nobody answers; how many of the bytes go the same way: at least 1)
        """


class TranslatedRoute:
    """The way of `master` through `unit`: a `busdma.sim.bus.master.Route`.

    `onward` says what is at a physical address; without it, memory is all there is.
    """

    def __init__(self, master: str, unit: Translation, onward: Onward | None = None) -> None:
        self._master = master
        self._unit = unit
        self._onward = onward

    def pieces(self, address: int, length: int, write: bool) -> Pieces:
        """As `Route.pieces`."""
        while length > 0:
            at, count = self._unit.span(self._master, address, length, write)
            if at is None or self._onward is None:
                yield at, count
            else:
                yield from self._onward(at, count, write)
            address += count
            length -= count

    def wraps(self, address: int, length: int) -> bool:
        """As `Route.wraps`: what the hardware does not translate is a fault, and no address loses bits."""
        return False


def table_entry(memory: memoryview, address: int, size: int, order: Literal["little", "big"]) -> int | None:
    """The `size` bytes at a physical address, as the hardware reads its tables; None beyond memory, which is at 0."""
    if address < 0 or address + size > len(memory):
        return None
    return int.from_bytes(memory[address : address + size], order)
