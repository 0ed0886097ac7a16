"""The other end of a qtest socket: answers commands from a small memory, and does whatever its script says besides."""

from __future__ import annotations

import socket
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress

SIZES = {"b": 1, "w": 2, "l": 4, "q": 8}


class FakeQemu:
    """Answers until its client closes. `irqs` are said before the reply to command number n (from 0, ``endianness``).

    `cuts`: so many bytes at a time, in turn, are sent of everything; none: a reply at a time. ``refuse``: the commands
    that are answered FAIL. ``dies``: the number of the command in whose middle the socket closes.
    """

    def __init__(
        self,
        *,
        order: str = "little",
        irqs: Callable[[int], Sequence[tuple[int, bool]]] = lambda number: (),
        cuts: Sequence[int] = (),
        refuse: Callable[[str], bool] = lambda command: False,
        dies: int = -1,
        silent: int = -1,
    ) -> None:
        self.ours, self._sock = socket.socketpair()
        self.memory = bytearray(4096)
        self.commands: list[str] = []
        self._order = order
        self._irqs = irqs
        self._cuts = cuts
        self._cut = 0
        self._refuse = refuse
        self._dies = dies
        self._silent = silent
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Something that nobody asked for."""
        self._sock.sendall(text.encode())

    def join(self) -> None:
        """Return when the client has closed, or the script has come to its end."""
        self._thread.join()

    def _serve(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError), self._sock, self._sock.makefile("r") as lines:
            for number, line in enumerate(lines):
                command = line.rstrip("\n")
                self.commands.append(command)
                if number == self._dies:
                    self._sock.sendall(b"OK 0x0")  # and no end of line
                    return
                said = "".join(f"IRQ {'raise' if up else 'lower'} {which}\n" for which, up in self._irqs(number))
                if number == self._silent:
                    continue
                self._send((said + self._answer(command) + "\n").encode())

    def _send(self, data: bytes) -> None:
        while data and self._cuts:
            size = self._cuts[self._cut % len(self._cuts)]
            self._cut += 1
            self._sock.sendall(data[:size])
            data = data[size:]
        self._sock.sendall(data)

    def _answer(self, command: str) -> str:
        if self._refuse(command):
            return "FAIL Unknown device"
        word, *rest = command.split()
        if word == "endianness":
            return f"OK {self._order}"
        if word.startswith("irq_intercept"):
            return "OK"
        address = int(rest[0], 16)
        if word == "b64read":
            return "OK " + b64encode(self.memory[address : address + int(rest[1], 16)]).decode()
        if word == "b64write":
            self.memory[address : address + int(rest[1], 16)] = b64decode(rest[2])
            return "OK"
        size = SIZES[word[-1]]
        order = "big" if self._order == "big" else "little"
        if word.startswith(("read", "in")):
            return f"OK 0x{int.from_bytes(self.memory[address : address + size], order):016x}"  # type: ignore[arg-type]
        self.memory[address : address + size] = int(rest[1], 16).to_bytes(size, order)  # type: ignore[arg-type]
        return "OK"
