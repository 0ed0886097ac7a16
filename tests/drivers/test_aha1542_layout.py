"""The structures, byte for byte as the manual prints them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers import mailbox_port, scsi
from busdma.drivers.aha1542 import layout


def test_numbers_are_three_bytes_most_significant_first() -> None:
    assert layout.put24(0x123456) == b"\x12\x34\x56"
    with pytest.raises(OverflowError):
        layout.put24(1 << 24)


def test_a_mailbox_is_an_action_and_an_address() -> None:
    memory = memoryview(bytearray(12))
    layout.write_mailbox(memory, 4, mailbox_port.ABORT, 0x0A0B0C)
    assert bytes(memory) == bytes(4) + b"\x02\x0a\x0b\x0c" + bytes(4)
    assert layout.read_mailbox(memory, 4) == (mailbox_port.ABORT, 0x0A0B0C)


def test_the_manuals_scatter_gather_example() -> None:
    """Page 5-28: 4096 bytes in four places; the list is 24 bytes long."""
    memory = memoryview(bytearray(2 * layout.SLOT))
    segments = [(0x100000, 1024), (0x200000, 2), (0x300002, 2046), (0x400000, 1024)]
    at = layout.SLOT
    layout.write_ccb(
        memory, at, target=5, lun=3, cdb=scsi.write10(0x01020304, 8), base=0xABC000, outbound=True, segments=segments
    )
    assert memory[at : at + 18].hex(" ") == "04 b3 0a 12 00 00 18 ab c0 30 00 00 00 00 00 00 00 00"
    assert memory[at + 18 : at + 28].hex(" ") == "2a 00 01 02 03 04 00 00 08 00"
    assert memory[at + 28 : at + 48] == bytes(20)
    assert memory[at + 48 : at + 72].hex(" ") == (
        "00 04 00 10 00 00 00 00 02 20 00 00 00 07 fe 30 00 02 00 04 00 40 00 00"
    )
    assert memory[:at] == bytes(at)


def test_a_read_says_inbound() -> None:
    memory = memoryview(bytearray(layout.SLOT))
    layout.write_ccb(memory, 0, target=0, lun=0, cdb=scsi.read10(0, 1), base=0, segments=[(4096, 512)])
    assert memory[1] == 0x08


def test_a_short_answer_comes_to_the_slot_itself() -> None:
    memory = memoryview(bytearray(layout.SLOT))
    layout.write_ccb(memory, 0, target=1, lun=0, cdb=scsi.inquiry(36), base=0x1000, reply=36)
    assert memory[:10].hex(" ") == "03 28 06 12 00 00 24 00 10 96"


def test_no_data_is_the_plain_operation() -> None:
    memory = memoryview(bytearray(b"\xff" * layout.SLOT))
    layout.write_ccb(memory, 0, target=6, lun=1, cdb=scsi.test_unit_ready(), base=0x1000)
    assert memory[:18].hex(" ") == "00 c1 06 12 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
    assert layout.read_outcome(memory, 0)[:3] == (0, 0, 0)


def test_the_outcome_is_read_where_the_adapter_writes_it() -> None:
    memory = memoryview(bytearray(layout.SLOT))
    layout.write_ccb(memory, 0, target=0, lun=0, cdb=scsi.inquiry(36), base=0, reply=36)
    memory[4:7] = b"\x00\x00\x08"  # residual
    memory[14], memory[15] = 0x12, 0x02
    memory[24:42] = bytes(range(18))  # sense, behind the six bytes of the command
    memory[layout.REPLY_AT : layout.REPLY_AT + 2] = b"ok"
    host, target, residual, sense, reply = layout.read_outcome(memory, 0)
    assert (host, target, residual, sense, reply[:2]) == (0x12, 0x02, 8, bytes(range(18)), b"ok")


def test_what_belongs_to_a_slot_fits_in_it() -> None:
    memory = memoryview(bytearray(3 * layout.SLOT))
    segments = [(0xFFFFFF, 0xFFFFFF)] * layout.SEGMENTS_MOST
    layout.write_ccb(
        memory, layout.SLOT, target=7, lun=7, cdb=b"\xff" * layout.MAX_CDB, base=0xFFF000, segments=segments
    )
    assert not any(memory[: layout.SLOT])
    assert not any(memory[2 * layout.SLOT :])
    assert layout.REPLY_AT + layout.REPLY_MOST <= layout.SLOT


@given(st.lists(st.tuples(st.integers(0, 0xFFFFFF), st.integers(1, 0xFFFFFF)), min_size=1, max_size=17))
def test_any_list_can_be_read_back(segments: list[tuple[int, int]]) -> None:
    memory = memoryview(bytearray(layout.SLOT))
    layout.write_ccb(memory, 0, target=0, lun=0, cdb=bytes(6), base=0x10, segments=segments)
    size, at = int.from_bytes(memory[4:7], "big"), int.from_bytes(memory[7:10], "big") - 0x10
    raw = bytes(memory[at : at + size])
    pieces = [raw[i : i + 6] for i in range(0, size, 6)]
    assert [(int.from_bytes(p[3:], "big"), int.from_bytes(p[:3], "big")) for p in pieces] == segments


@pytest.mark.parametrize(
    ("reply", "meaning"),
    [
        (b"\x20\x04\x07", (5, 11, 7)),
        (b"\x01\x01\x06", (0, 9, 6)),
        (b"\x80\x40\x07", (7, 15, 7)),
        (b"\x40\x20\x00", (6, 14, 0)),
        (b"\x00\x08\x07", (None, 12, 7)),
    ],
)
def test_the_jumpers(reply: bytes, meaning: tuple[int | None, int, int]) -> None:
    assert mailbox_port.parse_configuration(reply) == meaning
