"""The PCnet driver, independent of the bus: frames from any buffer, packets into mbufs, and an echo round a loop.

- *senders* are their callers' contexts: `transmit` keeps their order.
- *complete*, one: waits for the interrupt, ends what was sent and hands up what was received. Never waits for a pool:
  what cannot be replaced in the receive ring is copied or dropped.
- *recover*, one: resets the controller when a frame does not end or the bus has failed it. Frames in the ring fail, as
  frames may on Ethernet; places in the receive ring are used again.

Source: AMD Am79C970A data sheet (publication 19436), whose sections are cited in the modules beside this one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from busdma.drivers import contexts
from busdma.drivers.block import BlockDevice, Data
from busdma.drivers.echo import Echo
from busdma.drivers.pcnet import echo as loop
from busdma.drivers.pcnet.chip import BLOCK_SIZE, MISS, MODE_LOOP, STRT, TXON, Chip, block
from busdma.drivers.pcnet.receive import Consumer, Receiver, Supply
from busdma.drivers.pcnet.ring import DescriptorRing
from busdma.drivers.pcnet.transmit import Transmitter
from busdma.drivers.queues import Channel
from busdma.errors import DeviceFault, DriverError, WaitCancelled
from busdma.machine.attachment import Attachment, MmioRegisters
from busdma.mbuf import MCLBYTES, MbufChain, MbufPool
from busdma.sync import POSTWRITE, PREWRITE
from busdma.waiting import Task, Waiter

if TYPE_CHECKING:
    from busdma.memory import DmaMemory
    from busdma.tag import Tag

MOST_FRAME: Final = 1514  #: bytes, without the check sequence
RING_BITS: Final = 5  #: of either ring: 32 descriptors
SEGMENTS: Final = 8  #: of one frame: what is in more pieces is joined when it is loaded
BUFFERS: Final = 16  #: mbufs in the receive ring
SECOND: Final = 1_000_000_000  # ns
TIMEOUT: Final = 5 * SECOND  #: of a frame in the ring
INIT_TIME: Final = SECOND // 10
POLL: Final = 50_000


class Pcnet:
    """One controller. ``start`` it; then `send`, and `receive` after `supply`, or `echo`; from any number of contexts.

    `tag` reaches what the controller does: 32 bits. `timeout`, in ns, of a frame that is being sent. `inside`: frames
    turn round inside the chip, whatever is at the end of the wire.
    """

    disks: tuple[BlockDevice, ...] = ()
    most = loop.MOST  #: as `busdma.drivers.echo.Echo`

    def __init__(
        self,
        attachment: Attachment,
        tag: Tag,
        registers: MmioRegisters,
        *,
        enable: Callable[[bool, bool], object],
        timeout: int = TIMEOUT,
        inside: bool = False,
    ) -> None:
        """`enable`, of the front end: may (the CPU reach the registers, the controller reach memory)?"""
        self.name, self.tag = attachment.name, tag
        self.station = bytes(6)  #: its own address, known once started
        self._interrupt, self._runtime = attachment.interrupt, attachment.runtime
        self._enable, self._timeout, self._mode = enable, timeout, MODE_LOOP if inside else 0
        self._lock = threading.RLock()  # contexts may be OS threads; held briefly, never across an await
        self._chip = Chip(self.name, registers)
        self._control = tag.derive("control", alignment=128, nsegments=1)
        self._frames = tag.derive("transmit", nsegments=SEGMENTS, maxsize=MOST_FRAME)
        self._mbufs = tag.derive("receive", nsegments=1, maxsize=MCLBYTES)
        self._data = tag.derive("echo", nsegments=loop.SEGMENTS, maxsize=loop.MOST)
        self._tasks: list[Task[None]] = []
        self._resets = 0  # trouble that is older than the last one is over
        self._trouble: Channel[tuple[int, Exception]] = Channel(f"trouble with {self.name}")
        self._turn: Channel[None] = Channel(f"a turn to echo through {self.name}", (None,))
        self._consumer: Consumer | None = None
        self._supply: Supply | None = None
        self._counts = dict.fromkeys(("interrupts", "missed", "resets"), 0)
        self._missed = 0  # as the chip counts, since its last reset
        self._block: DmaMemory
        self._rings: list[DescriptorRing]  # receive, transmit
        self._held: ExitStack
        self._transmitter: Transmitter
        self._receiver: Receiver
        self._loop: loop.Loop

    @property
    def echoes(self) -> tuple[Echo, ...]:
        """The device itself, if what it sends comes back to it."""
        return (self,)

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reset the controller and bring it up. DeviceFault if it will not; ResourceShortage for no memory."""
        if self._tasks:
            raise DriverError(f"{self.name} is already started")
        self._enable(True, False)  # what somebody else left under way does not reach memory
        self._chip.reset()
        self.station = self._chip.station
        self._allocate()
        try:
            self._enable(True, True)
            self._begin()
            await self._initialised()
        except BaseException:
            self._end_service(DriverError(f"{self.name} is not started: start it first"))
            self._enable(True, False)
            await self._free()
            raise
        self._tasks = [self._context(self._complete, "complete"), self._context(self._recover, "recover")]

    async def stop(self) -> None:
        """Reset the controller, and end the driver's contexts. What was under way fails; packets are freed."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        for task in tasks:
            task.cancel()
            await self._runtime.park(task.done)
        self._end_service(DriverError(f"{self.name} was stopped"))
        self._enable(False, False)
        await self._free()

    def statistics(self) -> dict[str, Any]:
        """Counters since the driver was made; of what is in its rings since it was started."""
        if not self._tasks:
            return dict(self._counts)
        supplied = self._supply.counts if self._supply is not None else {}
        return {**self._counts, **self._transmitter.counts, **supplied, "in_flight": self._transmitter.in_flight}

    def _allocate(self) -> None:
        """Everything that `_free` gives back, or nothing."""
        with ExitStack() as held:
            self._block = self._control.alloc(BLOCK_SIZE)
            held.callback(self._block.free)
            self._rings = []
            for _ in range(2):
                self._rings.append(DescriptorRing(self._control, RING_BITS))
                held.callback(self._rings[-1].free)
            self._make_sides()
            held.callback(self._transmitter.close)
            self._make_loop()
            held.callback(self._loop.close)
            self._held = held.pop_all()

    def _make_sides(self) -> None:
        self._receiver = Receiver(self._rings[0])
        self._transmitter = Transmitter(
            self.name,
            self._frames,
            self._rings[1],
            self._runtime,
            self._lock,
            timeout=self._timeout,
            demand=self._chip.demand,
            expired=lambda: self._fail(
                DeviceFault(f"{self.name} did not send a frame within {self._timeout / SECOND:g} s, and was reset")
            ),
        )

    def _make_loop(self) -> None:
        self._loop = loop.Loop(
            self.name,
            self._control,
            self._data,
            self.station,
            self._transmitter,
            self._receiver,
            self._runtime,
            self._lock,
            timeout=self._timeout,
            failed=self._fail,
        )

    async def _free(self) -> None:
        """The controller was reset: give everything back."""
        self._loop.cancel()
        await self._transmitter.drain()
        if self._supply is None:
            await self._turn.take(self._runtime)  # an echo, or a supply, that was under way has ended
        else:
            await self._supply.end(self._runtime)
        self._consumer = self._supply = None
        self._turn.put(None)
        self._held.close()

    def _begin(self) -> None:
        """After a reset: give it empty rings, and have it read the initialization block. Under the lock, or alone."""
        for ring in self._rings:
            ring.begin()
        self._block.view[:] = block(self._mode, self.station, self._rings[0].place, self._rings[1].place)
        self._block.sync(PREWRITE)
        self._missed = 0
        self._chip.prepare(self._block.address)

    async def _initialised(self) -> None:
        """When it has read the block: go. DeviceFault if it does not."""
        end = self._runtime.now() + INIT_TIME
        while True:
            with self._lock:
                if self._chip.initialised:
                    self._block.sync(POSTWRITE)
                    self._chip.go()
                    return
            if self._runtime.now() >= end:
                raise DeviceFault(f"{self.name} does not read its initialization block; reset the machine")
            pause = Waiter(f"initialization of {self.name}")
            self._runtime.call_at(self._runtime.now() + POLL, pause.wake)
            await self._runtime.park(pause)

    # -- what it does -------------------------------------------------------------------------------------------------

    async def send(self, frame: object, deadline: int | None = None) -> None:
        """Send `frame`, 14 to 1514 bytes from the destination's address on; short ones are padded by the controller.

        It is any buffer: an mbuf chain goes as it is, one descriptor a segment. Frames are sent in the order of calls.
        `deadline`, in ns of the runtime's clock, is that of the waits for a turn, for a map and for descriptors.
        Errors: DriverError (refused, or the driver was stopped), DeadlineExpired, DeviceFault (it was not sent). When
        this returns or raises one of these, the controller has let go of the frame, which stays the caller's.
        """
        await self._started().send(frame, deadline)

    async def supply(
        self, pool: MbufPool, *, buffers: int = BUFFERS, small: bool = False, deadline: int | None = None
    ) -> None:
        """From now on receive into clusters of `pool`, at most `buffers` (up to 32) of them in the ring at a time.

        `small`: into small mbufs instead, several for a packet. Until then nothing is received. Once a start. Errors:
        DriverError; DeadlineExpired and ResourceShortage if not even one can be had.
        """
        self._started()
        if not 1 <= buffers <= self._rings[0].size:
            raise DriverError(f"{self.name}: {buffers} buffers; the receive ring holds 1 to {self._rings[0].size}")
        if self._supply is not None:
            raise DriverError(f"{self.name} has a pool already; stop and start it to give it another")
        await self._turn.take(self._runtime, deadline)  # and keep it: there is no echo any more
        try:
            self._started()
            supply = Supply(self._receiver, pool, self._mbufs, self._lock, buffers=buffers, small=small)
            self._consumer = supply
            try:
                await supply.fill(deadline)
                self._started()  # or it was stopped meanwhile
            except BaseException as error:
                await supply.end(self._runtime)
                if isinstance(error, WaitCancelled):
                    self._started()  # or it was `stop` that cancelled the load
                raise
            self._supply = supply
        except BaseException:
            self._consumer = None
            self._turn.put(None)
            raise

    async def receive(self, deadline: int | None = None) -> MbufChain:
        """The next packet that was received, without its check sequence; the caller frees it.

        Errors: DriverError without a `supply`, DeadlineExpired, WaitCancelled.
        """
        self._started()
        if self._supply is None:
            raise DriverError(f"{self.name} has nothing to receive into: supply it with an mbuf pool first")
        packets = self._supply.packets
        packet = await packets.take(self._runtime, deadline)
        if packet is None:
            packets.put(None)  # for the next one who waits
            raise self._transmitter.refusal or DriverError(f"{self.name} was stopped")
        return packet

    async def echo(self, out: Data, back: Data, deadline: int | None = None) -> None:
        """As `busdma.drivers.echo.Echo.echo`, if what it sends comes back. Refused after `supply`."""
        self._started()
        if not 1 <= len(out) <= self.most or len(back) != len(out):
            raise DriverError(
                f"{self.name}: an echo of {len(out)} bytes into {len(back)}: give equal lengths of 1 to {self.most}"
            )
        if self._supply is not None:
            raise DriverError(f"{self.name} receives into a pool; stop and start it for an echo")
        await self._turn.take(self._runtime, deadline)
        try:
            self._started()
            self._consumer = self._loop
            await self._loop.run(out, back, deadline)
        finally:
            self._turn.put(None)

    def _started(self) -> Transmitter:
        """The transmit side, if anything can be done."""
        if not self._tasks:
            raise DriverError(f"{self.name} is not started: start it first")
        if self._transmitter.refusal is not None:
            raise self._transmitter.refusal
        return self._transmitter

    # -- contexts -----------------------------------------------------------------------------------------------------

    def _context(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> Task[None]:
        return contexts.start(self._runtime, self.name, name, run, self._end_service)

    async def _complete(self) -> None:
        while True:
            await self._interrupt.wait()
            with self._lock:
                status, failed = self._chip.causes()  # acknowledged before anything else, or the next would be missed
                self._counts["interrupts"] += 1
                if status & MISS:
                    counted = self._chip.read(112)
                    self._counts["missed"] += counted - self._missed & 0xFFFF
                    self._missed = counted
                self._transmitter.reap()
                while (arrival := self._receiver.take()) is not None:
                    if self._consumer is not None:
                        self._consumer.arrived(arrival)
                if failed:
                    self._fail(DeviceFault(f"the bus refused an access of {self.name}, which was reset"))
                elif status & STRT and not status & TXON:
                    self._fail(DeviceFault(f"{self.name} has stopped sending, and was reset"))

    async def _recover(self) -> None:
        while True:
            resets, error = await self._trouble.take(self._runtime)
            if resets != self._resets or self._transmitter.refusal is not None:
                continue
            try:
                self._counts["resets"] += 1
                self._halt(error, again=True)
                await self._initialised()
            except DeviceFault as fault:
                self._end_service(DeviceFault(f"{self.name} is out of service: {error}; {fault}"))

    def _fail(self, error: Exception) -> None:
        """Have the controller reset, because of `error`."""
        self._trouble.put((self._resets, error))

    def _halt(self, error: Exception, *, again: bool) -> None:
        """Reset the controller: what it had comes back, and fails with `error`. DeviceFault if it does not answer.

        `again`: have it begin anew.
        """
        with self._lock:
            self._resets += 1
            self._transmitter.quarantine()
            self._chip.reset()
            self._let_go(error, again=again)

    def _let_go(self, error: Exception, *, again: bool) -> None:
        """It cannot reach memory any more."""
        self.tag.report_idle()
        places = self._receiver.empty()
        if again:
            self._begin()
        self._transmitter.empty(error)
        if self._consumer is not None:
            self._consumer.reset(places, error, again=again)

    def _end_service(self, error: Exception) -> None:
        """Refuse everything from now on. The controller is reset, or if it does not answer, cut off from memory."""
        with self._lock:
            self._transmitter.refusal = error
            try:
                self._halt(error, again=False)
            except DeviceFault:
                self._enable(True, False)
                self._let_go(error, again=False)
