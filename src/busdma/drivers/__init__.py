"""The table of drivers: a chip and a bus name a front end, imported when it is first wanted.

>>> FRONT_ENDS["aha1542", "isa"]
'busdma.drivers.aha1542.isa'

A front end is a module with one function, ``attach(attachment) -> Driver``. It knows the bus; the chip's core, beside
it in the same folder, does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from busdma.drivers.block import BlockDevice
from busdma.errors import ConfigurationError

if TYPE_CHECKING:
    from busdma.machine.attachment import Attachment
    from busdma.tag import Tag

FRONT_ENDS: Final[Mapping[tuple[str, str], str]] = {
    ("aha1542", "isa"): "busdma.drivers.aha1542.isa",
    ("bt", "vlb"): "busdma.drivers.bt.vlb",
    ("bt848", "pci"): "busdma.drivers.bt848.pci",
    ("des", "isa"): "busdma.drivers.des.isa",
    ("des", "pci"): "busdma.drivers.des.pci",
    ("edu", "pci"): "busdma.drivers.edu.pci",
    ("fdc", "isa"): "busdma.drivers.fdc.isa",
    ("ncr53c9x", "jazz"): "busdma.drivers.ncr53c9x.jazz",
    ("ncr53c9x", "pci"): "busdma.drivers.ncr53c9x.pci",
    ("ncr53c9x", "sbus"): "busdma.drivers.ncr53c9x.sbus",
    ("nvme", "pci"): "busdma.drivers.nvme.pci",
    ("pcnet", "pci"): "busdma.drivers.pcnet.pci",
}


class Driver(Protocol):
    """One attached device. Its contexts run from ``start`` to ``stop``."""

    name: str
    tag: Tag  #: the device's tag: what its data may look like on the bus

    @property
    def disks(self) -> Sequence[BlockDevice]:
        """The disks found by ``start``."""

    async def start(self) -> None:
        """Bring the device up. DeviceFault if it does not answer as its data sheet says."""

    async def stop(self) -> None:
        """Reset the device, so that nothing of it reaches memory any more, and end the driver's contexts."""

    def statistics(self) -> dict[str, Any]:
        """Counters since ``start``."""


def attach(name: str, bus: str, attachment: Attachment) -> Driver:
    """Attach the front end of driver `name` for `bus`. ConfigurationError for one that does not exist."""
    module = FRONT_ENDS.get((name, bus))
    if module is None:
        known = ", ".join(f"{chip} on {where}" for chip, where in sorted(FRONT_ENDS))
        raise ConfigurationError(f"there is no driver {name!r} for a bus {bus!r}; there are: {known}")
    return cast(Driver, import_module(module).attach(attachment))
