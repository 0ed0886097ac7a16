"""Doorbells that a host keeps in its memory: the controller looks there, and says how far it has looked.

Two pages, laid out as the doorbell registers are: one with what the host would have written to them, one with event
indexes. The host rings at the register only if its new value passes the event index; so a controller first says up to
where it has looked, and only then looks once more. The admin queue's doorbells are registers alone.

Source: NVM Express Base Specification 1.4, 5.7 (Doorbell Buffer Config), 7.13 (updating doorbells), annex B.5.
"""

from __future__ import annotations

from typing import Final

from busdma.sim.nvme.queue import CompletionQueue, SubmissionQueue
from busdma.sim.wiring import Memory

SIZE: Final = 4  #: bytes of each
LOOK_TIME: Final = 500  #: ns from an event index to the next look


class ShadowDoorbells:
    """The pages at bus addresses `shadows` and `events`. Every method may raise DeviceFault."""

    def __init__(self, master: Memory, shadows: int, events: int) -> None:
        self._master, self._shadows, self._events = master, shadows, events

    def look(self, queue: SubmissionQueue) -> bool:
        """Take over the queue's tail. False: the host has written what cannot be."""
        return queue.move_tail(self._read(2 * queue.id))

    def wait_for(self, queue: SubmissionQueue) -> None:
        """Be told at the register of a tail beyond the one that is known."""
        self._write(2 * queue.id, queue.tail)

    def update(self, queue: CompletionQueue) -> bool:
        """Take over the queue's head; be told at the register of one beyond the last. False as `look`."""
        self._write(2 * queue.id + 1, queue.head)
        return queue.move_head(self._read(2 * queue.id + 1))

    def _read(self, number: int) -> int:
        return int.from_bytes(self._master.dma_read(self._shadows + SIZE * number, SIZE), "little")

    def _write(self, number: int, value: int) -> None:
        self._master.dma_write(self._events + SIZE * number, value.to_bytes(SIZE, "little"))
