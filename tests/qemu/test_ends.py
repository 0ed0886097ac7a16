"""Commands that never complete, and a QEMU that dies: every request ends, drivers stop, the others go on."""

from __future__ import annotations

import os
import signal

import pytest

import busdma
from busdma.drivers.edu.core import Edu
from busdma.drivers.host import Host
from busdma.errors import DeviceFault, DriverError
from busdma.lifecycle import State
from busdma.machine.machine import Machine
from busdma.qemu.guest import QemuMachine
from busdma.waiting import Task, Waiter
from qemu.machines import need

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND
PATIENCE = 60 * SECOND  # after which a wait has hung


def opened(spec: str, target: str, runtime: str) -> QemuMachine:
    need(target)
    machine = busdma.open(spec, runtime=runtime)
    assert isinstance(machine, QemuMachine)
    return machine


async def pause(machine: Machine, time: int) -> None:
    waiter = Waiter("a pause")
    machine.runtime.call_at(machine.runtime.now() + time, waiter.wake)
    await machine.runtime.park(waiter)


async def ended(machine: Machine, tasks: list[Task[None]]) -> list[Exception | None]:
    """How they ended. DeadlineExpired: one hangs."""
    found: list[Exception | None] = []
    for task in tasks:
        await machine.runtime.park(task.done, machine.runtime.now() + PATIENCE)
        try:
            task.result()
        except (DeviceFault, DriverError) as error:
            found.append(error)
        else:
            found.append(None)
    return found


def throttle(machine: QemuMachine, drive: str, rate: int) -> None:
    """Let `drive` move so many bytes a second; 0: all it can."""
    limits = {"bps": rate, **dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)}
    machine.qemu.monitor.execute("block_set_io_throttle", {"device": drive, **limits})


SLOW = [
    ("qemu:q35?warp=0", "x86_64", "nvme0", "asyncio"),
    ("qemu:virt?warp=0", "aarch64", "nvme0", "threads"),
    ("qemu:pc?warp=0", "x86_64", "esp0", "threads"),
    ("qemu:SS-5", "sparc", "esp0", "asyncio"),
]


@pytest.mark.parametrize(("spec", "target", "device", "runtime"), SLOW)
def test_commands_that_never_complete_end_by_a_reset_and_the_others_go_on(
    spec: str, target: str, device: str, runtime: str
) -> None:
    """A drive that moves a byte a second never ends what comes after the first request, and no abort ends that."""
    with opened(spec, target, runtime) as machine:
        driver = machine.driver(device)
        assert isinstance(driver, Host)

        async def main() -> None:
            await driver.start()
            disk = driver.disks[0]
            out, back = ([machine.allocate(8192, offset=64) for _ in range(5)] for _ in range(2))
            for at, buffer in enumerate(out):
                buffer.write(bytes([at + 1]) * 8192)
                await disk.write(16 * at, buffer)
            throttle(machine, device, 1)
            late = machine.runtime.now() + 300 * MILLISECOND
            tasks = [
                machine.runtime.start(disk.read, 16 * at, buffer, late if at < 2 else None)
                for at, buffer in enumerate(back)
            ]
            while not driver.statistics()["aborts"]:
                await pause(machine, 10 * MILLISECOND)
            while not driver.statistics()["resets"]:
                await pause(machine, 1 * MILLISECOND)
            throttle(machine, device, 0)
            ends = await ended(machine, tasks)
            assert [end for end in ends[:2] if end is not None]
            assert all(end is None for end in ends[2:])  # they were only in the way
            for at, end in enumerate(ends):
                assert end is not None or back[at].read() == out[at].read()
            for at, buffer in enumerate(back):
                await disk.read(16 * at, buffer)
                assert buffer.read() == out[at].read()
            assert driver.statistics()["resets"] == 1
            await driver.stop()

        machine.run(main)
        assert machine.leaks() == []


DYING = [
    ("qemu:pc", "x86_64", "edu0"),
    ("qemu:pc", "x86_64", "fd0"),
    ("qemu:q35", "x86_64", "edu0"),
    ("qemu:virt", "aarch64", "edu0"),
]


@pytest.mark.parametrize("at_once", [False, True], ids=["", "stopped at once"])
@pytest.mark.parametrize("runtime", ["asyncio", "threads"])
@pytest.mark.parametrize(("spec", "target", "device"), DYING)
def test_a_qemu_that_dies_ends_what_its_devices_were_doing(
    spec: str, target: str, device: str, runtime: str, at_once: bool
) -> None:
    with opened(spec, target, runtime) as machine:
        driver = machine.driver(device)

        async def use() -> None:
            buffer = machine.allocate(2048)
            while True:
                if isinstance(driver, Edu):
                    await driver.echo(buffer, buffer)
                else:
                    await driver.disks[0].write(0, buffer)

        async def stop() -> None:
            await driver.stop()

        async def main() -> None:
            await driver.start()
            tasks = [machine.runtime.start(use) for _ in range(4)]
            await pause(machine, 100 * MILLISECOND)
            os.kill(machine.qemu.pid, signal.SIGKILL)
            if at_once:
                await ended(machine, [machine.runtime.start(stop)])
            assert None not in await ended(machine, tasks)
            await ended(machine, [machine.runtime.start(stop)])

        machine.run(main)
        maps = [map for tag in (driver.tag, *driver.tag.children) for map in tag.maps]
        assert {map.state for map in maps} <= {State.IDLE, State.QUARANTINED}
