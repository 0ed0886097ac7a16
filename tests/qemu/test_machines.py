"""What every QEMU machine promises: data goes there and back, nothing is left behind, and what is wrong is named."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

import busdma
from busdma.drivers.block import BlockDevice, transfer_all
from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.lifecycle import State
from busdma.machine.machine import Machine
from busdma.machines import MACHINES, specs
from busdma.qemu.guest import QemuMachine
from busdma.sync import Direction
from qemu.machines import need

SPECS = [spec for spec in specs() if spec.startswith("qemu:")]
TARGETS = {
    "qemu:pc": "x86_64",
    "qemu:q35": "x86_64",
    "qemu:virt": "aarch64",
    "qemu:clipper": "alpha",
    "qemu:SS-5": "sparc",
    "qemu:SS-10": "sparc",
    "qemu:sun4u": "sparc64",
    "qemu:magnum": "mips64el",
}
PATIENCE = 30  # s; of a wait that ends as soon as what it waits for has happened


def opened(spec: str, **options: object) -> QemuMachine:
    need(TARGETS[spec.partition("?")[0]])
    machine = busdma.open(spec, **options)  # type: ignore[arg-type]
    assert isinstance(machine, QemuMachine)
    return machine


def noise(length: int, seed: int = 7) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(length)


def running(pid: int) -> bool:
    """A process that has ended and was not reaped does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def until(done: object) -> bool:
    assert callable(done)
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(autouse=True)
def own_temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of this test, and of its processes, are where nobody else has any."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    need(TARGETS[chosen.partition("?")[0]])
    return chosen


def test_the_table_has_a_target_for_each() -> None:
    assert {spec.partition("?")[0] for spec in SPECS} == set(TARGETS)
    assert all(MACHINES[name].real_time for name in TARGETS)


def test_it_leaves_nothing_behind(spec: str, own_temporary: Path) -> None:
    """Neither process nor thread nor descriptor nor file, also where drivers were not stopped."""
    with opened(spec):
        pass  # imports, and what the library keeps
    gc.collect()
    threads, fds = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    with opened(spec) as machine:
        pid = machine.qemu.pid
        driver = machine.driver(next(iter(machine.devices)))
        machine.run(driver.start)
        assert running(pid)
    assert not running(pid)
    assert until(lambda: set(threading.enumerate()) <= threads)
    del machine, driver
    gc.collect()  # memory goes with its last view
    assert len(os.listdir("/proc/self/fd")) == fds
    assert list(own_temporary.iterdir()) == []


def test_a_killed_parent_leaves_nothing_behind(spec: str, own_temporary: Path) -> None:
    """SIGKILL in the middle of a transfer: QEMU ends too, and nothing of it has a name in a file system."""
    script = textwrap.dedent(
        f"""
        import busdma
        machine = busdma.open({spec!r})
        driver = machine.driver(next(name for name in machine.devices if name.startswith(("esp", "nvme"))))
        machine.run(driver.start)
        disk = driver.disks[0]
        async def forever():
            buffer = machine.allocate(64 * disk.block_size)
            told = False
            while True:
                await disk.read(0, buffer)
                if not told:
                    print(machine.qemu.pid, flush=True)
                    told = True
        machine.run(forever)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert running(pid)
        sockets = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert not any(target.startswith(("/tmp", "/dev/shm", "/run")) for target in sockets), sockets
    assert until(lambda: not running(pid))
    assert list(own_temporary.iterdir()) == []


def test_an_image_is_what_was_written_when_qemu_has_gone(spec: str, tmp_path: Path) -> None:
    """Another process hashes it; the driver has flushed, and QEMU has ended."""
    data = noise(200 * 512)
    with opened(spec, images=str(tmp_path), disk_mib=1, seed=5) as machine:
        names: list[str] = []
        for name in machine.devices:
            driver = machine.driver(name)
            if not name.startswith(("esp", "nvme")):
                continue
            machine.run(driver.start)
            for disk in driver.disks:
                machine.run(write, machine, disk, data)
                names.append(name)
            machine.run(driver.stop)
        assert machine.leaks() == []
    images = sorted(tmp_path.glob("*.img"))
    assert len(images) >= len(set(names)) > 0
    written = 0
    for image in images:
        done = subprocess.run(
            ["sh", "-c", 'head -c "$2" "$1" | sha256sum', "sh", str(image), str(len(data))],
            check=True,
            capture_output=True,
            text=True,
        )
        written += done.stdout.split()[0] == hashlib.sha256(data).hexdigest()
    assert written >= len(names)


async def write(machine: Machine, disk: BlockDevice, data: bytes) -> None:
    """From the first block on, in pieces; flushed."""
    buffer = machine.allocate(len(data), offset=100)
    buffer.write(data)
    await transfer_all(disk, 0, buffer, Direction.TO_DEVICE, runtime=machine.runtime, chunk=8192)
    await disk.flush()
    buffer.free()


def test_a_qemu_that_dies_in_the_middle_is_named(spec: str) -> None:
    """Every request ends with its last words, what was loaded is quarantined, later calls fail, and it closes."""
    with opened(spec) as machine:
        driver = machine.driver(next(name for name in machine.devices if name.startswith(("esp", "nvme"))))
        machine.run(driver.start)
        disk = driver.disks[0]

        async def forever() -> None:
            buffer = machine.allocate(64 * disk.block_size)
            while True:
                await disk.read(0, buffer)

        tasks = [machine.runtime.start(forever) for _ in range(4)]

        async def kill() -> None:
            buffer = machine.allocate(disk.block_size)
            await disk.read(0, buffer)
            os.kill(machine.qemu.pid, signal.SIGKILL)
            for task in tasks:
                await machine.runtime.park(task.done)

        machine.run(kill)
        for task in tasks:
            with pytest.raises(DeviceFault, match=r"QEMU has gone|out of service"):
                task.result()
        with pytest.raises(DeviceFault, match="killed by signal 9"):
            machine.qtest.flush()
        buffer = machine.allocate(disk.block_size)
        with pytest.raises((DeviceFault, DriverError)):
            machine.run(disk.read, 0, buffer)
        states = {map.state for map in driver.tag.maps} | {
            map.state for child in driver.tag.children for map in child.maps
        }
        assert states <= {State.IDLE, State.QUARANTINED}


def test_force_bounce(spec: str) -> None:
    """All data goes through bounce pages."""
    with opened(spec, force_bounce=1) as machine:
        for name in machine.devices:
            driver = machine.driver(name)
            machine.run(driver.start)
            for disk in driver.disks:
                machine.run(there_and_back, machine, disk, noise(20 * disk.block_size))
            machine.run(driver.stop)
            if driver.disks:
                assert "bounce" in machine.traffic(name).mechanism
                assert not {"direct", "window"} & set(machine.traffic(name).mechanism.split("+"))
        assert sum(zone["bounced_pages"] for zone in machine.statistics()["zones"].values()) > 0


async def there_and_back(machine: Machine, disk: BlockDevice, data: bytes) -> None:
    """Through fresh memory."""
    out, back = machine.allocate(len(data), offset=40), machine.allocate(len(data))
    out.write(data)
    await transfer_all(disk, 3, out, Direction.TO_DEVICE, runtime=machine.runtime, chunk=disk.maxio)
    await transfer_all(disk, 3, back, Direction.FROM_DEVICE, runtime=machine.runtime, chunk=disk.maxio)
    assert back.read() == data
    out.free()
    back.free()


# -- what is wrong is named -------------------------------------------------------------------------------------------


def test_a_missing_qemu_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name in TARGETS:
        assert "apt install qemu-system-" in MACHINES[name].why_not()
        with pytest.raises(ConfigurationError, match="apt install qemu-system-"):
            busdma.open(name)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"binary": "/nonexistent/qemu"}, "there is no /nonexistent/qemu that can be run"),
        ({"binary": "/bin/false"}, r"/bin/false did not start.*it ended with status 1"),
        ({"ram": 7}, "ram=7 is too small"),
        ({"ram": 1 << 20}, "give at most"),
        ({"ram": "much"}, "is not a number"),
        ({"nonsense": 1}, "no option nonsense; there are: .*binary"),
        ({"images": "/nonexistent"}, "there is no such folder; make it first"),
        ({"devices": "no-such-device"}, "did not start.*no-such-device"),
        ({"devices": "e1000,id=nvme0"}, "qemu:pc.* has a device 'nvme0' of its own: give yours another id"),
        ({"force_bounce": 2}, "give 0 or 1"),
    ],
)
def test_bad_options(options: dict[str, object], why: str) -> None:
    need("x86_64")
    threads = set(threading.enumerate())
    with pytest.raises(ConfigurationError, match=f"(?s){why}"):
        busdma.open("qemu:pc", **options)  # type: ignore[arg-type]
    assert until(lambda: set(threading.enumerate()) <= threads)


def test_a_qemu_without_this_machine() -> None:
    """It says so itself."""
    need("x86_64")
    need("sparc")
    with pytest.raises(ConfigurationError, match=r"(?s)qemu-system-sparc did not start.*unsupported machine type"):
        busdma.open("qemu:pc", binary="qemu-system-sparc")


def test_virtual_time_is_refused() -> None:
    need("x86_64")
    with pytest.raises(ConfigurationError, match="keeps real time: choose asyncio or threads"):
        busdma.open("qemu:pc", runtime="virtual")


def test_an_image_that_is_locked(tmp_path: Path) -> None:
    """Two machines on one folder: the second says whose lock it is."""
    why = r'(?s)did not start.*Failed to get "write" lock'
    with opened("qemu:pc", images=str(tmp_path), disk_mib=1), pytest.raises(ConfigurationError, match=why):
        busdma.open("qemu:pc", images=str(tmp_path))


def test_an_image_that_cannot_be_written(tmp_path: Path) -> None:
    """Permission is a matter of who asks: QEMU runs as somebody else, unless we are somebody already."""
    need("x86_64")
    (tmp_path / "nvme0.img").write_bytes(bytes(1 << 20))
    (tmp_path / "nvme0.img").chmod(0o444)
    binary = "qemu-system-x86_64"
    if os.getuid() == 0:
        tmp_path.chmod(0o755)
        script = tmp_path / "unprivileged"
        script.write_text(
            f'#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups {shutil.which(binary)} "$@"\n'
        )
        script.chmod(0o755)
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_mode & 0o001 == 0:
                folder.chmod(folder.stat().st_mode | 0o011)
        binary = str(script)
    with pytest.raises(ConfigurationError, match=r"(?s)did not start.*nvme0.img.*Permission denied"):
        busdma.open("qemu:pc", images=str(tmp_path), binary=binary)


def test_a_device_that_is_not_there() -> None:
    why = r"has no device 'nvme9'.*it has: .*nvme0"
    with opened("qemu:pc") as machine, pytest.raises(ConfigurationError, match=why):
        machine.attachment("nvme9")


def test_a_device_that_reports_an_error(tmp_path: Path) -> None:
    """The host lets QEMU write the first MiB of any file: what lies behind cannot be written, the rest can."""
    need("x86_64")
    binary = tmp_path / "limited"
    binary.write_text('#!/bin/sh\ntrap "" XFSZ\nulimit -f 2048\nexec qemu-system-x86_64 "$@"\n')
    binary.chmod(0o755)
    with opened("qemu:pc", disk_mib=4, binary=str(binary)) as machine:
        for name in ("nvme0", "esp0"):
            driver = machine.driver(name)
            machine.run(driver.start)
            disk = driver.disks[0]
            buffer = machine.allocate(disk.block_size)
            with pytest.raises(DeviceFault, match=f"{name}.* failed|{name}.*(?i:error)"):
                machine.run(disk.write, disk.blocks - 1, buffer)
            machine.run(disk.write, 1, buffer)
            machine.run(driver.stop)
        assert machine.leaks() == []


def test_a_request_longer_than_the_chip_can_count() -> None:
    """It is refused by name; `transfer_all` cuts it up."""
    with opened("qemu:pc") as machine:
        for name in ("nvme0", "esp0"):
            driver = machine.driver(name)
            machine.run(driver.start)
            disk = driver.disks[0]
            long = machine.allocate(disk.maxio + disk.block_size)
            with pytest.raises(DriverError, match=str(disk.maxio)):
                machine.run(disk.read, 0, long)
            machine.run(driver.stop)


def test_more_devices() -> None:
    """Whatever QEMU has: with a driver if there is one for it, and for a driver of one's own in any case."""
    with opened("qemu:pc", devices="edu,id=edu9,addr=0x10;e1000,id=net7") as machine:
        assert machine.devices["edu9"].driver == "edu"
        driver = machine.driver("edu9")
        machine.run(driver.start)
        machine.run(driver.stop)
        found = machine.attachment("net7")
        assert found.config is not None
        assert found.config.read32(0) == 0x100E_8086
        with pytest.raises(ConfigurationError, match=r"no driver in busdma for net7.*machine.attachment\('net7'\)"):
            machine.driver("net7")
