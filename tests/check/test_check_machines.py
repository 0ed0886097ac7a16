"""The hazards that the checker names are those of the machines: each is planted on one that really has it."""

from __future__ import annotations

from contextlib import suppress
from typing import cast

import pytest

import busdma
import busdma.machines
from busdma.drivers.block import transfer_all
from busdma.errors import BusdmaError
from busdma.machine.attachment import MmioRegisters
from busdma.machine.machine import Machine
from busdma.sync import POSTREAD, PREREAD
from busdma.translators.cia import CiaSgmap
from busdma.translators.dmar import DmarDomain
from busdma.translators.rc4030 import Rc4030Table
from busdma.translators.sun4m import Sun4mTable
from busdma.waiting import Waiter
from check.bench import TO, pattern

BLOCKS = 128


@pytest.mark.parametrize(
    ("spec", "translator"),
    [
        ("sim:alpha", CiaSgmap),
        ("sim:mips", Rc4030Table),
        ("sim:sparc", Sun4mTable),
        ("sim:x86-64?iommu=on", DmarDomain),
    ],
)
def test_every_translator_that_is_not_flushed_is_found(
    spec: str, translator: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translator, "flush", lambda *_: None)
    with busdma.open(spec, check=True) as machine:
        others = busdma.machines.MACHINES[spec.partition("?")[0]].others
        for name in [name for name, device in machine.devices.items() if device.driver not in others]:
            driver = machine.driver(name)
            with suppress(BusdmaError):  # who finds another's commands may do anything
                machine.run(driver.start)
                for disk in list(driver.disks) * 3:
                    buffer = machine.allocate(BLOCKS * disk.block_size)
                    machine.run(
                        lambda disk=disk, buffer=buffer: transfer_all(disk, 0, buffer, TO, runtime=machine.runtime)
                    )
                    buffer.free()
            with suppress(BusdmaError):
                machine.run(driver.stop)
        assert machine.checker is not None
        found = {finding.kind.label for finding in machine.checker.findings}
    assert "stale-translation" in found


@pytest.mark.parametrize("check", [False, True])
def test_a_store_beside_what_a_device_writes_in_a_cache_line_is_lost(check: bool) -> None:
    data = pattern(16)
    with busdma.open("sim:mips", check=check) as machine:
        tag = next(iter(machine.devices.values())).tag.derive("ring")
        ring = tag.alloc(4096)
        ring.sync(PREREAD, 0, 16)
        ring.view[16:32] = data
        ring.sync(POSTREAD, 0, 16)
        assert bytes(ring.view[16:32]) != data
        ring.free()
        labels = [finding.kind.label for finding in machine.checker.findings] if machine.checker else None
    assert labels == (["shared-line"] if check else None)


def test_equal_bus_addresses_behind_two_translators_are_told_apart() -> None:
    with busdma.open("sim:x86-64?iommu=on", check=True) as machine:
        used = {}
        for name in ("edu0", "edu1"):
            edu = machine.attachment(name)
            assert edu.config is not None
            edu.config.write16(0x04, 0x0006)  # answer, and be a bus master
            map = edu.tag.create_map(name=f"of {name}")
            map.load_nowait(machine.allocate(64), TO)
            used[name] = map.segments[0][0]
            map.unload()
            registers = cast(MmioRegisters, edu.registers)
            registers.write64(0x80, used[name])  # source
            registers.write64(0x88, 0x40000)  # its memory
            registers.write64(0x90, 64)
            registers.write32(0x98, 1)  # start
            machine.run(pause, machine, 1_000_000_000)
        assert used["edu0"] == used["edu1"]
        assert machine.checker is not None
        found = [(each.kind.label, each.device, each.map) for each in machine.checker.findings]
    assert found == [("after-unload", "edu0", "of edu0"), ("after-unload", "edu1", "of edu1")]


async def pause(machine: Machine, time: int) -> None:
    """Let `time` ns pass."""
    waiter = Waiter("a timer")
    machine.runtime.call_at(machine.runtime.now() + time, waiter.wake)
    await machine.runtime.park(waiter)
