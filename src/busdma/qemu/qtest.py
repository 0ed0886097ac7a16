"""Registers, ports and interrupt lines of a QEMU machine, over the protocol of QEMU's own device tests.

A write is *posted*: it is sent at once and its reply is looked at later. One that QEMU refuses is reported, by name, by
a later call. A read waits for its reply, and so for all writes before it: what is true on PCI is true here.
"""

from __future__ import annotations

import socket
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Final, Literal

from busdma.errors import ConfigurationError, DriverError
from busdma.machine.handle import check_value
from busdma.qemu.interrupts import Handler, InterruptLines
from busdma.qemu.wire import Wire

Order = Literal["little", "big"]

CHUNK: Final = 4096  #: bytes of memory in one command
PATIENCE: Final = 60.0  #: seconds

_LETTERS: Final = {1: b"b", 2: b"w", 4: b"l", 8: b"q"}


class Qtest:
    """The qtest socket of a QEMU; it is this client's to close. Any thread may call.

    `spin`: so many ns a wait polls the socket before it blocks; a wait that spins ends sooner and keeps a CPU busy.
    `patience`: seconds after which a QEMU that does not answer is given up. `last_words`: asked when QEMU has gone;
    says in a sentence how it ended. The constructor asks for the target's byte order, and so returns when QEMU is up.

    When QEMU dies, every call that waits and every later one raises DeviceFault with its last words; and every
    interrupt line rises, so that a driver that waits for its device looks at it, and learns why.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        spin: int = 0,
        patience: float = PATIENCE,
        last_words: Callable[[], str] = lambda: "its end of the socket is closed",
    ) -> None:
        self._interrupts = InterruptLines()
        self._wire = Wire(sock, self._interrupts, spin=spin, patience=patience, last_words=last_words)
        self.order: Final[Order] = "big" if self._wire.ask(b"endianness") == b"big" else "little"  #: of the target

    def read(self, address: int, size: int, order: Order = "little") -> int:
        """The `size` bytes (1, 2, 4 or 8) at physical `address`, as a number.

        `order`: the device's byte order, little on PCI whatever the CPU is, big on sun4m. Errors: DeviceFault if QEMU
        has gone or refused a write; DriverError for a size that is none, and after `close`.
        """
        value = int(self._wire.ask(b"read%b 0x%x" % (_letter(size), address)), 16)
        return value if order == self.order else _swapped(value, size)

    def write(self, address: int, size: int, value: int, order: Order = "little") -> None:
        """Post a write of `size` bytes at physical `address`. Errors as `read`, and if `value` does not fit."""
        letter = _letter(size)
        check_value(address, size, value)
        if order != self.order:
            value = _swapped(value, size)
        self._wire.post(b"write%b 0x%x 0x%x" % (letter, address, value))

    def port_read(self, port: int, size: int) -> int:
        """The `size` bytes (1, 2 or 4) at I/O port `port` of an x86. Errors as `read`."""
        return int(self._wire.ask(b"in%b 0x%x" % (_letter(size, most=4), port)), 16)

    def port_write(self, port: int, size: int, value: int) -> None:
        """Post a write to I/O port `port` of an x86. Errors as `write`."""
        letter = _letter(size, most=4)
        check_value(port, size, value)
        self._wire.post(b"out%b 0x%x 0x%x" % (letter, port, value))

    def read_bytes(self, address: int, length: int) -> bytes:
        """Memory, as the CPU sees it. Slow: `busdma.qemu.ram` is the way to much of it. Errors as `read`."""
        found = bytearray()
        for at in range(0, length, CHUNK):
            size = min(CHUNK, length - at)
            found += b64decode(self._wire.ask(b"b64read 0x%x 0x%x" % (address + at, size)))
        return bytes(found)

    def write_bytes(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Post writes of memory, as `read_bytes` reads it. Errors as `read`."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), CHUNK):
            chunk = view[at : at + CHUNK]
            self._wire.post(b"b64write 0x%x 0x%x %b" % (address + at, len(chunk), b64encode(chunk)))

    def intercept(self, path: str, side: Literal["in", "out"]) -> None:
        """Have the lines into (`in`), or out of, the device at QOM `path` reported: those of one device of each QEMU.

        DeviceFault: QEMU has no such device, or intercepts another already.
        """
        if not path.isascii() or not path.isprintable() or set(path) & set(" \t"):
            raise ConfigurationError(f"{path!r} is no QOM path: give one such as '/machine/i440fx/ioapic'")
        self._wire.ask(f"irq_intercept_{side} {path}".encode())

    def on_interrupt(self, line: int, handler: Handler) -> None:
        """Have ``handler(level)`` called when `line` of the intercepted device changes, and at once if it is high.

        It is called on whatever thread reads the socket, in the order in which things happened; it may not wait.
        """
        self._interrupts.on(line, handler)

    def listen(self) -> None:
        """Have a thread read while nobody waits. Without it, interrupts are seen when somebody reads, or at `poll`."""
        self._wire.listen()

    def poll(self) -> None:
        """Deliver the interrupts that have come, without waiting. Errors as `check`."""
        self._wire.poll()

    def flush(self) -> None:
        """Return when every posted write has been carried out. DeviceFault if QEMU refused one, or has gone."""
        self._wire.flush()

    def check(self) -> None:
        """DeviceFault if QEMU is known to have gone, or to have refused a write; DriverError after `close`."""
        self._wire.check()

    def close(self) -> None:
        """Let go of QEMU, which lives on. A second time does nothing."""
        self._wire.close()

    def forsake(self) -> None:
        """In a fork of the process whose client this is: let go of it without a word to QEMU. Closed from here on."""
        self._wire.forsake()


def _letter(size: int, *, most: int = 8) -> bytes:
    letter = _LETTERS.get(size)
    if letter is None or size > most:
        sizes = ", ".join(str(size) for size in _LETTERS if size <= most)
        raise DriverError(f"there is no access of {size} bytes: give one of {sizes}")
    return letter


def _swapped(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "little"), "big")
