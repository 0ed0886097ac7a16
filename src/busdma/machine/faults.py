"""How the faults of an IOMMU reach the maps that they hit.

A device learns little of what an IOMMU refuses it: a write is posted and lost, a read brings nothing, and many a device
reports success. Only the IOMMU knows. So before a map's transfer counts as over, at its POST sync, the machine asks the
IOMMU what it has refused, finds out whose that was, and has the sync of the map that was hit raise DeviceFault. Nothing
has been copied then, and the map is still loaded: its driver reports it idle, unloads it, and ends the request so.

What hit no loaded map is told by the next POST sync of the same device: something of it has gone astray, and its data
are not to be trusted. Control memory (`busdma.memory.DmaMemory`) is only told what hit it: it belongs to no request.
Where faults were lost, because an IOMMU records few, whatever was under way and may have been hit is told so.

Source: PCI Express Base Specification 3.0, 2.4.1 (posted requests have no completion); Intel, VT-d Architecture
Specification 2.x, 7.2.1, and Arm, IHI 0070, 7.4 (faults that are merged, and lost).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from busdma.errors import DeviceFault, MapStateError
from busdma.instrument import Instrument
from busdma.lifecycle import State
from busdma.machine.whose import Whose
from busdma.memory import DmaMemory
from busdma.sync import POSTREAD, POSTWRITE, Direction, SyncOp
from busdma.translators import HardwareFault

if TYPE_CHECKING:
    from busdma.domain import DmaDomain
    from busdma.map import Map

KEPT: Final = 64  #: faults in the log
FORMER: Final = 64  #: unloads that are remembered
MOST: Final = 1024  #: records that are taken from a unit at once: it may go on recording
_POST: Final = POSTREAD | POSTWRITE
_ADVICE: Final = "give the device no addresses but the segments of a loaded map"


class FaultUnit(Protocol):
    """What records faults: an IOMMU, as its software sees it."""

    def pending(self) -> bool:
        """Whether there is a fault to take. Asked at every POST sync."""

    def take_fault(self) -> HardwareFault | None:
        """The oldest that nobody has taken; the last one is followed by None."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An access, or several of one kind in one page, that an IOMMU refused. As a string: all that is known of it."""

    device: str  #: its name; more than one, with ``or``, where the IOMMU cannot tell
    address: int  #: a bus address: the first that was recorded
    write: bool | None
    code: int | None  #: the hardware's own word for why
    times: int  #: how often it was recorded
    tag: str | None  #: path of the tag, and name of the map, that was hit; None: no loaded one
    map: str | None
    text: str

    def __str__(self) -> str:
        return self.text


class _Watched:
    """A unit, as `FaultWatch.add` was told of it. `lost`: overflows that are known."""

    __slots__ = ("grain", "lost", "merges", "name", "overflows", "unit", "who")

    def __init__(
        self,
        unit: FaultUnit,
        who: Mapping[int | None, Sequence[str]],
        name: str,
        grain: int,
        merges: bool,
        overflows: Callable[[], int],
    ) -> None:
        self.unit, self.who, self.name, self.grain = unit, who, name, grain
        self.merges, self.overflows, self.lost = merges, overflows, 0


@dataclass(frozen=True, slots=True)
class _Former:
    """What a map of `device` had loaded, in pages."""

    device: str
    words: str
    pages: tuple[tuple[int, int], ...]


class FaultWatch(Instrument):
    """An instrument that tells the maps of `devices` what IOMMUs have refused.

    It must be the first instrument, for a sync that it ends has not happened. `each`: ask at every POST sync; without
    it, nobody is told of what has happened since the last `look`.
    """

    def __init__(self, domain: DmaDomain, devices: Collection[str], *, each: bool = True) -> None:
        self.log: deque[Fault] = deque(maxlen=KEPT)  #: oldest first
        self._domain = domain
        self._device = Whose(devices).device
        self._each = each
        self._page = domain.page_size
        self._watched: list[_Watched] = []
        self._hits: dict[Map, Fault] = {}  # what the next POST sync of the map raises
        self._astray: dict[str, Fault] = {}  # the same of any map of the device
        self._former: deque[_Former] = deque(maxlen=FORMER)
        self._records = self._faults = 0
        self._lock = threading.Lock()

    def add(
        self,
        unit: FaultUnit,
        who: Mapping[int | None, Sequence[str]],
        *,
        name: str,
        grain: int = 1,
        merges: bool = False,
        overflows: Callable[[], int] = int,
    ) -> None:
        """Ask `unit`, called `name`, from now on.

        `who`: the names of the devices whose requests carry a source id; for None, of those that it may be if the unit
        does not say. `grain`: the unit tells addresses down to multiples of it. `merges`: it may record one fault of a
        device for many. `overflows`: how often it has lost faults of anybody.
        """
        self._watched.append(_Watched(unit, who, name, grain, merges, overflows))

    def look(self) -> None:
        """Take what the units have recorded. Errors are the units' own."""
        for watched in self._watched:
            if watched.unit.pending():
                with self._lock:
                    self._take(watched)

    def statistics(self) -> dict[str, int]:
        """`faults`: that were told and logged; `dropped`: that the log has no more; `records`: that hardware made of
        them; `overflows`: how often hardware lost some.
        """
        with self._lock:
            return {
                "faults": self._faults,
                "dropped": self._faults - len(self.log),
                "records": self._records,
                "overflows": sum(watched.lost for watched in self._watched),
            }

    # -- Instrument ---------------------------------------------------------------------------------------------------

    def syncing(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        """See `busdma.instrument.Instrument.syncing`. DeviceFault: see the module's text."""
        if not op & _POST:
            return
        control = _is_control(map)
        if self._each and not control:
            self.look()
        if not self._hits and not self._astray:
            return
        with self._lock:
            fault = self._hits.pop(map, None)
            if not control:
                astray = self._astray.pop(self._device(map.tag), None)
                fault = fault or astray
        if fault is not None:
            words = f"{fault.text}. What was moved for {map.describe()} is not to be trusted"
            raise DeviceFault(words, fault.address).about(tag=map.tag.path, map=map.name)

    def unloading(self, map: Map) -> None:
        """See `busdma.instrument.Instrument.unloading`. Who does not sync is told nothing."""
        device = self._device(map.tag)
        if device:
            self._former.append(_Former(device, map.describe(), tuple(self._pages(map))))
        self._hits.pop(map, None)

    def idled(self, map: Map) -> None:
        """See `busdma.instrument.Instrument.idled`."""
        self._hits.pop(map, None)

    # -- inside, under the lock ---------------------------------------------------------------------------------------

    def _take(self, watched: _Watched) -> None:
        found: dict[tuple[object, ...], tuple[HardwareFault, int]] = {}
        for _ in range(MOST):
            fault = watched.unit.take_fault()
            if fault is None:
                break
            self._records += 1
            kind = fault.source, fault.write, fault.code, fault.address // self._page
            first, times = found.get(kind, (fault, 0))
            found[kind] = first, times + 1
        told = [self._tell(watched, fault, times) for fault, times in found.values()]
        overflows = watched.overflows()
        if overflows > watched.lost:
            watched.lost = overflows
            everybody = {name for names in watched.who.values() for name in names}
            self._suspect(everybody, watched, told)
        elif watched.merges:
            sources = {each.source for each, _ in found.values()}
            self._suspect({name for each in sources for name in watched.who.get(each, ())}, watched, told)

    def _tell(self, watched: _Watched, fault: HardwareFault, times: int) -> Fault:
        """Log a fault, and see that it will be raised where it belongs."""
        names = watched.who.get(fault.source, ())
        hit, where = self._place(names, fault)
        device = self._device(hit.tag) if hit is not None else " or ".join(names) or _unknown(fault.source)
        what = {True: "a write to", False: "a read of", None: "an access to"}[fault.write]
        at = "bus address" if watched.grain < self._page else "the page at bus address"
        text = f"the {watched.name} refused {device} {what} {at} {fault.address:#x}: {where}"
        tag, name = (None, None) if hit is None else (hit.tag.path, hit.name)
        told = Fault(device, fault.address, fault.write, fault.code, times, tag, name, text)
        self._faults += 1
        self.log.append(told)
        if hit is not None:
            self._hits.setdefault(hit, told)
        else:
            for each in names:
                self._astray.setdefault(each, told)
        return told

    def _suspect(self, names: Collection[str], watched: _Watched, told: Sequence[Fault]) -> None:
        """Not all faults of `names` are known: what was under way may have been hit."""
        known = f", the last known being this: {told[-1].text}" if told else ""
        for map in self._loaded(names):
            spans = _spans(map)
            if map.device_may_own is None or _is_control(map) or map in self._hits or not spans:
                continue
            device = self._device(map.tag)
            text = f"the {watched.name} lost faults while {map.describe()} was under way{known}"
            address = told[-1].address if told else spans[0][0]
            self._hits[map] = Fault(device, address, None, None, 0, map.tag.path, map.name, text)

    def _place(self, names: Collection[str], fault: HardwareFault) -> tuple[Map | None, str]:
        """The loaded map that was hit, and where that is in words."""
        address = fault.address
        nearest: tuple[int, str, str] | None = None
        for map in self._loaded(names):
            for (lo, hi), (first, end) in zip(self._pages(map), _spans(map), strict=False):
                if lo <= address < hi:
                    return map, _why(map, fault)
                far, side = (first - address, "before") if address < first else (address - end, "behind")
                if nearest is None or far < nearest[0]:
                    nearest = far, side, map.describe()
        for former in reversed(tuple(self._former)):  # other threads unload meanwhile
            if former.device in names and any(lo <= address < hi for lo, hi in former.pages):
                return None, f"{former.words} had it until it was unloaded; unload when the device has finished"
        if nearest is None:
            return None, f"nothing is loaded for it; {_ADVICE}"
        far, side, words = nearest
        distance = f"{far} bytes {side}" if far > 0 else f"right {side}"
        return None, f"that is {distance} {words}, the nearest that is loaded; {_ADVICE}"

    def _loaded(self, names: Collection[str]) -> Iterator[Map]:
        for map in self._domain.maps():
            if map.state is State.LOADED and self._device(map.tag) in names:
                yield map

    def _pages(self, map: Map) -> Iterator[tuple[int, int]]:
        """The whole pages around each segment."""
        page = self._page
        for first, end in _spans(map):
            yield first // page * page, -(-end // page) * page


def _spans(map: Map) -> list[tuple[int, int]]:
    try:
        return [(int(address), int(address) + length) for address, length in map.segments]
    except MapStateError:  # another thread has just unloaded it
        return []


def _is_control(map: Map) -> bool:
    return isinstance(map.buffer, DmaMemory) and map.buffer.dma_map is map


def _why(map: Map, fault: HardwareFault) -> str:
    """Why it was refused, though it is in a loaded map."""
    words = f"that is in {map.describe()}, which "
    if fault.write and map.direction is Direction.TO_DEVICE:
        return f"{words}is loaded to the device only; load it both ways"
    if fault.write is False and map.direction is Direction.FROM_DEVICE:
        return f"{words}is loaded from the device only; load it both ways"
    return f"{words}the hardware does not find; that is no mistake of the driver, but of the machine's software"


def _unknown(source: int | None) -> str:
    if source is None:
        return "a device"
    return f"the device at {source >> 8:02x}:{source >> 3 & 0x1F:02x}.{source & 7} on PCI"
