"""Opening the file that a command line names, or saying what is wrong with it."""

from __future__ import annotations

import os
import stat

from busdma.errors import ConfigurationError


def open_file(path: str) -> int:
    """A descriptor that reads the file `path`. ConfigurationError if it is none, or cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is refused below, not waited for
    except OSError as error:
        raise unreadable(path, error) from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise ConfigurationError(f"{path!r} is a directory; give a file")
    raise ConfigurationError(f"{path!r} is a device or a pipe; copy what it holds into a file first")


def unreadable(path: str, error: OSError) -> ConfigurationError:
    """The error for a file that could not be opened or read."""
    return ConfigurationError(f"cannot read {path!r}: {error.strerror}; give a readable file")
