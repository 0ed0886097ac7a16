"""Page tables that grow, against a dictionary: what a walk finds, how many tables there are, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.machine.handle import Handle64
from busdma.sync import Direction
from busdma.translators import HardwareFault, pages
from busdma.translators.pages import PAGE, PageTree, TranslationUnit

READ, WRITE, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BOTH
RIGHTS = {READ: 1, WRITE: 2, BOTH: 3}
BASE = 0x4000_0000  #: where memory begins
TABLES = 64  #: page frames for tables, the last of memory
SPAN = 512 * PAGE  #: of a table of the last level


class NoRegisters(Handle64):
    """Counts barriers."""

    barriers = 0

    def barrier(self) -> None:
        self.barriers += 1

    def _read(self, offset: int, size: int) -> int:
        raise AssertionError("page tables are no registers")

    def _write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError("page tables are no registers")


class Unit(TranslationUnit):
    name = "unit"

    def __init__(self, room: int = TABLES) -> None:
        self.memory = memoryview(bytearray(b"\xee" * ((room + 8) * PAGE)))
        self.left = [BASE + (8 + number) * PAGE for number in range(room)]
        super().__init__(NoRegisters(), self.memory, self._next, BASE)

    def _next(self) -> int:
        if not self.left:
            raise MemoryError
        return self.left.pop()

    def pending(self) -> bool:
        return False

    def take_fault(self) -> HardwareFault | None:
        return None


class Tree(PageTree[Unit]):
    reach = AddressSet.span(0, (1 << 48) - 1)
    branch = 0x7

    def __init__(self, unit: Unit, levels: int = 3, window: AddressSet | None = None) -> None:
        super().__init__(unit, "one", 1, levels, AddressSet.span(0, PAGE * 512**levels - 1), window)
        self.forgotten: list[tuple[int, int]] = []

    def entry(self, frame: int, direction: Direction) -> int:
        return frame | RIGHTS[direction]

    def forget(self, page: int, pages: int) -> None:
        self.forgotten.append((page, pages))


def walk(unit: Unit, table: int, levels: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """(page number, entry) of all entries of the last level, as hardware finds them."""
    for index in range(512):
        at = table - BASE + index * 8
        entry = int.from_bytes(unit.memory[at : at + 8], "little")
        page = first + (index << 9 * (levels - 1))
        if not entry:
            continue
        if levels == 1:
            yield page, entry
        else:
            assert entry & 0xFFF == Tree.branch
            yield from walk(unit, entry & -PAGE, levels - 1, page)


@pytest.mark.parametrize("levels", [3, 4])
def test_entries_are_where_hardware_looks(levels: int) -> None:
    unit = Unit()
    tree = Tree(unit, levels)
    top = PAGE * 512**levels
    frames = [0x7000, 0, 0xFFFF_FFFF_F000]
    tree.enter(0, frames, READ)
    tree.enter(SPAN * 512 - PAGE, frames, WRITE)  # over the border of tables on every level
    tree.enter(top - PAGE, frames[:1], BOTH)
    border = SPAN * 512 // PAGE - 1
    assert dict(walk(unit, tree.table, levels)) == {
        **{page: frame | 1 for page, frame in enumerate(frames)},
        **{border + n: frame | 2 for n, frame in enumerate(frames)},
        top // PAGE - 1: 0x7003,
    }


def test_tables_are_zeroed_and_counted() -> None:
    unit = Unit()
    tree = Tree(unit)
    assert unit.tables == 1
    tree.clear(0, 512 * 512)  # where there are no tables there is nothing to clear
    assert unit.tables == 1
    tree.enter(SPAN - PAGE, [0x1000], READ)
    assert unit.tables == 3
    tree.enter(SPAN - 2 * PAGE, [0x1000, 0x2000, 0x3000], READ)
    assert unit.tables == 4
    tree.prepare(0, 4 * 512)
    assert unit.tables == 6
    tree.clear(0, 4 * 512)
    assert unit.tables == 6
    assert dict(walk(unit, tree.table, 3)) == {}


def test_nothing_is_entered_when_there_is_no_table_for_all() -> None:
    unit = Unit(room=3)
    tree = Tree(unit)
    tree.enter(0, [0x1000], READ)
    with pytest.raises(MemoryError):
        tree.enter(SPAN - PAGE, [0x2000, 0x3000], READ)
    with pytest.raises(MemoryError):
        tree.prepare(SPAN - PAGE, 2)
    assert dict(walk(unit, tree.table, 3)) == {0: 0x1001}


def test_the_cpu_waits_for_its_writes() -> None:
    unit = Unit()
    tree = Tree(unit)
    registers = unit.registers
    assert isinstance(registers, NoRegisters)
    tree.enter(0, [0x1000], READ)
    assert registers.barriers == 1
    tree.clear(0, 1)
    assert registers.barriers == 2


def test_what_cannot_be_is_refused() -> None:
    unit = Unit()
    whole = AddressSet.span(0, PAGE * 512**3 - 1)
    with pytest.raises(ConfigurationError, match=r"unit: one can have bus addresses in .* give others"):
        Tree(unit, window=AddressSet.span(0, PAGE * 512**3))
    tree = Tree(unit, window=AddressSet.span(SPAN, 2 * SPAN - 1))
    assert tree.window <= whole
    for address, count in ((SPAN + 1, 1), (SPAN - PAGE, 1), (2 * SPAN, 1), (2 * SPAN - PAGE, 2), (SPAN, 0)):
        for call in (tree.clear, tree.flush, tree.prepare):
            with pytest.raises(DriverError, match=r"unit: no .* on for one: it has whole pages"):
                call(address, count)
        if count:
            with pytest.raises(DriverError, match="whole pages"):
                tree.enter(address, [0x1000] * count, READ)
    for frame in (0x1001, 1 << 48, -PAGE):
        with pytest.raises(DriverError, match="no entry can name"):
            tree.enter(SPAN, [0x1000, frame], READ)
    assert tree.forgotten == []
    assert unit.tables == 1
    tree.flush(SPAN, 3)
    assert tree.forgotten == [(512, 3)]


def test_one_domain_for_each_source() -> None:
    unit = Unit()
    assert unit.next_domain("one", 0x20) == 1
    unit._sources[0x20] = "one"
    assert unit.next_domain("two", 0x48) == 2
    with pytest.raises(DriverError, match="unit: one has a domain for requests of 0x0020: share that one, or give"):
        unit.next_domain("two", 0x20)


def test_a_unit_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PATIENCE", 5)
    unit = Unit()
    looks = 0

    def look(enough: int) -> bool:
        nonlocal looks
        looks += 1
        return looks == enough

    with pytest.raises(DeviceFault, match="unit: CR0ACK does not say that the command is done: reset the machine"):
        unit.until(lambda: look(0), "CR0ACK")
    assert looks == 5
    unit.until(lambda: look(8), "CR0ACK")
    assert looks == 8


def test_where_memory_is() -> None:
    unit = Unit(room=2)
    assert [unit.is_memory(BASE + at) for at in (-1, 0, 10 * PAGE - 1, 10 * PAGE)] == [False, True, True, False]


class Agreement(RuleBasedStateMachine):
    """A dictionary of pages, and the tables that they have ever needed."""

    #: where tables of the last two levels meet, and the last pages
    starts = st.sampled_from([0, SPAN, 512 * SPAN, 512 * 512 * PAGE * 512]).flatmap(
        lambda border: st.integers(-6, 6).map(lambda n: border // PAGE + n)
    )
    limit = 512**3

    def __init__(self) -> None:
        super().__init__()
        self.unit = Unit()
        self.tree = Tree(self.unit)
        self.entries: dict[int, int] = {}
        self.needed: set[tuple[int, int]] = set()

    def pages(self, start: int, count: int) -> range:
        start = max(0, min(start, self.limit - 1))
        return range(start, min(start + count, self.limit))

    def need(self, pages: range) -> None:
        self.needed |= {(level, page >> 9 * level) for page in pages for level in (1, 2)}

    @rule(start=starts, count=st.integers(1, 9), way=st.sampled_from(list(Direction)), frame=st.integers(0, 1 << 35))
    def enter(self, start: int, count: int, way: Direction, frame: int) -> None:
        pages = self.pages(start, count)
        frames = [(frame + n) * PAGE for n in range(len(pages))]
        self.tree.enter(pages.start * PAGE, frames, way)
        self.entries.update((page, at | RIGHTS[way]) for page, at in zip(pages, frames, strict=True))
        self.need(pages)

    @rule(start=starts, count=st.integers(1, 1500))
    def clear(self, start: int, count: int) -> None:
        pages = self.pages(start, count)
        self.tree.clear(pages.start * PAGE, len(pages))
        for page in pages:
            self.entries.pop(page, None)

    @rule(start=starts, count=st.integers(1, 700))
    def prepare(self, start: int, count: int) -> None:
        pages = self.pages(start, count)
        self.tree.prepare(pages.start * PAGE, len(pages))
        self.need(pages)

    @invariant()
    def agrees(self) -> None:
        assert dict(walk(self.unit, self.tree.table, 3)) == self.entries
        assert self.unit.tables == 1 + len(self.needed)


def test_agrees_with_a_dictionary() -> None:
    run_state_machine_as_test(
        Agreement, settings=settings(max_examples=30, stateful_step_count=12, derandomize=True, deadline=None)
    )
