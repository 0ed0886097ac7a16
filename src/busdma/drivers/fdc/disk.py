"""A floppy as its users meet it: a block device. See `busdma.drivers.block.BlockDevice` for its promises."""

from __future__ import annotations

from collections.abc import Iterable

from busdma.drivers.block import Data, check_request, check_way
from busdma.drivers.fdc import layout
from busdma.drivers.fdc.layout import Format
from busdma.drivers.queues import EVERYTHING, Request, RequestQueue
from busdma.sync import Direction

FLUSH = b""  #: as a request's command


class FdcDisk:
    """The medium that was in the drive when its driver was started. A request is as long as a cylinder at most."""

    __slots__ = ("block_size", "blocks", "format", "maxio", "name", "queue")

    def __init__(self, queue: RequestQueue, format: Format) -> None:
        self.queue, self.name = queue, queue.name
        self.format = format
        self.blocks, self.block_size = format.blocks, layout.BLOCK
        self.maxio = format.cylinder * layout.BLOCK

    def __repr__(self) -> str:
        return f"<disk {self.name}, {self.format.name}>"

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

    async def flush(self, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.flush`. There is no cache: it waits for what was asked for before."""
        await self.queue.submit(Request(FLUSH, direction=Direction.TO_DEVICE, span=EVERYTHING, deadline=deadline))

    def _request(self, way: Direction, lba: int, buffer: Data, deadline: int | None) -> Request:
        count = check_request(self, lba, len(buffer))
        command = layout.data_command(way is Direction.TO_DEVICE, lba, self.format)
        return Request(command, buffer=buffer, direction=way, span=(lba, lba + count), deadline=deadline)
