"""One command on a SCSI bus, and the pointers into its data, which a target saves and restores.

A target may leave in the middle of the data and come back. It comes back to where it last said SAVE DATA POINTER
(SCSI-2 6.5, 6.6.17); what it moved after that, it moves again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

from busdma.drivers.scsi_host import Slot

if TYPE_CHECKING:
    from busdma.map import Map


class Pointers:
    """Where a command is in its `segments` of (bus address, bytes)."""

    __slots__ = ("_ends", "_segments", "at", "furthest", "length", "saved", "strays")

    def __init__(self, segments: Iterable[tuple[int, int]] = ()) -> None:
        self._segments = tuple(segments)
        self._ends = list(accumulate(length for _, length in self._segments))
        self.length = self._ends[-1] if self._ends else 0
        self.at = self.saved = 0  #: the current and the saved data pointer, as bytes from the beginning
        self.furthest = 0  #: where it has been
        self.strays: list[tuple[int, bytes]] = []  #: (where, what): it came in, but only to the FIFO

    def piece(self) -> tuple[int, int]:
        """(bus address, bytes) from here to the end of the segment; (0, 0) behind the last one."""
        if self.at >= self.length:
            return 0, 0
        index = bisect_right(self._ends, self.at)
        address, length = self._segments[index]
        left = self._ends[index] - self.at
        return address + length - left, left

    def advance(self, count: int) -> None:
        """`count` bytes went to or from here."""
        self.at += count
        self.furthest = max(self.furthest, self.at)

    def stray(self, data: bytes) -> None:
        """The last bytes before here, `data`, did not reach memory."""
        self.strays.append((self.at - len(data), data))

    def save(self) -> None:
        """SAVE DATA POINTER."""
        self.saved = self.at

    def resume(self) -> None:
        """The target is back, and moves again what came after the saved pointer."""
        self.at = self.saved
        self.strays = [stray for stray in self.strays if stray[0] < self.saved]

    def restore(self) -> None:
        """RESTORE POINTERS: what came after the saved one does not count."""
        self.resume()
        self.furthest = self.saved

    @property
    def residual(self) -> int:
        """Bytes that were never moved."""
        return self.length - self.furthest


class Nexus(Slot):
    """A slot of the driver: an untagged command between us and one logical unit, and the slot's control memory."""

    __slots__ = (
        "address",
        "command",
        "complete",
        "doomed",
        "first",
        "flaw",
        "inbound",
        "leaving",
        "offset",
        "pointers",
        "shot",
        "status",
        "unsent",
    )

    def __init__(self, data: Map, offset: int, address: int) -> None:
        super().__init__(data)
        self.offset, self.address = offset, address  # of the control memory

    def clear(self) -> None:
        """Carry nothing."""
        super().clear()
        self.first: Pointers | None = None  #: of the command itself, while REQUEST SENSE runs
        self.flaw = 0  #: the host status, if something was wrong that did not stop the command
        self.doomed = False  #: is to be aborted
        self.prepare(b"", (), False)

    def prepare(self, command: bytes, segments: Iterable[tuple[int, int]], inbound: bool) -> None:
        """Carry `command`, whose data are `segments`, to the unit."""
        self.command = command
        self.pointers = Pointers(segments)
        self.inbound = inbound
        self.status: int | None = None
        self.complete = False  #: the target said COMMAND COMPLETE
        self.leaving = False  #: it said DISCONNECT
        self.shot = False  #: it was sent ABORT
        self.unsent = 0  #: bytes of the command that it left in the FIFO

    @property
    def target(self) -> int:
        """The SCSI address of the unit."""
        assert self.unit is not None
        return self.unit.target

    @property
    def lun(self) -> int:
        """The number of the unit behind that address."""
        assert self.unit is not None
        return self.unit.lun
