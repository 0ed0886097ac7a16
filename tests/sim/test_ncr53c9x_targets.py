"""What targets do behind a 53C9x: messages, disconnection and reselection, aborts, errors."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.sim.scsi.bus import RESET_TO_SELECTION
from busdma.sim.scsi.ncr53c9x_layout import (
    BUS_RESET,
    BUS_SERVICE,
    CHECK_PARITY,
    CONFIG1,
    DESTINATION,
    DISABLE_RESELECTION,
    DISCONNECTED,
    ENABLE_RESELECTION,
    FLUSH_FIFO,
    FUNCTION_COMPLETE,
    INTERRUPTS,
    MESSAGE_ACCEPTED,
    PARITY_ERROR,
    RESELECTED,
    RESET_BUS,
    SELECT_ATN,
    SELECT_ATN3,
    SELECT_ATN_STOP,
    SET_ATN,
    TRANSFER,
)
from busdma.sim.scsi.nexus import BUSY, Phase
from sim.aha1542_host import pattern, ten
from sim.ncr53c9x_host import INQUIRY, TEST_UNIT_READY, Bench, Event, Host

MAY_DISCONNECT = 0xC0


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(0, 3, 5)
    yield made
    made.close()


def disconnect(host: Host, event: Event) -> None:
    """The target says DISCONNECT and goes."""
    assert event.phase == Phase.MESSAGE_IN
    assert host.message() == 0x04
    assert host.go(MESSAGE_ACCEPTED).bits == DISCONNECTED


def told(host: Host, target: int, messages: bytes, *, first: int = 0x80) -> Event:
    """Select with a first message, stop, and send the others."""
    host.write(DESTINATION, target)
    host.command(FLUSH_FIFO)
    host.fifo(bytes((first,)))
    assert host.go(SELECT_ATN_STOP).step == 1
    host.fifo(messages)
    return host.go(TRANSFER)


def test_disconnection_and_reselection(bench: Bench) -> None:
    host = bench.ready()
    bench.disks[3].write(7, pattern(512))
    disconnect(host, host.select(3, ten(0x28, 7, 1), identify=MAY_DISCONNECT))
    assert host.idle()  # the chip does not answer yet
    event = host.go(ENABLE_RESELECTION)
    assert (event.bits, event.phase, host.held()) == (RESELECTED, Phase.MESSAGE_IN, 2)
    assert host.take(2) == bytes((0x88, 0x80))
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.DATA_IN
    host.move(0, 512, inward=True)
    assert host.finish() == 0
    assert bench.memory[:512] == pattern(512)


def test_a_selection_ends_the_answering_of_targets(bench: Bench) -> None:
    host = bench.ready()
    host.command(ENABLE_RESELECTION)
    disconnect(host, host.select(3, ten(0x28, 7, 1), identify=MAY_DISCONNECT))
    assert host.idle()
    assert host.go(ENABLE_RESELECTION).bits == RESELECTED


def test_without_permission_the_target_keeps_the_bus(bench: Bench) -> None:
    host = bench.ready()
    event = host.select(3, ten(0x28, 0, 1), identify=0x80)
    assert event.phase == Phase.DATA_IN
    assert bench.chip.statistics()["disconnections"] == 3  # those of the commands before


def test_the_pointer_is_saved_in_mid_transfer() -> None:
    bench = Bench(2, burst=1000)
    host = bench.ready()
    bench.disks[2].write(0, pattern(2048))
    done = host.run(2, ten(0x28, 0, 4), [(0x100, 700), (0x2000, 1348)], identify=MAY_DISCONNECT)
    assert done.messages == [4, 2, 4, 2, 4]
    assert bench.memory[0x100 : 0x100 + 700] + bench.memory[0x2000 : 0x2000 + 1348] == pattern(2048)
    bench.memory[0x4000:0x4800] = pattern(2048, 9)
    done = host.run(2, ten(0x2A, 8, 4), [(0x4000, 2048)], identify=MAY_DISCONNECT)
    assert done.messages == [2, 4, 2, 4, 2, 4]  # the last: it writes
    assert bench.disks[2].read(8, 4) == pattern(2048, 9)
    bench.close()


def test_two_targets_at_a_time(bench: Bench) -> None:
    host = bench.ready()
    for target in (0, 3, 5):
        bench.disks[target].write(100 + target, pattern(512, target))
        disconnect(host, host.select(target, ten(0x28, 100 + target, 1), identify=MAY_DISCONNECT))
    found = set()
    for _ in range(3):
        assert host.go(ENABLE_RESELECTION).bits == RESELECTED
        target = (host.take(2)[0] & 0x7F).bit_length() - 1
        assert host.go(MESSAGE_ACCEPTED).phase == Phase.DATA_IN
        host.move(0x1000 * target, 512, inward=True)
        assert host.finish() == 0
        assert bench.memory[0x1000 * target : 0x1000 * target + 512] == pattern(512, target)
        found.add(target)
    assert found == {0, 3, 5}


def test_the_highest_of_those_that_wait_comes_first(bench: Bench) -> None:
    host = bench.ready()
    for target in (0, 5, 3):
        disconnect(host, host.select(target, ten(0x28, 0, 1), identify=MAY_DISCONNECT))
    assert host.idle()
    host.go(ENABLE_RESELECTION)
    assert host.take(1) == bytes((0xA0,))


def test_a_selection_that_a_reselection_is_faster_than(bench: Bench) -> None:
    host = bench.ready()
    disconnect(host, host.select(3, ten(0x28, 0, 1), identify=MAY_DISCONNECT))
    assert host.idle()
    host.write(DESTINATION, 5)
    host.command(ENABLE_RESELECTION)
    host.fifo(b"\x80" + INQUIRY)
    host.command(SELECT_ATN)
    while not bench.line.level:
        assert bench.clock.step()
    host.fifo(b"lost")  # not before the interrupts are read
    host.command(SELECT_ATN)
    event = host.wait()
    assert (event.bits, host.held(), host.take(2)) == (RESELECTED, 2, bytes((0x88, 0x80)))
    assert bench.chip.statistics()["beaten"] == 1
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.DATA_IN
    host.move(0, 512, inward=True)
    assert host.finish() == 0
    assert host.run(5, INQUIRY, [(0, 36)]).status == 0


def test_the_other_way_round(bench: Bench) -> None:
    host = bench.ready()
    disconnect(host, host.select(3, ten(0x28, 0, 1), identify=MAY_DISCONNECT))
    assert host.idle()
    assert host.run(5, INQUIRY, [(0, 36)]).status == 0
    host.command(ENABLE_RESELECTION)
    host.command(DISABLE_RESELECTION)
    assert host.wait().bits == FUNCTION_COMPLETE
    assert host.idle()


def test_a_rejected_disconnection(bench: Bench) -> None:
    host = bench.ready()
    assert host.select(3, ten(0x28, 0, 1), identify=MAY_DISCONNECT).phase == Phase.MESSAGE_IN
    assert host.message() == 4
    host.command(SET_ATN)
    event = host.go(MESSAGE_ACCEPTED)
    assert (event.bits, event.phase) == (BUS_SERVICE, Phase.MESSAGE_OUT)
    host.fifo(b"\x07")
    assert host.go(TRANSFER).phase == Phase.DATA_IN


def test_queue_tags() -> None:
    bench = Bench(1, tags=8)
    host = bench.ready()
    host.write(DESTINATION, 1)
    host.fifo(bytes((MAY_DISCONNECT, 0x20, 0x42)) + ten(0x28, 0, 1))
    event = host.go(SELECT_ATN3)
    assert event.step == 4
    disconnect(host, event)
    for identify, tag, status in ((0xC0, b"\x20\x43", 0x28), (0xC0, b"", BUSY)):  # one at a time
        host.fifo(bytes((identify,)) + tag + TEST_UNIT_READY)
        assert host.go(SELECT_ATN3 if tag else SELECT_ATN).phase == Phase.STATUS
        assert host.finish() == status
    host.go(ENABLE_RESELECTION)
    assert host.take(2) == bytes((0x82, 0x80))
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.MESSAGE_IN
    assert host.message() == 0x20
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.MESSAGE_IN
    assert host.message() == 0x42
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.DATA_IN
    bench.close()


def test_a_target_without_queues_rejects_the_tag(bench: Bench) -> None:
    host = bench.ready()
    host.write(DESTINATION, 3)
    host.fifo(bytes((0x80, 0x20, 1)) + INQUIRY)
    event = host.go(SELECT_ATN3)
    assert (event.phase, event.step) == (Phase.MESSAGE_IN, 2)
    host.command(FLUSH_FIFO)
    assert host.message() == 7
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.COMMAND
    host.fifo(INQUIRY)
    assert host.go(TRANSFER).phase == Phase.DATA_IN


@pytest.mark.parametrize("messages", [b"\x06", b"\x0d", b"\x08\x06"])
def test_aborting_a_command_that_is_away(bench: Bench, messages: bytes) -> None:
    host = bench.ready()
    bench.memory[:512] = pattern(512)
    assert host.select(3, ten(0x2A, 0, 1), identify=MAY_DISCONNECT).phase == Phase.DATA_OUT
    event, moved = host.move(0, 512, inward=False)
    assert (event.phase, moved, host.message()) == (Phase.MESSAGE_IN, 512, 2)
    disconnect(host, host.go(MESSAGE_ACCEPTED))
    host.command(ENABLE_RESELECTION)
    assert told(host, 3, messages).bits == DISCONNECTED
    host.command(ENABLE_RESELECTION)
    assert host.idle()
    assert bench.disks[3].read(0, 1) == bytes(512)  # it was never written
    assert host.run(3, TEST_UNIT_READY).status == 0


def test_a_device_reset(bench: Bench) -> None:
    host = bench.ready()
    assert told(host, 3, b"\x0c").bits == DISCONNECTED
    assert host.run(3, TEST_UNIT_READY).status == 2  # a unit attention
    assert host.run(5, TEST_UNIT_READY).status == 0


def test_an_unknown_message(bench: Bench) -> None:
    host = bench.ready()
    event = told(host, 3, bytes((1, 2, 3, 1)))  # wide transfers, please
    assert (event.phase, host.message()) == (Phase.MESSAGE_IN, 7)
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.COMMAND


def test_a_parity_error_and_the_way_back() -> None:
    bench = Bench(2, burst=512)
    host = bench.ready()
    host.write(CONFIG1, CHECK_PARITY | 7)
    bench.disks[2].write(0, pattern(1024))
    disconnect(host, host.select(2, ten(0x28, 0, 2), identify=MAY_DISCONNECT))
    host.go(ENABLE_RESELECTION)
    host.take(2)
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.DATA_IN
    event, moved = host.move(0, 1024, inward=True)
    assert (event.phase, moved, host.message()) == (Phase.MESSAGE_IN, 512, 2)
    disconnect(host, host.go(MESSAGE_ACCEPTED))
    host.go(ENABLE_RESELECTION)
    host.take(2)
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.DATA_IN
    bench.chip.inject_parity_error()
    event, moved = host.move(512, 512, inward=True)
    assert (event.phase, event.status & PARITY_ERROR, moved) == (Phase.MESSAGE_OUT, PARITY_ERROR, 512)
    host.fifo(b"\x05")
    assert host.go(TRANSFER).phase == Phase.MESSAGE_IN
    assert host.message() == 3  # back to what was saved
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.DATA_IN
    host.move(512, 512, inward=True)
    assert (host.finish(), bytes(bench.memory[:1024])) == (0, pattern(1024))
    bench.close()


def test_the_way_back_goes_to_what_was_saved() -> None:
    bench = Bench(2, burst=512)
    host = bench.ready()
    host.write(CONFIG1, CHECK_PARITY | 7)
    bench.disks[2].write(0, pattern(1024))
    assert host.select(2, ten(0x28, 0, 2)).phase == Phase.DATA_IN
    event, moved = host.move(0, 512, inward=True)
    assert (event.phase, moved) == (Phase.DATA_IN, 512)
    bench.chip.inject_parity_error()
    assert host.move(512, 512, inward=True)[0].phase == Phase.MESSAGE_OUT
    host.fifo(b"\x05")
    assert host.go(TRANSFER).phase == Phase.MESSAGE_IN
    assert host.message() == 3
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.DATA_IN
    event, moved = host.move(0, 1024, inward=True)  # nothing was saved: all of it again
    assert (event.phase, moved, host.finish()) == (Phase.STATUS, 1024, 0)
    assert bench.memory[:1024] == pattern(1024)
    bench.close()


def test_a_damaged_byte_that_nobody_checks(bench: Bench) -> None:
    host = bench.ready()
    bench.disks[3].write(0, pattern(512, 1))
    bench.chip.inject_parity_error()
    assert host.run(3, ten(0x28, 0, 1), [(0, 512)]).status == 0
    assert bench.memory[:512] == b"\x00" + pattern(512, 1)[1:]


def test_a_block_that_cannot_be_read(bench: Bench) -> None:
    host = bench.ready()
    bench.targets[3].bad.add(2)
    done = host.run(3, ten(0x28, 0, 4), [(0, 2048)], identify=MAY_DISCONNECT)
    assert (done.status, done.moved) == (2, 1024)


@pytest.mark.parametrize("identify", [0x80, MAY_DISCONNECT])
def test_a_command_that_never_ends(bench: Bench, identify: int) -> None:
    host = bench.ready()
    bench.chip.inject_silence(3)
    host.write(DESTINATION, 3)
    host.fifo(bytes((identify,)) + TEST_UNIT_READY)
    host.command(SELECT_ATN)
    if identify == MAY_DISCONNECT:
        disconnect(host, host.wait())
        host.command(ENABLE_RESELECTION)
    assert host.idle()
    assert host.go(RESET_BUS).bits == BUS_RESET
    host.clock.run(host.clock.time + RESET_TO_SELECTION)
    assert host.run(3, TEST_UNIT_READY).status == 2
    assert host.run(3, TEST_UNIT_READY).status == 0


def test_a_bus_reset_forgets_who_is_away(bench: Bench) -> None:
    host = bench.ready()
    disconnect(host, host.select(3, ten(0x28, 0, 1), identify=MAY_DISCONNECT))
    assert host.go(RESET_BUS).bits == BUS_RESET
    host.command(ENABLE_RESELECTION)
    assert host.idle()
    assert host.read(INTERRUPTS) == 0


piece = st.integers(1, 1500)
job = st.tuples(st.booleans(), st.integers(0, 40), st.integers(1, 6), st.lists(piece, min_size=1), st.booleans())


@given(st.integers(0, 1400), st.lists(job, max_size=6))
def test_any_commands_in_any_pieces_against_an_array(
    burst: int, jobs: list[tuple[bool, int, int, list[int], bool]]
) -> None:
    bench = Bench(6, blocks=64, burst=burst)
    host, blocks, source = bench.ready(), bytearray(64 * 512), random.Random(1)
    for writing, lba, count, pieces, may_disconnect in jobs:
        segments, at, left = [], 0, count * 512
        for length in (*pieces, left):
            length = min(length, left)
            if length:
                segments.append((at, length))
                at, left = at + length + 7, left - length
        data = source.randbytes(count * 512)
        done = 0
        for address, length in segments:
            bench.memory[address : address + length] = data[done : done + length] if writing else bytes(length)
            done += length
        cdb = ten(0x2A if writing else 0x28, lba, count)
        result = host.run(6, cdb, segments, identify=MAY_DISCONNECT if may_disconnect else 0x80)
        assert (result.status, result.moved) == (0, count * 512)
        if writing:
            blocks[lba * 512 : (lba + count) * 512] = data
        else:
            read = b"".join(bench.memory[address : address + length] for address, length in segments)
            assert read == blocks[lba * 512 : (lba + count) * 512]
    assert bench.disks[6].read(0, 64) == blocks
    bench.close()
