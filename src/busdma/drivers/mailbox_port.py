"""The ports of a mailbox adapter: resets, and the adapter commands that go through them a byte at a time.

Adaptec's AHA-154x made this interface, BusLogic's MultiMasters kept it. So do the codes in a mailbox, wherever in it
they stand.

Sources: Adaptec AHA-1540B/1542B manual, 4.2 (I/O ports), 5.1 and 5.2; by page, the AHA-1740A Technical Reference
Manual, whose "standard mode" is the same interface: 4-2 (ports), 5-1 to 5-14 (adapter commands), 5-17 (mailboxes).
BusLogic MultiMaster Technical Reference Manual, 1-8 to 1-20.
"""

from __future__ import annotations

from typing import Final

from busdma.errors import DeadlineExpired, DeviceFault
from busdma.machine.attachment import Registers
from busdma.waiting import PENDING, Runtime, Waiter

# ports, as offsets from the base (4.2; 4-2)
CONTROL: Final = 0  # write
STATUS: Final = 0  # read
DATA: Final = 1
INTERRUPT: Final = 2
GEOMETRY: Final = 3  # BusLogic's alone

HARD_RESET, SOFT_RESET, INTERRUPT_RESET, SCSI_RESET = 0x80, 0x40, 0x20, 0x10  # CONTROL
SELF_TEST, DIAGNOSTIC_FAILURE, INIT_REQUIRED, IDLE = 0x80, 0x40, 0x20, 0x10  # STATUS
OUT_FULL, IN_FULL, INVALID_COMMAND = 0x08, 0x04, 0x01
RESET_SETTLED: Final = INIT_REQUIRED | IDLE  # the status after a reset, and nothing else but the reserved bit 1
STATUS_BITS: Final = 0xFD
ANY_INTERRUPT, RESET_DETECTED, COMMAND_COMPLETE, MAILBOX_IN_FULL = 0x80, 0x08, 0x04, 0x01  # INTERRUPT

# adapter commands that the whole family knows (5-1)
START_SCSI, INQUIRY, INSTALLED_DEVICES, CONFIGURATION = 0x02, 0x04, 0x0A, 0x0B

# in a mailbox (5.2.1, 5.2.2; 5-17)
FREE: Final = 0
START, ABORT = 0x01, 0x02  # outgoing
DONE, ABORTED, NOT_FOUND, FAILED = 0x01, 0x02, 0x03, 0x04  # incoming

POLL: Final = 50_000  #: ns to the second look at the status; it takes a byte "within 100 microseconds" (5-2)
LONGEST_POLL: Final = 1_000_000
SECOND: Final = 1_000_000_000
RESET_TIME: Final = 5 * SECOND  #: the self test of a hard reset included


class InvalidCommand(DeviceFault):
    """The adapter does not know the command, or not these parameters."""


class Port:
    """The registers of one adapter. Its owner's completion context reports command-complete interrupts."""

    __slots__ = ("_done", "_name", "_registers", "_runtime")

    def __init__(self, name: str, registers: Registers, runtime: Runtime) -> None:
        self._name = name
        self._registers = registers
        self._runtime = runtime
        self._done = Waiter()

    def acknowledge(self) -> int:
        """The interrupt flags, which are then cleared (4-6). Ends the command that has completed."""
        flags = self._registers.read8(INTERRUPT)
        if flags & ANY_INTERRUPT:
            invalid = self._registers.read8(STATUS) & INVALID_COMMAND
            self._registers.write8(CONTROL, INTERRUPT_RESET)
            if flags & COMMAND_COMPLETE:
                self._done.wake(invalid)
        return flags

    def ring(self) -> bool:
        """Have the outgoing mailboxes looked at (02h, 5-3). False: it still digests a byte, try again."""
        self._registers.barrier()
        if self._registers.read8(STATUS) & OUT_FULL:
            return False
        self._registers.write8(DATA, START_SCSI)
        return True

    def control(self, bits: int) -> None:
        """Write the control register."""
        self._registers.write8(CONTROL, bits)

    async def reset(self, how: int) -> None:
        """Reset by `how`; whatever the adapter was doing is forgotten. DeviceFault if it does not come back."""
        self.control(how)
        await self._poll(STATUS_BITS, RESET_SETTLED, self._runtime.now() + RESET_TIME, "its reset")

    async def command(self, opcode: int, *parameters: int, reply: int = 0, limit: int = SECOND) -> bytes:
        """Run one adapter command and return its `reply` bytes. InvalidCommand, or DeviceFault after `limit` ns."""
        what = f"adapter command {opcode:#04x}"
        end = self._runtime.now() + limit
        await self._poll(IDLE, IDLE, end, what)  # 5-2: only 02h and 05h may come at any time
        while self._registers.read8(STATUS) & IN_FULL:
            self._registers.read8(DATA)  # left over from a command that broke off
        self._done = done = Waiter(f"{self._name}: {what}")
        for byte in (opcode, *parameters):
            await self._poll(OUT_FULL, 0, end, what)
            self._registers.write8(DATA, byte)
        answer = bytearray()
        while len(answer) < reply and await self._poll(IN_FULL, IN_FULL, end, what, done):
            answer.append(self._registers.read8(DATA))
        try:
            invalid = await self._runtime.park(done, end)
        except DeadlineExpired:
            raise DeviceFault(f"{self._name}: {what} does not complete") from None
        if invalid or len(answer) < reply:
            raise InvalidCommand(f"{self._name} refuses {what} with parameters [{bytes(parameters).hex(' ')}]")
        return bytes(answer)

    async def _poll(self, mask: int, wanted: int, end: int, what: str, done: Waiter | None = None) -> bool:
        """Wait until status & mask == wanted. False if `done` ended first. DeviceFault at time `end`."""
        pause = POLL
        while (status := self._registers.read8(STATUS)) & mask != wanted:
            if done is not None and done.state != PENDING:
                return False
            if self._runtime.now() >= end:
                raise DeviceFault(f"{self._name} stays at status {status:#04x} instead of going on with {what}")
            waiter = Waiter(f"{self._name}: {what}")
            self._runtime.call_at(self._runtime.now() + pause, waiter.wake)
            await self._runtime.park(waiter)
            pause = min(2 * pause, LONGEST_POLL)
        return True


def parse_configuration(reply: bytes) -> tuple[int | None, int, int]:
    """(DMA channel or None, interrupt, own SCSI address) of Return Configuration Data's three bytes (5-8)."""
    channels, interrupts, own = reply
    dma = next((channel for channel in (0, 5, 6, 7) if channels >> channel & 1), None)
    irq = next((9 + bit for bit in (0, 1, 2, 3, 5, 6) if interrupts >> bit & 1), 0)
    return dma, irq, own & 7
