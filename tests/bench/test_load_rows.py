"""The table of ``busdma bench load``: what is in it, never how fast anything was."""

from __future__ import annotations

import mmap
from itertools import pairwise

import pytest

import busdma
from busdma.bench import load
from busdma.bench.reference import build


def test_the_cases_are_every_size_layout_and_share() -> None:
    names = [case.name for case in load.cases()]
    assert len(names) == len(set(names)) == 2 * 2 + 3 * 3 * 2
    assert names[:4] == ["512 B", "512 B, bounced", "4 KiB", "4 KiB, bounced"]
    assert "16 MiB contiguous, a quarter bounced" in names


@pytest.mark.parametrize("case", load.cases(), ids=lambda case: case.name)
def test_layouts_are_what_they_are_called(case: load.Case) -> None:
    frames = case.frames()
    assert len(set(frames)) == len(frames) == case.pages
    assert all(frame % load.PAGE == 0 and frame < load.RAM for frame in frames)
    assert not [frame for frame in frames if load.ZONE <= frame < load.REACH]
    high = sum(frame >= load.REACH for frame in frames)
    assert high == (max(case.pages // 4, 1) if case.bounced else 0)
    follows = sum(b == a + load.PAGE for a, b in pairwise(frames))
    if not case.bounced and case.pages > 1:
        share = {"contiguous": case.pages - 1, "mixed": (case.pages + 1) // 3, "scattered": 0}
        assert follows == share[case.layout]


@pytest.mark.parametrize(
    ("case", "segments"),
    [
        (load.Case(512, "one page", True), 1),
        (load.Case(64 * load.KIB, "mixed", False), 11),
        (load.Case(64 * load.KIB, "mixed", True), 13),
        (load.Case(load.MIB, "scattered", False), 256),
        (load.Case(load.MIB, "contiguous", False), 16),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_two_rows_of_the_right_shape(case: load.Case, segments: int) -> None:
    kernel, public = load.rows_of(case, build(), memoryview(mmap.mmap(-1, load.RAM)), pairs=1, slice_ns=1)
    for row in (kernel, public):
        assert {"case", "ours", "reference", "unit", "ratio", "target", "met"} <= set(row)
        assert row["unit"] == "ns"
        assert row["segments"] == segments
    assert kernel["case"] == f"kernel {case.name}"
    assert public["case"] == f"public {case.name}"
    assert public["target"] == "+1500 ns"
    assert isinstance(public["added"], float)
    target = case.target(busdma.COMPILED)
    assert kernel["target"] == (None if target is None else f"{target:g}x")
    assert (kernel["met"] is None) == (target is None)


def test_targets() -> None:
    assert load.Case(512, "one page", False).target(compiled=True) is None
    assert load.Case(64 * load.KIB, "mixed", False).target(compiled=True) == 3
    assert load.Case(64 * load.KIB, "mixed", True).target(compiled=True) == 1.5
    assert load.Case(16 * load.MIB, "mixed", False).target(compiled=True) == 1.2
    assert {case.target(compiled=False) for case in load.cases()} == {50}


def test_a_case_that_differs_is_not_measured() -> None:
    bench = load.Bench(load.Case(64 * load.KIB, "scattered", False), build(), memoryview(mmap.mmap(-1, load.RAM)))
    assert bench.check() == 16
    bench.table[3] = bench.table[2] + load.PAGE  # the public buffer has a table of its own
    with pytest.raises(AssertionError, match="64 KiB scattered: the reference's segments differ"):
        bench.check()


def test_paired_runs_both_in_turn() -> None:
    calls: list[str] = []

    def ours(cycles: int) -> float:
        calls.append("ours")
        return 30.0

    def reference(cycles: int) -> float:
        calls.append("reference")
        return 10.0

    assert load.paired(ours, reference, pairs=3, slice_ns=1) == (30.0, 10.0, 3.0, 20.0)
    assert calls[-6:] == ["ours", "reference"] * 3


def test_run_measures_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [load.Case(512, "one page", False), load.Case(64 * load.KIB, "mixed", True)]
    monkeypatch.setattr(load, "cases", lambda: few)
    seen: list[str] = []
    report = load.run(quick=True, progress=seen.append)
    assert seen == [case.name for case in few]
    assert [row["case"] for row in report.rows] == [
        f"{way} {case.name}" for case in few for way in ("kernel", "public")
    ]
    assert any(f"busdma.COMPILED is {busdma.COMPILED}" in note for note in report.notes)
