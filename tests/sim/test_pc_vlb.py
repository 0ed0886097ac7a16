"""The machine with the BT-445S's bug: where addresses go astray, what that does to data, and what helps."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import busdma
from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.drivers.bt.core import Bt
from busdma.drivers.bt.vlb import hit_by_bug, holes
from busdma.errors import ConfigurationError
from busdma.machine.attachment import Attachment
from busdma.segments import Frames
from busdma.sim.bus.vlb import Bt445sWires
from busdma.sim.pc_vlb import RAM, PcVlb
from busdma.tag import Tag
from cli.conftest import Done
from cli.conftest import busdma as busdma_fixture

cli = busdma_fixture
PAGE, MIB16 = 4096, 1 << 24
BIOS = 0xDC000


def astray(page: int, bios: int = BIOS) -> bool:
    """What is known of the bug, page by page."""
    low = page * PAGE % MIB16
    return page * PAGE >= MIB16 and (low == 0 or low in range(bios, bios + 16384, PAGE))


@pytest.fixture
def machine() -> Iterator[PcVlb]:
    with busdma.open("sim:pc-vlb") as made:
        assert isinstance(made, PcVlb)
        yield made


class AllOfMemory:
    """Every page of the machine, in order, holes and all: a buffer to explain, not to load."""

    host = None
    readonly = False
    start = 0

    def __init__(self, size: int) -> None:
        self.length = size
        self.frames = Frames(array("Q", range(0, size, PAGE)))

    def describe(self) -> str:
        return "all of memory"


# The wires


@given(
    st.integers(0, (1 << 32) - 1).flatmap(
        lambda address: st.tuples(st.just(address), st.integers(1, 3 * PAGE), st.integers(0, 9))
    )
    | st.tuples(st.integers(0, 255).map(lambda k: k * MIB16 + BIOS - 100), st.integers(1, 6 * PAGE), st.integers(0, 9))
)
@settings(max_examples=200)
def test_each_byte_goes_where_the_bug_sends_it(case: tuple[int, int, int]) -> None:
    address, length, rom = case
    bios = 0xC8000 + 0x4000 * min(rom, 5)
    wires = Bt445sWires(bios)
    arrived: list[int] = []
    for at, count in wires.pieces(address, length, write=False):
        assert at is not None
        arrived += range(at, at + count)
    expected = []
    for byte in range(address, address + length):
        byte %= 1 << 32
        expected.append(byte % MIB16 if astray(byte // PAGE, bios) else byte)
    assert arrived == expected
    assert (wires.strays > 0) == (arrived != [byte % (1 << 32) for byte in range(address, address + length)])


# Holes, and the filter


@pytest.mark.parametrize("bios", [0xC8000, 0xD4000, BIOS])
def test_the_holes_and_the_filter_are_the_bug(bios: int) -> None:
    excluded, hit = holes(bios), hit_by_bug(bios)
    for page in (*range(3 * 4096), *range((1 << 20) - 4096, 1 << 20)):
        first, last = page * PAGE, page * PAGE + PAGE - 1
        assert (not (excluded & AddressSet.span(first, last))) is (not astray(page, bios))
        if page >= 4096:  # below 16 MiB it is not asked
            assert hit(first, last) is hit(first + 77, last - 77) is astray(page, bios)
    assert hit(1 << 32, (1 << 32) + 1)
    assert excluded.size() == 255 * 5 * PAGE


def bounced(tag: Tag) -> list[int]:
    return [fate.page for fate in tag.explain(AllOfMemory(RAM)).pages if fate.mechanism == "bounce"]


def test_five_pages_in_16_mib_bounce_with_the_holes_and_all_above_without(machine: PcVlb) -> None:
    bus = machine.devices["bt0"].tag
    hit = [page for page in range(RAM // PAGE) if astray(page)]
    assert [sum(page // (MIB16 // PAGE) == block for page in hit) for block in range(4)] == [0, 5, 5, 5]
    assert bounced(bus.derive("holes", exclude=holes(BIOS))) == hit
    assert bounced(bus.derive("24 bits", lowaddr=MIB16 - 1)) == list(range(MIB16 // PAGE, RAM // PAGE))
    assert bounced(bus.derive("nothing")) == []
    driver = machine.driver("bt0")
    assert bounced(driver.tag) == hit
    fate = driver.tag.explain(AllOfMemory(RAM)).pages[MIB16 // PAGE]
    assert fate.reason == "in an excluded hole, set by tag 'data'"


def test_the_filter_bounces_the_same_pages(machine: PcVlb) -> None:
    bus = machine.devices["bt0"].tag
    asked: list[int] = []

    def avoid(first: int, last: int) -> bool:
        asked.append(first)
        return hit_by_bug(BIOS)(first, last)

    filtered = bus.derive("filter", lowaddr=MIB16 - 1, filter=avoid)
    assert bounced(filtered) == bounced(bus.derive("holes", exclude=holes(BIOS)))
    fate = filtered.explain(AllOfMemory(RAM)).pages[MIB16 // PAGE]
    assert fate.reason == "the filter of tag 'filter' objects"
    assert min(asked) >= MIB16


# Data


def page_of(machine: PcVlb, wanted: Callable[[int], bool]) -> LinearBuffer:
    """A page of kernel memory in a frame that is wanted. Nearly all of memory is looked through."""
    everything = machine.kernel.allocate(RAM - (4 << 20))
    table = everything.frames.table
    first = everything.start // PAGE
    for index in range(len(everything) // PAGE):
        if wanted(table[first + index] // PAGE):
            return everything[index * PAGE : (index + 1) * PAGE]
    raise AssertionError("no such frame was given out")


def raw_driver(machine: PcVlb) -> Bt:
    """A driver that knows the board and not its bug."""
    device = machine.devices["bt0"]
    tag = device.tag.derive("data", nsegments=33, maxsize=128 << 10)
    attachment = Attachment(
        name="bt0", tag=tag, registers=device.registers, interrupt=device.interrupt, runtime=machine.runtime
    )
    return Bt(attachment, tag, maxio=128 << 10)


def exchange(machine: PcVlb, driver: Any, page: LinearBuffer, data: bytes) -> tuple[bytes, bytes]:
    """Write `data` from `page` to the disk, others from the disk to `page`: what the disk has, what the page has."""
    machine.run(driver.start)
    disk = driver.disks[0]
    page.write(data)
    machine.run(disk.write, 0, page)
    on_disk = machine.adapter.bus.targets[0].disk.read(0, 8)
    machine.adapter.bus.targets[0].disk.write(8, data[::-1])
    machine.run(disk.read, 8, page)
    machine.run(driver.stop)
    return on_disk, page.read()


DATA = random.Random(445).randbytes(PAGE)


def test_without_either_the_wrong_bytes_are_read_and_written(machine: PcVlb) -> None:
    page = page_of(machine, astray)
    frame = page.frames.table[page.start // PAGE]
    low = frame % MIB16
    victim = bytes(machine.domain.memory[low : low + PAGE])
    on_disk, in_memory = exchange(machine, raw_driver(machine), page, DATA)
    assert on_disk == victim != DATA  # what lay below 16 MiB
    assert in_memory == DATA  # nothing arrived
    assert machine.domain.memory[low : low + PAGE] == DATA[::-1]  # it destroyed something else
    assert isinstance(machine.wires, Bt445sWires)
    assert machine.wires.strays == 2


def test_the_same_driver_is_sound_everywhere_else(machine: PcVlb) -> None:
    page = page_of(machine, lambda frame: frame * PAGE >= MIB16 and not astray(frame))
    assert exchange(machine, raw_driver(machine), page, DATA) == (DATA, DATA[::-1])


def test_with_the_holes_the_page_bounces_and_nothing_is_lost(machine: PcVlb) -> None:
    page = page_of(machine, astray)
    assert exchange(machine, machine.driver("bt0"), page, DATA) == (DATA, DATA[::-1])
    traffic = machine.statistics()["bus"]["bt0"]["by_owner"]
    assert traffic["bounce"] == {"accesses": 2, "bytes": 2 * PAGE}
    assert isinstance(machine.wires, Bt445sWires)
    assert machine.wires.strays == 0
    assert machine.leaks() == []


@pytest.mark.parametrize("option", ["firmware=3.37", "bios=0"])
def test_a_board_without_the_bug_needs_nothing(option: str) -> None:
    with busdma.open(f"sim:pc-vlb?{option}") as machine:
        assert isinstance(machine, PcVlb)
        page = page_of(machine, astray)
        assert exchange(machine, raw_driver(machine), page, DATA) == (DATA, DATA[::-1])


# The machine


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("slots=1", "too small"),
        ("slots=256", "1 to 255 CCBs"),
        ("firmware=4.2", "firmware such as"),
        ("bios=0xE0000", "lies at 0xc8000 to 0xdc000"),
        ("images=/nowhere", "no such folder"),
        ("drq=5", "no option drq"),
    ],
)
def test_options_that_cannot_be(option: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        busdma.open(f"sim:pc-vlb?{option}")


@pytest.mark.parametrize("spec", ["sim:pc-vlb", "sim:pc-vlb?tags=0&bounce=1", "sim:pc-vlb?firmware=3.30&bios=0xc8000"])
def test_a_file_there_and_back(cli: Callable[..., Done], tmp_path: Path, spec: str) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(random.Random(1998).randbytes(1_200_001))
    (row,) = cli("matrix", file, "--machine", spec, "--json").document["rows"]
    assert row["verified"]
    assert row["mechanism"].startswith("direct")
    assert row["bytes"] == 2 * -(-1_200_001 // 512) * 512


def test_explain_on_the_command_line(cli: Callable[..., Done]) -> None:
    common = ("explain", "--machine", "sim:pc-vlb", "--size", "60m", "--json")
    ways = ("--exclude", "0x1000000+4k/16m", "--exclude", "0x10dc000+16k/16m"), ("--lowaddr", "0xffffff"), ()
    found = [cli(*common, *way).document["explanation"]["bounce_pages"] for way in ways]
    with busdma.open("sim:pc-vlb") as machine:  # the same seed: the same frames
        table = machine.kernel.allocate(60 << 20).frames.table
        frames = [frame // PAGE for frame in table if frame < RAM]
    assert found == [sum(map(astray, frames)), sum(frame * PAGE >= MIB16 for frame in frames), 0]
    assert 10 <= found[0] <= 15
    assert found[1] > 11_000


@pytest.mark.parametrize("hole", ["16k", "5+0", "0+32k/16k", "1+x", "0x1ffffffffffffffff+1"])
def test_a_hole_that_is_none(cli: Callable[..., Done], hole: str) -> None:
    done = cli("explain", "--exclude", hole)
    assert done.status != 0
    assert "argument --exclude" in done.err
