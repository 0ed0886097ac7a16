"""SCSI-2's command blocks and sense data."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers import scsi
from busdma.drivers.scsi_host import RETRY_BUSY, RETRY_NOT_READY, RETRY_NOW, retry_delay, succeeded

SENSE = bytes.fromhex("f0 00 03 00 00 12 34 0a 00 00 00 00 11 00 00 00 00 00")


def test_command_blocks() -> None:
    assert scsi.test_unit_ready().hex(" ") == "00 00 00 00 00 00"
    assert scsi.inquiry(36).hex(" ") == "12 00 00 00 24 00"
    assert scsi.read_capacity().hex(" ") == "25 00 00 00 00 00 00 00 00 00"
    assert scsi.read10(0x12345678, 0x80).hex(" ") == "28 00 12 34 56 78 00 00 80 00"
    assert scsi.write10(1, 0xFFFF).hex(" ") == "2a 00 00 00 00 01 00 ff ff 00"
    assert scsi.synchronize_cache().hex(" ") == "35 00 00 00 00 00 00 00 00 00"


def test_a_command_block_holds_no_more_than_its_fields() -> None:
    with pytest.raises(struct.error):
        scsi.read10(1 << 32, 1)
    with pytest.raises(struct.error):
        scsi.write10(0, 1 << 16)


def test_capacity_names_the_last_block() -> None:
    assert scsi.parse_capacity(bytes.fromhex("0001ffff 00000200")) == (0x20000, 512)


def test_sense_data_in_words() -> None:
    sense = scsi.parse_sense(SENSE)
    assert sense == scsi.Sense(3, 0x11, 0, 0x1234)
    assert str(sense) == "MEDIUM ERROR, unrecovered read error (11/00), block 4660"


def test_the_block_counts_only_where_it_is_valid() -> None:
    sense = scsi.parse_sense(b"\x70" + SENSE[1:])
    assert sense is not None
    assert sense.block is None


def test_sense_data_that_was_cut_short() -> None:
    assert scsi.parse_sense(SENSE[:8]) == scsi.Sense(3, 0, 0, 0x1234)
    assert scsi.parse_sense(SENSE[:3]) == scsi.Sense(3)
    assert scsi.parse_sense(SENSE[:2]) is None
    shorter = scsi.parse_sense(SENSE[:7] + b"\x04" + SENSE[8:])  # additional length 4: bytes 0..11
    assert shorter == scsi.Sense(3, 0, 0, 0x1234)


def test_what_is_not_sense_data() -> None:
    assert scsi.parse_sense(bytes(18)) is None
    assert scsi.parse_sense(b"") is None


@given(st.binary(max_size=40))
def test_any_bytes_can_be_looked_at(data: bytes) -> None:
    sense = scsi.parse_sense(data)
    assert sense is None or (0 <= sense.key <= 15 and str(sense))


def test_names() -> None:
    assert scsi.name_command(scsi.read10(0, 1)).startswith("READ(10) [28 00")
    assert scsi.name_command(b"\xc0\x01").startswith("command [c0 01]")
    assert scsi.name_status(0x28) == "QUEUE FULL"
    assert scsi.name_status(0x77) == "status 0x77"


@pytest.mark.parametrize(
    ("status", "sense", "delay"),
    [
        (scsi.GOOD, None, None),
        (scsi.BUSY, None, RETRY_BUSY),
        (scsi.QUEUE_FULL, None, RETRY_BUSY),
        (scsi.CHECK_CONDITION, None, None),
        (scsi.CHECK_CONDITION, scsi.Sense(scsi.UNIT_ATTENTION, 0x29), RETRY_NOW),
        (scsi.CHECK_CONDITION, scsi.Sense(scsi.ABORTED_COMMAND), RETRY_NOW),
        (scsi.CHECK_CONDITION, scsi.Sense(scsi.NOT_READY, 4, 1), RETRY_NOT_READY),
        (scsi.CHECK_CONDITION, scsi.Sense(scsi.NOT_READY, 4, 2), None),
        (scsi.CHECK_CONDITION, scsi.Sense(3, 0x11), None),
    ],
)
def test_what_is_tried_again(status: int, sense: scsi.Sense | None, delay: int | None) -> None:
    assert retry_delay(status, sense) == delay


def test_what_counts_as_done() -> None:
    assert succeeded(scsi.GOOD, None)
    assert succeeded(scsi.CHECK_CONDITION, scsi.Sense(scsi.RECOVERED_ERROR, 0x17))
    assert not succeeded(scsi.CHECK_CONDITION, None)
    assert not succeeded(scsi.CHECK_CONDITION, scsi.Sense(scsi.ILLEGAL_REQUEST))
    assert not succeeded(scsi.BUSY, None)
