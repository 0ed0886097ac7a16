"""A file to a device and back, compared byte by byte; to a disk from scattered buffers, and read through fresh ones.

A file may be larger than the machine's memory: it goes through in windows, each a new buffer with several requests in
flight. Buffers begin at changing places in their first page, so that a request may need one page more than its bytes.
A buffer to be read into holds the complement of what is expected: a byte that no device wrote cannot compare equal.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from busdma.buffers import LinearBuffer
from busdma.cli.files import open_file, unreadable
from busdma.drivers.block import BlockDevice, transfer_all
from busdma.drivers.echo import Echo
from busdma.errors import ConfigurationError, DriverError
from busdma.machine.machine import Machine
from busdma.sync import Direction

WINDOW: Final = 2 << 20  #: bytes of one disk's buffer, where the machine has memory enough
SHARE: Final = 4  #: all buffers together take at most one part in so many of the free memory
OFFSETS: Final = (1365, 0, 4095, 2048)  #: where buffers begin in their first page, in turn (modulo the page size)
_COMPLEMENT: Final = bytes(255 - byte for byte in range(256))


class Source:
    """An open FILE: its bytes, size and checksum. Any thread may read. ConfigurationError if it cannot be used."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = open_file(path)
        try:
            self.size = os.fstat(self._fd).st_size
            if self.size == 0:
                raise ConfigurationError(f"{path!r} is empty: there is nothing to write; give a file of 1 byte or more")
            whole = hashlib.sha256()
            for at, length in spans(self.size, WINDOW):
                whole.update(self.read(at, length))
            self.sha256 = whole.hexdigest()
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, at: int, length: int) -> bytes:
        """Bytes [at, at + length)."""
        found = bytearray()
        while len(found) < length:
            try:
                piece = os.pread(self._fd, length - len(found), at + len(found))
            except OSError as error:
                raise unreadable(self.path, error) from None
            if not piece:
                raise self.changed()
            found += piece
        return bytes(found)

    def changed(self) -> ConfigurationError:
        """The error for a file that is not what it was."""
        return ConfigurationError(f"{self.path!r} changed while it was copied; run again when nobody writes it")

    def is_at(self, path: Path) -> bool:
        """True if `path` is this file, by whatever name."""
        try:
            return os.path.samestat(os.fstat(self._fd), path.stat())
        except OSError:
            return False

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


class Meter:
    """Bytes moved of those to move, by all disks together. Any thread may call.

    `show` is given a line of progress, or rather what makes one, whenever a request has ended; it begins with `what`.
    """

    def __init__(self, total: int, what: str, show: Callable[[Callable[[], str]], object]) -> None:
        self.total = total
        self.what = what
        self._show = show
        self.done = 0
        self._writing = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """A request has moved `count` bytes."""
        with self._lock:
            self.done += count
        self._show(self.__str__)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A disk is being written."""
        with self._lock:
            self._writing += 1
        try:
            yield
        finally:
            with self._lock:
                self._writing -= 1

    def __str__(self) -> str:
        with self._lock:
            phase = "writing" if self._writing else "reading back"
            percent = 100 * self.done // self.total
            return f"{self.what}: {phase:12} {self.done / 1e6:8.1f} of {self.total / 1e6:.1f} MB  {percent:3}%"


@dataclass(frozen=True, slots=True)
class Copy:
    """What came back from one disk."""

    disk: str
    sha256: str
    differs_at: int | None  #: the first byte that is not FILE's


def spans(size: int, window: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each window of `size` bytes."""
    return ((at, min(window, size - at)) for at in range(0, size, window))


def window_for(machine: Machine, disk: BlockDevice, disks: int) -> int:
    """Bytes of one window of `disk`, where `disks` disks are used at the same time: whole requests, at least one."""
    frames = machine.domain.frames
    spare = frames.statistics()["free"] * frames.page_size // (SHARE * disks)
    return max(min(WINDOW, spare) // disk.maxio, 1) * disk.maxio


async def round_trip(machine: Machine, disk: BlockDevice, source: Source, turn: int, window: int, meter: Meter) -> Copy:
    """Write `source` to `disk` from block 0 on, flush, read it back. `turn` varies the buffers from disk to disk.

    The last block is filled up with zeros. ConfigurationError if the file changes meanwhile; the disk's own errors.
    """
    with meter.writing():
        written = hashlib.sha256()
        for number, (at, length) in enumerate(spans(source.size, window), turn):
            data = source.read(at, length)
            written.update(data)
            with _buffer(machine, _padded(length, disk), number) as buffer:
                buffer.write(data)
                await _move(machine, disk, at, buffer, Direction.TO_DEVICE, meter)
        await disk.flush()
    if written.hexdigest() != source.sha256:
        raise source.changed()
    back, differs = hashlib.sha256(), None
    for number, (at, length) in enumerate(spans(source.size, window), turn + 1):
        expected = source.read(at, length)
        with _buffer(machine, _padded(length, disk), number) as buffer:
            buffer.write(expected.translate(_COMPLEMENT))
            await _move(machine, disk, at, buffer, Direction.FROM_DEVICE, meter)
            found = buffer.read(0, length)
        back.update(found)
        differs = _first_difference(found, expected, at) if differs is None else differs
    return Copy(disk.name, back.hexdigest(), differs)


async def echo_trip(machine: Machine, echo: Echo, source: Source, turn: int, meter: Meter) -> Copy:
    """`source` through `echo` and back, as much as the device takes at once; as `round_trip` otherwise."""
    read, back, differs = hashlib.sha256(), hashlib.sha256(), None
    for number, (at, length) in enumerate(spans(source.size, echo.most), turn):
        expected = source.read(at, length)
        read.update(expected)
        with _buffer(machine, length, number) as out, _buffer(machine, length, number + 1) as into:
            out.write(expected)
            into.write(expected.translate(_COMPLEMENT))
            await echo.echo(out, into)
            found = into.read()
        meter.add(2 * length)
        back.update(found)
        differs = _first_difference(found, expected, at) if differs is None else differs
    if read.hexdigest() != source.sha256:
        raise source.changed()
    return Copy(echo.name, back.hexdigest(), differs)


def _first_difference(found: bytes, expected: bytes, at: int) -> int | None:
    if found == expected:
        return None
    return at + next(i for i, (mine, its) in enumerate(zip(found, expected, strict=True)) if mine != its)


async def _move(
    machine: Machine, disk: BlockDevice, at: int, buffer: LinearBuffer, direction: Direction, meter: Meter
) -> None:
    lba = at // disk.block_size
    await transfer_all(disk, lba, machine.sealed(buffer), direction, runtime=machine.runtime, progress=meter.add)


@contextmanager
def _buffer(machine: Machine, length: int, number: int) -> Iterator[LinearBuffer]:
    """A fresh, zeroed buffer, freed at the end; but not when devices may still use it: when the program is interrupted,
    or an error has left it in quarantine.
    """
    buffer = machine.allocate(length, offset=OFFSETS[number % len(OFFSETS)] % machine.domain.page_size)
    try:
        yield buffer
    except Exception:
        with suppress(DriverError):
            buffer.free()
        raise
    buffer.free()


def _padded(length: int, disk: BlockDevice) -> int:
    return -(-length // disk.block_size) * disk.block_size
