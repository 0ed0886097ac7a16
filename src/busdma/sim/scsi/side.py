"""The SCSI side of a mailbox adapter: how the commands of its CCBs run on the SCSI bus.

A CCB is read from the host's memory when its mailbox is found. Untagged commands of one target run one at a time, in
order. Tagged ones (SCSI-2 7.8) are all given to the target, which has one mechanism: one of them seeks or writes while
the data of another cross the bus. Different targets overlap freely. The bus itself carries one phase at a time. Data
moves to and from memory when its phase comes, one access for each scatter/gather element, through the bus master and
in no other way. A command that was aborted or reset is never heard of again: it touches no memory after that.

What the manuals leave open, and what this model does: the mechanism takes simple tags in the order of their arrival; an
ordered tag is held back by the adapter, not by the target.

Source: Adaptec AHA-1540B/1542B User's Manual, section 5.3, and the same interface in the AHA-1740A/1742A/1744 Technical
Reference Manual, chapter 5 "Standard Mode Firmware Description": command block definition (5-20), scatter/gather
list definition (5-28), description of operation (5-29); ANSI X3.131-1994 (SCSI-2) 7.8 for queue tags.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from busdma.sim.scsi.mailbox_layout import (
    BITS_24,
    HEADER,
    STATUS_AT,
    Ccb,
    CommandFault,
    FailsWith,
    HostStatus,
    MbiStatus,
    NeverCompletes,
    Tag,
)
from busdma.sim.scsi.target import CHECK_CONDITION, GOOD, QUEUE_FULL, Busy, DataIn, DataOut, ScsiTarget
from busdma.sim.wiring import CallAt, Memory

#: Virtual time, in ns. Selection covers arbitration, IDENTIFY and the command phase.
SELECTION: Final = 150_000
RECONNECTION: Final = 30_000
RESET_TO_SELECTION: Final = 250_000_000  #: SCSI-2 5.1.14: what targets are given after a reset

COMMAND_LENGTH: Final = {0: 6, 1: 10, 2: 10, 5: 12}  #: by group code, SCSI-2 table 42


class Done(Protocol):
    """Is told what became of a CCB that the host must hear about."""

    def __call__(self, status: MbiStatus, ccb: int, host: int = 0, target: int = 0) -> None:
        """The mailbox's status, the CCB's address, host and target status."""


class Drive:
    """What the adapter knows of one target: its CCBs in order, and who has its mechanism."""

    __slots__ = ("ccbs", "steps", "working")

    def __init__(self) -> None:
        self.ccbs: list[Ccb] = []
        self.working: Ccb | None = None
        self.steps: deque[tuple[Ccb, bytes | None]] = deque()  # wait for the mechanism


class ScsiSide:
    """Runs CCBs against the targets of one SCSI bus.

    `byte`: ns that a byte takes, while the adapter holds the host's bus (`on_us` of every `on_us` + `off_us`).
    """

    def __init__(
        self,
        master: Memory,
        call_at: CallAt,
        now: Callable[[], int],
        targets: Mapping[int, ScsiTarget],
        done: Done,
        foreign_reset: Callable[[], None],
        *,
        byte: int,
    ) -> None:
        self._master, self._call_at, self._now = master, call_at, now
        self._done, self._foreign_reset, self._byte = done, foreign_reset, byte
        self.targets = targets
        self.layout = BITS_24
        self._drives: dict[int, Drive] = {}
        self._bus_free_at = 0
        self.faults: list[CommandFault] = []
        self.selection_timeout: int | None = 250_000_000  #: ns; None: the adapter waits for ever
        self.on_us, self.off_us = 1, 0
        self.tags_known = True  #: the firmware can do tagged commands
        self.counts = dict.fromkeys(("commands", "tagged", "ordered", "at_once", "aborted", "forgotten"), 0)
        self.counts |= {"segments": 0, "bytes_in": 0, "bytes_out": 0}

    @property
    def active(self) -> int:
        """CCBs that wait or run."""
        return sum(len(drive.ccbs) for drive in self._drives.values())

    def submit(self, address: int) -> None:
        """Take the CCB at `address`: run it, or queue it behind the others of its target."""
        ccb = Ccb(address, self._master.dma_read(address, self.layout.ccb), self.layout)
        self.counts["commands"] += 1
        if ccb.opcode not in (0x00, 0x02, 0x03, 0x04, 0x81):  # 0x01, target mode, is not modelled
            return self._refuse(ccb, HostStatus.INVALID_OPCODE)
        if ccb.opcode == 0x81:
            return self._device_reset(ccb)
        if ccb.cdb_length not in COMMAND_LENGTH.values() or (ccb.tag is not None and not self.tags_known):
            return self._refuse(ccb, HostStatus.INVALID_CCB)
        if not ccb.cdb:
            ccb.cdb = self._master.dma_read(address + HEADER, ccb.cdb_length)
        if COMMAND_LENGTH.get(ccb.cdb[0] >> 5, ccb.cdb_length) != ccb.cdb_length:
            return self._refuse(ccb, HostStatus.INVALID_CCB)
        self.counts["tagged"] += ccb.tag is not None
        self.counts["ordered"] += ccb.tag is Tag.ORDERED
        drive = self._drives.setdefault(ccb.target, Drive())
        place = len(drive.ccbs)
        if ccb.tag is Tag.HEAD_OF_QUEUE:
            place = sum(other.started for other in drive.ccbs)
        drive.ccbs.insert(place, ccb)
        self.counts["at_once"] = max(self.counts["at_once"], self.active)
        self._go_on(drive)
        return None

    def refuse(self, address: int, status: HostStatus) -> None:
        """End the CCB at `address` with a host status without looking at it."""
        self._refuse(Ccb(address, self._master.dma_read(address, self.layout.ccb), self.layout), status)

    def abort(self, address: int) -> None:
        """Abort the CCB at `address` wherever it is; one that is not here any more is reported as not found."""
        for drive in self._drives.values():
            for ccb in drive.ccbs:
                if ccb.address == address:
                    if not (isinstance(ccb.fault, NeverCompletes) and ccb.fault.ignore_abort):
                        self.counts["aborted"] += 1
                        self._leave(ccb)
                        self._done(MbiStatus.ABORTED, address)
                    return
        self._done(MbiStatus.NOT_FOUND, address)

    def reset(self, *, scsi: bool = True) -> None:
        """Forget every CCB; with `scsi`, also assert the bus's RST line."""
        for drive in self._drives.values():
            self._forget(drive)
        if scsi:
            self._bus_free_at = self._now() + RESET_TO_SELECTION
            for target in self.targets.values():
                target.reset()

    def _forget(self, drive: Drive) -> None:
        for ccb in drive.ccbs:
            ccb.ended = True
            self.counts["forgotten"] += 1
            if ccb.phases is not None:
                ccb.phases.close()
        drive.ccbs.clear()
        drive.steps.clear()
        drive.working = None

    def _go_on(self, drive: Drive) -> None:
        """Start what may run now: tagged commands together, any other one alone."""
        for ccb in list(drive.ccbs):
            if not ccb.started:
                if ccb.alone and ccb is not drive.ccbs[0]:
                    return
                ccb.started = True
                self._start(ccb)
            if ccb.alone:
                return

    def _claim(self, duration: int, then: Callable[[], object]) -> None:
        """Call `then` when the bus has been ours for `duration`, as soon as those before us have left it."""
        self._bus_free_at = max(self._now(), self._bus_free_at) + duration
        self._call_at(self._bus_free_at, then)

    def _start(self, ccb: Ccb) -> None:
        if ccb.target in self.targets:
            self._claim(SELECTION, lambda: self._selected(ccb))
        elif self.selection_timeout is not None:
            self._claim(self.selection_timeout, lambda: self._finish(ccb, HostStatus.SELECTION_TIMEOUT))

    def _selected(self, ccb: Ccb) -> None:
        if ccb.ended:
            return
        ccb.fault = next((fault for fault in self.faults if fault.target in (None, ccb.target)), None)
        if ccb.fault is not None:
            self.faults.remove(ccb.fault)
            if isinstance(ccb.fault, FailsWith):
                self._finish(ccb, ccb.fault.status)
            return
        target, drive = self.targets[ccb.target], self._drives[ccb.target]
        if ccb.tag is not None and not target.tags:
            self._finish(ccb, HostStatus.TAG_REJECTED)  # the target answers with MESSAGE REJECT
        elif ccb.tag is not None and sum(other.phases is not None for other in drive.ccbs) >= target.tags:
            self._claim(RECONNECTION, lambda: self._status(ccb, QUEUE_FULL))
        elif not self._read_segments(ccb):
            self._finish(ccb, HostStatus.INVALID_CCB)
        else:
            ccb.phases = target.execute(ccb.lun, ccb.cdb, self._now)
            self._give_mechanism(drive, ccb, None)

    def _read_segments(self, ccb: Ccb) -> bool:
        """Fetch the list of segments, none of them empty (5-28)."""
        if not ccb.scattered:
            ccb.segments = [(ccb.data_pointer, ccb.data_length)] if ccb.data_length else []
            return True
        count, rest = divmod(ccb.data_length, ccb.layout.element)
        if rest or not 1 <= count <= ccb.layout.most_segments:
            return False
        return ccb.set_list(self._master.dma_read(ccb.data_pointer, ccb.data_length))

    def _give_mechanism(self, drive: Drive, ccb: Ccb, answer: bytes | None) -> None:
        """Go on with a command, as soon as the target's mechanism has nothing else to do."""
        if drive.working is None:
            self._next_phase(ccb, answer)
        elif ccb.tag is Tag.HEAD_OF_QUEUE:
            drive.steps.appendleft((ccb, answer))
        else:
            drive.steps.append((ccb, answer))

    def _take_mechanism(self, ccb: Ccb) -> None:
        drive = self._drives[ccb.target]
        if drive.working is ccb:
            drive.working = None
            while drive.steps and drive.working is None:
                self._next_phase(*drive.steps.popleft())

    def _next_phase(self, ccb: Ccb, answer: bytes | None) -> None:
        """Let the target go on, with the bytes that it asked for."""
        if ccb.ended or ccb.phases is None:
            return
        try:
            phase = next(ccb.phases) if answer is None else ccb.phases.send(answer)
        except StopIteration as end:
            status: int = end.value
            if status == CHECK_CONDITION:
                self._request_sense(ccb)
            self._claim(RECONNECTION, lambda: self._status(ccb, status))
            return
        if isinstance(phase, Busy):
            self._drives[ccb.target].working = ccb
            self._call_at(self._now() + phase.ns, lambda: self._reconnect(ccb))
        elif ccb.inbound != ccb.outbound and ccb.inbound != isinstance(phase, DataIn):
            # The direction bits promised the other direction (5-20). Recovery from a wrong phase is a reset (4-9).
            self._finish(ccb, HostStatus.PHASE_SEQUENCE)
            self._foreign_reset()
        else:
            self._data(ccb, phase)

    def _reconnect(self, ccb: Ccb) -> None:
        """The mechanism has done its part of `ccb`."""
        if not ccb.ended:
            self._claim(RECONNECTION, lambda: self._next_phase(ccb, None))
            self._take_mechanism(ccb)

    def _data(self, ccb: Ccb, phase: DataIn | DataOut) -> None:
        """A data phase: one DMA access for each piece of the host's memory, each at its own time."""
        wanted = len(phase.data) if isinstance(phase, DataIn) else phase.length
        both = ccb.inbound and ccb.outbound  # both bits: no data is transferred (5-20)
        pieces = deque([] if both else ccb.pieces(wanted))
        ccb.overrun = ccb.overrun or sum(length for _, length in pieces) < wanted
        sent, taken = memoryview(phase.data if isinstance(phase, DataIn) else b""), bytearray()
        per_byte = self._byte * (self.on_us + self.off_us) // self.on_us

        def move() -> None:
            nonlocal sent
            if ccb.ended:
                return
            address, length = pieces.popleft()
            if isinstance(phase, DataIn):
                self._master.dma_write(address, sent[:length])
                sent = sent[length:]
            else:
                taken.extend(self._master.dma_read(address, length))
            ccb.moved += length
            self.counts["segments"] += 1
            self.counts["bytes_in" if isinstance(phase, DataIn) else "bytes_out"] += length
            go_on()

        def go_on() -> None:
            if pieces:
                self._claim(pieces[0][1] * per_byte, move)
            elif isinstance(phase, DataIn):
                self._next_phase(ccb, None)
            else:  # an overrun out is padded with zeros, so that the target comes to its status phase
                self._give_mechanism(self._drives[ccb.target], ccb, bytes(taken).ljust(wanted, b"\0"))

        go_on()

    def _request_sense(self, ccb: Ccb) -> None:
        """The adapter fetches the sense data itself (5-30), before another command clears it."""
        if ccb.sense_length:
            request = bytes((0x03, 0, 0, 0, ccb.sense_length, 0))
            for phase in self.targets[ccb.target].execute(ccb.lun, request, self._now):
                if isinstance(phase, DataIn):
                    ccb.sense = phase.data

    def _status(self, ccb: Ccb, status: int) -> None:
        """The status phase."""
        if ccb.ended:
            return
        if ccb.sense:
            self._master.dma_write(ccb.sense_pointer, ccb.sense)
        checked = ccb.inbound or ccb.outbound
        short = checked and not (ccb.inbound and ccb.outbound) and ccb.moved != ccb.capacity
        run = status == GOOD and (ccb.overrun or short)
        self._finish(ccb, HostStatus.DATA_RUN if run else HostStatus.OK, status)

    def _finish(self, ccb: Ccb, host: HostStatus, target: int = GOOD) -> None:
        """Write the CCB's status back, tell the host, and let the target's next command begin."""
        if ccb.ended:
            return
        if ccb.opcode in (0x03, 0x04) and ccb.phases is not None:  # residual length asked for, and the command ran
            self._master.dma_write(ccb.address + 4, ccb.residual)
        self._master.dma_write(ccb.address + STATUS_AT, bytes((host, target)))
        self._leave(ccb)
        failed = host != HostStatus.OK or target != GOOD
        self._done(MbiStatus.ERROR if failed else MbiStatus.COMPLETED, ccb.address, host, target)

    def _leave(self, ccb: Ccb) -> None:
        """The CCB is over: mechanism and bus are there for the others."""
        ccb.ended = True
        if ccb.phases is not None:
            ccb.phases.close()
        drive = self._drives[ccb.target]
        drive.ccbs.remove(ccb)
        self._take_mechanism(ccb)
        self._go_on(drive)

    def _refuse(self, ccb: Ccb, status: HostStatus) -> None:
        self._master.dma_write(ccb.address + STATUS_AT, bytes((status, GOOD)))
        self._done(MbiStatus.ERROR, ccb.address, status)

    def _device_reset(self, ccb: Ccb) -> None:
        """Send the target a BUS DEVICE RESET message: what it was doing, and what waited for it, is forgotten."""
        target, drive = self.targets.get(ccb.target), self._drives.setdefault(ccb.target, Drive())
        if target is not None:
            self._forget(drive)
            target.reset()
        drive.ccbs.append(ccb)
        ccb.started, ccb.tag = True, None
        if target is not None:
            self._claim(SELECTION, lambda: self._finish(ccb, HostStatus.OK))
        else:
            self._start(ccb)
