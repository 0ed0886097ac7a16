"""A parallel SCSI bus as its one initiator sees it: selected targets ask for bytes, phase by phase.

Every target is a `Nexus`: a script of steps, each of which is one phase. The bus walks through it as the initiator
gives and takes bytes, and in virtual time. A target that disconnected reselects when the bus is free and the initiator
answers.

Source: ANSI X3.131-1994 (SCSI-2), sections 5.1.14 (reset to selection), 6.1.2 (arbitration), 6.1.3 and 6.1.4 (selection
and reselection), 6.2.2 (reset).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from busdma.sim.scsi.nexus import Give, Hold, Leave, Nexus, Phase, Step, Take
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.wiring import CallAt

#: Virtual time, in ns.
TURN: Final = 5_000  #: a target changes the phase, or leaves the bus
ARBITRATION: Final = 3_000
RESET_TO_SELECTION: Final = 100_000_000  #: 250 ms is what initiators should wait (5.1.14)


class Initiator(Protocol):
    """Who is told what targets do."""

    @property
    def reselectable(self) -> bool:
        """True if it answers a target that reselects."""

    def requested(self) -> None:
        """The target asserts REQ, in `ScsiBus.phase`."""

    def freed(self) -> None:
        """The target has left the bus."""

    def reselected(self, target: int) -> None:
        """A target has won arbitration, and will send IDENTIFY."""


class ScsiBus:
    """The wires, and the targets on them by SCSI id. The bus carries one connection at a time.

    `burst`: bytes of data after which a target that may do so disconnects; 0: it gives and takes all at once.
    """

    def __init__(
        self,
        targets: Mapping[int, ScsiTarget],
        call_at: CallAt,
        now: Callable[[], int],
        initiator: Initiator,
        *,
        burst: int = 0,
    ) -> None:
        self.targets, self.now, self.burst = targets, now, burst
        self._call_at, self._initiator = call_at, initiator
        self.running: dict[int, Nexus] = {}  #: whose command each target works at
        self.silent: set[int] = set()  #: targets whose next command never ends
        self._waiting: dict[int, Nexus] = {}  # want to reselect
        self._epoch = self._ready_at = 0
        self._release()

    def _release(self) -> None:
        self.free = True
        self.attention = self.requesting = self._held = False
        self.phase = Phase.DATA_OUT
        self._nexus: Nexus | None = None
        self._step: Give | Take = Give(Phase.DATA_OUT, b"")
        self._data = bytearray()  # given and not yet received, or taken so far

    def later(self, ns: int, then: Callable[[], object]) -> None:
        """Call `then` after `ns`, unless the bus was reset by then."""
        epoch = self._epoch
        self._call_at(self.now() + ns, lambda: then() if epoch == self._epoch else None)

    # -- the initiator's side -----------------------------------------------------------------------------------------

    def select(self, target: int, *, attention: bool) -> bool:
        """Select `target` on the free bus, with or without attention. False: nobody answers, and the bus is held."""
        self.free = False
        if target not in self.targets or self.now() < self._ready_at:
            return False
        self.attention = attention
        self._connect(Nexus(self, target))
        return True

    def give_up(self) -> None:
        """Leave the bus after a selection that nobody answered."""
        self._release()
        self.offer()

    @property
    def available(self) -> int:
        """Bytes that the target gives or takes without a pause."""
        if not self.requesting:
            return 0
        if isinstance(self._step, Give):
            return len(self._data)
        return (1 << 24 if self._step.length is None else self._step.length) - len(self._data)

    def receive(self, count: int, *, hold: bool = False) -> bytes:
        """Take `count` of the `available` bytes. `hold`: the last one is not acknowledged before `accept`."""
        data = bytes(self._data[:count])
        del self._data[:count]
        if hold:
            self._held, self.requesting = True, False
        elif not self._data:
            self._advance(b"")
        return data

    def accept(self) -> None:
        """Acknowledge the byte that was held."""
        if self._held:
            self._held = False
            if self._data:
                self.later(TURN, self._request)
            else:
                self._advance(b"")

    def send(self, data: bytes) -> None:
        """Give the target bytes, at most those `available`."""
        self._data += data
        wanted = self._step.length if isinstance(self._step, Take) else 0
        if len(self._data) == wanted or (wanted is None and not self.attention):
            self._advance(bytes(self._data))

    def reset(self) -> None:
        """Assert RST: every target forgets its command, and takes a while before it can be selected."""
        self._epoch += 1
        for nexus in (self._nexus, *self.running.values()):
            if nexus is not None:
                nexus.script.close()
        self._waiting.clear()
        self._release()
        self._ready_at = self.now() + RESET_TO_SELECTION
        for target in self.targets.values():
            target.reset()

    def offer(self) -> None:
        """The bus is free, or the initiator has become reselectable: whoever waits may come."""
        if self._waiting and self.free and self._initiator.reselectable:
            self.later(ARBITRATION, self._reselect)

    # -- the targets' side --------------------------------------------------------------------------------------------

    def forget(self, target: int, teller: Nexus) -> None:
        """Drop the command of `target`, if it is not that of `teller`, who has been told to."""
        nexus = self.running.get(target)
        if nexus is not None and nexus is not teller:
            self._waiting.pop(target, None)
            nexus.script.close()

    def _connect(self, nexus: Nexus) -> None:
        self._nexus = nexus
        if nexus.begun:
            self._advance(b"")
        else:
            nexus.begun = True
            self._walk(lambda: next(nexus.script))

    def _advance(self, answer: bytes) -> None:
        nexus = self._nexus
        if nexus is not None:
            self._walk(lambda: nexus.script.send(answer))

    def _walk(self, go_on: Callable[[], Step]) -> None:
        """Let the connected target take its next step."""
        self.requesting = False
        nexus = self._nexus
        try:
            step = go_on()
        except StopIteration:
            return self.later(TURN, self._left)
        if isinstance(step, Hold):
            if step.ns is not None:
                self.later(step.ns, lambda: self._advance(b""))
        elif isinstance(step, Leave):
            self.later(TURN, self._left)
            if step.ns is not None and nexus is not None:
                self.later(TURN + step.ns, lambda: self._want(nexus))
        else:
            self._step = step
            self._data = bytearray(step.data if isinstance(step, Give) else b"")
            self.later(TURN, self._request)
        return None

    def _request(self) -> None:
        self.phase, self.requesting = self._step.phase, True
        self._initiator.requested()

    def _left(self) -> None:
        self._release()
        self._initiator.freed()
        self.offer()

    def _want(self, nexus: Nexus) -> None:
        if self.running.get(nexus.target) is nexus:  # it was not aborted
            self._waiting[nexus.target] = nexus
            self.offer()

    def _reselect(self) -> None:
        if self._waiting and self.free and self._initiator.reselectable:
            target = max(self._waiting)  # the highest id wins arbitration (6.1.2)
            self.free = False
            self._initiator.reselected(target)
            self._connect(self._waiting.pop(target))
