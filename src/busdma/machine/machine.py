"""What every machine is: memory, address spaces, buses with devices, and drivers that are attached when asked for.

A back end builds one of these and adds its devices; the rest of busdma knows machines only as this.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from busdma.buffers import LinearBuffer
from busdma.domain import DmaDomain
from busdma.drivers import Driver, attach
from busdma.errors import ConfigurationError, DriverError
from busdma.lifecycle import State
from busdma.machine.attachment import (
    Attachment,
    ConfigSpace,
    InterruptLine,
    IsaDmaChannel,
    MessageInterrupts,
    Registers,
)
from busdma.machine.owner import OwnedRuntime
from busdma.machine.space import AddressSpace
from busdma.tag import Tag
from busdma.waiting import Runtime

if TYPE_CHECKING:
    from busdma.check import Checker
    from busdma.check.sealed import Sealed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the machine, and what its driver is given."""

    name: str
    driver: str
    bus: str
    tag: Tag  #: the bus's
    registers: Registers
    interrupt: InterruptLine
    properties: dict[str, int] = field(default_factory=dict)
    config: ConfigSpace | None = None  #: on PCI
    messages: MessageInterrupts | None = None  #: where the machine has interrupts by message
    dma: IsaDmaChannel | None = None  #: where the bus wired one to it


@dataclass(frozen=True, slots=True)
class DataTraffic:
    """What a device did to frames that hold data, counted at the bus."""

    segments: int  #: accesses; one is one segment
    bytes: int
    mechanism: str  #: ``direct``, ``bounce`` or ``direct+bounce``, by the frames that were touched


class Machine:
    """A machine that is on. Close it, or use it as a context manager.

    ``kernel`` is the kernel's address space, `process` makes others. ``runtime`` carries the drivers and has the clock.
    """

    def __init__(self, spec: str, domain: DmaDomain, kernel: AddressSpace) -> None:
        self.spec = spec
        self.domain = domain
        self.kernel = kernel
        self.devices: dict[str, Device] = {}
        self.absent: dict[str, str] = {}  #: devices that it would have, and what they want first
        self.processes: dict[str, AddressSpace] = {}
        self.closed = False
        self.checker: Checker | None = None  #: the DMA checker, on a machine that was opened with ``check=True``
        self._drivers: dict[str, Driver] = {}
        self._owned: list[OwnedRuntime] = []  # the runtimes of all attachments
        self._left: list[str] = []  # leaks, when it was closed
        self._at_close: list[Callable[[], object]] = []
        kernel.in_use = domain.in_use
        kernel.refused = domain.refused

    @property
    def runtime(self) -> Runtime:
        """Who carries the drivers; its clock is the machine's."""
        return self.domain.runtime

    def run(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run a coroutine function as a driver context and return its result; for plain, synchronous code."""
        __tracebackhide__ = True  # whatever the driver raises
        self._open()
        return self.runtime.run(fn, *args)

    def process(self, name: str, *, pages: int = 4096) -> AddressSpace:
        """A new process with an address space of `pages` pages."""
        self._open()
        old = self.processes.get(name)
        if old is not None and not old.destroyed:
            raise ConfigurationError(f"there is a process {name!r} already: give the new one another name")
        domain = self.domain
        space = AddressSpace(name, domain.memory, domain.frames, pages=pages, owner="process")
        space.in_use = domain.in_use
        space.refused = domain.refused
        self.processes[name] = space
        return space

    def driver(self, name: str) -> Driver:
        """The driver of device `name`, attached at the first call. It still has to be started."""
        self._open()
        if name not in self._drivers:
            given = self.attachment(name)
            device = self.devices[name]
            try:
                if not device.driver:
                    raise ConfigurationError(
                        f"there is no driver in busdma for {name} of {self.spec}: give machine.attachment({name!r}) to "
                        "one of your own"
                    )
                self._drivers[name] = attach(device.driver, device.bus, given)
            except BaseException:
                for child in list(given.tag.children):
                    child.destroy()
                given.tag.destroy()
                raise
        return self._drivers[name]

    def attachment(self, name: str) -> Attachment:
        """Device `name` as its bus hands it to a driver: for one that is not in the table of drivers.

        Should a context of that driver die, what it had loaded is quarantined, as with any driver. ConfigurationError
        if the machine has no such device.
        """
        self._open()
        device = self.devices.get(name)
        if device is None:
            there = f"; it has: {', '.join(sorted(self.devices)) or 'none'}"
            why = f": {self.absent[name]}" if name in self.absent else there
            raise ConfigurationError(f"{self.spec} has no device {name!r}{why}")
        tag = device.tag.derive(name)
        self._owned.append(OwnedRuntime(self.runtime, tag))
        return Attachment(
            name=device.name,
            tag=tag,
            registers=device.registers,
            interrupt=device.interrupt,
            runtime=self._owned[-1],
            properties=device.properties,
            config=device.config,
            messages=device.messages,
            dma=device.dma,
        )

    def traffic(self, device: str) -> DataTraffic:
        """What `device` has done to data so far, as its bus counted it."""
        raise DriverError(f"{self.spec} does not count what {device} does")

    def statistics(self) -> dict[str, Any]:
        """Zones, frames, waiters, drivers and the clock."""
        return {
            "machine": self.spec,
            "now": self.runtime.now(),
            **self.domain.statistics(),
            "drivers": {name: driver.statistics() for name, driver in self._drivers.items()},
        }

    def leaks(self) -> list[str]:
        """Drivers that were not stopped, maps that are not idle, memory that was not freed, and who waits for a turn.

        One line each. Of a machine that is closed: what it was closed with.
        """
        if self.closed:
            return list(self._left)
        running = [runtime.tag for runtime in self._owned if runtime.running]
        found = [f"driver {tag.name} was not stopped" for tag in running]
        found += self.domain.leaks(besides=running)
        waiting = self.domain.queue.waiters()
        return found + [f"{who} still waits" for who in waiting if not any(line.startswith(who) for line in found)]

    def allocate(self, length: int, *, offset: int = 0) -> LinearBuffer:
        """A kernel buffer: short for ``machine.kernel.allocate``."""
        return self.kernel.allocate(length, offset=offset)

    def sealed(self, data: T) -> T | Sealed:
        """`data` as a driver is given it that passes it on: under the checker, whoever looks into it is reported."""
        return data if self.checker is None else self.checker.seal(data)

    def at_close(self, fn: Callable[[], object]) -> None:
        """Have `fn` called when the machine closes, last added first."""
        self._at_close.append(fn)

    def close(self) -> None:
        """Switch off: devices stop, images are written out. A second time does nothing.

        Buffers are gone, and what is still loaded is forgotten with the machine's memory; `leaks` lists it. Errors are
        of what was to be called, such as of a runtime that is closed by a driver of its own; nothing is left on then.
        """
        if self.closed:
            return
        self._left = self.leaks()
        self.closed = True
        for map in list(self.domain.maps()):
            if map.state is State.WAITING:
                map.cancel_load()
        with ExitStack() as ending:  # whatever becomes of one step, the others are made
            for space in (self.kernel, *self.processes.values()):
                ending.callback(space.forget, f"{self.spec} was closed; open another")
            if self.checker is not None:
                ending.callback(self.checker.close)
            while self._at_close:
                ending.callback(self._at_close.pop(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self) -> None:
        if self.closed:
            raise DriverError(f"{self.spec} is closed; open another")

    def __repr__(self) -> str:
        return f"<machine {self.spec}{', closed' if self.closed else ''}>"
