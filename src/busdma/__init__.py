"""busdma: bus_dma for Python.

A driver says what its device can address (a tag), loads memory into a map, gives the device the bus addresses it gets
back, syncs around the transfer and unloads. It never learns how the machine made those addresses.

>>> import busdma
>>> with busdma.open("sim:pc-isa") as machine:
...     tag = machine.devices["aha0"].tag.derive("example", nsegments=17)
...     data = machine.kernel.allocate(9000)
...     with tag.transfer(data, to_device=True) as segments:
...         print(sum(length for address, length in segments))
9000
"""

from __future__ import annotations

from typing import Final

from busdma import segments as _segments
from busdma.addresses import AddressSet, BusAddress
from busdma.buffers import Buffer, HostBuffer, LinearBuffer
from busdma.constraints import Constraints
from busdma.domain import DmaDomain
from busdma.drivers import Driver
from busdma.errors import (
    BlockingInsideLoop,
    BufferGone,
    BufferTooLong,
    BusdmaError,
    ConfigurationError,
    ConstraintError,
    DeadlineExpired,
    Deadlock,
    DeviceFault,
    DriverError,
    ForeignAwait,
    MappingRefused,
    MapStateError,
    ResourceShortage,
    ShortageReason,
    SyncError,
    TooManySegments,
    WaitCancelled,
    WaitError,
)
from busdma.explain import Explanation
from busdma.faces import Progress
from busdma.instrument import Instrument
from busdma.lifecycle import State
from busdma.machine.machine import Device, Machine
from busdma.machines import open
from busdma.map import Map
from busdma.memory import DmaMemory
from busdma.result import Segments
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp
from busdma.tag import Tag
from busdma.transfer import Transfer
from busdma.turns import Turn
from busdma.waiting import Runtime, Task, Waiter

#: True if the hot path, `busdma.segments`, is the compiled form; its answers are the same
COMPILED: Final = not _segments.__file__.endswith(".py")

__all__ = [
    "COMPILED",
    "POSTREAD",
    "POSTWRITE",
    "PREREAD",
    "PREWRITE",
    "AddressSet",
    "BlockingInsideLoop",
    "Buffer",
    "BufferGone",
    "BufferTooLong",
    "BusAddress",
    "BusdmaError",
    "ConfigurationError",
    "ConstraintError",
    "Constraints",
    "DeadlineExpired",
    "Deadlock",
    "Device",
    "DeviceFault",
    "Direction",
    "DmaDomain",
    "DmaMemory",
    "Driver",
    "DriverError",
    "Explanation",
    "ForeignAwait",
    "HostBuffer",
    "Instrument",
    "LinearBuffer",
    "Machine",
    "Map",
    "MapStateError",
    "MappingRefused",
    "Progress",
    "ResourceShortage",
    "Runtime",
    "Segments",
    "ShortageReason",
    "State",
    "SyncError",
    "SyncOp",
    "Tag",
    "Task",
    "TooManySegments",
    "Transfer",
    "Turn",
    "WaitCancelled",
    "WaitError",
    "Waiter",
    "open",
]


def __getattr__(name: str) -> str:
    """``busdma.__version__``, looked up when it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("busdma")
    raise AttributeError(f"module 'busdma' has no attribute {name!r}")
