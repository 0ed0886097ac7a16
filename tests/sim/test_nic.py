"""The PCnet by its data sheet, register by register and descriptor by descriptor; and the wire."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import ConfigurationError
from busdma.runtime.clock import VirtualClock
from busdma.sim.chips.nic import FETCH_TIME, Nic
from busdma.sim.chips.wire import Wire
from sim.nic_host import (
    BABL,
    DATA,
    ENP,
    ERR,
    IDON,
    IENA,
    INIT,
    INTR,
    ME,
    MISS,
    OTHER,
    OWN,
    RDP,
    RECEIVE,
    RESET,
    RINT,
    RXON,
    STOP,
    STP,
    STRT,
    TDMD,
    TINT,
    TRANSMIT,
    TXON,
    Memory,
    Pin,
    Station,
    checked,
    frame,
    looped,
    pair,
)

CRC, RX_BUFF, PAM, LAFM, BAM = 1 << 27, 1 << 26, 1 << 22, 1 << 21, 1 << 20
MULTICAST = bytes.fromhex("01005e000001")


# -- registers --------------------------------------------------------------------------------------------------------


def test_registers_of_16_bits_until_the_first_write_of_32() -> None:
    nic = looped().nic
    nic.write(1, 0x12, 2, 88)
    assert nic.read(1, 0x10, 2) == 0x1003
    assert nic.read(1, 0x10, 4) == 0xFFFF_FFFF
    nic.write(1, 0x14, 4, 0)  # not the data register
    nic.write(1, 0x12, 2, 0)
    assert nic.read(1, 0x10, 2) == STOP
    nic.write(1, RDP, 4, 0)
    assert nic.read(1, RDP, 4) == STOP
    assert nic.read(1, 0x10, 2) == 0xFFFF
    nic.write(1, 0x14, 4, 18)
    assert nic.read(1, 0x1C, 4) & 0x80  # DWIO


def test_identity_and_address_prom() -> None:
    station = looped()
    station.nic.write(1, RDP, 4, 0)
    assert station.csr(89) << 16 | station.csr(88) == 0x0262_1003
    prom = b"".join(station.nic.read(1, at, 4).to_bytes(4, "little") for at in range(0, 16, 4))
    assert prom[:6] == ME
    assert prom[14:] == b"WW"
    assert int.from_bytes(prom[12:14], "little") == sum(prom[:12]) + sum(prom[14:])


def test_initialization_reads_the_block() -> None:
    station = looped()
    station.start(mode=1 << 15, receive=3, transmit=9, filter=0x1122334455667788, command=0)
    assert station.csr(15) == 1 << 15
    assert [station.csr(n) for n in (8, 9, 10, 11)] == [0x7788, 0x5566, 0x3344, 0x1122]
    assert [station.csr(n) for n in (12, 13, 14)] == [0x0002, 0x0000, 0x0100]
    assert [station.csr(76), station.csr(78)] == [-8 & 0xFFFF, -512 & 0xFFFF]
    assert station.csr(0) == INIT
    assert (0x100, 28) in station.memory.reads


def test_the_largest_rings_have_512() -> None:
    station = looped()
    station.start(receive=10, transmit=15)
    assert [station.csr(76), station.csr(78)] == [-512 & 0xFFFF] * 2


def test_another_software_style_never_ends_its_initialization() -> None:
    station = looped()
    station.nic.write(1, RDP, 4, 0)
    station.set_csr(0, INIT)
    station.run()
    assert station.csr(0) == INIT
    assert station.nic.counts["refused"] == 1


def test_init_and_strt_together() -> None:
    station = looped()
    station.start(command=0)
    station.set_csr(0, STOP)
    station.set_csr(0, INIT | STRT | IENA)
    assert not station.csr(0) & (TXON | RXON)
    station.run()
    assert station.csr(0) == INIT | STRT | TXON | RXON | IENA | INTR | IDON
    assert station.pin.level


@pytest.mark.parametrize(("mode", "on"), [(0, TXON | RXON), (1, TXON), (2, RXON)])
def test_what_the_mode_switches_off(mode: int, on: int) -> None:
    station = looped()
    station.start(mode=mode)
    assert station.csr(0) & (TXON | RXON) == on


def test_registers_that_want_it_stopped() -> None:
    station = looped()
    station.start()
    for number in (1, 15, 12):
        before = station.csr(number)
        station.set_csr(number, ~before & 0xFFFF)
        assert station.csr(number) == before
    station.set_csr(0, STOP)
    station.set_csr(15, 0x1234)
    assert station.csr(15) == 0x1234


def test_stop_ends_everything() -> None:
    station = looped()
    station.start()
    station.offer(2000)
    station.send(frame(1000))
    station.clock.advance()  # it is fetched, and on the wire
    station.set_csr(0, STOP | STRT | TDMD)  # STOP comes before the others
    assert station.csr(0) == STOP
    station.run()
    assert station.status(RECEIVE, 0)[0] & OWN
    assert station.status(TRANSMIT, 0)[0] & OWN
    assert station.wire.frames == 0


def test_a_read_of_the_reset_register_resets() -> None:
    station = looped()
    station.start()
    station.set_csr(3, TINT)
    station.nic.read(1, RESET, 4)
    assert (station.csr(0), station.csr(3), station.csr(58) & 0xFF) == (STOP, 0, 2)  # the style stays


def test_causes_are_masked_and_acknowledged_one_by_one() -> None:
    station = looped()
    station.start()
    station.offer(2000)
    station.send(frame())
    station.run()
    assert station.csr(0) & (TINT | RINT) == TINT | RINT
    assert station.pin.level
    station.set_csr(3, RINT)
    station.set_csr(0, TINT | IENA)
    assert station.csr(0) & (TINT | RINT | INTR) == RINT
    assert not station.pin.level
    station.set_csr(3, 0)
    assert station.pin.level
    station.set_csr(0, 0)  # without IENA
    assert station.csr(0) & INTR
    assert not station.pin.level


# -- transmission and reception ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("megabits", "byte_time"), [(10, 800), (100, 80)])
def test_a_frame_there(megabits: int, byte_time: int) -> None:
    one, two = pair(megabits)
    one.start()
    two.start()
    two.offer(2000)
    sent = frame(100, to=OTHER)
    one.send(sent)
    begin = one.clock.now()
    one.run()
    assert two.found(0, 105) == checked(sent) + b"\xee"
    word, length = two.status(RECEIVE, 0)
    assert word >> 16 == (STP | ENP | PAM) >> 16
    assert length == 104
    assert one.status(TRANSMIT, 0) == (STP | ENP | 0xF000 | -100 & 0xFFF, 0)
    assert one.clock.now() - begin == FETCH_TIME + (8 + 104) * byte_time + FETCH_TIME  # and it looked again
    assert (one.nic.counts["sent"], two.nic.counts["received"]) == (1, 1)
    assert one.memory.bytes[TRANSMIT + 12] == 77  # software's word is left alone


def test_between_two_frames_there_is_a_gap() -> None:
    one, two = pair()
    one.start()
    two.start()
    two.offer(2000, 2000)
    begin = one.clock.now()
    one.send(frame(1514, to=OTHER))
    one.send(frame(60, to=OTHER), first=1)
    one.run()
    assert one.clock.now() - begin == FETCH_TIME + (8 + 1518 + 12 + 8 + 64) * 800 + FETCH_TIME


def test_a_frame_from_several_descriptors_into_several() -> None:
    station = looped()
    station.start()
    station.offer(14, 50, 300, 300)
    data = frame(14) + bytes(range(200))
    station.send(data[:1], data[1:100], data[100:])
    station.run()
    statuses = [station.status(RECEIVE, index) for index in range(4)]
    assert [word >> 24 & 0x83 for word, _ in statuses] == [STP >> 24, 0, ENP >> 24, OWN >> 24]
    assert statuses[2][1] == 218
    assert station.found(0, 15) == data[:14] + b"\xee"
    assert station.found(1, 51) == data[14:64] + b"\xee"
    assert station.found(2, 155) == checked(data)[64:] + b"\xee"
    assert not any(station.status(TRANSMIT, index)[0] & OWN for index in range(3))


@given(
    st.integers(60, 1514),
    st.lists(st.integers(1, 700), min_size=1, max_size=3),
    st.lists(st.integers(1, 4096), min_size=4, max_size=4),
)
def test_any_cut_of_a_frame_comes_out_whole(length: int, cuts: list[int], buffers: list[int]) -> None:
    station = looped()
    station.start()
    data, at = frame(14) + bytes(n * 7 & 0xFF for n in range(length - 14)), DATA + 0x4000
    for index, room in enumerate(buffers):
        station.describe(RECEIVE, index, at, room, OWN)
        at += room
    edges = [0, *sorted({cut for cut in cuts if cut < length}), length]
    station.send(*(data[a:b] for a, b in pairwise(edges)))
    station.run()
    fits = sum(buffers) >= length + 4
    arrived = min(length + 4, sum(buffers))
    assert station.memory.bytes[DATA + 0x4000 :][:arrived] == checked(data)[:arrived]
    assert not any(station.memory.bytes[DATA + 0x4000 + arrived :])
    used = [station.status(RECEIVE, index) for index in range(4) if not station.status(RECEIVE, index)[0] & OWN]
    assert [bool(word & STP) for word, _ in used] == [True] + [False] * (len(used) - 1)
    assert [bool(word & ENP) for word, _ in used] == [False] * (len(used) - 1) + [fits]
    assert used[-1][1] == (length + 4 if fits else 0)
    assert bool(used[-1][0] & RX_BUFF) is not fits
    assert station.nic.counts["received"] == fits


def test_a_length_of_0_is_4096() -> None:
    station = looped()
    station.start()
    station.offer(4096)
    assert station.status(RECEIVE, 0)[0] & 0xFFF == 0
    station.send(frame(1514))
    station.run()
    assert station.status(RECEIVE, 0)[1] == 1518


def test_rings_go_round() -> None:
    station = looped()
    station.start()
    for number in range(11):
        station.offer(2000, first=number % 4)
        station.send(frame(60 + number), first=number % 4)
        station.run()
        assert station.status(RECEIVE, number % 4)[1] == 64 + number
    assert station.nic.counts["missed"] == 0


def test_it_sends_on_without_being_told_again() -> None:
    station = looped()
    station.start()
    station.offer(2000, 2000, 2000)
    for index in (2, 1):
        station.describe(TRANSMIT, index, DATA + 0x800 * index, 60, OWN | STP | ENP)
    station.send(frame())
    station.run()
    assert station.nic.counts["sent"] == 3


def test_what_begins_no_frame_is_skipped() -> None:
    station = looped()
    station.start()
    station.offer(2000)
    station.describe(TRANSMIT, 0, DATA, 60, OWN | ENP)
    station.send(frame(), first=1)
    station.run()
    assert not station.status(TRANSMIT, 0)[0] & OWN
    assert station.nic.counts["sent"] == 1


def test_a_frame_that_goes_on_where_the_controller_owns_nothing() -> None:
    station = looped()
    station.start()
    station.describe(TRANSMIT, 0, DATA, 60, OWN | STP)
    station.set_csr(0, TDMD)
    station.run()
    assert station.status(TRANSMIT, 0) == (STP | 1 << 30 | 0xF000 | -60 & 0xFFF, 0b11 << 30)
    assert station.csr(0) & (TXON | TINT) == TINT
    assert station.wire.frames == 0


def test_short_frames_are_padded_if_asked_for_and_lost_if_not() -> None:
    station = looped()
    station.start()
    station.offer(2000)
    station.send(frame(20))
    station.run()
    assert station.wire.frames == 1
    assert station.status(RECEIVE, 0)[0] & OWN  # a runt
    station.set_csr(4, 1 << 11)
    station.send(frame(20), first=1)
    station.run()
    assert station.found(0, 64) == checked(frame(20) + bytes(40))


def test_the_check_sequence_can_be_software_s() -> None:
    station = looped()
    station.start(mode=1 << 3)
    station.offer(2000, 2000, 2000)
    station.send(checked(frame(100)))
    station.run()
    assert station.status(RECEIVE, 0)[0] & (1 << 30 | CRC) == 0
    station.send(frame(100), first=1)
    station.run()
    assert station.status(RECEIVE, 1)[0] & (1 << 30 | CRC) == 1 << 30 | CRC
    station.send(frame(100), first=2, flags=1 << 29)  # ADD_FCS
    station.run()
    assert station.status(RECEIVE, 2)[0] & (1 << 30 | CRC) == 0


def test_a_babbling_transmitter() -> None:
    station = looped()
    station.start()
    station.offer(2000)
    station.send(frame(1515))
    station.run()
    assert station.csr(0) & (BABL | ERR) == BABL | ERR
    assert station.status(RECEIVE, 0)[1] == 1519


def test_missed_frames_are_counted() -> None:
    station = looped()
    station.start()
    for number in range(3):
        station.send(frame(), first=number)
        station.run()
    assert station.csr(112) == 3
    assert station.csr(0) & (MISS | ERR) == MISS | ERR
    station.set_csr(0, MISS | IENA)
    assert not station.csr(0) & (MISS | ERR)
    station.set_csr(0, STOP)
    assert station.csr(112) == 0


def test_the_address_filter() -> None:
    def kind(to: bytes, *, mode: int = 0, filter: int = 0) -> int | None:
        one, two = pair()
        one.start()
        two.start(mode=mode, filter=filter)
        two.offer(2000)
        one.send(frame(to=to))
        one.run()
        word = two.status(RECEIVE, 0)[0]
        return None if word & OWN else word & (PAM | LAFM | BAM)

    everybody = b"\xff" * 6
    assert kind(OTHER) == PAM
    assert kind(ME) is None
    assert kind(ME, mode=1 << 15) == 0
    assert kind(everybody) == BAM
    assert kind(everybody, mode=1 << 14) is None
    assert kind(MULTICAST) is None
    bits = [bit for bit in range(64) if kind(MULTICAST, filter=1 << bit) == LAFM]
    register = 0xFFFF_FFFF  # of a CRC generator that sees the address as the wire does, bit by bit
    for byte in MULTICAST:
        for position in range(8):
            feedback = (register ^ byte >> position) & 1
            register = register >> 1 ^ (0xEDB8_8320 if feedback else 0)
    assert bits == [register >> 26]  # its upper six bits


def test_the_chip_s_own_loop() -> None:
    one, two = pair()
    one.start(mode=1 << 2)
    two.start()
    one.offer(2000)
    two.offer(2000)
    one.send(frame(80))
    one.run()
    assert one.found(0, 84) == checked(frame(80))
    assert one.wire.frames == 0


# -- suspension, trouble ----------------------------------------------------------------------------------------------


def test_suspension_waits_for_the_frame_on_the_wire() -> None:
    station = looped()
    station.start()
    station.offer(2000, 2000)
    station.send(frame())
    station.send(frame(), first=1)
    station.clock.advance()
    station.set_csr(5, 1)
    assert station.csr(5) & 1 == 0
    station.run()
    assert station.csr(5) & 1 == 1
    assert station.nic.counts["sent"] == 1
    station.set_csr(8, 0x5555)
    assert station.csr(8) == 0x5555  # registers are open
    station.set_csr(5, 0)
    station.run()
    assert station.nic.counts["sent"] == 2


def test_a_suspended_station_hears_nothing() -> None:
    one, two = pair()
    one.start()
    two.start()
    two.offer(2000)
    two.set_csr(5, 1)
    one.send(frame(to=OTHER))
    one.run()
    assert two.status(RECEIVE, 0)[0] & OWN
    assert two.csr(112) == 0


@pytest.mark.parametrize("part", ["block", "descriptor", "data", "receive"])
def test_the_bus_refuses(part: str) -> None:
    station = looped()
    station.memory.refused = 0x100 if part == "block" else 1 << 16
    station.start(command=0 if part == "block" else STRT | IENA)
    station.set_csr(5, 1 << 10)
    station.offer(2000)
    station.memory.refused = {"block": 0, "descriptor": TRANSMIT, "data": DATA, "receive": DATA + 0x4000}[part]
    if part != "block":
        station.send(frame())
    station.run()
    assert station.csr(0) == STOP
    assert station.csr(5) & 1 << 11
    assert station.pin.level  # whatever IENA says
    assert station.nic.counts["faults"] == 1
    station.set_csr(5, 1 << 11 | 1 << 10)
    assert not station.pin.level


def test_a_frame_that_never_goes() -> None:
    station = looped()
    station.start()
    station.offer(2000)
    station.nic.inject_stuck_transmit()
    station.send(frame())
    station.run()
    assert station.status(TRANSMIT, 0)[0] & OWN
    station.set_csr(0, STOP)
    station.start()
    station.set_csr(0, TDMD)
    station.run()
    assert station.nic.counts["sent"] == 1


@pytest.mark.parametrize(("change", "word"), [(None, OWN), (20, STP | ENP | 1 << 30 | CRC)])
def test_a_wire_that_loses_or_spoils_frames(change: int | None, word: int) -> None:
    station = looped()
    station.start()
    station.offer(2000)

    def tamper(data: bytes) -> bytes | None:
        return None if change is None else data[:change] + bytes([data[change] ^ 4]) + data[change + 1 :]

    station.wire.tamper = tamper
    station.send(frame())
    station.run()
    assert station.status(RECEIVE, 0)[0] & (OWN | STP | ENP | 1 << 30 | CRC) == word
    assert not station.status(TRANSMIT, 0)[0] & OWN  # the sender does not know


def test_what_cannot_be() -> None:
    clock = VirtualClock()
    wire = Wire(clock.call_at, clock.now)
    Station(clock, wire)
    Station(clock, wire)
    with pytest.raises(ConfigurationError, match="two ends"):
        Station(clock, wire)
    with pytest.raises(ConfigurationError, match="10, 100"):
        Wire(clock.call_at, clock.now, megabits=1000)
    with pytest.raises(ConfigurationError, match="no station's address"):
        Nic(Memory(), Pin(), clock.call_at, clock.now, wire=wire, address=MULTICAST)
