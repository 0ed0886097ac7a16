"""The reference of ``busdma bench iova``: best fit from a sorted list, each free range joined with its neighbours.

It knows one window, no alignment and no boundary, checks nothing, and keeps nothing ready for whoever comes next.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

_SHIFT: Final = 32
_MASK: Final = (1 << _SHIFT) - 1


class BestFit:
    """Pages [0, `pages`)."""

    def __init__(self, pages: int) -> None:
        self._by_size = [pages << _SHIFT]  # pages and first of each free range
        self._sizes = {0: pages}  # pages by first
        self._firsts = {pages: 0}  # first by end

    def allocate(self, pages: int) -> int:
        """The first of `pages` adjacent pages; -1: there are none."""
        at = bisect_left(self._by_size, pages << _SHIFT)
        if at == len(self._by_size):
            return -1
        free = self._by_size.pop(at)
        first, size = free & _MASK, free >> _SHIFT
        del self._sizes[first], self._firsts[first + size]
        if size > pages:
            self._add(first + pages, size - pages)
        return first

    def free(self, first: int, pages: int) -> None:
        """Give a range back."""
        end = first + pages
        if first in self._firsts:
            before = self._firsts.pop(first)
            self._remove(before, self._sizes.pop(before))
            first = before
        if end in self._sizes:
            behind = self._sizes.pop(end)
            self._remove(end, behind)
            del self._firsts[end + behind]
            end += behind
        self._add(first, end - first)

    def _add(self, first: int, pages: int) -> None:
        self._sizes[first] = pages
        self._firsts[first + pages] = first
        insort(self._by_size, pages << _SHIFT | first)

    def _remove(self, first: int, pages: int) -> None:
        del self._by_size[bisect_left(self._by_size, pages << _SHIFT | first)]
