"""The four sync operations, named from memory's side, and the directions of a transfer.

READ is device to memory, WRITE is memory to device (bus_dma(9)). Operations combine with ``|``; PRE and POST never mix.
"""

from __future__ import annotations

from enum import Enum, IntFlag
from typing import Final


class SyncOp(IntFlag):
    """What a sync prepares (PRE) or completes (POST)."""

    PREREAD = 1  #: before the device writes memory
    POSTREAD = 2  #: after the device wrote memory, before the CPU reads it
    PREWRITE = 4  #: after the CPU wrote memory, before the device reads it
    POSTWRITE = 8  #: after the device read memory


PREREAD: Final = SyncOp.PREREAD
POSTREAD: Final = SyncOp.POSTREAD
PREWRITE: Final = SyncOp.PREWRITE
POSTWRITE: Final = SyncOp.POSTWRITE


class Direction(Enum):
    """Which way the bytes go, with the sync operations that belong before and after."""

    TO_DEVICE = (0, "to device", PREWRITE, POSTWRITE)
    FROM_DEVICE = (1, "from device", PREREAD, POSTREAD)
    BOTH = (2, "both ways", PREREAD | PREWRITE, POSTREAD | POSTWRITE)

    __hash__ = object.__hash__  # members are single, and keys of tables: Enum's own hashes their names, in Python

    def __init__(self, number: int, label: str, pre: SyncOp, post: SyncOp) -> None:
        self.number = number  #: index of tables by direction
        self.label = label
        self.pre = pre
        self.post = post
