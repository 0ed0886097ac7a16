"""How a page gets a bus address. Small interfaces; a tag has a chain of mechanisms, asked in order.

A mechanism answers a `Holder` (placed: the segmenter has the segments, and sync and unload go through the holder), a
`Shortage` (of which pools, how much) or `Unreachable` (why). The first placement wins; otherwise the first
shortage is waited for; otherwise the load fails with every reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from busdma.buffers import Buffer, LinearBuffer
from busdma.pool import Need
from busdma.segments import Segmenter
from busdma.sync import Direction

if TYPE_CHECKING:
    from busdma.mechanisms.zone import Zone


class Holder(Protocol):
    """What holds resources for a loaded map: sync and unload go through it. What is held is held by the segmenter."""

    def copy_out(self, segmenter: Segmenter, offset: int, length: int) -> object:
        """What PREREAD and PREWRITE must do."""

    def copy_in(self, segmenter: Segmenter, offset: int, length: int) -> object:
        """What POSTREAD must do."""

    def done(self, segmenter: Segmenter, offset: int, length: int) -> object:
        """What POSTWRITE must do."""

    def release(self, segmenter: Segmenter) -> None:
        """What unload must give back. Never waits."""

    def quarantine(self, segmenter: Segmenter, entering: bool) -> None:
        """The map's holdings go into quarantine, or come out of it."""


class Lender(Protocol):
    """Who places a buffer once what it was short of has been granted."""

    def deferred(self) -> None:
        """A load has to wait: count it."""

    def finish(self, segmenter: Segmenter, buffer: Buffer, needs: tuple[Need, ...]) -> Holder:
        """Place the buffer with needs that have been granted. Cannot fail. Under the pools' lock."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """It would work, once all of `needs` can be had together."""

    lender: Lender
    needs: tuple[Need, ...]


class Unreachable:
    """It can never work. ``reason(segmenter)`` says why; nobody asks if the next mechanism can."""

    __slots__ = ("mechanism", "reason", "too_many_segments")

    def __init__(self, mechanism: str, reason: Callable[[Segmenter], str], too_many_segments: bool = False) -> None:
        self.mechanism = mechanism
        self.reason = reason
        self.too_many_segments = too_many_segments


class Mechanism(Protocol):
    """One way to bus addresses. It knows a tag and no map."""

    name: str

    @property
    def zone(self) -> Zone | None:
        """Where it takes bounce pages."""

    def watch(self, segmenter: Segmenter) -> None:
        """A map was made whose segmenter may ask."""

    def retire(self, segmenter: Segmenter) -> None:
        """The map is gone; what its segmenter counted is kept."""

    def least(self, segmenter: Segmenter) -> tuple[Need, ...]:
        """The least that a load could be short of."""

    def place(
        self, segmenter: Segmenter, buffer: Buffer, answer: int, direction: Direction
    ) -> Holder | Shortage | Unreachable:
        """Place the buffer without waiting. `answer` is what ``segmenter.load`` said when it could not."""

    def reserved(self, maxsize: int) -> Mechanism:
        """The same with resources for any one buffer of `maxsize` bytes. Errors: ResourceShortage, ConstraintError."""

    def give_up(self) -> None:
        """The end of `reserved`. Of what is not reserved: nothing."""


Recall: TypeAlias = Callable[[Segmenter, LinearBuffer, Direction], Holder | None]


@dataclass(frozen=True, slots=True)
class Chain:
    """What to ask when a buffer cannot stay where it lies: in order, each mechanism once."""

    linear: tuple[Mechanism, ...]
    lists: tuple[Mechanism, ...]  #: for buffers of several elements
    recall: Recall | None = None  #: asked first of all: is it placed already, as the first of ``linear`` had left it?

    def each(self) -> tuple[Mechanism, ...]:
        """All of them."""
        return tuple(dict.fromkeys(self.linear + self.lists))
