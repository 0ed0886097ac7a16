"""A device reports success, and the machine knows that a transfer went astray: the request ends so, the driver goes on.

The fault is recorded by hand, for the address that a driver's map is given, on machines whose devices do nothing wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import busdma
from busdma.errors import DeviceFault, DriverError
from busdma.machine.faults import FaultWatch
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.memory import DmaMemory
from busdma.sync import PREREAD, PREWRITE, SyncOp
from busdma.translators import HardwareFault

DISKS = [("sim:x86-64", "nvme0"), ("sim:x86-64?iommu=on", "nvme0"), ("sim:alpha", "esp0")]
DISKS += [("sim:sparc", "esp0"), ("sim:mips", "esp0"), ("sim:pc-isa", "aha0"), ("sim:pc-vlb", "bt0")]
BLOCKS = 8  #: of a request


class Striker:
    """An instrument and an IOMMU: the transfers of `device` whose numbers are in `strike` are refused."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.strike: set[int] = set()
        self.addresses: list[int] = []
        self.begun = 0
        self._records: list[HardwareFault] = []

    def pending(self) -> bool:
        return bool(self._records)

    def take_fault(self) -> HardwareFault | None:
        return self._records.pop(0) if self._records else None

    def synced(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        if op & (PREREAD | PREWRITE) and not isinstance(map.buffer, DmaMemory):
            assert self.device in map.tag.path
            if self.begun in self.strike:
                self.addresses.append(int(map.segments[0][0]))
                self._records.append(HardwareFault(self.addresses[-1], True, 7))
            self.begun += 1

    def loaded(self, map: Map) -> None:
        pass

    def deferred(self, map: Map) -> None:
        pass

    def syncing(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        pass

    def unloading(self, map: Map) -> None:
        pass

    def quarantined(self, map: Map) -> None:
        pass

    def idled(self, map: Map) -> None:
        pass

    def refused(self, map: Map | None, error: DriverError) -> None:
        pass


@contextmanager
def rigged(spec: str, device: str, **options: Any) -> Iterator[tuple[Machine, Any, Striker]]:
    """The machine, the device's driver, started, and who decides which of its transfers are refused."""
    with busdma.open(spec, **options) as machine:
        driver = machine.driver(device)
        machine.run(driver.start)
        striker = Striker(device)
        watch = FaultWatch(machine.domain, machine.devices)
        watch.add(striker, {7: (device,)}, name="iommu")
        machine.domain.instruments.insert(0, watch)
        machine.domain.instruments.append(striker)
        yield machine, driver, striker
        machine.run(driver.stop)
        assert machine.leaks() == []
        if machine.checker is not None:
            assert not list(machine.checker.findings)


@pytest.mark.parametrize("check", [False, True], ids=["", "checked"])
@pytest.mark.parametrize(("spec", "device"), DISKS)
def test_a_request_ends_with_the_fault_and_the_others_do_not(spec: str, device: str, check: bool) -> None:
    with rigged(spec, device, check=check) as (machine, driver, striker):
        disk = driver.disks[0]
        size = BLOCKS * disk.block_size
        data = bytes(range(256)) * (6 * size // 256)
        out = machine.allocate(len(data), offset=3 * 512)
        out.write(data)
        machine.run(disk.write, 0, out)
        back = [machine.allocate(size) for _ in range(6)]
        results: list[Exception | None] = [None] * 6

        async def fetch(number: int) -> None:
            try:
                await disk.read(number * BLOCKS, back[number])
            except DeviceFault as fault:
                results[number] = fault

        async def all_at_once() -> None:
            tasks = [machine.runtime.start(fetch, number) for number in range(6)]
            for task in tasks:
                await machine.runtime.park(task.done)

        striker.strike = {striker.begun + 2}
        machine.run(all_at_once)
        faults = [result for result in results if result is not None]
        assert len(faults) == 1
        assert isinstance(faults[0], DeviceFault)
        assert faults[0].address == striker.addresses[0]
        assert f"the iommu refused {device} a write to bus address {striker.addresses[0]:#x}" in str(faults[0])
        for number, result in enumerate(results):
            if result is None:
                assert back[number].read() == data[number * size : (number + 1) * size]
        machine.run(disk.read, 0, back[0])
        assert back[0].read() == data[:size]


@pytest.mark.parametrize(("spec", "device"), DISKS)
def test_many_faults_wear_nothing_out(spec: str, device: str) -> None:
    with rigged(spec, device) as (machine, driver, striker):
        disk = driver.disks[0]
        buffer = machine.allocate(BLOCKS * disk.block_size)
        striker.strike = set(range(striker.begun, striker.begun + 100))
        for _ in range(100):
            with pytest.raises(DeviceFault, match="the iommu refused"):
                machine.run(disk.write, 8, buffer)
        machine.run(disk.write, 8, buffer)


@pytest.mark.parametrize("check", [False, True], ids=["", "checked"])
def test_a_copy_of_edu_ends_with_the_fault_and_the_next_does_not(check: bool) -> None:
    with rigged("sim:x86-64", "edu0", check=check) as (machine, edu, striker):
        out, back = machine.allocate(256), machine.allocate(256)
        out.write(bytes(range(256)))
        machine.run(edu.copy_in, out)
        for _ in range(20):
            striker.strike = {striker.begun}
            with pytest.raises(DeviceFault, match="the iommu refused edu0 a write to bus address") as raised:
                machine.run(edu.copy_out, back)
            assert raised.value.address == striker.addresses[-1]
        machine.run(edu.copy_out, back)
        assert back.read() == bytes(range(256))


def test_a_transfer_that_ends_with_the_fault_is_quarantined() -> None:
    with rigged("sim:x86-64", "edu0") as (machine, edu, striker):
        buffer = machine.allocate(64)
        striker.strike = {striker.begun}
        with (
            pytest.raises(DeviceFault, match="the iommu refused"),
            edu.tag.transfer(buffer, to_device=True) as segments,
        ):
            assert len(segments) == 1
        edu.tag.report_idle()
