"""A small machine for the NVMe driver's tests: scattered memory under the checker, a PCI bus, one controller."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.drivers.nvme.core import Nvme
from busdma.drivers.nvme.pci import MAX_TRANSFER, attach
from busdma.machine.attachment import Attachment, InterruptLine
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.machine.owner import OwnedRuntime
from busdma.machine.pci_firmware import assign
from busdma.machine.ram import coherent
from busdma.machine.space import AddressSpace
from busdma.sim.bus.messages import MessageController
from busdma.sim.bus.pci import PciHost
from busdma.sim.bus.pci_config import BUS_MASTER, COMMAND, MEMORY_SPACE
from busdma.sim.disk import Disk
from busdma.sim.nvme.controller import NvmeController
from busdma.waiting import Runtime, Waiter

T = TypeVar("T")
RAM = 64 << 20
BLOCKS = 16384


class LosesInterrupts:
    """A line that loses the next ones."""

    def __init__(self, line: Interrupt, runtime: Runtime) -> None:
        self.line, self.runtime = line, runtime
        self.lose = False

    async def wait(self, deadline: int | None = None) -> object:
        await self.line.wait(deadline)
        if self.lose:
            await self.runtime.park(Waiter("an interrupt that was lost"), deadline)
        return None


class Rig:
    """``driver`` is attached to ``controller`` and not started."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        namespaces: int = 1,
        block_size: int = 512,
        bounce: int = 256,
        mdts: int = 0,
        queues: int = 8,
        maxio: int = MAX_TRANSFER,
        depth: int = 31,
        reach: int | None = None,
        poll: int = 0,
        spin: int = 0,
        messages: bool = False,
        vectors: int | None = None,
        shadow_doorbells: bool = False,
    ) -> None:
        self.runtime = runtime
        ram = coherent(RAM, check=True)
        assert ram.checker is not None
        self.checker = ram.checker
        self.frames = FrameAllocator(0, RAM // 4096, seed=7)
        self.domain = ram.domain(self.frames, runtime, bounce_limit=bounce)
        self.kernel = AddressSpace("kernel", ram.cpu, self.frames, pages=8192)
        self.host = PciHost(ram.bus, self.frames, AddressSet.span(0, RAM - 1))
        self.host.watch = ram.watch
        self.host.messages = self.messages = MessageController(runtime) if messages else None
        self.line = Interrupt("pci pin", runtime)
        self.disks = [Disk(blocks=BLOCKS, block_size=block_size, seed=n) for n in range(namespaces)]
        self.slot = self.host.root.slot("nvme0", 4, self.line)
        self.controller = NvmeController(
            self.slot.master,
            self.slot.pin,
            lambda when, fn: runtime.call_at(when, self.host.serialised(fn)),
            runtime.now,
            namespaces=self.disks,
            mdts=mdts,
            queues=queues,
            vectors=vectors,
            shadow_doorbells=shadow_doorbells,
        )
        self.slot.plug(self.controller)
        assign(self.host.root, AddressSet.span(0xE0000000, 0xEFFFFFFF))
        self.lossy = LosesInterrupts(self.line, runtime)
        line: InterruptLine = Interrupt("that never comes", runtime) if poll else self.lossy
        pci0 = self.domain.root("pc").derive("pci0")
        tag = (pci0 if reach is None else pci0.derive("bridge", lowaddr=reach)).derive("nvme0")
        self.attachment = Attachment(
            name="nvme0",
            tag=tag,
            registers=self.slot.registers(0),
            interrupt=line,
            runtime=OwnedRuntime(runtime, tag),
            properties={"poll": poll, "spin": spin},
            config=self.slot.config,
            messages=self.messages,
        )
        self.driver: Nvme = attach(self.attachment, maxio=maxio, depth=depth)

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
        assert self.frames.statistics()["by_owner"].get("dma-safe", 0) == 0
        assert self.slot.statistics() == {"aborts": 0, "not_enabled": 0}
        assert self.controller.counts["ignored"] == 0
        assert not self.slot.config.command(BUS_MASTER)
        assert self.controller.msix is None or not self.controller.msix.enabled
        assert self.messages is None or self.messages.strays == 0
        return result

    def registers_on(self) -> None:
        """Let the CPU reach the registers and the controller reach memory, without a driver."""
        self.slot.config.write16(COMMAND, MEMORY_SPACE | BUS_MASTER)

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
        for disk in self.disks:
            disk.close()


async def pause(runtime: Runtime, time: int) -> None:
    """Let `time` ns pass."""
    waiter = Waiter("a pause")
    runtime.call_at(runtime.now() + time, waiter.wake)
    await runtime.park(waiter)
