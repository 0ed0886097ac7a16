"""Handles on registers behind qtest: in memory space, and x86's I/O ports.

Writes are posted, and everything goes through one socket: the machine carries it out in the order in which it was sent,
and what was written to memory before it was sent is in memory by then. So a device needs no more from ``barrier`` than
that. A translator's software does: what it has taken out of a table may be used for something else only when the
hardware has been told. Its handle is `settled`: the barrier waits until everything posted has been carried out.
"""

from __future__ import annotations

from collections.abc import Mapping

from busdma.errors import DriverError
from busdma.machine.handle import Handle64, check_offset
from busdma.qemu.qtest import Order, Qtest


class Mmio(Handle64):
    """`room` bytes of registers from physical address `base` on, in the byte order of their device."""

    __slots__ = ("_base", "_name", "_order", "_qtest", "_room", "_settled")

    def __init__(
        self, qtest: Qtest, name: str, base: int, room: int, *, order: Order = "little", settled: bool = False
    ) -> None:
        self._qtest, self._name, self._base, self._room = qtest, name, base, room
        self._order: Order = order
        self._settled = settled

    def barrier(self) -> None:
        """See the module's text. DeviceFault if QEMU refused a posted write, or has gone."""
        if self._settled:
            self._qtest.flush()

    def _read(self, offset: int, size: int) -> int:
        check_offset(self._name, offset, size, self._room)
        return self._qtest.read(self._base + offset, size, self._order)

    def _write(self, offset: int, size: int, value: int) -> None:
        check_offset(self._name, offset, size, self._room)
        self._qtest.write(self._base + offset, size, value, self._order)


class Ports(Handle64):
    """`room` I/O ports of an x86 from port `base` on."""

    __slots__ = ("_base", "_name", "_qtest", "_room")

    def __init__(self, qtest: Qtest, name: str, base: int, room: int) -> None:
        self._qtest, self._name, self._base, self._room = qtest, name, base, room

    def barrier(self) -> None:
        """Nothing: see the module's text."""

    def _read(self, offset: int, size: int) -> int:
        self._check(offset, size)
        return self._qtest.port_read(self._base + offset, size)

    def _write(self, offset: int, size: int, value: int) -> None:
        self._check(offset, size)
        self._qtest.port_write(self._base + offset, size, value)

    def _check(self, offset: int, size: int) -> None:
        if size > 4:
            raise DriverError(f"{self._name}: I/O ports have up to 32 bits; access it in two halves")
        check_offset(self._name, offset, size, self._room)


class Joined(Handle64):
    """The registers of one device that lie in several places. `pieces`: at which offset each is seen, from 0 on.

    An access outside of all is a DriverError with the name of the piece before it, and the offset there.
    """

    __slots__ = ("_pieces",)

    def __init__(self, pieces: Mapping[int, Mmio]) -> None:
        self._pieces = sorted(pieces.items(), key=lambda piece: -piece[0])

    def barrier(self) -> None:
        """See the module's text."""
        for _, piece in self._pieces:
            piece.barrier()

    def _read(self, offset: int, size: int) -> int:
        at, piece = self._piece(offset)
        return piece._read(offset - at, size)

    def _write(self, offset: int, size: int, value: int) -> None:
        at, piece = self._piece(offset)
        piece._write(offset - at, size, value)

    def _piece(self, offset: int) -> tuple[int, Mmio]:
        return next((found for found in self._pieces if offset >= found[0]), self._pieces[-1])
