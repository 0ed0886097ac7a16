"""Loads through a translator: what a device sees, and that everything goes back however a load ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.errors import (
    ConstraintError,
    DeadlineExpired,
    DriverError,
    MappingRefused,
    ResourceShortage,
    ShortageReason,
    WaitCancelled,
)
from busdma.faces import Progress
from busdma.lifecycle import State
from busdma.map import Map
from busdma.mechanisms.zone import REVIEW
from busdma.runtime.carrier import Carrier
from busdma.sync import Direction
from core.paths_machine import MAPPED, Behind, check_limits
from core.small_machine import PAGE, Pages

MS = 1_000_000
EVERYWHERE = AddressSet.span(0, 511 * PAGE)


def pages_of(machine: Behind, pages: int) -> LinearBuffer:
    """A kernel buffer of scattered frames."""
    return machine.kernel.allocate(pages * PAGE, within=EVERYWHERE)


def held(machine: Behind) -> tuple[int, int]:
    """Bus pages and bounce pages that somebody has."""
    return machine.pool.active, sum(zone.active for zone in machine.domain.zones)


# -- what stands, and what goes --------------------------------------------------------------------------------------


def test_strict_takes_the_entries_away_and_flushes_at_unload() -> None:
    machine = Behind("mapped")
    map = machine.bus.create_map()
    buffer = pages_of(machine, 2)
    segments = list(map.load_nowait(buffer))
    assert len(segments) == 1
    assert len(machine.tables.entries) == 2
    machine.tables.translate(segments[0][0], write=False)
    assert machine.tables.cached
    map.unload()
    assert not machine.tables.entries
    assert not machine.tables.cached
    assert machine.pool.statistics()["flushes"] == 1


def test_standing_leaves_them_and_a_reload_writes_none() -> None:
    machine = Behind("mapped", standing=True)
    map = machine.bus.create_map()
    buffer, other = pages_of(machine, 3), pages_of(machine, 3)
    first = list(map.load_nowait(buffer))
    map.unload()
    assert machine.tables.written == 3
    assert len(machine.tables.entries) == 3
    assert list(map.load_nowait(buffer)) == first
    map.unload()
    assert machine.tables.written == 3
    assert machine.pool.statistics()["reused"] == 1
    assert list(map.load_nowait(other)) != first
    map.unload()
    assert machine.pool.statistics()["standing"] == 6
    assert machine.pool.active == 0


def test_without_its_flush_a_device_would_reach_the_frames_of_before() -> None:
    """The translator of these tests is one that can go stale: so that the others mean something."""
    machine = Behind("mapped", mapped=1)
    machine.tables.flush = lambda address, pages: None  # type: ignore[method-assign]
    map = machine.bus.create_map()
    old, new = pages_of(machine, 1), pages_of(machine, 1)
    machine.device_reads(map.load_nowait(old))
    map.unload()
    address = map.load_nowait(new)[0][0]
    frames = [machine.kernel.page_table[buffer.start // PAGE] for buffer in (old, new)]
    assert machine.tables.entries[address][0] == frames[1]
    assert machine.tables.translate(address, write=False) == frames[0]


@pytest.mark.parametrize("standing", [False, True])
def test_with_it_never(standing: bool) -> None:
    """Many loads through two bus pages: what a device reads is always what is loaded."""
    machine = Behind("mapped", mapped=2, standing=standing)
    map = machine.bus.create_map()
    buffers = [pages_of(machine, 1) for _ in range(5)]
    for number, buffer in enumerate(buffers):
        buffer.fill(number + 1)
    random_order = random.Random(1)
    for _ in range(60):
        number = random_order.randrange(5)
        segments = map.load_nowait(buffers[number])
        assert machine.device_reads(segments) == bytes([number + 1]) * PAGE
        map.unload()


def test_frames_that_change_owner_are_forgotten() -> None:
    machine = Behind("mapped", standing=True)
    map = machine.bus.create_map()
    buffer = pages_of(machine, 2)
    segments = list(map.load_nowait(buffer))
    frames = {frame for frame, _ in machine.tables.entries.values()}
    machine.tables.translate(segments[0][0], write=True)
    map.unload()
    buffer.free()
    assert not machine.tables.entries
    assert not machine.tables.cached
    assert all(machine.frames.owner_of(frame) is None for frame in frames)


def test_entries_of_bounce_pages_never_stand() -> None:
    """A bounce page goes to another device's load with no change of its frame's owner, and nobody would be told."""
    machine = Behind("mapped", standing=True)
    map = machine.bus.create_map()
    ((address, _),) = map.load_nowait(bytearray(2 * PAGE))
    machine.tables.translate(address, write=False)
    map.unload()
    assert machine.pool.statistics()["standing"] == 0
    assert not machine.tables.entries
    assert not machine.tables.cached


def test_no_entry_names_a_bounce_page_that_has_gone_back() -> None:
    """Strict: an entry goes before its page can go anywhere, though both go in one unload."""
    machine = Behind("mapped")
    seen: list[tuple[int, bool]] = []

    def released(frames: Sequence[int]) -> None:
        named = {frame for frame, _ in machine.tables.entries.values()}
        seen.extend((frame, frame in named) for frame in frames)

    machine.frames.add_releaser(released)
    first, last, often = machine.bus.create_map(), machine.bus.create_map(), machine.bus.create_map()
    first.load_nowait(bytearray(16 * PAGE))
    last.load_nowait(bytearray(4 * PAGE))  # the zone's second chunk
    first.unload()
    for _ in range(REVIEW - 1 + REVIEW - 1):
        often.load_nowait(bytearray(PAGE))
        often.unload()
    assert seen == []
    last.unload()  # now the zone gives back what is idle, and these pages are
    assert len(seen) == 4
    assert not any(visible for _, visible in seen)


# -- rights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", list(Direction))
def test_a_device_can_do_what_the_direction_says_and_no_more(direction: Direction) -> None:
    machine = Behind("mapped")
    ((address, _),) = machine.bus.create_map().load_nowait(pages_of(machine, 1), direction)
    for write, denied in ((False, Direction.FROM_DEVICE), (True, Direction.TO_DEVICE)):
        if direction is denied:
            with pytest.raises(LookupError):
                machine.tables.translate(address, write)
        else:
            machine.tables.translate(address, write)


# -- the spill page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "bus_pages"), [(Direction.TO_DEVICE, 3), (Direction.BOTH, 3), (Direction.FROM_DEVICE, 2)]
)
def test_a_page_behind_for_a_bridge_that_reads_ahead(direction: Direction, bus_pages: int) -> None:
    """It reads past what a device reads, so not past what a device only writes."""
    machine = Behind("mapped", prefetch=256)
    map = machine.bus.create_map()
    ((address, length),) = map.load_nowait(pages_of(machine, 2), direction)
    assert machine.pool.active == len(machine.tables.entries) == bus_pages
    assert length == 2 * PAGE
    if direction is not Direction.FROM_DEVICE:
        machine.tables.translate(address + length + 255, write=False)
    else:
        with pytest.raises(LookupError):
            machine.tables.translate(address + length, write=False)
    map.unload()
    assert held(machine) == (0, 0)


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "pages"),
    [
        ({"alignment": 16 * PAGE}, 3),
        ({"boundary": 4 * PAGE, "nsegments": 1}, 4),
        ({"boundary": 4 * PAGE, "nsegments": 2}, 8),
        ({"boundary": PAGE, "nsegments": 5}, 5),
        ({"boundary": 512, "nsegments": 16}, 2),
        ({"maxsegsz": 2 * PAGE, "nsegments": 3}, 5),
        ({"alignment": 2 * PAGE, "boundary": 8 * PAGE, "maxsegsz": 3 * PAGE}, 9),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 256])
def test_the_bus_pages_lie_where_the_limits_want_them(limits: dict[str, int], pages: int, prefetch: int) -> None:
    machine = Behind("mapped", prefetch=prefetch)
    tag = machine.bus.derive("card", **limits)  # type: ignore[arg-type]
    machine.bus.create_map().load_nowait(pages_of(machine, 1))  # so that the lowest is not at the window's beginning
    map = tag.create_map()
    buffer = pages_of(machine, pages)
    buffer.write(random.Random(1).randbytes(pages * PAGE))
    segments = map.load_nowait(buffer, Direction.TO_DEVICE)
    check_limits(segments, tag.constraints, pages * PAGE)
    assert machine.device_reads(segments) == buffer.read()
    assert sum(zone.active for zone in machine.domain.zones) == 0


@pytest.mark.parametrize(
    ("limits", "pages", "words"),
    [
        ({"boundary": 64 * PAGE}, 65, "65 bus pages of tables needed"),
        ({"alignment": 4096 * PAGE}, 1, "1 bus page of tables needed, adjacent and within alignment 4096"),
        ({"boundary": 4096 * PAGE}, 63, ""),
    ],
)
def test_what_no_window_can_hold_is_refused_at_once_with_the_numbers(
    limits: dict[str, int], pages: int, words: str
) -> None:
    """A boundary that its own spill page would cross begins a line, and no line may be there to begin on."""
    machine = Behind("mapped", limit=80)
    tag = machine.bus.derive("card", **limits)  # type: ignore[arg-type]
    map = tag.create_map()
    if not words:
        assert len(map.load_nowait(pages_of(machine, pages))) == 1
        return
    for load in (map.load_nowait, map.load_blocking):
        with pytest.raises(MappingRefused, match=words):
            load(pages_of(machine, pages))
    assert held(machine) == (0, 0)
    assert machine.pool.counts["refused"] >= 2


def test_a_device_that_reaches_part_of_the_window_gets_bus_pages_there() -> None:
    machine = Behind("mapped")
    tag = machine.bus.derive("card", lowaddr=MAPPED + 8 * PAGE - 1)
    maps = [tag.create_map() for _ in range(3)]
    assert all(
        address + length <= MAPPED + 8 * PAGE
        for map in maps[:2]
        for address, length in map.load_nowait(pages_of(machine, 4))
    )
    with pytest.raises(ResourceShortage) as caught:
        maps[2].load_nowait(pages_of(machine, 1))
    assert "1 bus page of tables" in str(caught.value)
    with pytest.raises(MappingRefused):
        maps[2].load_nowait(pages_of(machine, 9))


# -- copies behind a translator --------------------------------------------------------------------------------------


def test_memory_of_the_host_is_bounced_and_remapped() -> None:
    machine = Behind("mapped")
    map = machine.bus.derive("card", nsegments=1).create_map()
    data = bytearray(random.Random(1).randbytes(3 * PAGE + 7))
    before = bytes(data)
    ((address, length),) = segments = map.load_nowait(data)
    assert held(machine) == (4, 4)
    assert length == len(data)
    assert address >= MAPPED
    map.sync(Direction.BOTH.pre)
    assert machine.device_reads(segments) == before
    machine.device_writes(segments, bytes(reversed(before)))
    assert data == before
    map.sync(Direction.BOTH.post, PAGE, 9)
    assert data == before[:PAGE] + bytes(reversed(before))[PAGE : PAGE + 9] + before[PAGE + 9 :]
    map.sync(Direction.BOTH.post)
    assert data == bytes(reversed(before))
    map.unload()
    assert held(machine) == (0, 0)
    counts = machine.domain.zones[0].statistics()
    assert (counts["bounced_pages"], counts["copied_out"], counts["copied_in"]) == (4, len(data), len(data) + 9)


def test_a_list_for_which_there_are_too_few_bus_pages_is_packed() -> None:
    """Thirty elements on thirty pages, in eight bus pages."""
    machine = Behind("mapped", mapped=8)
    kernel = pages_of(machine, 30)
    kernel.write(random.Random(1).randbytes(30 * PAGE))
    elements = [kernel[at * PAGE : at * PAGE + 100] for at in range(30)]
    map = machine.bus.create_map()
    segments = map.load_nowait(elements)
    assert held(machine) == (1, 1)
    assert len(segments) == 1
    map.sync(Direction.BOTH.pre)
    assert machine.device_reads(segments) == b"".join(element.read() for element in elements)
    map.unload()


# -- waiting ---------------------------------------------------------------------------------------------------------


def nowait(machine: Behind, map: Map, buffer: object, then: Callable[[], object]) -> None:
    """Now or never: so it asks for a turn."""
    with pytest.raises(ResourceShortage) as caught:
        map.load_nowait(buffer)
    assert caught.value.reason is ShortageReason.BUSY
    map.tag.on_available(lambda: map.load_nowait(buffer))

    async def main() -> None:
        then()

    machine.runtime.run(main)
    machine.runtime.run(main_of_nothing)


def awaited(machine: Behind, map: Map, buffer: object, then: Callable[[], object]) -> None:
    async def main() -> None:
        task = machine.runtime.start(map.load, buffer)
        machine.runtime.call_at(machine.runtime.now() + MS, then)
        await machine.runtime.park(task.done)
        task.result()

    machine.runtime.run(main)


def blocking(machine: Behind, map: Map, buffer: object, then: Callable[[], object]) -> None:
    machine.runtime.call_at(machine.runtime.now() + MS, then)
    map.load_blocking(buffer)


def called_back(machine: Behind, map: Map, buffer: object, then: Callable[[], object]) -> None:
    told: list[object] = []

    async def main() -> None:
        assert map.load_callback(buffer, lambda segments, error: told.append(error)) is Progress.IN_PROGRESS
        then()

    machine.runtime.run(main)
    machine.runtime.call_at(machine.runtime.now() + MS, lambda: None)
    machine.runtime.run(main_of_nothing)
    assert told == [None]


async def main_of_nothing() -> None:
    """Let what is left run."""


@pytest.mark.parametrize("face", [nowait, awaited, blocking, called_back], ids=lambda face: str(face.__name__))
@pytest.mark.parametrize("short", ["bus pages", "bounce pages", "both"])
def test_every_face_waits_for_either_pool_and_for_both(runtime: Carrier, face: Callable[..., None], short: str) -> None:
    machine = Behind("mapped", mapped=8, limit=8, runtime=runtime)
    holders: list[Map] = []
    for what in (bytearray(6 * PAGE),) if short == "both" else ():
        holders.append(machine.bus.create_map())
        holders[-1].load_nowait(what)
    if short == "bus pages":
        holders.append(machine.bus.create_map())
        holders[-1].load_nowait(pages_of(machine, 6))
    if short == "bounce pages":
        direct = machine.root.derive("wide").create_map()
        direct.load_nowait(bytearray(6 * PAGE))
        holders.append(direct)
    before = held(machine)
    map = machine.bus.create_map()

    def then() -> None:
        assert map.state in (State.WAITING, State.IDLE)
        assert held(machine) == before
        for holder in holders:
            holder.unload()

    face(machine, map, bytearray(3 * PAGE), then)
    assert map.state is State.LOADED
    assert held(machine) == (3, 3)
    map.unload()
    assert held(machine) == (0, 0)


def test_a_deadline_gives_everything_back(runtime: Carrier) -> None:
    machine = Behind("mapped", mapped=8, limit=8, runtime=runtime)
    holder, map = machine.bus.create_map(), machine.bus.create_map()
    holder.load_nowait(bytearray(6 * PAGE))

    async def main() -> None:
        with pytest.raises(DeadlineExpired):
            await map.load(bytearray(3 * PAGE), deadline=runtime.now() + MS)

    runtime.run(main)
    assert map.state is State.IDLE
    assert held(machine) == (6, 6)
    assert machine.domain.queue.line == []
    holder.unload()
    assert held(machine) == (0, 0)
    assert not machine.tables.entries


def test_a_cancel_gives_everything_back_before_and_after_the_grant(runtime: Carrier) -> None:
    machine = Behind("mapped", mapped=8, limit=8, runtime=runtime)
    holder, map = machine.bus.create_map(), machine.bus.create_map()
    for after_the_grant in (False, True):
        holder.load_nowait(bytearray(6 * PAGE))

        async def main(after_the_grant: bool = after_the_grant) -> None:
            task = runtime.start(map.load, bytearray(3 * PAGE))
            while map.state is not State.WAITING:
                await machine_pause(machine)
            with runtime.hold():
                if after_the_grant:
                    holder.unload()
                    machine.bus.abandon()
                else:
                    map.cancel_load()
                    holder.unload()
            await runtime.park(task.done)
            with pytest.raises(WaitCancelled):
                task.result()

        runtime.run(main)
        assert map.state is State.IDLE
        assert held(machine) == (0, 0)
        assert not machine.tables.entries


async def machine_pause(machine: Behind) -> None:
    """A moment of virtual time."""
    from core.test_faces import pause

    await pause(machine.runtime, MS)


# -- quarantine, reservations, the end -------------------------------------------------------------------------------


@pytest.mark.parametrize("standing", [False, True])
def test_quarantine_keeps_bus_pages_and_bounce_pages_until_the_device_is_idle(standing: bool) -> None:
    machine = Behind("mapped", mapped=4, limit=8, standing=standing)
    map, other = machine.bus.create_map(), machine.bus.create_map()
    segments = list(map.load_nowait(bytearray(3 * PAGE)))
    map.sync(Direction.BOTH.pre)
    map.quarantine()
    assert held(machine) == (3, 3)
    assert machine.pool.quarantined == 3
    assert machine.domain.zones[0].quarantined == 3
    machine.tables.translate(segments[0][0], write=True)  # the device may go on: nothing else is there
    with pytest.raises(ResourceShortage) as caught:
        other.load_nowait(bytearray(2 * PAGE))
    assert caught.value.reason is ShortageReason.LEAK
    assert "report_idle" in str(caught.value)
    machine.bus.report_idle()
    assert held(machine) == (0, 0)
    assert machine.pool.quarantined == 0 == machine.domain.zones[0].quarantined
    other.load_nowait(bytearray(2 * PAGE))


@pytest.mark.parametrize("windows", ["mapped", "direct+mapped"])
@pytest.mark.parametrize(
    "limits", [{}, {"alignment": 4 * PAGE}, {"boundary": 4 * PAGE}, {"lowaddr": MAPPED + 30 * PAGE - 1}]
)
def test_a_reserved_map_never_waits(windows: str, limits: dict[str, int]) -> None:
    machine = Behind(*windows.split("+"), mapped=64, limit=60, prefetch=256)
    tag = machine.bus.derive("card", maxsize=8 * PAGE, **limits)  # type: ignore[arg-type]
    map = tag.create_map(reserve=True)
    rest = [machine.bus.create_map() for _ in range(70)]
    for each in rest:
        try:
            each.load_nowait(bytearray(PAGE))
        except ResourceShortage:
            break
    kernel = pages_of(machine, 40)
    kernel.write(random.Random(1).randbytes(40 * PAGE))
    for buffer in (
        bytearray(8 * PAGE),
        kernel[100 : 8 * PAGE + 100],
        [kernel[at * PAGE + 64 : at * PAGE + 164] for at in range(40)],
        [bytearray(100), kernel[:100]] * 20,
    ):
        segments = map.load_nowait(buffer)
        check_limits(segments, tag.constraints, sum(length for _, length in segments))
        map.unload()
    map.destroy()
    for each in rest:
        if each.state is State.LOADED:
            each.unload()
    assert held(machine) == (0, 0)
    assert (machine.pool.pages, machine.domain.zones[0].limit) == (64, 60)


def test_what_cannot_be_reserved() -> None:
    machine = Behind("mapped", mapped=9, limit=16)
    machine.bus.create_map().load_nowait(pages_of(machine, 1))
    with pytest.raises(ConstraintError, match="derive a tag with a maxsize"):
        machine.bus.create_map(reserve=True)
    tag = machine.bus.derive("card", maxsize=8 * PAGE)
    with pytest.raises(ResourceShortage, match="9 adjacent bus pages of tables cannot be reserved now"):
        tag.create_map(reserve=True)
    assert machine.domain.zones[0].limit == 16
    assert tag.maps == []


def test_the_end_of_tags_and_maps_gives_everything_back() -> None:
    machine = Behind("mapped")
    tag = machine.bus.derive("card", maxsize=4 * PAGE)
    maps = [tag.create_map(reserve=True), tag.create_map()]
    memory = tag.alloc(3 * PAGE)
    for map in maps:
        map.load_nowait(bytearray(2 * PAGE))
    with pytest.raises(DriverError):
        maps[0].destroy()
    for map in maps:
        map.unload()
        map.destroy()
    memory.free()
    tag.destroy()
    machine.domain.zones[0].trim()
    assert held(machine) == (0, 0)
    assert not machine.tables.entries
    assert machine.frames.statistics()["free"] == 512
    assert machine.pool.pages == 64


def test_dma_safe_memory_of_scattered_frames_is_one_segment() -> None:
    machine = Behind("mapped")
    memory = machine.bus.derive("card", nsegments=1).alloc(5 * PAGE)
    assert len(memory.segments) == 1
    assert memory.address >= MAPPED
    memory.free()
    assert held(machine) == (0, 0)


def test_a_failing_translator_leaves_nothing_behind() -> None:
    machine = Behind("mapped")
    enter = machine.tables.enter
    map = machine.bus.create_map()

    def fail(*args: object) -> None:
        raise OSError("the table walker is off")

    machine.tables.enter = fail  # type: ignore[method-assign, assignment]
    for buffer in (bytearray(PAGE), pages_of(machine, 2)):
        with pytest.raises(OSError, match="table walker"):
            map.load_nowait(buffer)
        assert held(machine) == (0, 0)
        assert map.state is State.IDLE
    machine.tables.enter = enter  # type: ignore[method-assign]
    map.load_nowait(Pages([3 * PAGE, 7 * PAGE], 5, PAGE))
    map.unload()


# -- what is recalled --------------------------------------------------------------------------------------------------


def test_what_stands_is_recalled_at_any_part_of_its_pages_and_only_for_its_own_limits() -> None:
    """The same page frames, another part of them, by another map: no entry is written. Other limits, or way: looked at
    afresh, and the device always reaches just these bytes."""
    machine = Behind("mapped", standing=True)
    tag = machine.bus.derive("a", alignment=4)
    narrow = machine.bus.derive("b", maxsegsz=256, nsegments=64)
    maps = tag.create_map(), tag.create_map(), narrow.create_map()
    buffer = pages_of(machine, 2)
    frames = [buffer.frames.table[buffer.start // PAGE + n] for n in range(2)]

    def reached(map: Map, start: int, length: int, direction: Direction = Direction.TO_DEVICE) -> int:
        """Load a part of the buffer, compare, unload; how many segments it has."""
        before = machine.pool.active
        segments = list(map.load_nowait(buffer[start : start + length], direction))
        assert sum(size for _, size in segments) == length
        at = start
        for address, size in segments:
            for byte in {0, size - 1}:
                physical = machine.tables.translate(address + byte, write=direction is Direction.FROM_DEVICE)
                assert physical == frames[(at + byte) // PAGE] + (at + byte) % PAGE
            at += size
        assert machine.pool.active == before + -(-(start + length) // PAGE) - start // PAGE
        map.unload()
        assert machine.pool.active == before
        return len(segments)

    assert reached(maps[0], 0, 2 * PAGE) == 1
    entered = machine.pool.statistics()["entered"]
    for start, length in ((0, 2 * PAGE), (4, 2 * PAGE - 8), (PAGE - 4, 8)):
        for map in maps[:2]:
            assert reached(map, start, length) == 1
    assert reached(maps[2], 0, PAGE + 256) == PAGE // 256 + 1
    assert reached(maps[0], 8, PAGE) == 1
    assert machine.pool.statistics()["entered"] == entered
    assert machine.pool.statistics()["reused"] == 8
    reached(maps[0], 0, 2 * PAGE, Direction.FROM_DEVICE)
    assert machine.pool.statistics()["entered"] == entered + 2

    one, other = (map.load_nowait(buffer, Direction.TO_DEVICE) for map in maps[:2])
    assert one[0] != other[0]  # what somebody holds is nobody else's
    for map in maps[:2]:
        map.unload()


def test_what_is_recalled_waits_behind_those_who_wait() -> None:
    machine = Behind("mapped", standing=True)
    buffer = pages_of(machine, 1)
    map = machine.bus.create_map()
    map.load_nowait(buffer, Direction.TO_DEVICE)
    map.unload()
    machine.pool.waiting += 1
    with pytest.raises(ResourceShortage):
        map.load_nowait(buffer, Direction.TO_DEVICE)
    machine.pool.waiting -= 1
    map.load_nowait(buffer, Direction.TO_DEVICE)
    with pytest.raises(DriverError):
        map.load_nowait(buffer, Direction.TO_DEVICE)
    map.unload()
