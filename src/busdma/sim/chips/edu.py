"""The edu device of QEMU, by its description: a factorial unit, and a DMA engine with a buffer of 4096 bytes.

The engine moves up to 4096 bytes between its buffer and memory, in one access, and takes as long as QEMU's for it. The
data moves at the end of that time: who looks too early finds nothing, and who takes memory away too early is written
over. The device drives only some of its address lines, 28 unless told otherwise: the upper bits of an address are lost.

Source: QEMU, docs/specs/edu.rst ("EDU device"). What it leaves open, and what this model does: registers cannot be
written while the engine runs; a transfer that leaves the buffer moves nothing, is counted, and ends like any other;
a read that no register answers gives ones; the factorial unit raises interrupt 1, and computes modulo 2**32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from busdma.errors import ConfigurationError, DeviceFault
from busdma.sim.bus.pci_config import Bar
from busdma.sim.wiring import CallAt, Memory, Pin

ID, LIVENESS, FACTORIAL, STATUS, IRQ_STATUS, IRQ_RAISE, IRQ_ACK = 0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
COMPUTING, FACTORIAL_IRQ = 0x01, 0x80  # status
START, FROM_DEVICE, DMA_IRQ = 0x01, 0x02, 0x04  # DMA command

VERSION: Final = 0x0100_00ED  #: major 1, minor 0, and the "edu" of 0xRRrr00edu
BUFFER: Final = 0x40000  #: where the buffer lies, in the device's own addresses
BUFFER_SIZE: Final = 4096
FACTORIAL_DONE, DMA_DONE = 0x001, 0x100  #: bits of the interrupt status

#: Virtual time, in ns.
DMA_TIME: Final = 100_000_000  #: QEMU's, for a transfer of any length
MULTIPLY_TIME: Final = 100

_ALWAYS_ZERO: Final = 34  # from here on a factorial is a multiple of 2**32


class Edu:
    """The device at power-on: a `busdma.sim.bus.pci.PciFunction`. `address_bits`: how many address lines it drives.

    `call_at` and `now` are the machine's clock, in ns; what is called must hold the bus's lock.
    """

    vendor = 0x1234
    device = 0x11E8
    class_code = 0x00FF00
    bars: Mapping[int, Bar] = {0: Bar(1 << 20)}

    def __init__(
        self,
        master: Memory,
        pin: Pin,
        call_at: CallAt,
        now: Callable[[], int],
        *,
        address_bits: int = 28,
        dma_time: int = DMA_TIME,
    ) -> None:
        if not 12 <= address_bits <= 64 or dma_time < 0:
            raise ConfigurationError(
                f"an edu with {address_bits} address lines and {dma_time} ns a transfer: give 12 to 64, and 0 or more"
            )
        self._master = master
        self._raise, self._lower = pin.assert_, pin.deassert
        self._call_at, self._now = call_at, now
        self._mask = (1 << address_bits) - 1
        self._dma_time = dma_time
        self._buffer = bytearray(BUFFER_SIZE)
        self._registers = dict.fromkeys((LIVENESS, FACTORIAL, STATUS, IRQ_STATUS, DMA_SOURCE, DMA_DESTINATION), 0)
        self._registers |= {ID: VERSION, DMA_COUNT: 0, DMA_COMMAND: 0}
        self._stuck = False
        self._counts = {"transfers": 0, "truncated": 0, "refused": 0, "faults": 0}

    def inject_stuck_transfer(self) -> None:
        """The next transfer never ends."""
        self._stuck = True

    def statistics(self) -> dict[str, int]:
        """Transfers made; addresses that lost bits; transfers outside the buffer; and those that the bus refused."""
        return dict(self._counts)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, bar: int, offset: int, size: int) -> int:
        """As `busdma.sim.bus.pci.PciFunction.read`: 32 bits below 0x80, 32 or 64 from there on."""
        if not _legal(offset, size) or offset not in self._registers:
            return (1 << 8 * size) - 1
        return self._registers[offset] & ((1 << 8 * size) - 1)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """As `busdma.sim.bus.pci.PciFunction.write`. A 32-bit write clears the upper half of a DMA register."""
        if not _legal(offset, size):
            return
        registers = self._registers
        match offset:
            case 0x04:  # LIVENESS
                registers[LIVENESS] = ~value & 0xFFFF_FFFF
            case 0x08:  # FACTORIAL
                if not registers[STATUS] & COMPUTING:
                    registers[STATUS] |= COMPUTING
                    steps = min(value, _ALWAYS_ZERO)
                    self._call_at(self._now() + steps * MULTIPLY_TIME, lambda: self._computed(steps))
            case 0x20:  # STATUS: the other bits are read-only
                registers[STATUS] = (registers[STATUS] & ~FACTORIAL_IRQ) | (value & FACTORIAL_IRQ)
            case 0x60:  # IRQ_RAISE
                self._interrupt(value)
            case 0x64:  # IRQ_ACK
                registers[IRQ_STATUS] &= ~value
                if not registers[IRQ_STATUS]:
                    self._lower()
            case 0x80 | 0x88 | 0x90 | 0x98:  # the DMA engine's
                if registers[DMA_COMMAND] & START:
                    return
                registers[offset] = value
                if registers[DMA_COMMAND] & START:
                    if self._stuck:
                        self._stuck = False
                    else:
                        self._call_at(self._now() + self._dma_time, self._move)

    def _interrupt(self, bits: int) -> None:
        self._registers[IRQ_STATUS] |= bits
        if self._registers[IRQ_STATUS]:
            self._raise()

    def _computed(self, steps: int) -> None:
        registers = self._registers
        result = 1
        for factor in range(2, steps + 1):
            result = result * factor & 0xFFFF_FFFF
        registers[FACTORIAL] = result
        registers[STATUS] &= ~COMPUTING
        if registers[STATUS] & FACTORIAL_IRQ:
            self._interrupt(FACTORIAL_DONE)

    # -- the DMA engine -----------------------------------------------------------------------------------------------

    def _move(self) -> None:
        registers, command = self._registers, self._registers[DMA_COMMAND]
        outward = bool(command & FROM_DEVICE)
        address, own = registers[DMA_DESTINATION], registers[DMA_SOURCE]
        if not outward:
            address, own = own, address
        at, count = own - BUFFER, registers[DMA_COUNT]
        self._counts["transfers"] += 1
        if at < 0 or at + count > BUFFER_SIZE:
            self._counts["refused"] += 1
        else:
            if address & ~self._mask:
                self._counts["truncated"] += 1
            try:
                if outward:
                    self._master.dma_write(address & self._mask, self._buffer[at : at + count])
                else:
                    self._buffer[at : at + count] = self._master.dma_read(address & self._mask, count)
            except DeviceFault:  # it has no way to tell
                self._counts["faults"] += 1
        registers[DMA_COMMAND] &= ~START
        if command & DMA_IRQ:
            self._interrupt(DMA_DONE)


def _legal(offset: int, size: int) -> bool:
    return size == 4 or (size == 8 and offset >= 0x80)
