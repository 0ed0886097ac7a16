"""QEMU machines whose PCI devices are behind an IOMMU, each with a domain of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from busdma.addresses import AddressSet
from busdma.machine.faults import FaultUnit
from busdma.machine.local import NOTHING
from busdma.machine.remapping import Domains, Unit
from busdma.qemu.guest import QemuMachine
from busdma.qemu.setup import Setup
from busdma.tag import Tag


class RemappingUnit(Unit, FaultUnit, Protocol):
    """The IOMMU, as its software sees it."""

    @property
    def overflows(self) -> int:
        """How often it had no room for a fault."""

    def enable(self) -> None:
        """Translate from this moment on: a device without a domain reaches nothing."""


class RemappedMachine(QemuMachine):
    """A machine that may have an IOMMU: without `remap`, devices reach memory as it lies.

    Its arguments are those of `QemuMachine`.
    """

    def __init__(self, setup: Setup, view: memoryview, *, base: int = 0, reserved: AddressSet = NOTHING) -> None:
        super().__init__(setup, view, base=base, reserved=reserved)
        self.domains: Domains | None = None
        self._who: dict[int | None, tuple[str, ...]] = {}

    def remap(
        self,
        make: Callable[[Callable[[], int]], RemappingUnit],
        *,
        standing: bool,
        each: bool = True,
        grain: int = 1,
        merges: bool = False,
    ) -> None:
        """Have devices go through the unit that `make` makes; it is given what hands out page frames for tables.

        `standing`: as `busdma.machine.remapping.Domains`; the others: as `QemuMachine.watch_faults`.
        """
        unit = make(lambda: self.frames.allocate_run(1, "tables"))
        unit.enable()
        self.domains = Domains(self, unit, standing=standing)
        self.watch_faults(
            unit, self._who, name=unit.name, grain=grain, merges=merges, overflows=lambda: unit.overflows, each=each
        )

    def behind(self, tag: Tag, source: int, name: str, *devices: str, besides: AddressSet = NOTHING) -> Tag:
        """The tag for `name`, a device, or a bridge with `devices` behind it, whose requests carry the id `source`.

        `besides`: as `busdma.machine.remapping.Domains.behind`. Without an IOMMU it is `tag`, the bus's.
        """
        self._who[source] = devices or (name,)
        return tag if self.domains is None else self.domains.behind(tag, name, source, besides=besides)

    def carried(self, source: int, device: str) -> None:
        """Requests of `device`, behind a bridge, carry the id `source` as well."""
        self._who[source] = (*self._who[source], device)

    def statistics(self) -> dict[str, Any]:
        """See `QemuMachine.statistics`; with the IOMMU's pools."""
        found = super().statistics()
        return found if self.domains is None else {**found, "iommu": self.domains.statistics()}
