"""The DMA engine beside a 53C9x on SBus, "espdma": an address counter of 24 bits, and a register that packs words.

Registers of 32 bits, at offsets 0x0 control and status, 0x4 address, 0x8 byte count, 0xC test (kept, and without
effect). Bits of the control and status register:

=====  ==========================  =====  ==================================
0      interrupt pending           8      write memory (else read it)
1      error pending               9      enable DMA
2, 3   bytes in the pack register  13     enable the byte count
4      interrupts enabled          14     terminal count: byte count reached 0
5      flush: forget those bytes   28-31  8: which engine this is
6      drain: write them
7      reset, also of the chip
=====  ==========================  =====  ==================================

Only the lower 24 bits of the address count: the engine **cannot leave a 16 MiB section**, and goes on at its beginning.
Bytes for memory are gathered in the pack register and written as whole words of 4 bytes. What does not fill a word
stays there, also when the transfer is over, until it is drained; memory is stale until then. A new address forgets it.

Source: LSI Logic L64853 SBus DMA controller, D channel: its control and status register as the drivers of the time have
it. What that leaves open, and what this model does: draining takes no longer than the access that starts it; the
terminal count does not interrupt; an error stops the engine until a flush or reset. The later L64854, whose id is 10,
drains by itself when registers are read; this one does not.
"""

from __future__ import annotations

from typing import Final

from busdma.errors import DeviceFault
from busdma.sim.scsi.ncr53c9x import Ncr53c9x
from busdma.sim.wiring import Memory, Pin

CSR, ADDRESS, COUNT, TEST = 0x0, 0x4, 0x8, 0xC

INTERRUPT_PENDING, ERROR_PENDING, PACKED, INTERRUPT_ENABLE = 0x0001, 0x0002, 0x000C, 0x0010
FLUSH, DRAIN, RESET, WRITE_MEMORY, ENABLE = 0x0020, 0x0040, 0x0080, 0x0100, 0x0200
ENABLE_COUNT, TERMINAL_COUNT = 0x2000, 0x4000
DEVICE_ID: Final = 0x8000_0000

SECTION: Final = 1 << 24  #: what the address counter spans
WORD: Final = 4

_KEPT: Final = INTERRUPT_ENABLE | RESET | WRITE_MEMORY | ENABLE | ENABLE_COUNT


class EspDma:
    """The engine of `chip` at power-on, and where the chip's interrupt goes.

    It is a `busdma.sim.scsi.ncr53c9x_layout.DmaEngine`. `pin` is the interrupt of both.
    The caller holds the bus's lock around register accesses.
    """

    def __init__(self, master: Memory, chip: Ncr53c9x, pin: Pin) -> None:
        self._master, self._chip = master, chip
        self._raise, self._lower = pin.assert_, pin.deassert
        self._control = self._address = self._count = self._test = 0
        self._packed = b""
        self._chip_asserts = self._error = self._ended = False
        self._counts = dict.fromkeys(("drained", "forgotten", "wrapped", "faults"), 0)
        chip.attach(self, self)

    def statistics(self) -> dict[str, int]:
        """Words drained; packed bytes that were never written; transfers that wrapped; accesses the bus refused."""
        return dict(self._counts)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        """Read a register; what is none reads as 0."""
        if offset == CSR:
            return (
                DEVICE_ID
                | self._control
                | (INTERRUPT_PENDING if self._chip_asserts else 0)
                | (ERROR_PENDING if self._error else 0)
                | (TERMINAL_COUNT if self._ended else 0)
                | len(self._packed) << 2
            )
        return {ADDRESS: self._address, COUNT: self._count, TEST: self._test}.get(offset, 0)

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""
        if offset == CSR:
            self._write_control(value)
        elif offset == ADDRESS:
            self._forget()
            self._address = value
        elif offset == COUNT:
            self._count = value & (SECTION - 1)
        elif offset == TEST:
            self._test = value

    def _write_control(self, value: int) -> None:
        self._control = value & _KEPT
        if value & DRAIN:
            self._drain()
        if value & (FLUSH | RESET):
            self._forget()
            self._error = self._ended = False
        if value & RESET:
            self._control = RESET
            self._chip.hardware_reset()
        self._update()
        if self.room():
            self._chip.kick()

    def _forget(self) -> None:
        self._counts["forgotten"] += len(self._packed)
        self._packed = b""

    def _drain(self) -> None:
        if self._packed:
            self._counts["drained"] += 1
            packed, self._packed = self._packed, b""
            self._move(self._before(len(packed)), len(packed), packed)

    # -- interrupts: the chip's pin goes through here -----------------------------------------------------------------

    def assert_(self) -> None:
        """The chip asks for an interrupt."""
        self._chip_asserts = True
        self._update()

    def deassert(self) -> None:
        """It does no longer."""
        self._chip_asserts = False
        self._update()

    def _update(self) -> None:
        if self._control & INTERRUPT_ENABLE and (self._chip_asserts or self._error):
            self._raise()
        else:
            self._lower()

    # -- what the chip asks for: `busdma.sim.scsi.ncr53c9x_layout.DmaEngine` ------------------------------------------

    @property
    def inward(self) -> bool:
        """True if the engine writes memory."""
        return bool(self._control & WRITE_MEMORY)

    def room(self) -> int:
        """Bytes that it can move now."""
        if not self._control & ENABLE or self._error or self._ended:
            return 0
        return (self._count or SECTION) if self._control & ENABLE_COUNT else SECTION

    def store(self, data: bytes) -> None:
        """Pack bytes, and write the whole words."""
        begin = self._before(len(self._packed))
        data = self._packed + data
        self._step(len(data) - len(self._packed))
        whole = max(len(data) - self._address % WORD, 0)
        self._packed = data[whole:]
        self._move(begin, whole, data[:whole])

    def fetch(self, count: int) -> bytes:
        """Read memory; nothing if the bus refuses it."""
        begin = self._address
        data = self._move(begin, count, None)
        self._step(len(data))
        return data

    def _before(self, count: int) -> int:
        """The address `count` bytes before the counter."""
        return self._address & -SECTION | (self._address - count) % SECTION

    def _step(self, count: int) -> None:
        self._address = self._before(-count)
        if self._control & ENABLE_COUNT and count:
            self._count = (self._count - count) % SECTION
            self._ended = not self._count

    def _move(self, address: int, count: int, data: bytes | None) -> bytes:
        """Write `data`, or read `count` bytes: one access, or two where the counter wraps."""
        here = min(count, SECTION - address % SECTION)
        self._counts["wrapped"] += here < count
        found = bytearray()
        try:
            for at, begin, end in ((address, 0, here), (address & -SECTION, here, count)):
                if data is not None and end > begin:
                    self._master.dma_write(at, data[begin:end])
                elif end > begin:
                    found += self._master.dma_read(at, end - begin)
        except DeviceFault:
            self._counts["faults"] += 1
            self._error = True
            self._update()
        return bytes(found)
