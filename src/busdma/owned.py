"""Bytes that something may own, as the smallest range known to hold them all: what is put in widens it."""

from __future__ import annotations


class OwnedRange:
    """Bytes [lo, hi); none at first, and then both are 0."""

    __slots__ = ("hi", "lo")

    def __init__(self) -> None:
        self.lo = self.hi = 0

    def add(self, lo: int, hi: int) -> None:
        """It may own [lo, hi) too."""
        if not self.hi:
            self.lo, self.hi = lo, hi
        else:
            if lo < self.lo:
                self.lo = lo
            if hi > self.hi:
                self.hi = hi

    def remove(self, lo: int, hi: int) -> None:
        """It owns nothing of [lo, hi). What is taken from the middle leaves the range as it is."""
        if lo <= self.lo and self.hi <= hi:
            self.lo = self.hi = 0
        elif lo <= self.lo:
            self.lo = max(self.lo, hi)
        elif hi >= self.hi:
            self.hi = min(self.hi, lo)

    def clear(self) -> None:
        """It owns nothing."""
        self.lo = self.hi = 0
