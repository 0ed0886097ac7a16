"""The registers of a 53C9x, and the little that is done with several of them at once.

The transfer counter has 16 bits, or 24 where the chip has its extra features; a count of 0 is the largest one. Between
an interrupt and the read of its cause, status and sequence step stay as they are; that read clears all three.

Sources: AMD Am53C94/Am53C96 data sheet (16506), "Register Description" and "Command Description", which agrees with
NCR's 53C94/95/96 data manual; for 24 bits and the features, AMD Am53CF94/Am53CF96 (17348), Am53C974 data sheet.
"""

from __future__ import annotations

from typing import Final

from busdma.errors import ConfigurationError, DeviceFault
from busdma.machine.attachment import Registers

# registers, by number
COUNT_LOW, COUNT_MIDDLE, FIFO, COMMAND = 0x0, 0x1, 0x2, 0x3
STATUS, CAUSE, STEP, FIFO_FLAGS = 0x4, 0x5, 0x6, 0x7  # read
DESTINATION, TIMEOUT, PERIOD, OFFSET = 0x4, 0x5, 0x6, 0x7  # write
CONFIG_1, CLOCK, CONFIG_2, CONFIG_3, COUNT_HIGH = 0x8, 0x9, 0xB, 0xC, 0xE

# STATUS
INTERRUPT, GROSS_ERROR, PARITY_ERROR, COUNTED_OUT, PHASE = 0x80, 0x40, 0x20, 0x10, 0x07
# CAUSE of the interrupt
SCSI_RESET, ILLEGAL_COMMAND, DISCONNECTED, SERVICE, SUCCESS, RESELECTED, SELECTED = 0x80, 0x40, 0x20, 0x10, 8, 4, 3
STEP_BITS: Final = 0x07
FIFO_COUNT: Final = 0x1F  # FIFO_FLAGS
# CONFIG_1, CONFIG_2
CHECK_PARITY, QUIET_RESET = 0x10, 0x40
SCSI_2, FEATURES = 0x08, 0x40

# SCSI bus phases, as STATUS has them: MSG, C/D, I/O
DATA_OUT, DATA_IN, COMMAND_PHASE, STATUS_PHASE, MESSAGE_OUT, MESSAGE_IN = 0, 1, 2, 3, 6, 7

# COMMAND; with DMA, the transfer counter and the engine come in
NOTHING, FLUSH_FIFO, RESET_CHIP, RESET_BUS = 0x00, 0x01, 0x02, 0x03
TRANSFER, COMPLETE, ACCEPT_MESSAGE, PAD, SET_ATN = 0x10, 0x11, 0x12, 0x18, 0x1A
SELECT_ATN, SELECT_ATN_STOP, ENABLE_RESELECTION = 0x42, 0x43, 0x44
DMA: Final = 0x80

SELECTION_TIME: Final = 250  #: ms, that SCSI-2 (5.1.8) recommends
COUNTERS: Final = (16, 24)


class Chip:
    """One chip whose register `n` is at offset ``base + n * stride`` of `registers`.

    `counter`: bits of its transfer counter. `clock`: MHz. `own`: its SCSI address.
    """

    __slots__ = ("_base", "_clock", "_read", "_stride", "_wide", "_write", "most", "name", "own")

    def __init__(
        self, name: str, registers: Registers, *, base: int = 0, stride: int, counter: int, clock: int, own: int = 7
    ) -> None:
        if counter not in COUNTERS:
            raise ConfigurationError(f"{name}: a transfer counter of 16 or 24 bits, not {counter}")
        if not 10 <= clock <= 40:
            raise ConfigurationError(f"{name}: a clock of 10 to 40 MHz, not {clock}")
        if not 0 <= own <= 7:
            raise ConfigurationError(f"{name}: a SCSI address of 0 to 7, not {own}")
        self.name, self.own = name, own
        self.most = 1 << counter  #: bytes of one transfer
        self._read, self._write = registers.read8, registers.write8
        self._base, self._stride = base, stride
        self._wide, self._clock = counter == 24, clock

    def read(self, register: int) -> int:
        """The byte in `register`."""
        return self._read(self._base + register * self._stride)

    def write(self, register: int, value: int) -> None:
        """Write `register`."""
        self._write(self._base + register * self._stride, value)

    def command(self, code: int) -> None:
        """Write the command register, which starts what `code` says."""
        self.write(COMMAND, code)

    @property
    def interrupting(self) -> bool:
        """True if a cause of its interrupt waits to be read."""
        return bool(self.read(STATUS) & INTERRUPT)

    def acknowledge(self) -> tuple[int, int, int]:
        """(status, sequence step, cause) of the interrupt, which is over then."""
        status = self.read(STATUS)
        step = self.read(STEP) & STEP_BITS
        return status, step, self.read(CAUSE)

    # -- up and down --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the chip, off the bus and deaf, and configure it. DeviceFault if it does not hold what is written."""
        self.command(RESET_CHIP)
        self.command(NOTHING)  # "must be issued after a reset": until then it takes nothing else
        wanted = {CONFIG_1: self.own | CHECK_PARITY | QUIET_RESET, CONFIG_2: SCSI_2, CONFIG_3: 0}
        if self._wide:
            wanted[CONFIG_2] |= FEATURES
        for register, value in wanted.items():
            self.write(register, value)
        factor, timeout = timing(self._clock)
        self.write(CLOCK, factor)
        self.write(TIMEOUT, timeout)
        self.write(PERIOD, 0)
        self.write(OFFSET, 0)  # asynchronous transfers
        held = self.read(CONFIG_1)
        if held != wanted[CONFIG_1]:
            raise DeviceFault(f"{self.name}: no 53C9x answers: it does not hold its configuration ({held:#04x})")
        if self._wide and not self.read(CONFIG_2) & FEATURES:
            raise DeviceFault(f"{self.name} has no counter of 24 bits; attach it with the property counter=16")

    def reset_bus(self) -> None:
        """Assert RST. Targets are to be left alone for a while after that."""
        self.command(RESET_BUS)

    def listen(self) -> None:
        """Report resets by others from now on, and let targets reselect."""
        self.acknowledge()
        self.write(CONFIG_1, self.own | CHECK_PARITY)
        self.command(ENABLE_RESELECTION)

    # -- counter and FIFO ---------------------------------------------------------------------------------------------

    def count(self, length: int) -> None:
        """Let the next DMA command move `length` bytes, 1 to ``most``."""
        self.write(COUNT_LOW, length & 0xFF)
        self.write(COUNT_MIDDLE, length >> 8 & 0xFF)
        if self._wide:
            self.write(COUNT_HIGH, length >> 16 & 0xFF)

    def left(self, length: int) -> int:
        """How many of the `length` bytes of the last DMA command the chip has not counted."""
        if self.read(STATUS) & COUNTED_OUT:
            return 0
        count = self.read(COUNT_LOW) | self.read(COUNT_MIDDLE) << 8
        if self._wide:
            count |= self.read(COUNT_HIGH) << 16
        return count or (length if length == self.most else 0)

    @property
    def held(self) -> int:
        """Bytes in the FIFO."""
        return self.read(FIFO_FLAGS) & FIFO_COUNT

    def flush(self) -> None:
        """Drop what is in the FIFO."""
        self.command(FLUSH_FIFO)

    def put(self, data: bytes) -> None:
        """Fill the FIFO with `data`, at most 16 bytes, and nothing else."""
        self.flush()
        for byte in data:
            self.write(FIFO, byte)

    def take(self) -> bytes:
        """Empty the FIFO."""
        return bytes(self.read(FIFO) for _ in range(self.held))


def timing(clock: int) -> tuple[int, int]:
    """(clock conversion factor, selection timeout), as the registers take them, of a chip that runs at `clock` MHz.

    The factor is a fifth of the clock, at least 2; 8 is written as 0. The timeout counts 8192 factors of clocks.
    """
    factor = max(2, -(-clock // 5))
    timeout = -(-SELECTION_TIME * clock * 1000 // (8192 * factor))
    return factor & 7, timeout
