"""What all simulated machines have: memory from physical address 0 on, buses with masters, and disks in image files.

Five options of every one: ``bounce``, ``force_bounce`` and ``seed`` (see `busdma.machine.local`; the seed is also where
the platters stand), ``images`` (folder of the disk images, kept when the machine is closed; a temporary one) and
``disk_mib`` (size of an image that does not exist yet, in MiB, 64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from busdma.addresses import AddressSet
from busdma.machine.local import NOTHING, LocalMachine, Numbers
from busdma.machine.machine import DataTraffic
from busdma.machine.ram import Ram
from busdma.machine.spec import Options
from busdma.sim.bus.master import MasterBus
from busdma.sim.images import Images
from busdma.waiting import Runtime

B = TypeVar("B", bound=MasterBus)


class SimulatedMachine(LocalMachine):
    """A machine with memory, and no bus and no device yet. Whoever derives has asked for its own options before.

    The other arguments are those of `LocalMachine`.
    """

    def __init__(
        self,
        spec: str,
        runtime: Runtime,
        options: Options,
        ram: Ram,
        *,
        page: int = 4096,
        reserved: AddressSet = NOTHING,
        reuse: int = 0,
        kernel_space: int = 0,
    ) -> None:
        numbers = Numbers(options)
        self.images: Final = Images(spec, options, seed=numbers.seed)
        options.finish()
        super().__init__(
            spec, runtime, ram, numbers, page=page, reserved=reserved, reuse=reuse, kernel_space=kernel_space
        )
        self.at_close(self.images.close)
        self._buses: list[MasterBus] = []

    def add_bus(self, bus: B) -> B:
        """Have `bus` be one of the machine's. All share one lock, the first one's."""
        bus.watch = self.ram.watch
        self._buses.append(bus)
        return bus

    def call_at(self, when: int, fn: Callable[[], object]) -> object:
        """The clock of the devices: `fn` is called at `when`, in ns, under the buses' lock."""
        return self.runtime.call_at(when, self._buses[0].serialised(fn))

    def traffic(self, device: str) -> DataTraffic:
        """See `Machine.traffic`."""
        return next(bus for bus in self._buses if device in bus.masters).traffic(device)

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with the buses' own counts by device."""
        counts = {name: count for bus in self._buses for name, count in bus.statistics().items()}
        return {**super().statistics(), "bus": counts}
