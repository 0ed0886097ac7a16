"""A SCSI disk over any controller that serves a `RequestQueue`: the block device of its users.

The controller's driver decides how commands reach the disk; this file decides which.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from busdma.drivers import scsi
from busdma.drivers.block import Data, check_request, check_way
from busdma.drivers.queues import EVERYTHING, Request, RequestQueue
from busdma.errors import DeviceFault
from busdma.sync import Direction

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


class ScsiDisk:
    """A direct-access device. See `busdma.drivers.block.BlockDevice` for what its requests promise."""

    __slots__ = ("block_size", "blocks", "maxio", "name", "queue")

    def __init__(self, queue: RequestQueue, *, blocks: int, block_size: int, maxio: int) -> None:
        """`maxio`: bytes the controller moves at once; the disk's is the largest whole number of blocks in it."""
        self.queue = queue
        self.name = queue.name
        self.blocks = blocks
        self.block_size = block_size
        self.maxio = min(maxio // block_size, MOST_BLOCKS) * block_size

    def __repr__(self) -> str:
        return f"<disk {self.name}, {self.blocks} blocks of {self.block_size} bytes>"

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
        """As `busdma.drivers.block.BlockDevice.flush`. A disk that does not know the command has no cache to write."""
        cdb = scsi.synchronize_cache()
        try:
            await self.queue.submit(
                Request(cdb, direction=Direction.TO_DEVICE, span=EVERYTHING, deadline=deadline)
            )  # a write to every block, as far as order goes
        except ScsiFault as fault:
            if fault.sense is None or fault.sense.key != scsi.ILLEGAL_REQUEST:
                raise

    def _request(self, way: Direction, lba: int, buffer: Data, deadline: int | None) -> Request:
        count = check_request(self, lba, len(buffer))
        cdb = (scsi.write10 if way is Direction.TO_DEVICE else scsi.read10)(lba, count)
        return Request(cdb, buffer=buffer, direction=way, span=(lba, lba + count), deadline=deadline)


async def find_disk(queue: RequestQueue, maxio: int) -> ScsiDisk | None:
    """The disk that answers through `queue`, or None if what answers is not one. ScsiFault if it cannot be read."""
    identity = await queue.submit(Request(scsi.inquiry(36), reply=36))
    if not identity or identity[0] != scsi.DIRECT_ACCESS:  # qualifier 0, "connected", and type 0 (SCSI-2 8.2.5)
        return None
    await queue.submit(Request(scsi.test_unit_ready()))
    blocks, block_size = scsi.parse_capacity(await queue.submit(Request(scsi.read_capacity(), reply=8)))
    return ScsiDisk(queue, blocks=blocks, block_size=block_size, maxio=maxio)
