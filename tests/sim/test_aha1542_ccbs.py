"""The AHA-1542 model by its data sheet: CCBs, their data, their status, and what goes wrong with them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.sim.scsi.mailbox_adapter import (
    HRST,
    IDLE,
    SCRD,
    SCRST,
    SRST,
)
from busdma.sim.scsi.target import Busy, DataIn, Phases, ScsiTarget
from busdma.sim.scsi.target import Clock as ScsiClock
from sim.aha1542_host import (
    ABORTED,
    CCBS,
    COMPLETED,
    DATA,
    ERROR,
    MAILBOXES,
    MS,
    NOT_FOUND,
    SECOND,
    US,
    WIRES,
    Counting,
    Host,
    pattern,
    ten,
    three,
)

# Reading and writing


def test_a_write_and_a_read_of_one_area(host: Host) -> None:
    host.bus.put(DATA, pattern(4096))
    write = host.ccb(0, ten(0x2A, 100, 8), direction=0x10, length=4096, pointer=DATA)
    assert host.run(write) == (COMPLETED, 0, 0)
    assert host.disks[0].read(100, 8) == pattern(4096)
    read = host.ccb(0, ten(0x28, 100, 8), direction=0x08, length=4096, pointer=DATA + 0x10000)
    assert host.run(read) == (COMPLETED, 0, 0)
    assert host.bus.get(DATA + 0x10000, 4096) == pattern(4096)
    assert host.bus.memory[DATA + 0x10000 + 4096] == 0


def test_data_moves_when_the_disk_is_there_and_not_when_the_command_is_given(host: Host) -> None:
    """A read writes memory after seek and rotation; a write reads memory before them, and the file comes after."""
    host.disks[0].write(4000, b"\x01" * 512)
    posted = host.clock.time
    host.post(host.ccb(0, ten(0x28, 4000, 1), length=512, pointer=DATA))
    host.clock.run(host.clock.time + 300 * US)
    host.disks[0].write(4000, b"\x02" * 512)  # changed while the drive seeks
    host.finished()
    assert host.bus.get(DATA, 512) == b"\x02" * 512
    (moment,) = [at for kind, address, _, at in host.bus.accesses if (kind, address) == ("write", DATA)]
    assert moment - posted > MS
    host.post(host.ccb(1, ten(0x2A, 0, 1), length=512, pointer=DATA))
    host.wait(lambda: host.bus.accesses[-1][:3] == ("read", DATA, 512))
    host.bus.put(DATA, b"\x03" * 512)  # too late: the drive has its bytes
    assert host.disks[0].read(0, 1) == bytes(512)
    host.finished()
    assert host.disks[0].read(0, 1) == b"\x02" * 512


def test_each_element_of_a_scatter_list_is_one_access(host: Host) -> None:
    host.disks[0].write(8, pattern(4096))
    elements = ((DATA + 3, 1024), (DATA + 0x2000, 2), (DATA + 0x1001, 2046), (DATA + 0x4000, 1024))
    pointer, length = host.sg(0, *elements)
    ccb = host.ccb(0, ten(0x28, 8, 8), opcode=2, length=length, pointer=pointer)
    before = len(host.bus.accesses)
    assert host.run(ccb) == (COMPLETED, 0, 0)
    writes = [(address, size) for kind, address, size, _ in host.bus.accesses[before:] if kind == "write"]
    assert [access for access in writes if access[0] >= DATA] == list(elements)
    assert b"".join(host.bus.get(address, size) for address, size in elements) == pattern(4096)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=17),
    start=st.integers(0, 2000),
    gaps=st.lists(st.integers(0, 300), min_size=17, max_size=17),
    opcode=st.sampled_from([2, 4]),
)
def test_scatter_and_gather_put_every_byte_in_its_place(
    lengths: list[int], start: int, gaps: list[int], opcode: int
) -> None:
    """Against a model: the segments' bytes in order, up to what the disk moves; nothing else changes."""
    host = Host()
    host.start()
    elements, at = [], DATA + start
    for length, gap in zip(lengths, gaps, strict=False):
        elements.append((at, length))
        at += length + gap
    total = sum(lengths)
    blocks = max(1, total // 512)
    pointer, size = host.sg(0, *elements)
    host.bus.put(DATA, pattern(20_000, seed=1))
    expected = bytearray(pattern(20_000, seed=1))
    gathered = b"".join(expected[a - DATA : a - DATA + n] for a, n in elements)

    moved = min(total, blocks * 512)
    overrun = blocks * 512 > total
    wanted = (ERROR, 0x12, 0) if overrun else (COMPLETED, 0, 0)
    write = host.ccb(0, ten(0x2A, 0, blocks), opcode=opcode, length=size, pointer=pointer)
    assert host.run(write) == wanted
    assert host.disks[0].read(0, blocks) == gathered[:moved].ljust(blocks * 512, b"\0")
    assert host.bus.get(DATA, 20_000) == expected

    data = pattern(blocks * 512, seed=9)
    host.disks[0].write(0, data)
    read = host.ccb(0, ten(0x28, 0, blocks), opcode=opcode, length=size, pointer=pointer)
    assert host.run(read) == wanted
    rest = data
    for address, length in elements:
        piece, rest = rest[:length], rest[length:]
        expected[address - DATA : address - DATA + len(piece)] = piece
    assert host.bus.get(DATA, 20_000) == expected
    assert host.bus.get(read + 4, 3) == three(total - moved if opcode == 4 else size)
    host.close()


def test_an_area_that_ends_above_16_mib_wraps_to_address_zero(host: Host) -> None:
    host.disks[0].write(0, pattern(1024))
    host.bus.put(0, b"\xbb" * 600)
    ccb = host.ccb(0, ten(0x28, 0, 2), length=1024, pointer=WIRES - 512)
    assert host.run(ccb) == (COMPLETED, 0, 0)
    assert bytes(host.bus.memory[-512:]) == pattern(1024)[:512]
    assert bytes(host.bus.memory[:600]) == pattern(1024)[512:] + b"\xbb" * 88


# Lengths, directions and status


@pytest.mark.parametrize(
    ("opcode", "direction", "length", "status", "residual"),
    [
        (0, 0x00, 2048, (COMPLETED, 0x00, 0), 2048),  # length not checked
        (0, 0x08, 2048, (ERROR, 0x12, 0), 2048),  # checked: underrun
        (0, 0x08, 1024, (COMPLETED, 0x00, 0), 1024),
        (0, 0x08, 700, (ERROR, 0x12, 0), 700),  # overrun
        (0, 0x00, 700, (ERROR, 0x12, 0), 700),
        (0, 0x18, 1024, (ERROR, 0x12, 0), 1024),  # both bits: no data is transferred
        (3, 0x00, 2048, (COMPLETED, 0x00, 0), 1024),  # residual returned
        (3, 0x08, 2048, (ERROR, 0x12, 0), 1024),
        (3, 0x08, 1024, (COMPLETED, 0x00, 0), 0),
        (3, 0x08, 700, (ERROR, 0x12, 0), 0),
    ],
)
def test_lengths_are_checked_and_residuals_returned(
    host: Host, opcode: int, direction: int, length: int, status: tuple[int, int, int], residual: int
) -> None:
    host.disks[0].write(0, pattern(1024))
    ccb = host.ccb(0, ten(0x28, 0, 2), opcode=opcode, direction=direction, length=length, pointer=DATA)
    assert host.run(ccb) == status
    assert host.bus.get(ccb + 4, 3) == three(residual)
    moved = 0 if direction == 0x18 else min(length, 1024)
    assert host.bus.get(DATA, 2048) == pattern(1024)[:moved].ljust(2048, b"\0")


def test_a_command_without_data_is_not_short_when_no_data_was_announced(host: Host) -> None:
    assert host.run(host.ccb(0, bytes(6), direction=0x18, length=512, pointer=DATA)) == (COMPLETED, 0, 0)
    assert host.run(host.ccb(0, bytes(6), direction=0x08, length=0)) == (COMPLETED, 0, 0)
    assert host.run(host.ccb(0, bytes(6), direction=0x08, length=512, pointer=DATA)) == (ERROR, 0x12, 0)


class Halves(ScsiTarget):
    """A drive that disconnects in the middle of its data."""

    def execute(self, lun: int, cdb: bytes, now: ScsiClock) -> Phases:
        yield DataIn(b"A" * 300)
        yield Busy(5 * MS)
        yield DataIn(b"B" * 212)
        return 0


def test_a_target_may_disconnect_in_the_middle_of_its_data(host: Host) -> None:
    host.targets[0] = Halves(host.disks[0])
    pointer, length = host.sg(0, (DATA, 200), (DATA + 0x100, 200), (DATA + 0x200, 200))
    ccb = host.ccb(0, ten(0x28, 0, 1), opcode=4, length=length, pointer=pointer)
    before = len(host.bus.accesses)
    assert host.run(ccb) == (COMPLETED, 0, 0)
    writes = [(address, size) for kind, address, size, _ in host.bus.accesses[before:] if kind == "write"]
    data = [(DATA, 200), (DATA + 0x100, 100), (DATA + 0x164, 100), (DATA + 0x200, 112)]
    assert [access for access in writes if access[0] >= DATA] == data
    assert b"".join(host.bus.get(address, size) for address, size in data) == b"A" * 300 + b"B" * 212
    assert host.bus.get(ccb + 4, 3) == three(88)


def test_the_wrong_direction_is_a_phase_error_and_resets_the_bus(host: Host) -> None:
    host.post(host.ccb(1, ten(0x28, 0, 2), direction=0x10, length=1024, pointer=DATA))
    assert host.finished() == (ERROR, CCBS + 128)
    assert host.bus.get(CCBS + 128 + 14, 2) == bytes((0x14, 0))
    assert host.acknowledge() & SCRD
    assert host.bus.get(DATA, 1024) == bytes(1024)


def test_sense_data_lies_right_behind_the_cdb(host: Host) -> None:
    for cdb in (bytes((0x15, 0, 0, 0, 0, 0)), ten(0x28, 5000, 1)):
        for given_length, stored in ((0, 14), (1, 0), (18, 18), (8, 8), (255, 18)):
            ccb = host.ccb(0, cdb, length=512, pointer=DATA, sense=given_length)
            assert host.run(ccb) == (ERROR, 0, 2)
            sense = host.bus.get(ccb + 18 + len(cdb), 24)
            assert sense[stored:] == b"\xcc" * (24 - stored)
            if stored > 13:
                assert (sense[0] & 0x7F, sense[2], sense[12]) == (0x70, 5, 0x20 if len(cdb) == 6 else 0x21)
    request = host.ccb(1, bytes((0x03, 0, 0, 0, 18, 0)), length=18, pointer=DATA)
    assert host.run(request) == (COMPLETED, 0, 0)
    assert host.bus.memory[DATA + 2] == 0  # auto sense had cleared it
    host.run(host.ccb(0, bytes((0x15, 0, 0, 0, 0, 0)), sense=1))
    assert host.run(request) == (COMPLETED, 0, 0)
    assert host.bus.memory[DATA + 2] == 5  # without auto sense it is the host's to fetch


def test_an_absent_target_costs_the_selection_time_out(host: Host) -> None:
    before = host.clock.time
    assert host.run(host.ccb(0, bytes(6), target=3)) == (ERROR, 0x11, 0)
    assert 250 * MS <= host.clock.time - before < 260 * MS
    assert host.command(0x06, 1, 0, 0, 20)[1]
    before = host.clock.time
    assert host.run(host.ccb(0, bytes(6), target=3)) == (ERROR, 0x11, 0)
    assert 20 * MS <= host.clock.time - before < 25 * MS
    assert host.command(0x06, 0, 0, 0, 0)[1]  # no time-out: the adapter waits for ever
    ccb = host.ccb(0, bytes(6), target=3)
    host.post(ccb)
    host.clock.run(host.clock.time + SECOND)
    assert host.collect() is None
    host.post(ccb, action=2)
    assert host.finished() == (ABORTED, ccb)


def test_an_absent_logical_unit_is_the_targets_answer(host: Host) -> None:
    ccb = host.ccb(0, bytes(6), lun=1)
    assert host.run(ccb) == (ERROR, 0, 2)
    assert host.bus.memory[ccb + 24 + 12] == 0x25


@pytest.mark.parametrize(("opcode", "cdb"), [(1, bytes(6)), (5, bytes(6)), (0x80, bytes(6))])
def test_unknown_ccb_opcodes(host: Host, opcode: int, cdb: bytes) -> None:
    assert host.run(host.ccb(0, cdb, opcode=opcode)) == (ERROR, 0x16, 0)


@pytest.mark.parametrize("cdb", [b"", bytes(5), bytes(16), b"\x28" + bytes(5), b"\x00" + bytes(9)])
def test_a_cdb_of_the_wrong_length_is_an_invalid_ccb(host: Host, cdb: bytes) -> None:
    assert host.run(host.ccb(0, cdb)) == (ERROR, 0x1A, 0)


@pytest.mark.parametrize("length", [0, 5, 7, 18 * 6])
def test_a_list_of_no_or_too_many_or_broken_elements_is_refused(host: Host, length: int) -> None:
    pointer, _ = host.sg(0, *[(DATA, 512)] * 18)
    ccb = host.ccb(0, ten(0x28, 0, 1), opcode=4, length=length, pointer=pointer)
    assert host.run(ccb) == (ERROR, 0x1A, 0)
    assert host.bus.get(ccb + 4, 3) == three(length)


def test_an_empty_segment_is_refused_and_seventeen_full_ones_are_not(host: Host) -> None:
    pointer, length = host.sg(0, (DATA, 512), (DATA, 0))
    assert host.run(host.ccb(0, ten(0x28, 0, 1), opcode=2, length=length, pointer=pointer)) == (ERROR, 0x1A, 0)
    pointer, length = host.sg(0, *[(DATA + 4096 * index, 512) for index in range(17)])
    assert host.run(host.ccb(0, ten(0x28, 0, 17), opcode=2, length=length, pointer=pointer)) == (COMPLETED, 0, 0)


def test_an_unknown_mailbox_command_is_host_status_15(host: Host) -> None:
    ccb = host.ccb(0, bytes(6))
    host.post(ccb, action=3)
    assert host.finished() == (ERROR, ccb)
    assert host.bus.memory[ccb + 14] == 0x15


# Several commands, and aborts


def test_one_target_takes_its_commands_in_order_and_two_targets_overlap() -> None:
    host = Host(targets=(0, 1))
    host.start(count=8)
    for disk in host.disks.values():
        disk.write(0, bytes(4096 * 512))

    def run(ccbs: list[int]) -> tuple[list[int], int]:
        before = host.clock.time
        for ccb in ccbs:
            host.post(ccb, ring=False)
        host.send(0x02)
        order = [host.finished()[1] for _ in ccbs]
        return order, host.clock.time - before

    def write(index: int, target: int) -> int:
        return host.ccb(index, ten(0x2A, 900 * (index % 4), 1), target=target, length=512, pointer=DATA)

    same = [write(index, 0) for index in range(6)]
    order, alone = run(same)
    assert order == same
    both = [write(index, index % 2) for index in range(6)]
    order, overlapped = run(both)
    assert [ccb for ccb in order if ccb in both[::2]] == both[::2]
    assert [ccb for ccb in order if ccb in both[1::2]] == both[1::2]
    assert overlapped < 0.75 * alone
    host.close()


def test_the_bus_carries_one_transfer_at_a_time() -> None:
    host = Host(targets=(0, 1))
    host.start(count=8)
    for target in (0, 1):
        elements = [(DATA + 0x20000 * target + 4096 * index, 4096) for index in range(16)]
        pointer, length = host.sg(target, *elements)
        host.post(host.ccb(target, ten(0x28, 0, 128), target=target, opcode=2, length=length, pointer=pointer))
    assert {host.finished() for _ in range(2)} == {(COMPLETED, CCBS), (COMPLETED, CCBS + 128)}
    moves = [(at, address) for kind, address, size, at in host.bus.accesses if (kind, size) == ("write", 4096)]
    assert len(moves) == 32
    assert min(b[0] - a[0] for a, b in itertools.pairwise(moves)) >= 4096 * 200
    host.close()


def test_a_command_that_waits_or_seeks_is_aborted_and_touches_no_memory(host: Host) -> None:
    host.disks[0].write(3000, b"\x99" * 512)
    first = host.ccb(0, ten(0x28, 3000, 1), length=512, pointer=DATA)
    second = host.ccb(1, ten(0x28, 3000, 1), length=512, pointer=DATA + 512)
    third = host.ccb(2, ten(0x28, 3000, 1), length=512, pointer=DATA + 1024)
    for ccb in (first, second, third):
        host.post(ccb)
    host.post(second, action=2)  # it waits
    host.post(first, action=2)  # it seeks
    assert host.finished() == (ABORTED, second)
    assert host.finished() == (ABORTED, first)
    assert host.finished() == (COMPLETED, third)
    assert host.bus.get(DATA, 1024) == bytes(1024)
    assert host.bus.get(DATA + 1024, 512) == b"\x99" * 512
    assert host.bus.get(first + 14, 2) == b"\xee\xee"
    host.post(first, action=2)
    assert host.finished() == (NOT_FOUND, first)


def test_aborting_one_that_waits_does_not_disturb_the_one_that_runs(host: Host) -> None:
    target = host.targets[0] = Counting(host.disks[0])
    assert host.run(host.ccb(0, bytes(6))) == (ERROR, 0, 2)
    target.given = 0
    first = host.ccb(0, ten(0x28, 3000, 1), length=512, pointer=DATA)
    second = host.ccb(1, ten(0x28, 3000, 1), length=512, pointer=DATA + 512)
    host.post(first)
    host.post(second)
    host.post(second, action=2)
    assert host.finished() == (ABORTED, second)
    assert host.finished() == (COMPLETED, first)
    host.clock.run(host.clock.time + SECOND)
    assert [access[:2] for access in host.bus.accesses].count(("write", DATA)) == 1
    assert host.collect() is None
    assert target.given == 1


def test_an_abort_during_selection_reaches_the_drive_never(host: Host) -> None:
    target = host.targets[0] = Counting(host.disks[0])
    ccb = host.ccb(0, bytes(6))
    host.post(ccb, ring=False)
    host.post(ccb, action=2)
    assert host.finished() == (ABORTED, ccb)
    host.clock.run(host.clock.time + SECOND)
    assert target.given == 0


def test_a_reset_before_the_status_phase_leaves_the_ccb_alone(host: Host) -> None:
    target = host.targets[0] = Counting(host.disks[0])
    ccb = host.ccb(0, bytes((0x15, 0, 0, 0, 0, 0)))
    untouched = host.bus.get(ccb, 128)
    host.post(ccb)
    host.wait(lambda: target.given)
    host.adapter.write8(0, SCRST)
    host.clock.run(host.clock.time + SECOND)
    assert host.bus.get(ccb, 128) == untouched


@pytest.mark.parametrize("how", ["abort", "bus reset", "soft reset", "hard reset"])
def test_a_command_that_ends_in_the_middle_of_its_data_moves_no_more_of_it(host: Host, how: str) -> None:
    elements = [(DATA + 8192 * index, 8192) for index in range(8)]
    pointer, length = host.sg(0, *elements)
    ccb = host.ccb(0, ten(0x28, 0, 128), opcode=2, length=length, pointer=pointer)
    host.disks[0].write(0, b"\x5a" * 65536)
    host.post(ccb)
    host.wait(lambda: host.bus.memory[elements[2][0]])
    if how == "abort":
        host.post(ccb, action=2)
        assert host.finished() == (ABORTED, ccb)
    else:
        host.adapter.write8(0, {"bus reset": SCRST, "soft reset": SRST, "hard reset": HRST}[how])
    moved = host.bus.get(DATA, 65536)
    host.clock.run(host.clock.time + SECOND)
    assert host.bus.get(DATA, 65536) == moved
    assert moved.count(0x5A) == 3 * 8192


def test_bus_device_reset_ends_what_its_target_does(host: Host) -> None:
    host.post(host.ccb(0, ten(0x28, 3000, 1), length=512, pointer=DATA))
    host.post(host.ccb(1, ten(0x28, 3000, 1), length=512, pointer=DATA))
    assert host.run(host.ccb(2, b"", opcode=0x81)) == (COMPLETED, 0, 0)
    host.clock.run(host.clock.time + SECOND)
    assert host.collect() is None
    assert host.status() & IDLE
    assert host.run(host.ccb(0, bytes(6))) == (ERROR, 0, 2)
    assert host.bus.memory[CCBS + 24 + 12] == 0x29
    assert host.run(host.ccb(2, b"", opcode=0x81, target=5)) == (ERROR, 0x11, 0)


def test_adapter_commands_need_an_idle_adapter_but_two(host: Host) -> None:
    host.post(host.ccb(0, ten(0x28, 3000, 1), length=512, pointer=DATA))
    host.wait(lambda: host.bus.memory[MAILBOXES + 4 * (host.out - 1)] == 0)
    assert not host.status() & IDLE
    assert not host.command(0x0B)[1]
    host.send(0x05, 0)
    host.send(0x02)
    assert host.finished()[0] == COMPLETED
    assert host.command(0x0B, reply=3)[1]
