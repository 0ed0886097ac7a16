"""The machine of ``busdma bench nvme``: a QEMU Q35 with two NVMe controllers whose disks are made of zeros.

One is the driver's, one is for what is built by hand; both are on the same QEMU, and so in the same noise. With an
IOMMU, each has a domain of its own: in the driver's, entries stand; in the other, all is mapped once, by hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, Self

from busdma.addresses import AddressSet
from busdma.bench.nvme_bare import PAGE, Bare
from busdma.buffers import LinearBuffer
from busdma.domain import DmaDomain
from busdma.drivers.nvme.core import Nvme
from busdma.drivers.nvme.pci import attach
from busdma.machine.attachment import Attachment
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.machine.owner import OwnedRuntime
from busdma.machine.space import AddressSpace
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.paths import Window
from busdma.qemu.firmware import x86
from busdma.qemu.pc import LOW, SPACES
from busdma.qemu.pci import Indirect, PciHost
from busdma.qemu.process import Qemu, image
from busdma.qemu.q35 import DMAR, DMAR_ROOM
from busdma.qemu.ram import SharedRam
from busdma.qemu.registers import Mmio
from busdma.runtime import by_name
from busdma.runtime.clock import WallClock
from busdma.sync import Direction
from busdma.translators.dmar import DmarUnit

RAM: Final = 64 << 20
DEPTH: Final = 32
OURS, THEIRS = 4, 5  # slots
POLL, SPIN = 1_000_000, 200_000  # ns
WINDOW: Final = AddressSet.span(1 << 20, (1 << 28) - 1)


class Rig:
    """Switched on, with the driver started. `iommu`: VT-d; `runtime`: who carries the driver, in real time."""

    def __init__(self, *, iommu: bool, runtime: str) -> None:
        self._opened = ExitStack()
        try:
            self._build(iommu, runtime)
        except BaseException:
            self._opened.close()
            raise

    def _build(self, iommu: bool, runtime: str) -> None:
        ram = self._opened.enter_context(SharedRam(RAM))
        firmware = image("firmware", x86())
        self._opened.callback(os.close, firmware)
        arguments = ["-M", "q35", "-bios", f"/proc/self/fd/{firmware}", *ram.arguments()]
        if iommu:
            arguments += ["-device", "intel-iommu"]
        for slot in (OURS, THEIRS):
            arguments += ["-drive", f"if=none,id=disk{slot},driver=null-co,size=64M,read-zeroes=on"]
            arguments += ["-device", f"nvme,serial=disk{slot},drive=disk{slot},addr={slot:#x}"]
        qtest = self._opened.enter_context(Qemu("x86_64", arguments, fds=[firmware, ram.fd])).qtest
        host = PciHost(qtest, Indirect(qtest), SPACES)
        self.runtime = self._opened.enter_context(by_name(runtime, clock=WallClock()))
        frames = FrameAllocator(0, RAM // PAGE, seed=1, reserved=LOW)
        domain = DmaDomain(ram.view, frames, self.runtime)
        kernel = AddressSpace("kernel", ram.view, frames, pages=RAM // PAGE)
        self.buffers: list[LinearBuffer] = [kernel.allocate(PAGE) for _ in range(DEPTH)]
        tag = domain.root("pc").derive("pci0")
        own = [frames.allocate_run(1, "by hand") for _ in range(DEPTH + 4)]  # four for queues
        bus: Callable[[int], int] = int
        if iommu:
            unit = DmarUnit(
                Mmio(qtest, "dmar", DMAR, DMAR_ROOM, settled=True), ram.view, lambda: frames.allocate_run(1, "tables")
            )
            unit.enable()
            first, last = WINDOW.intervals[0]
            translator = unit.domain("nvme0", OURS << 3, WINDOW)
            translator.prepare(first, (last + 1 - first) // PAGE)
            pages = IovaAllocator([(first // PAGE, last // PAGE)])
            pool = IovaPool("dmar", domain.queue, translator, pages, standing=True)
            frames.add_releaser(pool.forget)
            tag = tag.bridge("dmar", Window(0, last + 1, 0, pool))
            theirs = unit.domain("by hand", THEIRS << 3, WINDOW)
            theirs.enter(first, own, Direction.BOTH)
            places = {frame: first + PAGE * number for number, frame in enumerate(own)}
            bus = places.__getitem__
        config = host.config(0, OURS)
        tag = tag.derive("nvme0")
        self.driver: Nvme = attach(
            Attachment(
                name="nvme0",
                tag=tag,
                registers=host.registers(config, "nvme0"),
                interrupt=Interrupt("none", self.runtime),
                runtime=OwnedRuntime(self.runtime, tag),
                properties={"poll": POLL, "spin": SPIN},
                config=config,
            ),
            depth=2 * DEPTH - 1,
        )
        config = host.config(0, THEIRS)
        config.write16(0x04, 0x0006)
        bells = (config.read32(0x10) & ~0xF) + 0x1000
        self.bare = Bare(qtest, host.registers(config, "by hand"), bells, ram.view, own, bus)
        self.runtime.run(self.driver.start)
        self._opened.callback(lambda: self.runtime.run(self.driver.stop))

    def check(self) -> None:
        """Both sides move data. AssertionError if they do not: the table would mean nothing."""
        for each in self.buffers:
            each.write(b"\xa5" * PAGE)
        self.bare.paint(0xA5)
        self.runtime.run(self._read_all)
        self.bare.many(DEPTH, DEPTH)
        if any(any(each.read()) for each in self.buffers) or not self.bare.blank():
            raise AssertionError("the disk has zeros, and something else was read: run the benchmark again")

    async def _read_all(self) -> None:
        for each in self.buffers:
            await self.driver.disks[0].read(0, each)

    def close(self) -> None:
        """Stop the driver, and switch off."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
