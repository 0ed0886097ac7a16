"""The NVMe model by the specification's text, without a driver."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import ConfigurationError
from busdma.sim.nvme.controller import FailsWith, FatalStatus, NeverCompletes
from busdma.sim.nvme.flash import Flash, MediaError
from busdma.sim.nvme.queue import RefusedError, Status, walk
from sim.nvme_host import ACQ, AQA, ASQ, BLOCKS, CAP, CC, CSTS, ENABLED, SECOND, Host

READ, WRITE, FLUSH = 2, 1, 0
DATA = 0x100000


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    made.start()
    yield made
    made.close()


@pytest.fixture
def fresh() -> Iterator[Host]:
    made = Host(namespaces=3)
    yield made
    made.close()


def span(lba: int, count: int) -> tuple[int, int, int]:
    return lba & 0xFFFFFFFF, lba >> 32, count - 1


# -- registers --------------------------------------------------------------------------------------------------------


def test_what_the_registers_say(fresh: Host) -> None:
    cap = fresh.device.read(0, CAP, 8)
    assert cap & 0xFFFF == 1023
    assert cap >> 16 & 1 == 1  # contiguous queues only
    assert cap >> 32 & 0xF == 0  # doorbells 4 bytes apart
    assert cap >> 37 & 1 == 1
    assert cap >> 48 & 0xFF == 0  # pages of 4 KiB, no other
    assert fresh.get(0x08) == 0x00010400
    assert fresh.device.read(0, 0x0A, 2) == 1
    assert fresh.get(CSTS) == 0


def test_it_takes_its_time_to_get_ready_and_to_reset(fresh: Host) -> None:
    fresh.set(AQA, 0x00070007)
    fresh.set(ASQ, 0x1000)
    fresh.set(ACQ, 0x2000)
    fresh.set(CC, ENABLED)
    assert fresh.get(CSTS) == 0
    fresh.run()
    assert fresh.get(CSTS) == 1
    fresh.set(CC, 0)
    assert fresh.get(CSTS) == 1
    fresh.run()
    assert fresh.get(CSTS) == 0
    assert (fresh.get(AQA), fresh.get(ASQ)) == (0x00070007, 0x1000)


@pytest.mark.parametrize(
    ("aqa", "asq", "cc"),
    [(0x00070000, 0x1000, 0), (0x00000007, 0x1000, 0), (0x00070007, 0x1010, 0), (0x00070007, 0x1000, 1 << 7)],
)
def test_it_cannot_be_enabled_like_that(fresh: Host, aqa: int, asq: int, cc: int) -> None:
    fresh.set(AQA, aqa)
    fresh.set(ASQ, asq)
    fresh.set(CC, ENABLED | cc)
    fresh.run()
    assert fresh.get(CSTS) == 2


def test_registers_that_are_not_there(fresh: Host) -> None:
    fresh.device.write(0, AQA, 1, 7)
    fresh.set(0x1000, 1)
    fresh.set(0x1004, 1)
    assert fresh.get(AQA) == 0
    assert fresh.device.counts["ignored"] == 3


@pytest.mark.parametrize(("namespaces", "mdts", "queues"), [(0, 5, 4), (1, 256, 4), (1, 5, 0)])
def test_controllers_that_cannot_be(namespaces: int, mdts: int, queues: int) -> None:
    with pytest.raises(ConfigurationError, match="an NVMe controller has"):
        Host(namespaces=namespaces, mdts=mdts, queues=queues)


# -- admin commands ---------------------------------------------------------------------------------------------------


def test_identify(fresh: Host) -> None:
    fresh.enable()
    assert fresh.do(0, 0x06, prp1=DATA, words=(1,)).status == 0
    page = bytes(fresh.memory[DATA : DATA + 4096])
    assert page[24:64].strip() == b"busdma NVMe model"
    assert page[77] == 5
    assert page[512:514] == b"\x66\x44"
    assert struct.unpack_from("<I", page, 516) == (3,)
    assert fresh.do(0, 0x06, nsid=2, prp1=DATA, words=(0,)).status == 0
    page = bytes(fresh.memory[DATA : DATA + 4096])
    assert struct.unpack_from("<QQQ", page) == (BLOCKS, BLOCKS, BLOCKS)
    assert page[128:132] == bytes((0, 0, 9, 0))
    for after, listed in ((0, (1, 2, 3)), (2, (3, 0, 0)), (3, (0, 0, 0))):
        assert fresh.do(0, 0x06, nsid=after, prp1=DATA, words=(2,)).status == 0
        assert struct.unpack_from("<3I", fresh.memory, DATA) == listed


def test_identify_over_two_pages(fresh: Host) -> None:
    fresh.enable()
    fresh.memory[DATA + 0x8000 : DATA + 0x9000] = b"\xff" * 4096
    assert fresh.do(0, 0x06, prp1=DATA + 2048, prp2=DATA + 0x8000, words=(1,)).status == 0
    assert struct.unpack_from("<I", fresh.memory, DATA + 2048 + 516) == (3,)
    assert fresh.memory[DATA + 0x8000 : DATA + 0x9000] == bytes(2048) + b"\xff" * 2048


@pytest.mark.parametrize(
    ("opcode", "nsid", "prp1", "words", "status"),
    [
        (0x06, 4, DATA, (0,), Status.INVALID_NAMESPACE),
        (0x06, 0, DATA, (0,), Status.INVALID_NAMESPACE),
        (0x06, 0, DATA, (9,), Status.INVALID_FIELD),
        (0x06, 0, DATA + 2, (1,), Status.PRP_OFFSET_INVALID),
        (0x02, 0, DATA, (), Status.INVALID_OPCODE),
        (0x09, 0, 0, (0x06, 1), Status.INVALID_FIELD),
        (0x09, 0, 0, (0x07, 0xFFFF), Status.INVALID_FIELD),
        (0x0A, 0, 0, (0x01,), Status.INVALID_FIELD),
        (0x05, 0, DATA, (0xF0000, 1), Status.QUEUE_ID_INVALID),
        (0x05, 0, DATA, (0xF0005, 1), Status.QUEUE_ID_INVALID),  # there are four
        (0x05, 0, DATA, (0x00001, 1), Status.QUEUE_SIZE_INVALID),
        (0x05, 0, DATA, (1024 << 16 | 1, 1), Status.QUEUE_SIZE_INVALID),
        (0x05, 0, DATA, (0xF0001, 0), Status.INVALID_FIELD),  # not contiguous
        (0x05, 0, DATA + 64, (0xF0001, 1), Status.PRP_OFFSET_INVALID),
        (0x05, 0, DATA, (0xF0001, 1 << 16 | 3), Status.VECTOR_INVALID),
        (0x01, 0, DATA, (0xF0001, 1 << 16 | 1), Status.CQ_INVALID),
        (0x01, 0, DATA, (0xF0001, 1), Status.CQ_INVALID),  # not the admin queue's
        (0x00, 0, 0, (0,), Status.QUEUE_ID_INVALID),
        (0x04, 0, 0, (3,), Status.QUEUE_ID_INVALID),
    ],
)
def test_admin_commands_that_are_refused(
    fresh: Host, opcode: int, nsid: int, prp1: int, words: tuple[int, ...], status: Status
) -> None:
    fresh.enable()
    answer = fresh.do(0, opcode, nsid=nsid, prp1=prp1, words=words)
    assert (answer.status, answer.retry) == (status, False)
    assert fresh.do(0, 0x06, prp1=DATA, words=(1,)).status == 0


def test_entry_sizes_must_be_set_before_there_are_queues(fresh: Host) -> None:
    fresh.enable(1)
    assert fresh.do(0, 0x05, prp1=DATA, words=(0xF0001, 1)).status == Status.INVALID_FIELD


def test_the_number_of_queues_is_asked_for_once(fresh: Host) -> None:
    fresh.enable()
    assert fresh.do(0, 0x0A, words=(7,)).result == 0x00030003
    assert fresh.do(0, 0x09, words=(7, 0x003F003F)).result == 0x00030003
    assert fresh.do(0, 0x09, words=(7, 0x00010005)).result == 0x00010001
    assert fresh.do(0, 0x05, prp1=DATA, words=(0xF0003, 1)).status == Status.QUEUE_ID_INVALID
    assert fresh.do(0, 0x05, prp1=DATA, words=(0xF0002, 1)).status == 0
    assert fresh.do(0, 0x05, prp1=DATA, words=(0xF0002, 1)).status == Status.QUEUE_ID_INVALID  # taken
    assert fresh.do(0, 0x09, words=(7, 0)).status == Status.SEQUENCE_ERROR


def test_queues_are_deleted_in_order(host: Host) -> None:
    host.device.inject(NeverCompletes())
    id = host.put(1, READ, 1, DATA, words=span(0, 1))
    host.run()
    assert host.do(0, 0x04, words=(1,)).status == Status.QUEUE_DELETION_INVALID
    assert host.do(0, 0x00, words=(1,)).status == 0
    assert [(a.id, a.status) for a in host.take(1)] == [(id, Status.SQ_DELETED)]
    assert host.do(0, 0x04, words=(1,)).status == 0
    host.put(1, READ, 1, DATA, words=span(0, 1))
    assert host.device.counts["ignored"] == 1


# -- data -------------------------------------------------------------------------------------------------------------


def test_there_and_back(host: Host) -> None:
    data = random.Random(1).randbytes(3 * 512)
    host.memory[DATA + 4096 - 512 : DATA + 4096 + 1024] = data
    assert host.do(1, WRITE, 1, DATA + 4096 - 512, DATA + 4096, words=span(7, 3)).status == 0
    assert host.disks[0].read(7, 3) == data
    assert host.do(1, FLUSH, 1).status == 0
    assert host.do(1, FLUSH, 0xFFFFFFFF).status == 0
    assert host.do(1, READ, 1, DATA + 0x10004, words=span(8, 2)).status == 0
    assert host.memory[DATA + 0x10004 : DATA + 0x10404] == data[512:]
    assert host.device.counts["commands"] == 4


@settings(max_examples=60)
@given(st.data())
def test_any_prps_move_the_bytes_they_name(data: st.DataObject) -> None:
    host = Host(mdts=0, block_size=4096)
    host.start()
    count = data.draw(st.one_of(st.integers(1, 6), st.integers(500, 1100)), "blocks")
    offset = 4 * data.draw(st.integers(0, 1023), "offset")
    frames = random.Random(data.draw(st.integers(0, 99))).sample(range(0x100, 0xA00), count + 1)
    needed = frames[: -(-(offset + count * 4096) // 4096)]
    lists = [frame * 4096 for frame in range(0xB00, 0xB05)]
    first_list = lists[0] + 8 * data.draw(st.one_of(st.just(0), st.integers(500, 511)), "in the list's page")
    rest = [frame * 4096 for frame in needed[1:]]
    prp2 = rest[0] if len(rest) == 1 else first_list if rest else 0
    at, which = first_list, 0
    if len(rest) > 1:
        for number, address in enumerate(rest):
            if at % 4096 == 4088 and number + 1 < len(rest):  # a list page's last word, and more to come
                which += 1
                host.memory[at : at + 8] = lists[which].to_bytes(8, "little")
                at = lists[which]
            host.memory[at : at + 8] = address.to_bytes(8, "little")
            at += 8
    content = random.Random(count).randbytes(count * 4096)
    done = 0
    for number, frame in enumerate(needed):
        begin = offset if number == 0 else 0
        size = min(4096 - begin, len(content) - done)
        host.memory[frame * 4096 + begin : frame * 4096 + begin + size] = content[done : done + size]
        done += size
    assert host.do(1, WRITE, 1, needed[0] * 4096 + offset, prp2, words=span(3, count)).status == 0
    assert host.disks[0].read(3, count) == content
    before = bytes(host.memory[0x100000:0xB00000])
    for frame in needed:
        host.memory[frame * 4096 : (frame + 1) * 4096] = bytes(4096)
    host.memory[needed[0] * 4096 : needed[0] * 4096 + offset] = before[
        needed[0] * 4096 - 0x100000 : needed[0] * 4096 - 0x100000 + offset
    ]
    assert host.do(1, READ, 1, needed[0] * 4096 + offset, prp2, words=span(3, count)).status == 0
    found = b"".join(host.memory[frame * 4096 : (frame + 1) * 4096] for frame in needed)
    assert found[offset : offset + len(content)] == content
    host.close()


@pytest.mark.parametrize(
    ("prp1", "prp2", "length"),
    [
        (DATA + 1, 0, 512),
        (DATA + 2, 0, 512),
        (DATA, DATA + 0x8000 + 512, 8192),  # a second page that begins inside
        (DATA, 0x30004, 3 * 4096),  # a list at no multiple of 8
        (DATA, 0x30008, 4 * 4096),  # a list entry that begins inside its page
        (DATA, 0x31FF8, 4 * 4096),  # a list whose next list begins inside its page
    ],
)
def test_prps_that_may_not_be(prp1: int, prp2: int, length: int) -> None:
    memory = bytearray(0x40000)
    for at, entry in ((0x30000, DATA), (0x30008, DATA), (0x30010, DATA + 8), (0x31FF8, 0x32008)):
        memory[at : at + 8] = entry.to_bytes(8, "little")
    with pytest.raises(RefusedError) as refused:
        walk(lambda address, size: bytes(memory[address : address + size]), prp1, prp2, length)
    assert refused.value.status is Status.PRP_OFFSET_INVALID


@pytest.mark.parametrize(
    ("opcode", "nsid", "flags", "lba", "count", "status"),
    [
        (READ, 1, 0, BLOCKS, 1, Status.LBA_OUT_OF_RANGE),
        (WRITE, 1, 0, BLOCKS - 1, 2, Status.LBA_OUT_OF_RANGE),
        (READ, 1, 0, 1 << 40, 1, Status.LBA_OUT_OF_RANGE),
        (READ, 2, 0, 0, 1, Status.INVALID_NAMESPACE),
        (READ, 0xFFFFFFFF, 0, 0, 1, Status.INVALID_NAMESPACE),
        (FLUSH, 2, 0, 0, 1, Status.INVALID_NAMESPACE),
        (0x0C, 1, 0, 0, 1, Status.INVALID_OPCODE),
        (READ, 1, 0x40, 0, 1, Status.INVALID_FIELD),  # an SGL
        (READ, 1, 0, 0, 257, Status.INVALID_FIELD),  # MDTS: 128 KiB
        (WRITE, 1, 0, 0, 16, Status.PRP_OFFSET_INVALID),
    ],
)
def test_commands_that_are_refused_touch_nothing(
    host: Host, opcode: int, nsid: int, flags: int, lba: int, count: int, status: Status
) -> None:
    host.written.clear()
    answer = host.do(1, opcode, nsid, DATA, DATA + 0x9004, words=span(lba, count), flags=flags)
    assert (answer.status, answer.retry) == (status, False)
    assert host.written == [0x5000]  # the completion
    assert host.disks[0].read(0, BLOCKS) == bytes(BLOCKS * 512)


def test_the_same_identifier_twice(host: Host) -> None:
    host.put(1, READ, 1, DATA, words=span(0, 1), id=5, ring=False)
    host.put(1, READ, 1, DATA, words=span(1, 1), id=5)
    host.run()
    assert sorted(a.status for a in host.take(1)) == [0, Status.ID_CONFLICT]


# -- shadow doorbells -------------------------------------------------------------------------------------------------

SHADOWS, EVENTS = 0x7000, 0x8000


def word(host: Host, page: int, number: int) -> int:
    return int.from_bytes(host.memory[page + 4 * number : page + 4 * number + 4], "little")


def tell(host: Host, number: int, value: int) -> None:
    host.memory[SHADOWS + 4 * number : SHADOWS + 4 * number + 4] = value.to_bytes(4, "little")


def test_shadow_doorbells_are_offered_or_not(fresh: Host) -> None:
    fresh.enable()
    assert fresh.do(0, 0x06, prp1=DATA, words=(1,)).status == 0
    assert struct.unpack_from("<H", fresh.memory, DATA + 256) == (0,)
    assert fresh.do(0, 0x7C, prp1=SHADOWS, prp2=EVENTS).status == Status.INVALID_OPCODE
    offering = Host(shadow_doorbells=True)
    offering.enable()
    assert offering.do(0, 0x06, prp1=DATA, words=(1,)).status == 0
    assert struct.unpack_from("<H", offering.memory, DATA + 256) == (0x100,)
    for places in ((SHADOWS + 8, EVENTS), (SHADOWS, EVENTS + 4)):
        assert offering.do(0, 0x7C, prp1=places[0], prp2=places[1]).status == Status.INVALID_FIELD
    offering.close()


@pytest.fixture
def shadowed() -> Iterator[Host]:
    made = Host(shadow_doorbells=True)
    made.start(size=8)
    assert made.do(0, 0x7C, prp1=SHADOWS, prp2=EVENTS).status == 0
    yield made
    made.close()


def test_it_looks_once_more_after_it_has_said_how_far_it_has_looked(shadowed: Host) -> None:
    host = shadowed
    host.put(1, FLUSH, 1, ring=False)
    tell(host, 2, 1)
    host.run()
    assert host.take(1) == []  # it sleeps
    host.ring(1)
    host.put(1, FLUSH, 1, ring=False)
    tell(host, 2, 2)  # in time
    host.run()
    assert len(host.take(1, ring=False)) == 2
    assert word(host, EVENTS, 2) == 2
    host.put(1, FLUSH, 1, ring=False)
    tell(host, 2, 3)
    host.run()
    assert host.take(1, ring=False) == []  # too late: the event index has been there to be seen


def test_heads_are_taken_from_memory_when_it_has_something_to_say(shadowed: Host) -> None:
    host, wanted = shadowed, 0
    for number in range(1, 31):  # four times as many as there are entries
        host.put(1, FLUSH, 1, ring=False)
        tell(host, 2, host.rings[1].tail)
        host.ring(1)
        host.run()
        wanted += len(host.take(1, ring=False))
        tell(host, 3, host.rings[1].head)
        assert wanted == number
    assert host.device.counts["ignored"] == 0


def test_what_cannot_be_is_ignored_in_memory_too(shadowed: Host) -> None:
    host = shadowed
    tell(host, 2, 99)
    host.put(1, FLUSH, 1)
    host.run()
    assert len(host.take(1, ring=False)) == 1
    assert host.device.counts["ignored"] == 1
    tell(host, 2, 2)
    tell(host, 3, 99)
    host.put(1, FLUSH, 1)
    host.run()
    assert host.device.counts["ignored"] == 2


def test_a_reset_ends_them(shadowed: Host) -> None:
    host = shadowed
    host.set(CC, 0)
    host.run()
    host.start()
    host.memory[EVENTS : EVENTS + 4096] = bytes(4096)
    assert host.do(1, FLUSH, 1).status == 0
    assert host.memory[EVENTS : EVENTS + 4096] == bytes(4096)


def test_shadow_doorbells_out_of_reach_are_the_end(shadowed: Host) -> None:
    host = shadowed
    host.refused = range(SHADOWS, SHADOWS + 4096)
    host.put(1, FLUSH, 1)
    host.run()
    assert host.get(CSTS) & 2


# -- queues and interrupts --------------------------------------------------------------------------------------------


def test_many_rounds_in_any_batches() -> None:
    host = Host(flash=Flash(channels=1, read=10))
    host.start(size=7, cq_size=5)
    rng = random.Random(3)
    wanted: list[int] = []
    found: list[int] = []
    for _ in range(60):
        wanted += [host.put(1, READ, 1, DATA, words=span(0, 1), ring=False) for _ in range(rng.randrange(1, 7))]
        host.ring(1)
        while len(found) < len(wanted):
            host.run()
            answers = host.take(1)
            assert 0 < len(answers) <= 4  # one entry stays empty, the others wait in the controller
            assert all(a.status == 0 for a in answers)
            found += [a.id for a in answers]
    assert found == wanted
    host.close()


def test_the_pin_is_high_until_all_is_taken(host: Host) -> None:
    host.put(1, READ, 1, DATA, words=span(0, 1), ring=False)
    host.put(1, READ, 1, DATA, words=span(1, 1))
    host.run()
    assert host.level
    host.set(0x0C, 1)
    assert not host.level
    assert host.get(0x0C) == host.get(0x10) == 1
    host.set(0x10, 1)
    assert host.level
    assert len(host.take(1, ring=False)) == 2
    host.set(0x100C, 1)
    assert host.level
    host.set(0x100C, 2)
    assert not host.level
    host.set(0x100C, 9)
    assert host.device.counts["ignored"] == 1


def test_a_queue_without_interrupts(fresh: Host) -> None:
    fresh.start()
    assert fresh.do(0, 0x05, prp1=0x7000, words=(0xF0002, 1)).status == 0
    assert fresh.do(0, 0x01, prp1=0x6000, words=(0xF0002, 2 << 16 | 1)).status == 0
    fresh.rings[2] = type(fresh.rings[1])(2, 0x6000, 0x7000, 16, 16)
    rises = fresh.rises
    fresh.put(2, READ, 3, DATA, words=span(0, 1))
    fresh.run()
    assert fresh.rises == rises
    assert [a.status for a in fresh.take(2)] == [0]


def test_doorbells_that_cannot_be(host: Host) -> None:
    host.set(0x1008, 16)
    host.set(0x100C, 1)
    host.set(0x1018, 0)
    host.run()
    assert host.device.counts["ignored"] == 3
    assert host.do(1, FLUSH, 1).status == 0


# -- time, resets and faults ------------------------------------------------------------------------------------------


def times(host: Host, count: int) -> list[int]:
    """When each of `count` reads made at once completes, from now."""
    start = host.time
    found: list[int] = []
    for _ in range(count):
        host.put(1, READ, 1, DATA, words=span(0, 8), ring=False)
    host.ring(1)
    while len(found) < count:
        host.run(1000)
        found += [host.time - start] * len(host.take(1))
    return found


def test_channels_work_at_the_same_time(host: Host) -> None:
    found = times(host, 9)
    assert len(set(found[:8])) == 1
    assert 80_000 < found[0] < 90_000
    assert found[8] > 2 * 80_000


def test_a_reset_forgets_what_is_under_way(host: Host) -> None:
    host.put(1, READ, 1, DATA, words=span(0, 8))
    host.run(10_000)
    host.written.clear()
    host.set(CC, 0)
    host.run(SECOND)
    assert host.written == []
    assert not host.level
    host.start()
    assert host.do(1, READ, 1, DATA, words=span(0, 8)).status == 0


def test_a_shutdown_waits_for_what_is_under_way(host: Host) -> None:
    host.put(1, READ, 1, DATA, words=span(0, 8))
    host.run(10_000)
    host.set(CC, ENABLED | 1 << 14)
    assert host.get(CSTS) == 0b0101
    host.run()
    assert host.get(CSTS) == 0b1001
    assert [a.status for a in host.take(1)] == [0]


@pytest.mark.parametrize("ignore", [False, True])
def test_a_command_that_never_completes(host: Host, ignore: bool) -> None:
    host.device.inject(NeverCompletes(ignore_abort=ignore))
    id = host.put(1, READ, 1, DATA, words=span(0, 1))
    host.run(100 * SECOND)
    assert host.take(1) == []
    assert host.do(0, 0x08, words=(id << 16 | 1,)).result == ignore
    assert [(a.id, a.status, a.retry) for a in host.take(1)] == ([] if ignore else [(id, Status.ABORT_REQUESTED, True)])
    assert host.do(0, 0x08, words=((id + 1) << 16 | 1,)).result == 1  # there is no such command


def test_an_aborted_command_moves_nothing_later(host: Host) -> None:
    id = host.put(1, READ, 1, DATA, words=span(0, 1))
    host.run(5_000)
    host.put(0, 0x08, words=(id << 16 | 1,))
    host.run(20_000)
    host.written.clear()
    host.run()
    assert host.written == []
    assert [a.status for a in host.take(1)] == [Status.ABORT_REQUESTED]


def test_an_admin_command_that_never_completes(host: Host) -> None:
    host.device.inject(NeverCompletes(admin=True))
    assert host.do(1, FLUSH, 1).status == 0
    host.put(0, 0x06, prp1=DATA, words=(1,))
    host.run(100 * SECOND)
    assert host.take(0) == []


def test_a_bad_block_is_good_again_once_written(host: Host) -> None:
    host.device.inject(MediaError(1, 40, 2))
    answer = host.do(1, READ, 1, DATA, words=span(38, 4))
    assert (answer.status, answer.retry) == (Status.UNRECOVERED_READ, False)
    assert host.do(1, READ, 1, DATA, words=span(38, 2)).status == 0
    assert host.do(1, WRITE, 1, DATA, words=span(40, 2)).status == 0
    assert host.do(1, READ, 1, DATA, words=span(38, 4)).status == 0


def test_an_injected_status(host: Host) -> None:
    host.device.inject(FailsWith(Status.NAMESPACE_NOT_READY))
    answer = host.do(1, READ, 1, DATA, words=span(0, 1))
    assert (answer.status, answer.retry) == (Status.NAMESPACE_NOT_READY, True)
    assert host.do(1, READ, 1, DATA, words=span(0, 1)).status == 0


@pytest.mark.parametrize("lasting", [False, True])
def test_a_fatal_status_ends_everything_until_a_reset(host: Host, lasting: bool) -> None:
    host.put(1, READ, 1, DATA, words=span(0, 1))
    host.device.inject(FatalStatus(lasting))
    host.written.clear()
    host.run()
    assert host.written == []
    assert host.get(CSTS) & 2
    host.set(CC, 0)
    host.run()
    assert host.get(CSTS) == 0
    host.enable()
    assert host.get(CSTS) == (2 if lasting else 1)


def test_memory_that_refuses(host: Host) -> None:
    host.refused = range(DATA, DATA + 4096)
    assert host.do(1, WRITE, 1, DATA, words=span(0, 1)).status == Status.TRANSFER_ERROR
    assert host.do(1, READ, 1, DATA, words=span(0, 1)).status == Status.TRANSFER_ERROR
    host.refused = range(0x5000, 0x6000)
    host.put(1, FLUSH, 1)
    host.run()
    assert host.get(CSTS) & 2  # a completion that cannot be written


def test_a_queue_that_cannot_be_read(host: Host) -> None:
    host.refused = range(0x4000, 0x5000)
    host.put(1, FLUSH, 1)
    host.run()
    assert host.get(CSTS) & 2
