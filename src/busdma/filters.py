"""Filters: addresses that a tag may reach only if its filter function does not object.

A filter belongs to its tag's exclusion window and is asked only about addresses inside it that every ancestor admits,
so it never readmits what an ancestor excludes. Where the windows of several tags overlap, all their filters are asked.

Source: Gibbs, tech-kern 10 June 1998, part 3 ("hey I may not be able to dma to an address in this range, but ask my
filter function first").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from busdma.addresses import AddressSet

#: ``filter(first, last)``: must the device avoid any bus address from `first` to `last`, both within one page?
#: It always answers the same of the same addresses, and takes no lock: that of the pools may be held when it is asked.
FilterFunction = Callable[[int, int], bool]


@dataclass(frozen=True, slots=True)
class Filter:
    """A tag's filter function."""

    avoids: FilterFunction
    origin: str

    def moved(self, by: int) -> Filter:
        """The same filter, asked about addresses that are `by` higher."""
        avoids = self.avoids
        return Filter(lambda first, last: avoids(first - by, last - by), self.origin) if by else self


@dataclass(frozen=True, slots=True)
class FilteredAreas:
    """Disjoint areas, each with the filters that must all be content with an address in it."""

    areas: tuple[tuple[AddressSet, tuple[Filter, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.areas)

    def without(self, hole: AddressSet) -> FilteredAreas:
        """The same without the addresses of `hole`."""
        return _areas((area - hole, filters) for area, filters in self.areas)

    def narrowed(self, window: AddressSet, moved: AddressSet, new: Filter) -> FilteredAreas:
        """`new` is asked about `window` too; `moved` is what it alone is asked about."""
        inside = [(area & window, (*filters, new)) for area, filters in self.areas]
        outside = [(area - window, filters) for area, filters in self.areas]
        return _areas([*inside, *outside, (moved, (new,))])

    def moved(self, span: AddressSet, by: int) -> FilteredAreas:
        """What lies in `span`, seen `by` higher; the functions are still asked about the addresses of their own bus."""
        return _areas(
            ((area & span).shifted(by), tuple(filter.moved(by) for filter in filters)) for area, filters in self.areas
        )

    def objector(self, lo: int, hi: int) -> Filter | None:
        """The first filter that objects to [lo, hi], which must lie in one area; None if none does."""
        for area, filters in self.areas:
            if area.covers(lo, hi):
                return next((each for each in filters if each.avoids(lo, hi)), None)
        raise LookupError(f"{lo:#x}..{hi:#x} is in no filtered area")

    def covers(self, lo: int, hi: int) -> bool:
        """True if [lo, hi] lies in one area."""
        return any(area.covers(lo, hi) for area, _ in self.areas)


def _areas(pairs: Iterable[tuple[AddressSet, tuple[Filter, ...]]]) -> FilteredAreas:
    return FilteredAreas(tuple((area, filters) for area, filters in pairs if area))
