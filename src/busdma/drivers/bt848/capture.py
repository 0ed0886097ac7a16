"""One capture: the memory that the device fills, and the pictures in it as long as they are there.

The device fills the slots of a ring in turn and never waits. So a picture is there until the device comes round to its
slot again. All of the memory is the device's; a driver that looks at some lines takes just these, and gives them back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from busdma.drivers.bt848.layout import Shape
from busdma.errors import BufferGone, DriverError
from busdma.memory import DmaMemory
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE


class Capture:
    """The memory of one capture, of `shape`, and how many pictures are complete. `status` reads the device's."""

    def __init__(self, shape: Shape, memory: DmaMemory, program: DmaMemory, status: Callable[[], int]) -> None:
        self.shape = shape
        self.memory = memory
        self.program = program
        self.complete = 0  #: pictures, since the start
        self.given = 0  #: complete ones that had been seen when one was last handed out
        self._status = status
        self._lock = threading.Lock()
        self.over = False  #: the device is off

    def prepare(self) -> None:
        """Write the program and give everything to the device."""
        shape, program = self.shape, self.program
        program.view[: shape.program_size] = shape.program(self.memory.address, program.address)
        program.sync(PREWRITE)
        self.memory.sync(PREREAD)

    def update(self) -> None:
        """Look how far the device is. It must be asked at least once in the time that it takes to go round the ring."""
        with self._lock:
            status = self._status()
            if status:
                self.complete += (status - self.complete) % self.shape.slots

    def is_there(self, number: int) -> bool:
        """Is picture `number` complete, and not being overwritten?"""
        if self.over:
            return False
        self.update()
        return number < self.complete < number + self.shape.slots

    def end(self) -> None:
        """The device is off: take everything back, and free it. DriverError while some of it is looked at."""
        if not self.over:
            self.over = True
            self.memory.sync(POSTREAD)
            self.program.sync(POSTWRITE)
        for each in (self.memory, self.program):
            if not each.gone:
                each.free()


class Frame:
    """Picture `number` of a capture, from 0 on. It is there for a few pictures' time; see `intact`."""

    def __init__(self, name: str, capture: Capture, number: int) -> None:
        self.number = number
        self.width = capture.shape.width
        self.height = capture.shape.height
        self._name = name
        self._capture = capture
        self._start = number % capture.shape.slots * capture.shape.picture

    @property
    def intact(self) -> bool:
        """True until the device has come round to its slot again, or the capture has ended."""
        return self._capture.is_there(self.number)

    @contextmanager
    def lines(self, first: int, count: int = 1) -> Iterator[memoryview]:
        """Lines [first, first + count), one byte a pixel, mapped and the CPU's inside the ``with`` block only.

        DriverError: no lines of the picture. BufferGone: it was overwritten before; or meanwhile, at the block's end.
        """
        if first < 0 or count < 1 or first + count > self.height:
            raise DriverError(
                f"{self._name}: lines {first} to {first + count - 1} are not 1 or more of a picture's {self.height}"
            )
        memory, offset, length = self._capture.memory, self._start + first * self.width, count * self.width
        self._refuse_if_gone()
        memory.sync(POSTREAD, offset, length)
        try:
            with memory.map(offset, length) as window:
                yield window.view
        finally:
            if not self._capture.over:
                memory.sync(PREREAD, offset, length)
        self._refuse_if_gone()

    def _refuse_if_gone(self) -> None:
        if self.intact:
            return
        why = "the device has come round to its slot: take the newest with frame(), or capture into more slots"
        if self._capture.over:
            why = "the capture has ended: start another"
        raise BufferGone(f"{self._name}: picture {self.number} is there no more; {why}")

    def __repr__(self) -> str:
        return f"<picture {self.number} of {self._name}, {self.width} by {self.height}>"
