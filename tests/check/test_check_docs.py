"""The table of docs/checker.md: every kind has a row, and each cell says what the planted mistakes have shown."""

from __future__ import annotations

from pathlib import Path

from busdma.check import Kind
from check.planted import MISTAKES
from check.test_check_faults import BY_DEVICES, MACHINES
from check.test_check_kinds import SYNCS

PAGE = Path(__file__).parents[2] / "docs" / "checker.md"
COLUMNS = {"plain": "plain", "translated": "translated", "`sim:mips`": "cached", "`qemu:*`": "unwatched"}


def table() -> list[list[str]]:
    """The rows of the table of mistakes, its head first."""
    lines = PAGE.read_text().splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("| mistake |"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert set("".join(rows[1])) == {"-"}
    return [rows[0], *rows[2:]]


def label(mistake: str) -> str | None:
    """The kind that a row is about; None: no finding says so."""
    return mistake.split("`")[1] if mistake.startswith("`") else None


def found_on(machine: str) -> set[str]:
    """What is reported of the mistakes that can be made there."""
    if machine == "unwatched":
        return set().union(*(labels for _, labels, needed in MISTAKES.values() if not needed), SYNCS) - BY_DEVICES
    options, elsewhere = MACHINES[machine]
    found = set(SYNCS)
    for name, (_, labels, needed) in MISTAKES.items():
        if needed.keys() <= options.keys() | {"standing"} if "remap" in options else not needed:
            found |= {elsewhere[name] or ""} if name in elsewhere else labels
    return found


def test_every_kind_has_a_row_and_every_row_a_kind() -> None:
    labels = [found for row in table()[1:] if (found := label(row[0])) is not None]
    assert labels == [kind.label for kind in Kind]


def test_the_cells_say_what_is_found() -> None:
    head, *rows = table()
    assert head == ["mistake", *COLUMNS]
    for at, machine in enumerate(COLUMNS.values(), start=1):
        found = found_on(machine)
        for row in rows:
            name = label(row[0])
            if name is None:
                assert row[at] in ("poison", "unseen")
            else:
                assert (row[at] == "reported") == (name in found), (row[0], machine)
                assert row[at] in ("reported", "-", "`no-answer`", "`post-without-pre`", "unseen")
                assert machine == "unwatched" or row[at] not in ("`post-without-pre`", "unseen")


def test_mistakes_that_only_yield_poison_have_a_row() -> None:
    assert any(not labels for _, labels, _ in MISTAKES.values())
    assert [row[1:] for row in table()[1:] if "poison" in row] == [["poison"] * 4]
