"""A Bt848 on a bench: memory, a pin, a clock, and an assembler for its RISC engine."""

from __future__ import annotations

from struct import pack

from busdma.errors import DeviceFault
from busdma.runtime.clock import VirtualClock
from busdma.sim.chips.camera import FIELD, Camera
from busdma.sim.chips.grabber import (
    CAP_CTL,
    COLOR_FMT,
    CROP,
    GPIO_DMA_CTL,
    HACTIVE_LO,
    INT_STAT,
    JUMP,
    ODD,
    RISC_STRT_ADD,
    SKIP,
    SYNC,
    VACTIVE_LO,
    WRITE,
    Y8,
    Bt848,
)

SIZE = 1 << 17
PICTURE = 0x8000  #: where programs write


class Memory:
    """128 KiB at 0; reads beyond it give ones. What begins in `forbidden` is refused."""

    def __init__(self) -> None:
        self.bytes = bytearray(SIZE)
        self.written: list[tuple[int, int]] = []
        self.forbidden = range(0)

    def dma_read(self, address: int, length: int) -> bytes:
        if address in self.forbidden:
            raise DeviceFault("not mapped", address)
        return bytes(self.bytes[address : address + length]).ljust(length, b"\xff")

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        if address in self.forbidden:
            raise DeviceFault("not mapped", address)
        self.written.append((address, len(data)))
        self.bytes[address : address + len(data)] = data


class Pin:
    """Its level, and how often it rose."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def assert_(self) -> None:
        self.rises += not self.level
        self.level = True

    def deassert(self) -> None:
        self.level = False


class Bench:
    """The device, set to pictures of `width` by `height`."""

    def __init__(self, width: int = 16, height: int = 4) -> None:
        self.memory, self.pin, self.clock, self.camera = Memory(), Pin(), VirtualClock(), Camera()
        self.device = Bt848(self.memory, self.pin, self.clock.call_at, self.clock.now, self.camera)
        self.width, self.height = width, height
        self.size(width, height)
        self.write(COLOR_FMT, Y8)
        self.write(CAP_CTL, 3)

    def read(self, offset: int) -> int:
        return self.device.read(0, offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.device.write(0, offset, 4, value)

    def size(self, width: int, height: int) -> None:
        for bank in (0, ODD):
            self.write(bank + CROP, width >> 8 | height >> 8 << 4)
            self.write(bank + HACTIVE_LO, width & 0xFF)
            self.write(bank + VACTIVE_LO, height & 0xFF)

    def run(self, *program: int, at: int = 0x100, fields: int = 0) -> None:
        """Load a program, start it, and let some fields go by. A picture's first field is the next to come."""
        self.memory.bytes[at : at + 4 * len(program)] = pack(f"<{len(program)}I", *program)
        self.write(RISC_STRT_ADD, at)
        self.write(GPIO_DMA_CTL, 3)
        self.pass_by(fields)

    def pass_by(self, fields: int, more: int = 0) -> None:
        """Let the clock go on by so many fields, and some ns."""
        end = self.clock.now() + fields * FIELD + more
        self.clock.call_at(end, lambda: None)
        while (due := self.clock.next_at()) is not None and due <= end:
            self.clock.advance()

    @property
    def status(self) -> int:
        return self.read(INT_STAT)


def write(count: int, address: int, flags: int = 0) -> tuple[int, int]:
    return WRITE << 28 | flags | count, address


def skip(count: int, flags: int = 0) -> tuple[int]:
    return (SKIP << 28 | flags | count,)


def jump(address: int, flags: int = 0) -> tuple[int, int]:
    return JUMP << 28 | flags, address


def sync(code: int, flags: int = 0) -> tuple[int, int]:
    return SYNC << 28 | flags | code, 0
