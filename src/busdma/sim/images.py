"""The disk images of a machine, by two options of its spec: ``images``, the folder they are in, and ``disk_mib``.

Without a folder they are temporary, and gone when the machine is closed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from busdma.errors import ConfigurationError
from busdma.machine.spec import Options
from busdma.sim.disk import Disk


class Images:
    """Reads its two options; ``close`` it with the machine. ConfigurationError if that is no folder."""

    def __init__(self, spec: str, options: Options, *, seed: int) -> None:
        self._blocks = options.number("disk_mib", 64, least=1) << 11
        folder = options.text("images", "")
        self._seed = seed
        self._disks: list[Disk] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._folder = Path(folder) if folder else None
        if self._folder is not None and not self._folder.is_dir():
            why = "it is not a folder; name one" if self._folder.exists() else "there is no such folder; make it first"
            raise ConfigurationError(f"{spec}: images={folder}: {why}")

    @property
    def folder(self) -> Path:
        """Where they are; a temporary folder is made when it is first asked for."""
        if self._folder is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="busdma-")
            self._folder = Path(self._scratch.name)
        return self._folder

    def disk(self, name: str, number: int) -> Disk:
        """The disk in the image `name`, which is made if it is not there. `number` sets its platters apart."""
        image = self.folder / f"{name}.img"
        there = image.is_file() and image.stat().st_size > 0  # then it says itself how large it is
        disk = Disk(image, blocks=None if there else self._blocks, seed=self._seed + number)
        self._disks.append(disk)
        return disk

    def close(self) -> None:
        """Write out and close every image; remove them if they are temporary."""
        while self._disks:
            self._disks.pop().close()
        if self._scratch is not None:
            self._scratch.cleanup()
