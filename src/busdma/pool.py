"""Every finite resource: all-or-nothing grants, waiters in order, refusal of what can never be had.

The pools of one machine share one lock and one queue. A load that needs several pools
states all its needs at once and gets all of them or none: nobody holds one thing while waiting for another. Whoever
waits is served in the order of asking; a newcomer may pass only those who wait for none of the pools it needs. A
requisition that *stays* takes nothing: it keeps its place while its owner helps himself (`busdma.turns`).

Nothing here blocks. A grant is decided once, by the waiter: if the wait was cancelled or had expired when the grant
came, the grant goes back and the next one is asked.

Source: Gibbs, tech-kern 10 June 1998 (deferred loads); Thorpe, 12 June 1998 (order is kept by waiting).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from busdma.errors import ResourceShortage, ShortageReason, WaitCancelled
from busdma.tracebacks import hidden
from busdma.waiting import WOKEN, Waiter

__tracebackhide__ = hidden


class Pool(Protocol):
    """What the queue must know of a pool."""

    name: str
    unit: str  #: what is counted, in the singular, for messages
    waiting: int  #: requisitions in the queue that need this pool; kept by the queue

    def shortage(self, amount: int) -> ShortageReason:
        """Why `amount` cannot be had now."""

    def count(self, what: str, amount: int) -> None:
        """Add to a counter of its statistics, such as ``deferred`` or ``refused``."""


class Need(Protocol):
    """So much of one pool. ``take`` and ``give`` are called under the queue's lock."""

    @property
    def pool(self) -> Pool:
        """Of which pool."""

    @property
    def amount(self) -> int:
        """How much of it."""

    def ready(self) -> bool:
        """Could it be taken now? Takes nothing. Errors as `take`."""

    def take(self) -> bool:
        """Take it, or nothing. ResourceShortage: it could never be had, waiting is useless."""

    def give(self) -> None:
        """Give it back whole."""


def in_words(need: Need) -> str:
    """For example ``3 pages of bounce zone 0``."""
    return f"{need.amount} {need.pool.unit}{'' if need.amount == 1 else 's'} of {need.pool.name}"


class Requisition:
    """One place in the queue. One that `stays` is woken with nothing taken, and keeps its place until it withdraws."""

    __slots__ = ("needs", "owner", "queue", "stays", "thread", "waiter", "withdrawn")

    def __init__(self, queue: PoolQueue, needs: tuple[Need, ...], owner: str, stays: bool = False) -> None:
        self.queue = queue
        self.needs = needs
        self.owner = owner
        self.stays = stays
        self.withdrawn = False
        self.thread: int | None = None  # which thread helps itself at this place now
        wanted = " and ".join(in_words(need) for need in needs)
        self.waiter = Waiter(f"{wanted} (for {owner})")

    def withdraw(self) -> None:
        """Leave the queue, however the wait ended; what was granted and never used goes back.

        Cleanup: never waits. Harmless after the wait ended in an error, and a second time.
        """
        self.queue.withdraw(self)

    def outcome(self) -> None:
        """After the wait: return if granted, raise what refused it otherwise, or WaitCancelled if it was withdrawn."""
        result = self.waiter.result()
        if self.withdrawn:
            raise WaitCancelled(f"abandoned while waiting for {self.waiter.purpose}")
        if isinstance(result, ResourceShortage):
            raise ResourceShortage(f"{self.owner}: {result}", result.reason)
        if isinstance(result, Exception):
            raise result


class PoolQueue:
    """The one lock and the one order of a machine's pools."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.line: list[Requisition] = []  #: who waits, in order
        self._serving = False
        self._again = False

    def take(self, needs: Sequence[Need]) -> bool:
        """Take all of `needs` at once, without waiting and without passing anybody."""
        with self.lock:
            if any(need.pool.waiting and not self._at_turn(need.pool) for need in needs):
                return False
            outer, self._serving = self._serving, True
            try:
                return _take_all(needs)
            finally:
                self._serving = outer
                if self._again and not outer:
                    self.serve()

    def join(self, needs: Iterable[Need], owner: str, *, stays: bool = False) -> Requisition:
        """Queue for all of `needs`; the requisition's waiter is woken with the grant, or with an error as its value."""
        requisition = Requisition(self, tuple(needs), owner, stays)
        with self.lock:
            self.line.append(requisition)
            for need in requisition.needs:
                need.pool.waiting += 1
            self.serve()
        return requisition

    def serve(self) -> None:
        """Grant what can be granted now, in order. Called whenever something came back."""
        if not self.line:
            return
        with self.lock:
            if self._serving:
                self._again = True  # something came back while it was being taken: look once more afterwards
                return
            self._serving = True
            try:
                self._again = True
                fruitless = 0  # a pass that grants nothing may still make a pool give memory back: once more is enough
                while self._again and fruitless < 2:
                    self._again = False
                    fruitless += 1
                    while self._serve_one():
                        fruitless = 0
            finally:
                self._serving = False

    def withdraw(self, requisition: Requisition) -> None:
        """See `Requisition.withdraw`."""
        with self.lock:
            if requisition in self.line:
                requisition.waiter.cancel()
                self._remove(requisition)
            elif _granted(requisition) and not requisition.stays and not requisition.withdrawn:
                for need in reversed(requisition.needs):  # a bounce page after what may translate to it
                    need.give()
            requisition.withdrawn = True
            self.serve()

    def waiters(self) -> list[str]:
        """Who waits, in order."""
        with self.lock:
            return [requisition.owner for requisition in self.line]

    def enter(self, requisition: Requisition) -> bool:
        """This thread helps itself at the place of `requisition`, which stays. False: it has left the queue."""
        with self.lock:
            if requisition not in self.line:
                return False
            requisition.thread = threading.get_ident()
            return True

    def _at_turn(self, pool: Pool) -> bool:
        """Does this thread help itself now, at a place that waits for `pool`?"""
        me = threading.get_ident()
        return any(r.thread == me and any(need.pool is pool for need in r.needs) for r in self.line)

    def _serve_one(self) -> bool:
        """One pass in order; True if the queue changed, so that another pass may grant more."""
        blocked: set[int] = set()
        for requisition in list(self.line):
            pools = {id(need.pool) for need in requisition.needs}
            if pools & blocked or requisition.waiter.state == WOKEN:
                blocked |= pools
                continue
            refusal: Exception | None = None
            try:
                if not _take_all(requisition.needs, requisition.stays):
                    blocked |= pools
                    continue
            except Exception as error:  # whoever waits hears of it, not whoever gave something back
                refusal = error
            woken = requisition.waiter.wake(refusal)
            if not (woken and requisition.stays):
                self._remove(requisition)
            if not woken and refusal is None and not requisition.stays:
                for need in requisition.needs:
                    need.give()
            return True
        return False

    def _remove(self, requisition: Requisition) -> None:
        self.line.remove(requisition)
        for need in requisition.needs:
            need.pool.waiting -= 1


def _granted(requisition: Requisition) -> bool:
    return requisition.waiter.state == WOKEN and not isinstance(requisition.waiter.value, Exception)


def _take_all(needs: Sequence[Need], only_look: bool = False) -> bool:
    if only_look:
        return all(need.ready() for need in needs)
    for at, need in enumerate(needs):
        taken = False
        try:
            taken = need.take()
        finally:
            if not taken:
                for earlier in needs[:at]:
                    earlier.give()
        if not taken:
            return False
    return True
