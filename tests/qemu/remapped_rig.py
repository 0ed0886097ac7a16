"""What the machines with an IOMMU that tells devices apart have to show alike."""

from __future__ import annotations

from typing import Any

from busdma.drivers.edu.core import Edu
from busdma.qemu.guest import QemuMachine

PAGE = 4096
HALF = 2048
NOISE = bytes(range(256)) * 8


def started(machine: QemuMachine, name: str) -> Any:
    driver = machine.driver(name)
    machine.run(driver.start)
    return driver


def assert_every_device_moves_data(machine: QemuMachine, way: str) -> None:
    """By this mechanism, with interrupts, and nothing is refused or left over."""
    for name in machine.devices:
        driver = started(machine, name)
        for disk in driver.disks:
            out, back = machine.allocate(40 * PAGE, offset=4), machine.allocate(40 * PAGE)
            out.write(NOISE * 80)
            machine.run(disk.write, 5, out[: disk.maxio // 2])
            machine.run(disk.read, 5, back[: disk.maxio // 2])
            assert back.read()[: disk.maxio // 2] == (NOISE * 80)[: disk.maxio // 2]
        if isinstance(driver, Edu):
            out, back = machine.allocate(HALF), machine.allocate(HALF)
            out.write(NOISE)
            machine.run(driver.echo, out, back)
            assert back.read() == NOISE
        assert machine.traffic(name).mechanism == way
        assert driver.statistics()["interrupts"] > 0
        machine.run(driver.stop)
    assert machine.leaks() == []
    assert machine.fault_log == []
