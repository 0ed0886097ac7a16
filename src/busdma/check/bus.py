"""Whose a bus address is, or lately was: for accesses that a translator has refused, so that they never reach memory.

Without a translator a late access touches memory, and is held against what is loaded there. Behind one it goes nowhere,
and all there is to go by is the address that the device used. Each translator may have addresses of its own; which one
a device is behind is known by its name, a part of its tags' paths.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from busdma.check.loads import REMEMBERED, Load
from busdma.mechanisms.translation import Translator


class BusPages:
    """Pages of `page` bytes behind translators. The caller holds the checker's lock."""

    def __init__(self, page: int) -> None:
        self._page = page
        self._last: OrderedDict[tuple[Translator, int], Load] = OrderedDict()
        self._translators: dict[Translator, None] = {}

    def add(self, load: Load, translator: Translator, segments: Iterable[tuple[int, int]]) -> None:
        """It lies at these segments, (bus address, length), behind `translator`."""
        page, last = self._page, self._last
        self._translators[translator] = None
        for address, length in segments:
            for number in range(address // page, (address + length - 1) // page + 1):
                last[translator, number] = load
                last.move_to_end((translator, number))
        while len(last) > REMEMBERED:
            last.popitem(last=False)

    def last(self, address: int, master: str) -> Load | None:
        """The load that has the page at `address`, where `master` means it, or the last one that had it."""
        number = address // self._page
        found = [load for each in self._translators if (load := self._last.get((each, number))) is not None]
        if len(self._translators) > 1:
            found = [load for load in found if master in load.tag.split("/")]
        return found[0] if len(found) == 1 else None
