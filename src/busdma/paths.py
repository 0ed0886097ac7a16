"""The way from a bus to memory: the windows of the bridges on it.

A bridge forwards windows of its secondary bus. A direct-mapped window adds a constant; a translated one goes through a
scatter-gather map or an IOMMU. Each tag has the routes that its bus has to memory, the preferred one first; `behind`
carries them through one more bridge. Limits of a tag are always in the addresses of its own bus.

Source: Thorpe, USENIX 1998, section 2 (direct-mapped and scatter-gather-mapped DMA); 4.me of the same paper: the window
chains of the Alpha systems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.errors import ConstraintError

if TYPE_CHECKING:
    from busdma.mechanisms.iova import IovaPool


@dataclass(frozen=True, slots=True)
class Window:
    """What a bridge forwards: `size` bytes from `base` of its own bus.

    They become those from `target` on: of the bus above it, or with a `pool`, of what that pool's translator sees.
    A window that moves addresses is naturally aligned: base and target are multiples of its size, a power of two.
    """

    base: int
    size: int
    target: int = 0
    pool: IovaPool | None = None

    def __post_init__(self) -> None:
        last = max(self.base, self.target) + self.size - 1
        if self.base < 0 or self.target < 0 or self.size < 1 or last > MAX_ADDRESS:
            raise ConstraintError(f"{self} is no window: base, target and all of its size are 64-bit addresses")
        if self.shift and (self.size & (self.size - 1) or self.base % self.size or self.target % self.size):
            raise ConstraintError(
                f"a window of {self.size:#x} bytes from {self.base:#x} to {self.target:#x}: give a power of two, and "
                "base and target as multiples of it, or boundaries and alignments would mean something else behind it"
            )

    @property
    def shift(self) -> int:
        """What to add to a far address to have the near one."""
        return self.base - self.target

    @property
    def near(self) -> AddressSet:
        """The addresses of the bus behind the bridge."""
        return AddressSet.span(self.base, self.base + self.size - 1)

    @property
    def far(self) -> AddressSet:
        """What they become."""
        return AddressSet.span(self.target, self.target + self.size - 1)


@dataclass(frozen=True, slots=True)
class Route:
    """One way from a tag's bus to memory, through all bridges: without translation, or by one pool's translator."""

    span: AddressSet  #: bus addresses that go this way
    shift: int = 0  #: what to add to a physical address, or to one that the translator sees, to have the bus address
    pool: IovaPool | None = None

    @property
    def name(self) -> str:
        """The mechanism: ``direct``, ``window`` or ``remap``."""
        return "remap" if self.pool is not None else "window" if self.shift else "direct"


STRAIGHT: Final = Route(AddressSet.everything())  #: of a machine's root tag: a bus address is a physical address


def behind(routes: Sequence[Route], windows: Sequence[Window]) -> tuple[Route, ...]:
    """The routes of the bus behind a bridge with these windows, in the order in which they are preferred."""
    found: list[Route] = []
    for window in windows:
        if window.pool is not None:
            found.append(Route(window.near, window.shift, window.pool))
            continue
        for route in routes:
            span = route.span & window.far
            if span:
                found.append(Route(span.shifted(window.shift), route.shift + window.shift, route.pool))
    return tuple(found)
