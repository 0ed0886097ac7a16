"""An NVMe namespace as its users meet it: a block device. See `busdma.drivers.block.BlockDevice` for its promises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from busdma.drivers.block import Data, check_request, check_way
from busdma.drivers.nvme import layout
from busdma.drivers.queues import EVERYTHING, Request, RequestQueue
from busdma.sync import Direction

MOST_BLOCKS: Final = 0x10000  #: that a command can name


class NvmeDisk:
    """One namespace."""

    __slots__ = ("block_size", "blocks", "maxio", "name", "queue")

    def __init__(self, queue: RequestQueue, *, blocks: int, block_size: int, maxio: int) -> None:
        """`maxio`: bytes the controller moves at once; the disk's is the largest whole number of blocks in it."""
        self.queue, self.name = queue, queue.name
        self.blocks, self.block_size = blocks, block_size
        self.maxio = min(maxio // block_size, MOST_BLOCKS) * block_size

    def __repr__(self) -> str:
        return f"<disk {self.name}, {self.blocks} blocks of {self.block_size} bytes>"

    async def read(self, lba: int, buffer: Data, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.read`."""
        await self.queue.submit(self._request(layout.READ, lba, buffer, Direction.FROM_DEVICE, deadline))

    async def write(self, lba: int, buffer: Data, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.write`."""
        await self.queue.submit(self._request(layout.WRITE, lba, buffer, Direction.TO_DEVICE, deadline))

    async def flush(self, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.flush`: as far as order goes, a write to every block."""
        command = layout.request(layout.FLUSH)
        await self.queue.submit(Request(command, direction=Direction.TO_DEVICE, span=EVERYTHING, deadline=deadline))

    async def transfer(
        self, parts: Iterable[tuple[int, Data]], direction: Direction, deadline: int | None = None
    ) -> None:
        """As `busdma.drivers.block.BlockDevice.transfer`."""
        check_way(self, direction)
        opcode = layout.WRITE if direction is Direction.TO_DEVICE else layout.READ
        await self.queue.submit_all([self._request(opcode, lba, part, direction, deadline) for lba, part in parts])

    def _request(self, opcode: int, lba: int, buffer: Data, way: Direction, deadline: int | None) -> Request:
        count = check_request(self, lba, len(buffer))
        command, span = layout.request(opcode, lba, count), (lba, lba + count)
        return Request(command, buffer=buffer, direction=way, span=span, deadline=deadline)
