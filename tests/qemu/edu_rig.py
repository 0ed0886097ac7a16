"""Two edu devices behind the IOMMU of a QEMU machine, driven by hand: what they reach, and what they do not.

Source: QEMU, docs/specs/edu.rst. The engine moves at most 2048 bytes here: QEMU 7.2 aborts at all 4096 of its buffer.
It takes 100 ms of the machine's time; with instructions counted and no sleep, that time passes at once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from busdma.addresses import AddressSet
from busdma.qemu.pci import Indirect, Mapped, Mechanism
from busdma.qemu.process import Qemu, image
from busdma.qemu.ram import SharedRam
from busdma.qemu.registers import Mmio
from busdma.translators import HardwareFault
from busdma.translators.dmar import DmarDomain, DmarUnit
from busdma.translators.smmu import SmmuDomain, SmmuUnit
from qemu.machines import RAM, need, pc_rom

PAGE = 4096
MOST = 2048  #: bytes of a transfer
TABLES, DATA = 16 << 20, 24 << 20  #: offsets in memory
DEVICE_BUFFER = 0x40000
ROOM = 1 << 20  #: of its registers
SLOTS = (4, 9)
LOOKS = 20_000  #: at a transfer that does not end
OPTIONS = ("-icount", "shift=0,sleep=off")


class Edu:
    """One device, whose registers are at physical address `at`. `source`: the id that its requests carry."""

    def __init__(self, qemu: Qemu, at: int, source: int) -> None:
        self.at = at
        self.source = source
        self.registers = Mmio(qemu.qtest, f"edu {source:#06x}", at, ROOM)

    def fetch(self, address: int, length: int = 16) -> None:
        """Have it read memory at a bus address."""
        self._move(address, DEVICE_BUFFER, length, 1)

    def store(self, address: int, length: int = 16) -> None:
        """Have it write what it has fetched to a bus address."""
        self._move(DEVICE_BUFFER, address, length, 3)

    def _move(self, source: int, target: int, length: int, command: int) -> None:
        assert 0 < length <= MOST
        for offset, value in ((0x80, source), (0x88, target), (0x90, length), (0x98, command)):
            self.registers.write64(offset, value)
        for _ in range(LOOKS):
            if not self.registers.read64(0x98) & 1:
                return
        raise AssertionError("the transfer does not end")


@dataclass
class EduRig:
    """`unit` translates from the start on; nobody has a domain. Memory begins at physical address `base`."""

    qemu: Qemu
    ram: SharedRam
    base: int
    unit: SmmuUnit | DmarUnit
    tables: list[int]  #: page frames that it has taken
    one: Edu
    two: Edu

    def domain(self, edu: Edu, window: AddressSet | None = None) -> SmmuDomain | DmarDomain:
        return self.unit.domain("one" if edu is self.one else "two", edu.source, window)

    def frame(self, number: int, byte: int | None = None) -> int:
        """The physical address of a data frame, full of `byte`."""
        at = DATA + number * PAGE
        if byte is not None:
            self.ram.view[at : at + PAGE] = bytes([byte]) * PAGE
        return self.base + at

    def data(self, number: int, length: int = 16) -> bytes:
        """The first bytes of a data frame."""
        at = DATA + number * PAGE
        return bytes(self.ram.view[at : at + length])

    def copy(self, edu: Edu, source: int, target: int, length: int = 16) -> None:
        """From bus address to bus address, through the device."""
        edu.fetch(source, length)
        edu.store(target, length)

    def faults(self) -> list[HardwareFault]:
        """All that the unit has to report, equal neighbours once: the models record one for each beat of a burst."""
        found: list[HardwareFault] = []
        while (fault := self.unit.take_fault()) is not None:
            found.append(fault)
        pages = [HardwareFault(fault.address & -PAGE, fault.write, fault.source, fault.code) for fault in found]
        return [fault for fault, _ in itertools.groupby(pages)]


@contextmanager
def virt() -> Iterator[EduRig]:
    """The virt machine of aarch64, with an SMMUv3."""
    arguments = ["-M", "virt,iommu=smmuv3,gic-version=2", "-cpu", "cortex-a57"]
    arguments += ["-global", "cpu.start-powered-off=on"]
    with _rig(
        "aarch64", arguments, 0x4000_0000, 0x0905_0000, 0x2_0000, SmmuUnit, _virt_pci, memory_space=0x1000_0000
    ) as rig:
        yield rig


@contextmanager
def q35() -> Iterator[EduRig]:
    """The q35 machine of x86-64, with VT-d."""
    firmware = image("firmware", pc_rom())
    try:
        arguments = ["-M", "q35", "-bios", f"/proc/self/fd/{firmware}", "-device", "intel-iommu"]
        with _rig(
            "x86_64", arguments, 0, 0xFED9_0000, 0x1000, DmarUnit, _q35_pci, memory_space=0xE000_0000, fds=[firmware]
        ) as rig:
            yield rig
    finally:
        os.close(firmware)


RIGS = {"virt": virt, "q35": q35}


def _virt_pci(qemu: Qemu) -> Mechanism:
    return Mapped(qemu.qtest, 0x40_1000_0000, express=True)


def _q35_pci(qemu: Qemu) -> Mechanism:
    return Indirect(qemu.qtest)


@contextmanager
def _rig(
    target: str,
    arguments: list[str],
    base: int,
    unit_at: int,
    room: int,
    make: Callable[..., SmmuUnit | DmarUnit],
    pci: Callable[[Qemu], Mechanism],
    *,
    memory_space: int,
    fds: list[int] | None = None,
) -> Iterator[EduRig]:
    need(target)
    devices = [f"edu,addr={slot},dma_mask={(1 << 39) - 1}" for slot in SLOTS]
    options = [*arguments, *OPTIONS, *(word for device in devices for word in ("-device", device))]
    with (
        SharedRam(RAM) as ram,
        Qemu(target, [*ram.arguments(), *options], fds=[ram.fd, *(fds or [])], spin=50_000) as qemu,
    ):
        config = pci(qemu)
        edus = []
        for slot, at in zip(SLOTS, (memory_space, memory_space + ROOM), strict=True):
            config.write(0, slot << 3, 0x10, 4, at)
            config.write(0, slot << 3, 0x04, 2, 0b110)
            edus.append(Edu(qemu, at, slot << 3))
        tables: list[int] = []

        def allocate() -> int:
            tables.append(base + TABLES + len(tables) * PAGE)
            return tables[-1]

        unit = make(Mmio(qemu.qtest, "iommu", unit_at, room), ram.view, allocate, base=base)
        unit.enable()
        yield EduRig(qemu, ram, base, unit, tables, *edus)
