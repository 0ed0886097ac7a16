"""What the host sees of every adapter of the mailbox family: four ports, an interrupt, and mailboxes in memory.

The host writes adapter commands byte by byte into the command port; SCSI commands it leaves in memory, as CCBs that
outgoing mailboxes point to, and finds them again in incoming mailboxes. Everything takes virtual time. The adapter
reaches memory only through its bus master; its mailboxes and its SCSI bus are modules of their own.

An `Aha1542` is this and a mailbox lock. A `Bt445s` is this, with numbers of 32 bits and more commands.

Source: Adaptec AHA-1540B/1542B User's Manual, sections 4.2 (I/O ports) and 5.1 (adapter commands). Page numbers are
those of the AHA-1740A/1742A/1744 Technical Reference Manual, whose "standard mode" is the same interface.

What the manual leaves open, and what this model does: a command that needs an idle adapter is refused while CCBs are
under way; a CCB that a reset forgets is never reported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from busdma.errors import ConfigurationError
from busdma.sim.scsi.mailbox_layout import BITS_24, CommandFault, HostStatus, Layout, MbiStatus
from busdma.sim.scsi.mailboxes import Mailboxes
from busdma.sim.scsi.side import ScsiSide
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.wiring import CallAt, Memory, Pin

# Control port, write, base+0 (4-2)
HRST, SRST, IRST, SCRST = 0x80, 0x40, 0x20, 0x10
# Status port, read, base+0 (4-2)
STST, DIAGF, INIT, IDLE, CDF, DF, INVDCMD = 0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x01
# Interrupt flag port, read, base+2 (4-2)
ANYINTR, SCRD, HACC, MBOA, MBIF = 0x80, 0x08, 0x04, 0x02, 0x01

#: Virtual time, in ns.
BYTE_TIME: Final = 20_000  #: the adapter's processor takes or gives one byte of a command ("within 100 us", 5-2)
DIAGNOSTIC_TIME: Final = 300_000_000  #: the self-test of a hard reset
SOFT_RESET_TIME: Final = 1_000_000

FIFO_BYTES: Final = 54  #: of the FIFO that commands 1Ch and 1Dh test (5-13)
CHANNEL_2_BYTES: Final = 64  #: of the buffer that commands 1Ah and 1Bh test (5-12)

IRQ_BITS: Final = {9: 0x01, 10: 0x02, 11: 0x04, 12: 0x08, 14: 0x20, 15: 0x40}
DMA_BITS: Final = {0: 0x01, 5: 0x20, 6: 0x40, 7: 0x80}

#: How many parameter bytes follow each adapter command that all of the family know (5-1 to 5-14).
PARAMETERS: Final = {
    0x00: 0, 0x01: 4, 0x02: 0, 0x04: 0, 0x05: 1, 0x06: 4, 0x07: 1, 0x08: 1, 0x09: 1, 0x0A: 0, 0x0B: 0, 0x0D: 1,
    0x1A: 3, 0x1B: 3, 0x1C: 3, 0x1D: 3, 0x1F: 1,
}  # fmt: skip
WHILE_BUSY: Final = (0x02, 0x05)  #: the only ones that do not need an idle adapter (5-2)


@dataclass(frozen=True, slots=True)
class MediumError:
    """From now on these blocks of this target cannot be read, until they are written."""

    target: int
    lba: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class ForeignBusReset:
    """Now: another device asserts the SCSI bus's RST line."""


@dataclass(frozen=True, slots=True)
class DiagnosticFailure:
    """The self-test of the next hard reset fails, once."""


Fault = CommandFault | MediumError | ForeignBusReset | DiagnosticFailure


class MailboxAdapter:
    """One adapter at power-on. `call_at` and `now` are the machine's clock, in ns; `targets` go by SCSI id.

    `slots`: CCBs that it holds at a time; the others stay in their mailboxes. Not thread-safe: the caller holds the
    bus's lock around port accesses and around what `call_at` calls.
    """

    BYTE: ClassVar[int]  #: ns that one byte of data takes while the adapter holds the host's bus
    BUS_TIMES: ClassVar[tuple[int, int]]  #: us that it holds that bus, and leaves it to others, after a reset
    FOURTH_PORT: ClassVar[int] = 0xFF  #: what it reads as; 0xFF: nothing drives it

    def __init__(
        self,
        master: Memory,
        interrupt: Pin,
        call_at: CallAt,
        now: Callable[[], int],
        *,
        irq: int,
        dma_channel: int | None,
        scsi_id: int,
        targets: Mapping[int, ScsiTarget],
        parameters: Mapping[int, int] = PARAMETERS,
        slots: int = 255,
    ) -> None:
        check_choice("interrupt", irq, IRQ_BITS)
        if dma_channel is not None:  # a card that is not on the ISA bus has none
            check_choice("DMA channel", dma_channel, DMA_BITS)
        if not set(targets) <= set(range(8)) - {scsi_id} or scsi_id not in range(8):
            raise ConfigurationError(f"SCSI ids go from 0 to 7, and {scsi_id} is the adapter's: not {sorted(targets)}")
        self._master, self._call_at, self._now = master, call_at, now
        self._raise_line, self._lower_line = interrupt.assert_, interrupt.deassert
        self._irq, self._dma_channel, self._scsi_id = irq, dma_channel, scsi_id
        self._known, self._slots = parameters, slots
        self._epoch = 0
        self._mailboxes = Mailboxes(master, self._after, self._has_room, self._take_mailbox, lambda: self._raise(MBIF))
        self.bus = ScsiSide(master, call_at, now, targets, self._done, self._foreign_reset, byte=self.BYTE)
        self._speed = 0
        self._fifo, self._channel_2 = bytes(FIFO_BYTES), bytes(CHANNEL_2_BYTES)
        self._fail_diagnostic = False
        self.counts = {"hard_resets": 0, "soft_resets": 0, "bus_resets": 0}
        self._forget_everything()

    # The ports

    def read8(self, offset: int) -> int:
        """Read a port: status, data in, interrupt flags, and what the fourth may be."""
        self._mailboxes.host_is_alive()
        if offset == 0:
            ready = not self._resetting and not self._status & (STST | DIAGF) and self._opcode is None
            idle = ready and not self.bus.active and self._mailboxes.idle
            return self._status | (IDLE if idle else 0)
        if offset == 1:
            if self._status & DF:
                self._status &= ~DF
                self._reply.popleft()
                if self._reply:
                    self._after(BYTE_TIME, self._show_reply)
                else:
                    self._command_complete()
            return self._data_in
        if offset == 2:
            return self._flags | (ANYINTR if self._flags else 0)
        return self.FOURTH_PORT

    def write8(self, offset: int, value: int) -> None:
        """Write a port: control, command or parameter. The others are reserved."""
        if offset == 0:
            if value & HRST:
                self._hard_reset()
            elif value & SRST:
                self._soft_reset()
            elif value & SCRST:
                self._bus_reset()
            if value & IRST:
                self._flags = 0
                self._status &= ~INVDCMD
                self._lower_line()
                self._present()
        elif offset == 1 and not self._status & STST and not self._resetting:
            taken = bool(self._status & CDF)  # a byte written over one not yet taken replaces it
            self._data_out = value
            self._status |= CDF
            if not taken:
                self._after(BYTE_TIME, self._take_byte)
        self._mailboxes.host_is_alive()

    def inject(self, fault: Fault) -> None:
        """Make something fail: see the classes of faults."""
        if isinstance(fault, MediumError):
            self.bus.targets[fault.target].bad.update(range(fault.lba, fault.lba + fault.count))
        elif isinstance(fault, ForeignBusReset):
            self._foreign_reset()
        elif isinstance(fault, DiagnosticFailure):
            self._fail_diagnostic = True
        else:
            self.bus.faults.append(fault)

    def statistics(self) -> dict[str, int]:
        """What the adapter did since power-on."""
        return {**self.counts, **self.bus.counts, "mailbox_waits": self._mailboxes.waited}

    # Interrupts (4-6): HACC and SCRD are never presented together with MBOA or MBIF, so that IRST clears only what
    # the host has seen. What must wait is presented when the host has reset the flags.

    def _raise(self, flags: int) -> None:
        self._waiting |= flags
        self._present()

    def _present(self) -> None:
        if self._flags & (SCRD | HACC):
            return
        mailbox, other = self._waiting & (MBOA | MBIF), self._waiting & (SCRD | HACC)
        shown = mailbox if self._flags or not other else other
        if shown:
            self._flags |= shown
            self._waiting &= ~shown
            self._raise_line()

    # Resets (4-9)

    def _forget_everything(self) -> None:
        self._epoch += 1
        self._status = INIT
        self._resetting = False
        self._data_in = self._data_out = 0
        self._flags = self._waiting = 0
        self._lower_line()
        self._opcode: int | None = None
        self._parameters = bytearray()
        self._reply: deque[int] = deque()
        self._mboa_enabled = False
        self._mailboxes.forget()
        self.bus.selection_timeout = 250_000_000
        (self.bus.on_us, self.bus.off_us), self._speed = self.BUS_TIMES, 0

    def _hard_reset(self) -> None:
        """Everything back to power-on, after a self-test; also a SCSI reset."""
        self.counts["hard_resets"] += 1
        self.bus.reset()
        self._forget_everything()
        self._status = STST
        self._after(DIAGNOSTIC_TIME, self._diagnosed)

    def _diagnosed(self) -> None:
        self._status = DIAGF if self._fail_diagnostic else INIT
        self._fail_diagnostic = False

    def _soft_reset(self) -> None:
        """Abandon all CCBs and want new mailboxes; the SCSI bus is left alone."""
        self.counts["soft_resets"] += 1
        self.bus.reset(scsi=False)
        self._forget_everything()
        self._resetting = True
        self._after(SOFT_RESET_TIME, self._soft_reset_done)

    def _soft_reset_done(self) -> None:
        self._resetting = False

    def _bus_reset(self) -> None:
        """Assert RST on the SCSI bus. The host asked for it, so SCRD is not set (4-9)."""
        self.counts["bus_resets"] += 1
        self.bus.reset()

    def _foreign_reset(self) -> None:
        """The SCSI bus was reset, and not by the host: it is told."""
        self._bus_reset()
        self._raise(SCRD)

    # Adapter commands (chapter 5)

    def _take_byte(self) -> None:
        self._status &= ~CDF
        if self._opcode is None or self._reply:
            self._reply.clear()
            self._status &= ~(DF | INVDCMD)
            self._opcode, self._parameters = self._data_out, bytearray()
            if self._opcode not in self._known or (self.bus.active and self._opcode not in WHILE_BUSY):
                self._invalid()
                return
        else:
            self._parameters.append(self._data_out)
        if len(self._parameters) == self._known[self._opcode]:
            self._execute(self._opcode, bytes(self._parameters))

    def _command_complete(self) -> None:
        self._opcode = None
        self._raise(HACC)

    def _invalid(self) -> None:
        self._status |= INVDCMD
        self._command_complete()

    def _answer(self, reply: bytes) -> None:
        """Give `reply` through the data port, byte by byte; HACC follows the last one (4-6)."""
        self._reply.extend(reply)
        self._after(BYTE_TIME, self._show_reply)

    def _answer_padded(self, reply: bytes, length: int) -> None:
        length = length or 256
        self._answer(reply[:length].ljust(length, b"\0"))

    def _show_reply(self) -> None:
        if self._reply:
            self._data_in = self._reply[0]
            self._status |= DF

    def _place_mailboxes(self, count: int, address: int, layout: Layout) -> None:
        """From now on `count` mailboxes of each kind lie at `address`, and CCBs have the same layout."""
        if not count:
            return self._invalid()
        self._mailboxes.place(count, address, layout)
        self.bus.layout = layout
        self._status &= ~INIT
        self._command_complete()
        return None

    def _execute(self, opcode: int, parameters: bytes) -> None:
        """Carry out a command whose parameters are there. Each ends with `_command_complete` or another of these."""
        first = parameters[0] if parameters else 0
        address = int.from_bytes(parameters[-3:], "big")
        match opcode:
            case 0x01:  # mailbox initialization (5-2)
                return self._place_mailboxes(first, address, BITS_24)
            case 0x02:  # start SCSI command: no HACC unless it is invalid (5-3)
                if self._status & INIT:
                    return self._invalid()
                self._opcode = None
                self._mailboxes.start()
                return None
            case 0x05:  # enable mailbox out available interrupt (5-4): no HACC either
                if first > 1:
                    return self._invalid()
                self._mboa_enabled = bool(first)
                self._opcode = None
                return None
            case 0x06:  # set selection time-out, in ms (5-5)
                if first > 1 or parameters[1]:
                    return self._invalid()
                self.bus.selection_timeout = int.from_bytes(parameters[2:4], "big") * 1_000_000 if first else None
            case 0x07:  # set bus-on time (5-5)
                if not 2 <= first <= 15:
                    return self._invalid()
                self.bus.on_us = first
            case 0x08:  # set bus-off time (5-6), in steps of 4 us
                if first > 64:
                    return self._invalid()
                self.bus.off_us = first // 4 * 4 or 1
            case 0x09:  # set transfer speed (5-6): kept and returned
                self._speed = first
            case 0x0A:  # return installed devices (5-7): each absent one costs a selection time-out
                absent = 7 - len(self.bus.targets)
                self._after(absent * (self.bus.selection_timeout or 0), lambda: self._answer(self._installed()))
                return None
            case 0x0B:  # return configuration data (5-8)
                channel = 0 if self._dma_channel is None else DMA_BITS[self._dma_channel]
                return self._answer(bytes((channel, IRQ_BITS[self._irq], self._scsi_id)))
            case 0x0D:  # return setup data (5-10): padded or cut to the length asked for, 0 meaning 256
                return self._answer_padded(self._setup(), first)
            case 0x1A:
                self._channel_2 = self._master.dma_read(address, CHANNEL_2_BYTES)
            case 0x1B:
                self._master.dma_write(address, self._channel_2)
            case 0x1C:
                self._fifo = self._master.dma_read(address, FIFO_BYTES)
            case 0x1D:
                self._master.dma_write(address, self._fifo)
            case 0x1F:  # echo (5-14)
                return self._answer(parameters)
        self._command_complete()

    def _installed(self) -> bytes:
        return bytes(1 if target in self.bus.targets else 0 for target in range(8))

    def _setup(self) -> bytes:
        """What command 0Dh returns; of an address of 32 bits, the lower 24."""
        parity_checked = 0x02
        head = bytes((parity_checked, self._speed, self.bus.on_us, self.bus.off_us, self._mailboxes.count))
        return head + self._mailboxes.base.to_bytes(4, "big")[1:] + bytes(9)  # asynchronous, all may disconnect

    def _has_room(self) -> bool:
        return self.bus.active < self._slots

    def _done(self, status: MbiStatus, ccb: int, host: int = 0, target: int = 0) -> None:
        self._mailboxes.report(status, ccb, host, target)
        self._mailboxes.resume()

    def _take_mailbox(self, action: int, ccb: int) -> None:
        """An outgoing mailbox was taken in and is free again (5-16)."""
        if self._mboa_enabled:
            self._raise(MBOA)
        if action == 1:
            self.bus.submit(ccb)
        elif action == 2:
            self.bus.abort(ccb)
        else:
            self.bus.refuse(ccb, HostStatus.INVALID_MBO)

    def _after(self, delay: int, fn: Callable[[], object]) -> None:
        """Call `fn` after `delay` ns, unless a reset comes first."""
        epoch = self._epoch
        self._call_at(self._now() + delay, lambda: fn() if self._epoch == epoch else None)


def check_choice(what: str, value: object, known: Collection[Any]) -> None:
    """ConfigurationError if `value` is none of those known."""
    if value not in known:
        raise ConfigurationError(f"this adapter has no {what} {value}: choose one of {', '.join(map(str, known))}")
