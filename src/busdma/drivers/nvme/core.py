"""The NVMe driver, independent of machine and bus: a pair of queues a namespace, many commands in flight.

- *serve*, one a namespace: takes its requests in order, waits for a slot and for the load of its map, and writes the
  command. The doorbell is rung once for all that were written, before anything that may wait. A namespace that waits
  for bounce pages stalls no other.
- *complete*, one: waits for the interrupt, or looks now and then where the machine has none, and ends what finished.
- *recover*, one: aborts what took too long, and resets the controller if that does not help. Never waits for a pool.

Source: NVM Express Base Specification 1.4: 4.1 (queues), 7.2 (command submission and completion), 9.1 (recovery).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from busdma.drivers.nvme import layout, prp
from busdma.drivers.nvme.controller import ADMIN_TIME, SECOND, Controller, NvmeFault
from busdma.drivers.nvme.disk import NvmeDisk
from busdma.drivers.nvme.layout import PAGE
from busdma.drivers.nvme.queue import QueuePair, control_tag
from busdma.drivers.queues import Channel, Request, RequestQueue
from busdma.errors import ConfigurationError, DeadlineExpired, DeviceFault, DriverError, ResourceShortage
from busdma.machine.attachment import Attachment, MmioRegisters
from busdma.sync import POSTWRITE, PREWRITE, Direction
from busdma.waiting import Task, Timer, Waiter

if TYPE_CHECKING:
    from busdma.map import Map
    from busdma.memory import DmaMemory
    from busdma.tag import Tag

TIMEOUT: Final = 10 * SECOND  #: of a command without a deadline, from when the controller is told
RETRY: Final = SECOND // 100
MOST_ATTEMPTS: Final = 5
MOST_RESETS: Final = 2  #: that one request outlives
MOST_PAIRS: Final = 64


class Slot:
    """One command's place in a pair of queues: its identifier, a map for its data, places for its PRP lists."""

    __slots__ = (
        "abort", "id", "lists", "loaded", "map", "offset", "places", "prps", "request", "resting", "status", "timer",
        "told", "unit",
    )  # fmt: skip

    def __init__(self, unit: Unit, id: int, data: Map, lists: DmaMemory, offset: int, places: list[int]) -> None:
        """Its PRP lists are at `offset` of `lists`, on the bus at `places`."""
        self.unit, self.id, self.map = unit, id, data
        self.lists, self.offset, self.places = lists, offset, places
        self.clear()

    def clear(self) -> None:
        """Carry nothing."""
        self.request: Request | None = None
        self.prps = (0, 0)
        self.loaded: Direction | None = None  #: the map is loaded, this way
        self.told = False  #: the controller has it
        self.resting = False  #: it waits for its next try
        self.timer: Timer | None = None
        self.abort: Waiter | None = None  #: its time is over
        self.status = 0  #: with which it completed


class Unit:
    """A namespace, with its requests, its pair of queues, and the slots that it may use."""

    __slots__ = ("free", "nsid", "pair", "queue")

    def __init__(self, nsid: int, queue: RequestQueue, pair: QueuePair) -> None:
        self.nsid, self.queue, self.pair = nsid, queue, pair
        self.free: Channel[Slot] = Channel(f"a command slot of {queue.name}")


class Nvme:
    """One controller. ``start``, then use ``disks``.

    `maxio`: bytes in one command; `depth`: commands of one namespace in flight. `poll`: ns between two looks at the
    completion queues where the machine has no interrupts. `enable`, of the front end: may (the CPU reach the registers,
    the controller reach memory)?
    """

    def __init__(
        self,
        attachment: Attachment,
        tag: Tag,
        registers: MmioRegisters,
        *,
        enable: Callable[[bool, bool], object],
        maxio: int,
        depth: int = 31,
        timeout: int = TIMEOUT,
        poll: int = 0,
    ) -> None:
        self.name, self.tag = attachment.name, tag
        if depth < 1 or maxio < PAGE or poll < 0:
            raise ConfigurationError(f"{self.name}: 1 command or more, of {PAGE} bytes or more, not {depth} of {maxio}")
        self.disks: list[NvmeDisk] = []
        self.silent: dict[str, DeviceFault] = {}  #: namespaces that are there but could not be used, and why
        self._interrupt, self._runtime, self._registers = attachment.interrupt, attachment.runtime, registers
        self._enable, self._maxio, self._depth, self._timeout, self._poll = enable, maxio, depth, timeout, poll
        self._lock = threading.RLock()  # contexts may be OS threads; held briefly, never across an await
        self._open = False  # the controller takes commands
        self._held: list[Slot] = []  # to be started when it does
        self._units: list[Unit] = []
        self._pairs: list[QueuePair] = []
        self._lists: list[DmaMemory] = []
        self._slots: dict[tuple[int, int], Slot] = {}  # by pair and command identifier
        self._tasks: list[Task[None]] = []
        self._trouble: Channel[tuple[Slot, Request]] = Channel(f"trouble with {self.name}")
        self._idle: Waiter | None = None  # where nothing is under way, nothing is looked for
        self._counts = dict.fromkeys(("interrupts", "commands", "retries", "aborts", "resets", "stray"), 0)
        self._parent, self._largest = attachment.tag, maxio
        self._control: Tag
        self._controller: Controller

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reset the controller, find its namespaces. DeviceFault if it will not; after a cancelled start, ``stop``."""
        if self._tasks:
            raise DriverError(f"{self.name} is already started")
        self._enable(True, False)  # what somebody else left under way does not reach memory
        self._control = control_tag(self._parent)
        try:
            self._controller = Controller(
                self.name, self._control, self._registers, self._runtime, self._lock, self._look
            )
        except BaseException:
            self._control.destroy()
            raise
        self._context(self._complete, "complete")
        self._context(self._recover, "recover")
        try:
            await self._controller.stop()
            self._enable(True, True)
            granted = await self._controller.enable(MOST_PAIRS)
            largest, count = layout.parse_controller(await self._controller.identify(layout.CONTROLLER))
            self._largest = min(self._maxio, self.tag.constraints.maxsize.value, largest or self._maxio)
            self._open = True
            found = await self._namespaces(count)
            for nsid in found:
                await self._add(nsid, min(granted, len(found)), -(-len(found) // granted))
        except Exception:
            with suppress(DeviceFault):
                await self.stop()
            raise

    async def stop(self) -> None:
        """End all contexts, shut the controller down and reset it. What was under way fails; nothing reaches memory."""
        if not self._tasks:
            return
        stopped = DriverError(f"{self.name} was stopped")
        self._close(stopped)
        for task in self._tasks:
            task.cancel()
            await self._runtime.park(task.done)
        for slot in self._slots.values():
            if slot.loaded is not None:
                slot.map.quarantine()
        try:
            await self._controller.shut_down()
            await self._controller.stop()  # if that fails it may still write: all memory stays where it is
        finally:
            self._fail_in_flight(stopped)
        self._enable(True, False)
        for tag in (self.tag, self._control):
            tag.report_idle()
        for slot in self._slots.values():
            slot.map.destroy()
        for lists in self._lists:
            lists.free()
        for pair in self._pairs:
            pair.free()
        self._controller.free()
        self._control.destroy()
        for things in (self._tasks, self._slots, self._lists, self._pairs, self._units, self.disks):
            things.clear()

    def statistics(self) -> dict[str, Any]:
        """Counters since the driver was made; by disk what waits and what is in flight; doorbell writes since start."""
        queues = {u.queue.name: {"queued": len(u.queue), "in_flight": len(u.queue.in_flight)} for u in self._units}
        free = sum(len(unit.free) for unit in self._units)
        doorbells = sum(pair.doorbells for pair in self._pairs)
        return {**self._counts, "doorbells": doorbells, "free_slots": free, "disks": queues}

    async def _namespaces(self, count: int) -> list[int]:
        """The active ones' identifiers; a controller older than the list has 1 to `count` (5.15.2.3)."""
        try:
            data = await self._controller.identify(layout.ACTIVE_NAMESPACES)
        except NvmeFault:
            return list(range(1, count + 1))
        return [nsid for (nsid,) in struct.iter_unpack("<I", data) if nsid]

    async def _add(self, nsid: int, pairs: int, sharers: int) -> None:
        """Have a disk for the namespace: with a pair of queues of its own, or one that `sharers` have together."""
        name = f"{self.name}n{nsid}"
        blocks, block_size, metadata = layout.parse_namespace(await self._controller.identify(layout.NAMESPACE, nsid))
        if metadata or block_size > self._largest:
            self.silent[name] = DeviceFault(f"{name}: blocks of {block_size} bytes, {metadata} of metadata beside each")
            return
        depth = max(1, min(self._depth, (self._controller.most_entries - 1) // sharers))
        number = len(self._units) % pairs
        if number == len(self._pairs):
            pair = self._controller.pair(number + 1, depth * sharers + 1)
            self._pairs.append(pair)
            await self._controller.create(pair, not self._poll)
        unit = Unit(nsid, RequestQueue(name, self._runtime), self._pairs[number])
        size = prp.list_size(self._largest // PAGE + 1)
        lists = self._control.alloc(depth * size)
        lists.sync(PREWRITE)  # the controller's, but for what is being written
        self._lists.append(lists)
        first = sum(pair == unit.pair.id for pair, _ in self._slots)
        for i in range(depth):
            places = list(range(lists.address + i * size, lists.address + (i + 1) * size, PAGE))
            slot = Slot(unit, first + i, self.tag.create_map(), lists, i * size, places)
            self._slots[unit.pair.id, slot.id] = slot
            unit.free.put(slot)
        self._units.append(unit)
        self._context(partial(self._serve, unit), name)
        self.disks.append(NvmeDisk(unit.queue, blocks=blocks, block_size=block_size, maxio=self._largest))

    def _context(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        async def context() -> None:
            try:
                await run()
            except Exception as error:  # without this context nothing would ever end
                self._break(DeviceFault(f"the driver of {self.name} failed in context {name!r}: {error!r}"))
                raise

        self._tasks.append(self._runtime.start(context, name=f"{self.name} {name}"))

    def _close(self, error: Exception) -> None:
        """Serve nothing any more."""
        with self._lock:
            self._open = False
            for slot in self._slots.values():
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
            request = unit.queue.take()
            if request is None:
                self._ring(unit.pair)  # before every wait, and only then
                request = await unit.queue.next()
            if not len(unit.free):
                self._ring(unit.pair)
            slot: Slot | None = None
            try:
                slot = await unit.free.take(self._runtime, request.deadline)
                if request.buffer is not None:
                    await self._load(slot, request)
            except BaseException as error:
                if slot is not None:
                    self._release(slot)
                if not isinstance(error, Exception):
                    raise
                unit.queue.settle(request, error)
            else:
                self._launch(slot, request)

    async def _load(self, slot: Slot, request: Request) -> None:
        """Load the map, and have the PRPs and their lists ready."""
        try:
            slot.map.load_nowait(request.buffer, request.direction)
        except ResourceShortage:
            self._ring(slot.unit.pair)
            await slot.map.load(request.buffer, request.direction, deadline=request.deadline)
        slot.loaded = request.direction
        prp1, prp2, lists = prp.arrange(prp.pages(slot.map.segments), slot.places)
        for number, entries in enumerate(lists):
            at, size = slot.offset + number * PAGE, prp.ENTRY * len(entries)
            slot.lists.sync(POSTWRITE, at, size)
            struct.pack_into(f"<{len(entries)}Q", slot.lists.view, at, *entries)
            slot.lists.sync(PREWRITE, at, size)
        slot.prps = prp1, prp2

    def _launch(self, slot: Slot, request: Request) -> None:
        if not slot.unit.queue.start(request):
            self._release(slot)
            slot.unit.queue.settle(request, None)
            return
        if slot.loaded is not None:
            slot.map.sync(slot.loaded.pre)
        with self._lock:
            slot.request = request
            end = self._runtime.now() + self._timeout if request.deadline is None else request.deadline
            slot.timer = self._runtime.call_at(end, partial(self._trouble.put, (slot, request)))
            self._post(slot)

    def _post(self, slot: Slot) -> None:
        """Write the command. The controller is told at the next ``_ring``. Under the lock."""
        if not self._open:
            self._held.append(slot)
            return
        assert slot.request is not None
        opcode, words = layout.parse_request(slot.request.cdb)
        slot.unit.pair.put(opcode, slot.id, slot.unit.nsid, *slot.prps, words)
        slot.resting, slot.told, slot.status = False, True, 0
        self._counts["commands"] += 1

    def _ring(self, pair: QueuePair) -> None:
        with self._lock:
            if pair.live:
                pair.ring()
        self._look()

    # -- completions --------------------------------------------------------------------------------------------------

    async def _complete(self) -> None:
        while True:
            if self._poll:
                await self._pause()
            else:
                await self._interrupt.wait()
                self._counts["interrupts"] += 1
            self._reap()

    async def _pause(self) -> None:
        """Until it is time to look again; as long as nothing is under way there is nothing to look for."""
        with self._lock:
            busy = self._controller.asked or any(slot.told for slot in self._slots.values())
            self._idle = idle = None if busy else Waiter(f"work for {self.name}")
        if idle is not None:
            await self._runtime.park(idle)
        with suppress(DeadlineExpired):
            await self._runtime.park(Waiter(f"completions of {self.name}"), self._runtime.now() + self._poll)

    def _look(self) -> None:
        """Something is under way."""
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None:
            idle.wake()

    def _reap(self) -> None:
        """Take every new completion from every queue, and only then end what they belong to."""
        over: list[Slot] = []
        with self._lock:
            for pair in (self._controller.queues, *self._pairs):
                while pair.live and (completion := pair.take()) is not None:
                    slot = self._slots.get((pair.id, completion.id))
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
                    pair.ring_head()
        for slot in over:
            self._conclude(slot)

    def _conclude(self, slot: Slot) -> None:
        """The controller has let go of `slot`: try again, or settle its request."""
        assert slot.request is not None
        request, queue, status = slot.request, slot.unit.queue, slot.status & ~layout.DO_NOT_RETRY
        name = f"{queue.name}: {layout.name_request(request.cdb)}"
        result: bytes | NvmeFault = b""
        if status:
            transient = slot.status == status != layout.ABORTED  # without DO_NOT_RETRY (4.6.1)
            if transient and slot.abort is None and request.attempts + 1 < MOST_ATTEMPTS:
                self._counts["retries"] += 1
                request.attempts += 1
                slot.resting = True
                self._runtime.call_at(self._runtime.now() + RETRY, partial(self._retry, slot, request))
                return
            if slot.abort is not None and status == layout.ABORTED:
                result = NvmeFault(f"{name} was aborted: no answer in time", status)
            else:
                result = NvmeFault(f"{name} failed: {layout.name_status(status)}", status)
        self._release(slot, told=True)
        queue.settle(request, result)

    def _retry(self, slot: Slot, request: Request) -> None:
        with self._lock:
            if slot.request is request and slot.resting and slot.abort is None:
                self._post(slot)
                self._ring(slot.unit.pair)

    def _release(self, slot: Slot, told: bool = False) -> None:
        """Unload, and let the next request have the slot. `told`: the device has seen the map."""
        if slot.timer is not None:
            slot.timer.cancel()
        if slot.loaded is not None:
            if told:
                slot.map.sync(slot.loaded.post)
            slot.map.unload()
        slot.clear()
        slot.unit.free.put(slot)

    # -- recover: abort, then reset -----------------------------------------------------------------------------------

    async def _recover(self) -> None:
        while True:
            slot, request = await self._trouble.take(self._runtime)
            self._reap()  # was it only the interrupt that got lost?
            with self._lock:
                if slot.request is not request or not (slot.told or slot.resting):
                    continue  # it ended meanwhile
                slot.abort = ended = Waiter(f"the end of an aborted command of {slot.unit.queue.name}")
                resting = slot.resting
            why = "" if resting else await self._abort(slot, ended)
            if why:
                await self._reset(why)
            else:
                self._conclude(slot)

    async def _abort(self, slot: Slot, ended: Waiter) -> str:
        """Have the controller end the command; why it does not, or ""."""
        self._ring(slot.unit.pair)
        if self._controller.fatal:
            return "it reports a fatal status"
        self._counts["aborts"] += 1
        try:
            await self._controller.abort(slot.unit.pair, slot.id)
            await self._runtime.park(ended, self._runtime.now() + ADMIN_TIME)  # aborted or not, it has to complete
        except (NvmeFault, DeadlineExpired):
            return "it did not end an aborted command"
        return ""

    async def _reset(self, why: str) -> None:
        """Reset the controller. What timed out fails; what was only in the way is done again, in the same order."""
        self._counts["resets"] += 1
        with self._lock:
            self._open = False
            for pair in self._pairs:
                pair.live = False
            lost = [slot for slot in self._slots.values() if slot.told]
            over = [slot for slot in self._slots.values() if slot.abort is not None and not slot.told]
            for slot in lost:
                if slot.timer is not None:
                    slot.timer.cancel()
                if slot.loaded is not None:
                    slot.map.quarantine()  # its fate is unknown until the controller has been reset
        try:
            granted = await self._controller.enable(MOST_PAIRS)
            if granted < len(self._pairs):
                raise DeviceFault(f"{self.name} has only {granted} pairs of queues now")
            for pair in self._pairs:
                await self._controller.create(pair, not self._poll)
        except (DriverError, DeviceFault) as fault:
            self._break(DeviceFault(f"{self.name} is out of service: {why}; the reset failed: {fault}"))
            return
        for slot in over:
            self._conclude(slot)
        again: list[Request] = []
        for slot in lost:
            assert slot.request is not None
            slot.map.report_idle()  # and no other: who waits to be started has given its data already
            queue, request = slot.unit.queue, slot.request
            request.resets += 1
            if slot.abort is None and request.resets <= MOST_RESETS:
                again.append(request)
            else:
                text = f"{queue.name}: {layout.name_request(request.cdb)} was lost when {self.name} was reset: {why}"
                queue.settle(request, NvmeFault(text))
            slot.clear()
            slot.unit.free.put(slot)
        for unit in self._units:
            unit.queue.put_back(again)
        with self._lock:
            self._open = True
            held, self._held = self._held, []
            for slot in held:
                self._post(slot)
        for pair in self._pairs:
            self._ring(pair)
