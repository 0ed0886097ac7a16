"""The machine sim:pc-isa, its floppy's driver, attached and not started, and what the tests do to them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from busdma.buffers import LinearBuffer
from busdma.drivers.fdc.core import Fdc
from busdma.drivers.fdc.disk import FdcDisk
from busdma.machine.spec import parse
from busdma.sim.disk import Disk
from busdma.sim.pc_isa import PcIsa
from busdma.unmapped import PageArray
from busdma.waiting import Runtime, Waiter

T = TypeVar("T")
MS = 1_000_000
SECOND = 1000 * MS


async def pause(runtime: Runtime, time: int) -> None:
    waiter = Waiter("a pause")
    runtime.call_at(runtime.now() + time, waiter.wake)
    await runtime.park(waiter)


class Rig:
    """``model`` is the controller."""

    def __init__(self, runtime: Runtime, spec: str = "sim:pc-isa", *, check: bool = True) -> None:
        self.runtime = runtime
        _, options = parse(spec)
        options.check = check
        self.machine = PcIsa(spec, runtime, options)
        self.driver = cast(Fdc, self.machine.driver("fd0"))
        self.model = self.machine.fdc
        self._media: list[Disk] = []

    @property
    def disk(self) -> FdcDisk:
        (disk,) = self.driver.disks
        return disk

    @property
    def medium(self) -> Disk:
        assert self.model.medium is not None
        return self.model.medium

    def put_in(self, blocks: int) -> Disk:
        """Another medium."""
        medium = Disk(blocks=blocks)
        self._media.append(medium)
        self.model.insert(medium)
        return medium

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Start the driver, run `main`, stop the driver, and see that nothing is left behind."""

        async def all_of_it() -> T:
            await self.driver.start()
            try:
                return await main()
            finally:
                await self.driver.stop()

        result = self.runtime.run(all_of_it)
        self.clean()
        return result

    def clean(self) -> None:
        """Nothing is left behind, and nothing was ever wrong."""
        machine = self.machine
        assert machine.leaks() == []
        assert machine.checker is None or [str(finding) for finding in machine.checker.findings] == []
        assert all(zone.active == zone.quarantined == 0 for zone in machine.domain.zones)
        assert self.model.statistics()["dropped"] == 0
        assert machine.bus.statistics()["fd0"]["wrapped"] == 0

    def buffer(self, data: bytes, offset: int = 0) -> LinearBuffer:
        """A kernel buffer with `data` in it."""
        buffer = self.machine.allocate(len(data), offset=offset)
        buffer.write(data)
        return buffer

    def run_of_pages(self, pages: int, alignment: int = 0x10000) -> PageArray:
        """Adjacent page frames that the card can reach, from a multiple of `alignment` on."""
        frames = self.machine.frames
        reach = self.driver.tag.constraints.reach
        first = frames.allocate_run(pages, "unmapped", within=reach, alignment=alignment)
        return PageArray(self.machine.domain, range(first, first + pages * 4096, 4096), 0, pages * 4096)

    def close(self) -> None:
        self.machine.close()
        for medium in self._media:
            medium.close()
