"""Memory of a machine that has more of it than this host: only pages that were touched take any."""

from __future__ import annotations

import mmap
import os
import sys

from busdma.errors import ConfigurationError


def sparse(size: int) -> memoryview:
    """`size` bytes of zeros. ConfigurationError if this host cannot number so many bytes."""
    if size - 1 > sys.maxsize:
        raise ConfigurationError(f"{size >> 20} MiB of memory need a Python of 64 bits")
    try:
        if hasattr(os, "memfd_create"):  # Linux, which would otherwise want to be able to hold all of it
            fd = os.memfd_create("busdma")
            try:
                os.ftruncate(fd, size)
                return memoryview(mmap.mmap(fd, size))
            finally:
                os.close(fd)
        return memoryview(mmap.mmap(-1, size))
    except OSError as error:
        raise ConfigurationError(
            f"this host does not give {size >> 20} MiB of address space ({error.strerror}); raise its limit (ulimit -v)"
        ) from None
