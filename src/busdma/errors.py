"""Every error busdma raises, in three families.

::

    BusdmaError
    ├── DriverError                  the caller's mistake: fix the program
    │   ├── ConstraintError          limits that contradict each other, or a child wider than its parent
    │   ├── MappingRefused           no mechanism could ever map this buffer
    │   │   ├── BufferTooLong        longer than the tag's maxsize
    │   │   └── TooManySegments      more segments than the tag allows, and no bounce run can join them
    │   ├── MapStateError            the operation is not legal in the map's state
    │   ├── SyncError                PRE and POST mixed, no operation, or outside the loaded range
    │   ├── BufferGone               a released buffer, a freed process, an address that is not mapped
    │   ├── WaitError                a wait that cannot work where it stands
    │   │   ├── BlockingInsideLoop   a blocking wait on the thread that must run the drivers
    │   │   ├── ForeignAwait         a driver awaited something that is not a busdma wait
    │   │   └── Deadlock             nothing left to run can end the wait
    │   └── ConfigurationError       an unknown machine, option, driver or file
    ├── ResourceShortage             would defer: wait, or give something back
    │   └── DeadlineExpired          the wait's deadline passed before anything was granted
    └── DeviceFault                  the bus or the device reported an error

``WaitCancelled`` stands outside: like ``asyncio.CancelledError`` it is a ``BaseException``, so that a driver's
``except Exception`` does not swallow the end of its own wait.
"""

from __future__ import annotations

from enum import Enum
from typing import Self


class BusdmaError(Exception):
    """The root of the three families. What the message says is here as data too, as far as it is known, else None."""

    tag: str | None = None  #: path of the tag
    map: str | None = None  #: name of the map
    address: int | None = None  #: a bus address; of a buffer, where its owner sees its first byte
    length: int | None = None  #: of the buffer, in bytes; of a sync, of its range
    owner: str | None = None  #: whose memory it is: ``kernel``, ``process 'cp'``, ``host``

    def about(
        self,
        *,
        tag: str | None = None,
        map: str | None = None,
        address: int | None = None,
        length: int | None = None,
        owner: str | None = None,
    ) -> Self:
        """Add facts, and return the error itself. What it knows already stays: who raised it knew best."""
        facts = {"tag": tag, "map": map, "address": address, "length": length, "owner": owner}
        for name, value in facts.items():
            if value is not None and getattr(self, name) is None:
                setattr(self, name, value)
        return self


class DriverError(BusdmaError):
    """Misuse: the program is wrong, and waiting would not help."""


class ConstraintError(DriverError, ValueError):
    """Limits that contradict each other, cannot be met by any address, or widen a parent's."""


class MappingRefused(DriverError):
    """No mechanism of the tag could ever map this buffer; the message has every mechanism's reason."""


class BufferTooLong(MappingRefused):
    """The buffer is longer than the tag's maxsize."""


class TooManySegments(MappingRefused):
    """The buffer needs more segments than the tag allows and nothing can join them."""


class MapStateError(DriverError):
    """The operation is not legal in the state the map is in."""


class SyncError(DriverError, ValueError):
    """A sync that mixes PRE and POST, names no operation, or leaves the loaded range."""


class BufferGone(DriverError):
    """The buffer was released, its process was freed, or a page of it is not mapped."""


class WaitError(DriverError):
    """A wait that cannot work where it stands."""


class BlockingInsideLoop(WaitError):
    """A blocking wait on the thread that must run the drivers; use the awaiting face there."""


class ForeignAwait(WaitError):
    """A driver awaited something that is not a busdma wait, on a runtime that cannot carry it."""


class Deadlock(WaitError):
    """Nothing that is left to run can end this wait."""


class ConfigurationError(DriverError, ValueError):
    """An unknown machine, option or driver, or a file that cannot be used."""


class ShortageReason(Enum):
    """Why a pool could not grant."""

    BUSY = "busy"  #: others hold it and will give it back
    FRAGMENTED = "fragmented"  #: enough is free, but not in one run
    LEAK = "leak"  #: what is missing is in quarantine: only a device reset brings it back
    TOO_LARGE = "too large"  #: more than the pool may ever hold


class ResourceShortage(BusdmaError):
    """A pool cannot grant now. ``reason`` says whether waiting would help."""

    def __init__(self, message: str, reason: ShortageReason = ShortageReason.BUSY) -> None:
        super().__init__(message)
        self.reason = reason


class DeadlineExpired(ResourceShortage, TimeoutError):
    """The deadline of a wait passed first; nothing was granted and nothing is held."""


class DeviceFault(BusdmaError):
    """The bus or a device reported an error. ``address`` is a bus address, where one is known."""

    def __init__(self, message: str, address: int | None = None) -> None:
        super().__init__(message)
        self.address = address


class WaitCancelled(BaseException):
    """The wait, or the driver that waited, was cancelled."""
