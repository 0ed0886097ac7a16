"""A slot of the DES driver: control memory and the maps of one piece, and whose they are while the card is at it.

What is encrypted where it lies is loaded once, both ways: of two loads of the same bytes, each would give the card what
the other has taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from busdma.lifecycle import State

if TYPE_CHECKING:
    from busdma.map import Map


class Slot:
    """What one piece needs: control memory from `offset` on, and two maps."""

    __slots__ = ("address", "destination", "in_place", "offset", "source")

    def __init__(self, offset: int, address: int, source: Map, destination: Map) -> None:
        self.offset = offset
        self.address = address  # on the bus
        self.source = source
        self.destination = destination
        self.in_place = False  #: there is one buffer, in the map of the source, both ways

    @property
    def maps(self) -> tuple[Map, Map]:
        """Both."""
        return self.source, self.destination

    @property
    def used(self) -> Sequence[Map]:
        """Those that are loaded for the piece under way."""
        return (self.source,) if self.in_place else self.maps

    def give(self) -> None:
        """What is loaded is the card's."""
        for map in self.used:
            map.sync(map.direction.pre)

    def unload(self, given: bool) -> None:
        """Take back what was `given` to the card and is not in quarantine, and unload it."""
        for map in self.maps:
            if map.state is State.LOADED:
                if given:
                    map.sync(map.direction.post)
                map.unload()

    def quarantine(self) -> None:
        """The card may still be at it."""
        for map in self.used:
            map.quarantine()

    def report_idle(self) -> None:
        """The card has let go."""
        for map in self.maps:
            map.report_idle()
