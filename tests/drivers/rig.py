"""A small machine for the driver's tests: scattered memory under the checker, an ISA bus, one adapter, its disks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from busdma.buffers import LinearBuffer
from busdma.drivers.aha1542.core import Aha1542
from busdma.drivers.aha1542.isa import attach
from busdma.machine.attachment import Attachment, Registers
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.machine.ram import coherent
from busdma.machine.space import AddressSpace
from busdma.sim.bus.isa import IsaBus
from busdma.sim.disk import Disk
from busdma.sim.scsi.aha1542 import Aha1542 as Adapter
from busdma.sim.scsi.target import ScsiTarget
from busdma.waiting import Runtime

T = TypeVar("T")
RAM = 32 << 20
BLOCKS = 4096


class Wires:
    """The adapter's registers, until they are cut."""

    def __init__(self, registers: Registers) -> None:
        self.registers = registers
        self.cut = False

    def read8(self, offset: int) -> int:
        return 0xFF if self.cut else self.registers.read8(offset)

    def write8(self, offset: int, value: int) -> None:
        if not self.cut:
            self.registers.write8(offset, value)

    def barrier(self) -> None:
        self.registers.barrier()


class Rig:
    """``driver`` is attached to ``adapter`` and not started."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        targets: tuple[int, ...] = (0,),
        bounce: int = 128,
        board: str = "1542CF",
        irq: int = 11,
    ) -> None:
        self.runtime = runtime
        ram = coherent(RAM, check=True)
        assert ram.checker is not None
        self.checker = ram.checker
        frames = FrameAllocator(0, RAM // 4096, seed=7)
        self.domain = ram.domain(frames, runtime, bounce_limit=bounce)
        self.kernel = AddressSpace("kernel", ram.cpu, frames, pages=2048)
        self.bus = IsaBus(ram.bus, frames)
        self.bus.watch = ram.watch
        self.disks = {target: Disk(blocks=BLOCKS, seed=target) for target in targets}
        self.targets = {target: ScsiTarget(disk) for target, disk in self.disks.items()}
        self.line = Interrupt("irq 11", runtime)
        self.adapter = Adapter(
            self.bus.master("aha0"),
            self.line,
            lambda when, fn: runtime.call_at(when, self.bus.serialised(fn)),
            runtime.now,
            irq=11,
            dma_channel=5,
            targets=self.targets,
            board=board,
        )
        self.bus.claim(0x330, 4, self.adapter)
        self.wires = Wires(self.bus.registers(0x330))
        self.attachment = Attachment(
            name="aha0",
            tag=self.domain.root("pc").derive("isa", lowaddr=0xFFFFFF),
            registers=self.wires,
            interrupt=self.line,
            runtime=runtime,
            properties={"irq": irq, "drq": 5},
        )
        self.driver: Aha1542 = attach(self.attachment)

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Start the driver, run `main`, stop the driver, and see that nothing is left behind."""

        async def all_of_it() -> T:
            await self.driver.start()
            try:
                return await main()
            finally:
                await self.driver.stop()

        result = self.runtime.run(all_of_it)
        assert self.domain.leaks() == []
        assert list(self.checker.findings) == []
        assert self.domain.frames.statistics()["by_owner"].get("dma-safe", 0) == 0
        return result

    def buffer(self, data: bytes, offset: int = 0) -> LinearBuffer:
        """A kernel buffer with `data` in it."""
        buffer = self.kernel.allocate(len(data), offset=offset)
        buffer.write(data)
        return buffer

    def empty(self, length: int, offset: int = 0) -> LinearBuffer:
        """A kernel buffer of zeros."""
        return self.kernel.allocate(length, offset=offset)

    def close(self) -> None:
        """Close the disks."""
        for disk in self.disks.values():
            disk.close()
