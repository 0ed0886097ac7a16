"""The Pchip's windows and map, by a Pchip that keeps what it has looked up as long as it may."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import ConfigurationError, DriverError
from busdma.machine.handle import Handle64
from busdma.sync import Direction
from busdma.translators.tsunami import (
    MONSTER_BASE,
    MONSTER_SIZE,
    PchipSgmap,
    open_monster,
    open_window,
)
from busdma.translators.windows import PAGE, SCATTER

MIB = 1 << 20
BASE, SIZE = 8 * MIB, 8 * MIB
TABLE = 0x1_0000
GROUP = 4  #: entries that are fetched together


class Pchip(Handle64):
    """Registers, and a TLB without an end, which keeps invalid entries too. `table`: what is at TABLE in memory."""

    def __init__(self) -> None:
        self.table = bytearray(SIZE // PAGE * 8)
        self.values = {0x300: 0x1234_0000_0001}  # PCTL as firmware may leave it
        self.log: list[int] = []
        self.tlb: dict[int, tuple[int, ...]] = {}

    def barrier(self) -> None:
        pass

    def _read(self, offset: int, size: int) -> int:
        assert size == 8
        return self.values.get(offset, 0)

    def _write(self, offset: int, size: int, value: int) -> None:
        assert size == 8
        assert value < 1 << 64
        self.log.append(offset)
        if offset == 0x4C0:
            self.tlb.clear()
        elif offset == 0x480:
            assert value & ~0xF_FFF0 == 0
            self.tlb = {group: kept for group, kept in self.tlb.items() if group * GROUP * PAGE >> 16 != value >> 4}
        else:
            self.values[offset] = value

    def frame(self, address: int) -> int | None:
        """What a device reaches at the page there."""
        group, which = divmod(address // PAGE, GROUP)
        if group not in self.tlb:
            at = (address - BASE) // (GROUP * PAGE) * GROUP * 8
            self.tlb[group] = struct.unpack_from(f"<{GROUP}Q", self.table, at)
        entry = self.tlb[group][which]
        return (entry >> 1) * PAGE if entry & 1 else None


def sgmap() -> tuple[Pchip, PchipSgmap]:
    pchip = Pchip()
    return pchip, PchipSgmap(pchip, memoryview(pchip.table), TABLE, base=BASE, size=SIZE)


def test_a_window_is_closed_while_it_changes() -> None:
    pchip = Pchip()
    open_window(pchip, 2, 0x8000_0000, 64 * MIB, 128 * MIB)
    assert pchip.log == [0x80, 0x180, 0x280, 0x80]
    assert [pchip.values[at] for at in (0x80, 0x180, 0x280)] == [0x8000_0001, 0x03F0_0000, 128 * MIB]
    open_window(pchip, 3, 1 << 30, MIB, 0x400, SCATTER)
    assert [pchip.values[at] for at in (0xC0, 0x1C0, 0x2C0)] == [0x4000_0003, 0, 0x400]


@pytest.mark.parametrize(
    ("number", "base", "size", "target"),
    [(4, 0, MIB, 0), (0, 0, MIB // 2, 0), (0, 0, 3 * MIB, 0), (0, MIB, 2 * MIB, 0), (0, 0, 2 * MIB, MIB)],
)
def test_a_window_that_cannot_be(number: int, base: int, size: int, target: int) -> None:
    pchip = Pchip()
    with pytest.raises(ConfigurationError, match="give a number from 0 to 3, a power of two"):
        open_window(pchip, number, base, size, target)
    assert pchip.log == []


def test_the_monster_window_is_a_bit_among_others() -> None:
    pchip = Pchip()
    open_monster(pchip)
    assert pchip.values[0x300] == 0x1234_0000_0041
    assert (MONSTER_BASE, MONSTER_SIZE) == (1 << 40, 32 << 30)


def test_the_map_begins_empty_and_forgotten() -> None:
    pchip, translator = sgmap()
    assert [pchip.values[at] for at in (0x00, 0x100, 0x200)] == [BASE | 3, SIZE - MIB, TABLE]
    assert pchip.log[-1] == 0x4C0
    assert not any(pchip.table)
    assert translator.window.intervals == ((BASE, BASE + SIZE - 1),)
    for table, where in ((bytearray(4096), TABLE), (bytearray(SIZE // PAGE * 8), TABLE + PAGE)):
        with pytest.raises(ConfigurationError, match="sgmap: a table of"):
            PchipSgmap(Pchip(), memoryview(table), where, base=BASE, size=SIZE)


def test_an_entry_names_any_frame_of_34_bits() -> None:
    pchip, translator = sgmap()
    for frame in (0, PAGE, (1 << 34) - PAGE):
        translator.enter(BASE, [frame], Direction.BOTH)
        assert pchip.frame(BASE) == frame
    for frame in (1 << 34, 4096):
        with pytest.raises(DriverError, match="no entry can name"):
            translator.enter(BASE, [frame], Direction.BOTH)


def test_few_pages_are_forgotten_by_address() -> None:
    pchip, translator = sgmap()
    pchip.log.clear()
    translator.flush(BASE + 7 * PAGE, 2)  # in two blocks of 64 KiB
    assert pchip.log == [0x480, 0x480]
    translator.flush(BASE, 100)
    assert pchip.log[2:] == [0x4C0]
    with pytest.raises(DriverError, match="no 2 pages"):
        translator.flush(BASE + SIZE - PAGE, 2)


pages = st.tuples(st.integers(0, 60), st.integers(1, 40))


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.booleans(), pages, st.lists(st.integers(0, 100), max_size=10)), max_size=20))
def test_nothing_old_is_reached(steps: list[tuple[bool, tuple[int, int], list[int]]]) -> None:
    """Whatever a device has looked at in between, valid or not."""
    pchip, translator = sgmap()
    mapped: dict[int, int] = {}
    for number, (enters, (first, count), looks) in enumerate(steps, 1):
        where = range(first, first + count)
        if enters:
            frames = [(number * 100 + page) * PAGE for page in where]
            translator.enter(BASE + first * PAGE, frames, Direction.BOTH)
            mapped.update(zip(where, frames, strict=True))
        else:
            translator.clear(BASE + first * PAGE, count)
            translator.flush(BASE + first * PAGE, count)
            for page in where:
                mapped.pop(page, None)
        for page in (*where, *looks):
            assert pchip.frame(BASE + page * PAGE) == mapped.get(page)
