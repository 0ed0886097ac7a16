"""The 32-bit structures, byte for byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers import mailbox_port, scsi
from busdma.drivers.bt import layout

WORD = st.integers(0, (1 << 32) - 1)


def test_a_mailbox_is_an_address_and_an_action_at_its_end() -> None:
    memory = memoryview(bytearray(b"\xcc" * 24))
    layout.write_mailbox(memory, 8, mailbox_port.ABORT, 0x0A0B0C0D)
    assert bytes(memory) == b"\xcc" * 8 + b"\x0d\x0c\x0b\x0a\0\0\0\x02" + b"\xcc" * 8
    assert layout.read_mailbox(memory, 8) == (mailbox_port.ABORT, 0x0A0B0C0D)
    layout.write_mailbox(memory, 8, mailbox_port.FREE, 0)
    assert layout.read_mailbox(memory, 8) == (mailbox_port.FREE, 0)


@given(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=layout.SEGMENTS_MOST), WORD.filter(lambda n: n < 1 << 31))
def test_a_segment_list_is_lengths_and_addresses(segments: list[tuple[int, int]], base: int) -> None:
    memory = memoryview(bytearray(b"\xcc" * 3 * layout.SLOT))
    layout.write_ccb(
        memory,
        layout.SLOT,
        target=5,
        lun=3,
        tag=None,
        cdb=scsi.write10(7, 8),
        base=base,
        outbound=True,
        segments=segments,
    )
    slot = bytes(memory[layout.SLOT : 2 * layout.SLOT])
    size = 8 * len(segments)
    assert slot[:4] == bytes((layout.SEGMENT_LIST, layout.OUTBOUND, 10, 18))
    assert struct.unpack_from("<II", slot, 4) == (size, base + layout.LIST_AT)
    assert slot[16:18] == b"\x05\x03"
    assert slot[18:30] == scsi.write10(7, 8) + b"\0\0"
    assert struct.unpack_from("<I", slot, 36) == (base + layout.SENSE_AT,)
    listed = struct.unpack_from(f"<{2 * len(segments)}I", slot, layout.LIST_AT)
    assert list(zip(listed[1::2], listed[::2], strict=True)) == segments
    assert bytes(memory[: layout.SLOT]) == bytes(memory[2 * layout.SLOT :]) == b"\xcc" * layout.SLOT


@pytest.mark.parametrize(("tag", "byte"), [(layout.SIMPLE, 0x21), (layout.HEAD_OF_QUEUE, 0x61), (layout.ORDERED, 0xA1)])
def test_a_tag_stands_over_the_logical_unit(tag: int, byte: int) -> None:
    memory = memoryview(bytearray(layout.SLOT))
    layout.write_ccb(memory, 0, target=0, lun=1, tag=tag, cdb=scsi.test_unit_ready(), base=0x1000)
    assert memory[17] == byte
    assert bytes(memory[:12]) == bytes((layout.NO_DATA, 0, 6, 18)) + bytes(8)


def test_an_answer_comes_to_the_slot_itself() -> None:
    memory = memoryview(bytearray(layout.SLOT))
    memory[layout.SENSE_AT : layout.REPLY_AT] = b"\xee" * (layout.REPLY_AT - layout.SENSE_AT)
    layout.write_ccb(memory, 0, target=0, lun=0, tag=None, cdb=scsi.inquiry(36), base=0x1000, reply=36)
    assert bytes(memory[:4]) == bytes((layout.ONE_AREA, layout.INBOUND, 6, 18))
    assert struct.unpack_from("<II", memory, 4) == (36, 0x1000 + layout.REPLY_AT)
    memory[4:8] = struct.pack("<I", 4)
    memory[14:16] = b"\x12\x02"
    memory[layout.REPLY_AT : layout.REPLY_AT + 3] = b"abc"
    outcome = layout.read_outcome(memory, 0)
    assert (outcome.host_status, outcome.target_status, outcome.residual) == (0x12, 2, 4)
    assert outcome.sense == bytes(18)  # old sense data do not look like new
    assert outcome.reply[:4] == b"abc\0"
    assert layout.REPLY_AT + layout.REPLY_MOST <= layout.SLOT


def test_the_extended_setup() -> None:
    assert layout.parse_setup(b"E\xdc\x00\x20" + bytes(10)) == (0xDC000, 8192)
