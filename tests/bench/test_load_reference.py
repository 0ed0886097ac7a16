"""The C reference gives the segments that the Segmenter gives, for any case that it covers."""

from __future__ import annotations

import ctypes
from array import array
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.bench import reference
from busdma.bench.reference import ReferenceMap
from busdma.errors import ConfigurationError
from busdma.segments import NOT_MAPPED, TOO_MANY, UNREACHABLE, Frames, Segmenter, Slots

PAGE = 64
PAGES = 64  #: of memory; the upper half is where bounce pages are not, and lowaddr may be anywhere
MANY = (1 << 64) - 1


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return reference.build()


@dataclass(frozen=True)
class Given:
    table: tuple[int, ...]
    start: int
    length: int
    lowaddr: int
    alignment: int
    boundary: int
    maxsegsz: int
    nsegments: int
    zone: tuple[int, ...]


@st.composite
def givens(draw: st.DrawFn) -> Given:
    page = st.integers(0, PAGES - 1)
    joined = draw(st.lists(st.tuples(page, st.integers(1, 4)), min_size=1, max_size=6))
    table = tuple(min(at + i, PAGES - 1) * PAGE for at, run in joined for i in range(run))
    start = draw(st.integers(0, len(table) * PAGE - 1))
    alignment = draw(st.sampled_from([1, 2, 4, PAGE]))
    lowaddr = draw(st.integers(PAGES * PAGE // 2, PAGES * PAGE - 1))
    return Given(
        table,
        start,
        draw(st.integers(1, len(table) * PAGE - start)),
        lowaddr,
        alignment,
        draw(st.sampled_from([0, PAGE // 2, PAGE, 4 * PAGE]).filter(lambda b: b == 0 or b >= alignment)),
        alignment * draw(st.sampled_from([1, 3, 16, 50, 1000])),
        draw(st.sampled_from([MANY, 3, 12])),
        tuple(draw(st.lists(st.integers(0, PAGES // 2 - 1), max_size=26, unique=True))),
    )


@settings(max_examples=400)
@given(case=givens())
def test_same_segments_and_same_bytes(library: ctypes.CDLL, case: Given) -> None:
    content = bytes(at * 7 % 251 for at in range(PAGE * PAGES))
    mine, theirs = bytearray(content), bytearray(content)
    bounce_pages = array("Q", [page * PAGE for page in case.zone])
    map = ReferenceMap(
        library,
        memoryview(theirs),
        bounce_pages,
        page_size=PAGE,
        lowaddr=case.lowaddr,
        alignment=case.alignment,
        boundary=case.boundary,
        maxsegsz=case.maxsegsz,
        nsegments=case.nsegments,
        most=len(case.table),
    )
    reach = array("Q", [0, case.lowaddr])
    segmenter = Segmenter(
        PAGE, reach, case.alignment, case.boundary, case.maxsegsz, case.nsegments, memoryview(mine), 0, 1
    )
    table = array("Q", case.table)
    slots = Slots(len(bounce_pages))
    for slot, address in enumerate(bounce_pages):
        slots.addresses[slot] = address
        slots.free[slot] = 1

    answer = map.load(table, case.start, case.length)
    ours = segmenter.load(Frames(table), case.start, case.length)
    if ours == UNREACHABLE:
        if segmenter.needed > len(bounce_pages):
            assert answer in (reference.SHORTAGE, reference.TOO_MANY)
            return
        ours = segmenter.place(Frames(table), case.start, case.length, slots)
    if ours == TOO_MANY:
        assert answer == reference.TOO_MANY
        return
    if answer == reference.TOO_MANY:  # it gives up before it meets a page to bounce, where it is full already
        assert segmenter.npieces > 0
        return
    flat = list(segmenter.out[: 2 * segmenter.count])
    assert map.segments() == list(zip(flat[::2], flat[1::2], strict=True))
    assert answer == ours
    segmenter.copy_out(0, case.length)
    map.sync()
    assert mine == theirs
    map.unload()
    assert map.cycles(table, case.start, case.length, 3) == answer
    assert map.segments() == []


def test_a_buffer_that_leaves_its_table_is_refused_by_both(library: ctypes.CDLL) -> None:
    table = array("Q", [0, PAGE])
    map = ReferenceMap(
        library,
        memoryview(bytearray(2 * PAGE)),
        array("Q"),
        page_size=PAGE,
        lowaddr=2 * PAGE - 1,
        alignment=1,
        boundary=0,
        maxsegsz=PAGE,
        nsegments=MANY,
        most=2,
    )
    for start, length in ((0, 2 * PAGE + 1), (2 * PAGE, 1), (0, 0), (1, MANY)):
        assert map.load(table, start, length) == reference.NOT_MAPPED == NOT_MAPPED


def test_no_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(ConfigurationError, match=r"CC=/nowhere/cc cannot be found: install gcc or clang"):
        reference.build()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(ConfigurationError, match=r"could not compile .* It said: it is broken"):
        reference.build()
