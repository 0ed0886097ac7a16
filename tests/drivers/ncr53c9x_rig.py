"""Small machines for the 53C9x driver's tests: memory under the checker, a chip behind each DMA engine, disks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.drivers import attach
from busdma.drivers.ncr53c9x.core import Ncr53c9x
from busdma.errors import DeviceFault
from busdma.machine.attachment import Attachment, ConfigSpace, MmioRegisters
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.machine.pci_firmware import assign
from busdma.machine.ram import coherent
from busdma.machine.space import AddressSpace
from busdma.sim.bus.master import MasterBus, Wires
from busdma.sim.bus.pci import PciHost
from busdma.sim.bus.registers import ChipRegisters
from busdma.sim.disk import Disk
from busdma.sim.scsi.am53c974 import Am53c974
from busdma.sim.scsi.espdma import EspDma
from busdma.sim.scsi.jazz_dma import JazzChannel
from busdma.sim.scsi.ncr53c9x import Ncr53c9x as Chip
from busdma.sim.scsi.target import ScsiTarget
from busdma.waiting import Runtime, Waiter

T = TypeVar("T")
RAM = 64 << 20
BLOCKS = 4096
BOARDS = ("sbus", "jazz", "pci")


class Wrong:
    """Wires that refuse the next access to data, if told so."""

    def __init__(self) -> None:
        self.wires = Wires(32)
        self.refuse = False

    def pieces(self, address: int, length: int, write: bool) -> Iterator[tuple[int | None, int]]:
        if self.refuse:
            self.refuse = False
            raise DeviceFault(f"no translation for {address:#x}")
        yield from self.wires.pieces(address, length, write)

    def wraps(self, address: int, length: int) -> bool:
        return self.wires.wraps(address, length)


class OddChannel(JazzChannel):
    """A channel that moves two bytes at a time: the odd last byte of a transfer stays in the chip's FIFO."""

    kept = b""

    def store(self, data: bytes) -> None:
        assert data
        self.kept += data
        even = len(self.kept) & ~1
        ready, self.kept = self.kept[:even], self.kept[even:]
        if ready:
            super().store(ready)

    def room(self) -> int:
        return max(super().room() - len(self.kept), 0)


class Engine(Protocol):
    """The model of a DMA engine with registers of its own."""

    def read32(self, offset: int) -> int: ...

    def write32(self, offset: int, value: int) -> None: ...

    def statistics(self) -> dict[str, int]: ...


class Board:
    """The one window with the chip's registers and the engine's."""

    name, room = "esp0", 0x20000

    def __init__(self, chip: Chip, engine: Engine, *, chip_at: int, stride: int, engine_at: int) -> None:
        self.chip, self.engine = chip, engine
        self.chip_at, self.stride, self.engine_at = chip_at, stride, engine_at

    def read(self, offset: int, size: int) -> int:
        if size == 4:
            return self.engine.read32(offset - self.engine_at)
        register, rest = divmod(offset - self.chip_at, self.stride)
        assert size == 1
        assert rest == 0
        assert 0 <= register < 16
        if isinstance(self.engine, OddChannel) and self.engine.kept:
            if register == 2:
                byte, self.engine.kept = self.engine.kept[0], b""
                return byte
            if register == 7:
                return self.chip.read(register) + 1
        return self.chip.read(register)

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 4:
            self.engine.write32(offset - self.engine_at, value)
        else:
            assert size == 1
            self.chip.write((offset - self.chip_at) // self.stride, value)


class Cable:
    """The registers, until they are cut."""

    def __init__(self, registers: MmioRegisters) -> None:
        self.registers = registers
        self.cut = False
        self.lost: set[int] = set()  #: registers that writes do not reach

    def read8(self, offset: int) -> int:
        return 0xFF if self.cut else self.registers.read8(offset)

    def read16(self, offset: int) -> int:
        return 0xFFFF if self.cut else self.registers.read16(offset)

    def read32(self, offset: int) -> int:
        return 0xFFFF_FFFF if self.cut else self.registers.read32(offset)

    def read64(self, offset: int) -> int:
        raise AssertionError("no register is that wide")

    def write8(self, offset: int, value: int) -> None:
        if not self.cut and offset not in self.lost:
            self.registers.write8(offset, value)

    def write16(self, offset: int, value: int) -> None:
        raise AssertionError("no register has 16 bits")

    def write32(self, offset: int, value: int) -> None:
        if not self.cut:
            self.registers.write32(offset, value)

    def write64(self, offset: int, value: int) -> None:
        raise AssertionError("no register is that wide")

    def barrier(self) -> None:
        self.registers.barrier()


class Rig:
    """``driver`` is attached to ``chip`` and not started. `burst`: targets disconnect after so many bytes."""

    def __init__(
        self,
        runtime: Runtime,
        board: str = "sbus",
        *,
        targets: tuple[int, ...] = (0,),
        bounce: int = 128,
        burst: int = 0,
        reach: int | None = None,
        odd: bool = False,
        counter: int = 16,
        ram: int = RAM,
    ) -> None:
        self.runtime, self.kind = runtime, board
        memory = coherent(ram, check=True)
        assert memory.checker is not None
        self.checker = memory.checker
        self.frames = FrameAllocator(0, ram // 4096, seed=7)
        self.domain = memory.domain(self.frames, runtime, bounce_limit=bounce)
        self.kernel = AddressSpace("kernel", memory.cpu, self.frames, pages=8192)
        self.disks = {target: Disk(blocks=BLOCKS, seed=target) for target in targets}
        self.targets = {target: ScsiTarget(disk) for target, disk in self.disks.items()}
        self.line = Interrupt("esp0", runtime)
        self.route = Wrong()
        self.engine: Engine
        self.config: ConfigSpace | None = None
        self.bus: MasterBus
        registers: MmioRegisters
        properties = {"counter": counter}
        if board == "pci":
            host = PciHost(memory.bus, self.frames, AddressSet.span(0, ram - 1))
            self.bus = host
            slot = host.root.slot("esp0", 4, self.line)
            device = Am53c974(slot.master, slot.pin, self.call_at, runtime.now, targets=self.targets, burst=burst)
            slot.plug(device)
            assign(host.root, AddressSet.span(0xE0000000, 0xEFFFFFFF))
            self.chip, self.config, registers, properties = device.chip, slot.config, slot.registers(0), {}
            self.device = device
        else:
            self.bus = MasterBus(memory.bus, self.frames)
            master = self.bus.add_master("esp0", self.route)
            self.chip = Chip(
                self.line, self.call_at, runtime.now, targets=self.targets, clock_mhz=40 if board == "sbus" else 25,
                wide_counter=counter == 24, burst=burst,
            )  # fmt: skip
            if board == "sbus":
                self.engine = EspDma(master, self.chip, self.line)
                window = Board(self.chip, self.engine, chip_at=0x10000, stride=4, engine_at=0)
            else:
                self.engine = (OddChannel if odd else JazzChannel)(master, self.chip)
                window = Board(self.chip, self.engine, chip_at=0, stride=1, engine_at=0x1000)
            registers = ChipRegisters(self.bus, window)
        self.bus.watch = memory.watch
        self.cable = Cable(registers)
        tag = self.domain.root("pc").derive("bus", lowaddr=0xFFFF_FFFF if reach is None else reach)
        self.attachment = Attachment(
            name="esp0",
            tag=tag,
            registers=self.cable,
            interrupt=self.line,
            runtime=runtime,
            properties=properties,
            config=self.config,
        )
        driver = attach("ncr53c9x", board, self.attachment)
        assert isinstance(driver, Ncr53c9x)
        self.driver = driver

    def call_at(self, when: int, fn: Callable[[], object]) -> object:
        """The machine's clock, as devices get it."""
        return self.runtime.call_at(when, self.bus.serialised(fn))

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Start the driver, run `main`, stop the driver, and see that nothing is left behind."""

        async def all_of_it() -> T:
            await self.driver.start()
            try:
                result = await main()
                sequencer = self.driver._sequencer
                assert [*sequencer._ready, *sequencer._aborts, *sequencer._busy, *sequencer._away] == []
                return result
            finally:
                await self.driver.stop()

        result = self.runtime.run(all_of_it)
        assert self.domain.leaks() == []
        assert list(self.checker.findings) == []
        assert self.frames.statistics()["by_owner"].get("dma-safe", 0) == 0
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


async def pause(runtime: Runtime, time: int) -> None:
    """Let `time` ns pass."""
    waiter = Waiter("a pause")
    runtime.call_at(runtime.now() + time, waiter.wake)
    await runtime.park(waiter)
