"""The translator of the sabre's IOMMU: what it writes to registers and table, and what it refuses."""

from __future__ import annotations

import struct

import pytest

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, DriverError
from busdma.sync import Direction
from busdma.translators.sabre import CONTROL, FLUSH, PAGE, TARGETS, TSB_BASE, SabreTsb

MIB, GIB = 1 << 20, 1 << 30
BASE = 3 * GIB
READ, WRITE, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BOTH


class Registers:
    """64-bit registers, and every write to them in order. A barrier is written down as None."""

    def __init__(self) -> None:
        self.log: list[tuple[int, int] | None] = []

    def write64(self, offset: int, value: int) -> None:
        self.log.append((offset, value))

    def barrier(self) -> None:
        self.log.append(None)

    def value(self, offset: int) -> int:
        """The last that was written there."""
        return [entry[1] for entry in self.log if entry is not None and entry[0] == offset][-1]


def new(size: int = 8 * MIB, base: int = BASE, where: int = 0x1FF_2000_0000) -> tuple[SabreTsb, Registers, bytearray]:
    registers, table = Registers(), bytearray(b"\xff" * (size // PAGE * 8))
    tsb = SabreTsb(registers, memoryview(table), where, base=base, size=size)  # type: ignore[arg-type]
    return tsb, registers, table


@pytest.mark.parametrize(("size", "code"), [(8 * MIB, 0), (16 * MIB, 1), (64 * MIB, 3), (GIB, 7)])
def test_it_translates_only_when_the_table_is_empty_and_known(size: int, code: int) -> None:
    tsb, registers, table = new(size)
    assert not any(table)
    assert tsb.window == AddressSet.span(BASE, BASE + size - 1)
    assert registers.log[:2] == [(CONTROL, 0), (TSB_BASE, 0x1FF_2000_0000)]
    on = registers.log.index((CONTROL, code << 16 | 1))
    assert {offset for offset, _ in filter(None, registers.log[:on])} == {CONTROL, TSB_BASE, TARGETS}
    flushed = [entry for entry in registers.log[on + 1 :] if entry is not None]
    assert flushed == [(FLUSH, page) for page in range(BASE, BASE + size, PAGE)]
    assert registers.log[-1] is None


@pytest.mark.parametrize(
    ("base", "size", "targets"),
    [(BASE, 64 * MIB, 0x40), (BASE, 512 * MIB, 0x40), (BASE, GIB, 0xC0), (0xE000_0000, 8 * MIB, 0x80), (0, GIB, 0x03)],
)
def test_the_bridge_answers_for_what_holds_the_window(base: int, size: int, targets: int) -> None:
    _, registers, _ = new(size, base)
    assert registers.value(TARGETS) == targets


def test_entries_are_big_endian_with_rights_from_the_direction() -> None:
    tsb, registers, table = new()
    frames = [0x1FF_2000_0000, 0x2000, (1 << 41) - PAGE]
    del registers.log[:]
    for direction, writable in ((READ, 0), (WRITE, 2), (BOTH, 2)):
        tsb.enter(BASE + 5 * PAGE, frames, direction)
        assert list(struct.unpack_from(">3Q", table, 40)) == [frame | 1 << 63 | 0x10 | writable for frame in frames]
    assert registers.log == [None] * 3  # what was not mapped needs no flush
    tsb.clear(BASE + 6 * PAGE, 1)
    assert table[48:56] == bytes(8)
    assert table[40] == table[56] == 0x80


def test_every_page_is_flushed_and_then_waited_for() -> None:
    tsb, registers, _ = new()
    del registers.log[:]
    tsb.flush(BASE + 40 * PAGE, 20)
    assert registers.log == [*((FLUSH, BASE + n * PAGE) for n in range(40, 60)), None]


@pytest.mark.parametrize(
    ("base", "size"),
    [(BASE, 4 * MIB), (BASE, 48 * MIB), (BASE, 2 * GIB), (BASE + 8 * MIB, 16 * MIB), (4 * GIB, 8 * MIB), (-GIB, GIB)],
)
def test_windows_that_cannot_be(base: int, size: int) -> None:
    with pytest.raises(ConfigurationError, match="power of two from 8 MiB to 1 GiB"):
        new(size, base)


def test_tables_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="a multiple of 0x2000"):
        new(where=0x1000)
    with pytest.raises(ConfigurationError, match="give 0x2000 bytes"):
        SabreTsb(Registers(), memoryview(bytearray(PAGE // 2)), 0, size=8 * MIB)  # type: ignore[arg-type]


def test_pages_and_frames_that_cannot_be() -> None:
    tsb, registers, table = new()
    del registers.log[:]
    for address, pages in ((BASE - PAGE, 1), (BASE + 8, 1), (BASE, 0), (BASE + 8 * MIB - PAGE, 2)):
        for call in (tsb.clear, tsb.flush):
            with pytest.raises(DriverError, match="it translates whole pages"):
                call(address, pages)
    for frame in (0x1000, 1 << 41):
        with pytest.raises(DriverError, match="no entry can name"):
            tsb.enter(BASE, [frame], BOTH)
    assert registers.log == []
    assert not any(table)
