"""The command queue and the event queue of an SMMUv3: rings in memory, with an index for each side in a register.

An index counts modulo twice the number of entries, so that a full ring is not an empty one. Each ring is a page frame.

Source: Arm, System Memory Management Unit Architecture Specification, version 3, IHI 0070: 3.5 (queues), 4.7.3
(CMD_SYNC), 6.3.19 to 6.3.29, 6.3.95, 6.3.96 (registers), 7.1 (command errors), 7.2.2 (aborts), 7.4 (overflow).
"""

from __future__ import annotations

from typing import Final

from busdma.errors import DeviceFault
from busdma.translators.pages import TranslationUnit

GERROR, GERRORN = 0x60, 0x64
CMDQ_BASE, CMDQ_PROD, CMDQ_CONS = 0x90, 0x98, 0x9C
EVENTQ_BASE, EVENTQ_PROD, EVENTQ_CONS = 0xA0, 0x1_00A8, 0x1_00AC
ALLOCATE: Final = 1 << 62  #: in a base: a hint to caches
CMDQ_ERROR, EVENTQ_ABORT = 1 << 0, 1 << 2  # GERROR
OVERFLOWED: Final = 1 << 31  #: EVENTQ_PROD, and acknowledged in EVENTQ_CONS

COMMAND: Final = 16  #: bytes
EVENT: Final = 32
LOG2_COMMANDS: Final = 8  #: of a page frame
LOG2_EVENTS: Final = 7

SYNC: Final = (0x46, 0)  #: CMD_SYNC without a signal
#: 7.1: CMDQ_CONS bits 30:24
ERRORS: Final = {
    1: "CERROR_ILL, an illegal command",
    2: "CERROR_ABT, the queue is not in memory",
    3: "CERROR_ATC_INV_SYNC, a device did not forget in time",
}


class CommandQueue:
    """Commands, each two numbers of 64 bits. Made while the queue is disabled."""

    def __init__(self, unit: TranslationUnit) -> None:
        self._unit = unit
        self._ring = unit.new_table()
        self._produced = 0
        self._refusal: str | None = None
        unit.registers.write64(CMDQ_BASE, self._ring | LOG2_COMMANDS | ALLOCATE)
        unit.registers.write32(CMDQ_PROD, 0)
        unit.registers.write32(CMDQ_CONS, 0)

    def run(self, *commands: tuple[int, int]) -> None:
        """Return when the commands, less than the ring has room for, have been carried out and are seen by all devices.

        DeviceFault if the unit refuses one or does not answer; then it obeys no more, and all later calls say so.
        """
        if self._refusal is not None:
            raise DeviceFault(self._refusal)
        registers, unit = self._unit.registers, self._unit
        for command in (*commands, SYNC):
            unit.write(self._ring + self._produced % (1 << LOG2_COMMANDS) * COMMAND, *command)
            self._produced = (self._produced + 1) % (2 << LOG2_COMMANDS)
        registers.barrier()
        registers.write32(CMDQ_PROD, self._produced)
        try:
            unit.until(self._consumed, "CMDQ_CONS")
        except DeviceFault as fault:
            self._refusal = str(fault)
            raise

    def _consumed(self) -> bool:
        registers = self._unit.registers
        status = registers.read32(CMDQ_CONS)
        index = status % (2 << LOG2_COMMANDS)
        if index == self._produced:
            return True
        error = status >> 24 & 0x7F
        if error and (registers.read32(GERROR) ^ registers.read32(GERRORN)) & CMDQ_ERROR:
            command = self._unit.read(self._ring + index % (1 << LOG2_COMMANDS) * COMMAND) & 0xFF
            raise DeviceFault(
                f"{self._unit.name}: command {command:#04x} is refused ({ERRORS.get(error, f'error {error:#x}')}), and "
                "none will be obeyed after it: reset the machine"
            )
        return False


class EventQueue:
    """What the unit has recorded. Entries are zeroed as they are taken, and no event has type 0.

    Made while the queue is disabled. `overflows`: how often the ring was full and events were lost.
    """

    def __init__(self, unit: TranslationUnit) -> None:
        self._unit = unit
        self._ring = unit.new_table()
        self._produced = 0  # as we have last seen it
        self._consumed = 0
        self._acknowledged = 0  # OVERFLOWED, as we have last seen it
        self.overflows = 0
        unit.registers.write64(EVENTQ_BASE, self._ring | LOG2_EVENTS | ALLOCATE)
        unit.registers.write32(EVENTQ_PROD, 0)
        unit.registers.write32(EVENTQ_CONS, 0)

    def pending(self) -> bool:
        """Whether there is an event. It looks at memory only."""
        return bool(self._unit.read(self._entry()) & 0xFF)

    def take(self) -> tuple[int, int, int, int] | None:
        """The oldest event, as four numbers of 64 bits; None if there is none."""
        if not self.pending():
            return None
        if self._consumed == self._produced:
            self._look()
            if self._consumed == self._produced:
                return None  # it is being written
        unit, at = self._unit, self._entry()
        event = unit.read(at), unit.read(at + 8), unit.read(at + 16), unit.read(at + 24)
        unit.write(at, 0, 0, 0, 0)
        self._consumed = (self._consumed + 1) % (2 << LOG2_EVENTS)
        unit.registers.barrier()
        unit.registers.write32(EVENTQ_CONS, self._consumed | self._acknowledged)
        if self._consumed == self._produced:
            self._look_for_aborts()
        return event

    def _look(self) -> None:
        """How far the unit has come, and whether it had no room meanwhile (7.4)."""
        produced = self._unit.registers.read32(EVENTQ_PROD)
        self._produced = produced % (2 << LOG2_EVENTS)
        if (produced ^ self._acknowledged) & OVERFLOWED:
            self.overflows += 1
            self._acknowledged ^= OVERFLOWED

    def _look_for_aborts(self) -> None:
        """An event that could not be written is lost as well (7.2.2); some units say that of a full ring, too."""
        registers = self._unit.registers
        acknowledged = registers.read32(GERRORN)
        if (registers.read32(GERROR) ^ acknowledged) & EVENTQ_ABORT:
            self.overflows += 1
            registers.write32(GERRORN, acknowledged ^ EVENTQ_ABORT)

    def _entry(self) -> int:
        return self._ring + self._consumed % (1 << LOG2_EVENTS) * EVENT
