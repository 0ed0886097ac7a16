"""``qemu:magnum``: QEMU's MIPS Magnum (Jazz), little- or big-endian. 64 MiB of memory; the RC4030 translates all DMA.

``esp0`` is a 53C9x SCSI controller with one disk, on channel 0 of the RC4030. Every load takes bus pages, from the
first 16 MiB of its address space, where its table ends. An entry has no valid bit, and none leads nowhere: one that
is cleared leads to the first page frame, which holds the vectors of exceptions and is never handed out.

Options of the spec: those of `busdma.qemu.setup` and `busdma.qemu.disks`; and ``order`` (of the CPU's bytes, ``big`` or
``little``, little).

What it does not model: the RC4030's cache of translations, so that a flush that is missing goes unseen; that an address
beyond the table is an error, for it is dropped without a word; caches that DMA does not see. Everything else is under
"What QEMU's models do not show" in docs/qemu.md.

Source: QEMU, hw/mips/jazz.c and hw/dma/rc4030.c, for where what is; there is no public data sheet.
"""

from __future__ import annotations

from typing import Any, Final

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.machine import Device, Machine
from busdma.machine.spec import Options
from busdma.paths import Window
from busdma.qemu import setup as common
from busdma.qemu.disks import BoardDisks
from busdma.qemu.firmware import ROM
from busdma.qemu.guest import QemuMachine, made
from busdma.qemu.registers import Joined, Mmio
from busdma.qemu.setup import Setup
from busdma.translators.rc4030 import Rc4030Table
from busdma.waiting import Runtime

TARGETS: Final = {"little": "mips64el", "big": "mips64"}
MOST: Final = 256  #: MiB of memory
PAGE: Final = 4096
VECTORS: Final = AddressSet.span(0, PAGE - 1)  #: of exceptions; and where an entry leads that is cleared
LOGICAL: Final = 16 << 20  #: bytes that the table translates
RC4030, RC4030_ROOM = 0x8000_0000, 0x300
CHANNEL, CHANNEL_AT, CHANNEL_ROOM = RC4030 + 0x100, 0x1000, 0x20
CHIP, CHIP_ROOM = 0x8000_2000, 0x10
ESP_LINE: Final = 5


def missing() -> str:
    """Why this host has no such machine; "" if it has."""
    return common.missing(TARGETS["little"])


class Magnum(QemuMachine):
    """See the module's text."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, setup.memory().view, page=PAGE, reserved=VECTORS)
        order = self.qtest.order  # the RC4030 has the CPU's
        with self.building():
            self.listen(self.board("rc4030"))
            table, where = self.ram.table(self.frames, LOGICAL // PAGE * 8, PAGE)
            registers = Mmio(self.qtest, "rc4030", RC4030, RC4030_ROOM, order=order, settled=True)
            self.pool = self.add_pool("rc4030", Rc4030Table(registers, table, where), 0, LOGICAL - 1)
            jazz = self.domain.root("magnum").bridge("jazz0", Window(0, LOGICAL, 0, self.pool))
            chip = Mmio(self.qtest, "esp0", CHIP, CHIP_ROOM, order=order)
            channel = Mmio(self.qtest, "esp0's channel", CHANNEL, CHANNEL_ROOM, order=order)
            line = self.lines.interrupt(ESP_LINE)
            joined = Joined({0: chip, CHANNEL_AT: channel})
            self.devices["esp0"] = Device("esp0", "ncr53c9x", "jazz", jazz, joined, line, {"clock": 25})

    def statistics(self) -> dict[str, Any]:
        """See `Machine.statistics`; with QEMU's process and the table's pool."""
        return {**super().statistics(), "rc4030": self.pool.statistics()}


def open_machine(spec: str, runtime: Runtime, options: Options) -> Machine:
    """Switch the Magnum on."""
    order = options.text("order", "little")
    if order not in TARGETS:
        raise ConfigurationError(f"{spec}: order={order}: give {' or '.join(TARGETS)}")
    setup = Setup(spec, runtime, options, TARGETS[order], most=MOST)
    disks = BoardDisks(spec, options)
    setup.ready()

    def make() -> Magnum:
        setup.add("-M", "magnum", "-global", "cpu.start-powered-off=on")
        setup.add("-bios", setup.inherit("firmware", bytes(ROM)))  # it wants some
        disks.plug(setup, "esp0")
        return Magnum(setup)

    return made(setup, make)
