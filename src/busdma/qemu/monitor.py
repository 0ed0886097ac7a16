"""QEMU's monitor: QMP, by the QEMU project's own library, on a socket that QEMU has inherited.

The library is for asyncio. It lives in a loop of its own, in a thread of its own, so that it is the same under every
runtime: a command blocks the caller, whoever he is, for as long as QEMU takes, about 1 ms. Nothing on the way of a
transfer needs it.

Source: QEMU Machine Protocol Specification; QEMU QMP Reference Manual.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final, TypeVar

from busdma.errors import ConfigurationError, DeviceFault, DriverError

PATIENCE: Final = 30.0  #: seconds

LIBRARY: Final = "QEMU's monitor needs the library qemu.qmp, which is not installed: pip install 'busdma[qemu]'"

T = TypeVar("T")


def missing() -> str:
    """Why there can be no monitor here; "" if there can."""
    try:
        import qemu.qmp  # noqa: F401  # every monitor's first step
    except ImportError:
        return LIBRARY
    return ""


class Monitor:
    """The monitor behind `sock`, which is this object's to close. Any thread may call.

    `last_words`: asked when QEMU has gone; says in a sentence how it ended. `patience`: seconds after which a QEMU that
    does not answer is given up. DeviceFault if it has gone, or does not answer; ConfigurationError if the library is
    missing, or this host gives no more files or threads.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        last_words: Callable[[], str] = lambda: "its end of the socket is closed",
        patience: float = PATIENCE,
    ) -> None:
        if why := missing():
            raise ConfigurationError(why)
        from qemu.qmp import QMPClient

        self._last_words = last_words
        self._patience = patience
        self._closed = False
        self._client = QMPClient("busdma")
        with ExitStack() as half:
            try:
                self._loop = asyncio.new_event_loop()
                half.callback(self._loop.close)
                self._thread = threading.Thread(target=self._loop.run_forever, name="busdma QMP", daemon=True)
                self._thread.start()
            except (OSError, RuntimeError) as error:
                raise ConfigurationError(
                    f"no room for QEMU's monitor ({error}): raise the limits (ulimit -nu)"
                ) from None
            half.pop_all()
        try:
            self._call("the greeting", self._client.connect(sock), patience)
        except BaseException:
            self.close()
            raise

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, patience: float | None = None
    ) -> Any:
        """What QEMU returns for `command`, as JSON has it.

        Errors: DeviceFault if QEMU refuses, has gone, or does not answer; DriverError after `close`.
        """
        if self._closed:
            raise DriverError("this QEMU is closed: open another machine")
        given = dict(arguments) if arguments is not None else None
        wait = self._patience if patience is None else patience
        return self._call(repr(command), self._client.execute(command, given), wait)

    def hmp(self, line: str) -> str:
        """What the monitor for humans prints at the command `line`. Its errors are text too. Errors as `execute`."""
        return str(self.execute("human-monitor-command", {"command-line": line})).replace("\r\n", "\n").rstrip("\n")

    def close(self) -> None:
        """Let go of QEMU, which lives on. A second time does nothing."""
        if self._closed:
            return
        self._closed = True
        with suppress(Exception):  # whatever the other end did, this one is closed
            asyncio.run_coroutine_threadsafe(self._client.disconnect(), self._loop).result(self._patience)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, what: str, coroutine: Coroutine[Any, Any, T], patience: float) -> T:
        from qemu.qmp import ExecuteError, QMPError

        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(patience)
        except ExecuteError as error:
            raise DeviceFault(f"QEMU refuses {what}: {error}") from None
        except (TimeoutError, concurrent.futures.TimeoutError):
            raise DeviceFault(
                f"QEMU's monitor has not answered {what} for {patience:g} s: it hangs; open another machine"
            ) from None
        except (QMPError, EOFError, OSError):
            raise DeviceFault(f"QEMU has gone in the middle of {what}: {self._last_words()}") from None
