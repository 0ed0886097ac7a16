"""What every QEMU machine is: memory that is ours too, a QEMU that runs, and devices that it models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.attachment import InterruptLine, MessageInterrupts
from busdma.machine.faults import Fault, FaultUnit, FaultWatch
from busdma.machine.local import NOTHING, LocalMachine
from busdma.machine.machine import DataTraffic, Device, Machine
from busdma.machine.ram import Ram, sided
from busdma.qemu.counting import Counting
from busdma.qemu.extras import PROPERTIES, Extra, driver_for, extras, ids
from busdma.qemu.lines import Lines
from busdma.qemu.pci import Config, PciHost
from busdma.qemu.setup import Setup
from busdma.tag import Tag

BOARD: Final = "/machine/unattached"  #: where QEMU keeps what a board has soldered on

M = TypeVar("M", bound=Machine)


class QemuMachine(LocalMachine):
    """A machine with memory and no device yet. Whoever derives has filled `setup`, and then adds devices.

    `view`: its memory, from physical address `base` on. The other arguments are those of `LocalMachine`.
    """

    def __init__(
        self,
        setup: Setup,
        view: memoryview,
        *,
        base: int = 0,
        page: int = 4096,
        reserved: AddressSet = NOTHING,
    ) -> None:
        self.qemu = setup.start()
        self.qtest = self.qemu.qtest
        ram = sided(view, base=base, watched=False) if setup.check else Ram(view, view)
        super().__init__(setup.spec, setup.runtime, ram, setup.numbers, base=base, page=page, reserved=reserved)
        self.at_close(setup.close)
        self.lines = Lines(self.qtest, setup.runtime)
        self.counting = Counting(self.devices)
        self.domain.instruments.append(self.counting)
        self._fault_watch: FaultWatch | None = None
        self._extras = setup.devices
        self._spin = setup.spin

    def listen(self, path: str) -> None:
        """Have the interrupt lines into the device at QOM `path` reported from here on."""
        self.qtest.intercept(path, "in")
        self.qtest.listen()

    def board(self, kind: str) -> str:
        """The QOM path of the board's own device of type `kind`. ConfigurationError: this QEMU's board has none."""
        for part in self.qemu.monitor.execute("qom-list", {"path": BOARD}):
            if part["type"] == f"child<{kind}>":
                return f"{BOARD}/{part['name']}"
        raise ConfigurationError(
            f"{self.spec}: the board that {self.qemu.binary} makes has no {kind}: give another QEMU with binary="
        )

    def add_pci(
        self,
        host: PciHost,
        where: tuple[int, int],
        name: str,
        driver: str,
        tag: Tag,
        *,
        irq: int | None = None,
        line: InterruptLine | None = None,
        messages: MessageInterrupts | None = None,
        **properties: int,
    ) -> Config:
        """The device at `where`, bus and slot, is `name`. `irq`: the number of its line. `line`: how that is waited
        for, where QEMU does not report it. Neither: its driver polls.

        ConfigurationError: no device answers there.
        """
        config = host.config(*where)
        if line is None:
            line = self.lines.interrupt(-1 if irq is None else irq)
        if irq is not None:
            properties["irq"] = irq
        properties = {**PROPERTIES.get(driver, {}), "spin": self._spin, **properties}
        self.devices[name] = Device(
            name, driver, "pci", tag, host.registers(config, name), line, properties, config, messages
        )
        return config

    def add_extras(self, host: PciHost, wire: Callable[[Extra], tuple[Tag, int | InterruptLine | None]]) -> None:
        """The devices of the option ``devices`` that are on PCI. `wire`: the tag of each, and its interrupt line, by
        number if QEMU reports it. ConfigurationError: one has the name of a device that is there without it.
        """
        if not self._extras:
            return
        for name in ids(self._extras):
            if name in self.devices:
                raise ConfigurationError(f"{self.spec} has a device {name!r} of its own: give yours another id")
        for extra in extras(self.qemu.monitor, self.devices):
            tag, at = wire(extra)
            irq, line = (at, None) if at is None or isinstance(at, int) else (None, at)
            where = extra.bus, extra.slot
            config = host.config(*where)
            try:
                self.add_pci(host, where, extra.name, driver_for(config), tag, irq=irq, line=line)
            except ConfigurationError as error:
                self.absent[extra.name] = str(error)

    def watch_faults(
        self,
        unit: FaultUnit,
        who: Mapping[int | None, Sequence[str]],
        *,
        name: str,
        grain: int = 1,
        merges: bool = False,
        overflows: Callable[[], int] = int,
        each: bool = True,
    ) -> None:
        """Have what `unit` refuses told to the maps that it hit. `each`: see `busdma.machine.faults.FaultWatch`; the
        other arguments are those of its `add`.
        """
        if self._fault_watch is None:
            self._fault_watch = FaultWatch(self.domain, self.devices, each=each)
            self.domain.instruments.insert(0, self._fault_watch)
        self._fault_watch.add(unit, who, name=name, grain=grain, merges=merges, overflows=overflows)

    @property
    def fault_log(self) -> list[Fault]:
        """The latest accesses that an IOMMU has refused, the oldest first. It is asked, if the machine is on."""
        if self._fault_watch is None:
            return []
        if not self.closed:
            self._fault_watch.look()
        return list(self._fault_watch.log)

    def traffic(self, device: str) -> DataTraffic:
        """See `Machine.traffic`; counted at the maps: see `busdma.qemu.counting`."""
        return self.counting.traffic(device)

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with QEMU's process, and what IOMMUs have refused, where that is watched."""
        found = {**super().statistics(), "qemu": {"binary": self.qemu.binary, "pid": self.qemu.pid}}
        if self._fault_watch is not None:
            found["faults"] = self._fault_watch.statistics()
        return found


def made(setup: Setup, make: Callable[[], M]) -> M:
    """The machine that `make` makes of `setup`; if it cannot, whatever was opened for it is closed."""
    try:
        return make()
    except BaseException:
        setup.close()
        raise
