"""The main job: what it writes, what it finds wrong, and how it says so."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from busdma.cli import job, matrix, roundtrip
from busdma.cli.job import Job
from busdma.cli.machines import select
from busdma.cli.roundtrip import Source
from busdma.machine.machine import DataTraffic, Machine
from busdma.machines import MACHINES
from busdma.qemu.guest import QemuMachine
from busdma.sim.disk import Disk
from busdma.sim.pc_isa import PcIsa
from cli.conftest import Done
from qemu.machines import need

Cli = Callable[..., Done]
SIZE = 200_001
DISKS = 3
COLUMNS = [
    "machine",
    "driver",
    "mechanism",
    "bytes",
    "segments",
    "bounced_pages",
    "deferred",
    "sha256",
    "verified",
    "seconds",
]


def padded(size: int) -> int:
    return -(-size // 512) * 512


@pytest.fixture(autouse=True)
def default_machine() -> Iterator[None]:
    """Whatever machines there are: a test that names none means this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "select", lambda pattern: select("sim:pc-isa" if pattern == "*" else pattern))
        yield


@pytest.fixture(autouse=True)
def only_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One driver, and so one row: nothing goes through the DES card, or to the floppy."""
    pc = dataclasses.replace(MACHINES["sim:pc-isa"], others=("des", "fdc"))
    monkeypatch.setattr(matrix, "MACHINES", {**MACHINES, "sim:pc-isa": pc})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(random.Random(1998).randbytes(SIZE))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def only_row(done: Done) -> dict[str, Any]:
    (row,) = done.document["rows"]
    assert isinstance(row, dict)
    return row


def test_one_byte(busdma: Cli, tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"x")
    done = busdma("matrix", path, "--json")
    row = only_row(done)
    assert done.status == 0
    assert done.err == ""
    assert list(row) == COLUMNS
    assert (row["machine"], row["driver"], row["verified"]) == ("sim:pc-isa", "aha1542", True)
    assert row["sha256"] == done.document["sha256"] == hashlib.sha256(b"x").hexdigest()
    assert row["bytes"] == 2 * DISKS * 512
    assert row["segments"] >= 2 * DISKS
    assert done.document["size"] == 1


@pytest.mark.parametrize("runtime", ["virtual", "asyncio", "threads"])
def test_every_runtime_gives_the_file_back(busdma: Cli, file: Path, runtime: str) -> None:
    done = busdma("matrix", file, "--runtime", runtime, "--json")
    row = only_row(done)
    assert done.status == 0
    assert row["verified"] is True
    assert row["sha256"] == sha256(file)
    assert row["mechanism"] == "direct+bounce"
    assert row["bytes"] == 2 * DISKS * padded(SIZE)
    assert row["bounced_pages"] > 0
    assert row["segments"] > 2 * DISKS * (SIZE >> 16)
    assert row["seconds"] > 0
    assert done.document["runtime"] == runtime


def test_a_small_zone_defers_loads_and_takes_longer(busdma: Cli, file: Path) -> None:
    wide = only_row(busdma("matrix", file, "--json"))
    done = busdma("matrix", file, "--bounce-pages", 17, "--json")
    row = only_row(done)
    assert done.status == 0
    assert row["machine"] == "sim:pc-isa?bounce=17"
    assert row["deferred"] > wide["deferred"]
    assert row["sha256"] == wide["sha256"] == sha256(file)
    assert row["seconds"] > wide["seconds"]  # virtual time: the same at every run


def test_a_request_at_an_odd_offset_needs_17_pages(busdma: Cli, file: Path) -> None:
    offsets = {offset % 4096 for offset in roundtrip.OFFSETS}
    assert len(offsets) == len(roundtrip.OFFSETS)
    assert any(-(-(offset + 65536) // 4096) == 17 for offset in offsets)
    assert any(-(-(offset + 65536) // 4096) == 16 for offset in offsets)
    few = busdma("matrix", file, "--bounce-pages", 3, "--json")
    assert few.status == 1
    assert only_row(few)["verified"] is False
    error = few.document["errors"][0]
    assert error["error"] == "MappingRefused"
    assert error["message"].startswith("sim:pc-isa?bounce=3 aha1542: cannot load ")


def test_windows_join_without_a_seam(busdma: Cli, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roundtrip, "WINDOW", 65536)
    row = only_row(busdma("matrix", file, "--json"))
    assert row["verified"] is True
    assert row["sha256"] == sha256(file)
    assert row["bytes"] == 2 * DISKS * padded(SIZE)


def test_the_table_for_people(busdma: Cli, file: Path) -> None:
    done = busdma("matrix", file)
    head, row, foot = done.out.splitlines()
    assert head.split() == COLUMNS
    assert row.split()[:3] == ["sim:pc-isa", "aha1542", "direct+bounce"]
    assert row.split()[8] == "yes"
    assert row.split()[7] == sha256(file)[:12]
    assert foot == f"FILE has {SIZE} bytes, sha256 {sha256(file)}"
    assert done.err == ""


def test_images_stay_and_another_process_finds_the_file_in_them(busdma: Cli, file: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    done = busdma("matrix", file, "--images", images)
    assert done.status == 0
    assert done.out.splitlines()[-1] == f"the disk images are kept in {images}"
    assert sorted(path.name for path in images.iterdir()) == [
        "aha0.img",
        "aha1.img",
        "aha2.img",
        "fd0.img",
    ]
    code = "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read(int(sys.argv[1]))).hexdigest())"
    for image in images.glob("aha*"):
        with image.open("rb") as stream:
            found = subprocess.run(
                [sys.executable, "-I", "-c", code, str(SIZE)], stdin=stream, capture_output=True, text=True, check=True
            )
            assert found.stdout.strip() == sha256(file)
            stream.seek(SIZE)
            assert stream.read(4096) == bytes(4096)


def test_an_image_that_exists_keeps_its_size(busdma: Cli, file: Path, tmp_path: Path) -> None:
    assert busdma("matrix", file, "--images", tmp_path, "--machine", "sim:pc-isa?disk_mib=1").status == 0
    assert busdma("matrix", file, "--images", tmp_path).status == 0
    assert (tmp_path / "aha1.img").stat().st_size == 1 << 20


# -- what it finds ----------------------------------------------------------------------------------------------------


def test_one_wrong_byte_is_found(busdma: Cli, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = 70_000
    read = Disk.read

    def corrupt(self: Disk, lba: int, count: int) -> bytes:
        found = bytearray(read(self, lba, count))
        if (self.path or "").endswith("aha1.img") and lba * 512 <= bad < (lba + count) * 512:
            found[bad - lba * 512] ^= 1
        return bytes(found)

    monkeypatch.setattr(Disk, "read", corrupt)
    done = busdma("matrix", file, "--json")
    row = only_row(done)
    assert done.status == 1
    assert row["verified"] is False
    wrong = bytearray(file.read_bytes())
    wrong[bad] ^= 1
    assert row["sha256"] == hashlib.sha256(wrong).hexdigest()
    (error,) = done.document["errors"]
    assert error["error"] == "Mismatch"
    assert error["message"].startswith("sim:pc-isa aha1542: aha1:0 did not give back")
    assert f"from byte {bad} on" in error["message"]
    assert error["message"] in done.err


def test_a_device_that_writes_nothing_is_found(busdma: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(5000))  # the disks are full of zeros, and so is fresh memory
    monkeypatch.setattr("busdma.sim.bus.isa.BusMaster.dma_write", _forget_data)
    done = busdma("matrix", path)
    assert done.status == 1
    assert "Mismatch" in done.err


def _forget_data(self: Any, address: int, data: bytes) -> None:
    """Let mailboxes and CCBs through, and nothing else."""
    bus = self._bus
    if bus.frames.owner_of(address) == "dma-safe":
        bus.memory[address : address + len(data)] = data


def test_traffic_that_the_bus_did_not_see_is_found(busdma: Cli, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PcIsa, "traffic", lambda self, device: DataTraffic(0, 0, ""))
    done = busdma("matrix", file, "--json")
    assert done.status == 1
    assert only_row(done)["verified"] is False
    assert f"only 0 of {2 * DISKS * padded(SIZE)} bytes crossed the bus" in done.err


def test_a_leak_is_a_failure(busdma: Cli, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaks = iter([[], ["map '7' of tag pc/isa is loaded"]])
    monkeypatch.setattr(Machine, "leaks", lambda self: next(leaks, []))
    done = busdma("matrix", file)
    assert done.status == 1
    assert "Leak: sim:pc-isa aha1542: map '7' of tag pc/isa is loaded after aha1542 was stopped" in done.err
    assert " NO " in done.out


def test_a_buffer_that_is_not_freed_is_a_leak(busdma: Cli, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Job._copy

    async def forgetful(self: Job, disks: list[Any], echoes: list[Any]) -> None:
        await copy(self, disks, echoes)
        self.machine.allocate(8192)

    monkeypatch.setattr(job.Job, "_copy", forgetful)
    done = busdma("matrix", file)
    assert done.status == 1
    assert "Leak: sim:pc-isa aha1542: 2 kernel frames were not freed" in done.err


def test_a_machine_that_dies_is_told_of_each_driver_and_nobody_is_blamed(
    busdma: Cli, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("x86_64")
    copy = Job._copy

    async def deadly(self: Job, disks: list[Any], echoes: list[Any]) -> None:
        assert isinstance(self.machine, QemuMachine)
        os.kill(self.machine.qemu.pid, signal.SIGKILL)
        await copy(self, disks, echoes)

    monkeypatch.setattr(job.Job, "_copy", deadly)
    done = busdma("matrix", file, "--machine", "qemu:pc", "--json")
    assert done.status == 1
    assert [row["verified"] for row in done.document["rows"]] == [False] * 4
    for driver in ("nvme", "ncr53c9x", "edu", "fdc"):
        assert f"qemu:pc {driver}: " in done.err
    assert "killed by signal 9" in done.err
    assert "Leak" not in done.err
    assert "cannot be freed" not in done.err


def test_a_file_that_changes_meanwhile(busdma: Cli, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Changing(Source):
        def __init__(self, path: str) -> None:
            super().__init__(path)
            Path(path).write_bytes(bytes(SIZE))

    monkeypatch.setattr(matrix, "Source", Changing)
    done = busdma("matrix", file)
    assert done.status == 1
    assert "ConfigurationError" in done.err
    assert "changed while it was copied" in done.err


def test_a_file_that_gets_shorter(file: Path) -> None:
    with Source(str(file)) as source:
        os.truncate(file, 10)
        assert source.read(0, 10) == file.read_bytes()
        with pytest.raises(ValueError, match="changed while it was copied"):
            source.read(0, 11)


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "No such file or directory"),
        ("folder", "is a directory; give a file"),
        ("empty", "is empty"),
        ("pipe", "is a device or a pipe"),
    ],
)
def test_files_that_cannot_be_used(busdma: Cli, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    done = busdma("matrix", tmp_path / name, "--json")
    assert done.status == 1
    (error,) = done.document["errors"]
    assert error["error"] == "ConfigurationError"
    assert words in error["message"]
    assert done.err == f"busdma matrix: ConfigurationError: {error['message']}\n"
    assert done.document["rows"] == []


def test_an_unreadable_file(busdma: Cli, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    done = busdma("matrix", file)
    monkeypatch.undo()
    assert done.status == 1
    assert f"cannot read '{file}': Permission denied" in done.err


def test_a_disk_that_is_too_small_and_the_advice(busdma: Cli, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes((1 << 20) + 1))
    done = busdma("matrix", path, "--machine", "sim:pc-isa?disk_mib=1", "--json")
    assert done.status == 1
    (error,) = done.document["errors"]
    assert error["error"] == "ConfigurationError"
    for word in ("1048577 bytes", "holds 1048576", "--machine 'sim:pc-isa?disk_mib=2'"):
        assert word in error["message"]
    row = only_row(done)
    assert (row["verified"], row["bytes"], row["sha256"]) == (False, 0, "")
    assert busdma("matrix", path, "--machine", "sim:pc-isa?disk_mib=2").status == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--machine", "vax"), "no machine matches 'vax'; there are: sim:pc-isa"),
        (("--machine", "sim:pc-isa?bunce=3"), "no option bunce; there are: bounce"),
        (("--machine", "sim:pc-isa?seed=x"), "seed=x is not a number"),
        (("--bounce-pages", "0"), "bounce=0 is too small"),
        (("--images", "nowhere"), "--images nowhere: there is no such folder; make it first"),
        (("--images", __file__), f"--images {__file__}: it is not a folder; name one"),
        (("--machine", "pc-isa"), "no machine matches 'pc-isa'; did you mean 'sim:pc-isa'?"),
        (("--machine", "sim:pc-isa?bounce"), "sim:pc-isa?bounce: options are written ?name=value&name=value"),
        (("--machine", "sim:pc-isa?bounce=2&bounce=3"), "option bounce is given twice; give it once"),
    ],
)
def test_machines_that_do_not_exist(busdma: Cli, file: Path, options: tuple[str, ...], words: str) -> None:
    done = busdma("matrix", file, *options)
    assert done.status == 1
    assert done.err.startswith("busdma matrix: ConfigurationError: ")
    assert words in done.err
    assert "verified" not in done.out


def test_the_file_is_not_overwritten_where_it_is_an_image(busdma: Cli, file: Path, tmp_path: Path) -> None:
    (tmp_path / "aha2.img").symlink_to(file)
    os.truncate(file, 1 << 20)
    before = sha256(file)
    done = busdma("matrix", file, "--images", tmp_path)
    assert done.status == 1
    assert f"'{file}' is the image of disk aha2 in {tmp_path}" in done.err
    assert sha256(file) == before


def test_images_of_two_machines_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would overwrite each other"):
        matrix._folder(str(tmp_path), ["sim:a", "sim:b"])


@pytest.mark.parametrize(
    "argv", [("matrix",), ("matrix", "x", "--runtime", "none"), ("matrix", "x", "--bounce-pages", "y")]
)
def test_a_wrong_command_line_is_status_2(busdma: Cli, argv: tuple[str, ...]) -> None:
    done = busdma(*argv)
    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith("usage: busdma matrix")


# -- interrupts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A shell has the programs it runs in the background ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("runtime", ["virtual", "asyncio", "threads"])
def test_an_interrupt_ends_the_work_in_order(
    busdma: Cli, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    moved, machines = Job._moved, []
    calls = 0

    def interrupt(self: Job, line: Callable[[], str]) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            machines.append(self.machine)
            os.kill(os.getpid(), signal.SIGINT)
        if calls >= 5:
            while not self.interrupts.noted:  # another thread may run the handler
                pass
        moved(self, line)

    monkeypatch.setattr(Job, "_moved", interrupt)
    done = busdma("matrix", file, "--images", tmp_path, "--runtime", runtime)
    assert done.status == 130
    assert done.out == ""
    assert done.err == "busdma matrix: KeyboardInterrupt: interrupted; what was switched on has been switched off\n"
    (machine,) = machines
    assert machine.closed
    assert machine.leaks() == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    assert busdma("matrix", file, "--images", tmp_path, "--runtime", runtime).status == 0
