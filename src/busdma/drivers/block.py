"""Block devices as their users meet them, and one helper that keeps more than one request in flight.

A request longer than ``maxio`` is refused, not split: splitting is the caller's, who knows how many requests should be
in flight at once. `transfer_all` does it for those who do not mind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from busdma.errors import DriverError
from busdma.sync import Direction
from busdma.waiting import Runtime, Task

DEPTH: Final = 8  #: requests that transfer_all keeps in flight unless told otherwise


class Data(Protocol):
    """The bytes of a transfer: a buffer of the machine, a bytearray, a memoryview of bytes, ..."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any: ...


class BlockDevice(Protocol):
    """Numbered blocks of equal size. Of requests for the same block, the one made first takes effect first."""

    name: str
    block_size: int  #: bytes
    blocks: int
    maxio: int  #: bytes that one request may move, a multiple of block_size

    async def read(self, lba: int, buffer: Data, deadline: int | None = None) -> None:
        """Fill `buffer` from block `lba` on; `deadline` in ns of the runtime's clock.

        DriverError: refused. DeadlineExpired: the deadline passed before the device was told. DeviceFault: the device
        failed, or had to be stopped at the deadline. When this returns, or raises one of these, the device has let go
        of the buffer. A command whose context is cancelled goes on: leave its buffer alone until the driver stops.
        """

    async def write(self, lba: int, buffer: Data, deadline: int | None = None) -> None:
        """Write `buffer` from block `lba` on. `deadline` and errors as for ``read``."""

    async def transfer(
        self, parts: Iterable[tuple[int, Data]], direction: Direction, deadline: int | None = None
    ) -> None:
        """Make a request of each (lba, buffer) of `parts`, all at once, and return when the last has ended.

        As many ``read``, or ``write`` where `direction` is TO_DEVICE, in that order, with one await and one doorbell
        for many. DriverError, before any is made: one of them is refused. Any other error, once all have ended: that
        of the first which failed; others may have succeeded, or failed too.
        """

    async def flush(self, deadline: int | None = None) -> None:
        """Return when every write made before this is on the medium."""


def check_way(device: BlockDevice, direction: Direction) -> None:
    """DriverError unless `direction` is one way."""
    if direction not in (Direction.TO_DEVICE, Direction.FROM_DEVICE):
        raise DriverError(f"{device.name}: a transfer goes to or from the device, not {direction!r}; make two")


def check_request(device: BlockDevice, lba: int, length: int) -> int:
    """How many blocks `length` bytes are. DriverError for what `device` cannot do in one request at block `lba`."""
    if length < 1 or length % device.block_size:
        raise DriverError(f"{device.name}: {length} bytes are no whole blocks of {device.block_size}; pad them")
    if length > device.maxio:
        raise DriverError(f"{device.name}: {length} bytes in one request, and maxio is {device.maxio}; split it")
    count = length // device.block_size
    if lba < 0 or lba + count > device.blocks:
        raise DriverError(
            f"{device.name}: it has blocks 0..{device.blocks - 1}, and not all of {lba}..{lba + count - 1}; stay within"
        )
    return count


async def transfer_all(
    device: BlockDevice,
    lba: int,
    buffer: Data,
    direction: Direction,
    *,
    runtime: Runtime,
    depth: int = DEPTH,
    chunk: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Move `buffer`, however long, in requests of `chunk` bytes (maxio if None), up to `depth` of them in flight.

    `progress` is called with the number of bytes of each request that has succeeded. The first error is raised after
    all that was in flight has ended; requests that had not been made then are not made.
    """
    if direction is Direction.BOTH or depth < 1:
        raise DriverError(f"transfer_all moves one way, with a depth of 1 or more, not {direction.label}, {depth}")
    size = (min(chunk or device.maxio, device.maxio) // device.block_size) * device.block_size
    if size < 1:
        raise DriverError(f"{device.name}: chunks of {chunk} bytes hold no block of {device.block_size}")
    if len(buffer) % device.block_size:
        raise DriverError(f"{device.name}: {len(buffer)} bytes are not whole blocks of {device.block_size}; pad them")
    data: Data = memoryview(buffer) if isinstance(buffer, bytes | bytearray) else buffer  # their slices are copies
    offsets = iter(range(0, len(buffer), size))
    request = device.write if direction is Direction.TO_DEVICE else device.read
    lock = threading.Lock()  # the workers may be OS threads
    failed = False

    async def work() -> None:
        nonlocal failed
        while True:
            with lock:
                offset = None if failed else next(offsets, None)
            if offset is None:
                return
            part = data[offset : min(offset + size, len(buffer))]
            try:
                await request(lba + offset // device.block_size, part)
            except BaseException:
                failed = True
                raise
            if progress is not None:
                progress(len(part))

    workers: list[Task[None]] = [
        runtime.start(work, name=f"{device.name} transfer {n}") for n in range(min(depth, -(-len(buffer) // size)))
    ]
    try:
        for worker in workers:
            await runtime.park(worker.done)
    except BaseException:
        failed = True
        for worker in workers:
            worker.cancel()
        raise
    for worker in workers:
        worker.result()
