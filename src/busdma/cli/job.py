"""FILE through all devices of one driver of one machine, and the row of what was counted meanwhile.

Nothing in the row is said by the driver: how the data went is counted at the bus, bounce pages and deferred loads are
counted in the zones, what came back is compared with FILE. What the driver did to find its disks is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from busdma.cli.interrupt import Interrupted, Interrupts
from busdma.cli.machines import with_option
from busdma.cli.output import Output
from busdma.cli.roundtrip import Copy, Meter, Source, echo_trip, round_trip, window_for
from busdma.drivers import Driver
from busdma.drivers.block import BlockDevice
from busdma.drivers.echo import Echo
from busdma.errors import BusdmaError, ConfigurationError, DeviceFault
from busdma.machine.machine import Machine
from busdma.mechanisms.bounce import OPTION

KEPT: Final = ("kernel", "process", "dma-safe")  #: labels of frames that somebody must free


class Mismatch(DeviceFault):
    """What came back is not what was written."""


class Leak(BusdmaError):
    """Something was not given back."""


class TooSmall(ConfigurationError):
    """FILE does not go on a disk, and no larger one can be made."""


class Job:
    """FILE through all devices of one driver on one machine."""

    def __init__(self, machine: Machine, driver: str, source: Source, output: Output, interrupts: Interrupts) -> None:
        self.machine = machine
        self.driver = driver
        self.source = source
        self.output = output
        self.interrupts = interrupts
        self.devices = [name for name, device in machine.devices.items() if device.driver == driver]
        self.copies: list[Copy] = []
        self.failed = False
        self.expected = 0  # bytes that must cross the bus

    def run(self) -> dict[str, Any] | None:
        """The row. Whatever goes wrong has been told, and the row is not verified.

        None: FILE was not written, for it is larger than a disk of which there is none larger; that has been told too.
        """
        machine, source = self.machine, self.source
        held, known = _held(machine), set(machine.leaks())  # of a driver before
        drivers: list[Driver] = []
        skipped = False
        before: dict[str, int] | None = None  # what bringing the devices up cost does not count
        try:
            for name in self.devices:
                self.interrupts.check()
                drivers.append(machine.driver(name))
                machine.run(drivers[-1].start)
            disks, echoes = self._found(drivers)
            before = self._counts()
            machine.run(self._copy, disks, echoes)
            self._verify()
        except TooSmall as error:
            skipped = True
            self.output.note(f"{machine.spec}: {self.driver} is skipped, because {error}")
        except (BusdmaError, OSError) as error:
            self._fail(error)
        after = self._counts()
        idle = True
        for driver in drivers:
            try:
                machine.run(driver.stop)
            except (BusdmaError, OSError) as error:
                idle = False
                self._fail(error)
        if idle:  # otherwise what a device may still use is rightly held
            self._find_leaks(held, known)
        if skipped and not self.failed:
            return None
        counts = {name: after[name] - (before or after)[name] for name in after}
        if not self.failed and counts["bytes"] < self.expected:
            self._fail(
                Mismatch(f"only {counts['bytes']} of {self.expected} bytes crossed the bus: not all of it was DMA")
            )
        ways = sorted((machine.traffic(name).mechanism for name in self.devices), key=len, reverse=True)
        digests = [copy.sha256 for copy in self.copies]
        return {
            "machine": machine.spec,
            "driver": self.driver,
            "mechanism": "+".join(dict.fromkeys("+".join(filter(None, ways)).split("+"))),
            "bytes": counts["bytes"],
            "segments": counts["segments"],
            "bounced_pages": counts["bounced_pages"],
            "deferred": counts["deferred"],
            "sha256": next((digest for digest in digests if digest != source.sha256), digests[0] if digests else ""),
            "verified": not self.failed,
            "seconds": counts["now"] / 1e9,
        }

    def _found(self, drivers: list[Driver]) -> tuple[list[BlockDevice], list[Echo]]:
        """All disks, each large enough, and what else FILE can go through and come back from."""
        size = self.source.size
        disks: list[BlockDevice] = []
        echoes: list[Echo] = []
        fixed: set[BlockDevice] = set()
        for driver in drivers:
            silent: Mapping[str, DeviceFault] = getattr(driver, "silent", {})
            for name, fault in silent.items():
                raise DeviceFault(f"disk {name} could not be used: {fault}") from fault
            here: Sequence[Echo] = getattr(driver, "echoes", ())
            if not driver.disks and not here:
                raise DeviceFault(f"{driver.name} found no disk: put one on its bus")
            disks.extend(driver.disks)
            fixed.update(driver.disks if getattr(driver, "fixed_size", False) else ())
            echoes.extend(here)
        for disk in disks:
            capacity = disk.blocks * disk.block_size
            if size > capacity and disk in fixed:
                raise TooSmall(
                    f"{self.source.path!r} has {size} bytes, and disk {disk.name} holds {capacity}, as all of its kind"
                )
            if size > capacity:
                larger = with_option(self.machine.spec, "disk_mib", -(-size >> 20))  # rounded up
                raise ConfigurationError(
                    f"{self.source.path!r} has {size} bytes, and disk {disk.name} holds {capacity}: "
                    f"make new, larger disks with --machine '{larger}', or give a smaller file"
                )
        return disks, echoes

    async def _copy(self, disks: list[BlockDevice], echoes: list[Echo]) -> None:
        """Every device at the same time; what goes wrong with one is told when all have ended."""
        machine, source, runtime = self.machine, self.source, self.machine.runtime
        self.expected = sum(2 * -(-source.size // disk.block_size) * disk.block_size for disk in disks)
        self.expected += 2 * source.size * len(echoes)
        meter = Meter(self.expected, f"{machine.spec} {self.driver}", self._moved)
        tasks = [
            runtime.start(
                round_trip,
                machine,
                disk,
                source,
                turn,
                window_for(machine, disk, len(disks)),
                meter,
                name=f"round trip of {disk.name}",
            )
            for turn, disk in enumerate(disks)
        ]
        tasks += [
            runtime.start(echo_trip, machine, echo, source, turn, meter, name=f"round trip of {echo.name}")
            for turn, echo in enumerate(echoes)
        ]
        for task in tasks:
            await runtime.park(task.done)
        for task in tasks:
            try:
                self.copies.append(task.result())
            except (BusdmaError, OSError) as error:
                self._fail(error)

    def _verify(self) -> None:
        for copy in self.copies:
            if copy.differs_at is not None or copy.sha256 != self.source.sha256:
                self._fail(
                    Mismatch(
                        f"{copy.disk} did not give back what was written: from byte {copy.differs_at} on it differs, "
                        f"and its sha256 is {copy.sha256}"
                    )
                )

    def _counts(self) -> dict[str, int]:
        """Everything that is counted, as it stands: at the bus, in the zones, by the clock."""
        traffic = [self.machine.traffic(name) for name in self.devices]
        zones = [zone.statistics() for zone in self.machine.domain.zones]
        return {
            "bytes": sum(each.bytes for each in traffic),
            "segments": sum(each.segments for each in traffic),
            "bounced_pages": sum(each["bounced_pages"] for each in zones),
            "deferred": sum(each["deferred"] for each in zones),
            "now": self.machine.runtime.now(),
        }

    def _find_leaks(self, held: Mapping[str, int], known: Collection[str]) -> None:
        for leak in self.machine.leaks():
            if leak in known:
                continue
            self._fail(Leak(f"{leak} after {self.driver} was stopped: report this as a bug of its driver"))
        for label, count in _held(self.machine).items():
            if count > held[label]:
                self._fail(Leak(f"{count - held[label]} {label} frames were not freed: report this as a bug of busdma"))

    def _moved(self, line: Callable[[], str]) -> None:
        self.interrupts.check()
        self.output.progress.show(line)

    def _fail(self, error: BaseException) -> None:
        self.failed = True
        if not isinstance(error, Interrupted):  # the user knows
            words = str(error).replace(OPTION, "--bounce-pages ")
            self.output.fail(error, f"{self.machine.spec} {self.driver}: {words}")


def _held(machine: Machine) -> dict[str, int]:
    counts = machine.domain.frames.statistics()["by_owner"]
    return {label: counts.get(label, 0) for label in KEPT}
