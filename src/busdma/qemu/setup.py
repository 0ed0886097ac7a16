"""What a QEMU machine is made of before it runs: the options of its spec, a command line, and what QEMU inherits.

Options of every one: ``bounce``, ``force_bounce`` and ``seed`` (see `busdma.machine.local`), ``images`` and
``disk_mib`` (see `busdma.machine.images`), ``ram`` (MiB of memory), ``binary`` (another QEMU than the one on the PATH),
``devices`` (more devices, as QEMU's ``-device`` takes them, with semicolons between them) and ``spin`` (us that whoever
waits for QEMU, or for an NVMe command, looks himself before he sleeps: answers come sooner, a CPU is kept busy, 0).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from busdma.errors import ConfigurationError
from busdma.machine.images import ImageFolder
from busdma.machine.local import Numbers
from busdma.machine.spec import Options
from busdma.qemu.monitor import missing as no_monitor
from busdma.qemu.process import Qemu, find, image
from busdma.qemu.ram import SharedRam
from busdma.waiting import Runtime

ROOM: Final = 2048  #: MiB: the most memory that every machine has in one piece


def missing(target: str) -> str:
    """Why this host has no machines of `target`; "" if it has."""
    try:
        find(target)
    except ConfigurationError as error:
        return str(error)
    return no_monitor()


class Setup:
    """Reads the common options. The machine asks for its own before `ready`, and adds its parts afterwards.

    `ram`: MiB, unless told; `most`: the most that the machine takes. What was opened for it is closed by `close`, or if
    the machine cannot be made.
    """

    def __init__(
        self, spec: str, runtime: Runtime, options: Options, target: str, *, ram: int = 64, most: int = ROOM
    ) -> None:
        self.spec = spec
        self.runtime = runtime
        self.target = target
        self.check: Final = options.check
        self.numbers = Numbers(options)
        self.images = ImageFolder(spec, options)
        self._options = options
        self._mib = options.number("ram", ram, least=8)
        self._binary = options.text("binary", "")
        self.spin: Final = options.number("spin", 0) * 1000  #: ns
        self.devices = [line for line in options.text("devices", "").split(";") if line]
        if self._mib > most:
            raise ConfigurationError(f"{spec}: ram={self._mib}: give at most {most} MiB")
        self._command: list[str] = []
        self._fds: list[int] = []
        self._opened = ExitStack()
        self._qemu: Qemu | None = None

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self._mib << 20

    def ask_to_warp(self) -> None:
        """Ask for the option ``warp``: while the CPU idles, the devices' timers do not wait for real time."""
        if self._options.flag("warp", True):
            self.add("-icount", "shift=0,sleep=off")

    def ready(self) -> None:
        """Every option has been asked for. ConfigurationError for one that the machine does not have."""
        self._options.finish()
        self._opened.callback(self.images.close)

    def add(self, *arguments: str) -> None:
        """More of the command line."""
        self._command += arguments

    def inherit(self, name: str, data: bytes = b"", *, size: int = 0) -> str:
        """A file that QEMU inherits, such as firmware, of at least `size` bytes; its path there."""
        fd = image(name, data, size=size)
        self._opened.callback(os.close, fd)
        self._fds.append(fd)
        return f"/proc/self/fd/{fd}"

    def drive(self, name: str, size: int = 0) -> str:
        """The disk in the image `name`, made if it is not there with `size` bytes, or what the spec says; its drive's
        name.

        It belongs to QEMU: whoever looks at the image waits until the machine is closed. Without a folder of images it
        has no name in a file system, and is gone with QEMU however that ends. ConfigurationError: it cannot be made.
        """
        size = size or self.images.bytes
        if not self.images.kept:
            where = self.inherit(name, size=size)
        else:
            path, there = self.images.path(name)
            try:
                if not there:
                    with open(path, "wb") as file:
                        file.truncate(size)
            except OSError as error:
                raise ConfigurationError(
                    f"{self.spec}: cannot make the image {path} ({error.strerror}): give another folder with images="
                ) from None
            where = str(path.absolute()).replace(",", ",,")
        self.add("-drive", f"if=none,id={name},format=raw,file={where}")
        return name

    def scsi_disks(self, bus: str, name: str, addresses: Sequence[int]) -> None:
        """Disks on QEMU's SCSI bus `bus`: the image `name` at the first address, `name`-address at each other one.

        Errors as `drive`.
        """
        for address in addresses:
            drive = self.drive(name if address == addresses[0] else f"{name}-{address}")
            self.add("-device", f"scsi-hd,bus={bus},scsi-id={address},drive={drive}")

    def nvme(self, name: str, place: str) -> None:
        """An NVMe controller with the disk in the image `name`. `place`: QEMU's ``addr`` and, if need be, ``bus``.

        Errors as `drive`.
        """
        self.add("-device", f"nvme,serial={name},drive={self.drive(name)},{place}")

    def am53c974(self, name: str, place: str) -> None:
        """A SCSI controller with the disk in the image `name` at address 0. `place` and errors as `nvme`."""
        self.add("-device", f"am53c974,id={name},{place}")
        self.scsi_disks(f"{name}.0", name, (0,))

    def memory(self, *, main: bool = True) -> SharedRam:
        """The machine's memory, which QEMU and this process share. Not `main`: an object for one of its devices."""
        ram = self._opened.enter_context(SharedRam(self.size))
        self._fds.append(ram.fd)
        self.add(*(ram.arguments() if main else ram.back_end()))
        return ram

    def start(self) -> Qemu:
        """QEMU, running; the same one at every call. ConfigurationError, with its last words: it does not start."""
        if self._qemu is None:
            for device in self.devices:  # last: they may be behind what the machine has, and take no slot from it
                self.add("-device", device)
            self._qemu = self._opened.enter_context(
                Qemu(self.target, self._command, binary=self._binary, fds=self._fds, spin=self.spin)
            )
        return self._qemu

    def close(self) -> None:
        """QEMU ends; files and memory are let go, temporary images removed."""
        self._opened.close()
