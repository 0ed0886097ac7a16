"""A PC of QEMU with a floppy, and its driver put together by hand: memory, tags, the 8237, one interrupt line."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.drivers.fdc.core import Fdc
from busdma.drivers.fdc.isa import attach
from busdma.machine.attachment import Attachment
from busdma.machine.frames import FrameAllocator
from busdma.machine.i8237 import DmaController
from busdma.machine.ram import sided
from busdma.machine.space import AddressSpace
from busdma.qemu.lines import Lines
from busdma.qemu.process import Qemu
from busdma.qemu.ram import SharedRam
from busdma.qemu.registers import Ports
from busdma.runtime import by_name
from busdma.runtime.clock import WallClock
from busdma.unmapped import PageArray
from busdma.waiting import Runtime
from qemu.machines import running

T = TypeVar("T")
PAGE = 4096
BIOS_HOLE = AddressSet.span(0xA0000, 0xFFFFF)
IRQ, CHANNEL = 6, 2


class Wires:
    """The registers of a device, some of whose writes may get lost."""

    def __init__(self, registers: Ports) -> None:
        self._registers = registers
        self.lose: Callable[[int, int], bool] = lambda offset, value: False

    def read8(self, offset: int) -> int:
        return self._registers.read8(offset)

    def write8(self, offset: int, value: int) -> None:
        if not self.lose(offset, value):
            self._registers.write8(offset, value)

    def barrier(self) -> None:
        self._registers.barrier()


class Rig:
    """``driver`` is attached and not started. Memory is under the checker: the CPU and QEMU each have their own."""

    def __init__(self, qemu: Qemu, memory: SharedRam, runtime: Runtime) -> None:
        self.qemu, self.runtime = qemu, runtime
        ram = sided(memory.view)
        assert ram.checker is not None
        self.checker = ram.checker
        frames = FrameAllocator(0, memory.size // PAGE, page_size=PAGE, seed=7, reserved=BIOS_HOLE)
        self.domain = ram.domain(frames, runtime, bounce_limit=128)
        self.kernel = AddressSpace("kernel", ram.cpu, frames, pages=2 * memory.size // PAGE)
        qtest = qemu.qtest
        self.dma = Wires(Ports(qtest, "dma", 0, 0x100))
        self.channel = DmaController(self.dma).channel(CHANNEL)
        qtest.intercept("/machine/i440fx/ioapic", "in")
        line = Lines(qtest, runtime).interrupt(IRQ)
        qtest.listen()
        self.bus = self.domain.root("pc").derive("isa", lowaddr=0xFFFFFF)
        self.attachment = Attachment(
            name="fd0",
            tag=self.bus.derive("fd0"),
            registers=Ports(qtest, "fd0", 0x3F0, 8),
            interrupt=line,
            runtime=runtime,
            dma=self.channel,
        )
        self.driver: Fdc = attach(self.attachment)

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
        assert [str(finding) for finding in self.checker.findings] == []
        return result

    def run_of_pages(self, pages: int, *, above: int, below: int) -> PageArray:
        """Adjacent page frames between these addresses, from a multiple of 64 KiB on."""
        within = AddressSet.span(above, below - 1)
        first = self.domain.frames.allocate_run(pages, "unmapped", within=within, alignment=0x10000)
        return PageArray(self.domain, range(first, first + pages * PAGE, PAGE), 0, pages * PAGE)

    def buffer(self, data: bytes, offset: int = 0) -> LinearBuffer:
        """A kernel buffer with `data` in it."""
        buffer = self.kernel.allocate(len(data), offset=offset)
        buffer.write(data)
        return buffer


@contextmanager
def rig(image: Path | None, *, runtime: str = "asyncio", read_only: bool = False) -> Iterator[Rig]:
    """With this image in the drive, or with nothing in it."""
    arguments = ["-device", "floppy,id=drive"]
    if image is not None:
        access = "on" if read_only else "off"
        arguments = ["-drive", f"if=none,id=medium,format=raw,file={image},readonly={access}"]
        arguments += ["-device", "floppy,id=drive,drive=medium"]
    with running("x86_64", *arguments) as (qemu, ram), by_name(runtime, clock=WallClock()) as carrier:
        yield Rig(qemu, ram, carrier)
