"""The main job on every machine of the table, and through devices that are no disks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from busdma.drivers.edu.core import Edu
from busdma.machines import MACHINES, specs
from cli.conftest import Done
from qemu.machines import need

Cli = Callable[..., Done]


def test_every_driver_of_every_machine(busdma: Cli, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(n * 11 & 0xFF for n in range(33_333)))
    done = busdma("matrix", path, "--json")
    assert done.status == 0
    rows = [(row["machine"], row["driver"], row["verified"]) for row in done.document["rows"]]
    assert sorted(rows) == sorted((name, driver, True) for name, entry in specs().items() for driver in entry.drivers)


def test_where_every_machine_is_missing_nothing_was_done(
    busdma: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    done = busdma("matrix", path, "--machine", "qemu:SS-*")
    assert done.status == 1
    assert done.err.startswith("qemu:SS-5 and qemu:SS-10 are skipped, because there is no qemu-system-sparc ")
    assert done.err.endswith("nothing was sent: all that matches 'qemu:SS-*' was skipped\n")


def test_a_qemu_that_was_named_is_tried(busdma: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is on the PATH; and if it cannot be run, that is a failure of what was asked for."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    document = busdma("matrix", path, "--machine", "qemu:SS-*?binary=/nowhere/qemu", "--json").document
    assert [error["error"] for error in document["errors"]] == ["ConfigurationError"] * 2
    assert all("/nowhere/qemu" in error["message"] for error in document["errors"])


def test_a_device_without_a_driver_is_left_out(busdma: Cli, tmp_path: Path) -> None:
    need("x86_64")
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    done = busdma("matrix", path, "--machine", "qemu:pc?devices=e1000,id=net7", "--json")
    assert done.status == 0
    assert "net7 is skipped, because there is no driver in busdma for it" in done.err
    assert {row["driver"] for row in done.document["rows"]} == set(MACHINES["qemu:pc"].drivers)
    done = busdma("explain", "--machine", "qemu:pc?devices=e1000,id=net7", "--device", "net7")
    assert done.out.endswith("with the limits of the bus\n")
    done = busdma("explain", "--machine", "qemu:pc?devices=e1000,id=net7", "--device", "net7", "--driver")
    assert "no driver in busdma for net7" in done.err


def test_a_file_goes_through_a_device_that_is_no_disk(busdma: Cli, tmp_path: Path) -> None:
    """More than the device holds: it goes through in rounds."""
    path = tmp_path / "file"
    path.write_bytes(bytes(n * 7 & 0xFF for n in range(10_001)))
    done = busdma("matrix", path, "--machine", "sim:x86-64", "--json")
    rows = {row["driver"]: row for row in done.document["rows"]}
    assert done.status == 0
    assert set(rows) == set(MACHINES["sim:x86-64"].drivers) >= {"des", "edu", "nvme"}
    assert all(row["verified"] for row in rows.values())
    assert rows["edu"]["mechanism"] == "bounce"
    assert rows["edu"]["bytes"] == 2 * 2 * 10_001  # there and back, through both devices
    assert rows["edu"]["bounced_pages"] > 0


def test_a_device_that_is_no_disk_and_gives_back_something_else(
    busdma: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = Edu.echo

    async def garble(self: Edu, out: Any, back: Any, deadline: int | None = None) -> None:
        await echo(self, out, back, deadline)
        if self.name == "edu1":
            back.write(bytes([back[7] ^ 1]), 7)

    monkeypatch.setattr(Edu, "echo", garble)
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    done = busdma("matrix", path, "--machine", "sim:x86-64")
    assert done.status == 1
    assert "sim:x86-64 edu: edu1 did not give back what was written: from byte 7 on it differs" in done.err


@pytest.mark.parametrize("size", [100, 200_000])  # the larger one at an odd address: copied as a whole
def test_advice_on_the_size_of_a_zone_can_be_followed(busdma: Cli, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    tried = [1]
    while True:
        pages = advised = tried[-1]
        document = busdma("matrix", path, "--machine", "sim:x86-64", "--bounce-pages", pages, "--json").document
        for error in document["errors"]:
            assert error["message"].startswith(f"sim:x86-64?bounce={pages} ")
            found = re.search(r": raise (?:the zone's|its) limit \(--bounce-pages (\d+)\), or ", error["message"])
            assert found is not None
            advised = max(advised, int(found[1]))
        if advised == pages:
            break
        tried.append(advised)
    assert len(tried) > 1
    assert document["ok"]


def test_a_map_that_cannot_be_reserved_is_told_by_machine_driver_and_tag(busdma: Cli, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    document = busdma("matrix", path, "--machine", "sim:alpha", "--bounce-pages", "1", "--json").document
    (error,) = document["errors"]
    assert error["error"] == "ConstraintError"
    tag = "alpha/pci0/net0/data/transmit"
    start = f"sim:alpha?bounce=1 pcnet: cannot reserve a map of tag {tag}: a buffer of 1514 bytes, wherever it lies, "
    assert error["message"].startswith(f"{start}needs 2 bounce pages, and bounce zone ")


def test_the_help_names_the_drivers_that_are_left_out(busdma: Cli) -> None:
    text = busdma("matrix", "--help").out
    assert " ".join(text.split()).count("What only brings data in is left out: bt848.") == 1
