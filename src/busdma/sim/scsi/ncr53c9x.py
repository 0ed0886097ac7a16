"""The NCR 53C9x family of SCSI chips, as initiators: registers, commands and interrupts.

Sixteen registers of 8 bits, by number; how far apart they lie is the board's business (4 bytes on SBus and in the
Am53C974, 1 on a Jazz machine). Reading / writing:

====  ================================  ====  =======================================
0, 1  counter / count, bits 0 to 15     8     configuration 1: own id, parity
2     FIFO                              9     - / clock factor
3     command                           A     - / test
4     status / destination id           B, C  configuration 2 and 3
5     interrupts / selection timeout    D     configuration 4
6     sequence step / sync period       E     counter or chip id / count, bits 16 to 23
7     FIFO flags / sync offset          F     -
====  ================================  ====  =======================================

A 53C94 counts 16 bits. A chip with a wide counter counts 24 once bit 6 of configuration 2 is set, and then register E
reads as the chip's id until it is written. A count of 0 means the most there can be. The chip moves no byte of memory
itself: a `DmaEngine` does, at the chip's request, and a transfer waits until the engine can.

Source: NCR 53C94/53C95/53C96 data manual; AMD Am53C94/Am53C96 and Am53C974 data sheets (register description, command
set). What they leave open, and what this model does: a selection timeout of 0 counts as 256; a second command while one
runs is lost, and is a gross error; FIFO and command register of a chip that was reselected take nothing until the
interrupts have been read. Transfers are asynchronous, and there is no target mode: those commands are illegal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from busdma.errors import ConfigurationError
from busdma.sim.scsi.bus import ScsiBus
from busdma.sim.scsi.ncr53c9x_layout import (
    BUS_RESET,
    CHECK_PARITY,
    CONFIG2,
    CONFIG3,
    CONFIG4,
    DMA,
    FEATURES,
    FUNCTION_COMPLETE,
    GROSS_ERROR,
    ILLEGAL_COMMAND,
    INTERRUPT,
    NO_RESET_INTERRUPT,
    NOP,
    OWN_ID,
    PARITY_ERROR,
    RESET_BUS,
    RESET_CHIP,
    SET_ATN,
    TERMINAL_COUNT,
    DmaEngine,
)
from busdma.sim.scsi.ncr53c9x_sequencer import Sequencer
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.wiring import CallAt, Pin

RESET_TIME: Final = 25_000  #: ns that RST stays asserted


class _Pad:
    """Stands in for the engine during a transfer pad: zeros out, nothing in."""

    def __init__(self, bus: ScsiBus) -> None:
        self._bus = bus

    @property
    def inward(self) -> bool:
        return self._bus.phase.inward

    def room(self) -> int:
        return 1 << 24

    def store(self, data: bytes) -> None:
        pass

    def fetch(self, count: int) -> bytes:
        return bytes(count)


class Ncr53c9x:
    """One chip at power-on, and its SCSI bus. `call_at` and `now` are the machine's clock, in ns.

    `byte`: ns that a byte of data takes; `burst`: as for `ScsiBus`. Not thread-safe: the caller holds the bus's lock
    around register accesses and around what `call_at` calls.
    """

    def __init__(
        self,
        pin: Pin,
        call_at: CallAt,
        now: Callable[[], int],
        *,
        targets: Mapping[int, ScsiTarget],
        initiator: int = 7,
        clock_mhz: int = 25,
        wide_counter: bool = False,
        chip_id: int = 0x04,
        byte: int = 200,
        burst: int = 0,
    ) -> None:
        if initiator not in range(8) or not set(targets) <= set(range(8)) - {initiator}:
            raise ConfigurationError(
                f"SCSI ids go from 0 to 7, and {initiator} is the chip's: the targets cannot be {sorted(targets)}"
            )
        if clock_mhz < 1 or byte < 1 or burst < 0:
            raise ConfigurationError(
                f"a clock of {clock_mhz} MHz, {byte} ns a byte, bursts of {burst} bytes: give at least 1, 1 and 0"
            )
        self._raise, self._lower = pin.assert_, pin.deassert
        self._clock_mhz = clock_mhz
        self._wide, self._chip_id = wide_counter, chip_id
        self._sequencer = Sequencer(call_at, now, self._interrupt, byte)
        self.bus = self._sequencer.bus = ScsiBus(targets, call_at, now, self._sequencer, burst=burst)
        self._counts = dict.fromkeys(("interrupts", "illegal", "bus_resets"), 0)
        self._start = self._destination = self._timeout = 0
        self._config1 = initiator
        self.hardware_reset()

    def attach(self, engine: DmaEngine, pin: Pin | None = None) -> None:
        """Connect the chip's DMA request to `engine` and, if given, its interrupt to `pin`."""
        self._sequencer.engine = engine
        if pin is not None:
            self._raise, self._lower = pin.assert_, pin.deassert

    def kick(self) -> None:
        """The engine can move bytes."""
        self._sequencer.event()

    def inject_silence(self, target: int) -> None:
        """The next command of `target` never ends."""
        self.bus.silent.add(target)

    def inject_parity_error(self) -> None:
        """The next byte of data that comes in is damaged."""
        self._sequencer.damaged = True

    def inject_bus_reset(self) -> None:
        """Now: another device asserts RST."""
        self._reset_bus()

    def statistics(self) -> dict[str, int]:
        """What the chip did since power-on. "beaten": selections that a reselecting target was faster than."""
        return {**self._counts, **self._sequencer.counts}

    def hardware_reset(self) -> None:
        """The chip's reset pin: what it was doing is forgotten. The SCSI bus stays as it is."""
        self._sequencer.reset()
        self._command, self._interrupts = 0, 0
        self._configs = {CONFIG2: 0, CONFIG3: 0, CONFIG4: 0}
        self._configure(self._config1 & OWN_ID)
        self._factor, self._id_shown = 2, True
        self._muted = False
        self._lower()

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, register: int) -> int:
        """Read an 8-bit register. Reading the interrupts clears them, and with them the step and the errors."""
        sequencer = self._sequencer
        match register:
            case 0x0 | 0x1:
                return sequencer.counter >> 8 * register & 0xFF
            case 0x2:
                return sequencer.fifo.pop(0) if sequencer.fifo else 0
            case 0x3:
                return self._command
            case 0x4:
                return self._status()
            case 0x5:
                return self._take_interrupts()
            case 0x6:
                return sequencer.step
            case 0x7:
                return sequencer.step << 5 | len(sequencer.fifo)
            case 0x8:
                return self._config1
            case 0xE if self._counts_24:
                return self._chip_id if self._id_shown else sequencer.counter >> 16 & 0xFF
            case _:
                return self._configs.get(register, 0)

    def write(self, register: int, value: int) -> None:
        """Write an 8-bit register. Those of synchronous transfers, and the test register, take what is written."""
        match register:
            case 0x0 | 0x1:
                self._start = self._start & ~(0xFF << 8 * register) | value << 8 * register
            case 0x2:
                self._sequencer.push(value)
            case 0x3:
                self._execute(value)
            case 0x4:
                self._destination = value & 0x07
            case 0x5:
                self._timeout = value
            case 0x8:
                self._configure(value)
            case 0x9:
                self._factor = value & 0x07
            case 0xB | 0xC | 0xD:
                self._configs[register] = value
            case 0xE if self._wide:
                self._start = self._start & 0xFFFF | value << 16
                self._id_shown = False

    def _configure(self, value: int) -> None:
        self._config1 = value
        self._sequencer.own_id, self._sequencer.check_parity = value & OWN_ID, bool(value & CHECK_PARITY)

    @property
    def _counts_24(self) -> bool:
        return self._wide and bool(self._configs[CONFIG2] & FEATURES)

    @property
    def _selection_timeout(self) -> int:
        """In ns: so many times 8192 times the clock factor, in clocks; a factor of 0 means 8."""
        return (self._timeout or 256) * 8192 * (self._factor or 8) * 1000 // self._clock_mhz

    def _status(self) -> int:
        sequencer = self._sequencer
        return (
            self.bus.phase
            | (TERMINAL_COUNT if sequencer.terminal else 0)
            | (PARITY_ERROR if sequencer.bad_parity else 0)
            | (GROSS_ERROR if sequencer.gross else 0)
            | (INTERRUPT if self._interrupts else 0)
        )

    def _take_interrupts(self) -> int:
        found = self._interrupts
        if found:
            self._interrupts = 0
            self._sequencer.seen()
            self._lower()
        return found

    def _interrupt(self, bits: int) -> None:
        self._counts["interrupts"] += 1
        self._interrupts |= bits
        self._raise()

    # -- commands -----------------------------------------------------------------------------------------------------

    def _execute(self, value: int) -> None:
        sequencer = self._sequencer
        code, dma = value & ~DMA, bool(value & DMA)
        if code == RESET_CHIP:  # it lasts until a NOP
            self.hardware_reset()
            self._muted = True
        if self._muted and code == NOP:
            self._muted = False
        if self._muted or (sequencer.deaf and code != RESET_BUS):
            return
        self._command = value
        if dma:
            limit = 1 << (24 if self._counts_24 else 16)
            sequencer.load(self._start & (limit - 1) or limit)
        match code:
            case 0x00:  # NOP
                pass
            case 0x01:  # flush FIFO
                sequencer.fifo.clear()
            case 0x03:  # reset SCSI bus
                self._reset_bus()
            case 0x44:  # enable selection and reselection
                sequencer.reselectable = True
                self.bus.offer()
            case 0x45 if not sequencer.connected:  # disable it
                sequencer.reselectable = False
                self._interrupt(FUNCTION_COMPLETE)
            case 0x41 | 0x42 | 0x43 | 0x46 if not sequencer.connected:  # select
                sequencer.begin(sequencer.select(code, self._destination, self._selection_timeout, dma))
            case 0x10 if sequencer.connected:  # transfer information
                sequencer.begin(sequencer.transfer(sequencer.engine) if dma else sequencer.by_fifo())
            case 0x11 if sequencer.connected:  # initiator command complete steps
                sequencer.begin(sequencer.complete(dma=dma))
            case 0x12 if sequencer.connected:  # message accepted
                sequencer.begin(sequencer.accept())
            case 0x18 if sequencer.connected:  # transfer pad
                sequencer.begin(sequencer.transfer(_Pad(self.bus)))
            case 0x1A | 0x1B if sequencer.connected:  # set and reset attention
                self.bus.attention = code == SET_ATN
            case _:
                self._counts["illegal"] += 1
                self._command = 0
                self._interrupt(ILLEGAL_COMMAND)

    def _reset_bus(self) -> None:
        self._counts["bus_resets"] += 1
        sequencer = self._sequencer
        sequencer.cancel()
        sequencer.fifo.clear()
        sequencer.connected = sequencer.deaf = sequencer.reselectable = False
        self.bus.reset()
        if not self._config1 & NO_RESET_INTERRUPT:
            sequencer.after(RESET_TIME, lambda: self._interrupt(BUS_RESET))
