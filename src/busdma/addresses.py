"""Addresses that cannot be mixed up, and exact sets of them.

A *physical address* numbers a byte of memory; a *bus address* is what a device puts on its bus to reach it. They are
equal only on some machines, so they are two types, and mypy keeps them apart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NewType

PhysicalAddress = NewType("PhysicalAddress", int)
BusAddress = NewType("BusAddress", int)

MAX_ADDRESS: Final = (1 << 64) - 1  #: the highest address of the 64-bit space all sets live in


class AddressSet:
    """An exact, immutable set of addresses in [0, 2**64): a union of disjoint intervals, inclusive at both ends.

    >>> low = AddressSet.span(0, 0xFFFFFF)
    >>> hole = AddressSet.periodic(0xE0000, 0x4000, period=0x100000, within=low)
    >>> (low - hole).covers(0xE0000, 0xE0FFF), len(hole.intervals)
    (False, 16)
    """

    __slots__ = ("_starts", "intervals")

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self.intervals: Final[tuple[tuple[int, int], ...]] = _normalise(intervals)
        self._starts = [lo for lo, _ in self.intervals]

    @classmethod
    def span(cls, lo: int, hi: int) -> AddressSet:
        """The one interval from `lo` to `hi`, both included."""
        return cls(((lo, hi),))

    @classmethod
    def everything(cls) -> AddressSet:
        """All 64-bit addresses."""
        return cls(((0, MAX_ADDRESS),))

    @classmethod
    def periodic(cls, start: int, length: int, *, period: int, within: AddressSet) -> AddressSet:
        """Every [start + k*period, start + k*period + length) for k >= 0 that meets `within`, cut to it."""
        if length < 1 or period < length:
            raise ValueError(f"a periodic set needs 1 <= length <= period, not length {length:#x}, period {period:#x}")
        found: list[tuple[int, int]] = []
        for lo, hi in within.intervals:
            k = max(0, (lo - start - length) // period + 1)
            at = start + k * period
            while at <= hi:
                found.append((max(at, lo), min(at + length - 1, hi)))
                at += period
        return cls(pair for pair in found if pair[0] <= pair[1])

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.interval_at(address) is not None

    def interval_at(self, address: int) -> tuple[int, int] | None:
        """The interval that holds `address`, or None."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        interval = self.intervals[index]
        return interval if address <= interval[1] else None

    def covers(self, lo: int, hi: int) -> bool:
        """True if every address from `lo` to `hi`, both included, is in the set."""
        interval = self.interval_at(lo)
        return interval is not None and hi <= interval[1]

    def __and__(self, other: AddressSet) -> AddressSet:
        mine, theirs, found = self.intervals, other.intervals, []
        i = j = 0
        while i < len(mine) and j < len(theirs):
            lo, hi = max(mine[i][0], theirs[j][0]), min(mine[i][1], theirs[j][1])
            if lo <= hi:
                found.append((lo, hi))
            if mine[i][1] < theirs[j][1]:
                i += 1
            else:
                j += 1
        return AddressSet(found)

    def __or__(self, other: AddressSet) -> AddressSet:
        return AddressSet(self.intervals + other.intervals)

    def __invert__(self) -> AddressSet:
        found, at = [], 0
        for lo, hi in self.intervals:
            if at < lo:
                found.append((at, lo - 1))
            at = hi + 1
        if at <= MAX_ADDRESS:
            found.append((at, MAX_ADDRESS))
        return AddressSet(found)

    def __sub__(self, other: AddressSet) -> AddressSet:
        return self & ~other

    def __le__(self, other: AddressSet) -> bool:
        """True if this set is a subset of `other`."""
        return all(other.covers(lo, hi) for lo, hi in self.intervals)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AddressSet) and self.intervals == other.intervals

    def __hash__(self) -> int:
        return hash(self.intervals)

    def __bool__(self) -> bool:
        return bool(self.intervals)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.intervals)

    def shifted(self, by: int) -> AddressSet:
        """Every address `by` higher, or lower. ValueError if one would leave the 64-bit space."""
        return AddressSet((lo + by, hi + by) for lo, hi in self.intervals) if by else self

    def size(self) -> int:
        """How many addresses the set holds."""
        return sum(hi - lo + 1 for lo, hi in self.intervals)

    def __repr__(self) -> str:
        return f"AddressSet({self})"

    def __str__(self) -> str:
        if not self.intervals:
            return "nothing"
        shown = [f"{lo:#x}..{hi:#x}" for lo, hi in self.intervals[:4]]
        more = len(self.intervals) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")


def _normalise(intervals: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for lo, hi in sorted(intervals):
        if not 0 <= lo <= hi <= MAX_ADDRESS:
            raise ValueError(f"not an interval of 64-bit addresses: {lo:#x}..{hi:#x}")
        if merged and lo <= merged[-1][1] + 1:
            if hi > merged[-1][1]:
                merged[-1] = (merged[-1][0], hi)
        else:
            merged.append((lo, hi))
    return tuple(merged)
