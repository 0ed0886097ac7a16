"""A host for the NVMe model that is as small as can be: memory that is a bytearray, a clock, and no driver."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable
from typing import NamedTuple

from busdma.errors import DeviceFault
from busdma.sim.disk import Disk
from busdma.sim.nvme.controller import NvmeController
from busdma.sim.nvme.flash import SMALL_SSD, Flash

RAM = 16 << 20
BLOCKS = 4096
CAP, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30
ENABLED = 6 << 16 | 4 << 20 | 1
ADMIN = 8
SECOND = 1_000_000_000


class Answer(NamedTuple):
    """A completion. `status`: type and code."""

    result: int
    head: int
    queue: int
    id: int
    status: int
    retry: bool


class Ring:
    """The host's side of a pair of queues."""

    def __init__(self, id: int, sq: int, cq: int, sq_size: int, cq_size: int) -> None:
        self.id, self.sq, self.cq, self.sq_size, self.cq_size = id, sq, cq, sq_size, cq_size
        self.tail = self.head = 0
        self.phase = 1


class Host:
    """Memory, the clock, and a controller that is off."""

    def __init__(
        self,
        *,
        namespaces: int = 1,
        mdts: int = 5,
        queues: int = 4,
        flash: Flash = SMALL_SSD,
        block_size: int = 512,
        shadow_doorbells: bool = False,
    ) -> None:
        self.memory = bytearray(RAM)
        self.refused = range(0)  #: addresses that a translation refuses
        self.time = self.number = 0
        self.timers: list[tuple[int, int, Callable[[], object]]] = []
        self.level = False
        self.rises = 0
        self.written: list[int] = []  #: the addresses of every write of the device
        self.disks = [Disk(blocks=BLOCKS, block_size=block_size) for _ in range(namespaces)]
        self.device = NvmeController(
            self,
            self,
            self.call_at,
            self.now,
            namespaces=self.disks,
            mdts=mdts,
            queues=queues,
            flash=flash,
            shadow_doorbells=shadow_doorbells,
        )
        self.next_id = 0
        self.free = 0x10000  # memory below belongs to the queues
        self.rings = {0: Ring(0, 0x1000, 0x2000, ADMIN, ADMIN)}

    # what the device sees

    def dma_read(self, address: int, length: int) -> bytes:
        if address in self.refused:
            raise DeviceFault("translation fault", address)
        return bytes(self.memory[address : address + length])

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        if address in self.refused:
            raise DeviceFault("translation fault", address)
        self.written.append(address)
        self.memory[address : address + len(data)] = data

    def assert_(self) -> None:
        self.rises += not self.level
        self.level = True

    def deassert(self) -> None:
        self.level = False

    def call_at(self, when: int, fn: Callable[[], object]) -> None:
        self.number += 1
        heapq.heappush(self.timers, (when, self.number, fn))

    def now(self) -> int:
        return self.time

    # what a test does

    def run(self, time: int = SECOND) -> None:
        """Let `time` pass."""
        end = self.time + time
        while self.timers and self.timers[0][0] <= end:
            self.time, _, fn = heapq.heappop(self.timers)
            fn()
        self.time = end

    def get(self, register: int) -> int:
        return self.device.read(0, register, 4)

    def set(self, register: int, value: int) -> None:
        self.device.write(0, register, 4, value)

    def enable(self, cc: int = ENABLED) -> None:
        """Enable the controller with the admin queues at 0x1000 and 0x2000."""
        self.set(AQA, (ADMIN - 1) * 0x10001)
        self.device.write(0, ASQ, 8, 0x1000)
        self.device.write(0, ACQ, 8, 0x2000)
        self.memory[0x1000:0x3000] = bytes(0x2000)
        self.rings = {0: Ring(0, 0x1000, 0x2000, ADMIN, ADMIN)}
        self.set(CC, cc)
        self.run()

    def start(self, size: int = 16, cq_size: int | None = None) -> None:
        """Enable it, and have one pair of I/O queues."""
        self.enable()
        assert self.get(CSTS) == 1
        cq_size = cq_size or size
        assert self.do(0, 0x05, prp1=0x5000, words=((cq_size - 1) << 16 | 1, 3)).status == 0
        assert self.do(0, 0x01, prp1=0x4000, words=((size - 1) << 16 | 1, 1 << 16 | 1)).status == 0
        self.memory[0x4000:0x6000] = bytes(0x2000)
        self.rings[1] = Ring(1, 0x4000, 0x5000, size, cq_size)

    def put(
        self, queue: int, opcode: int, nsid: int = 0, prp1: int = 0, prp2: int = 0, words: tuple[int, ...] = (),
        *, flags: int = 0, id: int | None = None, ring: bool = True,
    ) -> int:  # fmt: skip
        """Submit a command; its identifier."""
        if id is None:
            id = self.next_id = (self.next_id + 1) % 0x10000
        where = self.rings[queue]
        full = words + (0,) * (6 - len(words))
        entry = struct.pack("<BBHIIIQQQ6I", opcode, flags, id, nsid, 0, 0, 0, prp1, prp2, *full)
        self.memory[where.sq + 64 * where.tail : where.sq + 64 * (where.tail + 1)] = entry
        where.tail = (where.tail + 1) % where.sq_size
        if ring:
            self.ring(queue)
        return id

    def ring(self, queue: int) -> None:
        self.set(0x1000 + 8 * queue, self.rings[queue].tail)

    def take(self, queue: int, *, ring: bool = True) -> list[Answer]:
        """All new completions."""
        where, found = self.rings[queue], []
        while True:
            at = where.cq + 16 * where.head
            result, _, head, sq, id, word = struct.unpack("<IIHHHH", self.memory[at : at + 16])
            if word & 1 != where.phase:
                break
            found.append(Answer(result, head, sq, id, word >> 1 & 0x7FF, not word >> 15))
            where.head += 1
            if where.head == where.cq_size:
                where.head, where.phase = 0, where.phase ^ 1
        if found and ring:
            self.set(0x1004 + 8 * queue, where.head)
        return found

    def do(
        self, queue: int, opcode: int, nsid: int = 0, prp1: int = 0, prp2: int = 0, words: tuple[int, ...] = (),
        *, flags: int = 0,
    ) -> Answer:  # fmt: skip
        """Submit a command and wait for its completion."""
        id = self.put(queue, opcode, nsid, prp1, prp2, words, flags=flags)
        self.run()
        (answer,) = self.take(queue)
        assert (answer.queue, answer.id) == (queue, id)
        return answer

    def close(self) -> None:
        for disk in self.disks:
            disk.close()
