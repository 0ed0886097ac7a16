"""The AHA-1542 driver, independent of the machine: numbers of 24 bits, and a lock on its mailboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from busdma.drivers import mailbox_port
from busdma.drivers.aha1542 import layout
from busdma.drivers.host import TIMEOUT
from busdma.drivers.mailbox_host import Ccb, Layout, MailboxHost
from busdma.drivers.mailbox_port import InvalidCommand
from busdma.machine.attachment import Attachment
from busdma.sync import Direction

if TYPE_CHECKING:
    from busdma.tag import Tag


class Aha1542(MailboxHost):
    """One adapter. `ccbs`: one more than the commands that may be in flight. `maxio`: bytes in one of them."""

    layout: ClassVar[Layout] = layout

    def __init__(self, attachment: Attachment, tag: Tag, *, maxio: int, ccbs: int = 16, timeout: int = TIMEOUT) -> None:
        super().__init__(attachment, tag, maxio=maxio, ccbs=ccbs, timeout=timeout)

    async def _identify(self) -> None:
        port = self._port
        await port.command(mailbox_port.INQUIRY, reply=4)
        try:  # a 1542C whose BIOS is in extended mode locks its mailboxes; older boards do not know the question
            _, lock = await port.command(layout.EXTENDED_BIOS, reply=2)
            if lock:
                await port.command(layout.MAILBOX_ENABLE, 0, lock)
        except InvalidCommand:
            pass

    async def _hand_over(self) -> None:
        await self._port.command(layout.MAILBOX_INIT, self._count, *layout.put24(self._mail.address))

    def _write(self, slot: Ccb) -> None:
        assert slot.unit is not None
        assert slot.request is not None
        layout.write_ccb(
            self._mail.view,
            slot.offset,
            target=slot.unit.target,
            lun=slot.unit.lun,
            cdb=slot.request.cdb,
            base=slot.address,
            outbound=slot.request.direction is Direction.TO_DEVICE,
            segments=() if slot.loaded is None else slot.map.segments,
            reply=slot.request.reply,
        )
