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

Cli = Callable[..., Done]


def test_every_driver_of_every_machine(busdma: Cli, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(n * 11 & 0xFF for n in range(33_333)))
    done = busdma("matrix", path, "--json")
    assert done.status == 0
    rows = [(row["machine"], row["driver"], row["verified"]) for row in done.document["rows"]]
    assert sorted(rows) == sorted((name, driver, True) for name, entry in specs().items() for driver in entry.drivers)


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


def test_advice_on_the_size_of_a_zone_can_be_followed(busdma: Cli, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    tried = [1]
    while True:
        pages = advised = tried[-1]
        document = busdma("matrix", path, "--machine", "sim:x86-64", "--bounce-pages", pages, "--json").document
        for error in document["errors"]:
            assert error["message"].startswith(f"sim:x86-64?bounce={pages} ")
            found = re.search(r": raise the zone's limit \(--bounce-pages (\d+)\), or ", error["message"])
            assert found is not None
            advised = max(advised, int(found[1]))
        if advised == pages:
            break
        tried.append(advised)
    assert len(tried) > 2
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
