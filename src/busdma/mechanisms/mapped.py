"""The short way of *remap*: a linear buffer, all of whose pages an entry can name. Nothing is planned, or copied.

Its bus pages are one run, so the segments are known before there is an address. If the mapping stands, a load is no
more than a look-up.

Source: Hannum, port-sparc 6 June 1995 ("just mark it free, and let the PTEs hang around").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from busdma.buffers import Buffer, LinearBuffer
from busdma.errors import ResourceShortage
from busdma.mechanisms import Shortage
from busdma.mechanisms.iova import IovaNeed, IovaPool
from busdma.mechanisms.plan import cut
from busdma.mechanisms.runs import cuts
from busdma.pool import Need
from busdma.segments import ABSENT, Segmenter
from busdma.sync import Direction

if TYPE_CHECKING:
    from busdma.mechanisms.composed import Composed


class Mapped:
    """What one such load holds. It is the lender while it waits, and the holder afterwards."""

    __slots__ = ("_frames", "_head", "_length", "mechanism", "need")

    def __init__(self, mechanism: Composed, need: IovaNeed, frames: Sequence[int], head: int, length: int) -> None:
        self.mechanism = mechanism
        self.need = need
        self._frames = frames
        self._head = head
        self._length = length

    def deferred(self) -> None:
        """See `busdma.mechanisms.Lender`."""
        self.need.pool.count("deferred", 1)

    def finish(self, segmenter: Segmenter, buffer: Buffer, needs: Sequence[Need]) -> Mapped:
        """See `busdma.mechanisms.Lender`."""
        mechanism = self.mechanism
        self.need.enter(self._frames)
        start, shift = self.need.address + self._head, mechanism.route.shift
        flat: list[int] = []
        for at, size in cut(start, self._length, mechanism.limits):
            flat += (at + shift) & ABSENT, size
        segmenter.adopt(flat)
        return self

    def copy_out(self, segmenter: Segmenter, offset: int, length: int) -> None:
        """PREREAD, PREWRITE: there is one copy of everything."""

    def copy_in(self, segmenter: Segmenter, offset: int, length: int) -> None:
        """POSTREAD: the same."""

    def done(self, segmenter: Segmenter, offset: int, length: int) -> None:
        """POSTWRITE: the same."""

    def release(self, segmenter: Segmenter) -> None:
        """The bus pages back to their pool, and on to whoever waits."""
        queue, need = self.mechanism.ground.queue, self.need
        with queue.lock:
            if need.mapping is not None:
                need.mapping.holder = self
            need.pool.give(need)
            if queue.line:
                queue.serve()

    def quarantine(self, segmenter: Segmenter, entering: bool) -> None:
        """Count what nobody may have until the device is idle."""
        with self.mechanism.ground.queue.lock:
            self.need.quarantine(entering)


def recall(
    mechanism: Composed, pool: IovaPool, segmenter: Segmenter, buffer: LinearBuffer, direction: Direction
) -> Mapped | None:
    """Place a linear buffer where it stands already, as `mechanism` had mapped it before. None: `map_linear` may."""
    start, length, page = buffer.start, buffer.length, mechanism.page
    head = start % page
    if length > mechanism.undivided or head & mechanism.askew:
        return None
    index, end = start // page, (start + length - 1) // page + 1
    table = buffer.frames.table[index:end]
    if len(table) < end - index:
        return None
    with mechanism.ground.queue.lock:
        mapped = pool.recall(table.tobytes(), direction, mechanism)
        if not isinstance(mapped, Mapped):
            return None
        mapped._frames, mapped._head, mapped._length = table, head, length
        segmenter.adopt(((mapped.need.first * page + head + mechanism.route.shift) & ABSENT, length))
    return mapped


def map_linear(
    mechanism: Composed, segmenter: Segmenter, buffer: Buffer, direction: Direction
) -> Mapped | Shortage | None:
    """Place a linear buffer by entries alone. None: something about it is not that simple, so it has to be planned."""
    page, limits, length = mechanism.page, mechanism.limits, buffer.length
    index, head = divmod(buffer.start, page)
    pages = -(-(head + length) // page)
    frames = buffer.frames.table[index : index + pages]
    alignment = limits.alignment.value
    first, end = mechanism.memory
    if len(frames) < pages or max(frames) >= end or (first and min(frames) < first):
        return None
    if head % min(alignment, page) or (head and alignment > page):
        return None
    if cuts(head, length, limits) > limits.nsegments.value:
        return None
    need = mechanism.linear_need(frames, direction)
    mapped = Mapped(mechanism, need, frames, head, length)
    queue = mechanism.ground.queue
    with queue.lock:
        try:
            if not queue.take((need,)):
                return None if mechanism.never((need,)) else Shortage(mapped, (need,))
        except ResourceShortage:
            return None
        try:
            return mapped.finish(segmenter, buffer, (need,))
        except BaseException:
            mapped.release(segmenter)
            raise
