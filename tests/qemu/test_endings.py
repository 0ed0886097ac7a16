"""Machines that end in odd places, and two at a time: neither a process nor a thread nor a descriptor is left."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from typing import Any

import pytest

import busdma
from busdma.errors import BlockingInsideLoop, ConfigurationError, DeviceFault, DriverError, WaitCancelled
from busdma.qemu.guest import QemuMachine
from busdma.qemu.wire import Wire
from qemu.machines import need
from qemu.test_machines import PATIENCE, SPECS, TARGETS, noise, opened, running, write

SECOND = 10**9  # ns


@pytest.mark.parametrize("runtime", ["asyncio", "threads"])
def test_a_machine_that_a_driver_closes_leaves_no_qemu(runtime: str) -> None:
    """The runtime refuses, or cancels who asks; QEMU ends all the same."""
    machine = opened("qemu:pc", runtime=runtime)

    async def close() -> None:
        machine.close()

    with pytest.raises((BlockingInsideLoop, asyncio.CancelledError)):
        machine.run(close)
    assert machine.closed
    assert not running(machine.qemu.pid)


@pytest.mark.parametrize("runtime", ["asyncio", "threads"])
def test_a_machine_is_closed_by_another_thread_while_a_driver_works(runtime: str) -> None:
    machine = opened("qemu:pc", runtime=runtime)
    driver = machine.driver("nvme0")
    machine.run(driver.start)
    buffer = machine.allocate(4096)
    works = threading.Event()
    errors: list[BaseException] = []

    def close() -> None:
        works.wait(PATIENCE)
        try:
            machine.close()
        except BaseException as error:
            errors.append(error)

    async def work() -> None:
        while True:
            await driver.disks[0].read(0, buffer)
            works.set()

    closers = [threading.Thread(target=close) for _ in range(2)]
    for closer in closers:
        closer.start()
    with pytest.raises((WaitCancelled, DriverError)):
        machine.run(work)
    for closer in closers:
        closer.join()
    assert errors == []
    assert not running(machine.qemu.pid)


@pytest.mark.parametrize("spec", SPECS)
def test_two_machines_of_a_kind_at_the_same_time(spec: str) -> None:
    """Opened by two threads; each has its own data."""
    need(TARGETS[spec.partition("?")[0]])
    machines: dict[int, QemuMachine] = {}
    openers = [threading.Thread(target=lambda n=n: machines.update({n: opened(spec)})) for n in range(2)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    with machines[0], machines[1]:
        disks = []
        for n, machine in machines.items():
            driver = machine.driver(next(name for name in machine.devices if name.startswith(("esp", "nvme"))))
            machine.run(driver.start)
            disks.append(driver.disks[0])
            machine.run(write, machine, disks[-1], noise(8192, seed=n))
        for (n, machine), disk in zip(machines.items(), disks, strict=True):
            back = machine.allocate(8192)
            machine.run(disk.read, 0, back)
            assert back.read() == noise(8192, seed=n)


FORK = """
    import os, sys
    import busdma
    from busdma.errors import DriverError

    with busdma.open("qemu:pc") as machine:
        driver = machine.driver("nvme0")
        machine.run(driver.start)
        child = os.fork()
        if child == 0:  # leaves the block too, and closes the machine
            try:
                machine.qtest.read(0, 4)
            except DriverError as error:
                assert "closed: open another machine" in str(error)
                sys.exit(5)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 5, status
        buffer = machine.allocate(4096)
        machine.run(driver.disks[0].read, 0, buffer)
        machine.run(driver.stop)
    print("the parent has gone on")
"""


def test_a_fork_that_closes_the_machine_does_nothing_to_it() -> None:
    need("x86_64")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(FORK)],
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, "the parent has gone on\n"), done.stderr


def test_no_room_for_another_thread_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread in turn is refused; nothing of what there was by then is left."""
    need("x86_64")
    start = threading.Thread.start
    left = 0

    def limited(thread: threading.Thread) -> None:
        nonlocal left
        if thread.name.startswith("busdma"):
            left -= 1
            if left < 0:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    gc.collect()
    before = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    for room in range(2):  # standard error, the listener
        left = room
        with pytest.raises(ConfigurationError, match=r"can't start new thread.*raise (the limit|limits)"):
            busdma.open("qemu:pc")
        gc.collect()
        assert (set(threading.enumerate()), len(os.listdir("/proc/self/fd"))) == before
    left = 2  # none for the monitor, which is only asked to end QEMU
    with busdma.open("qemu:pc") as machine:
        assert isinstance(machine, QemuMachine)
        pid = machine.qemu.pid
    assert not running(pid)


# -- QEMU dies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("spec", SPECS)
def test_a_qemu_that_dies_while_a_driver_starts(spec: str, part: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start ends with its last words: not with what became of them, and not by the time of a command."""
    count, deadly, pid = 0, -1, 0
    send = Wire._send

    def counted(wire: Wire, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == deadly:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        send(wire, *arguments)

    monkeypatch.setattr(Wire, "_send", counted)
    monkeypatch.setattr("busdma.drivers.nvme.controller.ADMIN_TIME", 3600 * SECOND)
    for _ in range(2):
        with opened(spec) as machine:
            driver = machine.driver(next(name for name in machine.devices if name.startswith(("esp", "nvme"))))
            pid, count = machine.qemu.pid, 0
            if deadly < 0:
                machine.run(driver.start)
                deadly = int(count * part)
                machine.run(driver.stop)
                continue
            with pytest.raises(DeviceFault, match="killed by signal 9"):
                machine.run(driver.start)
            with suppress(DeviceFault):
                machine.run(driver.stop)


@pytest.mark.parametrize("runtime", ["asyncio", "threads"])
@pytest.mark.parametrize("spec", ["qemu:pc", "qemu:clipper", "qemu:sun4u"])
def test_a_qemu_that_dies_while_a_driver_waits(spec: str, runtime: str) -> None:
    """Interrupted or polled, the driver learns of it at once: no command, which have an hour each, times out."""
    with opened(spec, runtime=runtime) as machine:
        driver = machine.driver("nvme0")
        machine.run(driver.start)
        disk = driver.disks[0]
        buffer = machine.allocate(disk.block_size)
        machine.run(disk.read, 0, buffer)  # what translates knows it from here on
        driver._timeout = 3600 * SECOND  # type: ignore[attr-defined]
        commands = driver.statistics()["commands"]
        os.kill(machine.qemu.pid, signal.SIGSTOP)

        async def main() -> None:
            task = machine.runtime.start(disk.read, 0, buffer)
            while driver.statistics()["commands"] == commands:
                await machine.runtime.give_way()
            os.kill(machine.qemu.pid, signal.SIGKILL)
            await machine.runtime.park(task.done, machine.runtime.now() + PATIENCE * SECOND)
            task.result()

        with pytest.raises(DeviceFault, match="killed by signal 9"):
            machine.run(main)
