"""The DES card of Thorpe's paper, for PCI and for ISA: a bus master that encrypts from one list of memory to another.

The cipher comes from pycryptodome. What the model adds to the data sheet is time: a command begins a while after the
address was written, and 20 MB/s go through.

Source: docs/des-card.md; Thorpe, "A Machine-Independent DMA Framework for NetBSD", USENIX 1998, "Example of underlying
operation".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Final, Protocol

from busdma.errors import ConfigurationError, DeviceFault
from busdma.sim.bus.pci_config import Bar
from busdma.sim.wiring import CallAt, Memory, Pin

ADDRESS, STATUS, CONTROL, IDENTITY = 0, 4, 8, 12
PORTS: Final = 16  #: bytes of registers
BUSY, INTERRUPT = 1, 2  # status
ACKNOWLEDGE, RESET = 1, 2  # control
SIGNATURE: Final = int.from_bytes(b"DES1", "little")

SET_KEY, ENCRYPT, DECRYPT = 1, 2, 3  # commands
CHAINED: Final = 0x100
DONE, BAD_COMMAND, BAD_LIST, BAD_LENGTH, NO_KEY, BUS_ERROR = 1, 2, 3, 4, 5, 6  # the status word

BLOCK: Final = struct.Struct("<6I")
ENTRY: Final = struct.Struct("<2I")
ENTRIES: Final = 256  #: of one list
FIFO: Final = 4096  #: bytes that it moves at a time
CIPHER_BLOCK: Final = 8

#: Virtual time, in ns.
SETUP_TIME: Final = 2_000  #: from the doorbell to the first byte
BYTE_TIME: Final = 50  #: 20 MB/s

LIBRARY: Final = "the DES card computes with pycryptodome, which is not installed: pip install pycryptodome"

Entries = list[tuple[int, int]]


class Cipher(Protocol):
    """DES with a key and a mode, which remembers the chain."""

    def encrypt(self, plaintext: bytes) -> bytes:
        """Whole blocks."""

    def decrypt(self, ciphertext: bytes) -> bytes:
        """Whole blocks."""


def missing() -> str:
    """Why there can be no DES card here; "" if there can."""
    return LIBRARY if find_spec("Crypto") is None else ""


class Rejected(Exception):
    """The command ends with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Cursor:
    """A list of memory, used up from its beginning."""

    def __init__(self, entries: Entries) -> None:
        self._entries = list(reversed(entries))

    def take(self, count: int) -> Entries:
        """The next `count` bytes."""
        found: Entries = []
        while count > 0:
            address, length = self._entries.pop()
            if length > count:
                self._entries.append((address + count, length - count))
                length = count
            found.append((address, length))
            count -= length
        return found


class Des:
    """The card at power-on, but for its bus. ConfigurationError where the cipher's library is not installed.

    `call_at` and `now` are the machine's clock, in ns; what is called must hold the bus's lock.
    """

    def __init__(self, master: Memory, pin: Pin, call_at: CallAt, now: Callable[[], int]) -> None:
        if why := missing():
            raise ConfigurationError(why)
        self._master = master
        self._raise, self._lower = pin.assert_, pin.deassert
        self._call_at, self._now = call_at, now
        self._address = self._status = 0
        self._run = 0  # counts commands and resets, so that a timer of an earlier one finds itself late
        self._key = self._chain = b""
        self._hang, self._deaf = False, 0
        self._counts = dict.fromkeys(("commands", "bytes", "errors", "faults", "ignored", "resets", "longest_list"), 0)

    def inject_hang(self, deaf: int = 0) -> None:
        """The next command never ends, and so many resets do not help."""
        self._hang, self._deaf = True, deaf

    def statistics(self) -> dict[str, int]:
        """Commands started, and bytes through the cipher; commands that ended in an error; accesses that the bus
        refused; doorbells while busy; resets; and the entries of the longest list it was given."""
        return dict(self._counts)

    # -- registers ----------------------------------------------------------------------------------------------------

    def load(self, register: int) -> int:
        """The CPU reads a register."""
        return {ADDRESS: self._address, STATUS: self._status, IDENTITY: SIGNATURE}.get(register, 0)

    def store(self, register: int, value: int) -> None:
        """The CPU writes a register."""
        if register == ADDRESS:
            self._start(value)
        elif register == CONTROL:
            if value & RESET:
                self._reset()
            if value & ACKNOWLEDGE:
                self._status &= ~INTERRUPT
                self._lower()

    def _start(self, address: int) -> None:
        if self._status & BUSY:
            self._counts["ignored"] += 1
            return
        self._address = address
        self._status |= BUSY
        self._counts["commands"] += 1
        if self._hang:
            self._hang = False
        else:
            self._after(SETUP_TIME, self._begin)

    def _reset(self) -> None:
        self._counts["resets"] += 1
        if self._deaf:
            self._deaf -= 1
            return
        self._run += 1
        self._status = 0
        self._key = self._chain = b""
        self._lower()

    def _after(self, time: int, step: Callable[[], object]) -> None:
        self._run += 1
        mine = self._run

        def attempt() -> None:
            if mine == self._run:
                self._attempt(step)

        self._call_at(self._now() + time, attempt)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _attempt(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Rejected as rejection:
            self._finish(rejection.status)
        except DeviceFault:
            self._counts["faults"] += 1
            self._finish(BUS_ERROR)

    def _begin(self) -> None:
        command, _, in_address, in_count, out_address, out_count = BLOCK.unpack(
            self._master.dma_read(self._address, BLOCK.size)
        )
        if command not in (SET_KEY, ENCRYPT, DECRYPT, ENCRYPT | CHAINED, DECRYPT | CHAINED):
            raise Rejected(BAD_COMMAND)
        entries, size = self._list(in_address, in_count)
        if command == SET_KEY:
            if size not in (CIPHER_BLOCK, 2 * CIPHER_BLOCK):
                raise Rejected(BAD_LENGTH)
            key = b"".join(self._master.dma_read(address, length) for address, length in entries)
            self._key, self._chain = key[:CIPHER_BLOCK], key[CIPHER_BLOCK:] or bytes(CIPHER_BLOCK)
            self._finish(DONE)
            return
        if not self._key:
            raise Rejected(NO_KEY)
        into, room = self._list(out_address, out_count)
        if size % CIPHER_BLOCK or size != room:
            raise Rejected(BAD_LENGTH)
        chained, encrypt = bool(command & CHAINED), command & ~CHAINED == ENCRYPT
        self._go_on(Cursor(entries), Cursor(into), size, self._cipher(chained), encrypt, chained)

    def _list(self, address: int, count: int) -> tuple[Entries, int]:
        """The list, and how many bytes it is of."""
        if not 1 <= count <= ENTRIES:
            raise Rejected(BAD_LIST)
        self._counts["longest_list"] = max(self._counts["longest_list"], count)
        entries = list(ENTRY.iter_unpack(self._master.dma_read(address, count * ENTRY.size)))
        if not all(length for _, length in entries):
            raise Rejected(BAD_LIST)
        return entries, sum(length for _, length in entries)

    def _cipher(self, chained: bool) -> Cipher:
        from Crypto.Cipher import DES  # it takes a while to import, and few machines use their card

        return DES.new(self._key, DES.MODE_CBC, iv=self._chain) if chained else DES.new(self._key, DES.MODE_ECB)

    def _go_on(self, source: Cursor, into: Cursor, left: int, cipher: Cipher, encrypt: bool, chained: bool) -> None:
        """What the FIFO holds, and then the rest."""
        count = min(left, FIFO)

        def burst() -> None:
            data = b"".join(self._master.dma_read(address, length) for address, length in source.take(count))
            result = cipher.encrypt(data) if encrypt else cipher.decrypt(data)
            if chained:
                self._chain = (result if encrypt else data)[-CIPHER_BLOCK:]
            at = 0
            for address, length in into.take(count):
                self._master.dma_write(address, result[at : at + length])
                at += length
            self._counts["bytes"] += count
            if left > count:
                self._go_on(source, into, left - count, cipher, encrypt, chained)
            else:
                self._finish(DONE)

        self._after(count * BYTE_TIME, burst)

    def _finish(self, status: int) -> None:
        self._counts["errors"] += status != DONE
        try:
            self._master.dma_write(self._address + 4, status.to_bytes(4, "little"))
        except DeviceFault:
            self._counts["faults"] += 1
        self._status = INTERRUPT
        self._raise()


class DesPci(Des):
    """The card for PCI, a `busdma.sim.bus.pci.PciFunction` of 32 address bits. It takes accesses of 32 bits only."""

    vendor = 0x1998
    device = 0x0DE5
    class_code = 0x108000  # encryption controller, of no kind that the specification knows
    bars: Mapping[int, Bar] = {0: Bar(PORTS)}

    def read(self, bar: int, offset: int, size: int) -> int:
        """As `busdma.sim.bus.pci.PciFunction.read`."""
        return self.load(offset) if size == 4 else (1 << 8 * size) - 1

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """As `busdma.sim.bus.pci.PciFunction.write`."""
        if size == 4:
            self.store(offset, value)


class DesIsa(Des):
    """The card for ISA, a `busdma.sim.bus.isa.PortDevice` whose 24 address wires are the bus's."""

    def __init__(self, master: Memory, pin: Pin, call_at: CallAt, now: Callable[[], int]) -> None:
        super().__init__(master, pin, call_at, now)
        self._latch = 0  # the lower three bytes of an address, until the highest comes

    def read8(self, offset: int) -> int:
        """As `busdma.sim.bus.isa.PortDevice.read8`."""
        return self.load(offset & ~3) >> 8 * (offset & 3) & 0xFF

    def write8(self, offset: int, value: int) -> None:
        """As `busdma.sim.bus.isa.PortDevice.write8`. Of the control register, the lowest byte counts."""
        if offset < 3:
            self._latch = self._latch & ~(0xFF << 8 * offset) | value << 8 * offset
        elif offset == 3:
            self.store(ADDRESS, self._latch | value << 24)
        elif offset == CONTROL:
            self.store(CONTROL, value)
