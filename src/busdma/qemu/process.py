"""A QEMU that runs: how it is started and how it ends.

Nothing of it has a name in a file system. Its sockets, the guest's memory and images of firmware are inherited as file
descriptors: no path can be too long, and nothing can be left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import weakref
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from typing import Final, Self

from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.qemu.lifeline import Child
from busdma.qemu.monitor import Monitor, missing
from busdma.qemu.qtest import PATIENCE, Qtest

#: The Debian package that has the QEMU of a target.
PACKAGES: Final = {
    "x86_64": "qemu-system-x86",
    "i386": "qemu-system-x86",
    "aarch64": "qemu-system-arm",
    "arm": "qemu-system-arm",
    "sparc": "qemu-system-sparc",
    "sparc64": "qemu-system-sparc",
    "mips": "qemu-system-mips",
    "mipsel": "qemu-system-mips",
    "mips64": "qemu-system-mips",
    "mips64el": "qemu-system-mips",
    "alpha": "qemu-system-misc",
}
ENDING: Final = 5.0  #: seconds that QEMU may take to end

_COMMON: Final = (
    *("-accel", "tcg", "-display", "none", "-nodefaults", "-no-user-config"),
    *("-qtest", "chardev:qtest", "-qtest-log", "none"),  # a log would fill standard error
    *("-mon", "chardev=monitor,mode=control"),
)


def find(target: str, binary: str = "") -> str:
    """The path of the QEMU for `target`, such as ``sparc``; or of `binary`. ConfigurationError: it is not here."""
    if target not in PACKAGES:
        raise ConfigurationError(f"there is no target {target!r}: give one of {', '.join(PACKAGES)}")
    name = binary or f"qemu-system-{target}"
    found = shutil.which(name)
    if found is None:
        raise ConfigurationError(
            f"there is no {name} that can be run: apt install {PACKAGES[target]} (Debian, Ubuntu), or give the path of "
            "another with the option binary="
        )
    return os.path.abspath(found)


def image(name: str, data: bytes = b"", *, size: int = 0) -> int:
    """A file without a path that holds `data`, such as firmware: its descriptor, for ``fds``; the caller closes it.

    `size`: bytes, if it is to be longer: zeros follow, which take no memory until they are written.

    QEMU finds it as ``/proc/self/fd/`` and the number. ConfigurationError: this host gives no more files.
    """
    try:
        fd = os.memfd_create(name)
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
            if size > len(data):
                file.truncate(size)
    except OSError as error:
        raise ConfigurationError(f"no room for {name} ({error.strerror}): raise the limits (ulimit -n, -f)") from None
    return fd


def worth_reading(said: str) -> str:
    """What QEMU `said`: no warnings, if that leaves anything, and no registers, which it prints when a model ends it.

    >>> worth_reading("qemu: warning: slow\\nqemu: hardware error: odd\\nCPU #0:\\nEAX=00000000\\n")
    'qemu: hardware error: odd'
    """
    lines = re.split(r"^CPU #\d+:$", said, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    return "\n".join([line for line in lines if ": warning: " not in line] or lines)


class Qemu:
    """A QEMU for `target`, started with `arguments` (its machine, memory and devices) and answering. Close it.

    `fds`: what else it inherits, under the same numbers, such as `SharedRam.fd`; the caller may close them afterwards.
    `binary`: another QEMU than the one on the PATH. `spin` and `patience`: of `qtest`. It ends with this process.

    ConfigurationError: it or its monitor's library is not here, or it did not start (a machine or device that it does
    not have, an image that is locked, no memory); then the message has its own words.
    """

    def __init__(
        self,
        target: str,
        arguments: Sequence[str],
        *,
        binary: str = "",
        fds: Collection[int] = (),
        spin: int = 0,
        patience: float = PATIENCE,
    ) -> None:
        self.binary: Final = find(target, binary)
        if why := missing():
            raise ConfigurationError(why)
        self._lock = threading.Lock()
        self._closed = False
        self._monitor: Monitor | None = None
        try:
            ours, theirs = socket.socketpair()
            self._monitor_end, monitor = socket.socketpair()
        except OSError as error:
            raise ConfigurationError(f"no sockets for QEMU ({error.strerror}): raise the limit (ulimit -n)") from None
        try:
            self._child = Child(
                [
                    self.binary,
                    *("-chardev", f"socket,id=qtest,fd={theirs.fileno()}"),
                    *("-chardev", f"socket,id=monitor,fd={monitor.fileno()}"),
                    *_COMMON,
                    *arguments,
                ],
                [*fds, theirs.fileno(), monitor.fileno()],
            )
        except BaseException:
            ours.close()
            self._monitor_end.close()
            raise
        finally:
            theirs.close()
            monitor.close()
        try:
            self.qtest: Final = Qtest(ours, spin=spin, patience=patience, last_words=self.last_words)
        except BaseException as error:
            self._child.kill()
            ours.close()
            self._monitor_end.close()
            if isinstance(error, DeviceFault):
                raise ConfigurationError(f"{self.binary} did not start. {error}") from None
            raise
        _running.add(self)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    @property
    def monitor(self) -> Monitor:
        """Its monitor; the first use makes the connection. Errors as `Monitor`; DriverError: it is closed."""
        with self._lock:
            if self._closed:
                raise DriverError("this QEMU is closed: open another machine")
            return self._connected()

    def last_words(self) -> str:
        """How it ended and the end of what it wrote to standard error; waits for its end, if need be, a few seconds."""
        return self._child.last_words(ENDING, worth_reading)

    def close(self) -> None:
        """End it: by its monitor, so that images are complete, and if it does not listen, at once. It is reaped.

        A second time does nothing, nor does it in a fork of the process that has started it.
        """
        with self._lock, ExitStack() as ending:  # whatever interrupts one step, the others are made
            if self._closed:
                return
            self._closed = True
            ending.callback(self._monitor_end.close)
            ending.callback(self._close_monitor)
            ending.callback(self._child.kill)
            ending.callback(self.qtest.close)
            if self._child.running():
                with suppress(DeviceFault, ConfigurationError):  # it is gone, or there is no room for a monitor
                    self._connected().execute("quit", patience=ENDING)
                    self._child.wait(ENDING)

    def _close_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.close()

    def _connected(self) -> Monitor:
        if self._monitor is None:
            self._monitor = Monitor(self._monitor_end, last_words=self.last_words)
        return self._monitor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<QEMU {self.binary}, process {self.pid}{', closed' if self._closed else ''}>"

    def _forsake(self) -> None:
        """Nothing of it is ours: see `_after_fork`."""
        self._closed = True
        self._lock = threading.Lock()
        self.qtest.forsake()


_running: Final[weakref.WeakSet[Qemu]] = weakref.WeakSet()


def _after_fork() -> None:
    """In a fork of this process a QEMU is still that of its parent, who would hear of whatever is done to its sockets.

    Here it is closed.
    """
    for qemu in list(_running):
        qemu._forsake()


os.register_at_fork(after_in_child=_after_fork)
