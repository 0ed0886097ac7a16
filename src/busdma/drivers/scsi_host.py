"""What the driver of every SCSI controller does alike, whatever its registers: units, sense data, aborts, bus resets.

A controller's driver derives from `ScsiHost` and says how a command is started and aborted, and how a reset is done.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from busdma.drivers import host, scsi
from busdma.drivers.disk import ScsiDisk, ScsiFault, find_disk
from busdma.drivers.host import SECOND, TIMEOUT, Host
from busdma.drivers.queues import Channel, RequestQueue
from busdma.errors import DeadlineExpired, DeviceFault
from busdma.machine.attachment import Attachment
from busdma.waiting import Waiter

if TYPE_CHECKING:
    from busdma.tag import Tag

ABORT_TIME: Final = 2 * SECOND
MOST_ATTEMPTS: Final = 8
RETRY_NOW, RETRY_BUSY, RETRY_NOT_READY = 0, SECOND // 10, SECOND


class Unit(host.Unit):
    """A target and logical unit, with its queue. The slots are those of all units."""

    __slots__ = ("lun", "target")

    def __init__(self, target: int, lun: int, queue: RequestQueue, free: Channel[Any]) -> None:
        super().__init__(queue, free)
        self.target, self.lun = target, lun


class Slot(host.Slot[Unit]):
    """As `busdma.drivers.host.Slot`, with what the controller says of its command."""

    __slots__ = ("outcome",)

    def clear(self) -> None:
        """Carry nothing."""
        super().clear()
        self.outcome: scsi.Outcome | None = None

    def give(self) -> None:
        """The controller gets it: nothing is known of this try yet."""
        super().give()
        self.outcome = None


S = TypeVar("S", bound=Slot)


class ScsiHost(Host[S, Unit]):
    """One controller. ``start``, then use ``disks``."""

    HOST_STATUS: ClassVar[dict[int, str]]  #: the controller's codes in words
    ABSENT: ClassVar[frozenset[int]] = frozenset()  #: of these, the ones that say that nobody is there

    def __init__(self, attachment: Attachment, tag: Tag, *, maxio: int, timeout: int = TIMEOUT) -> None:
        super().__init__(attachment, tag, maxio=maxio, timeout=timeout)
        self.disks: list[ScsiDisk] = []
        self._free: Channel[S] = Channel("")

    # -- what a controller's driver says ------------------------------------------------------------------------------

    @abstractmethod
    def _make_slots(self) -> list[S]:
        """Allocate control memory and the slots."""

    @abstractmethod
    async def _bring_up(self, hard: bool) -> None:
        """Reset the controller, and the SCSI bus, and make it ready for commands. DeviceFault if it will not."""

    @abstractmethod
    async def _installed(self) -> list[tuple[int, int]]:
        """The (target, logical unit) pairs that are there, or that may be, if a command can end with ABSENT."""

    @abstractmethod
    def _begin_abort(self, slot: S) -> None:
        """Tell the controller to abort it. ``_aborted`` is called when it says that it has, or knows of none."""

    @abstractmethod
    def _free_memory(self) -> None:
        """Free the control memory."""

    # -- start and stop -----------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        self._slots = self._make_slots()
        self._free = Channel(f"a command slot of {self.name}", self._slots)

    async def _find(self) -> None:
        await self._bring_up(hard=True)
        self._reopen()
        for target, lun in await self._installed():
            await self._add(target, lun)

    async def _revive(self) -> None:
        try:
            await self._bring_up(hard=False)
        except DeviceFault:
            await self._bring_up(hard=True)

    def _deallocate(self) -> None:
        self.disks.clear()
        self._free_memory()

    def statistics(self) -> dict[str, Any]:
        """Counters since the driver was made, and what is queued and in flight now, by disk."""
        return {**super().statistics(), "free_slots": len(self._free)}

    async def _add(self, target: int, lun: int) -> None:
        name = f"{self.name}:{target}" + (f".{lun}" if lun else "")
        unit = Unit(target, lun, RequestQueue(name, self._runtime), self._free)
        self._admit(unit)
        server = self._context(partial(self._serve, unit), name)
        try:
            disk = await find_disk(unit.queue, self._maxio)
        except DeviceFault as fault:
            if isinstance(fault, ScsiFault) and fault.host_status in self.ABSENT:
                self._units.remove(unit)
                server.cancel()
            else:
                self.silent[name] = fault
        else:
            if disk is not None:
                self.disks.append(disk)

    # -- completions --------------------------------------------------------------------------------------------------

    def _finished(self, slot: S, outcome: scsi.Outcome) -> None:
        """The controller has done with `slot`'s command. For the completion context."""
        with self._lock:
            if not slot.told:
                return  # a reset came first
            slot.outcome = outcome
            if slot.abort is not None:
                return  # the answer to the abort is still to come, and may not find this slot with a new command
            slot.told = False
        self._conclude(slot)

    def _aborted(self, slot: S) -> None:
        """The controller has aborted `slot`'s command, or knows it no more. For the completion context."""
        with self._lock:
            if slot.abort is None or not slot.told:
                self._counts["stray"] += 1
                return
            slot.told = False
            slot.abort.wake()
        self._conclude(slot)

    def _over(self, slot: S, outcome: scsi.Outcome | None) -> None:
        """As both of these, of a controller that has no other answer to an abort than that the command is over."""
        with self._lock:
            if not slot.told:
                return  # a reset came first
            slot.outcome, slot.told = outcome, False
            if slot.abort is not None:
                slot.abort.wake()
        self._conclude(slot)

    def _conclude(self, slot: S) -> None:
        assert slot.request is not None
        unit, request, outcome = slot.unit, slot.request, slot.outcome
        name = f"{unit.queue.name}: {scsi.name_command(request.cdb)}"
        result: bytes | ScsiFault
        if outcome is None:
            result = ScsiFault(f"{name} was aborted: no answer in time", cdb=request.cdb)
        else:
            host, target, residual = outcome[:3]
            sense = scsi.parse_sense(outcome.sense) if target == scsi.CHECK_CONDITION else None
            crowded = target == scsi.QUEUE_FULL and len(unit.queue.in_flight) > 1  # there is room when others end
            if host == 0 and slot.abort is None and (crowded or request.attempts + 1 < MOST_ATTEMPTS):
                delay = retry_delay(target, sense)
                request.attempts += not crowded
                if delay is not None and self._rest(slot, delay):
                    return
            if host == 0 and succeeded(target, sense) and (residual == 0 or request.buffer is None):
                result = outcome.reply[: max(0, request.reply - residual)]
            else:
                words = [self.HOST_STATUS.get(host, f"host status {host:#04x}"), scsi.name_status(target)]
                words += [str(sense)] if sense else []
                words += [f"{residual} bytes not moved"] if residual else []
                text = f"{name} failed: {'; '.join(words)}"
                result = ScsiFault(text, cdb=request.cdb, host_status=host, target_status=target, sense=sense)
        self._settle(slot, request, result)

    # -- recover: abort, then reset -----------------------------------------------------------------------------------

    async def _recover(self) -> None:
        while True:
            trouble = await self._trouble.take(self._runtime)
            if isinstance(trouble, str):
                await self._reset(trouble)
                continue
            slot, request = trouble
            with self._lock:
                if slot.request is not request:
                    continue  # it ended meanwhile
                # also for one whose end is just being looked at: it is not tried again then
                slot.abort = answer = Waiter(f"the abort of a command by {self.name}")
                told, resting = slot.told, slot.resting
                if told:
                    self._counts["aborts"] += 1
                    self._begin_abort(slot)
            if resting:
                self._conclude(slot)
            elif told:
                try:
                    await self._runtime.park(answer, self._runtime.now() + ABORT_TIME)
                except DeadlineExpired:
                    await self._reset("it did not answer an abort")

    def _lost(self, slot: S, why: str) -> DeviceFault:
        assert slot.request is not None
        cdb = slot.request.cdb
        text = f"{slot.unit.queue.name}: {scsi.name_command(cdb)} was lost when {self.name} was reset: {why}"
        return ScsiFault(text, cdb=cdb)


def retry_delay(status: int, sense: scsi.Sense | None) -> int | None:
    """After how many ns to try a command again that ended with `status` and `sense`; None: not."""
    if status in (scsi.BUSY, scsi.QUEUE_FULL):
        return RETRY_BUSY
    if sense is None:
        return None
    if sense.key in (scsi.UNIT_ATTENTION, scsi.ABORTED_COMMAND):  # after a reset each unit says so, once
        return RETRY_NOW
    becoming_ready = (sense.key, sense.asc, sense.ascq) == (scsi.NOT_READY, 0x04, 0x01)
    return RETRY_NOT_READY if becoming_ready else None


def succeeded(status: int, sense: scsi.Sense | None) -> bool:
    """True if a command that ended with `status` and `sense` did what it was asked to."""
    if status == scsi.CHECK_CONDITION and sense is not None:
        return sense.key in (scsi.NO_SENSE, scsi.RECOVERED_ERROR)
    return status == scsi.GOOD
