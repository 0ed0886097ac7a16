"""A host for the BT-445S model in its 32-bit mode: 32 MiB of memory, and the words of the data sheet."""

from __future__ import annotations

import struct
from typing import Any

from busdma.sim.disk import Disk
from busdma.sim.scsi.bt445s import Bt445s
from busdma.sim.scsi.mailbox_adapter import CDF, DF, HACC, INVDCMD, IRST
from busdma.sim.scsi.target import ScsiTarget
from sim.aha1542_host import READY, SECOND, Clock, Line

RAM = 32 << 20
MAILBOXES, CCBS, LISTS, SENSES, DATA = 0x1800000, 0x1802000, 0x1810000, 0x1820000, 0x1900000
SIMPLE, HEAD, ORDERED = 0x20, 0x60, 0xA0
READ, WRITE = 0x28, 0x2A


class Memory:
    """All bus addresses are memory's."""

    def __init__(self, clock: Clock) -> None:
        self.bytes = bytearray(RAM)
        self.accesses: list[tuple[str, int, int]] = []
        self.clock = clock

    def dma_read(self, address: int, length: int) -> bytes:
        assert address + length <= RAM
        self.accesses.append(("read", address, length))
        return self.get(address, length)

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        assert address + len(data) <= RAM
        self.accesses.append(("write", address, len(data)))
        self.put(address, bytes(data))

    def get(self, address: int, length: int) -> bytes:
        return bytes(self.bytes[address : address + length])

    def put(self, address: int, data: bytes) -> None:
        self.bytes[address : address + len(data)] = data


class Host:
    """A host that knows the data sheet and no driver. ``start`` it, then ``post`` and ``finished``."""

    def __init__(self, *, tags: int = 16, targets: tuple[int, ...] = (0,), **options: Any) -> None:
        self.clock, self.line = Clock(), Line()
        self.memory = Memory(self.clock)
        self.disks = {target: Disk(None, blocks=65536, seed=target) for target in targets}
        self.targets = {target: ScsiTarget(disk, tags=tags) for target, disk in self.disks.items()}
        self.adapter = Bt445s(
            self.memory, self.line, self.clock.call_at, self.clock.now, irq=11, targets=self.targets, **options
        )
        self.count = self.out = self.next_in = 0

    def close(self) -> None:
        for disk in self.disks.values():
            disk.close()

    def step_until(self, condition: Any, limit: int = 60 * SECOND) -> Any:
        """Let time pass until `condition` holds."""
        end = self.clock.time + limit
        while not (found := condition()):
            assert self.clock.time < end, "nothing happened"
            assert self.clock.step(), "nothing left to happen"
        return found

    def send(self, *values: int) -> None:
        for value in values:
            self.step_until(lambda: not self.adapter.read8(0) & CDF)
            self.adapter.write8(1, value)
        self.step_until(lambda: not self.adapter.read8(0) & CDF)

    def command(self, *values: int, reply: int = 0) -> tuple[bytes, bool]:
        """An adapter command with `reply` bytes of answer: the answer, and whether it was accepted."""
        self.send(*values)
        answer = bytearray()
        for _ in range(reply):
            self.step_until(lambda: self.adapter.read8(0) & DF or self.adapter.read8(2) & HACC)
            if self.adapter.read8(2) & HACC:
                break
            answer.append(self.adapter.read8(1))
        self.step_until(lambda: self.adapter.read8(2) & HACC)
        accepted = not self.adapter.read8(0) & INVDCMD
        self.adapter.write8(0, IRST)
        return bytes(answer), accepted

    def start(self, count: int = 8) -> Host:
        """Place the mailboxes and hear the unit attentions."""
        self.memory.put(MAILBOXES, bytes(16 * count))
        assert self.command(0x81, count, *MAILBOXES.to_bytes(4, "little"))[1]
        self.count, self.out, self.next_in = count, 0, 0
        for target in self.targets:
            self.run(self.ccb(0, bytes(6), target=target))
        return self

    def ccb(
        self,
        index: int,
        cdb: bytes,
        *,
        opcode: int = 0,
        direction: int = 0,
        target: int = 0,
        tag: int = 0,
        length: int = 0,
        pointer: int = 0,
        sense: int = 0,
    ) -> int:
        """Write a CCB; its address. Its sense data go to SENSES + 32 * index."""
        address, where = CCBS + 64 * index, SENSES + 32 * index
        head = struct.pack("<BBBBIIHBBBB", opcode, direction, len(cdb), sense, length, pointer, 0, 0xEE, 0, target, tag)
        self.memory.put(address, head + cdb.ljust(18, b"\xcc") + where.to_bytes(4, "little"))
        return address

    def io(self, index: int, operation: int, lba: int, count: int = 1, *, tag: int = SIMPLE, sense: int = 1) -> int:
        """A CCB that reads or writes blocks at DATA + 64 KiB * index."""
        cdb = struct.pack(">BBIBHB", operation, 0, lba, 0, count, 0)
        return self.ccb(index, cdb, tag=tag, length=512 * count, pointer=DATA + (index << 16), sense=sense)

    def elements(self, index: int, *pairs: tuple[int, int]) -> tuple[int, int]:
        """Write a list of (address, length); its address and length."""
        raw = b"".join(struct.pack("<II", length, address) for address, length in pairs)
        self.memory.put(LISTS + 4096 * index, raw)
        return LISTS + 4096 * index, len(raw)

    def put_mailbox(self, box: int, ccb: int, action: int = 1) -> None:
        self.memory.put(MAILBOXES + 8 * box, struct.pack("<I3xB", ccb, action))

    def out_codes(self) -> list[int]:
        """The action bytes of all outgoing mailboxes."""
        return list(self.memory.get(MAILBOXES, 8 * self.count)[7::8])

    def post(self, ccb: int, action: int = 1) -> None:
        """Fill the next outgoing mailbox and tell the adapter."""
        box = self.out
        self.step_until(lambda: self.out_codes()[box] == 0)
        self.put_mailbox(box, ccb, action)
        self.out = (box + 1) % self.count
        self.send(0x02)

    def collect(self) -> tuple[int, int, int, int] | None:
        """Empty the next incoming mailbox: status, CCB, host status, target status."""
        at = MAILBOXES + 8 * (self.count + self.next_in)
        ccb, host, target, status = struct.unpack("<IBBxB", self.memory.get(at, 8))
        if status == READY:
            return None
        self.memory.put(at + 7, b"\0")
        self.next_in = (self.next_in + 1) % self.count
        return status, ccb, host, target

    def finished(self) -> tuple[int, int, int, int]:
        """Wait for the next incoming mailbox."""
        found: tuple[int, int, int, int] = self.step_until(self.collect)
        if self.adapter.read8(2):
            self.adapter.write8(0, IRST)
        return found

    def run(self, ccb: int) -> tuple[int, int, int]:
        """Run one CCB alone: mailbox status, host status, target status."""
        self.post(ccb)
        status, address, host, target = self.finished()
        assert address == ccb
        return status, host, target
