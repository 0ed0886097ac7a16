"""What a finding says, and the kinds that are nothing but a sync left out."""

from __future__ import annotations

import json
import sys

import pytest

from busdma.check import Finding, Kind
from busdma.check.findings import Findings
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from check.bench import BOTH, FROM, POST, PRE, TO, Bench, pattern
from check.test_check_faults import MISTAKES

SIZE = 6000
DATA, NEW = pattern(SIZE), pattern(SIZE, 2)
HERE = "test_check_kinds.py"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def line() -> int:
    """The line before the one that calls this."""
    return sys._getframe(1).f_lineno - 1


def only(bench: Bench) -> Finding:
    (found,) = bench.found()
    return found


@pytest.mark.parametrize("where", ["high", "near"])
def test_missing_prewrite(bench: Bench, where: str) -> None:
    buffer = getattr(bench, where)(SIZE)
    buffer.write(DATA)
    map = bench.low.create_map(name="out")
    map.load_nowait(buffer, TO)
    loaded = line()
    assert DATA[:16] not in bench.reads(map.segments)
    found = only(bench)
    assert found.kind is Kind.MISSING_PREWRITE
    assert (found.device, found.tag, found.map, found.owner) == ("dev0", "pc/low", "out", "kernel")
    assert found.offset == 0
    assert found.where is not None
    assert found.where.endswith(f"{HERE}:{loaded}")


def test_a_sync_that_is_too_short_is_reported_from_where_it_ends(bench: Bench) -> None:
    buffer = bench.kernel.allocate(SIZE, contiguous=True)
    buffer.write(DATA)
    map = bench.loaded(buffer, TO)
    map.sync(PREWRITE, 0, 4000)
    seen = bench.reads(map.segments)
    assert seen[:4000] == DATA[:4000]
    assert DATA[4000:4016] not in seen
    found = only(bench)
    assert (found.kind, found.offset, found.length) == (Kind.MISSING_PREWRITE, 4000, 2000)


def test_missing_preread(bench: Bench) -> None:
    map = bench.loaded(bench.kernel.allocate(SIZE, contiguous=True), FROM)
    bench.writes(map.segments, NEW)
    found = only(bench)
    assert (found.kind, found.offset, found.length) == (Kind.MISSING_PREREAD, 0, SIZE)


@pytest.mark.parametrize("where", ["high", "near"])
def test_missing_post_and_the_bytes_are_lost(bench: Bench, where: str) -> None:
    buffer = getattr(bench, where)(SIZE)
    map = bench.loaded(buffer, FROM, bench.low)
    map.sync(PREREAD)
    bench.writes(map.segments, NEW)
    map.sync(POSTREAD, 0, 1000)
    map.unload()
    unloaded = line()
    assert buffer.read(0, 1000) == NEW[:1000]
    assert NEW[1000:1016] not in buffer.read()
    found = only(bench)
    assert (found.kind, found.offset, found.length) == (Kind.MISSING_POST, 1000, 5000)
    assert found.noticed is not None
    assert found.noticed.endswith(f"{HERE}:{unloaded}")


def test_missing_postread(bench: Bench) -> None:
    buffer = bench.high(SIZE)
    map = bench.loaded(buffer, BOTH)
    map.sync(PRE)
    bench.writes(map.segments, NEW)
    map.sync(POSTWRITE)
    map.unload()
    assert NEW[:16] not in buffer.read()
    assert only(bench).kind is Kind.MISSING_POSTREAD


@pytest.mark.parametrize("op", [POSTREAD, POSTWRITE, POST])
@pytest.mark.parametrize("where", ["high", "near"])
def test_post_without_pre(bench: Bench, where: str, op: POST) -> None:  # type: ignore[valid-type]
    buffer = getattr(bench, where)(SIZE)
    buffer.write(DATA)
    map = bench.loaded(buffer, BOTH, bench.low)
    map.sync(op)
    map.unload()
    assert bench.labels() == ["post-without-pre"]
    if where == "near" or op != POSTWRITE:
        assert DATA[:16] not in buffer.read()


def test_every_kind_has_a_test() -> None:
    here = {"missing-prewrite", "missing-preread", "missing-post", "missing-postread", "post-without-pre"}
    planted = {label for _, labels, _ in MISTAKES.values() for label in labels}
    assert here | planted == {kind.label for kind in Kind}


def test_a_load_that_had_to_wait_is_known_by_the_line_that_asked_for_it() -> None:
    with Bench(limit=2) as bench:

        async def work() -> None:
            first, second = bench.low.create_map(), bench.low.create_map()
            await first.load(bench.high(8192), TO)
            bench.runtime.call_at(bench.runtime.now() + 10, first.unload)
            await second.load(bench.high(8192), FROM)
            asked.append(line())
            second.sync(PREREAD)
            second.unload()

        asked: list[int] = []
        bench.run(work)
    found = only(bench)
    assert found.kind is Kind.MISSING_POST
    assert found.where is not None
    assert found.where.endswith(f"{HERE}:{asked[0]}")


def test_a_finding_is_counted_and_not_repeated(bench: Bench) -> None:
    for _ in range(3):
        map = bench.loaded(bench.high(100), TO)
        bench.reads(map.segments)
        map.unload()
    found = only(bench)
    assert found.count == 3
    assert str(found).endswith("(3 times)")
    assert str(bench.checker.findings) == str(found)


def test_as_plain_data() -> None:
    found = Finding(Kind.OVERLAP, "two loads", tag="pc/bus", map="1", offset=3, length=2, other="map '2'")
    data = json.loads(json.dumps(found.as_dict()))
    assert data["kind"] == "overlap"
    assert (data["offset"], data["length"], data["count"]) == (3, 2, 1)
    assert str(found) == "overlap: two loads; map '1' of tag pc/bus, bytes 3..4; and map '2'"


def test_nothing_found() -> None:
    assert str(Findings()) == "nothing found"
