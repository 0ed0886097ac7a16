"""What all disks over a `RequestQueue` have in common: a request is a command of their own, a buffer and its blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from busdma.drivers.block import Data, check_request, check_way
from busdma.drivers.queues import EVERYTHING, Request, RequestQueue
from busdma.sync import Direction


class QueueDisk(ABC):
    """See `busdma.drivers.block.BlockDevice` for its promises. `maxio`: bytes of the longest request."""

    __slots__ = ("block_size", "blocks", "maxio", "name", "queue")

    def __init__(self, queue: RequestQueue, *, blocks: int, block_size: int, maxio: int) -> None:
        self.queue, self.name = queue, queue.name
        self.blocks, self.block_size, self.maxio = blocks, block_size, maxio

    def __repr__(self) -> str:
        return f"<disk {self.name}, {self.blocks} blocks of {self.block_size} bytes>"

    @abstractmethod
    def _command(self, writes: bool, lba: int, count: int) -> bytes:
        """The command that reads or writes `count` blocks."""

    @abstractmethod
    async def flush(self, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.flush`."""

    async def read(self, lba: int, buffer: Data, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.read`."""
        await self.queue.submit(self._request(Direction.FROM_DEVICE, lba, buffer, deadline))

    async def write(self, lba: int, buffer: Data, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.write`."""
        await self.queue.submit(self._request(Direction.TO_DEVICE, lba, buffer, deadline))

    async def transfer(
        self, parts: Iterable[tuple[int, Data]], direction: Direction, deadline: int | None = None
    ) -> None:
        """As `busdma.drivers.block.BlockDevice.transfer`."""
        check_way(self, direction)
        await self.queue.submit_all([self._request(direction, lba, part, deadline) for lba, part in parts])

    async def _flush_by(self, command: bytes, deadline: int | None) -> None:
        """`command`, behind everything asked for before: as far as order goes, a write to every block."""
        await self.queue.submit(Request(command, direction=Direction.TO_DEVICE, span=EVERYTHING, deadline=deadline))

    def _request(self, way: Direction, lba: int, buffer: Data, deadline: int | None) -> Request:
        count = check_request(self, lba, len(buffer))
        command = self._command(way is Direction.TO_DEVICE, lba, count)
        return Request(command, buffer=buffer, direction=way, span=(lba, lba + count), deadline=deadline)
