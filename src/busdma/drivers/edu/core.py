"""The edu driver, independent of the bus: copies to and from the device's 4096 bytes, and factorials.

The device has one DMA engine and one factorial unit, and each does one thing at a time: who comes second waits for its
turn. One context, the completion context, waits for the interrupt and ends what has finished.

The engine cannot be stopped or reset. So whoever leaves in the middle of a copy leaves the map in quarantine, until the
engine has finished with it; and a device that does not finish is cut off from memory, and out of service.

Source: QEMU, docs/specs/edu.rst ("EDU device"), whose parts are cited beside the code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from busdma.drivers.block import BlockDevice, Data
from busdma.drivers.echo import Echo
from busdma.drivers.queues import Channel
from busdma.errors import DeviceFault, DriverError, WaitCancelled
from busdma.lifecycle import State
from busdma.machine.attachment import Attachment, MmioRegisters
from busdma.sync import Direction
from busdma.waiting import Task, Timer, Waiter

if TYPE_CHECKING:
    from busdma.map import Map
    from busdma.tag import Tag

BUFFER_SIZE: Final = 4096
SECOND: Final = 1_000_000_000  # ns
TIMEOUT: Final = 5 * SECOND  #: of a transfer or a factorial, which take a fraction of a second
POLL: Final = 10_000_000

# "MMIO area spec"
ID, LIVENESS, FACTORIAL, STATUS, IRQ_STATUS, IRQ_ACK = 0x00, 0x04, 0x08, 0x20, 0x24, 0x64
SOURCE, DESTINATION, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
FACTORIAL_IRQ: Final = 0x80  # in STATUS
FACTORIAL_DONE, DMA_DONE = 0x001, 0x100  # in IRQ_STATUS
START, TO_MEMORY, DMA_IRQ = 1, 2, 4  # in COMMAND
DEVICE_BUFFER: Final = 0x40000  # "DMA controller"


class Job:
    """What a unit is doing. `finish` is called once, when the device has let go: did it do what it was told?"""

    __slots__ = ("finish", "timer", "waiter")

    def __init__(self, what: str, finish: Callable[[bool], int]) -> None:
        self.finish = finish
        self.waiter = Waiter(what)  # woken with an error, or with what `finish` returned
        self.timer: Timer | None = None


class Unit:
    """One of the device's two units. `turn` has one item, for the one who may use it."""

    __slots__ = ("job", "name", "turn")

    def __init__(self, name: str) -> None:
        self.name = name
        self.turn: Channel[None] = Channel(f"a turn of the {name}", (None,))
        self.job: Job | None = None


class Edu:
    """One device. ``start`` it, then `copy_in`, `copy_out` and `factorial`, from any number of contexts."""

    disks: tuple[BlockDevice, ...] = ()

    def __init__(
        self,
        attachment: Attachment,
        tag: Tag,
        registers: MmioRegisters,
        *,
        enable: Callable[[bool, bool], object],
        timeout: int = TIMEOUT,
        room: int = BUFFER_SIZE,
    ) -> None:
        """`enable`, of the front end: may (the CPU reach the registers, the device reach memory)?

        `room`: bytes of the device's memory that are used.
        """
        self.name, self.tag = attachment.name, tag
        self.most = room  #: as `busdma.drivers.echo.Echo`
        self._interrupt, self._runtime = attachment.interrupt, attachment.runtime
        self._registers, self._enable, self._timeout = registers, enable, timeout
        self._lock = threading.RLock()  # contexts may be OS threads; held briefly, never across an await
        self._engine, self._factorials = Unit(f"DMA engine of {self.name}"), Unit(f"factorial unit of {self.name}")
        self._refusal: Exception | None = DriverError(f"{self.name} is not started: start it first")
        self._task: Task[None] | None = None
        self._echo: Channel[None] = Channel(f"a turn to echo through {self.name}", (None,))
        self._map: Map
        self._counts = dict.fromkeys(("interrupts", "copies", "bytes_in", "bytes_out", "factorials", "stray"), 0)

    @property
    def echoes(self) -> tuple[Echo, ...]:
        """The device itself: what goes into its memory comes out again."""
        return (self,)

    async def start(self) -> None:
        """See that it is alive, and let it reach memory. DeviceFault if it is not, or does not end what it is doing."""
        if self._task is not None:
            raise DriverError(f"{self.name} is already started")
        registers = self._registers
        self._enable(True, False)  # what was under way before may still end, and must not reach memory
        if registers.read32(ID) & 0xFFF != 0x0ED:  # "0xRRrr00edu"
            raise DeviceFault(f"{self.name} identifies as {registers.read32(ID):#010x}, which is no edu")
        registers.write32(LIVENESS, 0x5AA5_C33C)  # "a simple value inversion"
        if registers.read32(LIVENESS) != 0xA55A_3CC3:
            raise DeviceFault(f"{self.name} does not invert what is written to its liveness register")
        end = self._runtime.now() + self._timeout
        while registers.read32(COMMAND) & START:
            if self._runtime.now() >= end:
                raise DeviceFault(f"{self.name} does not end the transfer that it was left with; reset the machine")
            await self._pause(POLL)
        registers.write32(IRQ_ACK, registers.read32(IRQ_STATUS))
        self._map = self.tag.create_map(name="copy")
        self._enable(True, True)
        self._refusal = None
        self._task = self._runtime.start(self._complete, name=f"{self.name} complete")

    async def stop(self) -> None:
        """Cut the device off from memory, and end the driver's contexts. What was under way fails."""
        task, self._task = self._task, None
        if task is None:
            return
        self._fail(DriverError(f"{self.name} was stopped"))
        task.cancel()
        await self._runtime.park(task.done)
        self._map.cancel_load()
        await self._engine.turn.take(self._runtime)
        self._engine.turn.put(None)
        self._enable(False, False)
        self.tag.report_idle()
        self._map.destroy()

    def statistics(self) -> dict[str, Any]:
        """Counters since the driver was made."""
        return dict(self._counts)

    # -- what it does -------------------------------------------------------------------------------------------------

    async def copy_in(self, buffer: Data, at: int = 0, deadline: int | None = None) -> None:
        """Copy `buffer` to byte `at` of the device's memory and on.

        `deadline`, in ns of the runtime's clock, is that of the wait for the engine and for bounce pages. Errors:
        DriverError (refused, or the driver was stopped), DeadlineExpired, DeviceFault.
        """
        await self._copy(buffer, at, Direction.TO_DEVICE, deadline)

    async def copy_out(self, buffer: Data, at: int = 0, deadline: int | None = None) -> None:
        """Fill `buffer` from byte `at` of the device's memory on. `deadline` and errors as for `copy_in`."""
        await self._copy(buffer, at, Direction.FROM_DEVICE, deadline)

    async def echo(self, out: Data, back: Data, deadline: int | None = None) -> None:
        """As `busdma.drivers.echo.Echo.echo`. It uses the device's memory: copies made meanwhile would mix with it."""
        if len(back) != len(out):
            raise DriverError(f"{self.name}: an echo of {len(out)} bytes does not fill {len(back)}: give equal lengths")
        await self._echo.take(self._runtime, deadline)
        try:
            await self.copy_in(out, 0, deadline)
            await self.copy_out(back, 0, deadline)
        finally:
            self._echo.put(None)

    async def fetch(self, address: int, length: int, at: int = 0) -> None:
        """Have the device read `length` bytes at bus address `address`, which its user has loaded and synced."""
        await self._move(address, length, at, Direction.TO_DEVICE)

    async def store(self, address: int, length: int, at: int = 0) -> None:
        """Have the device write `length` bytes to bus address `address`, which its user has loaded and synced."""
        await self._move(address, length, at, Direction.FROM_DEVICE)

    async def factorial(self, number: int) -> int:
        """The factorial of a number of 32 bits, modulo 2**32. DeviceFault if the device does not answer."""
        if not 0 <= number < 1 << 32:
            raise DriverError(f"{self.name}: {number} is no number of 32 bits")
        unit = self._factorials
        await unit.turn.take(self._runtime)

        def begin() -> None:
            self._registers.write32(STATUS, FACTORIAL_IRQ)
            self._registers.write32(FACTORIAL, number)
            self._counts["factorials"] += 1

        def finish(done: bool) -> int:
            result = self._registers.read32(FACTORIAL) if done else 0
            unit.turn.put(None)
            return result

        return await self._do(unit, begin, finish)

    async def _copy(self, buffer: Data, at: int, direction: Direction, deadline: int | None) -> None:
        self._check(at, len(buffer))
        unit = self._engine
        await unit.turn.take(self._runtime, deadline)
        map = self._map
        try:
            self._check(at, len(buffer))  # it may have been stopped meanwhile
            await map.load(buffer, direction, deadline=deadline)
        except BaseException as error:
            unit.turn.put(None)
            if self._refusal is not None and isinstance(error, WaitCancelled):
                raise self._refusal from None  # it was `stop` that cancelled the load
            raise
        map.sync(direction.pre)
        ((address, length),) = map.segments

        def finish(done: bool) -> int:
            try:
                if done and map.state is State.LOADED:  # it is in quarantine if its owner has left
                    map.sync(direction.post)
                else:
                    map.report_idle()
            except DeviceFault:  # the machine knows better than the device, which has ended all the same
                map.report_idle()
                raise
            finally:
                try:
                    if map.state is State.LOADED:
                        map.unload()
                finally:
                    unit.turn.put(None)
            return 0

        await self._do(unit, lambda: self._launch(address, length, at, direction), finish, map.quarantine)

    async def _move(self, address: int, length: int, at: int, direction: Direction) -> None:
        self._check(at, length)
        unit = self._engine
        await unit.turn.take(self._runtime)

        def finish(done: bool) -> int:
            unit.turn.put(None)
            return 0

        await self._do(unit, lambda: self._launch(address, length, at, direction), finish)

    def _check(self, at: int, length: int) -> None:
        if self._refusal is not None:
            raise self._refusal
        if at < 0 or length < 1 or at + length > self.most:
            raise DriverError(
                f"{self.name}: {length} bytes at {at} are not 1 or more within its {self.most}; split the copy"
            )

    def _launch(self, address: int, length: int, at: int, direction: Direction) -> None:
        """Start the engine ("DMA controller"). Under the lock."""
        registers, inward = self._registers, direction is Direction.TO_DEVICE
        registers.write64(SOURCE, address if inward else DEVICE_BUFFER + at)
        registers.write64(DESTINATION, DEVICE_BUFFER + at if inward else address)
        registers.write64(COUNT, length)
        registers.barrier()
        registers.write32(COMMAND, START | DMA_IRQ | (0 if inward else TO_MEMORY))
        self._counts["copies"] += 1
        self._counts["bytes_in" if inward else "bytes_out"] += length

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def _do(
        self,
        unit: Unit,
        begin: Callable[[], object],
        finish: Callable[[bool], int],
        leave: Callable[[], object] | None = None,
    ) -> int:
        """Do one job on `unit`, whose turn the caller has. `leave` is called if the caller goes before the job ends."""
        job = Job(unit.name, finish)
        with self._lock:
            refusal = self._refusal
            if refusal is None:
                unit.job = job
                job.timer = self._runtime.call_at(self._runtime.now() + self._timeout, lambda: self._expired(unit, job))
                begin()
        if refusal is not None:
            finish(False)
            raise refusal
        try:
            outcome = await self._runtime.park(job.waiter)
        except BaseException:
            with self._lock:
                if unit.job is job and leave is not None:
                    leave()  # the device is still at it; `finish` comes when it has ended
            raise
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, int)
        return outcome

    def _end(self, unit: Unit, error: Exception | None = None) -> None:
        """The device has let go of the unit's job: it has ended, or can reach memory no more."""
        with self._lock:
            job, unit.job = unit.job, None
        if job is None:
            self._counts["stray"] += error is None
            return
        if job.timer is not None:
            job.timer.cancel()
        outcome: int | Exception = DeviceFault(f"the driver of {self.name} failed while it ended a job")
        try:
            result = job.finish(error is None)
            outcome = result if error is None else error
        except DeviceFault as fault:
            outcome = fault
        finally:
            job.waiter.wake(outcome)

    def _expired(self, unit: Unit, job: Job) -> None:
        with self._lock:
            if unit.job is job:
                self._fail(
                    DeviceFault(
                        f"{self.name} is out of service: the {unit.name} did not finish within "
                        f"{self._timeout / SECOND:g} s; it is cut off from memory. Stop it and start it again"
                    )
                )

    def _fail(self, error: Exception) -> None:
        """Refuse everything from now on, and end what is under way: the device cannot reach memory any more."""
        with self._lock:
            self._refusal = error
            with suppress(DeviceFault):  # a device that is gone reaches no memory either
                self._enable(True, False)  # its interrupt must still be acknowledged
        for unit in (self._engine, self._factorials):
            self._end(unit, error)

    async def _complete(self) -> None:
        """The completion context. Waits for nothing but the interrupt."""
        try:
            while True:
                await self._interrupt.wait()
                causes = self._registers.read32(IRQ_STATUS)
                self._registers.write32(IRQ_ACK, causes)  # before anything else, or the next one could be missed
                self._counts["interrupts"] += 1
                if causes & DMA_DONE:
                    self._end(self._engine)
                if causes & FACTORIAL_DONE:
                    self._end(self._factorials)
        except Exception as error:  # without this context nothing would ever end
            self._fail(DeviceFault(f"the driver of {self.name} failed: {error!r}"))
            raise

    async def _pause(self, time: int) -> None:
        waiter = Waiter(self.name)
        self._runtime.call_at(self._runtime.now() + time, waiter.wake)
        await self._runtime.park(waiter)
