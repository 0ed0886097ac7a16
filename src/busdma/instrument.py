"""One hook interface: checker, trace and statistics all hang on it.

An instrument sees what happens to maps, after it happened, in the context that did it. It must not wait, load or raise
for anything but a finding. What it raises passes through the call that it observed, and what happened has happened: a
map whose ``loaded`` raised is loaded. Only a wait whose ``deferred`` raised is given up. A machine without instruments
pays one test of an empty list for each call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from busdma.map import Map
    from busdma.sync import SyncOp


class Instrument(Protocol):
    """What can be observed of every map of a machine."""

    def loaded(self, map: Map) -> None:
        """The map has just been loaded."""

    def deferred(self, map: Map) -> None:
        """A load has to wait."""

    def synced(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        """Bytes [offset, offset + length) were synced."""

    def unloading(self, map: Map) -> None:
        """The map is about to be unloaded."""

    def quarantined(self, map: Map) -> None:
        """The map went into quarantine."""
