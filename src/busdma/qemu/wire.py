"""The qtest protocol on its socket: commands out, replies and lines about interrupts in.

The protocol is lines of text. Every command has one reply, and replies come in the order of commands; between them
stand lines about interrupts, whenever an intercepted line changes.

Whoever waits for a reply reads the socket himself, for a switch of threads costs more than the reply. While nobody
waits, a thread listens for interrupts, if `Wire.listen` was called. It sleeps in an epoll set that knows the socket
only then: replies that somebody waits for do not wake it. No event loop is needed, so every runtime can be woken.

Source: QEMU, "Testing in QEMU", QTest Device Emulation Testing Framework, and the comment "QTest Protocol" in qtest.c.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.qemu.interrupts import InterruptLines

DEPTH: Final = 64  #: posted commands that may lack a reply: replies must fit into the socket, or QEMU stops
RECEIVE: Final = 65536  #: bytes
SHOWN: Final = 60  #: characters of a command in a message


class _Question:
    """A command whose reply somebody waits for."""

    __slots__ = ("answer", "command")

    def __init__(self, command: bytes) -> None:
        self.command = command
        self.answer: bytes | None = None


class _Whole:
    """After an exception such as KeyboardInterrupt, between any two steps, nobody knows which replies follow."""

    __slots__ = ("_wire",)

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, DeviceFault | DriverError):
            self._wire.torn = True


class Wire:
    """The qtest socket of a QEMU; it is this object's to close. Any thread may call. See `busdma.qemu.qtest.Qtest`."""

    def __init__(
        self,
        sock: socket.socket,
        interrupts: InterruptLines,
        *,
        spin: int,
        patience: float,
        last_words: Callable[[], str],
    ) -> None:
        self._spin = spin
        self._patience = patience
        self._last_words = last_words
        self._interrupts = interrupts
        self._sock = sock
        sock.setblocking(True)  # and the kernel keeps the time: one system call a wait
        limit = struct.pack("@ll", int(patience), int(patience % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._lock = threading.Lock()  # the socket, and all below
        self._rest = b""  # of a line that has not come entirely
        self._pending: deque[bytes | _Question] = deque()  # what still lacks a reply; posted commands as they are
        self._refused: str | None = None
        self._fault: str | None = None
        self.torn = False  #: an exception may have lost something that was sent or received
        self._whole = _Whole(self)
        self._closed = False
        self._epoll: select.epoll | None = None
        self._listener: threading.Thread | None = None

    def ask(self, command: bytes) -> bytes:
        """The reply to `command`, without its ``OK``. Returns after all that was posted before has been done.

        Errors: DeviceFault if QEMU refuses the command or one that was posted, or has gone; DriverError after `close`.
        """
        question = _Question(command)
        with self._reading():
            self._send(command, question)
            while question.answer is None:
                self._receive(wait=True)
            refused = self._take_refused()
        if refused is not None:
            raise DeviceFault(refused)
        if not question.answer.startswith(b"OK"):
            raise DeviceFault(_refusal(command, question.answer))
        return question.answer[3:]

    def post(self, command: bytes) -> None:
        """Send `command`; its reply is looked at later. Errors as `ask`, of earlier ones."""
        if len(self._pending) < DEPTH:
            with self._lock, self._whole:
                self._usable()
                self._send(command, command)
            return
        with self._reading():
            self._send(command, command)
            while len(self._pending) > DEPTH // 2:
                self._receive(wait=True)

    def flush(self) -> None:
        """Return when all that was posted has been done. DeviceFault if QEMU refused some of it, or has gone."""
        with self._reading():
            while self._pending:
                self._receive(wait=True)
            refused = self._take_refused()
        if refused is not None:
            raise DeviceFault(refused)

    def poll(self) -> None:
        """Take in what has come, without waiting. Errors as `check`."""
        with self._reading():
            while self._receive(wait=False):
                pass
        self.check()

    def check(self) -> None:
        """DeviceFault if QEMU is known to have gone, or to have refused a posted command; DriverError after `close`."""
        with self._lock:
            self._usable()

    def listen(self) -> None:
        """Start the thread that reads while nobody waits. A second time does nothing.

        ConfigurationError: this host gives no more files or threads.
        """
        with self._lock:
            self._usable()
            if self._listener is not None:
                return
            try:
                if self._epoll is None:
                    self._epoll = select.epoll()
                    self._epoll.register(self._sock, select.EPOLLIN)
                listener = threading.Thread(target=self._listen, args=(self._epoll,), name="busdma qtest", daemon=True)
                listener.start()
            except (OSError, RuntimeError) as error:
                raise ConfigurationError(
                    f"no room to listen to QEMU ({error}): raise the limits (ulimit -nu)"
                ) from None
            self._listener = listener

    def close(self) -> None:
        """Let go of QEMU, which lives on; all later calls are DriverErrors. A second time does nothing."""
        self._closed = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # ends every wait, the listener's too
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join()
        with self._lock:
            if self._epoll is not None:
                self._epoll.close()
            self._sock.close()

    def forsake(self) -> None:
        """See `busdma.qemu.qtest.Qtest.forsake`. Whoever had the lock, or listened, is not in this process."""
        self._closed, self._lock, self._listener = True, threading.Lock(), None
        if self._epoll is not None:
            self._epoll.close()
        self._sock.close()

    # -- inside, all but the first under the lock --------------------------------------------------------------------

    def _listen(self, epoll: select.epoll) -> None:
        while True:
            epoll.poll()
            try:
                with self._lock:
                    self._usable(refused=False)
                    while self._receive(wait=False):
                        pass
            except (DeviceFault, DriverError):
                return  # everybody else is told, by his next call
            finally:
                self._interrupts.deliver()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """The socket is ours, and does not wake the listener. Afterwards, without the lock, interrupts are told."""
        try:
            with self._lock, self._whole:
                self._usable()
                epoll = self._epoll
                try:
                    if epoll is not None:
                        epoll.modify(self._sock, 0)
                    yield
                finally:
                    if epoll is not None:
                        epoll.modify(self._sock, select.EPOLLIN)
        finally:
            self._interrupts.deliver()

    def _usable(self, *, refused: bool = True) -> None:
        if self._closed:
            raise DriverError("this QEMU is closed: open another machine")
        if self._fault is not None:
            raise DeviceFault(self._fault)
        if refused and self._refused is not None:
            raise DeviceFault(self._take_refused() or "")
        if self.torn:
            self._resynchronise()

    def _take_refused(self) -> str | None:
        refused, self._refused = self._refused, None
        return refused

    def _send(self, command: bytes, pending: bytes | _Question) -> None:
        try:
            self._pending.append(pending)
            self._sock.sendall(command + b"\n")
        except BlockingIOError:
            raise self._hangs(command) from None
        except OSError:
            raise self._gone(command) from None

    def _receive(self, *, wait: bool) -> bool:
        """Take what has come; with `wait`, something. False: there was nothing."""
        data = self._data(wait=wait)
        for line in self._replies(data):
            if not self._pending:
                raise self._give_up(f"QEMU sent {_shown(line)} and was not asked: give the socket of its qtest")
            asked = self._pending.popleft()
            if isinstance(asked, _Question):
                asked.answer = line
            elif not line.startswith(b"OK") and self._refused is None:
                self._refused = _refusal(asked, line)
        return bool(data)

    def _data(self, *, wait: bool) -> bytes:
        """Some bytes; none only if there are none, and without `wait`."""
        try:
            data = self._wait() if wait else self._sock.recv(RECEIVE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if wait:
                raise self._hangs(self._oldest()) from None
            return b""
        except OSError:
            data = b""
        if not data:
            raise self._gone(self._oldest())
        return data

    def _wait(self) -> bytes:
        if self._spin:
            end = time.perf_counter_ns() + self._spin
            while time.perf_counter_ns() < end:
                with suppress(BlockingIOError):
                    return self._sock.recv(RECEIVE, socket.MSG_DONTWAIT)
        return self._sock.recv(RECEIVE)

    def _replies(self, data: bytes) -> list[bytes]:
        """The replies that are complete with `data`; what was said of interrupts is passed on."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        replies = []
        for line in lines:
            if line.startswith(b"IRQ "):
                _, what, number = line.split()
                self._interrupts.changed(int(number), what == b"raise")
            else:
                replies.append(line)
        return replies

    def _resynchronise(self) -> None:
        """Skip replies until the one to a question whose answer is a word; no other's is.

        A command is short enough for the socket to take all of it or nothing. What was told of interrupts at that very
        moment may be lost.
        """
        self._pending.clear()
        self._rest, self.torn = b"", False
        self._send(b"endianness", b"endianness")
        while not any(line in (b"OK little", b"OK big") for line in self._replies(self._data(wait=True))):
            pass
        self._pending.clear()

    def _oldest(self) -> bytes:
        asked = self._pending[0] if self._pending else b""
        return asked.command if isinstance(asked, _Question) else asked

    def _hangs(self, command: bytes) -> DeviceFault:
        return self._give_up(
            f"QEMU has not answered {_shown(command)} for {self._patience:g} s: it hangs, and is given up; open "
            "another machine"
        )

    def _gone(self, command: bytes) -> DeviceFault | DriverError:
        if self._closed:
            return DriverError("this QEMU was closed meanwhile: open another machine")
        during = f" in the middle of {_shown(command)}" if command else ""
        return self._give_up(f"QEMU has gone{during}: {self._last_words()}")

    def _give_up(self, why: str) -> DeviceFault:
        if self._fault is None:
            self._fault = why
            self._interrupts.raise_all()
        return DeviceFault(self._fault)


def _shown(command: bytes) -> str:
    text = command.decode(errors="replace")
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def _refusal(command: bytes, answer: bytes) -> str:
    return f"QEMU refuses {_shown(command)}: {answer.decode(errors='replace')}"
