"""The AMD Am53C974: a 53C9x on PCI with a DMA engine of its own.

Base address register 0, 128 bytes of memory space (the part itself has them in I/O space): the chip's 16 registers of
8 bits at 4*n, and the engine's of 32 bits:

====  ======================  ====  ==========================================
0x40  command                 0x54  status
0x44  starting count, 24 bit  0x58  starting address of the descriptor list
0x48  starting address        0x5C  working address in it
0x4C  working count           0x70  SCSI bus and control: bit 24, see status
0x50  working address
====  ======================  ====  ==========================================

Bits 0 and 1 of the command: 0 idle, 1 blast, 2 abort, 3 start; bit 6: the engine's own interrupts; bit 7: to memory.
Status: 0x02 error, 0x04 aborted, 0x08 done, 0x10 the chip's interrupt, 0x20 blast complete; reading it clears error,
aborted and done, or writing ones does if bit 24 of the control register is set.

Between chip and bus is a FIFO. Bytes for memory leave it in bursts of 64, and at the end of the count. What remains of
a transfer that ends early, as the target has no more or disconnects, **stays there until a blast**; idle, abort and
start forget it.

Source: AMD Am53C974 PCSCSI technical manual (bus mastering DMA registers, DMA programming sequences). What it leaves
open, and what this model does: a blast takes no time; memory descriptor lists are not modelled: a start with one is an
error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from busdma.errors import DeviceFault
from busdma.sim.bus.pci_config import Bar
from busdma.sim.scsi.ncr53c9x import Ncr53c9x
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.wiring import CallAt, Memory, Pin

COMMAND, COUNT, ADDRESS, WORKING_COUNT, WORKING_ADDRESS = 0x40, 0x44, 0x48, 0x4C, 0x50
STATUS, LIST, WORKING_LIST, CONTROL = 0x54, 0x58, 0x5C, 0x70

# Command
IDLE, BLAST, ABORT, START = 0, 1, 2, 3
DESCRIPTORS, INTERRUPT_ENABLE, TO_MEMORY = 0x10, 0x40, 0x80
# Status
ERROR, ABORTED, DONE, CHIP_INTERRUPT, BLAST_COMPLETE = 0x02, 0x04, 0x08, 0x10, 0x20
PRESERVE: Final = 1 << 24  # control

CHIP_ID: Final = 0x12
BURST: Final = 64  #: bytes: 16 words of 32 bits

_ENDS: Final = ERROR | ABORTED | DONE


class Am53c974:
    """The device at power-on: a `busdma.sim.bus.pci.PciFunction`, and the `DmaEngine` of the chip in it, `chip`.

    `call_at` and `now` are the machine's clock, in ns; what is called must hold the bus's lock. `byte` and `burst` are
    as for `Ncr53c9x`.
    """

    vendor = 0x1022
    device = 0x2020
    class_code = 0x010000
    bars: Mapping[int, Bar] = {0: Bar(128)}

    def __init__(
        self,
        master: Memory,
        pin: Pin,
        call_at: CallAt,
        now: Callable[[], int],
        *,
        targets: Mapping[int, ScsiTarget],
        initiator: int = 7,
        byte: int = 200,
        burst: int = 0,
    ) -> None:
        self._master = master
        self._raise, self._lower = pin.assert_, pin.deassert
        writable = (COMMAND, COUNT, ADDRESS, LIST, CONTROL)
        self._registers = dict.fromkeys((*writable, WORKING_COUNT, WORKING_ADDRESS, STATUS, WORKING_LIST), 0)
        self._writable = frozenset(writable)
        self._fifo = b""
        self._running = self._chip_asserts = self._level = False
        self._counts = dict.fromkeys(("transfers", "blasts", "forgotten", "faults"), 0)
        self.chip = Ncr53c9x(
            self, call_at, now, targets=targets, initiator=initiator, clock_mhz=40, wide_counter=True,
            chip_id=CHIP_ID, byte=byte, burst=burst,
        )  # fmt: skip
        self.chip.attach(self)

    def statistics(self) -> dict[str, int]:
        """Transfers started; blasts; bytes for memory that never got there; accesses that the bus refused."""
        return {**self._counts, **self.chip.statistics()}

    # -- registers: `busdma.sim.bus.pci.PciFunction` ------------------------------------------------------------------

    def read(self, bar: int, offset: int, size: int) -> int:
        """As `PciFunction.read`; what is no register reads as 0."""
        if offset < COMMAND:
            return self.chip.read(offset // 4) if offset % 4 == 0 else 0
        register = offset & ~3
        value = self._registers.get(register, 0)
        if register == STATUS:
            value |= CHIP_INTERRUPT if self._chip_asserts else 0
            if not self._registers[CONTROL] & PRESERVE:
                self._registers[STATUS] &= ~_ENDS
                self._update()
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """As `PciFunction.write`."""
        register, shift = offset & ~3, 8 * (offset & 3)
        if offset < COMMAND:
            if offset % 4 == 0:
                self.chip.write(offset // 4, value & 0xFF)
        elif register == STATUS:
            if self._registers[CONTROL] & PRESERVE:
                self._registers[STATUS] &= ~(value << shift & _ENDS)
        elif register in self._writable:
            mask = (1 << 8 * size) - 1 << shift
            value = (self._registers[register] & ~mask | value << shift & mask) & 0xFFFF_FFFF
            self._registers[register] = value & 0xFF_FFFF if register == COUNT else value
            if register == COMMAND:
                self._execute(value)
        self._update()

    def _execute(self, command: int) -> None:
        registers = self._registers
        code = command & 3
        if code == BLAST:
            self._counts["blasts"] += 1
            self._write_out(len(self._fifo))
            registers[STATUS] |= BLAST_COMPLETE
            return
        self._counts["forgotten"] += len(self._fifo)
        self._fifo = b""
        self._running = code == START
        if code == ABORT:
            registers[STATUS] |= ABORTED
        elif code == START:
            self._counts["transfers"] += 1
            registers[STATUS] = 0
            registers[WORKING_COUNT], registers[WORKING_ADDRESS] = registers[COUNT], registers[ADDRESS]
            registers[WORKING_LIST] = registers[LIST]
            if command & DESCRIPTORS:
                self._end(ERROR)
            else:
                self.chip.kick()

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
        own = self._registers[COMMAND] & INTERRUPT_ENABLE and self._registers[STATUS] & _ENDS
        level = bool(self._chip_asserts or own)
        if level != self._level:
            self._level = level
            (self._raise if level else self._lower)()

    # -- what the chip asks for: `busdma.sim.scsi.ncr53c9x_layout.DmaEngine` ------------------------------------------

    @property
    def inward(self) -> bool:
        """True if the engine writes memory."""
        return bool(self._registers[COMMAND] & TO_MEMORY)

    def room(self) -> int:
        """Bytes that it can move now."""
        return self._registers[WORKING_COUNT] - len(self._fifo) if self._running else 0

    def store(self, data: bytes) -> None:
        """Take bytes into the FIFO; whole bursts leave it, and the end of the count does."""
        self._fifo += data
        whole = len(self._fifo) // BURST * BURST
        self._write_out(whole if self.room() else len(self._fifo))

    def fetch(self, count: int) -> bytes:
        """Read memory: one access; nothing if the bus refuses it."""
        if not count:
            return b""
        try:
            data = self._master.dma_read(self._registers[WORKING_ADDRESS], count)
        except DeviceFault:
            self._fault()
            return b""
        self._moved(count)
        return data

    def _write_out(self, count: int) -> None:
        """Write the first bytes of the FIFO to memory: one access."""
        if not count:
            return
        data, self._fifo = self._fifo[:count], self._fifo[count:]
        try:
            self._master.dma_write(self._registers[WORKING_ADDRESS], data)
        except DeviceFault:
            self._fault()
        else:
            self._moved(count)

    def _moved(self, count: int) -> None:
        registers = self._registers
        registers[WORKING_ADDRESS] = registers[WORKING_ADDRESS] + count & 0xFFFF_FFFF
        registers[WORKING_COUNT] -= count
        if not registers[WORKING_COUNT]:
            self._end(DONE)

    def _fault(self) -> None:
        self._counts["faults"] += 1
        self._end(ERROR)

    def _end(self, how: int) -> None:
        self._running = False
        self._registers[STATUS] |= how
        self._update()
