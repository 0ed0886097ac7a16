"""How bytes go from the CPU's side of memory to the device's and back, at the syncs of a load.

What lies where it is has one address, and two sides. What was bounced has its client's copy besides: the placement
copies between that and the CPU's side of the bounce page, and here it goes on to the device's side. So there is
something to do before the placement copies, and something after it.

A client's copy that a device will write is poison, too, until it comes back. One that it only reads is left alone:
several maps may send it at the same time, and the host's bytes may not be writable; if it is not the same any more when
the device has finished, then the CPU wrote it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from busdma.check.findings import Kind, Report
from busdma.check.loads import Load, Loads, Part, Span, runs
from busdma.check.sides import Sides, poison, stored
from busdma.mechanisms.placement import Copied
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp


class Movements:
    """Between the two `sides`, of what is in `loads`. The caller holds the checker's lock."""

    def __init__(self, sides: Sides, loads: Loads, report: Report, *, live: bool = False) -> None:
        """`live`: devices run by themselves, and not only when nobody else does."""
        self._sides = sides
        self._live = live
        self._loads = loads
        self._report = report
        self._origin = _address(sides.cpu) or 0

    # -- addresses of clients' copies ---------------------------------------------------------------------------------

    def in_process(self, address: int) -> int:
        """Where this process has the CPU's side of a physical address."""
        return self._origin + address - self._sides.base

    def in_memory(self, address: int) -> int | None:
        """The physical address of what this process has at `address`; None if it is not the machine's."""
        at = address - self._origin
        return at + self._sides.base if 0 <= at < len(self._sides.cpu) else None

    def clients(self, load: Load) -> Iterator[Span]:
        """Where this process has what was bounced, as far as that can be known."""
        known: dict[int, int | None] = {}
        for copy in load.copies:
            which = id(copy.memory)
            if which not in known:
                known[which] = self._origin if copy.memory is self._sides.cpu else _address(copy.memory)
            if (start := known[which]) is not None:
                yield Span(copy.offset, copy.size, start + copy.origin)

    # -- PRE ----------------------------------------------------------------------------------------------------------

    def before_pre(self, load: Load, op: SyncOp, start: int, end: int) -> None:
        """Bytes [start, end) are about to be copied to bounce pages: have their client's copy right."""
        for copy in load.copies_within(start, end):
            for lo, hi, readable, writable in runs(load.readable, load.writable, copy.offset, copy.offset + copy.size):
                part = _part(copy, lo, hi)
                if readable or writable:
                    self._recall(load, part)
                elif copy.memory is self._sides.cpu:  # another device may have it, and only read it
                    at = self._sides.base + part.origin
                    for other in self._loads.within(at, hi - lo):
                        self._contend(load, op, part.offset, other)
                        if other.load.readable.find(1, other.offset, other.offset + other.size) >= 0:
                            self._sides.fetch(other.address, other.size, keep=True)
                            load.lent.append((other.address, other.size))

    def pre(self, load: Load, op: SyncOp, start: int, end: int) -> None:
        """PREREAD, PREWRITE: the bytes are the device's from here on."""
        for offset, size, address in load.direct_within(start, end):
            for lo, hi, readable, writable in runs(load.readable, load.writable, offset, offset + size):
                here, length = address + lo - offset, hi - lo
                if readable or writable:
                    if wrong := self._sides.stored(here, length):
                        self._wrote(load, lo + wrong[0], lo + wrong[-1] + 1)
                        self._sides.pass_on(here, wrong)
                    self._sides.spoil(here, length, cpu=True)
                else:
                    for at, count, theirs in self._theirs(load, lo, here, length, op):
                        if not theirs:
                            self._sides.give(at, count)
                self._mark(load, op, lo, hi)
        for copy in load.copies_within(start, end):
            self._sides.give(copy.address, copy.size)
            if load.direction is not Direction.TO_DEVICE:
                copy.memory[copy.origin : copy.origin + copy.size] = poison(copy.address, copy.size)
        self._mark(load, op, start, end)
        for address, length in load.lent:
            self._sides.spoil(address, length, cpu=True)
        load.lent.clear()

    # -- POST ---------------------------------------------------------------------------------------------------------

    def post(self, load: Load, op: SyncOp, start: int, end: int) -> None:
        """POSTREAD, POSTWRITE: the bytes are the CPU's again. The placement copies from bounce pages afterwards."""
        for offset, size, address in load.direct_within(start, end):
            for lo, hi, readable, writable in runs(load.readable, load.writable, offset, offset + size):
                here, length = address + lo - offset, hi - lo
                if not (readable or writable):
                    self._sides.spoil(here, length, cpu=True)  # fetched, though it was never given
                elif op & POSTREAD or not writable:
                    if wrong := self._sides.stored(here, length):
                        self._wrote(load, lo + wrong[0], lo + wrong[-1] + 1)
                    keep = bool(readable) and not op & POSTWRITE
                    for at, count, theirs in self._theirs(load, lo, here, length):
                        if self._live and load.standing:
                            self._sides.look(at, count)
                        else:
                            self._sides.fetch(at, count, keep or theirs)
                _taken_back(load, op, lo, hi)
        for copy in load.copies_within(start, end):
            for lo, hi, readable, writable in runs(load.readable, load.writable, copy.offset, copy.offset + copy.size):
                part = _part(copy, lo, hi)
                if not (readable or writable):
                    self._sides.spoil(part.address, part.size, cpu=True)
                elif op & POSTREAD or not writable:
                    self._recall(load, part)
                    self._sides.fetch(part.address, part.size, bool(readable) and not op & POSTWRITE)
        _taken_back(load, op, start, end)

    # -- the end ------------------------------------------------------------------------------------------------------

    def restore(self, load: Load) -> None:
        """The device was reported idle: the CPU gets back whatever it had."""
        for span in load.direct:
            for lo, hi, readable, writable in runs(load.readable, load.writable, span.offset, span.offset + span.size):
                if readable or writable:
                    for at, count, theirs in self._theirs(load, lo, span.address + lo - span.offset, hi - lo):
                        self._sides.fetch(at, count, theirs)
                _taken_back(load, POSTREAD | POSTWRITE, lo, hi)
        for copy in load.copies:
            for lo, hi, readable, writable in runs(load.readable, load.writable, copy.offset, copy.offset + copy.size):
                if readable or writable:
                    self._recall(load, _part(copy, lo, hi))
        _taken_back(load, POSTREAD | POSTWRITE, 0, load.size)

    def lose(self, load: Load) -> None:
        """It is unloaded while the device owns bytes: they are nobody's any more."""
        for offset, size, address in load.spans():
            for lo, hi, readable, writable in runs(load.readable, load.writable, offset, offset + size):
                if readable or writable:
                    for at, count, theirs in self._theirs(load, lo, address + lo - offset, hi - lo):
                        if not theirs:
                            self._sides.spoil(at, count, cpu=False)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _recall(self, load: Load, copy: Copied) -> None:
        """Bytes that the device has: their client's copy becomes the device's, with what the CPU stored meanwhile."""
        client = copy.memory[copy.origin : copy.origin + copy.size]
        theirs = self._sides.owned(copy.address, copy.size)
        if load.direction is Direction.TO_DEVICE:
            seen, right = client.tobytes(), theirs.tobytes()
            if seen == right:
                return
            away = bytearray(copy.size)  # 1: another device has it as well, so that it is poison now
            if copy.memory is self._sides.cpu:
                start = self._sides.base + copy.origin
                for other, first, size, offset in self._loads.within(start, copy.size):
                    for lo, hi, owned, _ in runs(other.readable, other.readable, offset, offset + size):
                        if owned:
                            away[first - start + lo - offset : first - start + hi - offset] = b"\1" * (hi - lo)
            wrong = [at for at in range(copy.size) if seen[at] != right[at] and not away[at]]
        else:
            wrong = stored(client, copy.address, theirs)
            kept = [(at, client[at]) for at in wrong]
            client[:] = theirs
            for at, byte in kept:
                client[at] = byte
        if wrong:
            self._wrote(load, copy.offset + wrong[0], copy.offset + wrong[-1] + 1)

    def _wrote(self, load: Load, lo: int, hi: int) -> None:
        self._report(Kind.CPU_WROTE, load, (lo, hi), noticed=True)

    def _theirs(
        self, load: Load, offset: int, address: int, length: int, op: SyncOp | None = None
    ) -> Iterator[tuple[int, int, bool]]:
        """[address, address + length) in stretches: (address, length, has a device these by other loads, too?).

        "Other" is also the same load, where the same bytes lie twice in it.
        """
        parts = self._loads.within(address, length)
        shared = [p for p in parts if p.load is not load or p.offset - offset != p.address - address]
        if not shared:
            yield address, length, False
            return
        flags = bytearray(length)
        for part in shared:
            other, first, size, at = part
            if op is not None:
                self._contend(load, op, offset, part)
            for lo, hi, readable, writable in runs(other.readable, other.writable, at, at + size):
                if readable or writable:
                    flags[first - address + lo - at : first - address + hi - at] = b"\1" * (hi - lo)
        for lo, hi, theirs, _ in runs(flags, flags, 0, length):
            yield address + lo, hi - lo, bool(theirs)

    def _contend(self, load: Load, op: SyncOp, offset: int, part: Part) -> None:
        """Bytes of DMA-safe memory are given to a device, which another has already: one of the two may write them."""
        other, _, size, at = part
        writable = other.writable.find(1, at, at + size) >= 0
        if (load.standing or other.standing) and (
            writable or (op & PREREAD and other.readable.find(1, at, at + size) >= 0)
        ):
            self._report(Kind.OVERLAP, load, (offset, offset + size), other=other.describe())

    def _mark(self, load: Load, op: SyncOp, lo: int, hi: int) -> None:
        ones = b"\1" * (hi - lo)
        if op & PREREAD:
            load.writable[lo:hi] = ones
        if op & PREWRITE:
            load.readable[lo:hi] = ones


def _taken_back(load: Load, op: SyncOp, lo: int, hi: int) -> None:
    zeros = bytes(hi - lo)
    if op & POSTREAD:
        load.writable[lo:hi] = load.written[lo:hi] = zeros
    if op & POSTWRITE:
        load.readable[lo:hi] = zeros


def _part(copy: Copied, lo: int, hi: int) -> Copied:
    """Bytes [lo, hi) of the buffer, which `copy` has."""
    ahead = lo - copy.offset
    return Copied(lo, hi - lo, copy.memory, copy.origin + ahead, copy.address + ahead)


def _address(memory: memoryview) -> int | None:
    """Where this process has these bytes; None if Python does not say: they are read-only."""
    return None if memory.readonly or not memory.nbytes else ctypes.addressof(ctypes.c_char.from_buffer(memory))
