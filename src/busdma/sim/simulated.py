"""What all simulated machines have: memory from physical address 0 on, buses with masters, and disks in image files.

Four options of every one: ``bounce`` (pages that each bounce zone may grow to, 128), ``seed`` (where page frames are
scattered, and where the platters stand, 1), ``images`` (folder of the disk images, kept when the machine is closed; a
temporary one) and ``disk_mib`` (size of an image that does not exist yet, in MiB, 64).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from busdma.addresses import AddressSet
from busdma.machine.frames import FrameAllocator
from busdma.machine.machine import DataTraffic, Machine
from busdma.machine.space import AddressSpace
from busdma.machine.spec import Options
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.mechanisms.translation import Translator
from busdma.sim.bus.master import MasterBus
from busdma.sim.images import Images
from busdma.sim.memory import Ram
from busdma.waiting import Runtime

NOTHING: Final = AddressSet()

B = TypeVar("B", bound=MasterBus)


class SimulatedMachine(Machine):
    """A machine with memory, and no bus and no device yet. Whoever derives has asked for its own options before.

    `page`: bytes of a page frame; `reserved`: physical addresses that are not handed out; `reuse`: as `FrameAllocator`
    has it; `kernel_space`: bytes of the kernel's virtual addresses, twice the memory if left out.
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
        self.seed: Final = options.number("seed", 1)
        limit = options.number("bounce", 128, least=1)
        self.images: Final = Images(spec, options, seed=self.seed)
        options.finish()
        size = len(ram.cpu)
        self.ram = ram
        self.frames = FrameAllocator(0, size // page, page_size=page, seed=self.seed, reserved=reserved, reuse=reuse)
        domain = ram.domain(self.frames, runtime, bounce_limit=limit)
        kernel = AddressSpace("kernel", ram.cpu, self.frames, pages=(kernel_space or 2 * size) // page)
        super().__init__(spec, domain, kernel)
        self.checker = ram.checker
        self.at_close(self.images.close)
        self._buses: list[MasterBus] = []

    def add_bus(self, bus: B) -> B:
        """Have `bus` be one of the machine's. All share one lock, the first one's."""
        bus.watch = self.ram.watch
        self._buses.append(bus)
        return bus

    def add_pool(self, name: str, translator: Translator, first: int, last: int, *, standing: bool = False) -> IovaPool:
        """The pool of the bus pages from address `first` to `last`, which `translator` maps."""
        page = self.frames.page_size
        pages = IovaAllocator([(first // page, last // page)])
        pool = IovaPool(name, self.domain.queue, translator, pages, standing=standing)
        self.frames.add_releaser(pool.forget)
        return pool

    @contextmanager
    def building(self) -> Iterator[None]:
        """Around the rest of a constructor: if it fails, what was made is closed."""
        try:
            yield
        except BaseException:
            self.close()
            raise

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
