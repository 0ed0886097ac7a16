"""The configuration space of a PCI function: 256 bytes, of which software may write some.

Every bit is read-only, writable, or cleared by writing a one; that is all there is to it. A base address register is
writable above its size only: that is how software learns the size.

Source: PCI Local Bus Specification 3.0, chapter 6 (6.1 header, 6.2.2 command, 6.2.3 status, 6.2.5 base addresses, 6.7
capabilities).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from busdma.errors import ConfigurationError, DriverError
from busdma.machine.handle import Handle32

SIZE: Final = 256

# Registers of every header (6.1)
VENDOR, DEVICE, COMMAND, STATUS, REVISION, CLASS, HEADER = 0x00, 0x02, 0x04, 0x06, 0x08, 0x09, 0x0E
BASE_ADDRESS, CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN = 0x10, 0x34, 0x3C, 0x3D
FIRST_CAPABILITY: Final = 0x40

# Command (6.2.2)
MEMORY_SPACE, BUS_MASTER, INTX_DISABLE = 0x0002, 0x0004, 0x0400
# Status (6.2.3)
INTERRUPT_STATUS, HAS_CAPABILITIES, RECEIVED_MASTER_ABORT = 0x0008, 0x0010, 0x2000

_WIDE: Final = 0b100  # a base address register's type: memory, anywhere in 64 bits (6.2.5.1)
_MOST_BARS: Final = {0: 6, 1: 2}  # by header type


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register for memory: `size` bytes, a power of two from 16 on. `wide`: it takes 64-bit addresses,
    and the next register's place."""

    size: int
    wide: bool = False


class ConfigSpace(Handle32):
    """A function's configuration space at power-on: nothing is enabled, no address assigned. Any thread may call."""

    def __init__(
        self,
        vendor: int,
        device: int,
        class_code: int,
        bars: Mapping[int, Bar],
        *,
        revision: int = 0,
        header: int = 0,
        pin: int = 1,
    ) -> None:
        self._values = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._clearable = bytearray(SIZE)
        self._lock = threading.Lock()
        self._capability_end = FIRST_CAPABILITY
        self.bars = dict(bars)
        self.watchers: list[Callable[[], object]] = []  #: called after software wrote something
        for offset, size, value in (
            (VENDOR, 2, vendor),
            (DEVICE, 2, device),
            (REVISION, 1, revision),
            (CLASS, 3, class_code),
            (HEADER, 1, header),
            (INTERRUPT_PIN, 1, pin),
        ):
            self.define(offset, size, value=value)
        self.define(COMMAND, 2, writable=MEMORY_SPACE | BUS_MASTER | INTX_DISABLE)
        self.define(STATUS, 2, clearable=RECEIVED_MASTER_ABORT)
        self.define(INTERRUPT_LINE, 1, writable=0xFF)
        taken: set[int] = set()
        for number, bar in self.bars.items():
            places = {number, number + bar.wide}
            if min(places) < 0 or max(places) >= _MOST_BARS[header] or places & taken:
                raise ConfigurationError(
                    f"base address register {number} of {vendor:04x}:{device:04x} has no place: there are "
                    f"{_MOST_BARS[header]}, and a wide one takes two"
                )
            if bar.size < 16 or bar.size & (bar.size - 1):
                raise ConfigurationError(
                    f"base address register {number}: {bar.size} bytes, no power of two from 16 on"
                )
            taken |= places
            width = 8 if bar.wide else 4
            mask = ((1 << 8 * width) - 1) & -bar.size
            self.define(BASE_ADDRESS + 4 * number, width, value=_WIDE if bar.wide else 0, writable=mask)

    def define(self, offset: int, size: int, *, value: int = 0, writable: int = 0, clearable: int = 0) -> None:
        """What the `size` bytes at `offset` are: the value at power-on, and masks of the bits that can be changed."""
        span = slice(offset, offset + size)
        self._values[span] = value.to_bytes(size, "little")
        self._writable[span] = writable.to_bytes(size, "little")
        self._clearable[span] = clearable.to_bytes(size, "little")

    def add_capability(self, kind: int, size: int) -> int:
        """A place for a capability of `size` bytes, with its first two filled in, at the end of the list."""
        last, at = CAPABILITIES, self._capability_end
        while found := self._values[last]:
            last = found + 1
        self._capability_end = -(-(at + size) // 4) * 4
        self.define(at, 1, value=kind)
        self._values[last] = at
        self.signal(HAS_CAPABILITIES)
        return at

    def base(self, number: int) -> int:
        """The address in base address register `number`."""
        bar = self.bars[number]
        return self.peek(BASE_ADDRESS + 4 * number, 8 if bar.wide else 4) & -bar.size

    def command(self, bit: int) -> bool:
        """True if software has set `bit` of the command register."""
        return bool(self.peek(COMMAND, 2) & bit)

    def peek(self, offset: int, size: int) -> int:
        """Device side: the value of `size` bytes."""
        return int.from_bytes(self._values[offset : offset + size], "little")

    def signal(self, bit: int, on: bool = True) -> None:
        """Device side: set or clear `bit` of the status register."""
        with self._lock:
            status = self.peek(STATUS, 2)
            self._values[STATUS : STATUS + 2] = (status | bit if on else status & ~bit).to_bytes(2, "little")

    def _read(self, offset: int, size: int) -> int:
        _check(offset, size)
        return self.peek(offset, size)

    def _write(self, offset: int, size: int, value: int) -> None:
        _check(offset, size)
        if not 0 <= value < 1 << 8 * size:
            raise DriverError(f"cannot write {value:#x} to the {size} bytes of configuration space at {offset:#x}")
        with self._lock:
            for at, byte in enumerate(value.to_bytes(size, "little"), offset):
                kept = self._values[at] & ~self._writable[at] & ~(self._clearable[at] & byte)
                self._values[at] = kept | (byte & self._writable[at])
        for changed in self.watchers:
            changed()


def _check(offset: int, size: int) -> None:
    if offset < 0 or offset % size or offset + size > SIZE:
        raise DriverError(
            f"configuration space has {SIZE} bytes, and {size} of them at {offset:#x} are not one register of it"
        )
