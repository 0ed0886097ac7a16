"""Which page frames DMA-safe memory gets: every limit kept, fewest runs first, scattered behind a translator."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.addresses import AddressSet
from busdma.allocation import Site, allocate
from busdma.errors import ConstraintError, MappingRefused, ResourceShortage, ShortageReason, TooManySegments
from busdma.machine.frames import FrameAllocator
from busdma.memory import DmaMemory
from busdma.sync import POSTREAD, PREREAD, PREWRITE
from busdma.tag import Tag
from core.paths_machine import Behind, check_limits
from core.small_machine import PAGE, SmallMachine


def owned(small: SmallMachine) -> int:
    return small.frames.statistics()["by_owner"].get("dma-safe", 0)


def only(small: SmallMachine, *free: int) -> None:
    """Hold every page frame that `isa` reaches, except these numbers."""
    small.frames.allocate_run(128, "kernel", within=small.below)
    small.frames.free(number * PAGE for number in free)


def runs(memory: DmaMemory) -> list[tuple[int, int]]:
    return [(int(address) // PAGE, length) for address, length in memory.segments]


# -- without translation ----------------------------------------------------------------------------------------------


def test_one_run_where_there_is_one(small: SmallMachine) -> None:
    only(small, 3, 5, 7, 9, *range(20, 25))
    assert runs(small.isa.alloc(4 * PAGE)) == [(21, 4 * PAGE)]


def test_as_few_and_long_runs_as_there_are(small: SmallMachine) -> None:
    only(small, 1, 3, *range(10, 13), *range(20, 25), 30)
    memory = small.isa.alloc(8 * PAGE - 100)
    assert runs(memory) == [(10, 3 * PAGE), (20, 5 * PAGE - 100)]  # ascending, the two longest
    assert owned(small) == 8
    memory.free()
    assert owned(small) == 0


def test_a_run_that_lies_in_the_middle_of_a_longer_one(small: SmallMachine) -> None:
    """Seeking the longest run, none that was held for the purpose may spoil it."""
    only(small, *range(40, 53), *range(60, 64))
    assert runs(small.isa.alloc(15 * PAGE)) == [(40, 13 * PAGE), (62, 2 * PAGE)]


def test_no_more_runs_than_segments(small: SmallMachine) -> None:
    only(small, 1, 3, *range(10, 13), *range(20, 25))
    tag = small.isa.derive("two", nsegments=2)
    with pytest.raises(
        ResourceShortage, match=r"9 frames in 2 runs or fewer, the longest of which there are hold 8"
    ) as e:
        tag.alloc(9 * PAGE)
    assert e.value.reason is ShortageReason.FRAGMENTED
    assert owned(small) == 0
    assert runs(small.isa.derive("three", nsegments=3).alloc(9 * PAGE)) == [
        (3, PAGE),
        (10, 3 * PAGE),
        (20, 5 * PAGE),
    ]


def test_contiguous_means_one_run(small: SmallMachine) -> None:
    only(small, 1, 3)
    with pytest.raises(ResourceShortage, match="not in one legal run") as e:
        small.isa.alloc(2 * PAGE, contiguous=True)
    assert e.value.reason is ShortageReason.FRAGMENTED
    assert small.isa.alloc(2 * PAGE).size == 2 * PAGE


def test_runs_keep_boundary_and_maxsegsz(small: SmallMachine) -> None:
    """Frames 14..19 are one run, and two segments: a boundary line lies in it."""
    only(small, *range(14, 20), *range(32, 35))
    tag = small.isa.derive("d", boundary=16 * PAGE, nsegments=3)
    memory = tag.alloc(9 * PAGE)
    assert runs(memory) == [(14, 2 * PAGE), (16, 4 * PAGE), (32, 3 * PAGE)]
    check_limits(memory.segments, tag.constraints, 9 * PAGE)
    memory.free()
    short = small.isa.derive("short", maxsegsz=2 * PAGE, nsegments=5)
    check_limits(short.alloc(9 * PAGE).segments, short.constraints, 9 * PAGE)


def test_runs_are_aligned(small: SmallMachine) -> None:
    only(small, *range(5, 9), *range(13, 18))
    tag = small.isa.derive("d", alignment=4 * PAGE)
    assert runs(tag.alloc(2 * PAGE)) == [(16, 2 * PAGE)]
    with pytest.raises(ResourceShortage):
        tag.alloc(2 * PAGE)
    assert runs(tag.alloc(PAGE)) == [(8, PAGE)]


@pytest.mark.parametrize(
    ("size", "free", "reason"),
    [
        (129 * PAGE, range(128), ShortageReason.TOO_LARGE),
        (3 * PAGE, (1, 3), ShortageReason.BUSY),
        (1, (), ShortageReason.BUSY),
    ],
)
def test_what_is_short(small: SmallMachine, size: int, free: range | tuple[int, ...], reason: ShortageReason) -> None:
    only(small, *free)
    before = small.frames.statistics()["free"]
    with pytest.raises(ResourceShortage) as caught:
        small.isa.alloc(size)
    assert caught.value.reason is reason
    assert caught.value.tag == "pc/isa"
    assert small.frames.statistics()["free"] == before
    assert small.domain.leaks() == []
    assert small.isa.maps == []


def test_a_tag_that_reaches_no_memory(small: SmallMachine) -> None:
    tag = small.root.derive("far", exclude=AddressSet.span(0, 512 * PAGE - 1))
    with pytest.raises(ResourceShortage, match="the 0 frames that may be used could never hold it") as caught:
        tag.alloc(PAGE)
    assert caught.value.reason is ShortageReason.TOO_LARGE


def _tag(**limits: int) -> Callable[[SmallMachine], object]:
    return lambda small: small.isa.derive("d", **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (_tag(alignment=3), ConstraintError, "alignment must be a power of two"),
        (_tag(alignment=0), ConstraintError, "alignment must be from 1"),
        (_tag(boundary=3 * PAGE), ConstraintError, "boundary must be 0 .none. or a power of two"),
        (_tag(boundary=PAGE, alignment=2 * PAGE), ConstraintError, "boundary 4096 .* is smaller than alignment 8192"),
        (_tag(nsegments=0), ConstraintError, "nsegments must be from 1"),
        (lambda small: small.isa.alloc(0), ConstraintError, "ask for one byte or more"),
        (lambda small: small.isa.alloc(-PAGE), ConstraintError, "ask for one byte or more"),
        (
            lambda small: small.isa.derive("d", maxsize=PAGE).alloc(PAGE + 1),
            ConstraintError,
            "ask for one byte or more, up to its maxsize 4096",
        ),
        (
            lambda small: small.isa.derive("d", boundary=PAGE, nsegments=2).alloc(2 * PAGE + 1),
            TooManySegments,
            "more than nsegments 2 .tag 'd'., of at most 4096 bytes each; ask for less",
        ),
    ],
)
def test_sizes_alignments_and_boundaries_that_cannot_be(
    small: SmallMachine, wrong: Callable[[SmallMachine], object], error: type[Exception], words: str
) -> None:
    """The cases of EINVAL of bus_dmamem_alloc(9), by name."""
    with pytest.raises(error, match=words):
        wrong(small)
    assert owned(small) == 0
    assert small.isa.maps == []


@given(
    free=st.sets(st.integers(0, 127), min_size=1, max_size=60),
    pages=st.integers(1, 12),
    short=st.integers(0, PAGE - 1),
    nsegments=st.integers(1, 6),
    alignment=st.sampled_from([1, 16, PAGE, 2 * PAGE]),
    boundary=st.sampled_from([0, 2 * PAGE, 8 * PAGE]),
    maxsegsz=st.sampled_from([2 * PAGE, 5 * PAGE, 1 << 40]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_whatever_is_granted_keeps_every_limit(
    free: set[int], pages: int, short: int, nsegments: int, alignment: int, boundary: int, maxsegsz: int
) -> None:
    small = SmallMachine()
    only(small, *free)
    tag = small.isa.derive("d", nsegments=nsegments, alignment=alignment, boundary=boundary, maxsegsz=maxsegsz)
    size = pages * PAGE - short
    try:
        memory = tag.alloc(size)
    except (ResourceShortage, TooManySegments):
        assert owned(small) == 0
        assert len(free) < pages or nsegments < pages or alignment > PAGE  # or single pages would have done
        return
    check_limits(memory.segments, tag.constraints, size)
    assert {int(address) // PAGE for address, _ in memory.segments} <= free
    assert small.domain.zones == ()  # nothing can bounce
    text = bytes(n % 251 for n in range(size))
    with memory.map() as window:
        window.write(text)
        assert window.read() == text
    assert small.peek(memory.segments) == text
    memory.free()
    assert owned(small) == 0


# -- behind a bridge --------------------------------------------------------------------------------------------------


def scatter(machine: Behind) -> None:
    """Leave only page frames that have no free neighbour."""
    machine.frames.allocate_run(512, "kernel")
    machine.frames.free(number * PAGE for number in range(0, 512, 2))


def test_scattered_frames_are_one_segment_behind_a_translator() -> None:
    machine = Behind("mapped")
    scatter(machine)
    memory = machine.bus.derive("ring", nsegments=1).alloc(5 * PAGE - 7)
    assert [length for _, length in memory.segments] == [5 * PAGE - 7]
    assert memory.statistics()["runs"] == 5
    text = bytes(n * 7 % 256 for n in range(5 * PAGE - 7))
    memory.sync(PREWRITE | PREREAD)
    assert machine.device_reads(memory.segments) == bytes(len(memory))
    machine.device_writes(memory.segments, text)
    memory.sync(POSTREAD)
    with memory.map() as window:
        assert window.read() == text
    with pytest.raises(ConstraintError, match="or views, or allocate with contiguous=True"):
        memory.view  # noqa: B018
    memory.free()
    assert owned(machine) == 0
    assert machine.tables.entries == {}


def test_one_run_is_preferred_behind_a_translator_too() -> None:
    machine = Behind("mapped")
    memory = machine.bus.alloc(5 * PAGE)
    assert memory.statistics()["runs"] == 1
    assert len(memory.view) == 5 * PAGE


def test_contiguous_behind_a_translator() -> None:
    machine = Behind("mapped")
    scatter(machine)
    with pytest.raises(ResourceShortage, match="not in one legal run"):
        machine.bus.alloc(2 * PAGE, contiguous=True)
    assert machine.tables.entries == {}


def test_no_bus_pages_left_behind_a_translator() -> None:
    machine = Behind("mapped", mapped=4)
    with pytest.raises((ResourceShortage, MappingRefused)):
        machine.bus.alloc(5 * PAGE)
    assert owned(machine) == 0
    assert machine.bus.maps == []
    assert len(machine.bus.alloc(4 * PAGE)) == 4 * PAGE


def test_the_window_first_and_the_map_where_that_is_too_scattered() -> None:
    machine = Behind("direct", "mapped")
    tag: Tag = machine.bus.derive("one", nsegments=1)
    direct = tag.alloc(3 * PAGE)
    assert direct.address >= 1 << 30
    scatter_free = Behind("direct", "mapped")
    scatter(scatter_free)
    mapped = scatter_free.bus.derive("one", nsegments=1).alloc(3 * PAGE)
    assert mapped.address < 1 << 30
    assert mapped.statistics()["runs"] == 3


# -- the engine alone -------------------------------------------------------------------------------------------------


def test_refused_frames_go_back_and_the_next_site_is_asked() -> None:
    frames = FrameAllocator(0, 64)
    low, high = (AddressSet.span(first * PAGE, (first + 16) * PAGE - 1) for first in (0, 32))
    asked: list[int] = []

    def load(found: object) -> str:
        assert isinstance(found, range)
        asked.append(found[0] // PAGE)
        if found[0] < 32 * PAGE:
            raise TooManySegments("refused")
        return "loaded"

    def both() -> Iterator[Site]:
        yield Site(low, False, 1, 0, 1 << 40, 4)
        yield Site(high, False, 1, 0, 1 << 40, 4)

    assert allocate(frames, both(), 3, load) == "loaded"
    assert asked == [13, 45]
    assert frames.statistics()["by_owner"] == {"dma-safe": 3}


def test_an_error_of_the_load_frees_everything() -> None:
    frames = FrameAllocator(0, 64)

    def load(found: object) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        allocate(frames, iter([Site(AddressSet.everything(), True, 1, 0, 1 << 40, 4)]), 3, load)
    assert frames.statistics()["free"] == 64


def test_no_site_at_all() -> None:
    with pytest.raises(ResourceShortage, match="within reach") as caught:
        allocate(FrameAllocator(0, 4), iter(()), 1, lambda found: None)
    assert caught.value.reason is ShortageReason.TOO_LARGE
