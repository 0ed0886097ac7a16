"""The disks on the SCSI bus of a board's own controller, and their option.

``disks``: 1, or 2 for one more at SCSI address 3, in an image whose name ends in ``-3``.
"""

from __future__ import annotations

from typing import Final

from busdma.errors import ConfigurationError
from busdma.machine.spec import Options
from busdma.qemu.setup import Setup

ADDRESSES: Final = (0, 3)


class BoardDisks:
    """Reads the option. ConfigurationError: it asks for more disks than there are places."""

    def __init__(self, spec: str, options: Options) -> None:
        count = options.number("disks", 1, least=1)
        if count > len(ADDRESSES):
            raise ConfigurationError(f"{spec}: disks={count}: give at most {len(ADDRESSES)}")
        self._addresses = ADDRESSES[:count]

    def plug(self, setup: Setup, name: str) -> None:
        """Have QEMU connect them: images as `Setup.scsi_disks` has them, and its errors."""
        setup.scsi_disks("scsi.0", name, self._addresses)
