"""The 53C9x by its data sheet: registers, commands and interrupts. What targets do is in test_ncr53c9x_targets.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from busdma.errors import ConfigurationError
from busdma.sim.scsi.bus import ARBITRATION, RESET_TO_SELECTION
from busdma.sim.scsi.ncr53c9x import RESET_TIME, Ncr53c9x
from busdma.sim.scsi.ncr53c9x_layout import (
    BUS_RESET,
    BUS_SERVICE,
    CLOCK_FACTOR,
    COMMAND,
    CONFIG1,
    CONFIG2,
    CONFIG3,
    COUNT_HIGH,
    DESTINATION,
    DISABLE_RESELECTION,
    DISCONNECTED,
    DMA,
    FEATURES,
    FLUSH_FIFO,
    FUNCTION_COMPLETE,
    GROSS_ERROR,
    ILLEGAL_COMMAND,
    INTERRUPTS,
    MESSAGE_ACCEPTED,
    NO_RESET_INTERRUPT,
    NOP,
    RESET_ATN,
    RESET_BUS,
    RESET_CHIP,
    SELECT,
    SELECT_ATN,
    SELECT_ATN_STOP,
    SET_ATN,
    STATUS,
    STEP,
    TERMINAL_COUNT,
    TIMEOUT,
    TRANSFER,
    TRANSFER_PAD,
)
from busdma.sim.scsi.nexus import Phase
from sim.aha1542_host import Clock, Line, pattern, ten
from sim.ncr53c9x_host import INQUIRY, TEST_UNIT_READY, Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(3)
    yield made
    made.close()


def test_power_on(bench: Bench) -> None:
    host = bench.host
    assert (host.read(STATUS), host.read(INTERRUPTS), host.read(STEP), host.held()) == (0, 0, 0, 0)
    assert host.read(CONFIG1) == 7
    assert [host.read(register) for register in (0x9, 0xA, 0xE, 0xF)] == [0, 0, 0, 0]
    host.write(CONFIG2, 0x08)
    host.write(CONFIG3, 0x15)
    assert (host.read(CONFIG2), host.read(CONFIG3)) == (0x08, 0x15)
    assert host.idle()


def test_after_a_chip_reset_nothing_works_before_a_nop(bench: Bench) -> None:
    host = bench.host
    host.fifo(b"ab")
    host.write(CONFIG1, 0x57)
    host.write(CONFIG2, 0x08)
    host.command(RESET_CHIP)
    assert (host.held(), host.read(CONFIG1), host.read(CONFIG2)) == (0, 0x07, 0)
    host.command(TRANSFER)
    assert host.idle()
    host.command(NOP)
    assert host.go(TRANSFER).bits == ILLEGAL_COMMAND


def test_a_command_without_a_driver(bench: Bench) -> None:
    """The sequence that boot monitors use: no disconnection, status and message by one command."""
    host = bench.host
    event = host.select(3, INQUIRY)
    assert (event.bits, event.phase, event.step) == (FUNCTION_COMPLETE | BUS_SERVICE, Phase.DATA_IN, 4)
    event, moved = host.move(0x100, 36, inward=True)
    assert (event.bits, event.phase, moved) == (BUS_SERVICE, Phase.STATUS, 36)
    assert event.status & TERMINAL_COUNT
    assert bench.memory[0x108:0x110] == b"BUSDMA  "
    assert host.finish() == 0
    assert host.idle()


def test_writing_and_reading_blocks(bench: Bench) -> None:
    host = bench.ready()
    bench.memory[:2048] = pattern(2048)
    assert host.run(3, ten(0x2A, 5, 4), [(0, 512), (512, 1000), (1512, 536)]).status == 0
    assert bench.disks[3].read(5, 4) == pattern(2048)
    assert host.run(3, ten(0x28, 5, 4), [(0x5000, 2047), (0x4000, 1)]).moved == 2048
    assert bench.memory[0x5000:0x57FF] + bench.memory[0x4000:0x4001] == pattern(2048)


def test_sense_data_of_a_failed_command(bench: Bench) -> None:
    host = bench.ready()
    assert host.run(3, ten(0x28, 1000, 1)).status == 2
    assert host.run(3, bytes((3, 0, 0, 0, 18, 0)), [(0, 64)]).moved == 18
    assert (bench.memory[2], bench.memory[12]) == (5, 0x21)


def test_an_absent_target_costs_a_selection_timeout(bench: Bench) -> None:
    host = bench.host
    host.write(CLOCK_FACTOR, 5)
    host.write(TIMEOUT, 153)
    event = host.select(4, TEST_UNIT_READY)
    assert (event.bits, event.step, host.clock.time) == (DISCONNECTED, 0, ARBITRATION + 250_675_200)
    assert bench.chip.statistics()["timeouts"] == 1
    assert host.select(3, TEST_UNIT_READY).bits == FUNCTION_COMPLETE | BUS_SERVICE


def test_reading_the_interrupts_clears_them(bench: Bench) -> None:
    host = bench.host
    host.write(DESTINATION, 3)
    host.fifo(b"\x80" + TEST_UNIT_READY)
    host.command(SELECT_ATN)
    while not bench.line.level:
        assert bench.clock.step()
    assert (host.read(STATUS), host.read(STEP)) == (0x83, 4)
    assert host.read(INTERRUPTS) == 0x18
    assert (host.read(STATUS), host.read(STEP), host.read(INTERRUPTS), bench.line.level) == (0x03, 0, 0, False)


def test_selection_without_attention(bench: Bench) -> None:
    host = bench.host
    host.write(DESTINATION, 3)
    host.fifo(bytes((0x12, 0x40, 0, 0, 5, 0)))  # for logical unit 2, as SCSI-1 said it
    event = host.go(SELECT)
    assert (event.bits, event.phase, event.step) == (0x18, Phase.DATA_IN, 4)
    host.move(0, 5, inward=True)
    assert host.finish() == 0
    assert bench.memory[0] == 0x7F


def test_a_command_that_the_fifo_does_not_hold(bench: Bench) -> None:
    host = bench.ready()
    event = host.select(3, ten(0x28, 0, 1)[:6])
    assert (event.phase, event.step) == (Phase.COMMAND, 4)
    host.fifo(ten(0x28, 0, 1)[6:])
    assert host.go(TRANSFER).phase == Phase.DATA_IN


def test_a_fifo_with_more_than_the_target_takes(bench: Bench) -> None:
    host = bench.host
    event = host.select(3, TEST_UNIT_READY + b"xyz")
    assert (event.phase, event.step, host.held()) == (Phase.STATUS, 3, 3)
    host.command(FLUSH_FIFO)
    assert host.finish() == 2


def test_messages_one_at_a_time(bench: Bench) -> None:
    host = bench.host
    host.write(DESTINATION, 3)
    host.fifo(b"\x80")
    event = host.go(SELECT_ATN_STOP)
    assert (event.bits, event.phase, event.step) == (0x18, Phase.MESSAGE_OUT, 1)
    host.fifo(bytes((1, 3, 1, 25, 8)))  # synchronous transfers, please
    event = host.go(TRANSFER)
    assert (event.bits, event.phase) == (BUS_SERVICE, Phase.MESSAGE_IN)
    assert host.message() == 0x07
    assert host.go(MESSAGE_ACCEPTED).phase == Phase.COMMAND
    host.fifo(TEST_UNIT_READY)
    assert host.go(TRANSFER).phase == Phase.STATUS
    assert host.finish() == 2


def test_selection_by_dma(bench: Bench) -> None:
    host = bench.host
    bench.memory[:7] = b"\x80" + INQUIRY
    host.write(DESTINATION, 3)
    host.set_count(7)
    host.command(SELECT_ATN | DMA)
    assert host.idle()  # no engine
    bench.engine.start(0, 7, inward=False)
    event = host.wait()
    assert (event.bits, event.phase, event.step) == (0x18, Phase.DATA_IN, 4)
    assert event.status & TERMINAL_COUNT


def test_a_transfer_waits_for_its_engine(bench: Bench) -> None:
    host = bench.host
    assert host.select(3, INQUIRY).phase == Phase.DATA_IN
    host.set_count(36)
    host.command(TRANSFER | DMA)
    assert host.idle()
    bench.engine.start(0, 20, inward=True)
    assert host.idle()
    assert (host.count(), bytes(bench.memory[8:15])) == (16, b"BUSDMA ")
    bench.engine.start(0x50, 16, inward=True)
    assert host.wait().phase == Phase.STATUS


def test_an_engine_that_stops_meanwhile(bench: Bench) -> None:
    host = bench.host
    host.select(3, INQUIRY)
    host.set_count(36)
    bench.engine.start(0, 36, inward=True)
    host.command(TRANSFER | DMA)
    bench.engine.stop(inward=True)
    assert host.idle()
    assert (host.count(), bytes(bench.memory[:36])) == (36, bytes(36))


def test_an_engine_that_is_set_up_the_other_way(bench: Bench) -> None:
    host = bench.host
    host.select(3, INQUIRY)
    host.set_count(36)
    bench.engine.start(0, 36, inward=False)
    host.command(TRANSFER | DMA)
    assert host.idle()
    assert host.read(STATUS) & GROSS_ERROR
    assert bench.chip.statistics()["gross_errors"] == 1


def test_a_target_with_less_than_expected(bench: Bench) -> None:
    host = bench.host
    host.select(3, INQUIRY)
    event, moved = host.move(0, 100, inward=True)
    assert (event.phase, event.status & TERMINAL_COUNT, moved, host.count()) == (Phase.STATUS, 0, 36, 64)


def test_a_target_that_takes_less_leaves_the_rest_in_the_fifo(bench: Bench) -> None:
    host = bench.ready()
    host.select(3, ten(0x2A, 0, 1))
    bench.memory[:600] = pattern(600)
    host.set_count(600)
    bench.engine.start(0, 600, inward=False)
    assert host.go(TRANSFER | DMA).phase == Phase.STATUS
    assert (host.count(), host.held(), bench.engine.address) == (600 - 512 - 16, 16, 528)
    assert host.take(16) == pattern(600)[512:528]
    assert bench.disks[3].read(0, 1) == pattern(512)


def test_a_count_of_0_is_the_most_there_can_be() -> None:
    bench = Bench(0, blocks=300)
    host = bench.ready()
    bench.disks[0].write(0, pattern(0x10200))
    host.select(0, ten(0x28, 0, 0x81))
    event, moved = host.move(0, 0x10000, inward=True)
    assert (event.phase, moved) == (Phase.DATA_IN, 0x10000)
    host.move(0x10000, 512, inward=True)
    assert host.finish() == 0
    assert bench.memory[:0x10200] == pattern(0x10200)
    bench.close()


def test_a_wide_counter_and_the_id_of_the_chip() -> None:
    bench = Bench(0, blocks=300, wide_counter=1, chip_id=0x12)
    host = bench.ready()
    assert host.read(COUNT_HIGH) == 0
    host.write(CONFIG2, FEATURES)
    host.command(NOP | DMA)
    assert host.read(COUNT_HIGH) == 0x12
    host.wide = True
    bench.disks[0].write(0, pattern(0x10200))
    host.select(0, ten(0x28, 0, 0x81))
    event, moved = host.move(0, 0x10200, inward=True)
    assert (event.phase, moved) == (Phase.STATUS, 0x10200)
    assert bench.memory[:0x10200] == pattern(0x10200)
    host.set_count(0x345678)
    host.command(NOP | DMA)
    assert host.count() == 0x345678
    bench.close()


def test_a_narrow_counter_ignores_the_upper_byte(bench: Bench) -> None:
    host = bench.host
    host.write(CONFIG2, FEATURES)
    host.write(COUNT_HIGH, 0x55)
    host.set_count(0x1234)
    host.command(NOP | DMA)
    assert (host.count(), host.read(COUNT_HIGH)) == (0x1234, 0)


def test_padding(bench: Bench) -> None:
    host = bench.ready()
    bench.disks[3].write(0, pattern(512))
    host.select(3, ten(0x28, 0, 1))
    host.set_count(512)
    assert host.go(TRANSFER_PAD | DMA).phase == Phase.STATUS
    assert (host.finish(), bytes(bench.memory[:512])) == (0, bytes(512))
    host.select(3, ten(0x2A, 0, 1))
    event, _ = host.move(0x1000, 100, inward=False)
    assert event.phase == Phase.DATA_OUT
    bench.memory[:] = pattern(len(bench.memory))
    host.set_count(412)
    assert host.go(TRANSFER_PAD | DMA).phase == Phase.STATUS
    assert (host.finish(), bench.disks[3].read(0, 1)) == (0, bytes(512))


def test_bytes_without_dma(bench: Bench) -> None:
    host = bench.ready()
    host.select(3, INQUIRY)
    found = bytearray()
    for _ in range(36):
        assert host.go(TRANSFER).bits == BUS_SERVICE
        found += host.take(1)
    assert found[8:14] == b"BUSDMA"
    assert host.finish() == 0
    event = host.select(3, ten(0x2A, 0, 1))
    for part in range(0, 512, 16):
        assert event.phase == Phase.DATA_OUT
        host.fifo(pattern(512)[part : part + 16])
        event = host.go(TRANSFER)
    assert (event.phase, host.finish()) == (Phase.STATUS, 0)
    assert bench.disks[3].read(0, 1) == pattern(512)


@pytest.mark.parametrize("command", [0x10, 0x11, 0x12, 0x18, 0x1A, 0x1B, 0x20, 0x40, 0x47, 0x7F, 0xA0])
def test_commands_that_a_chip_off_the_bus_does_not_know(bench: Bench, command: int) -> None:
    event = bench.host.go(command)
    assert (event.bits, bench.host.read(COMMAND)) == (ILLEGAL_COMMAND, 0)
    assert bench.chip.statistics()["illegal"] == 1


@pytest.mark.parametrize("command", [0x41, 0x42, 0x43, 0x45, 0x46, 0x21])
def test_and_one_on_it(bench: Bench, command: int) -> None:
    bench.host.select(3, INQUIRY)
    assert bench.host.go(command).bits == ILLEGAL_COMMAND
    bench.host.move(0, 36, inward=True)
    assert bench.host.finish() == 0


def test_a_full_fifo(bench: Bench) -> None:
    host = bench.host
    host.fifo(pattern(17))
    assert host.read(STATUS) & GROSS_ERROR
    assert host.take(16) == pattern(15) + pattern(17)[16:]
    assert (host.held(), host.take(1)) == (0, b"\0")


def test_a_second_command_while_one_runs(bench: Bench) -> None:
    host = bench.host
    host.write(DESTINATION, 3)
    host.fifo(b"\x80" + INQUIRY)
    host.command(SELECT_ATN)
    host.command(SELECT)
    assert host.read(STATUS) & GROSS_ERROR
    event = host.wait()
    assert (event.bits, event.phase) == (0x18, Phase.DATA_IN)
    assert not host.read(STATUS) & GROSS_ERROR  # it went with the interrupt


def test_a_bus_reset(bench: Bench) -> None:
    host = bench.ready()
    host.select(3, INQUIRY)
    before = host.clock.time
    event = host.go(RESET_BUS)
    assert (event.bits, event.phase, host.clock.time - before) == (BUS_RESET, 0, RESET_TIME)
    host.write(TIMEOUT, 1)
    assert host.select(3, TEST_UNIT_READY).bits == DISCONNECTED  # the target is not there yet
    host.clock.run(before + RESET_TO_SELECTION)
    assert host.run(3, TEST_UNIT_READY).status == 2
    assert host.run(3, bytes((3, 0, 0, 0, 18, 0)), [(0, 18)]).status == 0
    assert (bench.memory[2], bench.memory[12]) == (6, 0x29)


def test_a_bus_reset_without_an_interrupt(bench: Bench) -> None:
    bench.host.write(CONFIG1, NO_RESET_INTERRUPT | 7)
    bench.host.command(RESET_BUS)
    assert bench.host.idle()
    bench.host.write(CONFIG1, 7)
    bench.chip.inject_bus_reset()
    assert bench.host.wait().bits == BUS_RESET


def test_a_chip_reset_leaves_the_target_on_the_bus(bench: Bench) -> None:
    host = bench.host
    host.select(3, INQUIRY)
    host.command(RESET_CHIP)
    host.command(NOP)
    host.fifo(b"\x80" + INQUIRY)
    host.command(SELECT_ATN)
    assert host.idle()  # it waits for a free bus
    assert host.go(RESET_BUS).bits == BUS_RESET


def test_disabling_reselection_interrupts(bench: Bench) -> None:
    assert bench.host.go(DISABLE_RESELECTION).bits == FUNCTION_COMPLETE


def test_attention_in_the_status_phase(bench: Bench) -> None:
    host = bench.ready()
    assert host.select(3, TEST_UNIT_READY).phase == Phase.STATUS
    host.command(SET_ATN)
    event = host.go(TRANSFER)
    assert (event.phase, host.take(1)) == (Phase.MESSAGE_OUT, b"\0")
    host.fifo(b"\x08")
    assert host.go(TRANSFER).phase == Phase.MESSAGE_IN
    assert host.message() == 0
    assert host.go(MESSAGE_ACCEPTED).bits == DISCONNECTED


def test_attention_that_was_withdrawn(bench: Bench) -> None:
    host = bench.ready()
    host.select(3, TEST_UNIT_READY)
    host.command(SET_ATN)
    host.command(RESET_ATN)
    assert host.finish() == 0


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"initiator": 3}, "3 is the chip's"), ({"initiator": 8}, "0 to 7"), ({"byte": 0}, "0 ns a byte")],
)
def test_chips_that_cannot_be(bench: Bench, wrong: dict[str, int], text: str) -> None:
    clock = Clock()
    with pytest.raises(ConfigurationError, match=text):
        Ncr53c9x(Line(), clock.call_at, clock.now, targets=bench.targets, **wrong)  # type: ignore[arg-type]
