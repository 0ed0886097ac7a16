"""The Bt848 driver, independent of the bus: continuous capture of pictures into a ring in one large buffer.

The buffer is one physical run of memory that is never mapped as a whole. The device fills it without end, told where by
a RISC program that it fetches itself; whoever wants to see something maps a few lines of a picture, while the device is
at another one. A process can map the buffer too, to read it.

Source: Brooktree (Conexant), "Bt848/848A/849A Single-Chip Video Capture for PCI" data sheet; Thorpe, USENIX 1998, "Data
buffer structures" (frame grabbers).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from busdma.drivers.block import BlockDevice
from busdma.drivers.bt848 import layout
from busdma.drivers.bt848.capture import Capture, Frame
from busdma.drivers.bt848.layout import Shape
from busdma.errors import DeviceFault, DriverError
from busdma.machine.attachment import Attachment, MmioRegisters
from busdma.waiting import Task, Waiter

if TYPE_CHECKING:
    from busdma.buffers import LinearBuffer
    from busdma.memory import ProcessSpace
    from busdma.tag import Tag

BUFFER: Final = 2 << 20  #: bytes, unless told otherwise


class Grabber:
    """One device. ``start`` it, then `start_capture`, `frame` as often as wanted, `stop_capture`."""

    disks: tuple[BlockDevice, ...] = ()

    def __init__(
        self,
        attachment: Attachment,
        tag: Tag,
        registers: MmioRegisters,
        *,
        enable: Callable[[bool, bool], object],
    ) -> None:
        """`tag`: for pictures and RISC programs, in one segment each.

        `enable`, of the front end: may (the CPU reach the registers, the device reach memory)?
        """
        self.name, self.tag = attachment.name, tag
        self._interrupt, self._runtime = attachment.interrupt, attachment.runtime
        self._registers, self._enable = registers, enable
        self._lock = threading.RLock()  # contexts may be OS threads; held briefly, never across an await
        self._task: Task[None] | None = None
        self._capture: Capture | None = None
        self._fault: DeviceFault | None = None
        self._waiting: list[Waiter] = []  # for a picture
        self._counts = dict.fromkeys(("interrupts", "pictures", "skipped", "faults"), 0)

    async def start(self) -> None:
        """Reset it, and let it reach memory. DriverError if it is started already."""
        if self._task is not None:
            raise DriverError(f"{self.name} is already started")
        registers = self._registers
        self._enable(True, False)
        registers.write32(layout.SRESET, 0)
        registers.write32(layout.INT_STAT, layout.CAUSES)
        self._enable(True, True)
        self._task = self._runtime.start(self._complete, name=f"{self.name} complete")

    async def stop(self) -> None:
        """End the capture, cut the device off from memory, and end the driver's contexts."""
        task = self._task
        if task is None:
            return
        if self._capture is not None:
            await self.stop_capture()
        self._task = None
        task.cancel()
        await self._runtime.park(task.done)
        self._registers.write32(layout.SRESET, 0)
        self._enable(False, False)

    def statistics(self) -> dict[str, Any]:
        """Interrupts; pictures handed out, and complete ones that nobody took; faults. The capture's memory, if any."""
        with self._lock:
            memory = {} if self._capture is None else {"memory": self._capture.memory.statistics()}
            return {**self._counts, **memory}

    # -- capture ------------------------------------------------------------------------------------------------------

    async def start_capture(
        self, *, width: int = 640, height: int = 480, buffer: int = BUFFER, slots: int | None = None
    ) -> int:
        """Capture pictures of `width` by `height` pixels, without end, into `buffer` bytes; how many it holds.

        So many pictures, or `slots` of them, are in the buffer at a time. DriverError: no such pictures, or a capture
        runs. DeviceFault: no video signal. ResourceShortage: the machine has no such run of memory.
        """
        if self._task is None:
            raise DriverError(f"{self.name} is not started: start it first")
        if self._capture is not None:
            raise DriverError(f"{self.name} captures already: stop_capture() first")
        if not (8 <= width <= layout.WIDEST and 2 <= height <= layout.TALLEST) or width % 4 or height % 2:
            raise DriverError(
                f"{self.name}: {width} by {height} pixels is no picture: give a multiple of 4 from 8 to "
                f"{layout.WIDEST}, and an even number of lines up to {layout.TALLEST}"
            )
        room = min(buffer // (width * height), layout.MOST_SLOTS)
        count = room if slots is None else slots
        if not 2 <= count <= room:
            raise DriverError(
                f"{self.name}: {buffer} bytes hold {room} pictures of {width * height}, and the ring of a capture has "
                f"2 to {layout.MOST_SLOTS}, not {count}: give a larger buffer, or other slots"
            )
        if self._registers.read32(layout.DSTATUS) & (layout.PRESENT | layout.LOCKED) != layout.PRESENT | layout.LOCKED:
            raise DeviceFault(f"{self.name} has no video signal: connect a camera")
        shape = Shape(width, height, count)
        memory = self.tag.alloc(buffer, zero=False, contiguous=True)
        try:
            program = self.tag.alloc(shape.program_size, contiguous=True)
        except BaseException:
            memory.free()
            raise
        capture = Capture(shape, memory, program, self._status)
        capture.prepare()
        registers = self._registers
        for offset, value in shape.registers():
            registers.write32(offset, value)
        registers.write32(layout.RISC_STRT_ADD, program.address)
        registers.write32(layout.INT_STAT, layout.CAUSES)
        with self._lock:
            self._capture, self._fault = capture, None
        registers.write32(layout.INT_MASK, layout.RISCI | layout.FATAL)
        registers.barrier()
        registers.write32(layout.GPIO_DMA_CTL, layout.RUN)
        return count

    async def frame(self, deadline: int | None = None) -> Frame:
        """The newest complete picture, once there is one newer than the last that was handed out.

        `deadline`, in ns of the runtime's clock. Errors: DeadlineExpired (give a deadline: without a video signal there
        is no next picture), DeviceFault (the device has given up), DriverError (no capture runs, or it was stopped).
        """
        while True:
            with self._lock:
                capture = self._running()
                if capture.complete > capture.given:
                    self._counts["skipped"] += capture.complete - capture.given - 1
                    self._counts["pictures"] += 1
                    capture.given = capture.complete
                    return Frame(self.name, capture, capture.complete - 1)
                waiter = Waiter(f"a picture of {self.name}")
                self._waiting.append(waiter)
            try:
                await self._runtime.park(waiter, deadline)
            finally:
                with self._lock:
                    if waiter in self._waiting:
                        self._waiting.remove(waiter)

    def mmap(self, space: ProcessSpace) -> LinearBuffer:
        """The buffer of the running capture in a process, to read: what mmap(2) on the device gives.

        The process must free it, or end, before the capture can be stopped.
        """
        with self._lock:
            return self._running().memory.mmap(space, writable=False)

    async def stop_capture(self) -> None:
        """Stop the device, and free the buffer. DriverError if none runs.

        DriverError also while lines, or a process, have the buffer mapped: the device is stopped then, and the buffer
        goes with the next call.
        """
        with self._lock:
            capture = self._capture
        if capture is None:
            raise DriverError(f"{self.name} captures nothing: start_capture() first")
        self._halt()
        self._wake()
        capture.end()
        with self._lock:
            self._capture = None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _running(self) -> Capture:
        """The capture that runs. Under the lock."""
        if self._fault is not None:
            raise self._fault
        if self._capture is None or self._capture.over:
            raise DriverError(f"{self.name} captures nothing: start_capture() first")
        return self._capture

    def _status(self) -> int:
        """The number of the slot that was filled last, from 1 on; 0: none yet."""
        return self._registers.read32(layout.INT_STAT) >> layout.STATUS_SHIFT

    def _halt(self) -> None:
        """Stop the RISC engine and the FIFO; from here on the device does not touch memory."""
        self._registers.write32(layout.INT_MASK, 0)
        self._registers.write32(layout.GPIO_DMA_CTL, 0)
        self._registers.barrier()
        self._registers.read32(layout.INT_STAT)  # a read pushes what the device has posted

    def _wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.wake()

    async def _complete(self) -> None:
        """The completion context. Waits for nothing but the interrupt."""
        try:
            while True:
                await self._interrupt.wait()
                causes = self._registers.read32(layout.INT_STAT) & layout.CAUSES
                self._registers.write32(layout.INT_STAT, causes)
                self._counts["interrupts"] += 1
                with self._lock:
                    capture = self._capture
                if capture is not None and not capture.over:
                    capture.update()
                if causes & layout.PABORT:
                    self._fail(f"the bus refused an access (interrupt status {causes:#07x})")
                elif causes & layout.FATAL:
                    self._fail(f"its RISC program cannot go on (interrupt status {causes:#07x})")
                self._wake()
        except Exception as error:  # without this context nobody would ever get a picture
            self._fail(f"its driver failed: {error!r}")
            self._wake()
            raise

    def _fail(self, why: str) -> None:
        with self._lock:
            self._halt()
            self._counts["faults"] += 1
            self._fault = DeviceFault(f"{self.name} has stopped: {why}; stop_capture(), and start again")
