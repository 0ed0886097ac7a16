"""A host for the 53C9x models: it knows the data sheet and no driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from busdma.sim.disk import Disk
from busdma.sim.scsi.ncr53c9x import Ncr53c9x
from busdma.sim.scsi.ncr53c9x_layout import (
    BUS_SERVICE,
    COMMAND,
    COMPLETE_STEPS,
    COUNT_HIGH,
    COUNT_LOW,
    COUNT_MIDDLE,
    DESTINATION,
    DISCONNECTED,
    DMA,
    ENABLE_RESELECTION,
    FIFO,
    FLAGS,
    FLUSH_FIFO,
    FUNCTION_COMPLETE,
    INTERRUPT,
    INTERRUPTS,
    MESSAGE_ACCEPTED,
    RESELECTED,
    SELECT_ATN,
    STATUS,
    STEP,
    TERMINAL_COUNT,
    TRANSFER,
)
from busdma.sim.scsi.nexus import Phase
from busdma.sim.scsi.target import ScsiTarget
from sim.aha1542_host import Clock, Line

TEST_UNIT_READY, INQUIRY = bytes(6), bytes((0x12, 0, 0, 0, 36, 0))
Segments = Iterable[tuple[int, int]]


class Engine(Protocol):
    """How the host sets up the engine beside the chip."""

    def start(self, address: int, length: int, *, inward: bool) -> None:
        """Before a transfer command."""

    def stop(self, *, inward: bool) -> None:
        """After it: what the engine holds is in memory."""


class Plain:
    """The least engine there can be: 64 KiB of memory, an address, a count."""

    def __init__(self, chip: Ncr53c9x) -> None:
        self.memory = bytearray(1 << 17)
        self.address = self.left = 0
        self.inward = False
        self._chip = chip
        chip.attach(self)

    def start(self, address: int, length: int, *, inward: bool) -> None:
        self.address, self.left, self.inward = address, length, inward
        self._chip.kick()

    def stop(self, *, inward: bool) -> None:
        self.left = 0

    def room(self) -> int:
        return self.left

    def store(self, data: bytes) -> None:
        self.memory[self.address : self.address + len(data)] = data
        self._step(len(data))

    def fetch(self, count: int) -> bytes:
        data = bytes(self.memory[self.address : self.address + count])
        self._step(count)
        return data

    def _step(self, count: int) -> None:
        assert count <= self.left
        self.address += count
        self.left -= count


@dataclass
class Event:
    """What the registers said at an interrupt."""

    bits: int
    phase: int
    step: int
    status: int


@dataclass
class Done:
    """What became of a command."""

    status: int
    moved: int
    messages: list[int] = field(default_factory=list)


class Host:
    """One chip, driven by its registers; `read` and `write` take a register's number."""

    def __init__(
        self, read: Callable[[int], int], write: Callable[[int, int], None], clock: Clock, line: Line, engine: Engine
    ) -> None:
        self.read, self.write = read, write
        self.clock, self.line, self.engine = clock, line, engine
        self.wide = False

    def command(self, value: int) -> None:
        self.write(COMMAND, value)

    def fifo(self, data: bytes) -> None:
        for byte in data:
            self.write(FIFO, byte)

    def take(self, count: int) -> bytes:
        return bytes(self.read(FIFO) for _ in range(count))

    def held(self) -> int:
        """Bytes in the FIFO."""
        return self.read(FLAGS) & 0x1F

    def count(self) -> int:
        """What is left in the transfer counter."""
        low = self.read(COUNT_LOW) | self.read(COUNT_MIDDLE) << 8
        return low | self.read(COUNT_HIGH) << 16 if self.wide else low

    def set_count(self, count: int) -> None:
        self.write(COUNT_LOW, count & 0xFF)
        self.write(COUNT_MIDDLE, count >> 8 & 0xFF)
        if self.wide:
            self.write(COUNT_HIGH, count >> 16 & 0xFF)

    def wait(self) -> Event:
        """Let time pass until the chip interrupts; the interrupt is taken."""
        while not self.line.level:
            assert self.clock.step(), "nothing will ever happen again"
        status, step = self.read(STATUS), self.read(STEP)
        assert status & INTERRUPT
        return Event(self.read(INTERRUPTS), status & 7, step, status)

    def idle(self) -> bool:
        """Let everything happen. True if there was no interrupt."""
        while self.clock.step():
            pass
        return not self.line.level

    def go(self, value: int) -> Event:
        """A command, and its interrupt."""
        self.command(value)
        return self.wait()

    def select(self, target: int, cdb: bytes, *, identify: int = 0x80) -> Event:
        """Select with attention; IDENTIFY and the command are in the FIFO."""
        self.write(DESTINATION, target)
        self.command(FLUSH_FIFO)
        self.fifo(bytes((identify,)) + cdb)
        return self.go(SELECT_ATN)

    def message(self) -> int:
        """One byte of a message; it is accepted by `go(MESSAGE_ACCEPTED)`."""
        if self.held():
            self.command(FLUSH_FIFO)
        event = self.go(TRANSFER)
        assert event.bits == FUNCTION_COMPLETE
        return self.take(1)[0]

    def move(self, address: int, length: int, *, inward: bool) -> tuple[Event, int]:
        """A data phase, or part of one: the interrupt, and how many bytes the target gave or took."""
        self.set_count(length)
        self.engine.start(address, length, inward=inward)
        event = self.go(TRANSFER | DMA)
        self.engine.stop(inward=inward)
        left = 0 if event.status & TERMINAL_COUNT else self.count()
        if not inward:  # what waits in the FIFO was counted, and not sent
            left += self.held()
            self.command(FLUSH_FIFO)
        return event, length - left

    def finish(self) -> int:
        """The status phase and what follows it: the status byte, and the bus is free."""
        event = self.go(COMPLETE_STEPS)
        assert event.bits == FUNCTION_COMPLETE
        status, message = self.take(2)
        assert message == 0
        assert self.go(MESSAGE_ACCEPTED).bits == DISCONNECTED
        return status

    def run(self, target: int, cdb: bytes, segments: Segments = (), *, identify: int = 0x80) -> Done:
        """A whole command, whatever the target does in between: pointers are kept as SCSI wants it (6.4)."""
        done, left = Done(0, 0), list(segments)
        at = saved = 0
        event = self.select(target, cdb, identify=identify)
        assert event.bits == FUNCTION_COMPLETE | BUS_SERVICE
        while True:
            if event.phase in (Phase.DATA_IN, Phase.DATA_OUT):
                address, length = _from(left, at)
                event, moved = self.move(address, length, inward=event.phase == Phase.DATA_IN)
                assert event.bits == BUS_SERVICE
                at += moved
            elif event.phase == Phase.STATUS:
                done.status, done.moved = self.finish(), at
                return done
            else:
                assert event.phase == Phase.MESSAGE_IN
                message = self.message()
                done.messages.append(message)
                event = self.go(MESSAGE_ACCEPTED)
                if message == 0x02:
                    saved = at
                elif message == 0x03:
                    at = saved
                elif message == 0x04:
                    assert event.bits == DISCONNECTED
                    event = self.go(ENABLE_RESELECTION)
                    assert event.bits == RESELECTED
                    assert self.take(2) == bytes((1 << target | 0x80, 0x80))
                    event, at = self.go(MESSAGE_ACCEPTED), saved


def _from(segments: list[tuple[int, int]], at: int) -> tuple[int, int]:
    """Where byte `at` of the segments lies, and how many follow it there."""
    for address, length in segments:
        if at < length:
            return address + at, length - at
        at -= length
    raise AssertionError("the target wants more than there is")


class Bench:
    """A chip with a plain engine, and disks at some ids."""

    def __init__(self, *ids: int, tags: int = 0, blocks: int = 256, **chip: int) -> None:
        self.clock, self.line = Clock(), Line()
        self.disks = {number: Disk(None, blocks=blocks, seed=number) for number in ids or (0,)}
        self.targets = {number: ScsiTarget(disk, tags=tags) for number, disk in self.disks.items()}
        wide = bool(chip.pop("wide_counter", 0))
        self.chip = Ncr53c9x(
            self.line, self.clock.call_at, self.clock.now, targets=self.targets, wide_counter=wide, **chip
        )
        self.engine = Plain(self.chip)
        self.memory = self.engine.memory
        self.host = Host(self.chip.read, self.chip.write, self.clock, self.line, self.engine)

    def ready(self) -> Host:
        """Every disk has told its unit attention."""
        for target in self.disks:
            assert self.host.run(target, TEST_UNIT_READY).status == 2
        return self.host

    def close(self) -> None:
        for disk in self.disks.values():
            disk.close()
