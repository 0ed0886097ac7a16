"""A host for the AHA-1542 model: a clock, 16 MiB of memory, an interrupt line, and the words of the data sheet."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import TypeVar

from busdma.sim.disk import Disk
from busdma.sim.scsi.aha1542 import Aha1542
from busdma.sim.scsi.mailbox_adapter import CDF, DF, HACC, INVDCMD, IRST
from busdma.sim.scsi.target import Clock as ScsiClock
from busdma.sim.scsi.target import Phases, ScsiTarget

WIRES = 1 << 24
US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
MAILBOXES, CCBS, LISTS, DATA = 0x1000, 0x2000, 0x8000, 0x10000

READY, COMPLETED, ABORTED, NOT_FOUND, ERROR = 0, 1, 2, 3, 4
T = TypeVar("T")


class Clock:
    """Virtual time: a heap of calls."""

    def __init__(self) -> None:
        self.time = 0
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def now(self) -> int:
        return self.time

    def call_at(self, when: int, fn: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (max(when, self.time), next(self._order), fn))

    def step(self) -> bool:
        if not self._heap:
            return False
        self.time, _, fn = heapq.heappop(self._heap)
        fn()
        return True

    def run(self, until: int) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.step()
        self.time = max(self.time, until)


class Bus:
    """16 MiB of memory behind 24 address wires."""

    def __init__(self) -> None:
        self.memory = bytearray(WIRES)
        self.accesses: list[tuple[str, int, int, int]] = []
        self.clock = Clock()

    def dma_read(self, address: int, length: int) -> bytes:
        self.accesses.append(("read", address, length, self.clock.time))
        return self.get(address, length)

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.accesses.append(("write", address, len(data), self.clock.time))
        self.put(address, bytes(data))

    def get(self, address: int, length: int) -> bytes:
        first = self.memory[address % WIRES : address % WIRES + length]
        return bytes(first + self.memory[: length - len(first)])

    def put(self, address: int, data: bytes) -> None:
        start = address % WIRES
        room = min(len(data), WIRES - start)
        self.memory[start : start + room] = data[:room]
        self.memory[: len(data) - room] = data[room:]


class Line:
    """An interrupt line that counts its rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def assert_(self) -> None:
        self.edges += not self.level
        self.level = True

    def deassert(self) -> None:
        self.level = False


def three(value: int) -> bytes:
    """Three bytes, most significant first."""
    return value.to_bytes(3, "big")


class Host:
    """A host that knows the data sheet and no driver."""

    def __init__(self, *, targets: tuple[int, ...] = (0,), board: str = "1542CF", blocks: int = 4096) -> None:
        self.bus, self.line = Bus(), Line()
        self.clock = self.bus.clock
        self.disks = {target: Disk(None, blocks=blocks, seed=target) for target in targets}
        self.targets = {target: ScsiTarget(disk) for target, disk in self.disks.items()}
        self.adapter = Aha1542(
            self.bus, self.line, self.clock.call_at, self.clock.now,
            irq=11, dma_channel=5, targets=self.targets, board=board, seed=42,
        )  # fmt: skip
        self.count = self.out = self.next_in = 0

    def close(self) -> None:
        for disk in self.disks.values():
            disk.close()

    def status(self) -> int:
        return self.adapter.read8(0)

    def flags(self) -> int:
        return self.adapter.read8(2)

    def wait(self, condition: Callable[[], T], limit: int = 60 * SECOND) -> T:
        """Let time pass until `condition` holds."""
        end = self.clock.time + limit
        while not (found := condition()):
            assert self.clock.time < end, "nothing happened"
            assert self.clock.step(), "nothing left to happen"
        return found

    def acknowledge(self) -> int:
        """Read the interrupt flags and reset them."""
        flags = self.flags()
        self.adapter.write8(0, IRST)
        return flags

    def send(self, *values: int) -> None:
        """Write command and parameter bytes, each when the port is empty."""
        for value in values:
            self.wait(lambda: not self.status() & CDF)
            self.adapter.write8(1, value)
        self.wait(lambda: not self.status() & CDF)

    def command(self, *values: int, reply: int = 0) -> tuple[bytes, bool]:
        """An adapter command with `reply` bytes of answer: the answer, and whether it was accepted."""
        self.send(*values)
        answer = bytearray()
        for _ in range(reply):
            self.wait(lambda: self.status() & DF or self.flags() & HACC)
            if self.flags() & HACC:
                break
            answer.append(self.adapter.read8(1))
        self.wait(lambda: self.flags() & HACC)
        accepted = not self.status() & INVDCMD
        self.acknowledge()
        return bytes(answer), accepted

    def unlock(self) -> None:
        """Open the 1542C's mailbox lock."""
        lock, _ = self.command(0x28, reply=2)
        assert self.command(0x29, 0, lock[1])[1]

    def start(self, count: int = 4) -> None:
        """Unlock, place the mailboxes, and hear the unit attentions."""
        self.unlock()
        self.place(count)
        for target in self.targets:
            self.run(self.ccb(0, bytes(6), target=target))

    def place(self, count: int = 4, base: int = MAILBOXES) -> None:
        self.bus.put(base, bytes(8 * count))
        assert self.command(0x01, count, *three(base))[1]
        self.count, self.out, self.next_in, self.base = count, 0, 0, base

    def ccb(
        self,
        index: int,
        cdb: bytes,
        *,
        opcode: int = 0,
        target: int = 0,
        lun: int = 0,
        direction: int = 0,
        length: int = 0,
        pointer: int = 0,
        sense: int = 0,
    ) -> int:
        """Write a CCB; its address."""
        address = CCBS + 128 * index
        head = bytes((opcode, target << 5 | direction | lun, len(cdb), sense)) + three(length) + three(pointer)
        self.bus.put(address, (head.ljust(14, b"\0") + b"\xee\xee\0\0" + cdb).ljust(128, b"\xcc"))
        return address

    def sg(self, index: int, *elements: tuple[int, int]) -> tuple[int, int]:
        """Write a list of (address, length) elements; its address and its length in bytes."""
        raw = b"".join(three(length) + three(address) for address, length in elements)
        self.bus.put(LISTS + 256 * index, raw)
        return LISTS + 256 * index, len(raw)

    def post(self, ccb: int, action: int = 1, *, ring: bool = True) -> None:
        """Fill the next outgoing mailbox and tell the adapter."""
        at = self.base + 4 * self.out
        self.wait(lambda: self.bus.memory[at] == 0)
        self.bus.put(at, bytes((action,)) + three(ccb))
        self.out = (self.out + 1) % self.count
        if ring:
            self.send(0x02)

    def collect(self) -> tuple[int, int] | None:
        """Empty the next incoming mailbox: its status and CCB."""
        at = self.base + 4 * (self.count + self.next_in)
        raw = self.bus.get(at, 4)
        if not raw[0]:
            return None
        self.bus.put(at, b"\0")
        self.next_in = (self.next_in + 1) % self.count
        return raw[0], int.from_bytes(raw[1:], "big")

    def finished(self) -> tuple[int, int]:
        """Wait for the next incoming mailbox."""
        found = self.wait(self.collect)
        assert found is not None
        if self.flags():
            self.acknowledge()
        return found

    def run(self, ccb: int) -> tuple[int, int, int]:
        """Run one CCB alone: mailbox status, host status, target status."""
        self.post(ccb)
        status, address = self.finished()
        assert address == ccb
        return status, self.bus.memory[ccb + 14], self.bus.memory[ccb + 15]


def ten(opcode: int, lba: int, count: int) -> bytes:
    """READ(10) or WRITE(10)."""
    return bytes((opcode, 0)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat soon."""
    return bytes((index * 7 + index // 251 + seed) & 0xFF for index in range(length))


class Counting(ScsiTarget):
    """A drive that counts the commands it is given."""

    given = 0

    def execute(self, lun: int, cdb: bytes, now: ScsiClock) -> Phases:
        self.given += 1
        return super().execute(lun, cdb, now)
