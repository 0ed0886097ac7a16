"""The table of ``busdma bench nvme``: what is in it, never how fast anything was; and that both sides really read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from busdma.bench import nvme
from busdma.bench.nvme_rig import DEPTH, Rig
from busdma.errors import DeviceFault
from qemu.machines import need

ROUNDS = [
    nvme.Round(floor=20_000, by_hand=30_000, ours=26_000, many_by_hand=9_000, many_ours=10_000, batches=9_000),
    nvme.Round(floor=20_000, by_hand=20_000, ours=40_000, many_by_hand=10_000, many_ours=20_000, batches=10_000),
    nvme.Round(floor=10_000, by_hand=20_000, ours=12_000, many_by_hand=9_500, many_ours=10_000, batches=19_000),
]


def test_times_have_a_most_and_rates_a_least() -> None:
    floor, by_hand, many, batches = nvme.rows_of(", here", ROUNDS)
    for row in (floor, by_hand, many, batches):
        assert list(row) == ["case", "ours", "reference", "unit", "ratio", "target", "met"]
    assert list(floor.values()) == ["QD1, here", 26.0, 20.0, "us", 1.3, "1.3x", True]
    assert list(by_hand.values()) == ["QD1 by hand, here", 26.0, 20.0, "us", 0.87, None, None]
    assert list(many.values()) == ["QD32, here", 100.0, 105.3, "k/s", 0.9, "0.9x", True]
    assert list(batches.values()) == ["QD32 in batches, here", 100.0, 105.3, "k/s", 1.0, "0.9x", True]
    slow = [ROUNDS[1]]
    assert [row["met"] for row in nvme.rows_of("", slow)] == [False, None, False, True]
    assert [row["target"] for row in nvme.rows_of("", slow, targets=False)] == [None, None, None, None]


@pytest.fixture(params=[(False, "asyncio"), (True, "asyncio"), (False, "threads")], ids=str)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    need("x86_64")
    iommu, runtime = request.param
    with Rig(iommu=iommu, runtime=runtime) as rig:
        yield rig


def test_both_sides_read_and_count_alike(rig: Rig) -> None:
    rig.check()
    before = rig.driver.statistics()
    found = nvme.measure(rig, 80)
    after = rig.driver.statistics()
    assert min(found.floor, found.by_hand, found.ours, found.many_by_hand, found.many_ours, found.batches) > 0
    assert after["commands"] - before["commands"] == 80 + 2 * 4 * 80
    assert (after["aborts"], after["resets"], after["stray"], after["retries"]) == (0, 0, 0, 0)
    assert after["free_slots"] == 2 * DEPTH - 1
    rig.check()


def test_a_side_that_reads_nothing_is_not_measured(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None:
        """Leaves the buffers as they are."""

    with monkeypatch.context() as patched:
        patched.setattr(rig, "_read_all", nothing)
        with pytest.raises(AssertionError, match="something else was read"):
            rig.check()
    with monkeypatch.context() as patched:
        patched.setattr(rig.bare, "many", lambda count, depth: 0.0)
        with pytest.raises(AssertionError, match="something else was read"):
            rig.check()


def test_the_reference_looks_at_the_status(rig: Rig) -> None:
    write = rig.bare._write
    rig.bare._write = lambda entry, id, frame, lba: write(entry, id, frame, 1 << 30)  # type: ignore[method-assign]
    with pytest.raises(DeviceFault, match="the reference's command 1 failed with status"):
        rig.bare.one_by_one(1)


def test_run_measures_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    need("x86_64")
    seen: list[str] = []
    monkeypatch.setattr(nvme, "measure", lambda rig, requests: ROUNDS[0])
    report = nvme.run(quick=True, progress=seen.append)
    assert seen == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]
    assert [row["case"] for row in report.rows] == [
        *("QD1", "QD1 by hand", "QD32", "QD32 in batches"),
        *("QD1, behind VT-d", "QD1 by hand, behind VT-d", "QD32, behind VT-d", "QD32 in batches, behind VT-d"),
        *("QD1, threads", "QD1 by hand, threads", "QD32, threads", "QD32 in batches, threads"),
        "QD32, VT-d against none",
    ]
    assert any("medians of 3 rounds" in note for note in report.notes)
