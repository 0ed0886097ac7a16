"""What the driver of every SCSI controller does alike, whatever its registers: contexts, retries, aborts, resets.

- *serve*, one a disk: takes its requests in order, waits for a slot and for the load of its map, and starts the
  command. It may wait for anything; a shortage stalls this disk and no other (Thorpe, tech-kern 12 June 1998).
- *complete*, one, the controller's own: waits for the interrupt and ends what has finished. It waits for nothing else,
  so what has finished gives its bounce pages back, whoever waits for some.
- *recover*, one: aborts what took too long, and resets the controller if that does not help. Never waits for a pool.

A controller's driver derives from `ScsiHost` and says how a command is started and aborted, and how a reset is done.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

from busdma.drivers import scsi
from busdma.drivers.disk import ScsiDisk, ScsiFault, find_disk
from busdma.drivers.queues import Channel, Request, RequestQueue
from busdma.errors import DeadlineExpired, DeviceFault, DriverError
from busdma.machine.attachment import Attachment
from busdma.sync import Direction
from busdma.waiting import Task, Timer, Waiter

if TYPE_CHECKING:
    from busdma.map import Map
    from busdma.tag import Tag

SECOND: Final = 1_000_000_000  # ns
TIMEOUT: Final = 10 * SECOND  #: of a command without a deadline, from when the device is told
ABORT_TIME: Final = 2 * SECOND
MOST_ATTEMPTS: Final = 8
MOST_RESETS: Final = 2  #: that one request outlives
RETRY_NOW, RETRY_BUSY, RETRY_NOT_READY = 0, SECOND // 10, SECOND


class Unit:
    """A target and logical unit, with its queue."""

    __slots__ = ("lun", "queue", "target")

    def __init__(self, target: int, lun: int, queue: RequestQueue) -> None:
        self.target, self.lun, self.queue = target, lun, queue


class Slot:
    """One command's place in the controller: a map for its data, and the request it carries, if any."""

    __slots__ = ("abort", "loaded", "map", "outcome", "request", "resting", "timer", "told", "unit")

    def __init__(self, data: Map) -> None:
        self.map = data
        self.clear()

    def clear(self) -> None:
        """Carry nothing."""
        self.request: Request | None = None
        self.unit: Unit | None = None
        self.loaded: Direction | None = None  #: the map is loaded, this way
        self.told = False  #: the controller has it
        self.resting = False  #: it waits for its next try
        self.timer: Timer | None = None
        self.abort: Waiter | None = None  #: its time is over
        self.outcome: scsi.Outcome | None = None


S = TypeVar("S", bound=Slot)


class ScsiHost(ABC, Generic[S]):
    """One controller. ``start``, then use ``disks``."""

    HOST_STATUS: ClassVar[dict[int, str]]  #: the controller's codes in words
    ABSENT: ClassVar[frozenset[int]] = frozenset()  #: of these, the ones that say that nobody is there

    def __init__(self, attachment: Attachment, tag: Tag, *, maxio: int, timeout: int = TIMEOUT) -> None:
        self.name, self.tag = attachment.name, tag
        self.disks: list[ScsiDisk] = []
        self.silent: dict[str, DeviceFault] = {}  #: units that are there but could not be used, and why
        self._attachment, self._runtime = attachment, attachment.runtime
        self._maxio, self._timeout = maxio, timeout
        self._lock = threading.RLock()  # contexts may be OS threads; held briefly, never across an await
        self._open = False  # the controller takes commands
        self._held: list[S] = []  # to be started when it does
        self._slots: list[S] = []
        self._units: list[Unit] = []
        self._tasks: list[Task[None]] = []
        self._free: Channel[S] = Channel("")
        self._trouble: Channel[tuple[S, Request] | str] = Channel("")
        self._counts = dict.fromkeys(("interrupts", "commands", "retries", "aborts", "resets", "stray"), 0)

    # -- what a controller's driver says ------------------------------------------------------------------------------

    @abstractmethod
    def _allocate(self) -> list[S]:
        """Allocate control memory and the slots."""

    @abstractmethod
    async def _bring_up(self, hard: bool) -> None:
        """Reset the controller, and the SCSI bus, and make it ready for commands. DeviceFault if it will not."""

    @abstractmethod
    async def _installed(self) -> list[tuple[int, int]]:
        """The (target, logical unit) pairs that are there, or that may be, if a command can end with ABSENT."""

    @abstractmethod
    def _begin(self, slot: S) -> None:
        """Tell the controller of the slot's command. Under the lock."""

    @abstractmethod
    def _begin_abort(self, slot: S) -> None:
        """Tell the controller to abort it. ``_aborted`` is called when it says that it has, or knows of none."""

    @abstractmethod
    async def _complete(self) -> None:
        """The completion context."""

    @abstractmethod
    async def _quiesce(self) -> None:
        """Reset the controller and leave it so. DeviceFault if it will not."""

    @abstractmethod
    def _deallocate(self) -> None:
        """Free the control memory."""

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reset the controller and find its disks. DeviceFault if it will not; after a cancelled start, ``stop``."""
        if self._tasks:
            raise DriverError(f"{self.name} is already started")
        self._slots = self._allocate()
        self._free = Channel(f"a command slot of {self.name}", self._slots)
        self._trouble = Channel(f"trouble with {self.name}")
        self._context(self._complete, "complete")
        self._context(self._recover, "recover")
        try:
            await self._bring_up(hard=True)
            self._reopen()
            for target, lun in await self._installed():
                await self._add(target, lun)
        except Exception:
            with suppress(DeviceFault):
                await self.stop()
            raise

    async def stop(self) -> None:
        """End all contexts and reset the controller. What was under way fails; nothing reaches memory any more."""
        if not self._tasks:
            return
        stopped = DriverError(f"{self.name} was stopped")
        self._close(stopped)
        for task in self._tasks:
            task.cancel()
            await self._runtime.park(task.done)
        for slot in self._slots:
            if slot.loaded is not None:
                slot.map.quarantine()
        try:
            await self._quiesce()  # if that fails it may still write: maps and control memory stay where they are
        finally:
            self._fail_in_flight(stopped)
        self.tag.report_idle()
        for slot in self._slots:
            slot.map.destroy()
        self._deallocate()
        for things in (self._tasks, self._slots, self._units, self.disks):
            things.clear()

    def statistics(self) -> dict[str, Any]:
        """Counters since the driver was made, and what is queued and in flight now, by disk."""
        queues = {u.queue.name: {"queued": len(u.queue), "in_flight": len(u.queue.in_flight)} for u in self._units}
        return {**self._counts, "free_slots": len(self._free), "disks": queues}

    async def _add(self, target: int, lun: int) -> None:
        name = f"{self.name}:{target}" + (f".{lun}" if lun else "")
        unit = Unit(target, lun, RequestQueue(name, self._runtime))
        self._units.append(unit)
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

    def _context(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> Task[None]:
        async def context() -> None:
            try:
                await run()
            except Exception as error:  # without this context nothing would ever end
                self._break(DeviceFault(f"the driver of {self.name} failed in context {name!r}: {error!r}"))
                raise

        task = self._runtime.start(context, name=f"{self.name} {name}")
        self._tasks.append(task)
        return task

    def _reopen(self) -> None:
        with self._lock:
            self._open = True
            held, self._held = self._held, []
            for slot in held:
                self._post(slot)

    def _close(self, error: Exception) -> None:
        """Serve nothing any more."""
        with self._lock:
            self._open = False
            for slot in self._slots:
                if slot.timer is not None:
                    slot.timer.cancel()
        for unit in self._units:
            unit.queue.close(error)

    def _fail_in_flight(self, error: Exception) -> None:
        for unit in self._units:
            for request in list(unit.queue.in_flight):
                unit.queue.settle(request, error)

    def _break(self, error: Exception) -> None:
        self._close(error)
        self._fail_in_flight(error)

    # -- serve: requests become commands ------------------------------------------------------------------------------

    async def _serve(self, unit: Unit) -> None:
        while True:
            request = await unit.queue.next()
            slot: S | None = None
            try:
                slot = await self._free.take(self._runtime, request.deadline)
                if request.buffer is not None:
                    await slot.map.load(request.buffer, request.direction, deadline=request.deadline)
                    slot.loaded = request.direction
            except BaseException as error:
                if slot is not None:
                    self._release(slot)
                if not isinstance(error, Exception):
                    raise
                unit.queue.settle(request, error)
            else:
                self._launch(slot, unit, request)

    def _launch(self, slot: S, unit: Unit, request: Request) -> None:
        if not unit.queue.start(request):
            self._release(slot)
            unit.queue.settle(request, None)
            return
        if slot.loaded is not None:
            slot.map.sync(slot.loaded.pre)
        with self._lock:
            slot.unit, slot.request = unit, request
            end = self._runtime.now() + self._timeout if request.deadline is None else request.deadline
            slot.timer = self._runtime.call_at(end, partial(self._trouble.put, (slot, request)))
            self._post(slot)

    def _post(self, slot: S) -> None:
        if not self._open:
            self._held.append(slot)
            return
        slot.resting, slot.told, slot.outcome = False, True, None
        self._counts["commands"] += 1
        self._begin(slot)

    # -- completions --------------------------------------------------------------------------------------------------

    def _finished(self, slot: S, outcome: scsi.Outcome) -> None:
        """The controller has done with `slot`'s command. For the completion context."""
        with self._lock:
            slot.outcome = outcome
            if slot.abort is not None:
                return  # the answer to the abort is still to come, and may not find this slot with a new command
            slot.told = False
        self._conclude(slot)

    def _aborted(self, slot: S) -> None:
        """The controller has aborted `slot`'s command, or knows it no more. For the completion context."""
        with self._lock:
            if slot.abort is None:
                self._counts["stray"] += 1
                return
            slot.told = False
            slot.abort.wake()
        self._conclude(slot)

    def _over(self, slot: S, outcome: scsi.Outcome | None) -> None:
        """As both of these, of a controller that has no other answer to an abort than that the command is over."""
        with self._lock:
            slot.outcome, slot.told = outcome, False
            if slot.abort is not None:
                slot.abort.wake()
        self._conclude(slot)

    def _landed(self, slot: S) -> None:
        """The device's data are in the request's buffer. For what did not come by DMA."""

    def _conclude(self, slot: S) -> None:
        """The controller has let go of `slot`: try again, or settle its request."""
        assert slot.unit is not None
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
                if delay is not None:
                    self._counts["retries"] += 1
                    request.attempts += not crowded
                    slot.resting = True
                    self._runtime.call_at(self._runtime.now() + delay, partial(self._retry, slot, request))
                    return
            if host == 0 and succeeded(target, sense) and (residual == 0 or request.buffer is None):
                result = outcome.reply[: max(0, request.reply - residual)]
            else:
                words = [self.HOST_STATUS.get(host, f"host status {host:#04x}"), scsi.name_status(target)]
                words += [str(sense)] if sense else []
                words += [f"{residual} bytes not moved"] if residual else []
                text = f"{name} failed: {'; '.join(words)}"
                result = ScsiFault(text, cdb=request.cdb, host_status=host, target_status=target, sense=sense)
        self._release(slot, told=True)
        unit.queue.settle(request, result)

    def _retry(self, slot: S, request: Request) -> None:
        with self._lock:
            if slot.request is request and slot.abort is None:
                self._post(slot)

    def _release(self, slot: S, told: bool = False) -> None:
        """Unload, and let the next request have the slot. `told`: the device has seen the map."""
        if slot.timer is not None:
            slot.timer.cancel()
        if slot.loaded is not None:
            if told:
                slot.map.sync(slot.loaded.post)
                self._landed(slot)
            slot.map.unload()
        slot.clear()
        self._free.put(slot)

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

    async def _reset(self, why: str) -> None:
        """Reset bus and controller. What timed out fails; what was only in the way is done again, in the same order."""
        self._counts["resets"] += 1
        with self._lock:
            self._open = False
            lost = [slot for slot in self._slots if slot.told]
            for slot in lost:
                if slot.timer is not None:
                    slot.timer.cancel()
                if slot.loaded is not None:
                    slot.map.quarantine()  # its fate is unknown until the controller has been reset
        try:
            try:
                await self._bring_up(hard=False)
            except DeviceFault:
                await self._bring_up(hard=True)
        except (DriverError, DeviceFault) as fault:
            self._break(DeviceFault(f"{self.name} is out of service: {why}; the reset failed: {fault}"))
            return
        again: list[Request] = []
        for slot in lost:
            assert slot.unit is not None
            assert slot.request is not None
            slot.map.report_idle()  # and no other: who waits to be started has given its data already
            queue, request = slot.unit.queue, slot.request
            request.resets += 1
            if slot.abort is None and request.resets <= MOST_RESETS:
                again.append(request)
            else:
                text = f"{queue.name}: {scsi.name_command(request.cdb)} was lost when {self.name} was reset: {why}"
                queue.settle(request, ScsiFault(text, cdb=request.cdb))
            slot.clear()
            self._free.put(slot)
        for unit in self._units:
            unit.queue.put_back(again)
        self._reopen()


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
