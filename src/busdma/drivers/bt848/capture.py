"""One capture: the memory that the device fills, and the pictures in it as long as they are there.

The device fills the slots of a ring in turn and never waits. So a picture is there until the device comes round to its
slot again. All of the ring is the device's; who looks at some lines takes just these, and gives them back. Of several
who look at the same line the first takes it, and the last gives it back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby

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
        self._lookers = [0] * (shape.slots * shape.height)  # of each line
        self._lock = threading.Lock()
        self.over = False  #: the device is off

    def prepare(self) -> None:
        """Write the program, and give it and the ring to the device."""
        shape, program = self.shape, self.program
        program.view[: shape.program_size] = shape.program(self.memory.address, program.address)
        program.sync(PREWRITE)
        self.memory.sync(PREREAD, 0, shape.slots * shape.picture)

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
        with self._lock:
            if not self.over:
                self.over = True
                for offset, length in self._unseen(0, len(self._lookers)):
                    self.memory.sync(POSTREAD, offset, length)
                self.program.sync(POSTWRITE)
        for each in (self.memory, self.program):
            if not each.gone:
                each.free()

    @contextmanager
    def looked_at(self, first: int, count: int) -> Iterator[memoryview]:
        """Lines [first, first + count) of the ring, mapped and the CPU's inside the ``with`` block only."""
        with self._lock:
            if not self.over:
                for offset, length in self._unseen(first, count):
                    self.memory.sync(POSTREAD, offset, length)
            self._looks(first, count, 1)
        try:
            with self.memory.map(first * self.shape.width, count * self.shape.width) as window:
                yield window.view
        finally:
            with self._lock:
                self._looks(first, count, -1)
                if not self.over:
                    for offset, length in self._unseen(first, count):
                        self.memory.sync(PREREAD, offset, length)

    def _looks(self, first: int, count: int, change: int) -> None:
        for line in range(first, first + count):
            self._lookers[line] += change

    def _unseen(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """What nobody looks at of lines [first, first + count): (offset, length) in the ring. Under the lock."""
        width = self.shape.width
        for looked, lines in groupby(range(first, first + count), lambda line: self._lookers[line] > 0):
            run = list(lines)
            if not looked:
                yield run[0] * width, len(run) * width


class Frame:
    """Picture `number` of a capture, from 0 on. It is there for a few pictures' time; see `intact`."""

    def __init__(self, name: str, capture: Capture, number: int) -> None:
        self.number = number
        self.width = capture.shape.width
        self.height = capture.shape.height
        self._name = name
        self._capture = capture
        self._start = number % capture.shape.slots * self.height  # a line of the ring

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
        self._refuse_if_gone()
        with self._capture.looked_at(self._start + first, count) as view:
            yield view
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
