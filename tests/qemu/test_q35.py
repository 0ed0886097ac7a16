"""QEMU's Q35: what a VT-d and a PCI-to-PCI bridge make of its devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import busdma
from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.machine.remapping import WINDOW
from busdma.machines import MACHINES, options_of
from busdma.qemu.q35 import Q35
from busdma.sync import Direction
from qemu.idle import cpu_sleeps
from qemu.machines import need
from qemu.remapped_rig import HALF, NOISE, PAGE, assert_every_device_moves_data, started

INTERRUPTS = range(0xFEE0_0000, 0xFEF0_0000)


def opened(options: str = "", **more: Any) -> Q35:
    need("x86_64")
    machine = busdma.open(f"qemu:q35{options}", **more)
    assert isinstance(machine, Q35)
    return machine


@pytest.fixture
def machine() -> Iterator[Q35]:
    with opened() as machine:
        yield machine


def test_its_cpu_sleeps_and_it_runs(machine: Q35) -> None:
    assert cpu_sleeps(machine.qemu)
    registers = machine.qemu.monitor.hmp("info registers")
    assert "HLT=1" in registers
    edu = started(machine, "edu0")
    machine.run(edu.copy_in, bytes(64))  # its timer runs
    assert machine.qemu.monitor.hmp("info registers").split("EIP=")[1][:8] == registers.split("EIP=")[1][:8]


@pytest.mark.parametrize("options", ["", "?iommu=standing", "?iommu=off", "?warp=0"])
def test_every_device_moves_data(options: str) -> None:
    with opened(options) as machine:
        assert sorted(machine.devices) == ["edu0", "edu1", "esp0", "nvme0"]
        way = "direct" if options == "?iommu=off" else "remap"
        assert_every_device_moves_data(machine, way)


def test_what_drivers_are_given_is_in_the_window_and_no_message_of_an_interrupt(machine: Q35) -> None:
    (window,) = WINDOW.intervals
    for name in machine.devices:
        driver = started(machine, name)
        map = driver.tag.create_map()
        map.load_nowait(machine.allocate(HALF), Direction.BOTH)
        ((address, length),) = map.segments
        assert window[0] <= address < address + length - 1 <= window[1]
        assert not set(range(address, address + length)) & set(INTERRUPTS)
        map.unload()


def test_behind_the_bridge_requests_carry_the_bridges_id(machine: Q35) -> None:
    assert machine.domains is not None
    assert machine.domains.sources == {"nvme0": 4 << 3, "edu0": 6 << 3, "bridge0": 30 << 3}
    edu = started(machine, "edu1")
    machine.run(edu.store, 0x80_0000, 64)
    (fault,) = machine.fault_log
    assert (fault.device, fault.address) == ("esp0 or edu1", 0x80_0000)
    with pytest.raises(DeviceFault, match="refused esp0 or edu1 a write to the page at bus address 0x800000"):
        machine.run(edu.copy_in, bytes(64))
    edu0 = started(machine, "edu0")
    machine.run(edu0.copy_in, bytes(64))  # it has nothing to do with that


def test_behind_the_bridge_devices_share_a_domain(machine: Q35) -> None:
    edu = started(machine, "edu1")
    machine.run(edu.copy_in, NOISE)
    map = machine.driver("esp0").tag.create_map()
    buffer = machine.allocate(PAGE)
    map.load_nowait(buffer, Direction.FROM_DEVICE)
    map.sync(Direction.FROM_DEVICE.pre)
    machine.run(edu.store, int(map.segments[0][0]), 64)
    map.sync(Direction.FROM_DEVICE.post)
    assert buffer.read()[:64] == NOISE[:64]
    assert machine.fault_log == []
    edu0 = started(machine, "edu0")
    machine.run(edu0.fetch, int(map.segments[0][0]), 64)
    assert [fault.device for fault in machine.fault_log] == ["edu0"]
    map.unload()


def test_devices_of_the_users_are_translated_too() -> None:
    with opened(devices="edu,id=mine,addr=9;edu,id=theirs,bus=bridge0,addr=9") as machine:
        assert machine.domains is not None
        assert set(machine.domains.sources) == {"nvme0", "edu0", "bridge0", "mine"}
        for name, known in (("mine", "mine"), ("theirs", "esp0 or edu1 or theirs")):
            edu = started(machine, name)
            machine.run(edu.copy_in, NOISE)
            machine.run(edu.store, 0x80_0000, 64)
            assert machine.fault_log[-1].device == known
    with pytest.raises(ConfigurationError, match=r"put mine on bus=pcie\.0 or bus=bridge0"):
        opened(devices="pci-bridge,id=other,chassis_nr=1;edu,id=mine,bus=other,addr=1")


def test_each_slot_has_its_interrupt_line(machine: Q35) -> None:
    lines = {name: device.properties["irq"] for name, device in machine.devices.items()}
    assert lines == {"nvme0": 20, "edu0": 22, "esp0": 21, "edu1": 22}
    first, second = started(machine, "edu0"), started(machine, "edu1")
    for edu in (first, second, first):  # two on one line: who is not meant acknowledges nothing
        machine.run(edu.copy_in, NOISE)


def test_a_passed_over_register_costs_what_nobody_is_told() -> None:
    with opened("?faults=0") as machine:
        edu = started(machine, "edu0")
        machine.run(edu.store, 0x80_0000, 64)
        machine.run(edu.copy_in, bytes(64))
        assert [fault.address for fault in machine.fault_log] == [0x80_0000]


def test_without_an_iommu_edu_bounces_what_its_lines_do_not_reach() -> None:
    with opened("?iommu=off&ram=512") as machine:
        edu = started(machine, "edu0")
        reach = 1 << 28
        assert machine.frames.pages * PAGE == 2 * reach
        buffers = [machine.allocate(PAGE)[:HALF] for _ in range(16)]
        beyond = [buffer for buffer in buffers if buffer.frames.table[buffer.start // PAGE] >= reach]
        assert beyond
        for number, buffer in enumerate(beyond):
            buffer.write(bytes([number]) * HALF)
            machine.run(edu.copy_in, buffer)
            buffer.write(bytes(HALF))
            machine.run(edu.copy_out, buffer)
            assert buffer.read() == bytes([number]) * HALF
        assert "bounce" in machine.traffic("edu0").mechanism
        assert machine.fault_log == []


def test_with_one_it_reaches_all_memory_and_nothing_is_copied() -> None:
    with opened("?ram=512") as machine:
        edu = started(machine, "edu0")
        for buffer in [machine.allocate(PAGE)[:HALF] for _ in range(16)]:
            buffer.write(NOISE)
            machine.run(edu.copy_in, buffer)
        assert machine.traffic("edu0").mechanism == "remap"


def test_only_one_fault_of_a_device_is_known_and_all_that_was_under_way_is_told(machine: Q35) -> None:
    edu = started(machine, "edu0")
    maps = [edu.tag.create_map(name=f"map {number}") for number in range(3)]
    for map in maps:
        map.load_nowait(machine.allocate(PAGE)[:HALF], Direction.TO_DEVICE)
        map.sync(Direction.TO_DEVICE.pre)
    for map in maps[:2]:  # the second is lost: the VT-d has the first
        machine.run(edu.store, int(map.segments[0][0]), 64)
    assert [fault.map for fault in machine.fault_log] == ["map 0"]
    for map, words in zip(maps, ("is loaded to the device only", "was under way", "was under way"), strict=True):
        with pytest.raises(DeviceFault, match=words):
            map.sync(Direction.TO_DEVICE.post)


def test_under_the_checker(machine: Q35) -> None:
    machine.close()
    with opened(check=True) as machine:
        for name in ("nvme0", "esp0"):
            (disk,) = started(machine, name).disks
            out, back = machine.allocate(5 * PAGE), machine.allocate(5 * PAGE)
            out.write(NOISE * 10)
            machine.run(disk.write, 5, out)
            machine.run(disk.read, 5, back)
            assert back.read() == NOISE * 10
            machine.run(machine.driver(name).stop)
    assert machine.checker is not None
    assert not list(machine.checker.findings)


def test_statistics_have_the_pools_of_all_domains(machine: Q35) -> None:
    assert set(machine.statistics()["iommu"]) == {"nvme0", "edu0", "bridge0"}
    with opened("?iommu=off") as off:
        assert "iommu" not in off.statistics()
        assert off.fault_log == []


def test_options() -> None:
    need("x86_64")
    assert {"iommu", "warp", "faults", "bounce", "seed", "images", "disk_mib", "ram"} <= set(options_of("qemu:q35"))
    with pytest.raises(ConfigurationError, match="iommu=never: give off, on or standing"):
        busdma.open("qemu:q35?iommu=never")
    assert MACHINES["qemu:q35"].module == "busdma.qemu.q35"


def test_a_closed_machine_says_so(machine: Q35) -> None:
    machine.close()
    with pytest.raises(DriverError, match="is closed"):
        machine.driver("edu0")
