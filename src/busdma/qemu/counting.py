"""What devices did to data, counted at the maps: there is nobody at QEMU's buses who could count there.

A transfer counts when its driver says that it is over, by POSTREAD or POSTWRITE. So these numbers are what drivers say
of maps; that the bytes really went is for whoever compares them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from busdma.errors import DriverError
from busdma.instrument import Instrument
from busdma.machine.machine import DataTraffic, Device
from busdma.machine.whose import Whose
from busdma.map import Map
from busdma.memory import DmaMemory
from busdma.sync import POSTREAD, POSTWRITE, SyncOp

_POST = POSTREAD | POSTWRITE
_WAYS = ("direct", "window", "remap", "bounce")


class _Count:
    __slots__ = ("bytes", "segments", "ways")

    def __init__(self) -> None:
        self.bytes = self.segments = 0
        self.ways: set[str] = set()


class Counting(Instrument):
    """An instrument that counts what the maps of each of `devices` moved."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = devices
        self._counts: defaultdict[str, _Count] = defaultdict(_Count)
        self._device = Whose(devices).device

    def traffic(self, device: str) -> DataTraffic:
        """What was counted for `device`. DriverError: there is none of this name."""
        if device not in self._devices:
            raise DriverError(f"there is no device {device!r}; there are: {', '.join(sorted(self._devices))}")
        count = self._counts[device]
        return DataTraffic(count.segments, count.bytes, "+".join(way for way in _WAYS if way in count.ways))

    def synced(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        """See `busdma.instrument.Instrument.synced`."""
        if not op & _POST or isinstance(map.buffer, DmaMemory):
            return
        count = self._counts[self._device(map.tag)]
        count.bytes += length
        at = 0
        for address, size in map.segments:
            if at < offset + length and offset < at + size:
                count.segments += 1
                self._note(count, map, int(address), size)
            at += size

    def _note(self, count: _Count, map: Map, address: int, size: int) -> None:
        bounced = map.segmenter.nheld > 0
        for route in map.tag.routes:
            if not route.span.covers(address, address + size - 1):
                continue
            if route.pool is not None:
                count.ways.add("remap")
            elif not bounced or self._own(map, address - route.shift, size):
                count.ways.add(route.name)
            break
        if bounced:
            count.ways.add("bounce")

    def _own(self, map: Map, physical: int, size: int) -> bool:
        owner_of = map.tag.domain.frames.owner_of
        return owner_of(physical) != "bounce" or owner_of(physical + size - 1) != "bounce"
