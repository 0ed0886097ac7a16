"""How the NVMe driver tells its controller of commands, and how it learns what has completed.

The doorbell is rung once for all commands that were written, before anything that may wait. Completions are looked for
when an interrupt says so: by messages, one for the admin queue and one for each pair, or all by one; or by the pin; or,
where the machine has neither, every now and then. So it is, too, where a pin stays up though nothing is left to be
taken, as that of QEMU's model does where commands end in the middle of a reset.

An interrupt that goes through an event loop takes far longer than a fast device. So whoever is going to wait may look
for completions himself for a while (`spin`). A request that is the only one is so started, seen to and ended by whoever
submits it, without a change of context. Where there are more, the context that serves them rings for all and looks for
all. Both give way, so that nobody is kept from running for longer than a spin.

Source: NVM Express Base Specification 1.4: 4.1 (queues), 7.2 (command submission and completion), 7.5 (interrupts).
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from busdma.drivers.host import Host
from busdma.drivers.nvme import layout
from busdma.drivers.nvme.controller import Controller
from busdma.drivers.nvme.queue import QueuePair
from busdma.drivers.nvme.slot import Slot, Unit
from busdma.drivers.queues import Request
from busdma.errors import ConfigurationError, DeadlineExpired, ResourceShortage
from busdma.machine.attachment import Attachment, InterruptLine, MmioRegisters
from busdma.waiting import PENDING, Waiter

if TYPE_CHECKING:
    from busdma.tag import Tag

MOST_IN_VAIN: Final = 1000  #: interrupts by the pin, one after the other, before it is masked
STUCK_POLL: Final = 1_000_000  #: ns between two looks then
TURN: Final = 1_000_000  #: ns that requests which are the only ones may go on before the others have a turn


class Vectors(Protocol):
    """Interrupts by message, as the bus has them (`busdma.drivers.msix.Msix`)."""

    @property
    def vectors(self) -> int:
        """How many the controller has."""

    def start(self) -> None:
        """Take the place of the pin."""

    def line(self, vector: int) -> InterruptLine:
        """What that vector interrupts. ResourceShortage."""

    def stop(self) -> None:
        """Send none any more."""


class Reaper(Host[Slot, Unit]):
    """A controller's queues, and the contexts that look at them.

    `poll`: ns between two looks at the completion queues; no interrupts then, but one that comes all the same has the
    controller asked whether it is still there. `spin`: so many ns of real time whoever
    is going to wait looks for completions first. `vectors`: messages, if there are any, take the place of the pin.
    """

    def __init__(
        self,
        attachment: Attachment,
        tag: Tag,
        registers: MmioRegisters,
        *,
        maxio: int,
        timeout: int,
        poll: int,
        spin: int,
        vectors: Vectors | None,
    ) -> None:
        super().__init__(attachment, tag, maxio=maxio, timeout=timeout)
        if poll < 0 or spin < 0:
            raise ConfigurationError(f"{self.name}: give times of 0 ns or more, not a poll of {poll}, a spin of {spin}")
        self._registers, self._poll, self._spin = registers, poll, spin
        self._masked = False  # the pin, which was stuck: polled instead
        self._taken = 0  # completions
        self._vectors = None if poll else vectors
        self._by_message = False
        self._line = attachment.interrupt  # of the admin queue, and of all pairs that have none of their own
        self._pairs: list[QueuePair] = []
        self._by_id: dict[tuple[int, int], Slot] = {}  # by pair and command identifier
        self._idle: Waiter | None = None  # where nothing is under way, nothing is looked for
        self._gave_way = 0  # when everybody could last run
        self._controller: Controller

    @abstractmethod
    def _conclude(self, slot: Slot) -> None:
        """As `Host._conclude`."""

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def _take_interrupts(self) -> None:
        """By message, if that can be; or by the pin. The controller's registers answer."""
        if self._masked:
            self._masked, self._poll = False, 0
            self._registers.write32(layout.UNMASK_PIN, layout.EVERY_VECTOR)
        self._by_message, self._line = False, self._attachment.interrupt
        if self._vectors is not None:
            self._vectors.start()
            with suppress(ResourceShortage):
                self._line, self._by_message = self._vectors.line(0), True
            if not self._by_message:
                self._vectors.stop()

    def _leave_interrupts(self) -> None:
        if self._by_message and self._vectors is not None:
            self._vectors.stop()

    def _interrupt_by_its_own(self, pair: QueuePair, pairs: int) -> None:
        """Have `pair` interrupt by a message of its own, if the controller has enough for all `pairs`."""
        if not self._by_message or self._vectors is None or self._vectors.vectors <= pairs:
            return
        try:
            line = self._vectors.line(pair.id)
        except ResourceShortage:
            return  # then by that of the admin queue
        pair.vector = pair.id
        self._context(partial(self._complete_pair, pair, line), f"complete {pair.id}")

    # -- telling, and looking right away ------------------------------------------------------------------------------

    def _tell(self, unit: Unit) -> None:
        self._ring(unit)
        self._look()

    def _tell_early(self, unit: Unit) -> None:
        self._ring(unit)

    def _ring(self, unit: Unit, *, idle: bool = False) -> None:
        with self._lock:
            if unit.pair.live and not self._closed:  # whoever submits is no context that a stop waits for
                unit.pair.ring(idle=idle)

    async def _attend(self, unit: Unit) -> None:
        self._ring(unit)
        while self._spin and unit.queue.busy and self._spin_for(unit.pair):
            await self._give_way()  # to those whose requests have ended, and who may have made more
            self._ring(unit)
            if len(unit.queue):
                break  # it may conflict with what is in flight, which somebody has to look for
        self._look()

    def _attend_express(self, unit: Unit, last: Request, count: int) -> Coroutine[Any, Any, None] | None:
        if self._spin and unit.queue.alone(count):
            return self._attend_alone(unit, last.done, count)
        unit.crowded = True
        self._see_to(unit)
        return None

    async def _attend_alone(self, unit: Unit, done: Waiter, count: int) -> None:
        queue = unit.queue
        try:
            self._ring(unit, idle=count == 1)  # of several it may have been told already
            if unit.crowded or time.monotonic_ns() - self._gave_way > TURN:
                await self._give_way()
                unit.crowded = not queue.alone(count)
            if not unit.crowded:
                self._spin_for(unit.pair, done)
        finally:
            if done.state == PENDING or (count > 1 and queue.busy):
                self._see_to(unit)

    async def _give_way(self) -> None:
        await self._runtime.give_way()
        self._gave_way = time.monotonic_ns()

    def _spin_for(self, pair: QueuePair, done: Waiter | None = None) -> bool:
        """Look for completions until there are some; with `done`, until that is over. False: it was in vain."""
        begin, pairs = time.monotonic_ns(), (pair,)
        end = begin + self._spin
        while True:
            with self._lock:  # a stop waits for contexts, and whoever submits is none: it finds him here, or not at all
                found = not self._closed and self._reap(pairs, lazily=True)
            if found if done is None else done.state != PENDING:
                return True
            now = time.monotonic_ns()
            if found:  # the others of a batch; it goes on
                end = min(now + self._spin, begin + max(self._spin, TURN))
            if now > end:
                return False

    # -- completions --------------------------------------------------------------------------------------------------

    async def _complete(self) -> None:
        taken = vain = 0
        while True:
            if self._poll:
                await self._pause()
            else:
                await self._line.wait()
                self._counts["interrupts"] += 1
            self._reap([self._controller.queues, *(pair for pair in self._pairs if not pair.vector)])
            if not (self._poll or self._by_message):
                self._registers.read32(layout.CSTS)  # brings the head to the controller, and it lowers its pin
                vain = vain + 1 if taken == self._taken else 0
                taken = self._taken
                if vain > MOST_IN_VAIN:
                    self._masked, self._poll = True, STUCK_POLL
                    self._registers.write32(layout.MASK_PIN, layout.EVERY_VECTOR)

    async def _complete_pair(self, pair: QueuePair, line: InterruptLine) -> None:
        """The completion context of a pair that has a message of its own."""
        while True:
            await line.wait()
            self._counts["interrupts"] += 1
            self._reap([pair])

    async def _pause(self) -> None:
        """Until it is time to look again; as long as nothing is under way there is nothing to look for."""
        with self._lock:
            busy = self._controller.asked or any(slot.told for slot in self._slots)
            self._idle = idle = None if busy else Waiter(f"work for {self.name}")
        if idle is not None:
            await self._runtime.park(idle)
        try:
            await self._attachment.interrupt.wait(self._runtime.now() + self._poll)
        except DeadlineExpired:
            return
        self._registers.read32(layout.CSTS)  # nobody was to interrupt: perhaps the device has gone

    def _close(self, error: Exception) -> None:
        super()._close(error)
        self._controller.give_up(error)

    def _look(self) -> None:
        """Something is under way."""
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None:
            idle.wake()

    def _reap_all(self) -> None:
        self._reap([self._controller.queues, *self._pairs])

    def _reap(self, pairs: Iterable[QueuePair], *, lazily: bool = False) -> bool:
        """Take every new completion from these queues, and only then end what they belong to. False: there was none.

        `lazily`: look for those of commands that are under way, and no further; the controller need not hear at once
        that its entries are free.
        """
        over: list[Slot] = []
        found, pin = False, not (self._by_message or self._poll)  # which waits for the head
        with self._lock:
            for pair in pairs:
                while pair.live and (pair.under_way or not lazily) and (completion := pair.take()) is not None:
                    found = True
                    self._taken += 1
                    slot = self._by_id.get((pair.id, completion.id))
                    if pair.id == 0:
                        self._counts["stray"] += not self._controller.answered(completion)
                    elif slot is None or not slot.told:
                        self._counts["stray"] += 1
                    else:
                        slot.told, slot.status = False, completion.status
                        if slot.abort is None:
                            over.append(slot)
                        else:
                            slot.abort.wake()  # an abort of it is under way, and may not find another command here
                if pair.live:
                    pair.ring_head(lazily=lazily and not pin, surely=pin)
        for slot in over:
            self._conclude(slot)
        return found
