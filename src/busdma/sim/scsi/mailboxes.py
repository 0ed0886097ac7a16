"""The mailboxes of a SCSI adapter: how CCBs come in, and how they go back to the host.

In the host's memory lie, without a gap, `count` outgoing mailboxes and as many incoming ones, as
`busdma.sim.scsi.mailbox_layout` draws them. Outgoing ones are scanned and incoming ones are filled round-robin. An
outgoing mailbox whose command the adapter has no room for stays full until it has; an incoming one that the host has
not freed is never written over: the adapter waits.

Source: Adaptec AHA-1540B/1542B User's Manual, section 5.2; AHA-1740A/1742A/1744 Technical Reference Manual, 2-6, 2-8
and 5-14 to 5-18; BusLogic MultiMaster Technical Reference Manual, command 8Fh for the strict round-robin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from busdma.sim.scsi.mailbox_layout import BITS_24, Layout, MbiStatus
from busdma.sim.wiring import Memory

START: Final = 1  #: the action that asks for room

#: Virtual time, in ns.
SCAN_TIME: Final = 40_000  #: to find one outgoing mailbox and take it in
FIRST_WAIT: Final = 50_000  #: for the host to free an incoming mailbox; each further wait is twice as long
WAITS: Final = 24  #: after so many (14 minutes) only a port access makes the adapter look again


class After(Protocol):
    """Calls `fn` in `delay` ns, unless the adapter is reset first."""

    def __call__(self, delay: int, fn: Callable[[], object]) -> object:
        """Arrange the call."""


class Mailboxes:
    """Both halves of the mailbox area. `take` gets the action and CCB address of each outgoing mailbox as it is freed.

    `room` says whether another command can be taken in; `stored` is called after an incoming mailbox was filled.
    """

    def __init__(
        self,
        master: Memory,
        after: After,
        room: Callable[[], bool],
        take: Callable[[int, int], None],
        stored: Callable[[], None],
    ) -> None:
        self._master, self._after, self._room, self._take, self._stored = master, after, room, take, stored
        self.waited = 0  #: how often an incoming mailbox was not free
        self.forget()

    def forget(self) -> None:
        """A reset: there are no mailboxes until `place` is called."""
        self.place(0, 0, BITS_24)
        self.strict = False  #: look no further than the first outgoing mailbox that is empty
        self._scanning = self._blocked = False
        self._finished: deque[tuple[MbiStatus, int, int, int]] = deque()
        self._waits: int | None = None

    def place(self, count: int, base: int, layout: Layout) -> None:
        """`count` mailboxes of each kind from address `base` on; both rounds start at the first."""
        self.count, self.base, self.layout = count, base, layout
        self._next_out = self._next_in = 0

    @property
    def idle(self) -> bool:
        """True if nothing is scanned for and nothing waits to be reported."""
        return not self._scanning and not self._finished

    def start(self) -> None:
        """The host says that it filled an outgoing mailbox: scan until a round finds no more."""
        if not self._scanning:
            self._scanning = True
            self._after(SCAN_TIME, self._scan)

    def resume(self) -> None:
        """A command has left the adapter: if others wait for its room in their mailboxes, look at those again."""
        if self._blocked:
            self._blocked = False
            self.start()

    def _scan(self) -> None:
        layout = self.layout
        raw = self._master.dma_read(self.base, layout.box * self.count)
        found, self._blocked = 0, False
        for number in [*range(self._next_out, self.count), *range(self._next_out)]:
            box = raw[layout.box * number : layout.box * (number + 1)]
            action, ccb = layout.outgoing(box)
            if not action:
                if self.strict:
                    break
            elif action == START and (self._blocked or not self._room()):
                self._blocked = True  # what is behind keeps its order; an abort may still be
            else:
                found += 1
                if not self._blocked:
                    self._next_out = (number + 1) % self.count
                self._master.dma_write(self.base + layout.box * number + layout.code_at, b"\0")
                self._take(action, ccb)
        if found:
            self._after(SCAN_TIME * found, self._scan)
        else:
            self._scanning = False

    def report(self, status: MbiStatus, ccb: int, host: int = 0, target: int = 0) -> None:
        """Tell the host, in the next incoming mailbox, what became of the CCB at this address."""
        self._finished.append((status, ccb, host, target))
        if len(self._finished) == 1:
            self._deliver()

    def host_is_alive(self) -> None:
        """The host touched a port: if it was waited for long, look again soon."""
        if self._finished and self._waits:
            self._waits = None
            self._wait()

    def _deliver(self) -> None:
        layout = self.layout
        while self._finished:
            at = self.base + layout.box * (self.count + self._next_in)
            if self._master.dma_read(at + layout.code_at, 1)[0]:
                self._wait()
                return
            self._master.dma_write(at, layout.incoming(*self._finished.popleft()))
            self._next_in = (self._next_in + 1) % self.count
            self._waits = None
            self._stored()

    def _wait(self) -> None:
        # Ever more rarely: a host that is gone must not keep the machine's clock running for ever.
        self._waits = waits = 0 if self._waits is None else self._waits + 1
        self.waited += 1
        if waits < WAITS:
            self._after(FIRST_WAIT << waits, lambda: self._deliver() if self._waits == waits else None)
