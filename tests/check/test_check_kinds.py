"""What a finding says, and the kinds that are nothing but a sync left out."""

from __future__ import annotations

import json
import sys

import pytest

from busdma.check import Finding, Kind
from busdma.check.findings import Findings
from busdma.errors import DeadlineExpired, DriverError
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from check import planted_transfers, planted_upkeep
from check.bench import BOTH, FROM, POST, PRE, TO, Bench, pattern
from check.planted import MISTAKES

SIZE = 6000
DATA, NEW = pattern(SIZE), pattern(SIZE, 2)
HERE = "test_check_kinds.py"
SYNCS = {"missing-prewrite", "missing-preread", "missing-post", "missing-postread", "post-without-pre"}
MODULES = (planted_transfers, planted_upkeep)  # which enter the mistakes


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


def test_what_is_refused_is_reported_with_the_load_that_is_in_the_way(bench: Bench) -> None:
    buffer = bench.high(SIZE)
    map = bench.low.create_map(name="in the way")
    map.load_nowait(buffer, TO)
    loaded = line()
    with pytest.raises(DriverError):
        buffer.free()
    with pytest.raises(DriverError):
        map.sync(POSTREAD)
    freed, synced = bench.found()
    assert (freed.kind, synced.kind) == (Kind.FREED_WHILE_LOADED, Kind.STATE)
    for found in (freed, synced):
        assert (found.tag, found.map, found.owner) == ("pc/low", "in the way", "kernel")
        assert found.where is not None
        assert found.where.endswith(f"{HERE}:{loaded}")
        assert found.noticed != found.where
    map.unload()


def test_what_a_translator_refused_is_reported_with_the_load_that_had_the_bus_address() -> None:
    with Bench(remap=True) as bench:
        map = bench.tag.create_map(name="in")
        map.load_nowait(bench.high(SIZE), FROM)
        loaded = line()
        address = map.segments[0][0]
        map.unload()
        bench.device.dma_write(address, NEW)
    found = only(bench)
    assert (found.kind, found.device, found.tag, found.map) == (Kind.AFTER_UNLOAD, "dev0", "pc/dvma", "in")
    assert f"{address:#x}" in found.what
    assert found.where is not None
    assert found.where.endswith(f"{HERE}:{loaded}")


def test_an_overlap_names_both_loads(bench: Bench) -> None:
    buffer = bench.high(SIZE)
    first, second = bench.low.create_map(name="first"), bench.bus.create_map(name="second")
    first.load_nowait(buffer[:100], FROM)
    one = line()
    second.load_nowait(buffer[90:], FROM)
    other = line()
    found = only(bench)
    assert (found.kind, found.map, found.offset, found.length) == (Kind.OVERLAP, "second", 0, 10)
    assert found.where is not None
    assert found.where.endswith(f"{HERE}:{other}")
    assert found.other is not None
    assert "map 'first' of tag pc/low" in found.other
    assert found.other.endswith(f"{HERE}:{one}")


def test_every_kind_has_a_test() -> None:
    assert {mistake.__module__ for mistake, _, _ in MISTAKES.values()} == {module.__name__ for module in MODULES}
    planted = {label for _, labels, _ in MISTAKES.values() for label in labels}
    assert SYNCS | planted == {kind.label for kind in Kind}


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


def test_a_load_after_a_wait_that_was_given_up_is_known_by_its_own_line() -> None:
    with Bench(limit=2) as bench:
        first, second = bench.low.create_map(), bench.low.create_map()
        first.load_nowait(bench.high(8192), TO)

        async def work() -> None:
            with pytest.raises(DeadlineExpired):
                await second.load(bench.high(8192), FROM, deadline=bench.runtime.now() + 10)

        bench.run(work)
        first.unload()
        second.load_nowait(bench.high(8192), FROM)
        loaded = line()
        second.sync(PREREAD)
        second.unload()
    found = only(bench)
    assert found.where is not None
    assert found.where.endswith(f"{HERE}:{loaded}")


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
