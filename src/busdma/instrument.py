"""One hook interface: checker, trace and statistics all hang on it.

An instrument sees what happens to maps, in the context that does it, mostly after it happened. It must not wait, load
or raise for anything but a finding. What it raises passes through the call that it observed, and what happened has
happened: a map whose ``loaded`` raised is loaded. Only a wait whose ``deferred`` raised is given up. A machine without
instruments pays one test of an empty list for each call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from busdma.errors import DriverError
    from busdma.map import Map
    from busdma.sync import SyncOp


class Instrument(Protocol):
    """What can be observed of every map of a machine. Whoever derives from it sees nothing of what he leaves out."""

    def loaded(self, map: Map) -> None:
        """The map has just been loaded."""
        return

    def deferred(self, map: Map) -> None:
        """A load has to wait."""
        return

    def syncing(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        """Bytes [offset, offset + length) are about to be synced: nothing has moved yet."""
        return

    def synced(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        """Bytes [offset, offset + length) were synced."""
        return

    def unloading(self, map: Map) -> None:
        """The map is about to be unloaded."""
        return

    def quarantined(self, map: Map) -> None:
        """The map went into quarantine."""
        return

    def idled(self, map: Map) -> None:
        """The device was reported idle: whatever it owned of a loaded or quarantined map is about to be the CPU's."""
        return

    def refused(self, map: Map | None, error: DriverError) -> None:
        """A call is about to raise: the map's state forbids it, or memory that it has loaded was to be freed."""
        return
