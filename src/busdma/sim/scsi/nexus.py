"""A target's end of a parallel SCSI bus: one command, from selection to COMMAND COMPLETE, as a script of phases.

A mailbox adapter hides all this (`busdma.sim.scsi.side`); a chip that leaves the messages to its driver does not. Here
a target asks for messages while attention is asserted, then for the command; disconnects while its mechanism works, if
IDENTIFY allowed it; comes back; and ends with a status byte and COMMAND COMPLETE. One that gave or took data says SAVE
DATA POINTER before it disconnects. With a burst, it also disconnects after so many bytes of data.

Source: ANSI X3.131-1994 (SCSI-2), sections 6.1 (phases), 6.2.1 (attention), 6.5 and 6.6 (messages), 7.6.1 (incorrect
initiator connection), 7.8 (queue tags). What it leaves open, and what this model does: a target looks at attention at
the end of a phase; it runs one command at a time, and answers BUSY or QUEUE FULL to another; synchronous and wide
transfers are refused with MESSAGE REJECT.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol, TypeAlias

from busdma.sim.scsi.side import COMMAND_LENGTH
from busdma.sim.scsi.target import QUEUE_FULL, Busy, DataIn, Phases, ScsiTarget

BUSY: Final = 0x08  #: status (7.3)

# Messages (6.6)
COMMAND_COMPLETE, SAVE_DATA_POINTER, RESTORE_POINTERS, DISCONNECT = 0x00, 0x02, 0x03, 0x04
INITIATOR_DETECTED_ERROR, ABORT, MESSAGE_REJECT, NO_OPERATION = 0x05, 0x06, 0x07, 0x08
BUS_DEVICE_RESET, ABORT_TAG, SIMPLE_QUEUE_TAG, IDENTIFY = 0x0C, 0x0D, 0x20, 0x80
EXTENDED, MAY_DISCONNECT = 0x01, 0x40

RESUME: Final = 200_000  #: ns after which a target that gave a burst comes back


class Phase(IntEnum):
    """MSG, C/D and I/O (6.1, table 8)."""

    DATA_OUT = 0
    DATA_IN = 1
    COMMAND = 2
    STATUS = 3
    MESSAGE_OUT = 6
    MESSAGE_IN = 7

    @property
    def inward(self) -> bool:
        """True if the target sends."""
        return bool(self & 1)


@dataclass(frozen=True, slots=True)
class Give:
    """The target sends `data`."""

    phase: Phase
    data: bytes


@dataclass(frozen=True, slots=True)
class Take:
    """The target wants `length` bytes; None: as many as come before attention falls."""

    phase: Phase
    length: int | None


@dataclass(frozen=True, slots=True)
class Hold:
    """The target keeps the bus for `ns` and asks for nothing. None: for ever."""

    ns: int | None


@dataclass(frozen=True, slots=True)
class Leave:
    """The target frees the bus, and wants it again after `ns`. None: never."""

    ns: int | None


Step: TypeAlias = Give | Take | Hold | Leave
Script: TypeAlias = Generator[Step, bytes, None]


class Bus(Protocol):
    """What a target sees of its bus."""

    targets: Mapping[int, ScsiTarget]
    now: Callable[[], int]
    attention: bool  #: the initiator has a message
    burst: int  #: bytes of data after which a target that may disconnect does; 0: it gives and takes all at once
    running: dict[int, Nexus]  #: whose command each target works at
    silent: set[int]  #: targets whose next command never ends

    def forget(self, target: int, teller: Nexus) -> None:
        """Drop the command of `target`, if it is not that of `teller`, who has been told to."""


class _Dropped(Exception):
    """The initiator has told the target to forget the command."""


class Nexus:
    """One command of one target, from selection to COMMAND COMPLETE, and what the initiator has said of it."""

    def __init__(self, bus: Bus, target: int) -> None:
        self._bus, self.target = bus, target
        self.begun = False
        self.tag: int | None = None
        self._lun: int | None = None
        self._may_disconnect = self._rejected = self._failed = False
        self._at = self._saved = 0  # the data pointer, and what the initiator has been told to save
        self._phases: Phases | None = None
        self.script: Script = self._whole()

    def _whole(self) -> Script:
        try:
            yield from self._heed()
            first = yield from self._ask(Take(Phase.COMMAND, 1))
            length = COMMAND_LENGTH.get(first[0] >> 5, 6)
            cdb = first + (yield from self._ask(Take(Phase.COMMAND, length - 1)))
            before = self._bus.running.get(self.target)
            if before is None:
                self._bus.running[self.target] = self
                status = yield from self._execute(cdb)
            else:
                status = BUSY if before.tag is None or self.tag is None else QUEUE_FULL
            yield from self._ask(Give(Phase.STATUS, bytes((status,))))
            yield from self._say(COMMAND_COMPLETE)
        except _Dropped:
            pass
        finally:
            if self._phases is not None:
                self._phases.close()
            if self._bus.running.get(self.target) is self:
                del self._bus.running[self.target]

    def _execute(self, cdb: bytes) -> Generator[Step, bytes, int]:
        if self.target in self._bus.silent:
            self._bus.silent.remove(self.target)
            yield from self._wait(None)
        lun = cdb[1] >> 5 if self._lun is None else self._lun
        phases = self._phases = self._bus.targets[self.target].execute(lun, cdb, self._bus.now)
        answer: bytes | None = None
        while True:
            try:
                phase = next(phases) if answer is None else phases.send(answer)
            except StopIteration as end:
                status: int = end.value
                return status
            answer = None
            if isinstance(phase, Busy):
                yield from self._wait(phase.ns)
            elif isinstance(phase, DataIn):
                yield from self._data(len(phase.data), bytearray(phase.data))
            else:
                answer = bytes((yield from self._data(phase.length, None)))

    def _data(self, length: int, given: bytearray | None) -> Generator[Step, bytes, bytearray]:
        """All the data phases of a command, in bursts; what was taken."""
        taken = bytearray()
        self._at = self._saved = 0
        while self._at < length:
            count = min(self._bus.burst or length, length - self._at)
            if given is None:
                del taken[self._at :]
                taken += yield from self._ask(Take(Phase.DATA_OUT, count))
            else:
                yield from self._ask(Give(Phase.DATA_IN, bytes(given[self._at : self._at + count])))
            if self._failed:  # once more, from where the initiator can go back to (6.6.8)
                self._failed = False
                self._at = self._saved
                yield from self._say(RESTORE_POINTERS)
                continue
            self._at += count
            if self._at < length and self._may_disconnect:
                yield from self._wait(RESUME)
        return taken

    def _wait(self, ns: int | None) -> Generator[Step, bytes, bool]:
        """Let `ns` pass, off the bus if that is allowed. True if it was."""
        away = self._may_disconnect
        if away and self._at != self._saved:
            away = yield from self._say(SAVE_DATA_POINTER)
            if away:
                self._saved = self._at
        if away:
            away = yield from self._say(DISCONNECT)
        yield Leave(ns) if away else Hold(ns)
        if away:
            tag = b"" if self.tag is None else bytes((SIMPLE_QUEUE_TAG, self.tag))
            yield from self._say(IDENTIFY | (self._lun or 0), tag)
        return away

    # Messages

    def _say(self, message: int, more: bytes = b"") -> Generator[Step, bytes, bool]:
        """Send a message. False if the initiator rejects it."""
        self._rejected = False
        yield from self._ask(Give(Phase.MESSAGE_IN, bytes((message,)) + more))
        return not self._rejected

    def _ask(self, step: Give | Take) -> Generator[Step, bytes, bytes]:
        answer = yield step
        yield from self._heed()
        return answer

    def _heed(self) -> Script:
        """Hear what the initiator has to say, while it wants to."""
        while self._bus.attention:
            heard = yield Take(Phase.MESSAGE_OUT, None)
            while heard:
                size = 2 + (heard[1] or 256) if heard[0] == EXTENDED and len(heard) > 1 else 1 + (heard[0] >> 4 == 2)
                message, heard = heard[:size], heard[size:]
                if not self._obey(message):
                    yield from self._say(MESSAGE_REJECT)

    def _obey(self, message: bytes) -> bool:
        """Do what a message says. False: it is not known here."""
        code = message[0]
        if code & IDENTIFY:
            self._lun, self._may_disconnect = code & 0x07, bool(code & MAY_DISCONNECT)
        elif code in range(SIMPLE_QUEUE_TAG, 0x23) and self._bus.targets[self.target].tags and len(message) == 2:
            self.tag = message[1]
        elif code in (ABORT, ABORT_TAG, BUS_DEVICE_RESET):
            self._bus.forget(self.target, self)
            if code == BUS_DEVICE_RESET:
                self._bus.targets[self.target].reset()
            raise _Dropped
        elif code == INITIATOR_DETECTED_ERROR:
            self._failed = True
        elif code == MESSAGE_REJECT:
            self._rejected = True
        else:
            return code == NO_OPERATION
        return True
