"""What the driver does at each interrupt of the chip, with the chip played by the test, byte by byte."""

from __future__ import annotations

from typing import Any, cast

import pytest

from busdma.drivers.ncr53c9x import chip as ncr
from busdma.drivers.ncr53c9x.chip import Chip
from busdma.drivers.ncr53c9x.nexus import Nexus
from busdma.drivers.ncr53c9x.sequencer import BUS_FREE, MOST_PADS, NO_DEVICE, OVERRUN, PARITY, Sequencer
from busdma.drivers.queues import Channel
from busdma.drivers.scsi_host import Unit

CDB = bytes(range(0x28, 0x32))


class Stage:
    """The chip's registers, the engine, and the sequencer's client. `told`: its commands, flushes left out."""

    def __init__(self) -> None:
        self.fifo = bytearray()
        self.status = self.step = self.cause = 0
        self.told: list[int] = []
        self.units: dict[int, Unit] = {}
        self.ended_with: list[tuple[Nexus, int, bool]] = []
        self.troubles: list[str] = []
        self.chip = Chip("esp0", self, stride=1, counter=16, clock=40)
        self.sequencer = Sequencer(self.chip, cast(Any, self), self)
        self.sequencer.listen()
        self.told.clear()

    def read8(self, offset: int) -> int:
        match offset:
            case ncr.FIFO:
                return self.fifo.pop(0)
            case ncr.STATUS:
                return self.status
            case ncr.CAUSE:
                cause, self.cause, self.status = self.cause, 0, self.status & ncr.PHASE
                return cause
            case ncr.STEP:
                return self.step
            case ncr.FIFO_FLAGS:
                return len(self.fifo)
        return 0

    def write8(self, offset: int, value: int) -> None:
        if offset == ncr.FIFO:
            self.fifo.append(value)
        elif offset == ncr.COMMAND and value == ncr.FLUSH_FIFO:
            self.fifo.clear()
        elif offset == ncr.COMMAND:
            self.told.append(value)

    def barrier(self) -> None:
        pass

    def aim(self, address: int, count: int, to_memory: bool) -> None:
        pass

    def go(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def ended(self, nexus: Nexus, host: int, aborted: bool) -> None:
        self.ended_with.append((nexus, host, aborted))

    def trouble(self, why: str) -> None:
        self.troubles.append(why)

    def interrupt(
        self, cause: int, phase: int = 0, *, status: int = 0, step: int = 0, fifo: bytes | None = None
    ) -> None:
        """The chip interrupts; `fifo`: what is in it, None: what there was."""
        self.cause, self.status, self.step = cause, ncr.INTERRUPT | status | phase, step
        if fifo is not None:
            self.fifo[:] = fifo
        self.told.clear()
        self.sequencer.handle()

    def nexus(self, target: int = 3, *segments: tuple[int, int], inbound: bool = True) -> Nexus:
        """A command for `target`, submitted."""
        nexus = Nexus(cast(Any, None), 0, 0)
        nexus.unit = self.units.setdefault(target, Unit(target, 1, cast(Any, None), Channel("slots")))
        nexus.prepare(CDB, segments, inbound)
        self.sequencer.submit(nexus)
        return nexus

    def connected(self, phase: int, *segments: tuple[int, int], inbound: bool = True) -> Nexus:
        """A command that was selected, and is in `phase`."""
        nexus = self.nexus(3, *segments, inbound=inbound)
        self.interrupt(ncr.SUCCESS | ncr.SERVICE, phase, step=4, fifo=b"")
        return nexus


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_selection_sends_identify_and_the_command(stage: Stage) -> None:
    stage.nexus()
    assert stage.told == [ncr.SELECT_ATN]
    assert stage.fifo == b"\xc1" + CDB


def test_nobody_answers(stage: Stage) -> None:
    nexus = stage.nexus()
    behind = stage.nexus(4)
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.ended_with == [(nexus, NO_DEVICE, False)]
    assert stage.told == [ncr.ENABLE_RESELECTION, ncr.SELECT_ATN]
    assert stage.fifo == b"\xc1" + behind.command


def test_one_command_a_unit(stage: Stage) -> None:
    stage.nexus(3)
    stage.nexus(3)
    third = stage.nexus(4)
    stage.interrupt(ncr.SUCCESS | ncr.SERVICE, ncr.MESSAGE_IN, step=4, fifo=b"")
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x04")  # DISCONNECT
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.told == [ncr.ENABLE_RESELECTION, ncr.SELECT_ATN]
    assert stage.sequencer._nexus is third


def test_a_command_that_was_cut_short_is_continued(stage: Stage) -> None:
    """Step 3: a premature phase change; "some CDB bytes may not have been sent; check FIFO flags"."""
    stage.nexus()
    stage.interrupt(ncr.SUCCESS | ncr.SERVICE, ncr.MESSAGE_IN, step=3, fifo=CDB[6:])
    assert stage.told == [ncr.TRANSFER]
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x08")
    assert stage.told == [ncr.ACCEPT_MESSAGE]
    stage.interrupt(ncr.SERVICE, ncr.COMMAND_PHASE)
    assert stage.told == [ncr.TRANSFER]
    assert stage.fifo == CDB[6:]


def test_status_and_message_together(stage: Stage) -> None:
    nexus = stage.connected(ncr.STATUS_PHASE)
    assert stage.told == [ncr.COMPLETE]
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x08\x00")
    assert stage.told == [ncr.ACCEPT_MESSAGE]
    assert stage.ended_with == []
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.ended_with == [(nexus, 0, False)]
    assert nexus.status == 0x08


def test_status_without_its_message(stage: Stage) -> None:
    nexus = stage.connected(ncr.STATUS_PHASE)
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_OUT, fifo=b"\x00")
    assert stage.told == [ncr.TRANSFER]
    assert stage.fifo == b"\x08"  # NO OPERATION, for want of anything to say
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.ended_with == [(nexus, BUS_FREE, False)]


def test_a_damaged_message_is_asked_for_again(stage: Stage) -> None:
    nexus = stage.connected(ncr.MESSAGE_IN, (0x1000, 512))
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, status=ncr.PARITY_ERROR, fifo=b"\x04")
    assert stage.told == [ncr.SET_ATN, ncr.ACCEPT_MESSAGE]
    assert not nexus.leaving
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_OUT)
    assert stage.fifo == b"\x09"
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_IN)
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x04")
    assert nexus.leaving


def test_a_long_message_is_rejected_behind_its_last_byte(stage: Stage) -> None:
    stage.connected(ncr.MESSAGE_IN)
    for byte in b"\x01\x03\x01\x19":
        stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=bytes((byte,)))
        assert stage.told == [ncr.ACCEPT_MESSAGE]
        stage.interrupt(ncr.SERVICE, ncr.MESSAGE_IN)
        assert stage.told == [ncr.TRANSFER]
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x0f")
    assert stage.told == [ncr.SET_ATN, ncr.ACCEPT_MESSAGE]
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_OUT)
    assert stage.fifo == b"\x07"


def test_a_damaged_status_byte_fails_the_command(stage: Stage) -> None:
    nexus = stage.connected(ncr.STATUS_PHASE)
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_OUT, status=ncr.PARITY_ERROR, fifo=b"\x00")
    assert stage.fifo == b"\x05"  # INITIATOR DETECTED ERROR
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_IN)
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x00")
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.ended_with == [(nexus, PARITY, False)]


def test_the_residual_on_the_way_out_counts_the_fifo(stage: Stage) -> None:
    """The counter counts what the engine brings; what is still in the FIFO never got to the target."""
    nexus = stage.connected(ncr.DATA_OUT, (0x1000, 512), inbound=False)
    assert stage.told == [ncr.TRANSFER | ncr.DMA]
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_IN, status=ncr.COUNTED_OUT, fifo=bytes(12))
    assert (nexus.pointers.at, nexus.pointers.residual) == (500, 12)
    assert stage.told == [ncr.TRANSFER]
    assert stage.fifo == b""


def test_endless_data(stage: Stage) -> None:
    nexus = stage.connected(ncr.DATA_IN)
    for _ in range(MOST_PADS - 1):
        stage.interrupt(ncr.SERVICE, ncr.DATA_IN)
        assert stage.told == [ncr.PAD | ncr.DMA]
    assert nexus.flaw == OVERRUN
    stage.interrupt(ncr.SERVICE, ncr.DATA_IN)
    assert stage.troubles == ["a target moves data without end"]


def test_a_selection_that_lost_comes_first_when_the_bus_is_free(stage: Stage) -> None:
    away = stage.connected(ncr.MESSAGE_IN, (0x1000, 512))
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x04")
    stage.interrupt(ncr.DISCONNECTED)
    lost = stage.nexus(5)
    stage.nexus(6)
    stage.interrupt(ncr.RESELECTED | ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x88\x81")  # 7 and 3; IDENTIFY, unit 1
    assert stage.told == [ncr.ACCEPT_MESSAGE]
    assert stage.sequencer._nexus is away
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.ended_with == [(away, BUS_FREE, False)]
    assert stage.sequencer._nexus is lost


def test_an_abort_of_who_is_away(stage: Stage) -> None:
    nexus = stage.connected(ncr.MESSAGE_IN)
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x04")
    stage.interrupt(ncr.DISCONNECTED)
    stage.sequencer.abort(nexus)
    assert stage.told[-1] == ncr.SELECT_ATN_STOP
    assert stage.fifo == b"\xc1"
    stage.interrupt(ncr.SUCCESS | ncr.SERVICE, ncr.MESSAGE_OUT, step=1, fifo=b"")
    assert stage.told == [ncr.TRANSFER]
    assert stage.fifo == b"\x06"
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.ended_with == [(nexus, 0, True)]


def test_an_abort_while_it_is_selected_and_it_leaves_all_the_same(stage: Stage) -> None:
    nexus = stage.nexus()
    stage.sequencer.abort(nexus)
    assert stage.told == [ncr.SELECT_ATN]  # ATN is on already
    stage.interrupt(ncr.SUCCESS | ncr.SERVICE, ncr.MESSAGE_IN, step=4, fifo=b"")
    assert stage.told == [ncr.SET_ATN, ncr.TRANSFER]
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x04")
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.told == [ncr.ENABLE_RESELECTION, ncr.SELECT_ATN_STOP]


def test_an_abort_of_who_comes_back_meanwhile(stage: Stage) -> None:
    nexus = stage.connected(ncr.MESSAGE_IN)
    stage.interrupt(ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x04")
    stage.interrupt(ncr.DISCONNECTED)
    stage.sequencer.abort(nexus)
    stage.interrupt(ncr.RESELECTED | ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x88\x81")
    stage.interrupt(ncr.SERVICE, ncr.DATA_IN)
    assert stage.told[0] == ncr.SET_ATN
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_OUT)
    assert stage.fifo == b"\x06"
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.ended_with == [(nexus, 0, True)]
    assert stage.told == [ncr.ENABLE_RESELECTION]


def test_an_abort_of_who_moves_data(stage: Stage) -> None:
    """ATN is on at once: the transfer may never end by itself."""
    nexus = stage.connected(ncr.DATA_IN, (0x1000, 512))
    stage.told.clear()
    stage.sequencer.abort(nexus)
    assert stage.told == [ncr.SET_ATN]
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_OUT, status=ncr.COUNTED_OUT)
    assert stage.fifo == b"\x06"


def test_an_abort_of_who_has_not_begun(stage: Stage) -> None:
    stage.nexus(3)
    waits = stage.nexus(4)
    stage.sequencer.abort(waits)
    assert stage.ended_with == [(waits, 0, True)]


@pytest.mark.parametrize(
    ("cause", "phase", "status", "fifo", "words"),
    [
        (ncr.SCSI_RESET, 0, 0, b"", "somebody reset its SCSI bus"),
        (ncr.ILLEGAL_COMMAND, 0, 0, b"", "interrupt 0x40 while fetching the status"),
        (ncr.SERVICE, 0, ncr.GROSS_ERROR, b"", "status 0xc0, interrupt 0x10"),
        (1, 0, 0, b"", "interrupt 0x01"),  # selected, as a target
        (0, 0, 0, b"", "for no reason"),
        (ncr.SERVICE, 4, 0, b"\x00", "phase 4"),
        (ncr.RESELECTED, 7, 0, b"\x88\x80", "reselected"),
    ],
)
def test_trouble(stage: Stage, cause: int, phase: int, status: int, fifo: bytes, words: str) -> None:
    stage.connected(ncr.STATUS_PHASE)
    if cause == ncr.RESELECTED:
        stage.sequencer._nexus = None
    stage.interrupt(cause, phase, status=status, fifo=fifo)
    assert len(stage.troubles) == 1
    assert words in stage.troubles[0]
    assert stage.told == []
    stage.nexus(6)
    assert stage.told == []  # nothing goes on


@pytest.mark.parametrize("fifo", [b"", b"\x88", b"\x80\x80", b"\x88\x04"])
def test_a_reselection_by_nobody(stage: Stage, fifo: bytes) -> None:
    stage.interrupt(ncr.RESELECTED | ncr.SUCCESS, ncr.MESSAGE_IN, fifo=fifo)
    assert "nobody in particular" in stage.troubles[0]


def test_a_reselection_that_nobody_asked_for(stage: Stage) -> None:
    stage.interrupt(ncr.RESELECTED | ncr.SUCCESS, ncr.MESSAGE_IN, fifo=b"\x84\x80")
    assert stage.told == [ncr.SET_ATN, ncr.ACCEPT_MESSAGE]
    stage.interrupt(ncr.SERVICE, ncr.DATA_IN)
    assert stage.told == [ncr.PAD | ncr.DMA]
    stage.interrupt(ncr.SERVICE, ncr.MESSAGE_OUT)
    assert stage.fifo == b"\x06"
    stage.interrupt(ncr.DISCONNECTED)
    assert stage.troubles == []
    assert stage.ended_with == []
