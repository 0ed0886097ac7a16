"""The floppy driver, independent of the machine: one drive, one request at a time, in the order in which they came.

One context does everything: it takes a request, loads its buffer, and gives the controller one command after the other,
each of at most a cylinder, and waits for its interrupt. So what has finished has given its bounce pages back before
anything waits for some.

The controller moves its data through a channel of the machine's DMA controllers, which takes one segment and is told
where before each command. A command that fails is tried again, with the heads back from cylinder 0. A controller that
does not answer is reset: until it has been, the map is in quarantine; afterwards the request is done again, or fails.

A medium that was taken out is noticed before the next command. What was meant for it is not written on another.

Source: Intel 82077AA data sheet: 2.3 (DMA transfers), 5.1 (data transfer commands), 8.4 (read/write operations).
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from busdma.drivers import contexts
from busdma.drivers.fdc import layout
from busdma.drivers.fdc.chip import MILLISECOND, Chip, Silence
from busdma.drivers.fdc.disk import FdcDisk
from busdma.drivers.fdc.layout import FORMATS, FdcFault, Format
from busdma.drivers.queues import Channel, Request, RequestQueue
from busdma.errors import DeviceFault, DriverError
from busdma.machine.attachment import Attachment, IsaDmaChannel
from busdma.sync import Direction
from busdma.waiting import Task, Timer

if TYPE_CHECKING:
    from busdma.map import Map
    from busdma.tag import Tag

SECOND: Final = 1000 * MILLISECOND
TIMEOUT: Final = 3 * SECOND  #: of one command: a seek from end to end, or a few turns of the medium
SPIN_UP: Final = 500 * MILLISECOND  #: until the medium turns as it should
SPIN_DOWN: Final = 2 * SECOND  #: without a request, then the motor stops
MOST_TRIES: Final = 5  #: of one command
MOST_RESETS: Final = 2  #: that one request outlives


class Fdc:
    """One controller and its first drive. ``start``, then use ``disks``.

    `timeout` of one command, `spin_up` of the motor, in ns.
    """

    fixed_size = True  #: a floppy holds what it holds: nobody can make a larger one

    def __init__(
        self,
        attachment: Attachment,
        tag: Tag,
        dma: IsaDmaChannel,
        *,
        timeout: int = TIMEOUT,
        spin_up: int = SPIN_UP,
    ) -> None:
        self.name, self.tag = attachment.name, tag
        self.disks: list[FdcDisk] = []
        self.silent: dict[str, DeviceFault] = {}  #: the drive that is there but could not be used, and why
        self._registers, self._runtime, self._dma = attachment.registers, attachment.runtime, dma
        self._timeout, self._spin_up = timeout, spin_up
        self._chip = Chip(self.name, attachment.registers, attachment.interrupt, attachment.runtime)
        self._lock = threading.Lock()  # the timer that stops the motor may be another thread's; never across an await
        self._turning = self._resting = False  # the motor is on; nobody wants it
        self._stopping: Channel[None] = Channel(f"the end of {self.name}", [None])  # one stop at a time
        self._task: Task[None] | None = None
        self._queue = RequestQueue(self.name, self._runtime)
        self._exchanged = False  # the medium is not the one that was found
        self._format: Format
        self._map: Map
        self._counts = dict.fromkeys(("commands", "retries", "resets"), 0)

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reset the controller, and see what is in the drive. DeviceFault if the controller does not answer.

        Without a medium that it can read there is no disk, and ``silent`` says why.
        """
        if self._task is not None:
            raise DriverError(f"{self.name} is already started: stop it first")
        self.silent.clear()
        self._queue, self._exchanged = RequestQueue(self.name, self._runtime), False
        try:
            await self._reset()
            try:
                self._format = await self._find()
            except FdcFault as fault:
                self.silent[self.name] = fault
            else:
                self.disks.append(FdcDisk(self._queue, self._format))
        except BaseException:
            self._quiesce()
            raise
        self._map = self.tag.create_map(name="data")
        self._task = contexts.start(self._runtime, self.name, "work", self._work, self._break)

    async def stop(self) -> None:
        """End the driver's context and put the controller into reset. What was under way fails."""
        await self._stopping.take(self._runtime)
        try:
            task, self._task = self._task, None
            if task is not None:
                await self._stop(task)
        finally:
            self._stopping.put(None)

    async def _stop(self, task: Task[None]) -> None:
        stopped = DriverError(f"{self.name} was stopped")
        self._queue.close(stopped)
        task.cancel()
        await self._runtime.park(task.done)
        self._map.abandon()
        try:
            self._quiesce()  # if that fails it may still write: the map stays where it is
            self.tag.report_idle()  # before their owners are told that these buffers are theirs again
        finally:
            self._fail_in_flight(stopped)
        self._map.destroy()
        self.disks.clear()

    def _quiesce(self) -> None:
        self._dma.mask()
        with self._lock:
            self._chip.hold()
            self._turning = False

    def _break(self, error: Exception) -> None:
        self._queue.close(error)
        self._fail_in_flight(error)

    def _fail_in_flight(self, error: Exception) -> None:
        for request in list(self._queue.in_flight):
            self._queue.settle(request, error)

    def statistics(self) -> dict[str, Any]:
        """Counters since the driver was made, and what is queued and in flight now, by disk."""
        queue = {"queued": len(self._queue), "in_flight": len(self._queue.in_flight)}
        return {**self._counts, **self._chip.counts, "disks": {disk.name: queue for disk in self.disks}}

    # -- the controller and its medium --------------------------------------------------------------------------------

    async def _reset(self) -> None:
        self._dma.mask()
        with self._lock:
            self._turning = True
        end = self._runtime.now() + self._timeout
        await self._chip.reset(end)
        await self._chip.configure(self._format if self.disks else FORMATS[0], end)

    async def _find(self) -> Format:
        """How the medium is recorded. FdcFault if there is none, or it is recorded otherwise."""
        await self._chip.pause(self._spin_up)
        await self._chip.recalibrate(self._end())
        if self._chip.changed:  # as it is when the machine has been switched on
            await self._look()
        for format in FORMATS:
            end = self._end()
            await self._chip.configure(format, end)
            try:
                await self._chip.run(bytes((layout.READ_ID, 0)), end)
            except FdcFault:
                continue
            except Silence:  # it hears no sectors at all
                await self._reset()
            else:
                return format
        tried = ", ".join(format.name for format in FORMATS)
        raise FdcFault(f"{self.name}: the medium is not formatted as any of {tried}: format it, or put in another")

    async def _look(self) -> None:
        """Step over the medium: where there is one, the drive has seen it then (2.1.8). FdcFault if there is none."""
        await self._chip.seek(1, self._end())
        await self._chip.seek(0, self._end())
        if self._chip.changed:
            raise FdcFault(f"{self.name}: there is no medium in the drive: put one in")

    async def _prepare(self) -> None:
        """Have the motor on, and the medium that was found. FdcFault if it is not there."""
        with self._lock:
            turning, self._turning = self._turning, True
            if not turning:
                self._chip.motor(True)
        if not turning:
            await self._chip.pause(self._spin_up)
        if self._chip.changed:
            await self._look()
            self._exchanged = True
        if self._exchanged:
            raise FdcFault(f"{self.name}: the medium was changed: stop the driver and start it again")

    def _slow_down(self) -> None:
        with self._lock:
            if self._resting and self._turning:
                self._turning = False
                with suppress(DeviceFault):  # what has gone turns no more, and whoever comes next is told
                    self._chip.motor(False)

    def _end(self, request: Request | None = None) -> int:
        """Until when one command may take."""
        end = self._runtime.now() + self._timeout
        return end if request is None or request.deadline is None else min(end, request.deadline)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self._queue.closed is None:
            request = self._queue.take()
            if request is None:
                request = await self._rest()
            await self._serve(request)

    async def _rest(self) -> Request:
        self._resting = True
        timer: Timer = self._runtime.call_at(self._runtime.now() + SPIN_DOWN, self._slow_down)
        try:
            return await self._queue.next()
        finally:
            timer.cancel()
            with self._lock:
                self._resting = False

    async def _serve(self, request: Request) -> None:
        map, way = self._map, request.direction
        if request.buffer is None:  # a flush: everything before it has ended
            self._queue.settle(request, b"")
            return
        try:
            await map.load(request.buffer, way, deadline=request.deadline)
        except Exception as error:
            self._queue.settle(request, error)
            return
        if not self._queue.start(request):
            map.unload()
            self._queue.settle(request, None)
            return
        map.sync(way.pre)
        result: bytes | DeviceFault = b""
        try:
            await self._transfer(request)
        except Silence as fault:
            map.quarantine()  # its fate is unknown until the controller has been reset
            await self._restart(request, fault)
            return
        except FdcFault as fault:
            result = fault
        map.sync(way.post)
        map.unload()
        self._queue.settle(request, result)

    async def _restart(self, request: Request, why: Silence) -> None:
        """Reset the controller, and have the request done again; or end it, if its time is over."""
        self._counts["resets"] += 1
        try:
            await self._reset()
        except Silence as fault:
            self._break(DeviceFault(f"{self.name} is out of service: {why}; the reset failed: {fault}"))
            return
        self._map.report_idle()
        request.resets += 1
        late = request.deadline is not None and request.deadline <= self._runtime.now()
        if late or request.resets > MOST_RESETS:
            words = f"{self.name}: {layout.name_command(request.cdb)} was lost when the controller was reset: {why}"
            self._queue.settle(request, FdcFault(words))
        else:
            self._queue.put_back([request])

    async def _transfer(self, request: Request) -> None:
        ((start, _),) = self._map.segments
        await self._prepare()
        address: int = start
        lba, end = request.span
        while lba < end:
            count = min(end - lba, self._format.cylinder - lba % self._format.cylinder)
            await self._piece(request, lba, address, count * layout.BLOCK)
            lba, address = lba + count, address + count * layout.BLOCK

    async def _piece(self, request: Request, lba: int, address: int, length: int) -> None:
        """Move what lies in one cylinder. FdcFault if it failed too often."""
        for tries in range(1, MOST_TRIES + 1):
            try:
                await self._chip.seek(self._format.place(lba)[0], self._end(request))
                await self._move(request, lba, address, length)
            except FdcFault as fault:
                if fault.hopeless or tries == MOST_TRIES:
                    raise
                self._counts["retries"] += 1
                self._chip.cylinder = None  # the heads may not be where they should
            else:
                return

    async def _move(self, request: Request, lba: int, address: int, length: int) -> None:
        write = request.direction is Direction.TO_DEVICE
        command = layout.data_command(write, lba, self._format)
        self._counts["commands"] += 1
        self._dma.program(address, length, to_memory=not write)
        try:
            self._registers.barrier()
            await self._chip.run(command, self._end(request))
        finally:
            self._dma.mask()
        if left := self._dma.left():
            raise FdcFault(f"{self.name}: {layout.name_command(command)} left {left} of {length} bytes")
