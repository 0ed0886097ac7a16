"""What the driver of every controller with many commands in flight does alike: contexts, deadlines, retries, resets.

- *serve*, one a unit (a disk, a namespace): takes its requests in order, waits for a slot and for the load of its map,
  and starts the command. It may wait for anything; a shortage stalls this unit and no other (Thorpe, tech-kern 12 June
  1998).
- *complete*, one, the controller's own: waits for the interrupt and ends what has finished. It waits for nothing else,
  so what has finished gives its bounce pages back, whoever waits for some.
- *recover*, one: aborts what took too long, and resets the controller if that does not help. Never waits for a pool.

Where a driver lets requests go *express*, a request that need not wait for anything, nor for a request before it, is
started by whoever submits it; *serve* is then only told of it.

A driver derives from `Host` and says how a command is started, aborted and told from others, and how a reset is done.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from busdma.drivers import contexts
from busdma.drivers.queues import Channel, Request, RequestQueue
from busdma.drivers.watch import Watch
from busdma.errors import DeviceFault, DriverError, ResourceShortage
from busdma.machine.attachment import Attachment
from busdma.sync import Direction
from busdma.waiting import Task, Waiter

if TYPE_CHECKING:
    from busdma.map import Map
    from busdma.tag import Tag

SECOND: Final = 1_000_000_000  # ns
TIMEOUT: Final = 10 * SECOND  #: of a command without a deadline, from when the device is told
MOST_RESETS: Final = 2  #: that one request outlives

U = TypeVar("U", bound="Unit")


class Unit:
    """What has an order of its own, with its requests and the slots that it may use, perhaps with others."""

    __slots__ = ("free", "queue")

    def __init__(self, queue: RequestQueue, free: Channel[Any]) -> None:
        self.queue, self.free = queue, free


class Slot(Generic[U]):
    """One command's place in the controller: a map for its data, and the request it carries, if any."""

    __slots__ = ("abort", "loaded", "map", "request", "resting", "told", "unit")

    unit: U  #: whose request it carries, or last carried

    def __init__(self, data: Map) -> None:
        self.map = data
        self.clear()

    def clear(self) -> None:
        """Carry nothing."""
        self.request: Request | None = None
        self.loaded: Direction | None = None  #: the map is loaded, this way
        self.told = False  #: the controller has it
        self.resting = False  #: it waits for its next try
        self.abort: Waiter | None = None  #: its time is over

    def give(self) -> None:
        """The controller gets it: nothing is known of this try yet."""
        self.resting, self.told = False, True


S = TypeVar("S", bound=Slot[Any])


class HostExpress(Generic[U]):
    """`busdma.drivers.queues.Express` of one unit."""

    __slots__ = ("_host", "_unit")

    def __init__(self, host: Host[Any, U], unit: U) -> None:
        self._host, self._unit = host, unit

    def start(self, request: Request) -> bool:
        """As `Express.start`."""
        return self._host._start_now(self._unit, request)

    def tell(self) -> None:
        """As `Express.tell`."""
        self._host._tell_early(self._unit)

    def attend(self, last: Request, count: int) -> Coroutine[Any, Any, None] | None:
        """As `Express.attend`."""
        return self._host._attend_express(self._unit, last, count)


class Host(ABC, Generic[S, U]):
    """One controller."""

    def __init__(self, attachment: Attachment, tag: Tag, *, maxio: int, timeout: int = TIMEOUT) -> None:
        self.name, self.tag = attachment.name, tag
        self.silent: dict[str, DeviceFault] = {}  #: units that are there but could not be used, and why
        self._attachment, self._runtime = attachment, attachment.runtime
        self._maxio, self._timeout = maxio, timeout
        self._lock = threading.RLock()  # contexts may be OS threads; held briefly, never across an await
        self._open = False  # the controller takes commands
        self._closed = False  # and will take none any more
        self._why: Exception | None = None  # why not
        self._stopping: Channel[None] = Channel(f"the end of {self.name}", [None])  # one stop at a time
        self._held: list[S] = []  # to be started when it does
        self._slots: list[S] = []
        self._units: list[U] = []
        self._tasks: list[Task[None]] = []
        self._trouble: Channel[tuple[S, Request] | str] = Channel(f"trouble with {self.name}")
        self._watch: Watch[Request] = Watch(self._runtime, self._late)
        self._counts = dict.fromkeys(("interrupts", "commands", "retries", "aborts", "resets", "stray"), 0)

    # -- what a controller's driver says ------------------------------------------------------------------------------

    @abstractmethod
    def _allocate(self) -> None:
        """Allocate control memory, and slots if their number is known."""

    @abstractmethod
    async def _find(self) -> None:
        """Reset the controller, take commands, and ``_add`` what is there. DeviceFault if it will not."""

    @abstractmethod
    def _begin(self, slot: S) -> None:
        """Start the slot's command. Under the lock."""

    def _tell(self, unit: U) -> None:
        """See that the controller knows what was begun for `unit`, whose context is going to wait."""

    def _tell_early(self, unit: U) -> None:
        """As `Express.tell`: the controller may know already. Whoever started them does not wait yet."""

    async def _attend(self, unit: U) -> None:
        """`unit` has nothing left that can be started: its context is going to wait for more."""
        self._tell(unit)

    def _see_to(self, unit: U) -> None:
        """Have the controller told of what went express: by the unit's context, once for all, if that does not wait."""
        if not unit.queue.call():
            self._tell(unit)

    def _attend_express(self, unit: U, last: Request, count: int) -> Coroutine[Any, Any, None] | None:
        """As `Express.attend`: what whoever waits for `last` may do himself before."""
        self._see_to(unit)
        return None

    @abstractmethod
    async def _complete(self) -> None:
        """The completion context."""

    @abstractmethod
    async def _recover(self) -> None:
        """The recovery context."""

    @abstractmethod
    def _conclude(self, slot: S) -> None:
        """The controller has let go of `slot`: try again (``_rest``), or settle its request (``_settle``)."""

    def _landed(self, slot: S) -> None:
        """The device's data are in the request's buffer. For what did not come by DMA."""

    def _freeze(self) -> None:
        """A reset begins: look at no completion any more. Under the lock."""

    @abstractmethod
    async def _revive(self) -> None:
        """Reset the controller and make it ready for commands. DeviceFault, DriverError if it will not."""

    @abstractmethod
    def _lost(self, slot: S, why: str) -> DeviceFault:
        """The error of a command that a reset took away."""

    @abstractmethod
    async def _quiesce(self) -> None:
        """Reset the controller and leave it so. DeviceFault if it will not."""

    @abstractmethod
    def _deallocate(self) -> None:
        """Forget the disks and free the control memory, which the controller uses no more."""

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reset the controller and find its disks. DeviceFault if it will not; after a cancelled start, ``stop``."""
        if self._tasks:
            raise DriverError(f"{self.name} is already started: stop it first")
        self._closed, self._why = False, None
        self._trouble = Channel(self._trouble.purpose)  # what an earlier run left there is over
        self._allocate()
        self._context(self._complete, "complete")
        self._context(self._recover, "recover")
        try:
            await self._find()
            if self._why is not None:
                raise self._why
        except Exception as error:
            over = self._why  # a context has failed, and of that all else may come
            with suppress(DeviceFault):
                await self.stop()
            if over is None or over is error:
                raise
            raise over from error

    async def stop(self) -> None:
        """End all contexts and reset the controller. What was under way fails; nothing reaches memory any more."""
        await self._stopping.take(self._runtime)
        try:
            if self._tasks:
                await self._stop()
        finally:
            self._stopping.put(None)

    async def _stop(self) -> None:
        stopped = DriverError(f"{self.name} was stopped")
        self._close(stopped)
        for task in self._tasks:
            task.cancel()
            await self._runtime.park(task.done)
        for slot in self._slots:
            slot.map.abandon()  # if a context that failed has not
        try:
            await self._quiesce()  # if that fails it may still write: maps and control memory stay where they are
            self.tag.report_idle()  # before their owners are told that these buffers are theirs again
        finally:
            self._fail_in_flight(stopped)
        for slot in self._slots:
            slot.map.destroy()
            slot.clear()  # a timer may still mean to try its command again
        self._deallocate()
        for things in (self._tasks, self._slots, self._units, self._held):
            things.clear()

    def statistics(self) -> dict[str, Any]:
        """Counters since the driver was made, and what is queued and in flight now, by disk."""
        queues = {u.queue.name: {"queued": len(u.queue), "in_flight": len(u.queue.in_flight)} for u in self._units}
        return {**self._counts, "disks": queues}

    def _context(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> Task[None]:
        task = contexts.start(self._runtime, self.name, name, run, self._break)
        self._tasks.append(task)
        return task

    def _reopen(self) -> None:
        with self._lock:
            if self._closed:  # while the controller was being reset
                return
            self._open = True
            held, self._held = self._held, []
            for slot in held:
                self._post(slot)
        for unit in self._units:
            self._tell(unit)

    def _close(self, error: Exception) -> None:
        """Serve nothing any more."""
        with self._lock:
            self._open, self._closed = False, True
            self._why = self._why or error
            self._watch.clear()
        for unit in self._units:
            unit.queue.close(error)

    def _admit(self, unit: U) -> None:
        """There is one unit more. Raises why nothing is served any more, if that is so."""
        with self._lock:
            if self._why is not None:
                raise self._why
            self._units.append(unit)

    def _fail_in_flight(self, error: Exception) -> None:
        for unit in self._units:
            for request in list(unit.queue.in_flight):
                unit.queue.settle(request, error)

    def _break(self, error: Exception) -> None:
        self._close(error)
        self._fail_in_flight(error)

    # -- serve: requests become commands ------------------------------------------------------------------------------

    async def _serve(self, unit: U) -> None:
        while True:
            request = unit.queue.take()
            if request is None:
                await self._attend(unit)  # before every wait, and only then
                await unit.queue.work()
                continue
            slot: S | None = unit.free.take_now()
            if slot is None:
                self._tell(unit)
            try:
                slot = slot or await unit.free.take(self._runtime, request.deadline)
                slot.unit = unit
                if request.buffer is not None:
                    await self._load(slot, request)
            except BaseException as error:
                if slot is not None:
                    self._release(slot)
                if not isinstance(error, Exception):
                    raise
                unit.queue.settle(request, error)
            else:
                if unit.queue.start(request):
                    self._launch(slot, request)
                else:
                    self._settle(slot, request, None, told=False)

    def _start_now(self, unit: U, request: Request) -> bool:
        """Start it, unless anything is short: then the queue has it back."""
        with self._lock:  # a stop waits for contexts, and whoever submits is none
            slot = None if self._closed else unit.free.take_now()
            if slot is None:
                unit.queue.put_back([request])
                return False
            slot.unit = unit
            try:
                if request.buffer is not None:
                    self._load_now(slot, request)
            except BaseException as error:
                self._release(slot)
                if isinstance(error, ResourceShortage):
                    unit.queue.put_back([request])
                elif isinstance(error, Exception):
                    unit.queue.settle(request, error)
                else:
                    raise
                return False
            request.started = True  # nobody can have given it up
            self._launch(slot, request)
            return True

    def _load_now(self, slot: S, request: Request) -> None:
        """As `_load`, and never waits: ResourceShortage."""
        slot.map.load_nowait(request.buffer, request.direction)
        self._arrange(slot, request)

    async def _load(self, slot: S, request: Request) -> None:
        """Load the slot's map."""
        await slot.map.load(request.buffer, request.direction, deadline=request.deadline)
        self._arrange(slot, request)

    def _arrange(self, slot: S, request: Request) -> None:
        """It is loaded: set the slot's ``loaded``, and whatever the segments are written into."""
        slot.loaded = request.direction

    def _launch(self, slot: S, request: Request) -> None:
        if slot.loaded is not None:
            slot.map.sync(slot.loaded.pre)
        end = self._runtime.now() + self._timeout if request.deadline is None else request.deadline
        with self._lock:
            slot.request = request
            self._watch.begin(request, end)
            self._post(slot)

    def _late(self, request: Request) -> None:
        """The time of a command is over."""
        with self._lock:
            for slot in self._slots:
                if slot.request is request:
                    self._trouble.put((slot, request))

    def _post(self, slot: S) -> None:
        """Start the command, or do it when the controller takes some. Under the lock."""
        if not self._open:
            self._held.append(slot)
            return
        slot.give()
        self._counts["commands"] += 1
        self._begin(slot)

    # -- the end of a command -----------------------------------------------------------------------------------------

    def _rest(self, slot: S, delay: int) -> bool:
        """Try the command again in `delay` ns. False: its time is over meanwhile, end it."""
        with self._lock:
            if slot.abort is not None:
                return False
            assert slot.request is not None
            self._counts["retries"] += 1
            slot.resting = True
            retry = partial(self._retry, slot, slot.request)
        self._runtime.call_at(self._runtime.now() + delay, retry)
        return True

    def _retry(self, slot: S, request: Request) -> None:
        with self._lock:
            if slot.request is not request or not slot.resting or slot.abort is not None:
                return
            try:
                self._post(slot)
                self._tell(slot.unit)
            except DeviceFault as fault:  # a timer has nobody to raise it for
                self._break(fault)

    def _settle(self, slot: S, request: Request, result: bytes | Exception | None, *, told: bool = True) -> None:
        """The request is over, and the next one may have the slot. `told`: the device has seen the map."""
        fault = self._release(slot, told)
        slot.unit.queue.settle(request, result if fault is None or isinstance(result, Exception) else fault)

    def _release(self, slot: S, told: bool = False) -> DeviceFault | None:
        """Unload, and let the next request have the slot. What the machine knows to have gone wrong with the data."""
        fault: DeviceFault | None = None
        if slot.request is not None:
            self._watch.end(slot.request)
        if slot.loaded is not None:
            if told:
                try:
                    slot.map.sync(slot.loaded.post)
                except DeviceFault as error:
                    fault = error
                    slot.map.report_idle()  # the device has ended all the same
                else:
                    self._landed(slot)
            try:
                slot.map.unload()
            except DeviceFault as error:  # of what translates, which may have gone; the map is idle all the same
                fault = fault or error
        slot.clear()
        slot.unit.free.put(slot)
        return fault

    # -- reset --------------------------------------------------------------------------------------------------------

    async def _reset(self, why: str) -> list[S]:
        """Reset the controller. What timed out fails; what was only in the way is done again, in the same order.

        Returns the slots whose commands it took from the controller.
        """
        self._counts["resets"] += 1
        with self._lock:
            self._open = False
            self._freeze()
            lost = [slot for slot in self._slots if slot.told]
            for slot in lost:
                slot.told = False  # whatever is said of it from here on comes too late
                if slot.request is not None:
                    self._watch.end(slot.request)
                if slot.loaded is not None:
                    slot.map.quarantine()  # its fate is unknown until the controller has been reset
        try:
            await self._revive()
        except (DriverError, DeviceFault) as fault:
            self._break(DeviceFault(f"{self.name} is out of service: {why}; the reset failed: {fault}"))
            return lost
        again: list[Request] = []
        late = self._trouble.take_all()  # that their time was over is over too: they fail now, or have another try
        for slot in lost:
            assert slot.request is not None
            slot.map.report_idle()  # and no other: who waits to be started has given its data already
            request = slot.request
            request.resets += 1
            if slot.abort is None and request.resets <= MOST_RESETS:
                again.append(request)
            else:
                slot.unit.queue.settle(request, self._lost(slot, why))
            slot.clear()
            slot.unit.free.put(slot)
        for trouble in late:
            if isinstance(trouble, str) or trouble[0] not in lost:
                self._trouble.put(trouble)
        for unit in self._units:
            unit.queue.put_back(again)
        self._reopen()
        return lost
