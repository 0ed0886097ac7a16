"""Devices behind an IOMMU that tells them apart: a domain of its own for each, with bus pages of its own.

A device reaches what its driver has loaded for it, and nothing else. What sits behind a conventional PCI bridge shares
the bridge's domain, as its requests carry the bridge's id.

An option of every such machine: ``iommu``, ``on`` (entries go when a map is unloaded), ``standing`` (they stay until
their room is needed, or their page frames change owner) or ``off``.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.local import NOTHING, LocalMachine
from busdma.machine.spec import Options
from busdma.mechanisms.iova import IovaPool
from busdma.paths import Window
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.translators.pages import PAGE, PageTree

#: what a device has: enough for what it loads at once, little enough for all tables, also for devices of 28 lines. Bus
#: addresses below are never used: a device that was not programmed reads from 0 on
WINDOW: Final = AddressSet.span(1 << 20, (1 << 28) - 1)
CHOICES: Final = ("off", "on", "standing")


class Unit(Protocol):
    """The IOMMU: `busdma.translators.pages.TranslationUnit` of a kind that has domains."""

    name: str

    def domain(self, name: str, source: int, window: AddressSet | None = None) -> PageTree[Any]:
        """A domain for requests of `source`."""


def asked(spec: str, options: Options, default: str) -> str:
    """The option ``iommu``. ConfigurationError: it is none of the three."""
    iommu = options.text("iommu", default)
    if iommu not in CHOICES:
        raise ConfigurationError(f"{spec}: iommu={iommu}: give off, on or standing")
    return iommu


class Domains:
    """The domains of a machine's devices, and their pools. `standing`: entries stay until their room is needed."""

    def __init__(self, machine: LocalMachine, unit: Unit, *, standing: bool = False) -> None:
        self.unit = unit
        self.pools: dict[str, IovaPool] = {}  #: by whose requests they are for
        self.sources: dict[str, int] = {}
        self._machine = machine
        self._standing = standing

    def behind(self, tag: Tag, name: str, source: int, *, besides: AddressSet = NOTHING) -> Tag:
        """Put what sends requests with the id `source` behind the unit; the tag for it, from the bus's `tag`.

        `besides`: bus pages that its domain has and its loads do not get: see `fix`. DriverError: `source` has a domain
        already.
        """
        translator = self.unit.domain(name, source, WINDOW | besides)
        first, last = WINDOW.intervals[0]
        translator.prepare(first, (last + 1 - first) // PAGE)  # a load must not wait for a table
        unit = self.unit.name
        pool = self._machine.add_pool(f"{unit} of {name}", translator, first, last, standing=self._standing)
        self.pools[name], self.sources[name] = pool, source
        return tag.bridge(f"{unit}-{name}", Window(0, last + 1, 0, pool))

    def fix(self, name: str, address: int, frame: int) -> None:
        """Have a bus page of `name`, one of those besides its loads', lead to the page at physical address `frame`.

        Its devices may write there: it is for what is no memory, such as the doorbell of message interrupts.
        """
        with self._machine.domain.queue.lock:
            self.pools[name].translator.enter(address, (frame,), Direction.FROM_DEVICE)

    def statistics(self) -> dict[str, Any]:
        """The pools, by whose they are."""
        return {name: pool.statistics() for name, pool in self.pools.items()}
