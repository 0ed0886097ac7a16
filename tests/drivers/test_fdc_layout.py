"""The words of the floppy controller's data sheet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers.fdc import layout
from busdma.drivers.fdc.layout import FORMATS, FdcFault, Format

BY_NAME = {format.name: format for format in FORMATS}
HD, DD, ED = BY_NAME["1.44 MB"], BY_NAME["720 KB"], BY_NAME["2.88 MB"]


def test_formats() -> None:
    assert [(format.blocks, format.cylinder, format.rate) for format in (HD, DD, ED)] == [
        (2880, 36, 0),
        (1440, 18, 2),
        (5760, 72, 3),
    ]
    assert layout.LARGEST == 36864


@given(st.sampled_from(FORMATS), st.integers(0, 5759))
def test_a_block_is_where_the_heads_find_it(format: Format, lba: int) -> None:
    lba %= format.blocks
    cylinder, head, sector = format.place(lba)
    assert 0 <= cylinder < 80
    assert head in (0, 1)
    assert 1 <= sector <= format.sectors
    assert (cylinder * 2 + head) * format.sectors + sector - 1 == lba
    assert cylinder == lba // format.cylinder


def test_commands() -> None:
    assert layout.data_command(False, 0, HD).hex(" ") == "c6 00 00 00 01 02 12 1b ff"
    assert layout.data_command(True, 36 * 79 + 18 + 17, HD).hex(" ") == "c5 04 4f 01 12 02 12 1b ff"
    assert layout.data_command(False, 10, DD).hex(" ") == "c6 04 00 01 02 02 09 2a ff"
    assert layout.specify(HD).hex(" ") == "03 df 02"
    assert layout.specify(DD).hex(" ") == "03 ef 02"
    assert layout.specify(ED).hex(" ") == "03 af 02"
    assert layout.perpendicular(HD).hex(" ") == "12 80"
    assert layout.perpendicular(ED).hex(" ") == "12 84"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ((0x40, 0x04, 0x00), "no such sector"),
        ((0x40, 0x20, 0x20), "CRC error; in the data of the sector"),
        ((0x44, 0x02, 0x00), "the medium is write-protected; open its write-protect hole, or only read"),
        ((0x40, 0x10, 0x00), "overrun: the bus was too late for a byte"),
        ((0x70,), "track 0 was not found"),
        ((0x80,), "the controller does not know the command"),
        ((0x40, 0x00, 0x00), "the drive gave no reason: is there a medium in it?"),
    ],
)
def test_every_status_has_a_name(status: tuple[int, ...], words: str) -> None:
    assert layout.failed(status)
    assert layout.name_status(status) == words


def test_what_is_no_failure() -> None:
    assert not layout.failed((0x00, 0x00, 0x00))
    assert not layout.failed((0x24,))


def test_only_a_protected_medium_is_hopeless() -> None:
    assert FdcFault("", (0x40, 0x02, 0x00)).hopeless
    assert not FdcFault("", (0x40, 0x20, 0x20)).hopeless
    assert not FdcFault("", (0x70,)).hopeless
    assert not FdcFault("").hopeless


def test_commands_have_names() -> None:
    assert layout.name_command(layout.data_command(True, 40, HD)) == "WRITE DATA at cylinder 1, head 0, sector 5"
    assert layout.name_command(bytes((layout.SEEK, 0, 7))) == "SEEK to cylinder 7"
    assert layout.name_command(bytes((layout.READ_ID, 0))) == "READ ID"
    assert layout.name_command(bytes((layout.RECALIBRATE, 0))) == "RECALIBRATE"
