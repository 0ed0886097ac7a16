"""A disk drive: blocks in an image file of the host, and the time that its mechanics take to reach them.

The bytes are real: what is written here can be hashed by another process once the disk is closed. The time is a model,
a pure function of the virtual clock and of what was asked before: a seek of ``settle + seek * sqrt(distance)``, the
wait until the first sector comes round, one sector time for each sector, and a skew at each change of track.

The default figures are approximately those of the Seagate Barracuda 2LP family (ST-32550) of 1994: 7200 revolutions a
minute, 11 heads, 108 sectors a track on average over its zones, seeks of about 0.8 ms to the next track and 8 ms
on average, and a buffer that reads on after a read. Source: the product manual's table of drive characteristics,
rounded; zones and retries are left out. There is no write cache: when a write ends, it is in the file.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from dataclasses import dataclass
from math import isqrt
from typing import Final

from busdma.errors import ConfigurationError, DriverError


@dataclass(frozen=True, slots=True)
class Geometry:
    """What turns and moves. Times in ns; a disk has as many cylinders as its blocks need."""

    heads: int = 11
    sectors: int = 108  #: a track
    rpm: int = 7200
    skew: int = 10  #: sectors that pass while the drive changes heads
    settle: int = 600_000  #: what every seek costs, however short
    seek: int = 217_000  #: times the square root of the distance in cylinders
    overhead: int = 500_000  #: the drive's own processor, for each command
    buffer: int = 1024  #: sectors that the drive reads on, after a read, into its buffer

    def __post_init__(self) -> None:
        if min(self.heads, self.sectors, self.rpm) < 1:
            raise ConfigurationError(f"a disk needs at least one head, one sector and one turn a minute, not {self}")
        if min(self.skew, self.settle, self.seek, self.overhead, self.buffer) < 0:
            raise ConfigurationError(f"the times and the buffer of a disk cannot be negative: {self}")

    @property
    def revolution(self) -> int:
        """The time of one turn, in ns."""
        return 60_000_000_000 // self.rpm


BARRACUDA_2LP: Final = Geometry()


class Disk:
    """A block device in a file. Not thread-safe: the machine's bus lock guards it.

    `path` is opened if it exists and created sparse if not; None keeps the blocks in a nameless temporary file. An
    existing image says itself how many `blocks` it has. `seed` sets where the platter stands at time 0.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        blocks: int | None = None,
        block_size: int = 512,
        read_only: bool = False,
        geometry: Geometry = BARRACUDA_2LP,
        seed: int = 0,
    ) -> None:
        if block_size < 1 or block_size & (block_size - 1):
            raise ConfigurationError(f"a block size is a power of two, not {block_size}")
        if blocks is not None and not 1 <= blocks <= 1 << 32:
            raise ConfigurationError(f"a disk has from 1 to {1 << 32} blocks, not {blocks}")
        self.path = None if path is None else os.fspath(path)
        self.block_size = block_size
        self.read_only = read_only
        self.geometry = geometry
        self._fd = _open(self.path, read_only)
        try:
            self.blocks = self._size_in_blocks(blocks)
        except BaseException:
            os.close(self._fd)
            raise
        self._phase = random.Random(seed).randrange(geometry.revolution)
        self._cylinder = 0
        self._read_on = -1  #: the block from which the drive reads on by itself, or -1
        self._read_on_since = 0
        self.closed = False

    def _size_in_blocks(self, blocks: int | None) -> int:
        size = os.fstat(self._fd).st_size
        where = "the disk" if self.path is None else f"the disk image {self.path!r}"
        if size == 0:
            if blocks is None:
                raise ConfigurationError(f"{where} is new or empty: say with blocks= how large it is to be")
            if self.read_only:
                raise ConfigurationError(f"{where} is empty and read-only, so it cannot be given its size")
            os.ftruncate(self._fd, blocks * self.block_size)
            return blocks
        if size % self.block_size:
            raise ConfigurationError(
                f"{where} has {size} bytes, no multiple of its block size {self.block_size}: it is not an image"
            )
        if blocks is not None and size != blocks * self.block_size:
            raise ConfigurationError(
                f"{where} has {size // self.block_size} blocks, not {blocks}: leave blocks= out to use it as it is"
            )
        return size // self.block_size

    @property
    def cylinders(self) -> int:
        """As many as the blocks need; the last one may be partly used."""
        return -(-self.blocks // (self.geometry.heads * self.geometry.sectors))

    def read(self, lba: int, count: int) -> bytes:
        """The bytes of `count` blocks from block `lba` on. OSError as the host's file system reports it."""
        self._check(lba, count)
        wanted, found = count * self.block_size, bytearray()
        while len(found) < wanted:
            piece = os.pread(self._fd, wanted - len(found), lba * self.block_size + len(found))
            if not piece:
                raise OSError(f"the image {self.path!r} became shorter than the disk in it")
            found += piece
        return bytes(found)

    def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Write whole blocks from block `lba` on. OSError as the host's file system reports it."""
        view = memoryview(data).cast("B")
        if len(view) % self.block_size:
            raise DriverError(f"a disk writes whole blocks of {self.block_size} bytes, not {len(view)} bytes")
        self._check(lba, len(view) // self.block_size)
        if self.read_only:
            raise DriverError(f"the disk image {self.path!r} is read-only")
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], lba * self.block_size + done)

    def flush(self) -> None:
        """Put what was written on the host's own disk."""
        if not self.read_only:
            os.fsync(self._fd)

    def close(self) -> None:
        """Flush and close the image, so that another process may read it. Harmless the second time."""
        if self.closed:
            return
        self.closed = True
        try:
            self.flush()
        finally:
            os.close(self._fd)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def service_ns(self, lba: int, count: int, now: int, *, writing: bool = False) -> int:
        """How long from `now` until the last of these sectors has passed under its head; moves the heads there."""
        g = self.geometry
        media = self._media_ns(lba, count)
        if not writing and lba == self._read_on and count <= g.buffer:
            # The drive went on reading since then, at most one buffer from what the host fetched last.
            read = self._read_on_since + media
            finish = max(now + g.overhead, read)
            self._read_on_since = max(read, now - self._media_ns(lba + count, g.buffer - count))
        else:
            track = lba // g.sectors
            distance = abs(track // g.heads - self._cylinder)
            seek = g.settle + g.seek * isqrt(distance * 1_000_000) // 1000 if distance else 0
            arrived = now + g.overhead + seek
            slot = (lba + track * g.skew) % g.sectors
            latency = (slot * g.revolution // g.sectors - arrived - self._phase) % g.revolution
            finish = self._read_on_since = arrived + latency + media
        self._read_on = -1 if writing else lba + count
        self._cylinder = max(lba, lba + count - 1) // (g.sectors * g.heads)
        return finish - now

    def _media_ns(self, lba: int, count: int) -> int:
        g = self.geometry
        changes = (lba + count - 1) // g.sectors - lba // g.sectors if count else 0
        return (count + changes * g.skew) * g.revolution // g.sectors

    def _check(self, lba: int, count: int) -> None:
        if self.closed:
            raise DriverError(f"the disk {self.path!r} is closed")
        if lba < 0 or count < 0 or lba + count > self.blocks:
            raise DriverError(f"blocks {lba} to {lba + count - 1} are not all on this disk of {self.blocks} blocks")


def _open(path: str | None, read_only: bool) -> int:
    """A file descriptor for the image, created if it may be."""
    if path is None:
        fd, name = tempfile.mkstemp(prefix="busdma-disk-")
        with contextlib.suppress(OSError):
            os.unlink(name)
        return fd
    try:
        return os.open(path, os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        missing = "there is no such file" if read_only else "its directory does not exist: make it first"
        raise ConfigurationError(f"cannot open the disk image {path!r}: {missing}") from None
    except OSError as error:
        raise ConfigurationError(f"cannot open the disk image {path!r}: {error.strerror}") from error
