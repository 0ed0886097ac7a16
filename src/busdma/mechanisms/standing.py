"""Translations that outlive their owner: marked free, with their page-table entries left in place.

Who loads the same page frames again, in the same direction, takes the same bus pages and writes no entry. A mapping is
known by its page frames for as long as its entries are there, whoever holds it: so that all of them can be found before
a frame changes owner. Nothing is to be done for that when a mapping is only taken and given back.

Source: Hannum, port-sparc 6 June 1995 ("mark it free, and let the PTEs hang around until someone else grabs them").
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from busdma.mechanisms.free_list import fits
from busdma.sync import Direction


class Key(NamedTuple):
    """What entries say: page frames by physical address, as the bytes of an ``array("Q")``, and which way."""

    frames: bytes
    direction: Direction

    @classmethod
    def of(cls, frames: Iterable[int], direction: Direction) -> Key:
        """Of page frames by physical address."""
        return cls(array("Q", frames).tobytes(), direction)


class Holding(Protocol):
    """Who holds bus pages, and can hold the same ones again."""

    mechanism: Any  #: whose limits they fulfil
    need: Any  #: the `IovaNeed`


class Mapping:
    """Bus pages whose entries are in place."""

    __slots__ = ("first", "forgotten", "holder", "key", "pages")

    def __init__(self, first: int, pages: int, key: Key) -> None:
        self.first = first
        self.pages = pages
        self.key = key
        self.holder: Holding | None = None  #: who held it last, if he can hold it again as he did
        self.forgotten = False  #: a frame of it changed owner while somebody held it: it must not stand


class Standing:
    """The mappings of one pool. It only knows them: clearing and flushing are the pool's."""

    __slots__ = ("_by_frame", "_by_key", "_oldest_first", "pages")

    def __init__(self) -> None:
        self.pages = 0  #: bus pages of all that stand
        self._oldest_first: OrderedDict[int, Mapping] = OrderedDict()  # those that stand, by first page
        self._by_key: dict[Key, list[Mapping]] = {}  # those that stand, latest last
        self._by_frame: dict[int, set[Mapping]] = {}  # all whose entries are in place, held or not

    def __len__(self) -> int:
        return len(self._oldest_first)

    def ranges(self) -> list[tuple[int, int]]:
        """(first, pages) of what stands, oldest first."""
        return [(each.first, each.pages) for each in self._oldest_first.values()]

    def enter(self, mapping: Mapping) -> None:
        """Its entries are written; somebody holds it."""
        for frame in memoryview(mapping.key.frames).cast("Q"):
            self._by_frame.setdefault(frame, set()).add(mapping)

    def keep(self, mapping: Mapping) -> None:
        """Its holder gave it back: it stands."""
        self._oldest_first[mapping.first] = mapping
        self._by_key.setdefault(mapping.key, []).append(mapping)
        self.pages += mapping.pages

    def find(self, key: Key, alignment: int, boundary: int, within: Sequence[tuple[int, int]] | None) -> Mapping | None:
        """The latest that stands for `key` and lies where it may; limits as in `IovaAllocator.allocate`."""
        for mapping in reversed(self._by_key.get(key, ())):
            if fits(mapping.first, mapping.pages, alignment, boundary, within):
                return mapping
        return None

    def latest(self, frames: bytes, direction: Direction) -> Mapping | None:
        """The latest that stands for a `Key` of these two, wherever it lies."""
        alike = self._by_key.get((frames, direction))  # type: ignore[call-overload]  # a Key is a tuple, and costs more
        return alike[-1] if alike else None

    def take(self, mapping: Mapping) -> None:
        """It no longer stands: somebody holds it again, or is about to clear its entries."""
        del self._oldest_first[mapping.first]
        alike = self._by_key[mapping.key]
        alike.remove(mapping)
        if not alike:
            del self._by_key[mapping.key]
        self.pages -= mapping.pages

    def oldest(self) -> Mapping:
        """What has stood longest."""
        return next(iter(self._oldest_first.values()))

    def naming(self, frames: Iterable[int]) -> tuple[list[Mapping], list[Mapping]]:
        """Mappings that name one of these page frames: those that stand, and those that are held."""
        if not self._by_frame:
            return [], []
        named = {mapping.first: mapping for frame in frames for mapping in self._by_frame.get(frame, ())}
        mappings = [named[first] for first in sorted(named)]
        stand = [each for each in mappings if each.first in self._oldest_first]
        return stand, [each for each in mappings if each.first not in self._oldest_first]

    def drop(self, mapping: Mapping) -> None:
        """Its entries go: it names no frame any more."""
        for frame in set(memoryview(mapping.key.frames).cast("Q")):
            known = self._by_frame[frame]
            known.remove(mapping)
            if not known:
                del self._by_frame[frame]
