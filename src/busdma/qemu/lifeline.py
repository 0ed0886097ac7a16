"""A child process that never outlives this one, however this one ends.

The child holds the reading end of a pipe and this process the only writing end. The pipe is set so that the kernel
sends the child SIGKILL when the writing end is closed, as it is when this process ends, by SIGKILL too. That takes no
process in between, which could be killed itself, and does not care which thread started the child, as
PR_SET_PDEATHSIG does.

The child begins as a shell that waits for a word, which comes after all of this has been set. If this process dies
before, the word never comes, and the shell ends.

Source: fcntl(2), F_SETOWN, F_SETSIG and O_ASYNC; prctl(2), PR_SET_PDEATHSIG, for why not.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final

from busdma.errors import ConfigurationError

TAIL: Final = 16384  #: bytes of standard error that are kept

# What it becomes has no standard input: that was our word.
_SHELL: Final = ("/bin/sh", "-c", 'read go && exec "$@" </dev/null', "busdma")


class Child:
    """`command`, whose first word is a path, as a child of this process. It inherits `fds`, under the same numbers.

    ConfigurationError: this host does not give another process, or pipes for it.
    """

    def __init__(self, command: Sequence[str], fds: Collection[int] = ()) -> None:
        self._errors = bytearray()
        self._line = -1
        try:
            reading, self._line = os.pipe()
            try:
                self._process = subprocess.Popen(
                    [*_SHELL, *command],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[*fds, reading],
                    process_group=0,  # a Ctrl-C is meant for us
                )
                _children.add(self)
                fcntl.fcntl(reading, fcntl.F_SETOWN, self._process.pid)
                fcntl.fcntl(reading, fcntl.F_SETSIG, signal.SIGKILL)
                fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
            finally:
                os.close(reading)
        except OSError as error:
            self.abandon()
            raise ConfigurationError(
                f"cannot start {command[0]} ({error.strerror}): end other processes, or raise the limits (ulimit -nu)"
            ) from None
        self._reader = threading.Thread(target=self._read_errors, name="busdma child", daemon=True)
        try:
            self._reader.start()
        except RuntimeError as error:
            with self._process:  # a shell that waits for our word
                self._process.kill()
            self.abandon()
            raise ConfigurationError(f"{error} for {command[0]}: raise the limit of processes (ulimit -u)") from None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as word:
            word.write(b"go\n")

    @property
    def pid(self) -> int:
        """Its number; of a process that has ended once `running` has said so."""
        return self._process.pid

    def running(self) -> bool:
        """Does it still run? If not, it has been reaped."""
        return self._process.poll() is None

    def wait(self, seconds: float) -> bool:
        """Give it that long to end. True: it has."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def last_words(self, seconds: float, shorten: Callable[[str], str] = str) -> str:
        """How it ended, and the last it wrote to standard error, `shorten`-ed; waits that long for its end."""
        if not self.wait(seconds):
            how = "it still runs"
        elif (status := self._process.returncode) < 0:
            how = f"it was killed by signal {-status} ({signal.strsignal(-status)})"
        else:
            how = f"it ended with status {status}"
        self._reader.join(seconds)
        said = shorten(self._errors.decode(errors="replace")).strip()
        return f"{how}; its last words: {said}" if said else f"{how}, and said nothing"

    def kill(self) -> None:
        """End it at once, and reap it. A second time does nothing."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the line; a child that still runs dies of it, and nobody reaps it."""
        line, self._line = self._line, -1
        if line >= 0:
            os.close(line)

    def _read_errors(self) -> None:
        """A full pipe would stop it."""
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            while data := pipe.read(4096):
                self._errors += data
                del self._errors[:-TAIL]


_children: Final[weakref.WeakSet[Child]] = weakref.WeakSet()


def _after_fork() -> None:
    """A fork of this process does not keep its children alive."""
    for child in list(_children):
        child.abandon()


os.register_at_fork(after_in_child=_after_fork)
