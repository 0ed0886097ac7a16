"""A PC's two 8237 DMA controllers with their page registers, for cards that have no address lines of their own.

A card asks by its channel, a `Request`; the controller puts the addresses on the bus: 16 bits that count, below those
of the page register, which do not. So a transfer that reaches the end of its page goes on at the page's beginning, in
somebody else's memory, and the upper bits of an address beyond 16 MiB are nowhere. What a card moves at one moment is
one access of the bus for each run of adjacent addresses.

After the last cycle of a count there is terminal count, which the card is told and the status register keeps, and the
channel masks itself, unless it initialises itself again. The first controller hangs at channel 4 of the second, and is
not heard before that channel is in cascade mode and not masked.

What it does not model: addresses that count down, memory to memory, requests by software, priorities, and the time of a
cycle, which a card's own pace hides.

Sources: Intel 8237A data sheet, "Register Description"; IBM PC AT Technical Reference, "System Board: DMA".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from busdma.errors import ConfigurationError
from busdma.sim.bus.isa import IsaBus
from busdma.sim.wiring import Memory

CHANNELS: Final = (0, 1, 2, 3, 5, 6, 7)
PAGE_PORTS: Final = {0: 7, 1: 3, 2: 1, 3: 2, 5: 11, 6: 9, 7: 10}  #: from 0x80 on

STATUS: Final = 8
DISABLED: Final = 0x04  # in COMMAND
VERIFY, TO_MEMORY, FROM_MEMORY = 0x00, 0x04, 0x08  # in MODE, within KIND
KIND: Final = 0x0C
AUTOINITIALISE, DOWN, CASCADE = 0x10, 0x20, 0xC0


class _Channel:
    """The registers of one channel."""

    __slots__ = ("address", "base_address", "base_count", "count", "mode")

    def __init__(self) -> None:
        self.address = self.base_address = 0
        self.count = self.base_count = 0
        self.mode = 0


class _Controller:
    """One 8237: a `busdma.sim.bus.isa.PortDevice`. `step`: bytes of a cycle, and ports from register to register."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.channels = [_Channel() for _ in range(4)]
        self.mask, self.status, self.command = 0xF, 0, 0
        self._high = False  # the flip-flop: the next access is to the high byte

    def read8(self, offset: int) -> int:
        """The CPU reads a register. Those that can only be written give ones."""
        register = offset // self.step
        if register < 8:
            channel = self.channels[register >> 1]
            value = channel.count if register & 1 else channel.address
            high, self._high = self._high, not self._high
            return value >> 8 if high else value & 0xFF
        if register == STATUS:
            status, self.status = self.status, self.status & 0xF0
            return status
        return 0xFF

    def write8(self, offset: int, value: int) -> None:
        """The CPU writes a register."""
        register, bit = offset // self.step, value & 3
        match register:
            case _ if register < 8:
                self._load(self.channels[register >> 1], register & 1, value)
            case 0x8:  # COMMAND
                self.command = value
            case 0xA:  # MASK
                self.mask = self.mask & ~(1 << bit) | (value >> 2 & 1) << bit
            case 0xB:  # MODE
                self.channels[bit].mode = value & ~3
            case 0xC:  # CLEAR_FLIP_FLOP
                self._high = False
            case 0xD:  # MASTER_CLEAR
                self._high, self.mask, self.status, self.command = False, 0xF, 0, 0
            case 0xE:  # CLEAR_MASK
                self.mask = 0
            case 0xF:  # WRITE_MASK
                self.mask = value & 0xF

    def _load(self, channel: _Channel, count: int, value: int) -> None:
        """Base and current registers are written together."""
        old = channel.base_count if count else channel.base_address
        new = value << 8 | old & 0xFF if self._high else old & 0xFF00 | value
        self._high = not self._high
        if count:
            channel.count = channel.base_count = new
        else:
            channel.address = channel.base_address = new

    def open(self, bit: int) -> bool:
        """Would a request of channel `bit` be heard?"""
        return not (self.mask >> bit & 1 or self.command & DISABLED)

    def advance(self, bit: int, cycles: int) -> bool:
        """`cycles` are over, no more than the count has. Is this terminal count?"""
        channel = self.channels[bit]
        channel.address = (channel.address + cycles) & 0xFFFF
        channel.count -= cycles
        if channel.count >= 0:
            return False
        channel.count = 0xFFFF
        self.status |= 1 << bit
        if channel.mode & AUTOINITIALISE:
            channel.address, channel.count = channel.base_address, channel.base_count
        else:
            self.mask |= 1 << bit
        return True


class _Pages:
    """The page registers: 16 bytes that can be read and written."""

    def __init__(self) -> None:
        self.values = bytearray(16)

    def read8(self, offset: int) -> int:
        return self.values[offset]

    def write8(self, offset: int, value: int) -> None:
        self.values[offset] = value


class Request:
    """A card's side of its channel. `terminal`: what it moved last ended with terminal count."""

    def __init__(self, controllers: DmaControllers, number: int, master: Memory) -> None:
        self._controllers, self._number, self._master = controllers, number, master
        self.terminal = False

    def store(self, data: bytes) -> int:
        """Move `data` into memory. How many bytes the controller took: fewer at terminal count, none if it is deaf."""
        done = 0
        for address, size, moves in self._cycles(len(data), TO_MEMORY):
            if moves:
                self._master.dma_write(address, data[done : done + size])
            done += size
        return done

    def fetch(self, count: int) -> bytes:
        """Up to `count` bytes from memory: fewer at terminal count, none if the controller is deaf."""
        found = b""
        for address, size, moves in self._cycles(count, FROM_MEMORY):
            found += self._master.dma_read(address, size) if moves else bytes(size)
        return found

    def _cycles(self, count: int, kind: int) -> Iterator[tuple[int, int, bool]]:
        """(address, bytes, does data move) of each run of addresses."""
        controller, page = self._controllers.of(self._number)
        bit, step = self._number & 3, controller.step
        channel = controller.channels[bit]
        self.terminal = False
        count -= count % step
        while count and not self.terminal and self._controllers.heard(self._number):
            if channel.mode & DOWN or channel.mode & KIND not in (kind, VERIFY):
                return  # to a card, acknowledged cycles of the wrong kind are none
            size = min(count, (0x10000 - channel.address) * step, (channel.count + 1) * step)
            address = page << 16 | channel.address * step
            self.terminal = controller.advance(bit, size // step)
            yield address, size, channel.mode & KIND == kind
            count -= size


class DmaControllers:
    """Both controllers at power-on, at their ports of `bus`."""

    def __init__(self, bus: IsaBus) -> None:
        self._controllers = (_Controller(1), _Controller(2))
        self._pages = _Pages()
        self._taken: set[int] = set()
        bus.claim(0x00, 0x10, self._controllers[0])
        bus.claim(0x80, 0x10, self._pages)
        bus.claim(0xC0, 0x20, self._controllers[1])

    def request(self, number: int, master: Memory) -> Request:
        """Wire a card to channel `number`. `master`: through which its bytes go, and by whose name they are counted.

        ConfigurationError: there is no such channel, or it is taken.
        """
        if number not in CHANNELS or number in self._taken:
            free = [each for each in CHANNELS if each not in self._taken]
            raise ConfigurationError(f"DMA channel {number} cannot be wired to a card: choose one of {free}")
        self._taken.add(number)
        return Request(self, number, master)

    def of(self, number: int) -> tuple[_Controller, int]:
        """The controller of a channel, and the bits of its page register that count."""
        controller = self._controllers[number >> 2]
        return controller, self._pages.values[PAGE_PORTS[number]] & ~(controller.step - 1)

    def heard(self, number: int) -> bool:
        """Would a request of that channel be served?"""
        first, second = self._controllers
        if number > 3:
            return second.open(number & 3)
        return first.open(number) and second.open(0) and second.channels[0].mode & CASCADE == CASCADE
