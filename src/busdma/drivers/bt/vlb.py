"""A BT-445S on the VESA local bus: is it there, what can it address, and around what must it be led?

With firmware before 3.37 and its BIOS switched on, this board corrupts transfers above 16 MiB where an address is,
modulo 16 MiB, in page 0 or in the 16 KiB of its ROM. Two tags keep data away from there: one whose holes are data,
which the driver uses, and one that has all above 16 MiB in its exclusion window and a filter that is asked about each
page in it. They answer alike.

Which firmware a board has is known only once it runs. So the holes are there as soon as there is a ROM: a sound board
with one loses 5 pages in 4096. Once it runs, the driver sees to it that the ROM is where the bus said it is.

Source: Gibbs, tech-kern 10 June 1998, part 3 (filters); bt(4) of the time for the board.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from busdma.addresses import AddressSet
from busdma.drivers import mailbox_port
from busdma.drivers.bt import layout
from busdma.drivers.bt.core import CCBS, Bt, check_rom
from busdma.errors import DeviceFault
from busdma.machine.attachment import Attachment

MAX_TRANSFER: Final = 128 << 10
REACH: Final = (1 << 32) - 1  #: 32 address lines
LOW: Final = (1 << 24) - 1  #: what is up to here is never hit
PERIOD: Final = 1 << 24
PAGE: Final = 4096
ROM: Final = 16 << 10
SOUND: Final = "3.37"  #: the first firmware without the bug


class Bt445s(Bt):
    """A board on this bus. It does not start with the bug and a ROM that its tag does not know."""

    async def _identify(self) -> None:
        await super()._identify()
        if self.model == "445S" and self.firmware < SOUND:
            check_rom(self.name, self._attachment.properties.get("bios", 0), self.bios)


def attach(attachment: Attachment, *, by_filter: bool = False) -> Bt445s:
    """The driver of the adapter at the attachment's registers. DeviceFault if nothing drives the bus there.

    Properties: ``bios``, the address of its ROM (0 or left out: none), and ``slots``, its CCBs. `by_filter`: keep data
    away from the bug by the filter instead of by the holes.
    """
    if attachment.registers.read8(mailbox_port.GEOMETRY) == 0xFF:
        raise DeviceFault(f"{attachment.name}: no BusLogic adapter answers at its ports (the geometry port reads 0xff)")
    bios = attachment.properties.get("bios", 0)
    derive = partial(
        attachment.tag.derive,
        "data",
        nsegments=layout.SEGMENTS_MOST,
        maxsegsz=REACH,
        maxsize=MAX_TRANSFER,
        clip=True,
    )
    if bios and by_filter:
        tag = derive(lowaddr=LOW, filter=hit_by_bug(bios))
    else:
        tag = derive(lowaddr=REACH, exclude=holes(bios) if bios else None)
    return Bt445s(attachment, tag, maxio=MAX_TRANSFER, ccbs=attachment.properties.get("slots", CCBS))


def holes(bios: int) -> AddressSet:
    """Every address that the bug hits."""
    above = AddressSet.span(LOW + 1, REACH)
    page = AddressSet.periodic(0, PAGE, period=PERIOD, within=above)
    return page | AddressSet.periodic(bios, ROM, period=PERIOD, within=above)


def hit_by_bug(bios: int) -> Callable[[int, int], bool]:
    """A filter for addresses above 16 MiB: is any from `first` to `last`, within one page, hit, or out of reach?"""

    def hit(first: int, last: int) -> bool:
        low, high = first % PERIOD, last % PERIOD
        return last > REACH or low < PAGE or (low < bios + ROM and high >= bios)

    return hit
