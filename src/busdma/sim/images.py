"""The disks of a simulated machine, in its folder of images."""

from __future__ import annotations

from busdma.machine.images import ImageFolder
from busdma.machine.spec import Options
from busdma.sim.disk import Disk


class Images(ImageFolder):
    """Reads the options of `ImageFolder`. `seed`: where the platters stand."""

    def __init__(self, spec: str, options: Options, *, seed: int) -> None:
        super().__init__(spec, options)
        self._seed = seed
        self._disks: list[Disk] = []

    def disk(self, name: str, number: int, *, blocks: int = 0) -> Disk:
        """The disk in the image `name`, which is made if it is not there. `number` sets its platters apart.

        `blocks`: how large it is then, if that is not the option's to say.
        """
        image, there = self.path(name)
        disk = Disk(image, blocks=None if there else blocks or self.bytes >> 9, seed=self._seed + number)
        self._disks.append(disk)
        return disk

    def close(self) -> None:
        """Write out and close every image; remove them if they are temporary."""
        while self._disks:
            self._disks.pop().close()
        super().close()
