"""The memory of a QEMU machine, from outside: a file without a name that QEMU maps as the guest's memory.

This process maps it too: one memory, no copy. Machines that take no such file (sun4u) have memory of QEMU's own; one of
their devices may take the file. It is sparse: only pages that were touched take memory of the host.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Final, Self

from busdma.errors import ConfigurationError, DriverError

ID: Final = "ram"  #: of the memory back end in QEMU


class SharedRam:
    """`size` bytes of zeros, a multiple of the host's page. ConfigurationError if this host does not give them.

    `view`: all of it. `fd` is for QEMU to inherit, with `arguments` or `back_end`; it is closed with `close`, the
    memory with its last view.
    """

    def __init__(self, size: int) -> None:
        if size < 1 or size % mmap.PAGESIZE:
            raise ConfigurationError(f"memory of {size} bytes: give a multiple of {mmap.PAGESIZE}, the host's page")
        self.size = size
        try:
            self.fd = os.memfd_create("busdma guest memory")
        except OSError as error:
            raise _no_room(size, error) from None
        try:
            os.ftruncate(self.fd, size)
            self.view = memoryview(mmap.mmap(self.fd, size))
        except (OSError, OverflowError) as error:
            os.close(self.fd)
            raise _no_room(size, error) from None

    def arguments(self) -> list[str]:
        """QEMU's, to have this as the machine's memory. It must inherit `fd` under the same number."""
        return [*("-m", f"{self.size}B"), *self.back_end(), *("-machine", f"memory-backend={ID}")]

    def back_end(self) -> list[str]:
        """QEMU's, to have this as the object `ID`, for a device that takes memory. Like `arguments`."""
        path = f"/proc/self/fd/{self.fd}"
        return ["-object", f"memory-backend-file,id={ID},size={self.size}B,mem-path={path},share=on"]

    def read(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes at `offset`. DriverError outside the memory."""
        _check(self.size, offset, length)
        return bytes(self.view[offset : offset + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Change memory at `offset`. DriverError outside the memory."""
        with memoryview(data).cast("B") as source:
            _check(self.size, offset, len(source))
            self.view[offset : offset + len(source)] = source

    def close(self) -> None:
        """Let go of the file. A second time does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check(size: int, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > size:
        raise DriverError(f"no {length} bytes at offset {offset:#x}: the memory has {size:#x}")


def _no_room(size: int, error: OSError | OverflowError) -> ConfigurationError:
    """What the kernel refused, and who could change that."""
    number = error.errno if isinstance(error, OSError) else errno.EFBIG
    advice = {
        errno.EFBIG: "give the machine less, or raise the limit of a file's size (ulimit -f)",
        errno.EINVAL: "give the machine less",
        errno.ENOMEM: "give the machine less, or raise the limit of address space (ulimit -v)",
        errno.ENOSPC: "give the machine less, or end what uses the host's shared memory",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
        errno.ENFILE: "close files: the host has too many open",
    }.get(number or 0, "give the machine less")
    why = error.strerror if isinstance(error, OSError) else "more than an address can say"
    return ConfigurationError(f"this host does not give {size >> 20} MiB of memory for the guest ({why}): {advice}")
