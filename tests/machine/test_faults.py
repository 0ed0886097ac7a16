"""What a fault of an IOMMU becomes: whose it was, which map it hit, and who is told. The IOMMU here is a list."""

from __future__ import annotations

from collections import deque

import pytest

from busdma.domain import DmaDomain
from busdma.errors import DeviceFault
from busdma.machine.faults import KEPT, MOST, FaultWatch
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import AddressSpace
from busdma.map import Map
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.paths import Window
from busdma.runtime import by_name
from busdma.sync import Direction
from busdma.translators import HardwareFault
from core.fake_translator import FakeTranslator

PAGE = 4096
DISK, NET = 0x20, 0x28
READ, WRITE, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BOTH


class Unit:
    """Records what it is told to, up to `room` faults."""

    def __init__(self, room: int = 10_000) -> None:
        self.records: deque[HardwareFault] = deque()
        self.room = room
        self.overflows = 0
        self.looks = 0

    def record(self, address: int, *, write: bool | None = True, source: int | None = DISK, code: int = 16) -> None:
        if len(self.records) < self.room:
            self.records.append(HardwareFault(address, write, source, code))
        else:
            self.overflows += 1

    def pending(self) -> bool:
        self.looks += 1
        return bool(self.records)

    def take_fault(self) -> HardwareFault | None:
        return self.records.popleft() if self.records else None


class Bench:
    """Two devices, each with bus pages of its own from 1 MiB on: ``disk`` and ``net``."""

    def __init__(self, *, each: bool = True, merges: bool = False, room: int = 10_000) -> None:
        frames = FrameAllocator(0, 512, seed=1)
        memory = memoryview(bytearray(512 * PAGE))
        self.domain = DmaDomain(memory, frames, by_name("virtual"))
        self.kernel = AddressSpace("kernel", memory, frames, pages=1024)
        self.unit = Unit(room)
        devices = ("disk", "net")
        self.watch = FaultWatch(self.domain, devices, each=each)
        self.domain.instruments.insert(0, self.watch)
        who: dict[int | None, tuple[str, ...]] = {DISK: ("disk",), NET: ("net",), 0x99: ("disk", "net")}
        self.watch.add(self.unit, who, name="iommu", merges=merges, overflows=lambda: self.unit.overflows)
        root = self.domain.root("pc")
        self.tags = {}
        for name in devices:
            pool = IovaPool(name, self.domain.queue, FakeTranslator((256, 1023)), IovaAllocator([(256, 1023)]))
            window = Window(0, 1024 * PAGE, 0, pool)
            self.tags[name] = root.bridge(f"to-{name}", window).derive(name).derive("data")

    def load(self, device: str, pages: int = 1, direction: Direction = BOTH, *, offset: int = 0) -> Map:
        map = self.tags[device].create_map(name=f"{device} data")
        map.load_nowait(self.kernel.allocate(pages * PAGE - offset, offset=offset), direction)
        map.sync(direction.pre)
        return map

    def end(self, map: Map) -> None:
        map.sync(map.direction.post)
        map.unload()

    def told(self, map: Map) -> str:
        """What the POST sync of the map raises."""
        with pytest.raises(DeviceFault) as raised:
            map.sync(map.direction.post)
        assert (raised.value.tag, raised.value.map) == (map.tag.path, map.name)
        return str(raised.value)


def at(map: Map) -> int:
    return int(map.segments[0][0])


def test_without_a_fault_nothing_happens() -> None:
    bench = Bench()
    bench.end(bench.load("disk"))
    assert bench.watch.statistics() == {"faults": 0, "dropped": 0, "records": 0, "overflows": 0}
    assert not bench.watch.log


def test_it_is_asked_before_a_transfer_counts_as_over_and_at_no_other_time() -> None:
    bench = Bench()
    map = bench.load("disk")
    assert bench.unit.looks == 0
    map.sync(BOTH.post)
    assert bench.unit.looks == 1
    map.unload()
    memory = bench.tags["disk"].alloc(64)
    memory.sync(READ.pre)
    memory.sync(READ.post)
    assert bench.unit.looks == 1  # control memory is looked at all the time


def test_the_map_that_was_hit_is_told_and_no_other() -> None:
    bench = Bench()
    first, second, other = bench.load("disk"), bench.load("disk", direction=READ), bench.load("net")
    bench.unit.record(at(second) + 0x123)
    bench.end(first)
    bench.end(other)
    told = bench.told(second)
    assert told == (
        f"the iommu refused disk a write to bus address {at(second) + 0x123:#x}: that is in map 'disk data' of tag "
        "pc/to-disk/disk/data, which is loaded to the device only; load it both ways. What was moved for map "
        "'disk data' of tag pc/to-disk/disk/data is not to be trusted"
    )
    bench.end(second)  # once only


def test_the_error_says_which_bus_address() -> None:
    bench = Bench()
    map = bench.load("disk")
    bench.unit.record(at(map) + 5)
    with pytest.raises(DeviceFault) as raised:
        map.sync(BOTH.post)
    assert raised.value.address == at(map) + 5


def test_a_sync_that_was_refused_has_not_happened() -> None:
    bench = Bench()
    map = bench.load("disk")
    owned = map.device_may_own
    assert owned is not None
    bench.unit.record(at(map))
    bench.told(map)
    assert map.device_may_own == owned
    map.report_idle()
    map.unload()
    bench.tags["disk"].report_idle()
    assert bench.domain.leaks() == []


@pytest.mark.parametrize(
    ("direction", "write", "words"),
    [
        (READ, True, "is loaded to the device only; load it both ways"),
        (WRITE, False, "is loaded from the device only; load it both ways"),
        (BOTH, True, "the hardware does not find; that is no mistake of the driver"),
        (READ, False, "the hardware does not find; that is no mistake of the driver"),
        (WRITE, None, "the hardware does not find; that is no mistake of the driver"),
    ],
)
def test_why_it_was_refused_within_a_map(direction: Direction, write: bool | None, words: str) -> None:
    bench = Bench()
    map = bench.load("disk", direction=direction)
    bench.unit.record(at(map), write=write)
    assert words in bench.told(map)


def test_the_page_counts_where_a_segment_has_only_part_of_it() -> None:
    bench = Bench()
    map = bench.load("disk", offset=0x800)
    assert at(map) % PAGE == 0x800
    bench.unit.record(at(map) - 0x10)
    assert "that is in map 'disk data'" in bench.told(map)


@pytest.mark.parametrize(
    ("off", "words"),
    [
        (3 * PAGE, f"that is {2 * PAGE} bytes behind map 'disk data' of tag pc/to-disk/disk/data, the nearest"),
        (PAGE, "that is right behind map 'disk data'"),
        (-2 * PAGE, f"that is {2 * PAGE} bytes before map 'disk data'"),
    ],
)
def test_outside_all_maps_the_nearest_is_named(off: int, words: str) -> None:
    bench = Bench()
    filler = bench.load("disk", 8)
    map = bench.load("disk")
    bench.end(filler)
    filler.destroy()
    bench.watch._former.clear()
    bench.unit.record(at(map) + off)
    assert words in bench.told(map)


def test_where_nothing_is_loaded() -> None:
    bench = Bench()
    bench.unit.record(0x5000, write=False)
    map = bench.load("disk")
    bench.watch.look()
    assert "refused disk a read of bus address 0x5000: that is" in bench.told(map)
    bench.end(map)
    bench.watch._former.clear()
    bench.unit.record(0x5000, write=None)
    bench.watch.look()
    told = bench.told(bench.load("disk"))
    assert "refused disk an access to bus address 0x5000: nothing is loaded for it; give the device" in told


def test_who_had_the_address_until_it_was_unloaded() -> None:
    bench = Bench()
    map = bench.load("disk", 2)
    address = at(map)
    bench.end(map)
    other = bench.load("disk", 1)  # elsewhere, or the fault would be in it
    while at(other) <= address + PAGE < at(other) + PAGE:
        other = bench.load("disk", 1)
    bench.unit.record(address + PAGE)
    told = bench.told(other)
    assert "map 'disk data' of tag pc/to-disk/disk/data had it until it was unloaded" in told


def test_what_hit_no_map_is_told_to_the_next_transfer_of_the_device_once() -> None:
    bench = Bench()
    first, second, other = bench.load("disk"), bench.load("disk"), bench.load("net")
    bench.unit.record(0x3FF000)
    bench.end(other)
    assert "0x3ff000" in bench.told(first)
    bench.end(second)
    bench.end(first)


def test_control_memory_is_told_what_hit_it_and_nothing_else() -> None:
    bench = Bench()
    memory = bench.tags["disk"].alloc(64)
    map = bench.load("disk")
    bench.unit.record(0x3FF000)
    bench.watch.look()
    memory.sync(BOTH.pre)
    memory.sync(BOTH.post)
    assert "0x3ff000" in bench.told(map)
    bench.unit.record(int(memory.address))
    bench.end(map)
    memory.sync(BOTH.pre)
    with pytest.raises(DeviceFault, match="memory of 64 bytes"):
        memory.sync(BOTH.post)


def test_a_device_that_nobody_knows_is_only_logged() -> None:
    bench = Bench()
    bench.unit.record(0x1000, source=0x0210)
    bench.end(bench.load("disk"))
    bench.end(bench.load("net"))
    (fault,) = bench.watch.log
    assert (fault.device, fault.address, fault.tag) == ("the device at 02:02.0 on PCI", 0x1000, None)
    bench.unit.record(0x1000, source=None)
    bench.watch.look()
    assert bench.watch.log[-1].device == "a device"


def test_devices_that_cannot_be_told_apart() -> None:
    bench = Bench()
    disk, net = bench.load("disk"), bench.load("net", 3)
    bench.unit.record(at(net) + 2 * PAGE, source=0x99)
    bench.end(disk)
    assert "refused net a write" in bench.told(net)
    bench.unit.record(0x3FF000, source=0x99)
    bench.watch.look()
    other = bench.load("disk")
    for map in (other, net):
        assert "refused disk or net a write to bus address 0x3ff000" in bench.told(map)


def test_many_records_of_one_page_are_one_fault() -> None:
    bench = Bench()
    map = bench.load("disk", 2, READ)
    for byte in range(PAGE):
        bench.unit.record(at(map) + byte)
    bench.unit.record(at(map) + PAGE)
    bench.told(map)
    assert len(bench.unit.records) == PAGE + 1 - MOST
    while bench.unit.records:
        bench.watch.look()
    assert bench.watch.statistics()["records"] == PAGE + 1
    assert [fault.times for fault in bench.watch.log] == [MOST] * (PAGE // MOST) + [1]
    assert {fault.map for fault in bench.watch.log} == {"disk data"}


def test_who_unloads_or_is_reset_is_not_told_later() -> None:
    bench = Bench()
    map = bench.load("disk", direction=READ)
    bench.unit.record(at(map))
    bench.watch.look()
    map.report_idle()
    map.sync(READ.pre)
    bench.end(map)
    map.load_nowait(bench.kernel.allocate(PAGE), READ)
    bench.unit.record(at(map))
    bench.watch.look()
    map.unload()
    map.load_nowait(bench.kernel.allocate(PAGE), READ)
    map.sync(READ.pre)
    bench.end(map)


def test_where_one_fault_stands_for_many_what_was_under_way_is_told() -> None:
    bench = Bench(merges=True)
    hit, under_way, done, other = bench.load("disk"), bench.load("disk"), bench.load("disk"), bench.load("net")
    memory = bench.tags["disk"].alloc(64)
    memory.sync(BOTH.pre)
    done.sync(BOTH.post)
    bench.unit.record(at(hit))
    bench.end(other)
    told = bench.told(under_way)
    assert told.startswith("the iommu lost faults while map 'disk data' of tag pc/to-disk/disk/data was under way")
    assert f"bus address {at(hit):#x}" in told
    bench.told(hit)
    done.sync(BOTH.pre)
    for map in (done, hit, under_way):
        bench.end(map)
    memory.sync(BOTH.post)
    later = bench.load("disk")
    bench.end(later)


def test_where_faults_were_lost_what_was_under_way_of_any_device_is_told() -> None:
    bench = Bench(room=1)
    hit, other = bench.load("disk"), bench.load("net")
    bench.unit.record(at(hit))
    bench.end(other)
    bench.told(hit)  # there was room for it, so nobody else can have been hit
    other = bench.load("net")
    bench.unit.record(at(hit))
    bench.unit.record(at(other), source=NET)
    assert "lost faults while map 'net data'" in bench.told(other)
    assert bench.watch.statistics()["overflows"] == 1
    bench.told(hit)
    bench.end(bench.load("net"))


def test_nobody_is_asked_unless_somebody_looks() -> None:
    bench = Bench(each=False)
    map = bench.load("disk")
    bench.unit.record(at(map))
    map.sync(BOTH.post)
    assert bench.unit.looks == 0
    map.sync(BOTH.pre)
    bench.watch.look()
    bench.told(map)


def test_the_log_is_bounded_and_counts_what_it_drops() -> None:
    bench = Bench()
    for page in range(KEPT + 10):
        bench.unit.record(0x200000 + page * PAGE)
    bench.watch.look()
    assert len(bench.watch.log) == KEPT
    assert bench.watch.log[0].address == 0x200000 + 10 * PAGE
    assert bench.watch.statistics() == {"faults": KEPT + 10, "dropped": 10, "records": KEPT + 10, "overflows": 0}
    assert str(bench.watch.log[0]) == bench.watch.log[0].text


def test_a_unit_that_tells_pages_only() -> None:
    bench = Bench()
    unit = Unit()
    bench.watch.add(unit, {1: ("net",)}, name="other", grain=PAGE)
    unit.record(0x3FF000, source=1)
    assert "the other refused net a write to the page at bus address 0x3ff000" in bench.told(bench.load("net"))
