"""The NVM commands of the NVMe model: Read, Write and Flush, and the flash that takes its time for them.

Source: NVM Express Base Specification 1.4, 6.8 (Flush), 6.9 (Read), 6.15 (Write).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from busdma.errors import ConfigurationError
from busdma.sim.nvme.queue import PAGE, Command, RefusedError, Status, require

if TYPE_CHECKING:
    from busdma.sim.nvme.controller import NvmeController

FLUSH, WRITE, READ = 0x00, 0x01, 0x02
EVERY_NAMESPACE: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Flash:
    """How long the medium takes: a command goes to the channel that is free first. Times in ns.

    Not measured on any one drive: the figures are of the order of a small SSD's, whose writes end in a buffer.
    """

    channels: int = 8
    read: int = 80_000
    write: int = 20_000
    per_kib: int = 1_000  #: about 1 GB/s a channel

    def __post_init__(self) -> None:
        if self.channels < 1 or min(self.read, self.write, self.per_kib) < 0:
            raise ConfigurationError(f"flash has a channel or more, and takes no less than no time: {self}")


SMALL_SSD: Final = Flash()


@dataclass(frozen=True, slots=True)
class MediaError:
    """From now on these blocks of this namespace cannot be read, until they are written."""

    namespace: int
    lba: int
    count: int = 1


class Namespaces:
    """The media of one controller, and the commands that go to them."""

    def __init__(self, controller: NvmeController, flash: Flash) -> None:
        self._controller = controller
        self._flash = flash
        self._bad: set[tuple[int, int]] = set()  # namespace, block
        self._busy: list[int] = []
        self.forget()

    def forget(self) -> None:
        """Nothing is under way any more."""
        self._busy = [0] * self._flash.channels

    def spoil(self, fault: MediaError) -> None:
        """Have `fault` happen."""
        self._bad |= {(fault.namespace, fault.lba + i) for i in range(fault.count)}

    def execute(self, command: Command) -> None:
        """Do `command`, which completes later. RefusedError with the status it ends with; DeviceFault of a transfer."""
        controller, flash, number, opcode = self._controller, self._flash, command.namespace, command.opcode
        require(opcode in (READ, WRITE, FLUSH), Status.INVALID_OPCODE)
        require(command.flags == 0, Status.INVALID_FIELD)  # fused, or SGLs
        known = 1 <= number <= len(controller.media)
        if opcode == FLUSH:
            require(known or number == EVERY_NAMESPACE, Status.INVALID_NAMESPACE)
            controller.after(flash.write, partial(controller.attempt, command, self._flush))
            return
        require(known, Status.INVALID_NAMESPACE)
        disk = controller.media[number - 1]
        lba, count = span(command)
        length = count * disk.block_size
        require(controller.mdts == 0 or length <= PAGE << controller.mdts, Status.INVALID_FIELD)
        require(lba + count <= disk.blocks, Status.LBA_OUT_OF_RANGE)
        pieces = controller.pieces(command, length)
        if opcode == WRITE:
            require(not disk.read_only, Status.WRITE_PROTECTED)
            data = b"".join(controller.get(*piece) for piece in pieces)
            finish, time = partial(self._write, data=data), flash.write
        else:
            finish, time = partial(self._read, pieces=pieces), flash.read
        now, channel = controller.now(), min(range(flash.channels), key=self._busy.__getitem__)
        time += max(self._busy[channel] - now, 0) + flash.per_kib * length // 1024
        self._busy[channel] = now + time
        controller.after(time, partial(controller.attempt, command, finish))

    def _read(self, command: Command, pieces: list[tuple[int, int]]) -> None:
        lba, count = span(command)
        require(self._bad.isdisjoint(self._blocks(command)), Status.UNRECOVERED_READ)
        try:
            data = self._controller.media[command.namespace - 1].read(lba, count)
        except OSError:  # of the image file
            raise RefusedError(Status.UNRECOVERED_READ) from None
        self._controller.put(pieces, data)
        self._controller.complete(command)

    def _write(self, command: Command, data: bytes) -> None:
        try:
            self._controller.media[command.namespace - 1].write(span(command)[0], data)
        except OSError:
            raise RefusedError(Status.WRITE_FAULT) from None
        self._bad -= self._blocks(command)
        self._controller.complete(command)

    def _flush(self, command: Command) -> None:
        """What has completed before is on the medium."""
        media, number = self._controller.media, command.namespace
        for disk in media if number == EVERY_NAMESPACE else (media[number - 1],):
            disk.flush()
        self._controller.complete(command)

    def _blocks(self, command: Command) -> set[tuple[int, int]]:
        lba, count = span(command)
        return {(command.namespace, block) for block in range(lba, lba + count)} if self._bad else set()


def span(command: Command) -> tuple[int, int]:
    """The first block of a Read or Write, and how many."""
    return command.words[0] | command.words[1] << 32, (command.words[2] & 0xFFFF) + 1
