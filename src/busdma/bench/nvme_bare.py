"""NVMe without busdma: what people build by hand, and the least that there can be.

`Bare` is a controller with one pair of queues. Commands and PRPs are packed into memory that it has for itself, at
addresses that the controller uses as they are; there is no tag, no map and no sync, no deadline and no second try.

Source: NVM Express Base Specification 1.4: 3.1 (registers), 4.2, 4.6 (entries), 5.3, 5.4 (I/O queues), 7.6.1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from time import perf_counter_ns
from typing import Final

from busdma.errors import DeviceFault
from busdma.machine.attachment import MmioRegisters
from busdma.qemu.qtest import Qtest

PAGE: Final = 4096
BLOCKS: Final = 8  #: of a page
ENTRIES: Final = 64
READ: Final = 2
PATIENCE: Final = 5_000_000_000  #: ns, for a completion
HEADS: Final = 16  #: completions after which the floor gives entries back
_COMMAND: Final = struct.Struct("<BBHI16xQQ6I")
_COMPLETION: Final = struct.Struct("<I4xHHHH")


class Bare:
    """The controller behind `registers`, whose doorbells are at physical address `bells`.

    It has the page frames at `frames` for itself, which are at `view[frame]`, and on the bus at ``bus(frame)``.
    """

    def __init__(
        self,
        qtest: Qtest,
        registers: MmioRegisters,
        bells: int,
        view: memoryview,
        frames: list[int],
        bus: Callable[[int], int],
    ) -> None:
        self._qtest, self._registers, self._bells, self._view, self._bus = qtest, registers, bells, view, bus
        admin_sq, admin_cq, self._sq, self._cq, *self._buffers = frames
        for frame in frames:
            view[frame : frame + PAGE] = bytes(PAGE)
        self._tail = self._head = self._id = 0
        self._phase = 1
        write, read = registers.write32, registers.read32
        write(0x14, 0)
        while read(0x1C) & 1:
            pass
        write(0x24, (ENTRIES - 1) * 0x10001)
        for at, frame in ((0x28, admin_sq), (0x30, admin_cq)):
            write(at, bus(frame) & 0xFFFFFFFF)
            write(at + 4, bus(frame) >> 32)
        write(0x14, 0x00460001)
        while not read(0x1C) & 1:
            pass
        size = (ENTRIES - 1) << 16 | 1
        for number, (opcode, frame, word) in enumerate(((5, self._cq, 1), (1, self._sq, 1 << 16 | 1))):
            _COMMAND.pack_into(
                view, admin_sq + 64 * number, opcode, 0, number, 0, bus(frame), 0, size, word, 0, 0, 0, 0
            )
            write(0x1000, number + 1)
            self._wait(admin_cq + 16 * number + 14, 1)

    def paint(self, byte: int) -> None:
        """Fill the buffers."""
        for frame in self._buffers:
            self._view[frame : frame + PAGE] = bytes((byte,)) * PAGE

    def blank(self) -> bool:
        """Are there only zeros in all buffers?"""
        return not any(any(self._view[frame : frame + PAGE]) for frame in self._buffers)

    def floor(self, count: int) -> list[int]:
        """Read so many pages one after the other; ns for each. Only a doorbell, and a look at the phase bit.

        The commands have been written before, and nobody looks whether they succeeded.
        """
        view, post = self._view, self._qtest._wire.post
        for entry in range(ENTRIES):
            self._write(entry, entry, self._buffers[0], BLOCKS * entry)
        tails = [b"writel 0x%x 0x%x" % (self._bells + 8, entry) for entry in range(ENTRIES)]
        heads = [b"writel 0x%x 0x%x" % (self._bells + 12, entry) for entry in range(ENTRIES)]
        times = []
        for _ in range(count):
            begin = perf_counter_ns()
            self._tail = (self._tail + 1) % ENTRIES
            post(tails[self._tail])
            at, phase = self._cq + 16 * self._head + 14, self._phase
            while view[at] & 1 != phase:
                pass
            times.append(perf_counter_ns() - begin)
            self._took_one()
            if not self._head % HEADS:
                post(heads[self._head])
        self._registers.write32(0x100C, self._head)
        return times

    def one_by_one(self, count: int) -> list[int]:
        """Read so many pages one after the other, as a driver without a framework would; ns for each."""
        times = []
        for number in range(count):
            begin = perf_counter_ns()
            self._submit(self._buffers[0], number)
            self._registers.write32(0x1008, self._tail)
            self._wait(self._cq + 16 * self._head + 14, self._phase)
            self._reap()
            self._registers.write32(0x100C, self._head)
            times.append(perf_counter_ns() - begin)
        return times

    def many(self, count: int, depth: int) -> float:
        """Read so many pages, `depth` of them at a time; ns for one."""
        view, buffers = self._view, self._buffers
        sent = done = 0
        begin = perf_counter_ns()
        while done < count:
            before = sent
            while sent - done < depth and sent < count:
                self._submit(buffers[sent % depth], sent)
                sent += 1
            if sent != before:
                self._registers.write32(0x1008, self._tail)
            self._wait(self._cq + 16 * self._head + 14, self._phase)
            while view[self._cq + 16 * self._head + 14] & 1 == self._phase:
                self._reap()
                done += 1
            self._registers.write32(0x100C, self._head)
        return (perf_counter_ns() - begin) / count

    def _submit(self, frame: int, number: int) -> None:
        self._id = (self._id + 1) % 0x10000
        self._write(self._tail, self._id, frame, BLOCKS * (number % 1024))
        self._tail = (self._tail + 1) % ENTRIES

    def _write(self, entry: int, id: int, frame: int, lba: int) -> None:
        _COMMAND.pack_into(
            self._view, self._sq + 64 * entry, READ, 0, id, 1, self._bus(frame), 0, lba, 0, BLOCKS - 1, 0, 0, 0
        )

    def _wait(self, at: int, phase: int) -> None:
        view, end = self._view, 0
        while view[at] & 1 != phase:
            now = perf_counter_ns()
            end = end or now + PATIENCE
            if now > end:
                raise DeviceFault("the controller of the reference does not answer: run the benchmark again")

    def _reap(self) -> None:
        _, _, _, id, status = _COMPLETION.unpack_from(self._view, self._cq + 16 * self._head)
        if status >> 1:
            raise DeviceFault(f"the reference's command {id} failed with status {status >> 1:#x}")
        self._took_one()

    def _took_one(self) -> None:
        self._head += 1
        if self._head == ENTRIES:
            self._head, self._phase = 0, self._phase ^ 1
