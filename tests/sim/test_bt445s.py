"""The BT-445S model by its data sheet: identity, 32-bit mailboxes and CCBs, queue tags, slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import ConfigurationError
from busdma.sim.scsi.mailbox_adapter import HRST, INIT, MediumError
from busdma.sim.scsi.mailbox_layout import BITS_24, NeverCompletes
from sim.aha1542_host import ABORTED, COMPLETED, ERROR, NOT_FOUND, SECOND, pattern
from sim.bt445s_host import CCBS, DATA, HEAD, MAILBOXES, ORDERED, READ, SENSES, SIMPLE, WRITE, Host


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host().start()
    yield made
    made.close()


# Who it is


@pytest.mark.parametrize(
    ("firmware", "digits", "letter"), [("3.36", b"AA33", b" "), ("3.37B", b"AA33", b"B"), ("3.10", b"AA31", b"")]
)
def test_the_version_comes_digit_by_digit(firmware: str, digits: bytes, letter: bytes) -> None:
    host = Host(firmware=firmware)
    assert host.command(0x04, reply=4) == (digits, True)
    assert host.command(0x84, reply=1) == (firmware[3:4].encode(), True)
    assert host.command(0x85, reply=1) == (letter, bool(letter))  # 3.10 does not know the question
    assert host.command(0x8F, 1)[1] == (firmware >= "3.31")
    host.close()


def test_model_and_extended_setup(host: Host) -> None:
    assert host.command(0x8B, 5, reply=5) == (b"445S\0", True)
    assert host.command(0x8B, 3, reply=3) == (b"445", True)
    answer, accepted = host.command(0x8D, 14, reply=14)
    assert accepted
    assert answer[:5] == b"E\xdc\x00\x20\x08"  # bus, BIOS at 0xdc000, 8192 segments, 8 mailboxes
    assert answer[5:9] == MAILBOXES.to_bytes(4, "little")
    assert answer[10:13] == b"36 "
    assert host.command(0x8C, 16, reply=16) == (bytes(16), True)
    assert host.command(0x0B, reply=3) == (b"\0\x04\x07", True)  # no DMA channel, interrupt 11, SCSI id 7
    assert host.adapter.read8(3) != 0xFF  # the geometry port, which an AHA-1542 does not have


def test_a_switched_off_bios_has_no_address() -> None:
    host = Host(bios=0)
    assert host.command(0x8D, 2, reply=2) == (b"E\0", True)
    host.close()


def test_the_bus_times_do_nothing_and_the_lock_of_the_1542c_is_unknown(host: Host) -> None:
    before = host.command(0x0D, 17, reply=17)[0]
    assert host.command(0x07, 9)[1]
    assert host.command(0x08, 9)[1]
    assert host.command(0x0D, 17, reply=17)[0] == before
    assert not host.command(0x28)[1]


@pytest.mark.parametrize(
    "options", [{"firmware": "4.22"}, {"firmware": "3.3"}, {"bios": 0xD8100}, {"bios": 0xE0000}, {"slots": 0}]
)
def test_a_board_that_does_not_exist_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Host(**options)


# Mailboxes and CCBs of 32 bits


def test_mailboxes_need_a_count_and_a_reset_forgets_them(host: Host) -> None:
    assert not host.command(0x81, 0, 0, 0, 0, 0)[1]
    host.adapter.write8(0, HRST)
    host.step_until(lambda: host.adapter.read8(0) & INIT)
    assert not host.command(0x02)[1]
    host.start()
    assert host.run(host.ccb(0, bytes(6))) == (COMPLETED, 0, 0)


def test_data_of_one_piece_above_16_mib(host: Host) -> None:
    host.memory.put(DATA, pattern(1024))
    assert host.run(host.io(0, WRITE, 77, 2)) == (COMPLETED, 0, 0)
    assert host.disks[0].read(77, 2) == pattern(1024)
    assert host.run(host.io(1, READ, 77, 2)) == (COMPLETED, 0, 0)
    assert host.memory.get(DATA + 0x10000, 1024) == pattern(1024)


def test_forty_segments_are_more_than_a_1542_can_and_each_is_one_access(host: Host) -> None:
    host.disks[0].write(9, pattern(40 * 512))
    pairs = [(DATA + 0x2000 * index, 512) for index in range(40)]
    at, size = host.elements(0, *pairs)
    cdb = bytes((READ, 0, 0, 0, 0, 9, 0, 0, 40, 0))
    before = len(host.memory.accesses)
    assert host.run(host.ccb(0, cdb, opcode=4, direction=8, length=size, pointer=at)) == (COMPLETED, 0, 0)
    seen = [access for access in host.memory.accesses[before:] if access[1] >= DATA]
    assert seen == [("write", address, 512) for address, _ in pairs]
    assert b"".join(host.memory.get(*pair) for pair in pairs) == pattern(40 * 512)
    assert host.memory.get(CCBS + 4, 4) == bytes(4)  # nothing is left over


@pytest.mark.parametrize("length", [7, 12, 0])
def test_a_list_that_is_no_list_is_an_invalid_ccb(host: Host, length: int) -> None:
    at, _ = host.elements(0, (DATA, 512), (DATA, 512))
    cdb = bytes((READ, 0, 0, 0, 0, 9, 0, 0, 2, 0))
    assert host.run(host.ccb(0, cdb, opcode=4, length=length, pointer=at)) == (ERROR, 0x1A, 0)
    at, size = host.elements(0, (DATA, 512), (DATA, 0))
    assert host.run(host.ccb(0, cdb, opcode=4, length=size, pointer=at)) == (ERROR, 0x1A, 0)


def test_the_residual_is_four_bytes(host: Host) -> None:
    cdb = bytes((0x12, 0, 0, 0, 36, 0))
    ccb = host.ccb(0, cdb, opcode=3, direction=8, length=0x12345, pointer=DATA)
    assert host.run(ccb) == (ERROR, 0x12, 0)
    assert int.from_bytes(host.memory.get(ccb + 4, 4), "little") == 0x12345 - 36


def test_sense_data_go_where_the_ccb_points_and_the_mailbox_has_the_statuses(host: Host) -> None:
    host.adapter.inject(MediumError(target=0, lba=41))
    ccb = host.io(3, READ, 40, 4, sense=18)
    assert host.run(ccb) == (ERROR, 0, 2)
    assert host.memory.get(ccb + 14, 2) == b"\0\x02"
    sense = host.memory.get(SENSES + 32 * 3, 18)
    assert (sense[2], sense[12], int.from_bytes(sense[3:7], "big")) == (3, 0x11, 41)
    assert host.memory.get(ccb + 28, 8) == b"\xcc" * 8  # and not behind the CDB


def test_a_target_beyond_seven_is_not_there(host: Host) -> None:
    assert host.run(host.ccb(0, bytes(6), target=9)) == (ERROR, 0x11, 0)


def test_the_mailboxes_of_a_1542_work_too(host: Host) -> None:
    count, base, ccb = 2, 0x1000, 0x2000
    assert host.command(0x01, count, *base.to_bytes(3, "big"))[1]
    cdb = bytes((0x12, 0, 0, 0, 36, 0))
    head = bytes((3, 0x08, 6, 1)) + (36).to_bytes(3, "big") + (0x3000).to_bytes(3, "big")
    host.memory.put(ccb, head.ljust(18, b"\0") + cdb)
    host.memory.put(base, b"\x01" + ccb.to_bytes(3, "big"))
    host.send(0x02)
    host.step_until(lambda: host.memory.bytes[base + 8])
    assert host.memory.get(base + 8, 4) == bytes((COMPLETED,)) + ccb.to_bytes(3, "big")
    assert host.memory.get(0x3008, 6) == b"BUSDMA"
    assert host.adapter.bus.layout is BITS_24


# Queue tags


def finish(host: Host, count: int) -> list[int]:
    """Wait for `count` CCBs, all of which must succeed; their numbers in the order of their end."""
    ended = []
    for _ in range(count):
        status, ccb, host_status, target_status = host.finished()
        assert (status, host_status, target_status) == (COMPLETED, 0, 0)
        ended.append((ccb - CCBS) // 64)
    return ended


def time_of_eight(tag: int) -> int:
    """Of eight reads in a row of what lies at rising places, all posted at once."""
    host = Host().start()
    start = host.clock.time
    for index in range(8):
        host.post(host.io(index, READ, 40 * index, 32, tag=tag))
    assert sorted(finish(host, 8)) == list(range(8))
    assert host.adapter.statistics()["at_once"] == 8
    host.close()
    return host.clock.time - start


def test_tagged_commands_overlap_one_seeks_while_another_transfers() -> None:
    assert time_of_eight(SIMPLE) < time_of_eight(0)


def test_an_untagged_command_waits_for_the_tagged_and_is_waited_for(host: Host) -> None:
    for index, tag in enumerate((SIMPLE, SIMPLE, 0, SIMPLE)):
        host.post(host.io(index, READ, 9000 * (4 - index), 8, tag=tag))
    assert sorted(finish(host, 2)) == [0, 1]
    assert finish(host, 2) == [2, 3]


def test_an_ordered_tag_is_a_wall(host: Host) -> None:
    for index, tag in enumerate((SIMPLE, SIMPLE, ORDERED, SIMPLE)):
        host.post(host.io(index, READ, 9000 * (4 - index), 8, tag=tag))
    assert sorted(finish(host, 2)) == [0, 1]
    assert finish(host, 2) == [2, 3]
    assert host.adapter.statistics()["ordered"] == 1


@pytest.mark.parametrize("first", [0, ORDERED])
def test_what_runs_alone_runs_alone_to_its_end(host: Host, first: int) -> None:
    host.post(host.io(0, WRITE, 50000, 64, tag=first))
    host.post(host.ccb(1, bytes(6), tag=SIMPLE))  # TEST UNIT READY needs no mechanism
    assert finish(host, 2) == [0, 1]


@pytest.mark.parametrize("first", [SIMPLE, 0])
def test_head_of_queue_passes_those_that_wait(host: Host, first: int) -> None:
    for index, tag in enumerate((first, SIMPLE, SIMPLE, HEAD)):
        host.post(host.io(index, READ, 9000, 8, tag=tag))
    assert finish(host, 4) == [0, 3, 1, 2]


def test_a_drive_without_tags_rejects_the_message() -> None:
    host = Host(tags=0).start()
    assert host.run(host.io(0, READ, 0)) == (ERROR, 0x1C, 0)
    assert host.run(host.io(0, READ, 0, tag=0)) == (COMPLETED, 0, 0)
    assert host.run(host.ccb(0, bytes((0x12, 0, 0, 0, 8, 0)), length=8, pointer=DATA)) == (COMPLETED, 0, 0)
    assert not host.memory.bytes[DATA + 7] & 2
    host.close()


def test_a_drive_says_that_it_has_tags_and_when_its_queue_is_full() -> None:
    host = Host(tags=2).start()
    assert host.run(host.ccb(0, bytes((0x12, 0, 0, 0, 8, 0)), length=8, pointer=DATA)) == (COMPLETED, 0, 0)
    assert host.memory.bytes[DATA + 7] & 2
    for index in range(3):
        host.post(host.io(index, READ, 9000 * index, 4))
    assert host.finished() == (ERROR, CCBS + 2 * 64, 0, 0x28)
    assert sorted(finish(host, 2)) == [0, 1]
    host.close()


def test_firmware_without_tags_refuses_them() -> None:
    host = Host(firmware="3.34").start()
    assert host.run(host.io(0, READ, 0)) == (ERROR, 0x1A, 0)
    assert host.run(host.io(0, READ, 0, tag=0)) == (COMPLETED, 0, 0)
    host.close()


def test_sense_data_belong_to_the_tagged_command_that_failed(host: Host) -> None:
    host.adapter.inject(MediumError(target=0, lba=5001))
    host.post(host.io(0, READ, 5000, 4, sense=18))
    host.post(host.io(1, READ, 99999, 4, sense=18))  # there is no such block: fails at once
    host.post(host.io(2, READ, 7000, 4, sense=18))
    ended = {ccb: statuses for _, ccb, *statuses in (host.finished() for _ in range(3))}
    assert ended == {CCBS: [0, 2], CCBS + 64: [0, 2], CCBS + 128: [0, 0]}
    codes = [host.memory.bytes[SENSES + 32 * index + 12] for index in range(3)]
    assert codes == [0x11, 0x21, 0]


def test_an_abort_of_one_leaves_the_others(host: Host) -> None:
    host.adapter.inject(NeverCompletes())
    ccbs = [host.io(index, READ, 9000 * index, 8) for index in range(3)]
    for ccb in ccbs:
        host.post(ccb)
    assert sorted(finish(host, 2)) == [1, 2]
    host.post(ccbs[0], action=2)
    assert host.finished()[:2] == (ABORTED, ccbs[0])
    host.post(ccbs[1], action=2)
    assert host.finished()[:2] == (NOT_FOUND, ccbs[1])


def test_the_mechanism_of_an_aborted_command_goes_to_the_next(host: Host) -> None:
    ccbs = [host.io(index, READ, 60000 - 30000 * index, 8) for index in range(2)]
    for ccb in ccbs:
        host.post(ccb)
    host.clock.run(host.clock.time + 500_000)  # the first one seeks
    host.post(ccbs[0], action=2)
    assert host.finished()[:2] == (ABORTED, ccbs[0])
    assert finish(host, 1) == [1]
    before = len(host.memory.accesses)
    host.clock.run(host.clock.time + SECOND)
    assert len(host.memory.accesses) == before


# Slots, and the order of mailboxes


@pytest.mark.parametrize("strict", [0, 1])
def test_what_has_no_slot_stays_in_its_mailbox_and_can_still_be_outrun_by_an_abort(strict: int) -> None:
    host = Host(slots=2).start()
    assert host.command(0x8F, strict)[1]
    host.adapter.inject(NeverCompletes())
    host.adapter.inject(NeverCompletes())
    ccbs = [host.io(index, READ, 100 * index) for index in range(4)]
    first = host.out
    for ccb in ccbs:
        host.post(ccb)
    host.clock.run(host.clock.time + SECOND)
    assert [host.out_codes()[(first + index) % 8] for index in range(4)] == [0, 0, 1, 1]
    host.post(ccbs[0], action=2)
    assert host.finished()[:2] == (ABORTED, ccbs[0])
    assert finish(host, 2) == [2, 3]  # one after the other: there is one slot
    assert host.adapter.statistics()["at_once"] == 2
    assert host.out_codes() == [0] * 8
    host.close()


def test_strict_round_robin_looks_at_one_mailbox_only(host: Host) -> None:
    ahead = (host.out + 3) % 8
    host.put_mailbox(ahead, host.io(0, READ, 0))
    host.send(0x02)
    assert finish(host, 1) == [0]  # all are looked at
    host.start()
    assert host.command(0x8F, 1)[1]
    host.put_mailbox((host.out + 3) % 8, host.io(0, READ, 0))
    host.send(0x02)
    host.clock.run(host.clock.time + SECOND)
    assert host.collect() is None
    for index in range(1, 4):
        host.post(host.io(index, READ, 0))
    assert sorted(finish(host, 4)) == [0, 1, 2, 3]


@settings(max_examples=40)
@given(
    slots=st.integers(1, 12),
    tags=st.integers(1, 6),
    jobs=st.lists(
        st.tuples(st.sampled_from((READ, WRITE)), st.sampled_from((0, SIMPLE, HEAD, ORDERED)), st.integers(0, 1)),
        min_size=1,
        max_size=12,
    ),
)
def test_every_command_ends_once_and_has_its_own_data(slots: int, tags: int, jobs: list[tuple[int, int, int]]) -> None:
    host = Host(slots=slots, tags=tags, targets=(0, 1)).start(12)
    again: list[tuple[int, int]] = []
    for index, (operation, tag, target) in enumerate(jobs):
        block = pattern(512, seed=index)
        if operation == READ:
            host.disks[target].write(700 * index, block)
        else:
            host.memory.put(DATA + (index << 16), block)
        ccb = host.io(index, operation, 700 * index, tag=tag)
        host.memory.put(ccb + 16, bytes((target,)))
        host.post(ccb)
    ended: list[int] = []
    while len(ended) < len(jobs):
        _, ccb, host_status, target_status = host.finished()
        index = (ccb - CCBS) // 64
        assert host_status == 0
        if target_status == 0x28:  # its queue was full: once more
            again.append((index, tags))
            host.post(ccb)
        else:
            assert target_status == 0
            ended.append(index)
    assert sorted(ended) == list(range(len(jobs)))
    for index, (operation, _, target) in enumerate(jobs):
        block = pattern(512, seed=index)
        there = host.memory.get(DATA + (index << 16), 512), host.disks[target].read(700 * index, 1)
        assert there == (block, block), (operation, index)
    assert host.adapter.statistics()["at_once"] <= slots
    assert host.collect() is None
    assert len(again) == 0 or slots > tags
    host.close()
