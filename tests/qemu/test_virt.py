"""QEMU's virt board: what an SMMUv3 and message interrupts behind it make of its devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import busdma
from busdma.errors import ConfigurationError, DeviceFault, ResourceShortage
from busdma.machine.machine import Device
from busdma.machine.remapping import WINDOW
from busdma.qemu.virt import DOORBELL, GICV2M, MEMORY, Virt
from busdma.sync import Direction
from busdma.waiting import PENDING
from qemu.idle import cpu_sleeps
from qemu.machines import need
from qemu.remapped_rig import HALF, NOISE, PAGE, assert_every_device_moves_data, started

SETSPI = 0x40


def opened(options: str = "", **more: Any) -> Virt:
    need("aarch64")
    machine = busdma.open(f"qemu:virt{options}", **more)
    assert isinstance(machine, Virt)
    return machine


@pytest.fixture
def machine() -> Iterator[Virt]:
    with opened() as machine:
        yield machine


def test_its_cpu_sleeps_and_it_runs(machine: Virt) -> None:
    assert cpu_sleeps(machine.qemu)
    edu = started(machine, "edu0")
    machine.run(edu.copy_in, bytes(64))  # its timer runs
    assert "PC=0000000000000000" in machine.qemu.monitor.hmp("info registers")  # it has never begun


@pytest.mark.parametrize("options", ["", "?iommu=standing", "?iommu=off", "?warp=0"])
def test_every_device_moves_data(options: str) -> None:
    with opened(options) as machine:
        way = "direct" if options == "?iommu=off" else "remap"
        assert_every_device_moves_data(machine, way)


def test_all_memory_is_beyond_edu_and_only_the_iommu_brings_it_near(machine: Virt) -> None:
    edu = started(machine, "edu0")
    buffer = machine.allocate(PAGE)[:HALF]
    assert buffer.frames.table[buffer.start // PAGE] >= MEMORY > 1 << 28
    map = edu.tag.create_map()
    map.load_nowait(buffer, Direction.TO_DEVICE)
    ((address, _),) = map.segments
    assert address in WINDOW
    map.unload()
    with (
        opened("?iommu=off") as off,
        pytest.raises(ConfigurationError, match=r"no device 'edu0': its 28 address lines reach no memory: .* iommu=on"),
    ):
        off.driver("edu0")


class Counted:
    """A device's pin, which counts who waits for it."""

    def __init__(self) -> None:
        self.waits = 0

    async def wait(self, deadline: int | None = None) -> object:
        self.waits += 1
        raise AssertionError("nobody waits for the pin")


@pytest.mark.parametrize("options", ["", "?iommu=off"])
def test_nvme_interrupts_by_message(options: str) -> None:
    with opened(options) as machine:
        found = machine.devices["nvme0"]
        pin = Counted()
        machine.devices["nvme0"] = Device(
            found.name,
            found.driver,
            found.bus,
            found.tag,
            found.registers,
            pin,
            found.properties,
            found.config,
            found.messages,
        )
        driver = started(machine, "nvme0")
        buffer = machine.allocate(PAGE)
        for lba in range(16):
            machine.run(driver.disks[0].write, lba * 8, buffer)
        assert driver.statistics()["interrupts"] > 0
        assert pin.waits == 0
        machine.run(driver.stop)


def test_the_doorbell_is_in_the_domain_of_who_interrupts_and_of_nobody_else() -> None:
    with opened(devices=f"edu,id=edu9,addr=9,dma_mask={(1 << 40) - 1}") as machine:
        device = machine.devices["nvme0"]
        assert device.messages is not None
        first, second = device.messages.allocate(), device.messages.allocate()
        assert first.address == second.address == DOORBELL + SETSPI
        assert DOORBELL not in WINDOW
        heard, silent = (machine.runtime.start(message.line.wait) for message in (first, second))
        machine.qtest.write(GICV2M + SETSPI, 4, first.data)  # whoever reaches the doorbell interrupts: the CPU does
        machine.run(machine.runtime.park, heard.done)
        edu = started(machine, "edu9")  # and it does not
        machine.run(edu.copy_in, second.data.to_bytes(4, "little"))
        machine.run(edu.store, DOORBELL + SETSPI, 4)
        machine.run(edu.store, GICV2M + SETSPI, 4)
        assert {(fault.device, fault.write) for fault in machine.fault_log} == {("edu9", True)}
        assert {fault.address for fault in machine.fault_log} == {DOORBELL + SETSPI, GICV2M + SETSPI}
        assert silent.done.state == PENDING
        silent.cancel()
        machine.run(machine.runtime.park, silent.done)


def test_a_device_of_the_users_has_a_domain_of_its_own() -> None:
    with opened(devices="edu,id=mine,addr=9") as machine:
        assert machine.domains is not None
        assert machine.domains.sources["mine"] == 9 << 3
        edu = started(machine, "mine")
        machine.run(edu.copy_in, NOISE)
        assert machine.traffic("mine").mechanism == "remap+bounce"  # bytes of this process
        machine.run(edu.store, 0x80_0000, 64)
        assert [fault.device for fault in machine.fault_log] == ["mine"]
    with pytest.raises(ConfigurationError, match=r"put mine on bus=pcie\.0"):
        opened(devices="pci-bridge,id=other,chassis_nr=1;edu,id=mine,bus=other,addr=1")


def test_messages_come_to_an_end(machine: Virt) -> None:
    messages = machine.devices["nvme0"].messages
    assert messages is not None
    given = [messages.allocate() for _ in range(64)]
    assert len({each.data for each in given}) == 64
    with pytest.raises(ResourceShortage, match="all 64 messages of this machine are given out: use a device's pin"):
        messages.allocate()


def test_one_bad_transfer_fills_the_event_ring_and_is_one_fault(machine: Virt) -> None:
    driver = started(machine, "nvme0")
    disk = driver.disks[0]
    buffer = machine.allocate(16 * PAGE)
    map = machine.driver("esp0").tag.create_map(name="under way")
    map.load_nowait(machine.allocate(PAGE), Direction.BOTH)
    map.sync(Direction.BOTH.pre)
    assert machine.domains is not None
    translator = machine.domains.pools["nvme0"].translator

    class Cutter:
        def loaded(self, map: Any) -> None:
            ((address, length),) = map.segments
            translator.clear(int(address), length // PAGE)
            translator.flush(int(address), length // PAGE)

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: None

    cutter = Cutter()
    machine.domain.instruments.append(cutter)
    with pytest.raises(DeviceFault, match="refused nvme0 a write to bus address"):
        machine.run(disk.read, 0, buffer)
    machine.domain.instruments.remove(cutter)
    counts = machine.statistics()["faults"]
    assert counts["records"] > 100
    assert counts["overflows"] > 0
    assert counts["faults"] <= 16
    with pytest.raises(DeviceFault, match="the smmu lost faults while map 'under way'"):
        map.sync(Direction.BOTH.post)
    map.report_idle()
    map.unload()
    machine.run(disk.read, 0, buffer)
    machine.run(driver.stop)


def test_under_the_checker() -> None:
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


def test_each_slot_has_its_interrupt_line(machine: Virt) -> None:
    lines = {name: device.properties["irq"] for name, device in machine.devices.items()}
    assert lines == {"nvme0": 3, "esp0": 4, "edu0": 5}


def test_statistics_have_the_pools_of_all_domains(machine: Virt) -> None:
    assert set(machine.statistics()["iommu"]) == {"nvme0", "esp0", "edu0"}
