"""A floppy as its users meet it: a block device. See `busdma.drivers.block.BlockDevice` for its promises."""

from __future__ import annotations

from busdma.drivers.fdc import layout
from busdma.drivers.fdc.layout import Format
from busdma.drivers.queue_disk import QueueDisk
from busdma.drivers.queues import RequestQueue

FLUSH = b""  #: as a request's command


class FdcDisk(QueueDisk):
    """The medium that was in the drive when its driver was started. A request is as long as a cylinder at most."""

    __slots__ = ("format",)

    def __init__(self, queue: RequestQueue, format: Format) -> None:
        super().__init__(queue, blocks=format.blocks, block_size=layout.BLOCK, maxio=format.cylinder * layout.BLOCK)
        self.format = format

    def __repr__(self) -> str:
        return f"<disk {self.name}, {self.format.name}>"

    async def flush(self, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.flush`. There is no cache: it waits for what was asked for before."""
        await self._flush_by(FLUSH, deadline)

    def _command(self, writes: bool, lba: int, count: int) -> bytes:
        return layout.data_command(writes, lba, self.format)
