"""A PC's two 8237 DMA controllers and their page registers, as drivers use them: a channel at a time.

The first controller has the channels 0 to 3 and moves bytes, the second has 5 to 7 and moves words of 16 bits; the
first hangs at channel 4 of the second. A channel counts 16 bits of an address, its page register holds the others and
does not count: a transfer that ran over the end of its page would go on at the page's beginning. So the boundary
belongs to the tag of a device that a channel serves. A card that is itself master of the bus has no such limit.

The channels of one controller share its registers, and the flip-flop that tells a number's low byte from its high one.

Sources: Intel 8237A data sheet, "Register Description" and "Software Commands" (figures 5 and 6); IBM PC AT Technical
Reference, "System Board: DMA" (ports, page registers, words on channels 5 to 7).
"""

from __future__ import annotations

import threading
from typing import Final

from busdma.errors import ConfigurationError, DriverError
from busdma.machine.attachment import Registers

REACH: Final = 0xFFFFFF  #: the highest address: 8 bits from the page register, 16 from the controller
CASCADE: Final = 4  #: the channel that the first controller hangs at

# registers, in steps of the controller from its base
STATUS, MASK, MODE, CLEAR_FLIP_FLOP = 0x8, 0xA, 0xB, 0xC
MASKED: Final = 0x04  # in MASK, beside the number of the channel
WRITE_TRANSFER, READ_TRANSFER = 0x04, 0x08  # in MODE: to memory, from memory
SINGLE_MODE, CASCADE_MODE = 0x40, 0xC0

#: (base port, step) of the two controllers
CONTROLLERS: Final = ((0x00, 1), (0xC0, 2))
PAGES: Final = {0: 0x87, 1: 0x83, 2: 0x81, 3: 0x82, 5: 0x8B, 6: 0x89, 7: 0x8A}  #: ports, by channel


class DmaController:
    """Both controllers, through `registers`, whose offsets are I/O ports. One object for a machine.

    It lets the first controller's requests through, which is the firmware's work where there is one, and leaves the
    channels as they are.
    """

    def __init__(self, registers: Registers) -> None:
        self._registers = registers
        self._locks = (threading.Lock(), threading.Lock())  # one for each controller
        self._ended = [0, 0]  # channels that have reached terminal count: reading it clears it for all four
        base, step = CONTROLLERS[1]
        registers.write8(base + MODE * step, CASCADE_MODE | CASCADE & 3)
        registers.write8(base + MASK * step, CASCADE & 3)

    def channel(self, number: int) -> DmaChannel:
        """Channel `number` for one device. ConfigurationError if there is none, or it is the cascade."""
        if number not in PAGES:
            raise ConfigurationError(f"there is no DMA channel {number} for a device: give one of {[*PAGES]}")
        return DmaChannel(number, self._registers, self._locks[number >> 2], self._ended)


class DmaChannel:
    """`busdma.machine.attachment.IsaDmaChannel`. Any thread may call, one at a time of each channel."""

    __slots__ = ("_base", "_bit", "_ended", "_length", "_lock", "_registers", "_step", "_which", "number")

    lowaddr: Final = REACH
    nsegments: Final = 1

    def __init__(self, number: int, registers: Registers, lock: threading.Lock, ended: list[int]) -> None:
        self.number = number
        self._registers, self._lock, self._ended = registers, lock, ended
        self._which = number >> 2
        self._bit = number & 3
        self._base, self._step = CONTROLLERS[self._which]
        self._length = 0

    @property
    def alignment(self) -> int:
        """Bytes of one cycle: 1, or 2 on the channels that move words."""
        return self._step

    @property
    def boundary(self) -> int:
        """Bytes of a page: 64 KiB, or 128 KiB on the channels that move words."""
        return self._step << 16

    @property
    def maxsegsz(self) -> int:
        """A whole page."""
        return self._step << 16

    def program(self, address: int, length: int, *, to_memory: bool) -> None:
        """See `IsaDmaChannel`: single transfers, addresses that go up, no repetition."""
        self._check(address, length)
        first, last = address // self._step & 0xFFFF, length // self._step - 1
        kind = WRITE_TRANSFER if to_memory else READ_TRANSFER
        with self._lock:
            self._write(MASK, MASKED | self._bit)
            self._read_status()
            self._ended[self._which] &= ~(1 << self._bit)
            self._write(MODE, SINGLE_MODE | kind | self._bit)
            self._write(CLEAR_FLIP_FLOP, 0)
            for register, value in ((2 * self._bit, first), (2 * self._bit + 1, last)):
                self._write(register, value & 0xFF)
                self._write(register, value >> 8)
            self._registers.write8(PAGES[self.number], address >> 16 & ~(self._step - 1))
            self._length = length
            self._registers.barrier()
            self._write(MASK, self._bit)

    def mask(self) -> None:
        """See `IsaDmaChannel`."""
        with self._lock:
            self._write(MASK, MASKED | self._bit)

    @property
    def ended(self) -> bool:
        """Has the controller reported terminal count since `program`? Not every model of it does."""
        with self._lock:
            self._read_status()
            return bool(self._ended[self._which] & 1 << self._bit)

    def left(self) -> int:
        """See `IsaDmaChannel`. Of a whole page, all, if the controller reports no terminal count: it counts in 16 bits.

        The count is one less than what is left, and 0xFFFF after the last cycle ("Current Word Register").
        """
        if self.ended:
            return 0
        with self._lock:
            self._write(CLEAR_FLIP_FLOP, 0)
            low, high = (self._registers.read8(self._port(2 * self._bit + 1)) for _ in range(2))
        cycles = (high << 8 | low) + 1
        return self._length if cycles * self._step == self._length else (cycles & 0xFFFF) * self._step

    def _check(self, address: int, length: int) -> None:
        what = f"DMA channel {self.number} cannot move {length} bytes at {address:#x}"
        if not 1 <= length <= self.maxsegsz or address < 0 or address + length - 1 > REACH:
            raise DriverError(
                f"{what}: it moves 1 to {self.maxsegsz} bytes, up to address {REACH:#x}; load within that"
            )
        if address % self.alignment or length % self.alignment:
            raise DriverError(f"{what}: it moves words of {self.alignment} bytes; align both")
        if address // self.boundary != (address + length - 1) // self.boundary:
            raise DriverError(
                f"{what}: that crosses a multiple of {self.boundary:#x}, where it would begin its page again; derive "
                "the tag with the channel's boundary"
            )

    def _read_status(self) -> None:
        self._ended[self._which] |= self._registers.read8(self._port(STATUS)) & 0xF

    def _port(self, register: int) -> int:
        return self._base + register * self._step

    def _write(self, register: int, value: int) -> None:
        self._registers.write8(self._port(register), value)
