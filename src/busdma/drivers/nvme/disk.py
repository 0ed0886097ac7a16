"""An NVMe namespace as its users meet it: a block device. See `busdma.drivers.block.BlockDevice` for its promises."""

from __future__ import annotations

from typing import Final

from busdma.drivers.nvme import layout
from busdma.drivers.queue_disk import QueueDisk
from busdma.drivers.queues import RequestQueue

MOST_BLOCKS: Final = 0x10000  #: that a command can name


class NvmeDisk(QueueDisk):
    """One namespace."""

    __slots__ = ()

    def __init__(self, queue: RequestQueue, *, blocks: int, block_size: int, maxio: int) -> None:
        """`maxio`: bytes the controller moves at once; the disk's is the largest whole number of blocks in it."""
        most = min(maxio // block_size, MOST_BLOCKS) * block_size
        super().__init__(queue, blocks=blocks, block_size=block_size, maxio=most)

    async def flush(self, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.flush`."""
        await self._flush_by(layout.request(layout.FLUSH), deadline)

    def _command(self, writes: bool, lba: int, count: int) -> bytes:
        return layout.request(layout.WRITE if writes else layout.READ, lba, count)
