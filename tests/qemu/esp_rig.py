"""The 53C9x of a QEMU machine: by hand, one command at a time, with data at any bus address; or by its driver."""

from __future__ import annotations

from typing import Any

from busdma.buffers import LinearBuffer
from busdma.drivers.block import transfer_all
from busdma.drivers.ncr53c9x import chip as ncr
from busdma.drivers.ncr53c9x import jazz, pci, sbus
from busdma.drivers.ncr53c9x.chip import Chip
from busdma.drivers.ncr53c9x.engine import DmaEngine
from busdma.drivers.pci import BUS_MASTER, COMMAND
from busdma.machine.attachment import MmioRegisters
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.sync import Direction
from busdma.tag import Tag

BLOCK, PAGE = 512, 4096
OUT, IN = Direction.TO_DEVICE, Direction.FROM_DEVICE
LOOKS = 100_000
IDENTIFY = 0x80


class Esp:
    """``esp0`` of `machine`, whose driver is not started. The disk is at SCSI address `target`."""

    def __init__(self, machine: Machine, target: int = 0) -> None:
        device = machine.devices["esp0"]
        assert isinstance(device.registers, MmioRegisters)
        self.registers = device.registers
        self.target = target
        self.engine: DmaEngine
        if device.bus == "sbus":
            self.chip = Chip("esp0", self.registers, base=sbus.CHIP_AT, stride=4, counter=16, clock=40)
            self.engine = sbus.EspDma(self.registers)
        elif device.config is not None:
            device.config.write16(COMMAND, pci.IO_SPACE | BUS_MASTER)
            self.chip = Chip("esp0", self.registers, stride=4, counter=24, clock=pci.CLOCK)
            self.engine = pci.PciEngine(self.registers, lambda memory: None)
        else:
            self.chip = Chip("esp0", self.registers, stride=1, counter=16, clock=25)
            self.engine = jazz.JazzChannel(self.registers)
        self.engine.reset()
        self.chip.reset()
        self.command(bytes(6))  # TEST UNIT READY: it has a unit attention to tell

    def to_memory(self, block: int, address: int, blocks: int = 1) -> int:
        """Have it read blocks of the disk, and write them to a bus address. The SCSI status."""
        return self.command(_cdb(0x28, block, blocks), address, blocks * BLOCK, inward=True)

    def from_memory(self, address: int, block: int, blocks: int = 1) -> int:
        """Have it fetch blocks from a bus address, and write them to the disk."""
        return self.command(_cdb(0x2A, block, blocks), address, blocks * BLOCK, inward=False)

    def command(self, cdb: bytes, address: int = 0, length: int = 0, inward: bool = False) -> int:
        """One command; its data are `length` bytes at `address`, or there are none. The SCSI status."""
        chip = self.chip
        chip.write(ncr.DESTINATION, self.target)
        chip.put(bytes((IDENTIFY,)) + cdb)
        phase = self._tell(ncr.SELECT_ATN)
        if phase in (ncr.DATA_OUT, ncr.DATA_IN):
            assert (phase == ncr.DATA_IN) == inward
            self.engine.aim(address, length, inward)
            chip.count(length)
            phase = self._tell(ncr.TRANSFER | ncr.DMA, data=True)
            assert chip.left(length) == 0
            assert any(self.engine.emptied(0, 0) for _ in range(LOOKS))
            self.engine.stop()
        assert phase == ncr.STATUS_PHASE
        self._tell(ncr.COMPLETE)
        status, message = chip.take()
        assert message == 0
        self._tell(ncr.ACCEPT_MESSAGE)
        return status

    def _tell(self, command: int, *, data: bool = False) -> int:
        """Give a command and wait for its interrupt. The phase that follows."""
        self.chip.command(command)
        if data:
            self.engine.go()
        for _ in range(LOOKS):
            if self.chip.interrupting:
                status, _, _ = self.chip.acknowledge()
                return status & ncr.PHASE
        raise AssertionError("the chip does not interrupt")


def loaded(tag: Tag, buffer: LinearBuffer, direction: Direction) -> tuple[Map, int]:
    """A map that the device may use, and where its one segment begins."""
    dma = tag.create_map()
    dma.load_nowait(buffer, direction)
    dma.sync(direction.pre)
    ((address, length),) = dma.segments
    assert length == len(buffer)
    return dma, int(address)


def ended(dma: Map) -> None:
    dma.unload()
    dma.destroy()


def filled(machine: Machine, byte: int, length: int = PAGE) -> LinearBuffer:
    buffer = machine.allocate(length)
    buffer.write(bytes([byte]) * length)
    return buffer


def round_trip(machine: Machine, data: bytes, lba: int = 3, *, device: str = "esp0") -> None:
    """Write `data` through the device's driver to every disk, read it back, and stop the driver."""
    driver: Any = machine.driver(device)
    machine.run(driver.start)
    source, back = machine.allocate(len(data), offset=100), machine.allocate(len(data), offset=8)

    async def there_and_back(disk: Any) -> None:
        source.write(data)
        back.write(bytes(len(data)))
        for buffer, direction in ((source, OUT), (back, IN)):
            await transfer_all(disk, lba, buffer, direction, runtime=machine.runtime)

    for disk in driver.disks:
        machine.run(there_and_back, disk)
        assert back.read() == data
    machine.run(driver.stop)


def _cdb(code: int, block: int, blocks: int) -> bytes:
    return bytes((code, 0)) + block.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"
