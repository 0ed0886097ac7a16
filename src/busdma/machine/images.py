"""The disk images of a machine, by two options of its spec: ``images``, the folder they are in, and ``disk_mib``.

Without a folder they are temporary, and gone when the machine is closed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from busdma.errors import ConfigurationError
from busdma.machine.spec import Options


class ImageFolder:
    """Reads its two options; ``close`` it with the machine. ConfigurationError if that is no folder."""

    def __init__(self, spec: str, options: Options) -> None:
        self.bytes: Final = options.number("disk_mib", 64, least=1) << 20  #: of an image that is to be made
        folder = options.text("images", "")
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._folder = Path(folder) if folder else None
        if self._folder is not None and not self._folder.is_dir():
            why = "it is not a folder; name one" if self._folder.exists() else "there is no such folder; make it first"
            raise ConfigurationError(f"{spec}: images={folder}: {why}")

    @property
    def kept(self) -> bool:
        """They outlive the machine."""
        return self._folder is not None

    @property
    def folder(self) -> Path:
        """Where they are; a temporary folder is made when it is first asked for."""
        if self._folder is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="busdma-")
            self._folder = Path(self._scratch.name)
        return self._folder

    def path(self, name: str) -> tuple[Path, bool]:
        """Where the image `name` is, and whether it is there: then it says itself how large it is."""
        image = self.folder / f"{name}.img"
        return image, image.is_file() and image.stat().st_size > 0

    def close(self) -> None:
        """Remove the images if they are temporary."""
        if self._scratch is not None:
            self._scratch.cleanup()
