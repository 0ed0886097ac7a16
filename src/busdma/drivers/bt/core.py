"""The driver of BusLogic MultiMaster adapters, independent of the machine: numbers of 32 bits, and queue tags.

A disk that says in its INQUIRY data that it queues tagged commands is given all there are, if the firmware knows tags.
Now and then one of them is an ordered one, so that none waits for ever while the disk prefers others.

Source: BusLogic MultiMaster Technical Reference Manual, chapter 1; SCSI-2 7.8 and 8.2.5 (queue tags).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from busdma.drivers import mailbox_host, mailbox_port, scsi
from busdma.drivers.bt import layout
from busdma.drivers.host import SECOND, TIMEOUT
from busdma.drivers.mailbox_host import Ccb, Layout, MailboxHost
from busdma.drivers.scsi_host import Unit
from busdma.errors import ConfigurationError, DeviceFault
from busdma.machine.attachment import Attachment
from busdma.sync import Direction

if TYPE_CHECKING:
    from busdma.tag import Tag

CCBS: Final = 30  #: that an "S" series board works on at a time
STRICT_SINCE, TAGS_SINCE = "3.31", "3.35"  #: firmware of that series with strict round-robin, and with tags that work
ORDER_EVERY: Final = 4 * SECOND
INQUIRY: Final = 0x12
COMMAND_QUEUE: Final = 0x02  #: in byte 7 of INQUIRY data


class Bt(MailboxHost):
    """One adapter. `ccbs`: one more than the commands that may be in flight. `maxio`: bytes in one of them."""

    HOST_STATUS: ClassVar = mailbox_host.HOST_STATUS | layout.HOST_STATUS
    layout: ClassVar[Layout] = layout

    def __init__(
        self, attachment: Attachment, tag: Tag, *, maxio: int, ccbs: int = CCBS, timeout: int = TIMEOUT
    ) -> None:
        super().__init__(attachment, tag, maxio=maxio, ccbs=ccbs, timeout=timeout)
        self.model = self.firmware = ""  #: once it is started
        self.bios = 0  #: the address of its ROM, 0 if that is switched off
        self._tagged: set[Unit] = set()
        self._ordered: dict[Unit, int] = {}  # when the last ordered command was sent

    def statistics(self) -> dict[str, Any]:
        """As `ScsiHost.statistics`, with who the adapter is, and which disks are given tagged commands."""
        tagged = [unit.queue.name for unit in self._units if unit in self._tagged]
        return {**super().statistics(), "model": self.model, "firmware": self.firmware, "tagged": tagged}

    async def _identify(self) -> None:
        port = self._port
        *_, major, minor = await port.command(mailbox_port.INQUIRY, reply=4)
        version = bytes((major, ord("."), minor)) + await port.command(layout.FIRMWARE_DIGIT, reply=1)
        if version >= b"3.3":
            version += await port.command(layout.FIRMWARE_LETTER, reply=1)
        self.firmware = version.decode("ascii", "replace").strip()
        self.model = (await port.command(layout.MODEL, 5, reply=5)).rstrip(b"\0 ").decode("ascii", "replace")
        setup = layout.parse_setup(await port.command(layout.EXTENDED_SETUP, 14, reply=14))
        self.bios = setup.bios
        if setup.most_segments < self.tag.constraints.nsegments.value:
            raise DeviceFault(f"{self.name} takes {setup.most_segments} segments in a list; the driver needs more")
        self._tagged &= set(self._units)  # those of an earlier start are gone

    async def _hand_over(self) -> None:
        address = self._mail.address.to_bytes(4, "little")
        await self._port.command(layout.MAILBOX_INIT_32, self._count, *address)
        if self.firmware >= STRICT_SINCE:  # it then looks at one mailbox, not at all of them
            await self._port.command(layout.STRICT_ROUND_ROBIN, 1)

    def _write(self, slot: Ccb) -> None:
        assert slot.unit is not None
        assert slot.request is not None
        layout.write_ccb(
            self._mail.view,
            slot.offset,
            target=slot.unit.target,
            lun=slot.unit.lun,
            tag=self._tag_for(slot.unit),
            cdb=slot.request.cdb,
            base=slot.address,
            outbound=slot.request.direction is Direction.TO_DEVICE,
            segments=() if slot.loaded is None else slot.map.segments,
            reply=slot.request.reply,
        )

    def _tag_for(self, unit: Unit) -> int | None:
        if unit not in self._tagged:
            return None
        now = self._runtime.now()
        if now - self._ordered.setdefault(unit, now) < ORDER_EVERY:
            return layout.SIMPLE
        self._ordered[unit] = now
        return layout.ORDERED

    def _finished(self, slot: Ccb, outcome: scsi.Outcome) -> None:
        assert slot.unit is not None
        assert slot.request is not None
        if slot.request.cdb[0] == INQUIRY and outcome.target_status == scsi.GOOD and len(outcome.reply) > 7:
            queues = bool(outcome.reply[7] & COMMAND_QUEUE)
            if queues and self.firmware >= TAGS_SINCE:
                self._tagged.add(slot.unit)
        super()._finished(slot, outcome)


def check_rom(name: str, expected: int, found: int) -> None:
    """ConfigurationError if an adapter with the bug has its ROM elsewhere than the tag's holes say."""
    if found not in (0, expected):
        place = f"at {expected:#x}" if expected else "nowhere"
        raise ConfigurationError(
            f"{name} has its BIOS at {found:#x}, and the bus expects it {place}: transfers to these addresses modulo "
            "16 MiB would go astray; correct the bus's configuration, or switch the BIOS off"
        )
