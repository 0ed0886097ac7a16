"""The main job and a disk that nobody can make larger: FILE goes on it, or it is left out and that is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from busdma.drivers.fdc.core import Fdc
from busdma.errors import DriverError
from cli.conftest import Done

Cli = Callable[..., Done]
FLOPPY = 1_474_560


@pytest.mark.parametrize("more", [0, 1])
def test_a_file_goes_on_a_floppy_or_the_floppy_is_left_out(busdma: Cli, tmp_path: Path, more: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(n * 7 & 0xFF for n in range(FLOPPY + more)))
    images = tmp_path / "images"
    images.mkdir()
    done = busdma("matrix", path, "--machine", "sim:pc-isa", "--images", images, "--json")
    rows = {row["driver"]: row for row in done.document["rows"]}
    assert done.status == 0
    assert all(row["verified"] for row in rows.values())
    assert rows["aha1542"]["bytes"] >= 3 * 2 * FLOPPY
    if more:
        assert "fdc" not in rows
        assert done.err == (
            f"sim:pc-isa: fdc is skipped, because {str(path)!r} has {FLOPPY + 1} bytes, and disk fd0 holds {FLOPPY}, "
            "as all of its kind\n"
        )
        assert (images / "fd0.img").read_bytes() == bytes(FLOPPY)
    else:
        assert rows["fdc"]["bytes"] == 2 * FLOPPY
        assert (rows["fdc"]["mechanism"], rows["fdc"]["sha256"]) == ("bounce", done.document["sha256"])
        assert done.err == ""
        assert (images / "fd0.img").read_bytes() == path.read_bytes()


def test_what_goes_wrong_with_a_floppy_that_is_left_out_is_told(
    busdma: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Fdc.stop

    async def fail(self: Fdc) -> None:
        await stop(self)
        raise DriverError("the motor cannot be stopped")

    monkeypatch.setattr(Fdc, "stop", fail)
    path = tmp_path / "file"
    path.write_bytes(bytes(FLOPPY + 1))
    done = busdma("matrix", path, "--machine", "sim:pc-isa", "--json")
    assert done.status == 1
    rows = {row["driver"]: row["verified"] for row in done.document["rows"]}
    assert rows["fdc"] is False
    (error,) = done.document["errors"]
    assert error["message"] == "sim:pc-isa fdc: the motor cannot be stopped"


def test_an_empty_drive_is_a_failure(busdma: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busdma.sim.chips.fdc.Fdc.insert", _take_out)
    path = tmp_path / "file"
    path.write_bytes(b"x")
    done = busdma("matrix", path, "--machine", "sim:pc-isa", "--json")
    assert done.status == 1
    (error,) = done.document["errors"]
    assert error["message"] == (
        "sim:pc-isa fdc: disk fd0 could not be used: fd0: there is no medium in the drive: put one in"
    )


def _take_out(self: object, medium: object) -> None:
    self.medium, self.changed = None, True  # type: ignore[attr-defined]
