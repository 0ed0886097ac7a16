"""The AHA-1542 model by its data sheet: ports, adapter commands, resets, mailboxes, and injected faults."""

from __future__ import annotations

import pytest

from busdma.errors import ConfigurationError
from busdma.sim.disk import Disk
from busdma.sim.scsi.aha1542 import Aha1542
from busdma.sim.scsi.mailbox_adapter import (
    ANYINTR,
    CDF,
    DF,
    DIAGF,
    HACC,
    HRST,
    IDLE,
    INIT,
    INVDCMD,
    IRST,
    MBIF,
    MBOA,
    SCRD,
    SCRST,
    SRST,
    STST,
    DiagnosticFailure,
    ForeignBusReset,
    MediumError,
)
from busdma.sim.scsi.mailbox_layout import FailsWith, HostStatus, NeverCompletes
from busdma.sim.scsi.target import ScsiTarget
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
    Bus,
    Clock,
    Host,
    Line,
    pattern,
    ten,
    three,
)

# Ports and adapter commands


def test_power_on_wants_mailboxes_and_raises_no_interrupt(fresh: Host) -> None:
    assert fresh.status() == INIT | IDLE
    assert fresh.flags() == 0
    assert fresh.adapter.read8(3) == 0xFF
    assert not fresh.line.level


def test_a_byte_fills_the_command_port_until_it_is_taken(fresh: Host) -> None:
    fresh.adapter.write8(1, 0x00)
    assert fresh.status() & CDF
    fresh.clock.step()
    assert not fresh.status() & CDF
    assert fresh.flags() == ANYINTR | HACC
    assert fresh.line.level
    assert fresh.acknowledge() & HACC
    assert fresh.flags() == 0
    assert not fresh.line.level


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ((0x04,), b"\x45001"),  # AHA-1542CF
        ((0x0B,), bytes((0x20, 0x04, 7))),  # channel 5, interrupt 11, id 7
        ((0x0A,), bytes((1, 1, 1, 0, 0, 0, 0, 0))),  # unit 0 of targets 0, 1 and 2
        ((0x0D, 17), bytes((2, 0, 11, 4)) + bytes(13)),
        ((0x0D, 4), bytes((2, 0, 11, 4))),
        ((0x1F, 0xA5), b"\xa5"),
    ],
)
def test_commands_that_answer(fresh: Host, values: tuple[int, ...], answer: bytes) -> None:
    assert fresh.command(*values, reply=len(answer)) == (answer, True)
    assert fresh.status() == INIT | IDLE


def test_the_adapter_is_not_idle_until_its_answer_is_read(fresh: Host) -> None:
    fresh.send(0x04)
    fresh.wait(lambda: fresh.status() & DF)
    assert not fresh.status() & IDLE
    assert fresh.flags() == 0
    fresh.send(0x00)  # a new command drops the old one's answer
    assert fresh.flags() == ANYINTR | HACC
    assert fresh.status() == INIT | IDLE


def test_looking_for_devices_waits_for_each_that_is_absent(fresh: Host) -> None:
    before = fresh.clock.time
    fresh.command(0x0A, reply=8)
    assert 4 * 250 * MS < fresh.clock.time - before < 3 * SECOND


def test_setup_data_of_length_zero_is_256_bytes_and_shows_what_was_set(fresh: Host) -> None:
    fresh.unlock()
    fresh.place(count=5, base=0x123456)
    for values in ((0x07, 9), (0x08, 13), (0x09, 0x99)):
        assert fresh.command(*values) == (b"", True)
    answer, accepted = fresh.command(0x0D, 0, reply=256)
    assert accepted
    assert answer == (bytes((2, 0x99, 9, 12, 5)) + three(0x123456)).ljust(256, b"\0")


@pytest.mark.parametrize(
    "values",
    [
        (0x03,), (0x55,), (0xFF,),  # no such command
        (0x01, 0, 0, 0x10, 0),  # no mailboxes at all
        (0x02,),  # before mailbox initialization
        (0x05, 2), (0x06, 2, 0, 0, 1), (0x06, 1, 1, 0, 1), (0x07, 1), (0x07, 16), (0x08, 65),
        (0x29, 0, 0),  # the wrong lock code
    ],
)  # fmt: skip
def test_invalid_commands_and_parameters(fresh: Host, values: tuple[int, ...]) -> None:
    assert fresh.command(*values) == (b"", False)
    assert not fresh.status() & INVDCMD  # reset with the interrupt
    assert fresh.command(0x00) == (b"", True)


def test_the_mailbox_lock_must_be_opened_with_its_code(fresh: Host) -> None:
    (flags, lock), _ = fresh.command(0x28, reply=2)
    assert flags == 0
    assert lock != 0
    assert not fresh.command(0x01, 4, *three(MAILBOXES))[1]
    assert not fresh.command(0x29, 0, lock ^ 0x10)[1]
    assert not fresh.command(0x01, 4, *three(MAILBOXES))[1]
    assert fresh.status() & INIT
    assert fresh.command(0x29, 0, lock)[1]
    assert fresh.command(0x28, reply=2) == (b"\0\0", True)
    assert fresh.command(0x01, 4, *three(MAILBOXES))[1]
    assert fresh.status() == IDLE


def test_the_older_board_has_no_lock() -> None:
    host = Host(board="1542B")
    assert host.command(0x04, reply=4)[0][0] == 0x41
    assert not host.command(0x28)[1]
    assert not host.command(0x29)[1]
    host.place()
    assert host.status() == IDLE
    host.close()


@pytest.mark.parametrize(("write", "read", "length"), [(0x1A, 0x1B, 64), (0x1C, 0x1D, 54)])
def test_the_diagnostic_buffers_go_through_memory(fresh: Host, write: int, read: int, length: int) -> None:
    fresh.bus.put(DATA, pattern(length + 8))
    assert fresh.command(write, *three(DATA))[1]
    assert fresh.command(read, *three(DATA + 0x1000))[1]
    assert fresh.bus.get(DATA + 0x1000, length + 8) == pattern(length + 8)[:length] + bytes(8)
    assert [access[:3] for access in fresh.bus.accesses] == [("read", DATA, length), ("write", DATA + 0x1000, length)]


def test_a_board_that_does_not_exist_is_refused() -> None:
    bus, line, clock = Bus(), Line(), Clock()
    for options in (
        {"irq": 13}, {"dma_channel": 1}, {"board": "2940"}, {"scsi_id": 8}, {"scsi_id": 0, "targets": True}
    ):  # fmt: skip
        with Disk(None, blocks=8) as disk, pytest.raises(ConfigurationError):
            Aha1542(
                bus, line, clock.call_at, clock.now,
                irq=int(options.get("irq", 11)), dma_channel=int(options.get("dma_channel", 5)),
                scsi_id=int(options.get("scsi_id", 7)), board=str(options.get("board", "1542C")),
                targets={0: ScsiTarget(disk)} if "targets" in options else {},
            )  # fmt: skip


# Resets


def test_hard_reset_tests_itself_and_wants_mailboxes_again(host: Host) -> None:
    host.post(host.ccb(0, ten(0x28, 0, 1), length=512, pointer=DATA))
    host.adapter.write8(0, HRST)
    assert host.status() == STST
    host.adapter.write8(1, 0x04)  # ignored
    assert not host.status() & CDF
    host.wait(lambda: not host.status() & STST)
    assert host.status() == INIT | IDLE
    before = len(host.bus.accesses)
    host.clock.run(host.clock.time + 10 * SECOND)
    assert len(host.bus.accesses) == before
    assert host.collect() is None
    host.place()  # the lock stays open
    assert host.run(host.ccb(0, bytes(6))) == (ERROR, 0, 2)
    assert host.bus.memory[CCBS + 18 + 6 + 12] == 0x29  # the drives were reset too


def test_a_failed_self_test_shows_and_the_next_one_passes(fresh: Host) -> None:
    fresh.adapter.inject(DiagnosticFailure())
    fresh.adapter.write8(0, HRST)
    fresh.wait(lambda: not fresh.status() & STST)
    assert fresh.status() == DIAGF
    fresh.adapter.write8(0, HRST)
    fresh.wait(lambda: not fresh.status() & STST)
    assert fresh.status() == INIT | IDLE


def test_soft_reset_forgets_ccbs_and_mailboxes_but_not_the_drives(host: Host) -> None:
    host.post(host.ccb(0, ten(0x28, 0, 1), length=512, pointer=DATA))
    host.adapter.write8(0, SRST)
    assert host.status() == INIT
    before = len(host.bus.accesses)
    host.clock.run(host.clock.time + SECOND)
    assert host.status() == INIT | IDLE
    assert len(host.bus.accesses) == before
    assert not host.command(0x02)[1]
    host.place()
    assert host.run(host.ccb(0, bytes(6))) == (COMPLETED, 0, 0)


def test_a_bus_reset_by_the_host_forgets_ccbs_without_an_interrupt(host: Host) -> None:
    host.bus.put(DATA, b"\xff" * 512)
    host.post(host.ccb(0, ten(0x2A, 5, 1), length=512, pointer=DATA))
    host.post(host.ccb(1, ten(0x28, 0, 1), length=512, pointer=DATA))
    host.wait(lambda: ("read", DATA, 512) in [access[:3] for access in host.bus.accesses])  # the drive has the data
    host.adapter.write8(0, SCRST)
    assert host.status() & IDLE
    assert host.flags() == 0
    before = len(host.bus.accesses)
    host.clock.run(host.clock.time + SECOND)
    assert len(host.bus.accesses) == before
    assert host.disks[0].read(5, 1) == bytes(512)
    host.adapter.write8(0, SCRST)
    before = host.clock.time
    assert host.run(host.ccb(2, bytes(6))) == (ERROR, 0, 2)  # told by a unit attention; the mailboxes live
    assert host.clock.time - before > 250 * MS
    assert host.adapter.statistics()["forgotten"] == 2


def test_a_bus_reset_by_another_device_is_an_interrupt(host: Host) -> None:
    ccb = host.ccb(0, ten(0x28, 0, 1), length=512, pointer=DATA)
    host.post(ccb)
    host.wait(lambda: host.bus.memory[host.base + 4 * (host.out - 1)] == 0)  # taken in: only then it can be forgotten
    host.adapter.inject(ForeignBusReset())
    assert host.acknowledge() == ANYINTR | SCRD
    host.post(ccb, action=2)
    assert host.finished() == (NOT_FOUND, ccb)


# Mailboxes


def test_outgoing_mailboxes_are_freed_scanned_in_order_and_one_bell_is_enough(host: Host) -> None:
    ccbs = [host.ccb(index, bytes((0x15, 0, 0, 0, 0, 0))) for index in range(4)]
    host.out = host.count - 1  # the scan goes round: 3, 0, 1, 2 come in the order of the boxes from the last used one
    start = host.out
    for ccb in ccbs:
        host.post(ccb, ring=False)
    host.send(0x02)
    host.wait(lambda: host.bus.get(MAILBOXES, 16)[::4] == bytes(4))
    order = [host.finished()[1] for _ in ccbs]
    first_scanned = 1  # the unit attention used box 0
    expected = [ccbs[(box - start) % 4] for box in ((first_scanned + step) % 4 for step in range(4))]
    assert order == expected


def test_scanning_goes_on_until_a_round_finds_nothing(host: Host) -> None:
    first, second = (host.ccb(index, bytes((0x15, 0, 0, 0, 0, 0))) for index in range(2))
    host.post(first)
    host.wait(lambda: host.bus.memory[host.base + 4 * (host.out - 1)] == 0)
    host.post(second, ring=False)
    assert [host.finished()[1] for _ in range(2)] == [first, second]
    host.wait(lambda: host.status() & IDLE)
    late = host.ccb(2, bytes(6))
    host.post(late, ring=False)
    host.clock.run(host.clock.time + SECOND)
    assert host.collect() is None  # nobody rang
    host.send(0x02)
    assert host.finished() == (COMPLETED, late)


def test_the_mailbox_out_interrupt_is_given_only_when_enabled(host: Host) -> None:
    host.send(0x05, 1)
    assert host.flags() == 0  # this command does not complete with an interrupt
    host.post(host.ccb(0, ten(0x28, 0, 1), length=512, pointer=DATA))
    host.wait(lambda: host.flags())
    assert host.acknowledge() == ANYINTR | MBOA
    assert host.finished()[0] == COMPLETED
    host.send(0x05, 0)
    host.post(host.ccb(0, ten(0x28, 0, 1), length=512, pointer=DATA))
    host.wait(lambda: host.flags())
    assert host.acknowledge() == ANYINTR | MBIF


def test_a_full_incoming_mailbox_is_waited_for_and_never_written_over(host: Host) -> None:
    for index in range(host.count):  # all full: the host does not free them
        host.post(host.ccb(index, bytes(6)))
    host.wait(lambda: all(host.bus.get(MAILBOXES + 16, 16)[::4]))
    full = host.bus.get(MAILBOXES + 16, 16)
    late = [host.ccb(index, bytes((0x15, 0, 0, 0, 0, 0))) for index in range(4, 6)]
    for ccb in late:
        host.post(ccb)
    host.clock.run(host.clock.time + 2 * SECOND)
    assert host.bus.get(MAILBOXES + 16, 16) == full
    assert host.bus.get(late[1] + 14, 2) == bytes((0, 2))  # done, but not reported
    assert not host.status() & IDLE
    assert host.adapter.statistics()["mailbox_waits"] > 3
    seen = [host.finished() for _ in range(6)]
    assert seen == [(COMPLETED, CCBS + 128 * index) for index in range(4)] + [(ERROR, ccb) for ccb in late]
    assert host.status() & IDLE


def test_a_host_that_is_gone_does_not_keep_the_clock_running(host: Host) -> None:
    for index in range(host.count + 1):
        host.post(host.ccb(index, bytes(6)))
    steps = 0
    while host.clock.step():
        steps += 1
        assert steps < 1000
    assert len([host.finished() for _ in range(host.count + 1)]) == host.count + 1  # a port access wakes it


def test_255_mailboxes() -> None:
    host = Host()
    host.unlock()
    host.place(count=255)
    for _ in range(256):
        assert host.run(host.ccb(0, bytes((0x12, 0, 0, 0, 5, 0)), length=5, pointer=DATA)) == (COMPLETED, 0, 0)
    assert (host.out, host.next_in) == (1, 1)
    host.close()


def test_command_complete_waits_for_a_mailbox_interrupt_to_be_reset(host: Host) -> None:
    """HACC is never shown together with MBIF, so that IRST clears only what the host has seen (4-6)."""
    host.post(host.ccb(0, bytes((0x12, 0, 0, 0, 5, 0)), length=5, pointer=DATA))
    host.wait(lambda: host.flags())
    assert host.flags() == ANYINTR | MBIF
    host.send(0x00)
    assert host.flags() == ANYINTR | MBIF
    edges = host.line.edges
    host.adapter.write8(0, IRST)
    assert host.flags() == ANYINTR | HACC
    assert host.line.edges == edges + 1


def test_a_mailbox_interrupt_waits_for_command_complete_to_be_reset(host: Host) -> None:
    host.send(0x00)
    assert host.flags() == ANYINTR | HACC
    host.post(host.ccb(0, bytes(6)))
    host.wait(lambda: host.bus.memory[MAILBOXES + 16 + 4 * host.next_in])
    assert host.flags() == ANYINTR | HACC
    assert host.acknowledge() == ANYINTR | HACC
    assert host.flags() == ANYINTR | MBIF


# Faults


def test_a_command_that_never_completes_can_be_aborted(host: Host) -> None:
    host.adapter.inject(NeverCompletes())
    ccb = host.ccb(0, ten(0x28, 0, 1), length=512, pointer=DATA)
    behind = host.ccb(1, ten(0x28, 0, 1), length=512, pointer=DATA)
    host.post(ccb)
    host.post(behind)
    host.clock.run(host.clock.time + 10 * SECOND)
    assert host.collect() is None
    host.post(ccb, action=2)
    assert host.finished() == (ABORTED, ccb)
    assert host.finished() == (COMPLETED, behind)


def test_one_that_ignores_aborts_ends_only_by_a_reset(host: Host) -> None:
    host.adapter.inject(NeverCompletes(target=0, ignore_abort=True))
    ccb = host.ccb(0, ten(0x28, 0, 1), length=512, pointer=DATA)
    host.post(ccb)
    host.clock.run(host.clock.time + SECOND)
    host.post(ccb, action=2)
    host.clock.run(host.clock.time + 10 * SECOND)
    assert host.collect() is None
    assert not host.status() & IDLE
    host.adapter.write8(0, SCRST)
    assert host.status() & IDLE


def test_an_injected_host_status_waits_for_its_target() -> None:
    host = Host(targets=(0, 1))
    host.start()
    host.adapter.inject(FailsWith(HostStatus.UNEXPECTED_BUS_FREE, target=1))
    assert host.run(host.ccb(0, bytes(6), target=0)) == (COMPLETED, 0, 0)
    assert host.run(host.ccb(0, bytes(6), target=1)) == (ERROR, 0x13, 0)
    assert host.run(host.ccb(0, bytes(6), target=1)) == (COMPLETED, 0, 0)
    host.close()


def test_a_medium_error_moves_the_good_blocks_and_says_which_is_bad(host: Host) -> None:
    host.disks[0].write(50, pattern(2048))
    host.adapter.inject(MediumError(target=0, lba=52))
    ccb = host.ccb(0, ten(0x28, 50, 4), opcode=3, direction=8, length=2048, pointer=DATA, sense=18)
    assert host.run(ccb) == (ERROR, 0, 2)
    assert host.bus.get(ccb + 4, 3) == three(1024)
    assert host.bus.get(DATA, 2048) == pattern(2048)[:1024] + bytes(1024)
    sense = host.bus.get(ccb + 28, 18)
    assert (sense[2], sense[12], int.from_bytes(sense[3:7], "big")) == (3, 0x11, 52)


def test_bus_on_and_off_times_set_the_speed_of_a_transfer(host: Host) -> None:
    host.clock.run(host.clock.time + SECOND)

    def transfer() -> int:
        before = host.clock.time
        buffer = ten(0x28, 0, 128)
        host.run(host.ccb(0, buffer, length=65536, pointer=DATA))
        moments = [
            at for kind, address, size, at in host.bus.accesses if (kind, address, size) == ("write", DATA, 65536)
        ]
        return moments[-1] - before

    host.run(host.ccb(0, ten(0x28, 0, 128), length=65536, pointer=DATA))
    assert host.adapter.statistics()["bytes_in"] == 65536
    for on, off, expected in ((11, 4, 65536 * 200 * 15 // 11), (15, 0, 65536 * 200 * 16 // 15)):
        assert host.command(0x07, on)[1]
        assert host.command(0x08, off)[1]
        ready = host.disks[0].geometry.revolution * 3
        assert expected < transfer() < expected + ready


def test_two_equal_histories_are_equal_to_the_last_access() -> None:
    def history() -> list[tuple[str, int, int, int]]:
        host = Host(targets=(0, 1))
        host.start(count=8)
        for index in range(12):
            host.post(host.ccb(index, ten(0x28, 37 * index, 3), target=index % 2, length=1536, pointer=DATA))
            if index > 4:
                host.finished()
        for _ in range(5):
            host.finished()
        host.close()
        return host.bus.accesses

    assert history() == history()
