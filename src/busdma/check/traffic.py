"""What devices do to memory: was it theirs, at that moment and that way?"""

from __future__ import annotations

from collections.abc import Sequence

from busdma.check.bus import BusPages
from busdma.check.findings import Kind, Report
from busdma.check.loads import Loads, Part, hull, runs
from busdma.sync import Direction


class Traffic:
    """Accesses of devices, held against `loads`. The caller holds the checker's lock."""

    def __init__(self, loads: Loads, pages: BusPages, report: Report) -> None:
        self._loads = loads
        self._pages = pages
        self._report = report
        self.stale = False  #: the next access goes by a translation that should be gone

    def used(self, address: int, length: int, master: str, write: bool) -> None:
        """A device uses these bytes, by physical address."""
        stale, self.stale = self.stale, False
        if stale:
            what = f"{master} {'wrote' if write else 'read'} {length} bytes"
            self._report(Kind.STALE_TRANSLATION, self._loads.ended_at(address), None, what, device=master)
        parts = self._loads.within(address, length)
        left = length
        for part in parts:
            load, _, size, offset = part
            flags = load.writable if write else load.readable
            if flags.find(0, offset, offset + size) >= 0:
                break
            left -= size
        else:
            if not left:  # all of it is loaded, once, and the device's own
                if write:
                    for load, _, size, offset in parts:
                        load.written[offset : offset + size] = b"\1" * size
                return
        self._look(parts, address, length, master, write, stale)

    def unanswered(self, address: int, length: int, master: str) -> None:
        """A device used a bus address where nobody answers, or where a translator refuses it."""
        self.stale = False
        load = self._pages.last(address, master)
        kind = Kind.NO_ANSWER
        if load is not None and load.ended:
            kind = Kind.AFTER_UNLOAD
        elif load is not None and load.direction is not Direction.BOTH:
            kind = Kind.WRONG_WAY
        else:
            load = None
        self._report(kind, load, None, f"{master}: {length} bytes at {address:#x}, and got no answer", device=master)

    def _look(self, parts: Sequence[Part], address: int, length: int, master: str, write: bool, stale: bool) -> None:
        """Byte by byte: which are loaded, and which by a load that has given them to the device?"""
        loaded, given = bytearray(length), bytearray(length)
        for load, first, size, offset in parts:
            at = first - address
            loaded[at : at + size] = b"\1" * size
            flags = load.writable if write else load.readable
            for lo, hi, own, _ in runs(flags, flags, offset, offset + size):
                if own:
                    given[at + lo - offset : at + hi - offset] = b"\1" * (hi - lo)
                    if write:
                        load.written[lo:hi] = b"\1" * (hi - lo)
        against = Direction.TO_DEVICE if write else Direction.FROM_DEVICE
        for lo, hi, known, own in runs(loaded, given, 0, length):
            if not known:
                if not stale:
                    self._stray(address + lo, hi - lo, master, write)
            elif not own:
                here = [
                    part for part in parts if part.address < address + hi and address + lo < part.address + part.size
                ]
                load, first, _, offset = next((each for each in here if each.load.direction is not against), here[0])
                kind = Kind.MISSING_PREREAD if write else Kind.MISSING_PREWRITE
                start = max(address + lo - first, 0) + offset
                missing = hull(load.writable if write else load.readable, 0, start, min(start + hi - lo, load.size))
                self._report(Kind.WRONG_WAY if load.direction is against else kind, load, missing, device=master)

    def _stray(self, address: int, length: int, master: str, write: bool) -> None:
        """A device has used memory that is not loaded."""
        verb = "wrote" if write else "read"
        near = next(iter(self._loads.at(address)), None)
        ended = self._loads.ended_at(address)
        if near is not None:
            what = f"{master} {verb} {length} bytes beside it, in the same page frame"
            self._report(Kind.OUTSIDE_MAP, near.load, None, what, device=master)
        elif ended is not None:
            self._report(Kind.AFTER_UNLOAD, ended, None, f"{master} {verb} {length} bytes of it", device=master)
        else:
            what = f"{master} {verb} {length} bytes"
            self._report(Kind.NEVER_LOADED, None, None, what, device=master)
