"""What devices behind the VT-d and the SMMUv3 of QEMU's machines do not reach, and that somebody is told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

import busdma
from busdma.drivers.edu.core import Edu
from busdma.errors import DeviceFault
from busdma.machine.faults import Fault
from busdma.map import Map
from busdma.qemu.remapped import RemappedMachine
from busdma.sync import Direction
from qemu.machines import need

PAGE = 4096
MACHINES = {"q35": "x86_64", "virt": "aarch64"}
READ, WRITE, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BOTH
HALF = 2048  #: bytes: all that an edu can have at once
NOISE = bytes(range(256)) * 16


def opened(model: str, options: str = "", **more: Any) -> RemappedMachine:
    need(MACHINES[model])
    machine = busdma.open(f"qemu:{model}{options}", **more)
    assert isinstance(machine, RemappedMachine)
    return machine


@pytest.fixture(params=MACHINES)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(model: str) -> Iterator[RemappedMachine]:
    with opened(model) as machine:
        yield machine


def started(machine: RemappedMachine, name: str = "edu0") -> Edu:
    """The edu, with noise in its memory."""
    edu = machine.driver(name)
    assert isinstance(edu, Edu)
    machine.run(edu.start)
    out = machine.allocate(edu.most)
    out.write(NOISE[: edu.most])
    machine.run(edu.copy_in, out)
    out.free()
    return edu


def loaded(machine: RemappedMachine, name: str, direction: Direction) -> Map:
    """A map of the device, loaded with half of a page of its own, and given to the device."""
    map = machine.driver(name).tag.create_map(name="mine")
    map.load_nowait(machine.allocate(PAGE)[:HALF], direction)
    map.sync(direction.pre)
    return map


def at(map: Map) -> int:
    return int(map.segments[0][0])


def fetched(machine: RemappedMachine, edu: Edu, length: int = 64) -> bytes:
    """What the edu has in its memory."""
    back = machine.allocate(length)
    machine.run(edu.copy_out, back)
    return bytes(back.read())


def memory(machine: RemappedMachine) -> bytes:
    return hashlib.blake2b(machine.ram.bus).digest()


def only(machine: RemappedMachine) -> Fault:
    """The one fault that there was."""
    (fault,) = machine.fault_log
    return fault


def test_outside_what_is_loaded_nothing_changes_and_the_fault_says_who_where_and_near_what(
    machine: RemappedMachine, model: str
) -> None:
    edu = started(machine)
    mine = loaded(machine, "edu0", BOTH)
    assert at(mine) % PAGE == 0
    astray = at(mine) + 3 * PAGE
    before = memory(machine)
    machine.run(edu.store, astray, 256)
    fault = only(machine)
    assert memory(machine) == before
    assert (fault.device, fault.address, fault.write, fault.map) == ("edu0", astray, True, None)
    where = f"{3 * PAGE - HALF} bytes behind map 'mine' of tag {edu.tag.path}, the nearest that is loaded"
    assert where in fault.text
    with pytest.raises(DeviceFault, match="that is 10240 bytes behind map 'mine'") as raised:
        mine.sync(BOTH.post)
    assert raised.value.address == astray
    mine.report_idle()
    mine.unload()
    assert fetched(machine, edu) == NOISE[:64]  # it goes on


def test_a_read_outside_is_refused_too(machine: RemappedMachine) -> None:
    edu = started(machine)
    mine = loaded(machine, "edu0", BOTH)
    machine.run(edu.fetch, at(mine) - PAGE, 64)
    fault = only(machine)
    assert (fault.device, fault.address, fault.write) == ("edu0", at(mine) - PAGE, False)
    with pytest.raises(DeviceFault, match="a read of"):
        fetched(machine, edu)
    assert NOISE[:64] != fetched(machine, edu)  # its memory has what a refused read brings


def test_what_is_loaded_to_the_device_cannot_be_written(machine: RemappedMachine) -> None:
    edu = started(machine)
    mine = loaded(machine, "edu0", READ)
    before = memory(machine)
    machine.run(edu.store, at(mine), 64)
    fault = only(machine)
    assert memory(machine) == before
    assert (fault.device, fault.address, fault.write, fault.map) == ("edu0", at(mine), True, "mine")
    assert "is loaded to the device only; load it both ways" in fault.text
    with pytest.raises(DeviceFault, match="is loaded to the device only"):
        mine.sync(READ.post)


def test_after_unload_the_old_address_leads_nowhere(machine: RemappedMachine) -> None:
    edu = started(machine)
    mine = loaded(machine, "edu0", BOTH)
    address, buffer = at(mine), mine.buffer
    machine.run(edu.store, address, 64)
    mine.sync(BOTH.post)
    assert buffer is not None
    mine.unload()
    assert not machine.fault_log
    before = memory(machine)
    machine.run(edu.store, address, 64)
    fault = only(machine)
    assert memory(machine) == before
    assert (fault.device, fault.address, fault.write) == ("edu0", address, True)
    assert f"map 'mine' of tag {edu.tag.path} had it until it was unloaded" in fault.text


def test_a_standing_entry_leads_to_the_same_buffer_until_that_is_gone(model: str) -> None:
    with opened(model, "?iommu=standing") as machine:
        edu = started(machine)
        map = edu.tag.create_map()
        buffer = machine.allocate(PAGE)
        map.load_nowait(buffer[:HALF], WRITE)
        map.sync(WRITE.pre)
        address = at(map)
        machine.run(edu.store, address, 64)
        map.sync(WRITE.post)
        map.unload()
        buffer.write(bytes(PAGE))
        machine.run(edu.store, address, 64)
        assert buffer.read()[:64] == NOISE[:64]  # nobody else's
        assert not machine.fault_log
        buffer.free()
        heirs = [machine.allocate(PAGE) for _ in range(64)]
        before = memory(machine)
        machine.run(edu.store, address, 64)
        fault = only(machine)
        assert memory(machine) == before
        assert (fault.device, fault.address, fault.write) == ("edu0", address, True)
        assert not any(any(heir.read()) for heir in heirs)


def test_standing_entries_are_used_again_and_the_hardware_is_not_touched(model: str) -> None:
    with opened(model, "?iommu=standing") as machine:
        edu = started(machine)
        buffer = machine.allocate(256)
        for _ in range(8):
            machine.run(edu.copy_out, buffer)
            assert buffer.read() == NOISE[:256]
        counts = machine.statistics()["iommu"]["edu0"]
        assert counts["reused"] == 7


@pytest.mark.parametrize("flushes", [True, False], ids=["flushed", "not-flushed"])
def test_a_flush_that_is_left_out_is_seen(
    machine: RemappedMachine, flushes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    edu = started(machine)
    mine = loaded(machine, "edu0", BOTH)
    address = at(mine)
    machine.run(edu.store, address, 64)
    mine.sync(BOTH.post)
    assert machine.domains is not None
    if not flushes:
        monkeypatch.setattr(machine.domains.pools["edu0"].translator, "flush", lambda address, pages: None)
    mine.unload()
    edu_noise, before = NOISE[64:128], memory(machine)
    machine.run(edu.store, address, 64, 64)
    if flushes:
        assert only(machine).address == address
        assert memory(machine) == before
    else:  # the page is not the device's any more, and yet
        assert memory(machine) != before
        assert bytes(machine.ram.bus).find(edu_noise) >= 0
        assert not machine.fault_log


def test_a_device_does_not_reach_the_maps_of_another(machine: RemappedMachine) -> None:
    edu = started(machine)
    for name in ("nvme0", "esp0"):
        driver = machine.driver(name)
        machine.run(driver.start)
        theirs = loaded(machine, name, BOTH)
        before = memory(machine)
        machine.run(edu.store, at(theirs), 64)
        first = machine.fault_log[-1]
        machine.run(edu.fetch, at(theirs), 64)
        second = machine.fault_log[-1]
        assert memory(machine) == before
        assert (first.device, first.address, first.write) == ("edu0", at(theirs), True)
        assert (second.device, second.address, second.write) == ("edu0", at(theirs), False)
        theirs.sync(BOTH.post)  # it is none of their affair
        theirs.unload()
        with pytest.raises(DeviceFault, match="refused edu0"):
            fetched(machine, edu)


def test_the_same_bus_address_is_another_frame_for_another_device(machine: RemappedMachine) -> None:
    edu = started(machine)
    mine, theirs = loaded(machine, "edu0", BOTH), loaded(machine, "nvme0", BOTH)
    assert at(mine) == at(theirs)
    machine.run(edu.store, at(mine), 64)
    mine.sync(BOTH.post)
    theirs.sync(BOTH.post)
    frames = [map.buffer.frames.table[map.buffer.start // PAGE] for map in (mine, theirs) if map.buffer is not None]
    assert frames[0] != frames[1]
    found = [bytes(machine.ram.cpu[frame - machine.frames.base :][:64]) for frame in frames]
    assert found == [NOISE[:64], bytes(64)]


class Cutter:
    """An instrument that takes the translation of the maps away whose numbers are in `cut`, as soon as it is there."""

    def __init__(self, machine: RemappedMachine, device: str) -> None:
        assert machine.domains is not None
        pools = machine.domains.pools
        self._translator = (pools.get(device) or pools["bridge0"]).translator
        self._tag = f"/{device}/"
        self.cut: set[int] = set()
        self.begun = 0

    def loaded(self, map: Map) -> None:
        if self._tag in f"{map.tag.path}/":
            if self.begun in self.cut:
                for address, length in map.segments:
                    first, end = address // PAGE * PAGE, -(-(address + length) // PAGE) * PAGE
                    self._translator.clear(first, (end - first) // PAGE)
                    self._translator.flush(first, (end - first) // PAGE)
            self.begun += 1

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


@pytest.mark.parametrize("device", ["nvme0", "esp0"])
def test_a_disk_reports_success_and_its_driver_knows_better(machine: RemappedMachine, device: str) -> None:
    driver = machine.driver(device)
    machine.run(driver.start)
    disk = driver.disks[0]
    out, back = machine.allocate(8 * PAGE), machine.allocate(8 * PAGE)
    out.write(NOISE * 8)
    machine.run(disk.write, 0, out)
    cutter = Cutter(machine, device)
    machine.domain.instruments.append(cutter)
    cutter.cut = {0}
    with pytest.raises(DeviceFault, match=f"refused {device} a write to .* that is in map") as raised:
        machine.run(disk.read, 0, back)
    fault = machine.fault_log[0]
    assert (fault.device, fault.address, fault.map) == (device, raised.value.address, raised.value.map)
    assert not any(back.read())
    machine.run(disk.read, 0, back)
    assert back.read() == NOISE * 8
    machine.run(driver.stop)
    assert machine.leaks() == []


def test_of_many_requests_those_that_were_hit_fail_and_the_driver_lives(machine: RemappedMachine) -> None:
    driver = machine.driver("nvme0")
    machine.run(driver.start)
    disk = driver.disks[0]
    out = machine.allocate(16 * PAGE)
    out.write(NOISE * 16)
    machine.run(disk.write, 0, out)
    cutter = Cutter(machine, "nvme0")
    machine.domain.instruments.append(cutter)
    cutter.cut = {3, 9}
    back = [machine.allocate(PAGE) for _ in range(16)]
    failed: set[int] = set()

    async def fetch(number: int) -> None:
        try:
            await disk.read(number * 8, back[number])
        except DeviceFault:
            failed.add(number)

    async def all_at_once() -> None:
        tasks = [machine.runtime.start(fetch, number) for number in range(16)]
        for task in tasks:
            await machine.runtime.park(task.done)

    machine.run(all_at_once)
    for number in range(16):  # what is not known to be right is not said to be
        assert (number in failed) or back[number].read() == NOISE
    assert {number for number in range(16) if back[number].read() != NOISE} <= failed
    assert len([number for number in range(16) if not any(back[number].read())]) >= 2
    for number in range(16):
        machine.run(disk.read, number * 8, back[number])
        assert back[number].read() == NOISE
    machine.run(driver.stop)
    assert machine.leaks() == []


def test_faults_are_counted(machine: RemappedMachine) -> None:
    edu = started(machine)
    assert machine.statistics()["faults"] == {"faults": 0, "dropped": 0, "records": 0, "overflows": 0}
    machine.run(edu.store, 0x80_0000, 64)
    assert len(machine.fault_log) == 1
    counts = machine.statistics()["faults"]
    assert counts["faults"] == 1
    assert counts["records"] >= 1
    machine.close()
    assert len(machine.fault_log) == 1


def test_under_the_checker_nothing_is_found_but_the_fault(model: str) -> None:
    with opened(model, check=True) as machine:
        edu = started(machine)
        machine.run(edu.store, 0x80_0000, 64)
        with pytest.raises(DeviceFault, match="refused edu0"):
            fetched(machine, edu)
        assert fetched(machine, edu) == NOISE[:64]
        machine.run(edu.stop)
    assert machine.checker is not None
    assert not list(machine.checker.findings)
