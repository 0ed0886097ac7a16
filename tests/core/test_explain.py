"""explain says what load does: the same pages bounce, the same loads are refused, and whose limit says so."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import BufferGone, ConstraintError, MappingRefused, ResourceShortage
from busdma.mechanisms.bounce import Bounce
from core.small_machine import PAGE, Pages, SmallMachine


def test_page_by_page(small: SmallMachine) -> None:
    tag = small.isa.derive("aha0", nsegments=17)
    seen = tag.explain(Pages([3 * PAGE, 300 * PAGE, 5 * PAGE], 100, 2 * PAGE))
    assert [fate.mechanism for fate in seen.pages] == ["direct", "bounce", "direct"]
    assert [fate.bus_address for fate in seen.pages] == [3 * PAGE + 100, None, 5 * PAGE]
    assert [(fate.offset, fate.length) for fate in seen.pages] == [
        (0, PAGE - 100),
        (PAGE - 100, PAGE),
        (2 * PAGE - 100, 100),
    ]
    assert "above lowaddr 0x7ffff, set by tag 'isa'" in seen.pages[1].reason
    assert (seen.bounce_pages, seen.zone, seen.zone_limit) == (1, "bounce zone 0", 20)
    assert seen.verdict == "1 of 3 pages bounce"
    text = str(seen)
    assert "through tag pc/isa/aha0: 1 of 3 pages bounce" in text
    assert "page    1  bytes 3996..8091  bounce: above lowaddr" in text
    assert json.loads(json.dumps(seen.as_dict()))["pages"][0]["bus_address"] == 3 * PAGE + 100
    assert small.zone.statistics()["pages"] == 0  # nothing was loaded or held
    assert tag.maps == []


def test_refusals_name_the_limit(small: SmallMachine) -> None:
    tag = small.isa.derive("aha0", maxsize=64 * PAGE)
    assert tag.explain(bytearray(65 * PAGE)).verdict == "refused: longer than maxsize 262144, set by tag 'aha0'"
    assert tag.explain(bytearray(21 * PAGE)).verdict == "refused: 21 bounce pages needed, and bounce zone 0 may hold 20"
    cut = small.isa.derive("cut", nsegments=2, maxsegsz=PAGE).explain(small.low(3 * PAGE))
    assert cut.verdict.startswith("refused: more than 2 segments (tag 'cut')")
    buffer = small.low(5)
    buffer.free()
    with pytest.raises(BufferGone, match="it was released"):
        tag.explain(buffer)


frames = st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True)


@settings(max_examples=300)
@given(
    numbers=frames,
    head=st.sampled_from([0, 1, 4, 512, 4095]),
    cut=st.integers(0, 4095),
    alignment=st.sampled_from([1, 1, 4, 512, PAGE, 2 * PAGE]),
    boundary=st.sampled_from([0, 0, PAGE, 4 * PAGE]),
    nsegments=st.integers(1, 8),
    maxsegsz=st.sampled_from([1 << 40, PAGE, 2 * PAGE, 3 * PAGE]),
    limit=st.integers(1, 9),
)
def test_explain_agrees_with_load(
    numbers: list[int], head: int, cut: int, alignment: int, boundary: int, nsegments: int, maxsegsz: int, limit: int
) -> None:
    small = SmallMachine(pages=512, low=24, limit=limit)
    try:
        tag = small.isa.derive("t", alignment=alignment, boundary=boundary, nsegments=nsegments, maxsegsz=maxsegsz)
    except ConstraintError:
        return
    length = max(1, len(numbers) * PAGE - head - cut)
    buffer = Pages([number * PAGE for number in numbers], head, length)
    said = tag.explain(buffer)
    map = tag.create_map()
    if said.verdict.startswith("refused"):
        with pytest.raises(MappingRefused):
            map.load_nowait(buffer)
        return
    try:
        segments = list(map.load_nowait(buffer))
    except ResourceShortage:
        with pytest.raises(ResourceShortage, match="contiguous run"):  # the memory in reach has no such run
            map.load_nowait(buffer)
        return
    assert sum(size for _, size in segments) == length
    held = small.domain.zones[0].active if small.domain.zones else 0
    assert held == said.bounce_pages == sum(fate.mechanism == "bounce" for fate in said.pages)
    at = 0
    where: dict[int, int] = {}
    for address, size in segments:
        assert address % alignment == 0
        assert address + size <= 24 * PAGE
        assert size <= maxsegsz
        assert not boundary or address // boundary == (address + size - 1) // boundary
        where |= {at + i: address + i for i in range(size)}
        at += size
    assert len(segments) <= nsegments
    for fate in said.pages:
        here = [where[at] for at in range(fate.offset, fate.offset + fate.length)]
        assert here == list(range(here[0], here[0] + fate.length))
        if fate.bus_address is not None:
            assert here[0] == fate.bus_address
        else:
            assert small.frames.owner_of(here[0]) == "bounce"
            assert any(isinstance(mechanism, Bounce) for mechanism in tag._chain.linear)
