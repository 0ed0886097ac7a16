"""How a page gets a bus address. Small interfaces; a tag has a chain of mechanisms, asked in order.

A mechanism answers None (placed: the segmenter has the segments, and the mechanism is what unload gives back to), a
`Shortage` (of which pools, how much) or `Unreachable` (why). The first placement wins; otherwise the first
shortage is waited for; otherwise the load fails with every reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from busdma.buffers import Buffer
from busdma.pool import Need
from busdma.segments import Segmenter


class Holder(Protocol):
    """What holds resources for a loaded map: sync and unload go through it. What is held is held by the segmenter."""

    def copy_out(self, segmenter: Segmenter, offset: int, length: int) -> object:
        """What PREREAD and PREWRITE must do."""

    def copy_in(self, segmenter: Segmenter, offset: int, length: int) -> object:
        """What POSTREAD must do."""

    def release(self, segmenter: Segmenter) -> None:
        """What unload must give back. Never waits."""

    def quarantine(self, segmenter: Segmenter, entering: bool) -> None:
        """The map's holdings go into quarantine, or come out of it."""


class Lender(Holder, Protocol):
    """A holder whose resources may have to be waited for."""

    def deferred(self) -> None:
        """A load has to wait: count it."""

    def finish(self, segmenter: Segmenter, buffer: Buffer, needs: tuple[Need, ...]) -> None:
        """Place the buffer with needs that have been granted. Cannot fail."""


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


class Mechanism(Holder, Protocol):
    """One way to bus addresses. It knows a tag and no map."""

    name: str

    def watch(self, segmenter: Segmenter) -> None:
        """A map was made whose segmenter may ask."""

    def retire(self, segmenter: Segmenter) -> None:
        """The map is gone; what its segmenter counted is kept."""

    def place(self, segmenter: Segmenter, buffer: Buffer, answer: int) -> Shortage | Unreachable | None:
        """Place the buffer without waiting: None. `answer` is what ``segmenter.load`` said when it could not."""
