"""Translation hardware: a table, a cache of it that really goes stale, and what a device sees through both."""

from __future__ import annotations

from collections.abc import Sequence

from busdma.addresses import AddressSet
from busdma.sync import Direction

PAGE = 4096


class FakeTranslator:
    """Page numbers to frames. A device's access caches an entry; only `flush` makes the hardware forget it."""

    name = "fake"
    page_size = PAGE
    reach = AddressSet.everything()
    prefetch = 0

    def __init__(self, *windows: tuple[int, int]) -> None:
        self.window = AddressSet((lo * PAGE, (hi + 1) * PAGE - 1) for lo, hi in windows)
        self.table: dict[int, tuple[int, Direction]] = {}
        self.cached: dict[int, tuple[int, Direction]] = {}
        self.log: list[tuple[str, int, int]] = []
        self.broken: set[str] = set()  #: calls that fail

    def enter(self, address: int, frames: Sequence[int], direction: Direction) -> None:
        self._called("enter", address, len(frames))
        for number, frame in enumerate(frames, address // PAGE):
            self.table[number] = (frame, direction)

    def clear(self, address: int, pages: int) -> None:
        self._called("clear", address, pages)
        for number in range(address // PAGE, address // PAGE + pages):
            del self.table[number]

    def flush(self, address: int, pages: int) -> None:
        self._called("flush", address, pages)
        for number in range(address // PAGE, address // PAGE + pages):
            self.cached.pop(number, None)

    def touch(self, number: int) -> tuple[int, Direction] | None:
        """A device's access to a bus page: where it goes."""
        if number not in self.cached and number in self.table:
            self.cached[number] = self.table[number]
        return self.cached.get(number)

    def visible(self, number: int) -> set[tuple[int, Direction]]:
        """Everything that an access to a bus page might reach."""
        return {each[number] for each in (self.table, self.cached) if number in each}

    def calls(self) -> list[tuple[str, int, int]]:
        """(what, page number, pages) since the last look."""
        log, self.log = self.log, []
        return log

    def _called(self, what: str, address: int, pages: int) -> None:
        assert address % PAGE == 0
        if what != "flush":  # a flush may go over a hole
            assert self.window.covers(address, address + pages * PAGE - 1)
        if what in self.broken:
            raise OSError(f"{what} timed out")
        self.log.append((what, address // PAGE, pages))
