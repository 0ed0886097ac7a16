"""A Bt848 frame grabber, by its data sheet: a video decoder, a FIFO, and a RISC engine that is a bus master.

The engine fetches its program from memory, instruction by instruction, and the program says where each line goes, when
the engine waits for the video and when it interrupts. It runs for ever, whether anybody looks or not.

Source: Brooktree (Conexant), "Bt848/848A/849A Single-Chip Video Capture for PCI" data sheet, whose sections are named
beside the code. Reduced to what continuous capture needs:

* Of the decoder: the size of the picture (crop, without scaling), which fields are captured, and grey pixels of one
  byte (Y8); in another colour format no pixel reaches the FIFO.
* Of the engine: WRITE, SKIP, JUMP and SYNC. Other instructions are illegal. Byte enables are not looked at.
* The engine takes no time, so the FIFO never overflows; a program that runs in circles without waiting for video goes
  through LEASH instructions for each thing that arrives.
* Where the program and the video do not fit, an instruction that finds no pixels does nothing, FDSR is set, and the
  next SYNC brings them together again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from struct import unpack
from typing import Final, NamedTuple

from busdma.errors import DeviceFault
from busdma.sim.bus.pci_config import Bar
from busdma.sim.chips.camera import LINES, PIXELS, Camera
from busdma.sim.wiring import CallAt, Memory, Pin

# "Local Registers"
DSTATUS, SRESET, COLOR_FMT, CAP_CTL = 0x000, 0x07C, 0x0D4, 0x0DC
CROP, VACTIVE_LO, HACTIVE_LO, ODD = 0x00C, 0x014, 0x01C, 0x080  # of the even field; the odd field's are ODD higher
INT_STAT, INT_MASK, GPIO_DMA_CTL, RISC_STRT_ADD, RISC_COUNT = 0x100, 0x104, 0x10C, 0x114, 0x120
PRESENT, LOCKED, EVEN_FIELD = 0x80, 0x40, 0x20  # DSTATUS
Y8: Final = 0x66  # COLOR_FMT, for both fields
CAPTURE_EVEN, CAPTURE_ODD = 0x1, 0x2  # CAP_CTL
FIFO_ENABLE, RISC_ENABLE = 0x1, 0x2  # GPIO_DMA_CTL
VSYNC, RISCI, FDSR, PABORT, OCERR = 1 << 1, 1 << 11, 1 << 14, 1 << 17, 1 << 18  # INT_STAT
FIELD, RISC_EN = 1 << 24, 1 << 27
CAUSES: Final = 0x000F_FFFF  #: the bits of INT_STAT that writing a one clears

# "RISC Instructions"
WRITE, SKIP, JUMP, SYNC = 0x1, 0x2, 0x7, 0x8
SOL, EOL, IRQ, RESYNC = 1 << 27, 1 << 26, 1 << 24, 1 << 15
FM1, VRE, VRO = 0x6, 0x4, 0xC  #: sync codes: packed pixels follow; an even, an odd field has ended
PIXEL: Final = 0x0  #: and what is none: pixels
LEASH: Final = 1024

_AT_RESET: Final[Mapping[int, int]] = {
    CROP: 0x12,  # 640 by 480
    HACTIVE_LO: 0x80,
    VACTIVE_LO: 0xE0,
    CROP + ODD: 0x12,
    HACTIVE_LO + ODD: 0x80,
    VACTIVE_LO + ODD: 0xE0,
    COLOR_FMT: 0,
    CAP_CTL: 0,
    INT_MASK: 0,
    GPIO_DMA_CTL: 0,
    RISC_STRT_ADD: 0,
}


class Item(NamedTuple):
    """What is in the FIFO: a sync code, or a line of pixels."""

    code: int
    pixels: bytes = b""


class Bt848:
    """The device at power-on, with a camera at its input: a `busdma.sim.bus.pci.PciFunction`.

    `call_at` and `now` are the machine's clock, in ns; what is called must hold the bus's lock.
    """

    vendor = 0x109E
    device = 0x0350
    class_code = 0x040000
    bars: Mapping[int, Bar] = {0: Bar(4096)}

    def __init__(
        self,
        master: Memory,
        pin: Pin,
        call_at: CallAt,
        now: Callable[[], int],
        camera: Camera | None = None,
    ) -> None:
        self.camera = Camera() if camera is None else camera
        self._master = master
        self._raise, self._lower = pin.assert_, pin.deassert
        self._call_at, self._now = call_at, now
        self._watching = 0  # numbers the times that the FIFO was enabled: timers of earlier ones are stale
        self._counts = dict.fromkeys(("fields", "lines", "bytes", "instructions", "resyncs", "faults"), 0)
        self._reset()

    def statistics(self) -> dict[str, int]:
        """Fields seen; lines and bytes written to memory; instructions executed; FDSR; halts of the engine."""
        return dict(self._counts)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, bar: int, offset: int, size: int) -> int:
        """As `busdma.sim.bus.pci.PciFunction.read`: 32 bits; zero where nothing is modelled."""
        if size != 4:
            return (1 << 8 * size) - 1
        if offset == DSTATUS:
            seen = PRESENT | LOCKED if self.camera.signal else 0
            return seen | (EVEN_FIELD if self._field % 2 else 0)
        if offset == INT_STAT:
            odd = 0 if self._field % 2 else FIELD
            return self._status << 28 | (RISC_EN if self._running else 0) | odd | self._causes
        if offset == RISC_COUNT:
            return self._pc
        return self._registers.get(offset, 0)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """As `busdma.sim.bus.pci.PciFunction.write`."""
        if size != 4:
            return
        if offset == SRESET:
            self._reset()
            self._signal()
        elif offset == INT_STAT:
            self._causes &= ~(value & CAUSES)
            self._signal()
        elif offset in self._registers:
            before, self._registers[offset] = self._registers[offset], value
            if offset == INT_MASK:
                self._signal()
            elif offset == GPIO_DMA_CTL:
                self._control(value & ~before, before & ~value)

    def _reset(self) -> None:
        self._registers = dict(_AT_RESET)
        self._fifo: deque[Item] = deque()
        self._running = False
        self._pc = self._status = self._causes = 0
        self._at = 0  # pixels of the first line in the FIFO that are gone
        self._field = 0
        self._watching += 1

    def _control(self, on: int, off: int) -> None:
        """Bits of GPIO_DMA_CTL have changed ("GPIO and DMA Control Register")."""
        if off & FIFO_ENABLE:
            self._watching += 1
            self._fifo.clear()
            self._at = 0
        if off & RISC_ENABLE:
            self._running = False
        if on & RISC_ENABLE:
            self._pc, self._running, self._status = self._registers[RISC_STRT_ADD], True, 0
        if on & FIFO_ENABLE:
            self._watching += 1
            self._expect(self.camera.field_at(self._now()))
        self._execute()

    def _interrupt(self, cause: int) -> None:
        self._causes |= cause
        self._signal()

    def _signal(self) -> None:
        if self._causes & self._registers[INT_MASK]:
            self._raise()
        else:
            self._lower()

    # -- the decoder --------------------------------------------------------------------------------------------------

    def _size(self, field: int) -> tuple[int, int]:
        """Pixels of a line, and lines of the field ("Video Timing Unit": crop, vertical and horizontal active)."""
        bank = 0 if field % 2 else ODD
        crop = self._registers[CROP + bank]
        pixels = self._registers[HACTIVE_LO + bank] & 0xFF | (crop & 0x03) << 8
        lines = self._registers[VACTIVE_LO + bank] & 0xFF | (crop & 0x30) << 4
        return min(pixels, PIXELS), min(lines, LINES) // 2

    def _expect(self, field: int) -> None:
        watching = self._watching
        self._call_at(self.camera.field_begins(field), lambda: self._field_begins(watching, field))

    def _field_begins(self, watching: int, field: int) -> None:
        if watching != self._watching:
            return
        if self.camera.signal:
            self._field = field
            self._counts["fields"] += 1
            self._interrupt(VSYNC)
            self._arrived(Item(VRO if field % 2 else VRE))
            wanted = CAPTURE_EVEN if field % 2 else CAPTURE_ODD
            if self._registers[CAP_CTL] & wanted and self._registers[COLOR_FMT] == Y8 and self._size(field)[1]:
                self._arrived(Item(FM1))
                self._call_at(self.camera.line_ends(field, 0), lambda: self._line(watching, field, 0))
        if watching == self._watching:
            self._expect(field + 1)

    def _line(self, watching: int, field: int, index: int) -> None:
        if watching != self._watching or not self.camera.signal:
            return
        pixels, lines = self._size(field)
        self._arrived(Item(PIXEL, self.camera.send(field, index, pixels)))
        if index + 1 < lines:
            self._call_at(self.camera.line_ends(field, index + 1), lambda: self._line(watching, field, index + 1))

    def _arrived(self, item: Item) -> None:
        if self._running:  # otherwise the FIFO only ever runs over
            self._fifo.append(item)
            self._execute()

    # -- the RISC engine ----------------------------------------------------------------------------------------------

    def _execute(self) -> None:
        """Go through the program until it needs what the FIFO does not have yet ("DMA Controller")."""
        for _ in range(LEASH):
            if not self._running:
                return
            try:
                if not self._step():
                    return
            except DeviceFault:  # the bus refuses the engine
                self._halt(PABORT)

    def _step(self) -> bool:
        """One instruction; False: it has to wait for the FIFO."""
        word = self._fetch(self._pc)
        code, after = word >> 28, self._pc + 8
        if self._pc & 3 or code not in (WRITE, SKIP, JUMP, SYNC):
            self._halt(OCERR)
            return False
        if code == JUMP:
            after = self._fetch(self._pc + 4)
        elif code == SYNC:
            if not self._synced(word):
                return False
        else:
            if not self._fifo:
                return False
            if code == SKIP:
                after = self._pc + 4
            self._take(word, None if code == SKIP else self._fetch(self._pc + 4))
        self._pc = after & 0xFFFF_FFFF
        self._counts["instructions"] += 1
        self._status = self._status & ~(word >> 20) | word >> 16 & 0xF
        if word & IRQ:
            self._interrupt(RISCI)
        return True

    def _fetch(self, address: int) -> int:
        (word,) = unpack("<I", self._master.dma_read(address, 4))
        return int(word)

    def _synced(self, word: int) -> bool:
        """SYNC: drop what is in the FIFO up to its sync code; without RESYNC, what was dropped is a mismatch."""
        while self._fifo:
            item = self._fifo.popleft()
            self._at = 0
            if item.code == word & 0xF and item.code != PIXEL:
                return True
            if not word & RESYNC:
                self._mismatch()
        return False

    def _take(self, word: int, address: int | None) -> None:
        """WRITE, and without an address SKIP: so many pixels of the line at the head of the FIFO."""
        code, pixels = self._fifo[0]
        if code != PIXEL or bool(word & SOL) != (self._at == 0):
            self._mismatch()
            if code != PIXEL:
                return
        count = word & 0xFFF
        part = pixels[self._at : self._at + count]
        if address is not None and part:
            self._master.dma_write(address, part)
            self._counts["bytes"] += len(part)
        self._at += len(part)
        if len(part) < count or (word & EOL and self._at < len(pixels)):
            self._mismatch()
        if word & EOL:
            self._counts["lines"] += address is not None
            self._fifo.popleft()
            self._at = 0

    def _mismatch(self) -> None:
        self._counts["resyncs"] += 1
        self._interrupt(FDSR)

    def _halt(self, cause: int) -> None:
        self._counts["faults"] += 1
        self._running = False
        self._interrupt(cause)
