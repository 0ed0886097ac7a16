"""What the NVMe driver keeps of a namespace, and of a command under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from busdma.drivers import host
from busdma.drivers.nvme.queue import QueuePair
from busdma.drivers.queues import Channel, RequestQueue

if TYPE_CHECKING:
    from busdma.map import Map
    from busdma.memory import DmaMemory


class Unit(host.Unit):
    """A namespace, with its requests, its pair of queues, and the slots that it may use."""

    __slots__ = ("crowded", "nsid", "pair")

    def __init__(self, nsid: int, queue: RequestQueue, pair: QueuePair) -> None:
        super().__init__(queue, Channel(f"a command slot of {queue.name}"))
        self.nsid, self.pair = nsid, pair
        self.crowded = True  #: several contexts may have requests for it


class Slot(host.Slot[Unit]):
    """One command's place in a pair of queues: its identifier, a map for its data, places for its PRP lists."""

    __slots__ = ("id", "lists", "offset", "places", "prps", "status")

    def __init__(self, unit: Unit, id: int, data: Map, lists: DmaMemory, offset: int, places: list[int]) -> None:
        """Its PRP lists are at `offset` of `lists`, on the bus at `places`."""
        super().__init__(data)
        self.unit, self.id = unit, id
        self.lists, self.offset, self.places = lists, offset, places

    def clear(self) -> None:
        """Carry nothing."""
        self.request = self.loaded = self.abort = None
        self.told = self.resting = False
        self.prps = (0, 0)
        self.status = 0  #: with which it completed

    def give(self) -> None:
        """The controller gets it: nothing is known of this try yet."""
        self.resting, self.told, self.status = False, True, 0
