"""Every limit of a tag holds on the bus, on every device's bus, and a child only narrows."""

from __future__ import annotations

from typing import Any

import pytest

from busdma.addresses import AddressSet
from busdma.errors import (
    BufferTooLong,
    ConstraintError,
    DriverError,
    MappingRefused,
    ResourceShortage,
    TooManySegments,
)
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.testing.conformance.kinds import KINDS
from busdma.testing.conformance.rig import assert_kept, noise, tags

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose

LENGTHS = (1, 511, 4096, 20_000)


def buffers(machine: Machine) -> list[Any]:
    """Scattered memory of the kernel, from several places in its first page, and memory of the host."""
    found: list[Any] = [
        machine.allocate(length, offset=offset) for length in LENGTHS for offset in (0, 4, machine.domain.page_size - 1)
    ]
    return [*found, bytearray(9_999)]


def bounced(machine: Machine) -> int:
    """Pages that were bounced so far."""
    return sum(zone["bounced_pages"] for zone in machine.statistics()["zones"].values())


def first_address(tag: Tag, buffer: object) -> int:
    """Where on the bus the first byte of `buffer` is, when nothing but the bus limits it."""
    map = tag.create_map()
    address = int(map.load_nowait(buffer, Direction.TO_DEVICE)[0][0])
    map.unload()
    map.destroy()
    return address


def keeps(machine: Machine, limits: dict[str, Any]) -> None:
    """On every device's bus, a tag with these limits keeps them, and all that it inherited, for every buffer."""
    for parent in tags(machine):
        tag = parent.derive("limited", clip=True, **limits)
        map = tag.create_map()
        for buffer in buffers(machine):
            length = len(buffer)
            assert_kept(tag.constraints, map.load_nowait(buffer, Direction.TO_DEVICE), length)
            map.unload()


def test_no_limit_but_the_bus(machine: Machine) -> None:
    """What the bus cannot reach is never given to a device."""
    keeps(machine, {})


@pytest.mark.parametrize("alignment", [2, 4, 512])
def test_alignment(machine: Machine, alignment: int) -> None:
    """Every segment starts at a multiple of it."""
    keeps(machine, {"alignment": alignment})


@pytest.mark.parametrize("boundary", [256, 4096, 65536])
def test_boundary(machine: Machine, boundary: int) -> None:
    """No segment crosses a multiple of it."""
    keeps(machine, {"boundary": boundary})


@pytest.mark.parametrize("maxsegsz", [64, 1000, 4096])
def test_maxsegsz(machine: Machine, maxsegsz: int) -> None:
    """No segment is longer."""
    keeps(machine, {"maxsegsz": maxsegsz})


@pytest.mark.parametrize("nsegments", [1, 2, 5])
def test_nsegments(machine: Machine, nsegments: int) -> None:
    """There are never more; pages are joined where they must be."""
    keeps(machine, {"nsegments": nsegments})


def test_joint(machine: Machine) -> None:
    """Where a segment follows another, the one ends and the other begins at a whole page, as NVMe's PRPs must."""
    keeps(machine, {"joint": machine.domain.page_size, "alignment": 4})


def test_all_at_once(machine: Machine) -> None:
    """Limits hold together."""
    keeps(machine, {"alignment": 4, "boundary": 65536, "maxsegsz": 8192, "nsegments": 12})


def test_maxsize(machine: Machine) -> None:
    """A longer buffer is refused, and one of just that length is not."""
    for parent in tags(machine):
        tag = parent.derive("limited", maxsize=5000)
        map = tag.create_map()
        with pytest.raises(BufferTooLong, match="5000"):
            map.load_nowait(machine.allocate(5001))
        map.load_nowait(machine.allocate(5000))
        map.unload()


def test_exclude(machine: Machine) -> None:
    """Exactly the excluded addresses are avoided: memory that lies there goes another way."""
    for parent in tags(machine):
        buffer = machine.allocate(3 * machine.domain.page_size)
        map = parent.create_map()
        lying = [(int(address), length) for address, length in map.load_nowait(buffer)]
        map.unload()
        holes = AddressSet((address, address + length - 1) for address, length in lying)
        tag = parent.derive("limited", exclude=holes)
        other = tag.create_map()
        segments = other.load_nowait(buffer)
        assert_kept(tag.constraints, segments, len(buffer))
        assert all(not AddressSet.span(address, address + length - 1) & holes for address, length in segments)
        other.unload()


def test_filter(machine: Machine) -> None:
    """A filter is asked about its own tag's window only, and what it objects to is avoided."""
    for parent in tags(machine):
        buffer = machine.allocate(machine.domain.page_size)
        bad = first_address(parent, buffer)
        lo, hi = bad & ~0xFFFFF, bad | 0xFFFFF
        asked: list[tuple[int, int]] = []

        def objects(first: int, last: int, bad: int = bad, asked: list[tuple[int, int]] = asked) -> bool:
            asked.append((first, last))
            return first <= bad <= last

        tag = parent.derive("limited", lowaddr=lo - 1 if lo else 0, highaddr=hi, filter=objects)
        map = tag.create_map()
        segments = map.load_nowait(buffer)
        assert sum(length for _, length in segments) == len(buffer)
        assert all(not address <= bad < address + length for address, length in segments)
        assert all(lo <= first <= last <= hi for first, last in asked)
        map.unload()


def test_subregion(machine: Machine) -> None:
    """A subregion reaches its own addresses only: bus_dmatag_subregion(9)."""
    for parent in tags(machine):
        middle = first_address(parent, machine.allocate(1))
        lo, hi = middle & ~0x3FFFFF, middle | 0x3FFFFF
        tag = parent.subregion("limited", lo, hi)
        map = tag.create_map()
        for buffer in (machine.allocate(9_000, offset=17), bytearray(5_000)):
            segments = map.load_nowait(buffer)
            assert_kept(tag.constraints, segments, len(buffer))
            assert all(lo <= address and address + length - 1 <= hi for address, length in segments)
            map.unload()


def test_a_child_only_narrows(tag: Tag) -> None:
    """A wider limit is refused by the name of who set the narrower one; with clip=True the tighter holds."""
    parent = tag.derive("narrow", alignment=8, boundary=4096, maxsegsz=2048, nsegments=4, maxsize=8192)
    wider: list[dict[str, int]] = [
        {"alignment": 4},
        {"boundary": 8192},
        {"boundary": 0},
        {"maxsegsz": 4096},
        {"nsegments": 5},
        {"maxsize": 8193},
    ]
    for limits in wider:
        with pytest.raises(ConstraintError, match="'narrow'"):
            parent.derive("wide", **limits)  # type: ignore[arg-type]
        clipped = parent.derive("clipped", clip=True, **limits)  # type: ignore[arg-type]
        assert clipped.constraints.subset_of(parent.constraints)
        clipped.destroy()


def test_what_an_ancestor_excludes_no_filter_readmits(machine: Machine) -> None:
    """A filter that objects to nothing lets nothing back in."""
    for parent in tags(machine):
        buffer = machine.allocate(machine.domain.page_size)
        bad = first_address(parent, buffer)
        tag = parent.derive("holes", exclude=AddressSet.span(bad, bad))
        child = tag.derive("filtered", lowaddr=max(bad - 4096, 0), highaddr=bad + 4096, filter=lambda lo, hi: False)
        map = child.create_map()
        assert all(not address <= bad < address + length for address, length in map.load_nowait(buffer))
        map.unload()


def test_limits_that_contradict_each_other_are_refused(tag: Tag) -> None:
    """When the tag is made, and not at some load."""
    wrong: list[dict[str, int]] = [
        {"alignment": 3},
        {"alignment": 4096, "boundary": 512},
        {"maxsize": 8192, "nsegments": 2, "maxsegsz": 1024},
        {"nsegments": 0},
        {"maxsegsz": 0},
    ]
    for limits in wrong:
        with pytest.raises(ConstraintError, match="wrong"):
            tag.derive("wrong", **limits)  # type: ignore[arg-type]


def test_too_many_segments_that_nothing_can_join(tag: Tag) -> None:
    """Refused at once, however long one would wait."""
    map = tag.derive("limited", nsegments=2, maxsegsz=64, clip=True).create_map()
    with pytest.raises(TooManySegments):
        map.load_blocking(bytearray(1000))


def test_explain_loads_nothing(machine: Machine) -> None:
    """It says page by page where a buffer would lie, and takes nothing for that."""
    for tag in tags(machine):
        before = machine.statistics()["zones"]
        buffer = machine.allocate(20_000, offset=77)
        explanation = tag.explain(buffer)
        assert sum(fate.length for fate in explanation.pages) == len(buffer)
        assert explanation.verdict
        assert machine.leaks() == []
        after = machine.statistics()["zones"]
        assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("kind", KINDS)
def test_explain_tells_what_a_load_does(machine: Machine, kind: str) -> None:
    """Pages that stay have the bus address that it gives, and as many are bounced as it counts."""
    for parent in tags(machine):
        for tag in (parent, parent.derive("few", nsegments=2), parent.derive("tiny", nsegments=2, maxsegsz=64)):
            filled = KINDS[kind](machine, noise(9_001))
            explanation = tag.explain(filled.data)
            map, before = tag.create_map(), bounced(machine)
            if explanation.verdict.startswith("refused"):
                with pytest.raises(MappingRefused):
                    map.load_nowait(filled.data)
                continue
            where = list[int]()
            for address, length in map.load_nowait(filled.data):
                where.extend(range(address, address + length))
            for fate in explanation.pages:
                if fate.bus_address is not None:
                    assert where[fate.offset] == fate.bus_address
                    assert where[fate.offset + fate.length - 1] == fate.bus_address + fate.length - 1
            assert bounced(machine) - before == explanation.bounce_pages
            map.unload()


def test_what_no_mechanism_can_load_is_refused_with_every_reason(machine: Machine) -> None:
    """One for each mechanism that the tag has, with the limit that is in the way and who set it; nothing is held."""
    for parent in tags(machine):
        tag = parent.derive("tiny", nsegments=2, maxsegsz=64)
        map = tag.create_map()
        for buffer in (machine.allocate(5_000), bytearray(5_000)):
            with pytest.raises(MappingRefused) as caught:
                map.load_nowait(buffer)
            assert caught.value.tag == tag.path
            _, _, words = str(caught.value).partition(f"of tag {tag.path}: ")
            reasons = dict(reason.split(": ", 1) for reason in words.split("; "))
            would = {fate.mechanism.rpartition("+")[2] for fate in parent.explain(buffer).pages}
            assert would - {"bounce"} <= set(reasons)
            joined = [why for why in reasons.values() if "one contiguous run" in why]  # which is to bounce it
            assert joined
            assert all("2 segments" in why and "tag 'tiny'" in why for why in joined)
    assert machine.leaks() == []


def test_random_limits_and_buffers(machine: Machine) -> None:
    """Two hundred loads, each with other limits: what is loaded keeps them, and what is refused names its tag."""
    random = iter(noise(4000, 9))

    def choose(*of: Any) -> Any:
        return of[next(random) % len(of)]

    parents, loaded = tags(machine), 0
    for _ in range(200):
        limits: dict[str, Any] = {
            "alignment": choose(None, 2, 8, 64),
            "boundary": choose(None, 1024, 65536),
            "maxsegsz": choose(None, 512, 5000),
            "nsegments": choose(None, 3, 17),
        }
        tag = choose(*parents).derive("limited", clip=True, **limits)
        map: Map = tag.create_map()
        length = choose(7, 3000, 8192, 30_001)
        offset = choose(0, 1, 100)
        buffer = choose(machine.allocate(length, offset=offset), bytearray(length))
        blamed: str | None = tag.path
        try:
            assert_kept(tag.constraints, map.load_nowait(buffer, Direction.TO_DEVICE), length)
            map.unload()
            loaded += 1
        except (DriverError, ResourceShortage) as error:
            blamed = error.tag
        assert blamed == tag.path
        map.destroy()
        tag.destroy()
    assert loaded > 100
