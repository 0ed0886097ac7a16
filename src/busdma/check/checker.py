"""The checker itself: it sees what maps and devices do, keeps the two sides of memory apart, and says what was wrong.

It stands in three places. As the machine's `Coherence` it makes every load, also one that lies where it is, go through
a holder that can tell where the bytes are. As an `Instrument` it knows what each map does, and has bytes moved at each
sync. As the `Watch` of a bus it sees which bytes devices use.

What it reports is told in `findings`; what it can only turn into poison, it turns into poison.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from busdma.buffers import Buffer
from busdma.check.bus import BusPages
from busdma.check.callers import caller
from busdma.check.findings import Finding, Findings, Kind
from busdma.check.leaks import leaks
from busdma.check.lines import Lines
from busdma.check.loads import Load, Loads, Span, hull, merged
from busdma.check.movements import Movements
from busdma.check.sealed import Sealed
from busdma.check.sides import Sides
from busdma.check.traffic import Traffic
from busdma.errors import DriverError, MapStateError, SyncError
from busdma.lifecycle import State
from busdma.lists import as_loadable, linear_parts
from busdma.map import Map
from busdma.mechanisms.placement import Placement
from busdma.memory import DmaMemory
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp

if TYPE_CHECKING:
    from busdma.domain import DmaDomain

_PRE: Final = PREREAD | PREWRITE


class Checker:
    """For one machine. `cpu`, `device`: the two sides of its memory, from physical address `base` on.

    `line`: bytes of a cache line where the machine has caches that DMA does not see; 1 elsewhere. `sees_devices`: it is
    told of what devices do; otherwise it only keeps the two sides apart.
    """

    def __init__(
        self, cpu: memoryview, device: memoryview, *, base: int = 0, line: int = 1, sees_devices: bool = True
    ) -> None:
        self.line = line
        self.sees_devices = sees_devices
        self.findings = Findings()
        self._sides = Sides(cpu, device, base)
        self._lock = threading.RLock()
        self._by_map: dict[Map, Load] = {}
        self._asked: dict[Map, tuple[Buffer | None, str]] = {}  # where a load that waits was asked for
        self._domain: DmaDomain | None = None
        self._attached(4096)

    def attach(self, domain: DmaDomain) -> None:
        """Watch the maps of `domain`. Once."""
        self._domain = domain
        self._attached(domain.page_size)
        domain.instruments.append(self)

    def _attached(self, page: int) -> None:
        self._loads = Loads(page)  # by physical address: what devices may reach
        self._clients = Loads(page)  # by address in this process: what was bounced, where the CPU has it
        self._movements = Movements(self._sides, self._loads, self.report, live=not self.sees_devices)
        self._lines = Lines(self._sides, self.line, self.report)
        self._pages = BusPages(page)
        self._traffic = Traffic(self._loads, self._pages, self.report)

    # -- Instrument ---------------------------------------------------------------------------------------------------

    def loaded(self, map: Map) -> None:
        """See `Instrument.loaded`."""
        holder, buffer = map.holder, map.buffer
        assert isinstance(holder, Placement)
        assert buffer is not None
        size = buffer.length
        wanted, where = self._asked.pop(map, (None, ""))
        memory = buffer if isinstance(buffer, DmaMemory) else None
        load = Load(
            map,
            map.tag.path,
            map.name,
            _owner(buffer),
            where if wanted is buffer else caller(),  # or that wait was given up, and this is another load
            map.direction,
            merged(Span(*each) for each in holder.direct()),
            holder.copied(),
            bytearray(size),
            bytearray(size),
            bytearray(size),
            memory is not None and memory.dma_map is map,
            memory is not None and memory.coherent,
        )
        with self._lock:
            self._look_for_overlaps(load)
            spans = load.spans()
            for span in spans:
                if not self._loads.within(span.address, span.size):
                    self._sides.spoil(span.address, span.size, cpu=False)
            self._by_map[map] = load
            self._loads.add(load, spans)
            self._clients.add(load, self._movements.clients(load))
            if (translator := holder.translator) is not None:
                self._pages.add(load, translator, map.segments)

    def deferred(self, map: Map) -> None:
        """See `Instrument.deferred`."""
        self._asked[map] = map.buffer, caller()

    def syncing(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        """See `Instrument.syncing`."""
        load = self._by_map.get(map)
        if load is None:
            return
        end = offset + length
        with self._lock:
            if self._lines.concern(load):
                self._lines.before(load, offset, end)
            if op & _PRE:
                self._movements.before_pre(load, op, offset, end)
                return
            if op & POSTREAD and (missing := hull(load.writable, 0, offset, end)):
                self.report(Kind.POST_WITHOUT_PRE, load, missing, "POSTREAD without PREREAD", noticed=True)
            if op & POSTWRITE and (missing := hull(load.readable, 0, offset, end)):
                self.report(Kind.POST_WITHOUT_PRE, load, missing, "POSTWRITE without PREWRITE", noticed=True)
            self._movements.post(load, op, offset, end)

    def synced(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        """See `Instrument.synced`."""
        load = self._by_map.get(map)
        if load is None:
            return
        with self._lock:
            if op & _PRE:
                self._movements.pre(load, op, offset, offset + length)
            if self._lines.concern(load):
                self._lines.after(load, offset, offset + length)

    def unloading(self, map: Map) -> None:
        """See `Instrument.unloading`."""
        with self._lock:
            load = self._by_map.get(map)
            if load is None:
                return
            readable, writable = hull(load.readable, 1, 0, load.size), hull(load.writable, 1, 0, load.size)
            if readable or writable:
                lo, hi = (min(each) for each in zip(*filter(None, (readable, writable)), strict=True))
                hi = max(span[1] for span in (readable, writable) if span)
                alone = readable is None and load.written.find(1) >= 0 and load.direction is Direction.BOTH
                self.report(Kind.MISSING_POSTREAD if alone else Kind.MISSING_POST, load, (lo, hi), noticed=True)
                self._movements.lose(load)
            self._forget(map, load)

    def quarantined(self, map: Map) -> None:
        """See `Instrument.quarantined`."""

    def idled(self, map: Map) -> None:
        """See `Instrument.idled`: the device has finished, and everything is the CPU's."""
        with self._lock:
            load = self._by_map.get(map)
            if load is not None:
                self._movements.restore(load)
                load.shared.clear()
                if map.state is State.QUARANTINED:
                    self._forget(map, load)

    def refused(self, map: Map | None, error: DriverError) -> None:
        """See `Instrument.refused`."""
        kind = Kind.STATE if isinstance(error, (MapStateError, SyncError)) else Kind.FREED_WHILE_LOADED
        with self._lock:
            if map is None:  # the message says which map is in the way
                map = next((map for map in self._by_map if map.describe() in str(error)), None)
            load = None if map is None else self._by_map.get(map)
        found = Finding(kind, f"{kind.value} ({error})", noticed=caller())
        found.tag, found.map = (error.tag, error.map) if map is None else (map.tag.path, map.name)
        if load is not None:
            found.owner, found.where = load.owner, load.where
        self.findings.add(found)

    # -- Coherence ----------------------------------------------------------------------------------------------------

    def to_device(self, address: int, length: int) -> None:
        """See `busdma.mechanisms.coherence.Coherence`: done around the sync, where it is known whose bytes they are."""

    def to_cpu(self, address: int, length: int, written: bool) -> None:
        """See `busdma.mechanisms.coherence.Coherence`."""

    # -- Watch --------------------------------------------------------------------------------------------------------

    def before_read(self, address: int, length: int, master: str) -> None:
        """See `busdma.machine.ram.Watch`."""
        with self._lock:
            self._traffic.used(address, length, master, False)

    def after_write(self, address: int, length: int, master: str) -> None:
        """See `busdma.machine.ram.Watch`."""
        with self._lock:
            self._traffic.used(address, length, master, True)

    def unanswered(self, address: int, length: int, master: str) -> None:
        """See `busdma.machine.ram.Watch`."""
        with self._lock:
            self._traffic.unanswered(address, length, master)

    def stale(self) -> None:
        """The device's next access goes by a translation that hardware still caches, and the table no longer has."""
        self._traffic.stale = True

    # -- for upper layers ---------------------------------------------------------------------------------------------

    def seal(self, data: object) -> Sealed:
        """`data`, anything that can be loaded, as a driver should be given it that is to pass it on."""
        return data if isinstance(data, Sealed) else Sealed(as_loadable(data, self._loads.page), self._looked)

    def close(self) -> None:
        """The machine is switched off: what is still held is a leak."""
        if self._domain is not None:
            with self._lock:
                found = list(leaks(self._domain, self._by_map))
            for finding in found:
                self.findings.add(finding)

    def report(
        self,
        kind: Kind,
        load: Load | None,
        span: tuple[int, int] | None = None,
        what: str = "",
        *,
        device: str | None = None,
        other: str | None = None,
        noticed: bool = False,
    ) -> None:
        """Add a finding about bytes [lo, hi) of a load. `noticed`: by a call of the program's that is being made."""
        found = Finding(kind, f"{kind.value} ({what})" if what else kind.value, device=device, other=other)
        if load is not None:
            found.tag, found.map, found.owner, found.where = load.tag, load.name, load.owner, load.where
        if span is not None:
            found.offset, found.length = span[0], span[1] - span[0]
        if noticed:
            found.noticed = caller()
        self.findings.add(found)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _looked(self, data: Buffer) -> None:
        self.findings.add(Finding(Kind.SIM_READ, Kind.SIM_READ.value, owner=_owner(data), noticed=caller()))

    def _forget(self, map: Map, load: Load) -> None:
        del self._by_map[map]
        load.ended = True
        self._loads.end(load, load.spans(), remember=True)
        self._clients.end(load, self._movements.clients(load))

    def _look_for_overlaps(self, load: Load) -> None:
        """Bytes that another load has too, or that lie twice in this one; harmless if no device writes them."""
        if not self._by_map and len(load.direct) + len(load.copies) == 1:
            return
        line, mine = self.line, Loads(self._loads.page)
        for span in load.direct:
            first = span.address - span.address % line
            length = -(-(span.address + span.size) // line) * line - first
            for part in (*self._loads.within(first, length), *mine.within(first, length)):
                self._overlap(load, part.load, span.offset, part.size)
            mine.add(load, (span,))
            if self._clients:
                for part in self._clients.within(self._movements.in_process(span.address), span.size):
                    self._overlap(load, part.load, span.offset, part.size)
        twice = Loads(self._loads.page)
        for span in self._movements.clients(load):
            physical = self._movements.in_memory(span.address)
            find = [partial(self._clients.within, span.address), partial(twice.within, span.address)]
            if physical is not None:
                find += [partial(self._loads.within, physical), partial(mine.within, physical)]
            for within in find:
                for part in within(span.size):
                    self._overlap(load, part.load, span.offset, part.size)
            twice.add(load, (span,))

    def _overlap(self, load: Load, other: Load, offset: int, length: int) -> None:
        if load.standing or other.standing:
            return  # at different times they may: the syncs will tell
        if load.direction is not Direction.TO_DEVICE or other.direction is not Direction.TO_DEVICE:
            self.report(Kind.OVERLAP, load, (offset, offset + length), other=other.describe())


def _owner(buffer: Buffer) -> str | None:
    """Whose memory a buffer is; several owners' with a plus sign."""
    owners = [getattr(part, "owner", None) for part in linear_parts(buffer)]
    return "+".join(dict.fromkeys(filter(None, owners))) or None
