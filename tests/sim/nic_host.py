"""A station on a bench: memory, a PCnet, and the least that software must do, by the data sheet's numbers."""

from __future__ import annotations

import struct
import zlib

from busdma.errors import DeviceFault
from busdma.runtime.clock import VirtualClock
from busdma.sim.chips.nic import Nic
from busdma.sim.chips.wire import Wire

RDP, RAP, RESET, BDP = 0x10, 0x14, 0x18, 0x1C
INIT, STRT, STOP, TDMD, TXON, RXON, IENA, INTR, IDON, TINT, RINT = (1 << bit for bit in range(11))
MISS, BABL, ERR = 1 << 12, 1 << 14, 1 << 15
OWN, STP, ENP = 1 << 31, 1 << 25, 1 << 24
BLOCK, RECEIVE, TRANSMIT, DATA = 0x100, 0x1000, 0x2000, 0x4000
ME = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("020000000002")


class Memory:
    """64 KiB from 0 on; ``refused``: addresses from here on are."""

    def __init__(self) -> None:
        self.bytes = bytearray(1 << 16)
        self.refused = 1 << 16
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []

    def dma_read(self, address: int, length: int) -> bytes:
        self.reads.append((address, length))
        self._check(address, length)
        return bytes(self.bytes[address : address + length])

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.writes.append((address, len(data)))
        self._check(address, len(data))
        self.bytes[address : address + len(data)] = data

    def _check(self, address: int, length: int) -> None:
        if address + length > self.refused:
            raise DeviceFault("not mapped", address)


class Pin:
    def __init__(self) -> None:
        self.level = False

    def assert_(self) -> None:
        self.level = True

    def deassert(self) -> None:
        self.level = False


class Station:
    """The controller and its software."""

    def __init__(self, clock: VirtualClock, wire: Wire, address: bytes = ME) -> None:
        self.clock, self.wire, self.memory, self.pin, self.address = clock, wire, Memory(), Pin(), address
        self.nic = Nic(self.memory, self.pin, clock.call_at, clock.now, wire=wire, address=address)

    def csr(self, number: int) -> int:
        self.nic.write(1, RAP, 4, number)
        return self.nic.read(1, RDP, 4)

    def set_csr(self, number: int, value: int) -> None:
        self.nic.write(1, RAP, 4, number)
        self.nic.write(1, RDP, 4, value)

    def start(
        self, *, mode: int = 0, receive: int = 2, transmit: int = 2, filter: int = 0, command: int = STRT | IENA
    ) -> None:
        """Registers of 32 bits, software style 2, rings of 4 unless told otherwise; wait until it runs."""
        self.nic.write(1, RDP, 4, 0)
        self.set_csr(58, 2)
        words = transmit << 28 | receive << 20 | mode
        block = struct.pack("<I6s2xQII", words, self.address, filter, RECEIVE, TRANSMIT)
        self.memory.bytes[BLOCK : BLOCK + len(block)] = block
        self.set_csr(1, BLOCK)
        self.set_csr(2, 0)
        self.set_csr(0, INIT)
        self.run()
        self.set_csr(0, IDON | command)

    def describe(self, ring: int, index: int, address: int, length: int, flags: int) -> None:
        struct.pack_into("<4I", self.memory.bytes, ring + 16 * index, address, flags | 0xF000 | -length & 0xFFF, 0, 77)

    def status(self, ring: int, index: int) -> tuple[int, int]:
        """Words 1 and 2 of a descriptor."""
        word, detail = struct.unpack_from("<2I", self.memory.bytes, ring + 16 * index + 4)
        return word, detail

    def offer(self, *lengths: int, first: int = 0) -> None:
        """Buffers to receive into, from DATA + 0x4000 on, 0x800 apart, full of 0xEE."""
        for index, length in enumerate(lengths, first):
            at = DATA + 0x4000 + 0x800 * index
            self.memory.bytes[at : at + 0x800] = b"\xee" * 0x800
            self.describe(RECEIVE, index, at, length, OWN)

    def found(self, index: int, length: int) -> bytes:
        at = DATA + 0x4000 + 0x800 * index
        return bytes(self.memory.bytes[at : at + length])

    def send(self, *pieces: bytes, first: int = 0, flags: int = 0) -> None:
        """One frame in so many descriptors, from `first` on; and tell the controller."""
        for number, piece in enumerate(pieces):
            at = DATA + 0x800 * (first + number)
            self.memory.bytes[at : at + len(piece)] = piece
            ends = (STP if number == 0 else 0) | (ENP if number == len(pieces) - 1 else 0)
            self.describe(TRANSMIT, first + number, at, len(piece), OWN | ends | flags)
        self.set_csr(0, TDMD | IENA)

    def run(self) -> None:
        while self.clock.advance():
            pass


def looped(address: bytes = ME) -> Station:
    """A station at a wire that loops back."""
    clock = VirtualClock()
    return Station(clock, Wire(clock.call_at, clock.now), address)


def pair(megabits: int = 10) -> tuple[Station, Station]:
    """Two at one wire."""
    clock = VirtualClock()
    wire = Wire(clock.call_at, clock.now, megabits=megabits)
    return Station(clock, wire, ME), Station(clock, wire, OTHER)


def frame(length: int = 60, *, to: bytes = ME, fill: int = 0x40) -> bytes:
    """A frame of `length` bytes without its check sequence."""
    return (to + OTHER + b"\x88\xb5").ljust(length, bytes([fill]))


def checked(data: bytes) -> bytes:
    """With it."""
    return data + zlib.crc32(data).to_bytes(4, "little")
