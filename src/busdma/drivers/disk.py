"""A SCSI disk over any controller that serves a `RequestQueue`: the block device of its users.

The controller's driver decides how commands reach the disk; this file decides which.
"""

from __future__ import annotations

from typing import Final

from busdma.drivers import scsi
from busdma.drivers.queue_disk import QueueDisk
from busdma.drivers.queues import Request, RequestQueue
from busdma.errors import DeviceFault

MOST_BLOCKS: Final = 0xFFFF  # that a ten-byte command can name


class ScsiFault(DeviceFault):
    """A command that failed, with everything that the controller and the disk said about it."""

    def __init__(
        self,
        message: str,
        *,
        cdb: bytes,
        host_status: int = 0,
        target_status: int = scsi.GOOD,
        sense: scsi.Sense | None = None,
    ) -> None:
        super().__init__(message)
        self.cdb = cdb
        self.host_status = host_status  #: the controller's own code, 0 where it has no complaint
        self.target_status = target_status
        self.sense = sense


class ScsiDisk(QueueDisk):
    """A direct-access device."""

    __slots__ = ()

    def __init__(self, queue: RequestQueue, *, blocks: int, block_size: int, maxio: int) -> None:
        """`maxio`: bytes the controller moves at once; the disk's is the largest whole number of blocks in it."""
        most = min(maxio // block_size, MOST_BLOCKS) * block_size
        super().__init__(queue, blocks=blocks, block_size=block_size, maxio=most)

    async def flush(self, deadline: int | None = None) -> None:
        """As `busdma.drivers.block.BlockDevice.flush`. A disk that does not know the command has no cache to write."""
        try:
            await self._flush_by(scsi.synchronize_cache(), deadline)
        except ScsiFault as fault:
            if fault.sense is None or fault.sense.key != scsi.ILLEGAL_REQUEST:
                raise

    def _command(self, writes: bool, lba: int, count: int) -> bytes:
        return (scsi.write10 if writes else scsi.read10)(lba, count)


async def find_disk(queue: RequestQueue, maxio: int) -> ScsiDisk | None:
    """The disk that answers through `queue`, or None if what answers is not one. ScsiFault if it cannot be read."""
    identity = await queue.submit(Request(scsi.inquiry(36), reply=36))
    if not identity or identity[0] != scsi.DIRECT_ACCESS:  # qualifier 0, "connected", and type 0 (SCSI-2 8.2.5)
        return None
    await queue.submit(Request(scsi.test_unit_ready()))
    blocks, block_size = scsi.parse_capacity(await queue.submit(Request(scsi.read_capacity(), reply=8)))
    return ScsiDisk(queue, blocks=blocks, block_size=block_size, maxio=maxio)
