"""The main job on every machine of the table, and through devices that are no disks."""

from __future__ import annotations

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
    assert "edu1 of sim:x86-64 did not give back what was written: from byte 7 on it differs" in done.err
