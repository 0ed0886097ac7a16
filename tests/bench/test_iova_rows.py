"""The table of ``busdma bench iova``: what is in it, never how fast anything was; and its reference."""

from __future__ import annotations

from random import Random

import pytest

from busdma.bench import iova
from busdma.bench.best_fit import BestFit
from busdma.mechanisms.iova_allocator import IovaAllocator


def test_the_cases_are_both_mixes_at_both_levels_and_any_sizes_by_what_was_asked_for() -> None:
    assert [case.name for case in iova.CASES] == [
        "any sizes, 50% full",
        "any sizes, 95% full",
        "powers of two, 50% full",
        "powers of two, 95% full",
        "any sizes, 75% asked for",
        "any sizes, 95% asked for",
    ]
    assert iova.POWERS == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert [(case.target, case.refused) for case in iova.CASES] == [(200, 1), (400, 1)] * 2 + [(None, None)] * 2


def test_a_range_counts_rounded_or_as_what_was_asked_for() -> None:
    assert [iova.CASES[0].weight(pages) for pages in (1, 2, 3, 129, 256)] == [1, 2, 4, 256, 256]
    assert [iova.CASES[4].weight(pages) for pages in (1, 2, 3, 129, 256)] == [1, 2, 3, 129, 256]


@pytest.mark.parametrize("case", iova.CASES, ids=lambda case: case.name)
def test_traffic_keeps_its_level_and_gives_back_what_it_was_granted(case: iova.Case) -> None:
    traffic = iova.Traffic(case, IovaAllocator([(0, iova.PAGES - 1)]))
    assert traffic.rounds(10) > 0
    used = sum(case.weight(pages) for _, pages in traffic.held)
    assert used <= iova.PAGES * case.percent // 100
    assert used > iova.PAGES * (case.percent - 5) // 100
    assert traffic.requests >= len(traffic.held)
    assert {pages for _, pages in traffic.held} <= set(case.sizes)


@pytest.mark.parametrize("allocator", [IovaAllocator([(0, 999)]), BestFit(1000)], ids=["ours", "reference"])
def test_both_sides_do_the_same_work(allocator: iova.Allocator) -> None:
    random = Random(7)
    held: list[tuple[int, int]] = []
    taken: set[int] = set()
    for _ in range(2000):
        pages = random.randrange(1, 40)
        first = allocator.allocate(pages)
        if first < 0:
            free = set(range(1000)) - taken
            assert not [at for at in free if free.issuperset(range(at, at + pages))]
            first, pages = held.pop(random.randrange(len(held)))
            allocator.free(first, pages)
            taken.difference_update(range(first, first + pages))
        else:
            assert taken.isdisjoint(range(first, first + pages))
            taken.update(range(first, first + pages))
            held.append((first, pages))
    for each in held:
        allocator.free(*each)
    assert allocator.allocate(1000) == 0


def test_two_rows_of_the_right_shape() -> None:
    pair, refused = iova.rows_of(iova.CASES[3], runs=1, rounds=1)
    for row in (pair, refused):
        assert list(row) == ["case", "ours", "reference", "unit", "ratio", "target", "met"]
    assert (pair["case"], pair["unit"], pair["target"]) == ("pair, powers of two, 95% full", "ns", "400 ns")
    assert (refused["case"], refused["unit"], refused["target"]) == ("refused, powers of two, 95% full", "%", "1 %")
    pair, refused = iova.rows_of(iova.CASES[4], runs=1, rounds=1)
    assert pair["target"] is pair["met"] is refused["target"] is refused["met"] is None


def test_refusals_are_the_same_in_every_run() -> None:
    case = iova.CASES[5]
    twice = [iova.rows_of(case, runs=1, rounds=30)[1] for _ in range(2)]
    assert twice[0] == twice[1]
    assert float(str(twice[0]["ours"])) > 0


def test_an_allocator_that_grants_a_page_twice_is_not_measured() -> None:
    with pytest.raises(AssertionError, match=r"any sizes, 50% full: ranges at 0x0 and 0x0 overlap"):
        iova.check(iova.CASES[0], iova.Traffic(iova.CASES[0], iova.Nothing()))


def test_run_measures_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iova, "CASES", iova.CASES[:1])
    seen: list[str] = []
    report = iova.run(quick=True, progress=seen.append)
    assert seen == ["any sizes, 50% full"]
    assert [row["case"] for row in report.rows] == ["pair, any sizes, 50% full", "refused, any sizes, 50% full"]
    assert any("65536 bus pages" in note for note in report.notes)
