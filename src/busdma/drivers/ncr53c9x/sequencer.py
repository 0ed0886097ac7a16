"""The SCSI bus as a 53C9x shows it to an initiator: who is connected, which phase is next, who comes back.

The chip does the bus's handshakes, and interrupts wherever somebody has to decide: at the end of a selection, at each
new phase, behind each message, when the bus falls free, when a target reselects us. One command is connected at a time;
any number of others, one a unit, have disconnected.

Sources: AMD Am53C94/Am53C96 data sheet (16506), "Command Description" and the tables of interrupts and internal states
(the sequence step); ANSI X3.131-1994 (SCSI-2) 6.1 (phases), 6.5 (pointers), 6.6 (messages).
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, Protocol

from busdma.drivers.ncr53c9x import chip as ncr
from busdma.drivers.ncr53c9x import messages
from busdma.drivers.ncr53c9x.chip import Chip
from busdma.drivers.ncr53c9x.engine import DmaEngine
from busdma.drivers.ncr53c9x.nexus import Nexus
from busdma.drivers.scsi_host import Unit

# host status
NO_DEVICE, BUS_FREE, OVERRUN, WRONG_WAY, PARITY, SENSE_FAILED, MEMORY = 1, 2, 3, 4, 5, 6, 7
HOST_STATUS: Final = {
    0: "no controller error",
    NO_DEVICE: "selection timeout: no device answers at this SCSI address",
    BUS_FREE: "unexpected bus free",
    OVERRUN: "data overrun: the target wanted to move more",
    WRONG_WAY: "data phase in the wrong direction",
    PARITY: "parity error on the SCSI bus",
    SENSE_FAILED: "automatic request sense failed",
    MEMORY: "the DMA engine could not reach memory",
}

MOST_PADS: Final = 64  #: counters full of bytes that one connection may want to move beyond the data


class Doing(Enum):
    """What the chip was told to do last."""

    IDLE = "the bus is free"
    NOTHING = "waiting for a reset"
    SELECTING = "selecting"
    STOPPING = "selecting, to abort"
    DATA = "moving data"
    PAD = "moving nothing"
    COMMAND = "sending the command"
    STATUS = "fetching the status"
    MESSAGE_IN = "fetching a message"
    MESSAGE_OUT = "sending a message"
    ACCEPTING = "accepting a message"


class Client(Protocol):
    """Whom the sequencer works for. It is called under the driver's lock."""

    def ended(self, nexus: Nexus, host: int, aborted: bool) -> None:
        """`nexus` has ended: with a host status and, if that is 0, ``nexus.status``; or because it was aborted."""

    def trouble(self, why: str) -> None:
        """Nothing goes on without a reset."""


class Sequencer:
    """Runs commands through `chip`, with `engine` for their data. Called under the driver's lock; waits for nothing."""

    def __init__(self, chip: Chip, engine: DmaEngine, client: Client) -> None:
        self._chip, self._engine, self._client = chip, engine, client
        self.counts = dict.fromkeys(("selections", "disconnections", "segments", "rejected", "pads", "unknown"), 0)
        self.clear()

    def clear(self) -> None:
        """Forget everything; the chip is being reset. ``listen`` comes before the next command."""
        self.doing = Doing.NOTHING
        self._ready: deque[Nexus] = deque()  # to be selected, in this order, one a unit at a time
        self._aborts: deque[Nexus] = deque()  # disconnected, to be selected for an ABORT message
        self._busy: dict[Unit, Nexus] = {}  # who has begun
        self._away: dict[tuple[int, int], Nexus] = {}  # disconnected, by target and unit
        self._asked = 0  # bytes of the transfer under way
        self._inward = False
        self._free()

    def _free(self) -> None:
        self._nexus: Nexus | None = None  # who is connected, or being selected
        self._message = bytearray()  # that is coming in
        self._say = messages.NO_OPERATION  # in the next message out phase
        self._pads = 0

    def listen(self) -> None:
        """The bus is free and settled: let targets reselect, and start what waits."""
        self._chip.listen()
        self.doing = Doing.IDLE
        self._next()

    # -- what the driver wants ----------------------------------------------------------------------------------------

    def submit(self, nexus: Nexus, first: bool = False) -> None:
        """Run a prepared command; `first`: before the others."""
        if first:
            self._ready.appendleft(nexus)
        else:
            self._ready.append(nexus)
        self._next()

    def abort(self, nexus: Nexus) -> None:
        """End `nexus`, by an ABORT message if the target knows of it. ``ended`` is called, perhaps at once."""
        nexus.doomed = True
        if nexus in self._ready:
            self._ready.remove(nexus)
            self._end(nexus, aborted=True)
        elif nexus is self._nexus:
            if self.doing not in (Doing.SELECTING, Doing.STOPPING) and not self._chip.interrupting:
                self._chip.command(ncr.SET_ATN)  # the target asks for a message, sooner or later (6.1.9)
        elif self._away.get((nexus.target, nexus.lun)) is nexus:
            self._aborts.append(nexus)
            self._next()

    def _end(self, nexus: Nexus, host: int = 0, aborted: bool = False) -> None:
        assert nexus.unit is not None
        if self._busy.get(nexus.unit) is nexus:
            del self._busy[nexus.unit]
        self._client.ended(nexus, host, aborted)

    def fail(self, why: str) -> None:
        """Do nothing any more until the reset that the client is asked for."""
        self.doing = Doing.NOTHING
        self._client.trouble(why)

    def cut_off(self, why: str) -> None:
        """The engine has given up in the middle of a transfer, and was reset."""
        nexus, self._nexus = self._nexus, None
        doing, self.doing = self.doing, Doing.NOTHING
        if nexus is not None and doing is Doing.DATA:
            self._end(nexus, MEMORY)
        self.fail(why)

    # -- selection ----------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Select the next one, if the bus is free for us."""
        if self.doing is not Doing.IDLE or self._chip.interrupting:  # perhaps a target was faster
            return
        if self._aborts:
            self._select(self._aborts.popleft(), Doing.STOPPING)
            return
        for nexus in self._ready:
            assert nexus.unit is not None
            if self._busy.setdefault(nexus.unit, nexus) is nexus:
                self._ready.remove(nexus)
                self._select(nexus, Doing.SELECTING)
                return

    def _select(self, nexus: Nexus, doing: Doing) -> None:
        chip, identify = self._chip, messages.identify(nexus.lun)
        self._nexus, self.doing = nexus, doing
        self.counts["selections"] += 1
        chip.write(ncr.DESTINATION, nexus.target)
        chip.put(identify if doing is Doing.STOPPING else identify + nexus.command)
        chip.command(ncr.SELECT_ATN_STOP if doing is Doing.STOPPING else ncr.SELECT_ATN)

    def _reselected(self, doing: Doing) -> None:
        """The FIFO has the bits of both SCSI addresses and the target's IDENTIFY; ACK is still on."""
        chip = self._chip
        if self._nexus is not None:  # its selection lost the arbitration
            (self._aborts if doing is Doing.STOPPING else self._ready).appendleft(self._nexus)
            self._free()
        elif doing is not Doing.IDLE:
            return self.fail("it was reselected while it was connected")
        found = chip.take()
        target = (found[0] & ~(1 << chip.own)).bit_length() - 1 if found else -1
        if len(found) < 2 or target < 0 or not found[1] & messages.IDENTIFY:
            return self.fail(f"it was reselected by nobody in particular [{found.hex(' ')}]")
        nexus = self._away.pop((target, found[1] & 7), None)
        self._nexus = nexus
        if nexus is None:
            self.counts["unknown"] += 1
            self._say = messages.ABORT
            chip.command(ncr.SET_ATN)
        else:
            nexus.pointers.resume()  # an IDENTIFY from the target implies RESTORE POINTERS (6.6.7)
            if nexus in self._aborts:
                self._aborts.remove(nexus)
        return self._accept()

    def _bus_free(self, doing: Doing) -> None:
        """The target has left, or never came. Selection and reselection are off until they are enabled again."""
        nexus = self._nexus
        self._free()
        self._chip.flush()
        self._chip.command(ncr.ENABLE_RESELECTION)
        self.doing = Doing.IDLE
        if nexus is not None:
            selecting = doing in (Doing.SELECTING, Doing.STOPPING)
            if nexus.complete:
                self._end(nexus, nexus.flaw)
            elif nexus.shot or (selecting and nexus.doomed):
                self._away.pop((nexus.target, nexus.lun), None)
                self._end(nexus, aborted=True)
            elif selecting:
                self._end(nexus, NO_DEVICE)
            elif nexus.leaving:
                nexus.leaving = False
                self.counts["disconnections"] += 1
                self._away[nexus.target, nexus.lun] = nexus
                if nexus.doomed:
                    self._aborts.append(nexus)
            else:
                self._end(nexus, BUS_FREE)
        self._next()

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def emptied(self) -> bool:
        """To be true before an interrupt is handled: every byte that came in has reached memory."""
        if self.doing is not Doing.DATA:
            return True
        return self._engine.emptied(self._chip.left(self._asked), self._chip.held)

    def handle(self) -> None:
        """Handle the chip's interrupt."""
        doing, self.doing = self.doing, Doing.NOTHING
        if doing is Doing.DATA:
            self._account()
        status, step, cause = self._chip.acknowledge()
        if cause & ncr.SCSI_RESET:
            self.fail("somebody reset its SCSI bus")
        elif cause & ncr.RESELECTED:
            self._reselected(doing)
        elif cause & (ncr.ILLEGAL_COMMAND | ncr.SELECTED) or status & ncr.GROSS_ERROR:
            self.fail(f"its chip reports status {status:#04x}, interrupt {cause:#04x} while {doing.value}")
        elif cause & ncr.DISCONNECTED:
            self._bus_free(doing)
        elif cause & (ncr.SERVICE | ncr.SUCCESS):
            self._go_on(doing, status, step)
        else:
            self.fail(f"its chip interrupts for no reason while {doing.value}")

    def _account(self) -> None:
        """A transfer has ended: how far did it come?"""
        chip, nexus = self._chip, self._nexus
        assert nexus is not None
        left, held = chip.left(self._asked), chip.held
        self._engine.stop()
        if self._inward:  # counted at the bus's side; what is stuck in the FIFO did come
            nexus.pointers.advance(self._asked - left)
            if held:
                nexus.pointers.stray(chip.take())
        else:  # counted at memory's side; what is stuck in the FIFO did not go
            nexus.pointers.advance(self._asked - left - held)
            chip.flush()

    def _go_on(self, doing: Doing, status: int, step: int) -> None:
        """The target is connected and wants something else."""
        chip, nexus = self._chip, self._nexus
        bad = bool(status & ncr.PARITY_ERROR)
        if doing is Doing.SELECTING and nexus is not None:
            nexus.unsent = 0 if step >= 4 else min(chip.held, len(nexus.command))
        elif doing is Doing.STATUS and nexus is not None:
            found = chip.take()
            nexus.status = found[0] if found else None
            if found[1:]:
                self._message += found[1:]
                return self._receive(bad)
        elif doing is Doing.MESSAGE_IN:
            self._message += chip.take()
            return self._receive(bad)
        if bad:
            self._say = messages.DETECTED_ERROR
            if nexus is not None:
                nexus.flaw = PARITY
        return self._follow(status & ncr.PHASE)

    def _follow(self, phase: int) -> None:
        """Have the chip do what the bus phase is for."""
        chip, nexus = self._chip, self._nexus
        if nexus is not None and nexus.doomed and not nexus.shot and phase != ncr.MESSAGE_OUT:
            chip.command(ncr.SET_ATN)
        match phase:
            case ncr.DATA_OUT | ncr.DATA_IN:
                self._move(phase == ncr.DATA_IN)
            case ncr.COMMAND_PHASE if nexus is not None:
                chip.put(nexus.command[-nexus.unsent :] if nexus.unsent else nexus.command)
                self._tell(Doing.COMMAND, ncr.TRANSFER)
            case ncr.STATUS_PHASE:
                chip.flush()
                self._tell(Doing.STATUS, ncr.COMPLETE)
            case ncr.MESSAGE_OUT:
                say, self._say = self._say, messages.NO_OPERATION
                if nexus is not None and nexus.doomed:
                    say, nexus.shot = messages.ABORT, True
                chip.put(bytes((say,)))
                self._tell(Doing.MESSAGE_OUT, ncr.TRANSFER)
            case ncr.MESSAGE_IN:
                chip.flush()
                self._tell(Doing.MESSAGE_IN, ncr.TRANSFER)
            case _:
                self.fail(f"its SCSI bus is in phase {phase}, which has no meaning here")

    def _tell(self, doing: Doing, command: int) -> None:
        self.doing = doing
        self._chip.command(command)

    def _move(self, inward: bool) -> None:
        """A data phase: the next piece of a segment; or, where there is none, bytes that are made up or dropped."""
        chip, nexus = self._chip, self._nexus
        address, count = (0, 0) if nexus is None or nexus.inbound != inward else nexus.pointers.piece()
        if not count:
            self._pads += 1
            self.counts["pads"] += 1
            if self._pads > MOST_PADS:
                return self.fail("a target moves data without end")
            if nexus is not None:
                wrong = nexus.pointers.length and nexus.inbound != inward
                nexus.flaw = nexus.flaw or (WRONG_WAY if wrong else OVERRUN)
            chip.flush()
            chip.count(chip.most)
            return self._tell(Doing.PAD, ncr.PAD | ncr.DMA)
        self._asked, self._inward = min(count, chip.most), inward
        self.counts["segments"] += 1
        chip.flush()
        self._engine.aim(address, self._asked, inward)
        chip.count(self._asked)
        self._tell(Doing.DATA, ncr.TRANSFER | ncr.DMA)
        return self._engine.go()

    # -- messages -----------------------------------------------------------------------------------------------------

    def _receive(self, bad: bool) -> None:
        """A byte of a message has come; ACK is still on, so that ATN can tell the target to listen to an answer."""
        message = bytes(self._message)
        if bad:
            self._answer(messages.MESSAGE_PARITY_ERROR)
        elif len(message) >= messages.length(message):
            self._message.clear()
            self._understand(message[0])
        self._accept()

    def _understand(self, code: int) -> None:
        nexus = self._nexus
        if nexus is None:
            return
        match code:
            case messages.COMMAND_COMPLETE:
                nexus.complete = True
            case messages.SAVE_DATA_POINTER:
                nexus.pointers.save()
            case messages.RESTORE_POINTERS:
                nexus.pointers.restore()
                nexus.flaw = 0 if nexus.flaw == PARITY else nexus.flaw  # it moves again what was damaged
            case messages.DISCONNECT:
                nexus.leaving = True
            case messages.MESSAGE_REJECT | messages.NO_OPERATION:
                pass
            case _:
                self.counts["rejected"] += 1
                self._answer(messages.MESSAGE_REJECT)

    def _answer(self, message: int) -> None:
        self._message.clear()
        self._say = message
        self._chip.command(ncr.SET_ATN)

    def _accept(self) -> None:
        self._tell(Doing.ACCEPTING, ncr.ACCEPT_MESSAGE)
