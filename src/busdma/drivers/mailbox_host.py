"""What the drivers of all mailbox adapters do alike: mailboxes and CCBs for what `busdma.drivers.scsi_host` decides.

There are as many outgoing mailboxes as CCBs, and one CCB is never used: its mailbox is the one for an abort, so that
an abort finds room even when all the others are full. A chip's driver derives from `MailboxHost`; its layout module
says how its mailboxes and CCBs lie in memory.

Source: as `busdma.drivers.mailbox_port`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from busdma.drivers import mailbox_port
from busdma.drivers.host import SECOND, TIMEOUT
from busdma.drivers.mailbox_port import POLL, Port
from busdma.drivers.scsi import Outcome
from busdma.drivers.scsi_host import ScsiHost, Slot
from busdma.errors import ConfigurationError
from busdma.machine.attachment import Attachment
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE

if TYPE_CHECKING:
    from busdma.map import Map
    from busdma.memory import DmaMemory
    from busdma.tag import Tag

TO_DEVICE: Final = PREREAD | PREWRITE  # mailboxes and CCBs are written by both sides
FROM_DEVICE: Final = POSTREAD | POSTWRITE

HOST_STATUS: Final = {  # 5.3; the codes are listed on 6-17 too
    0x00: "no host adapter error",
    0x0A: "linked command complete",
    0x0B: "linked command complete with flag",
    0x11: "selection timeout",
    0x12: "data overrun or underrun",
    0x13: "unexpected bus free",
    0x14: "target bus phase sequence failure",
    0x15: "invalid mailbox command",
    0x16: "invalid CCB operation code",
    0x17: "linked CCB with a different LUN",
    0x18: "invalid target direction",
    0x19: "duplicate CCB in target mode",
    0x1A: "invalid CCB or segment list parameter",
    0x1B: "automatic request sense failed",
}


class Layout(Protocol):
    """A chip's layout module."""

    @property
    def BOX(self) -> int:
        """Bytes of a mailbox."""

    @property
    def SLOT(self) -> int:
        """Bytes of a CCB with all that belongs to it."""

    def write_mailbox(self, memory: memoryview, offset: int, action: int, address: int) -> None:
        """Fill the mailbox at `offset`, or free it; the byte that the adapter looks at comes last."""

    def read_mailbox(self, memory: memoryview, offset: int) -> tuple[int, int]:
        """(action or status, CCB address) of the mailbox at `offset`."""

    def read_outcome(self, memory: memoryview, offset: int) -> Outcome:
        """What the adapter wrote into the CCB at `offset`."""


class Ccb(Slot):
    """A slot of our CCB array."""

    __slots__ = ("address", "given", "offset")

    def __init__(self, data: Map, offset: int, address: int) -> None:
        super().__init__(data)
        self.offset, self.address = offset, address
        self.given = False  #: the CCB is the adapter's


class MailboxHost(ScsiHost[Ccb]):
    """One adapter. `ccbs`: one more than the commands that may be in flight. `maxio`: bytes in one of them."""

    HOST_STATUS: ClassVar = HOST_STATUS
    layout: ClassVar[Layout]

    def __init__(self, attachment: Attachment, tag: Tag, *, maxio: int, ccbs: int, timeout: int = TIMEOUT) -> None:
        super().__init__(attachment, tag, maxio=maxio, timeout=timeout)
        if not 2 <= ccbs <= 255:  # the mailbox count is one byte (5-2)
            raise ConfigurationError(f"{self.name}: 2 to 255 CCBs, not {ccbs}")
        self._port = Port(self.name, attachment.registers, self._runtime)
        self._count = ccbs
        self._ccbs_at = 2 * self.layout.BOX * ccbs  # behind the mailboxes
        self._next_out = self._next_in = 0
        self._mail: DmaMemory

    # -- what a chip's driver says ------------------------------------------------------------------------------------

    @abstractmethod
    async def _identify(self) -> None:
        """The adapter has been reset: see that it is the right one, and open it."""

    @abstractmethod
    async def _hand_over(self) -> None:
        """Tell it where the mailboxes are."""

    @abstractmethod
    def _write(self, slot: Ccb) -> None:
        """Write the slot's CCB."""

    # -- up and down --------------------------------------------------------------------------------------------------

    def _make_slots(self) -> list[Ccb]:
        step = self.layout.SLOT
        size = self._ccbs_at + step * self._count
        control = self.tag.derive(name="control", nsegments=1, maxsize=size, maxsegsz=size)
        try:
            self._mail = control.alloc(size)
        except BaseException:
            control.destroy()
            raise
        offsets = range(self._ccbs_at, size - step, step)  # the last one is kept back
        return [Ccb(self.tag.create_map(), offset, self._mail.address + offset) for offset in offsets]

    def _free_memory(self) -> None:
        self._mail.free()
        self._mail.tag.destroy()

    async def _quiesce(self) -> None:
        await self._port.reset(mailbox_port.SOFT_RESET)  # "abandon all CCBs" (4-10)

    async def _bring_up(self, hard: bool) -> None:
        """Reset, check what the jumpers say, and hand the mailboxes over."""
        port = self._port
        if not hard:
            # the soft reset must follow within 300 us, or commands start again (4-10)
            port.control(mailbox_port.SCSI_RESET)
        await port.reset(mailbox_port.HARD_RESET if hard else mailbox_port.SOFT_RESET)
        await self._identify()
        answer = await port.command(mailbox_port.CONFIGURATION, reply=3)
        dma, irq, _ = mailbox_port.parse_configuration(answer)
        for what, is_set_to in (("irq", irq), ("drq", dma)):
            wanted = self._attachment.properties.get(what, is_set_to)
            if wanted != is_set_to:
                raise ConfigurationError(f"{self.name} is set to {what} {is_set_to}; the bus expects {what} {wanted}")
        self._mail.tag.report_idle()  # it has been reset: all of it is ours again
        for slot in self._slots:
            slot.given = False
        self._mail.view[: self._ccbs_at] = bytes(self._ccbs_at)
        self._mail.sync(TO_DEVICE, 0, self._ccbs_at)
        self._next_out = self._next_in = 0
        await self._hand_over()

    async def _installed(self) -> list[tuple[int, int]]:
        # 5-7, 5-8: a byte a target, a bit a LUN; "less than three seconds", but a minute for a target that stays busy
        found = await self._port.command(mailbox_port.INSTALLED_DEVICES, reply=8, limit=90 * SECOND)
        return [(target, lun) for target, luns in enumerate(found) for lun in range(8) if luns >> lun & 1]

    # -- outgoing -----------------------------------------------------------------------------------------------------

    def _begin(self, slot: Ccb) -> None:
        self._write(slot)
        self._mail.sync(TO_DEVICE, slot.offset, self.layout.SLOT)
        slot.given = True
        self._send(mailbox_port.START, slot)

    def _begin_abort(self, slot: Ccb) -> None:
        self._send(mailbox_port.ABORT, slot)

    def _send(self, action: int, slot: Ccb) -> None:
        """Fill the next outgoing mailbox; the adapter scans them in turn (5-30). Under the lock."""
        layout = self.layout
        at = layout.BOX * self._next_out
        with self._mailbox(at):
            room = layout.read_mailbox(self._mail.view, at)[0] == mailbox_port.FREE
            if room:
                layout.write_mailbox(self._mail.view, at, action, slot.address)
        if not room:
            self._trouble.put(f"outgoing mailbox {self._next_out} is still full")
            return
        self._next_out = (self._next_out + 1) % self._count
        self._ring()

    @contextmanager
    def _mailbox(self, at: int) -> Iterator[None]:
        """Inside, the mailbox at `at` is ours; else the adapter's, which looks whenever it likes. Under the lock."""
        self._mail.sync(FROM_DEVICE, at, self.layout.BOX)
        yield
        self._mail.sync(TO_DEVICE, at, self.layout.BOX)

    def _ring(self) -> None:
        with self._lock:
            if self._open and not self._port.ring():
                self._runtime.call_at(self._runtime.now() + POLL, self._ring)

    # -- incoming -----------------------------------------------------------------------------------------------------

    async def _complete(self) -> None:
        while True:
            await self._attachment.interrupt.wait()
            flags = self._port.acknowledge()  # before looking at the mailboxes, or the next one could be missed
            self._counts["interrupts"] += 1
            if flags & mailbox_port.RESET_DETECTED:
                self._trouble.put("somebody reset its SCSI bus")
            if flags & mailbox_port.MAILBOX_IN_FULL:
                while self._take_mail():
                    pass

    def _take_mail(self) -> bool:
        """Empty one incoming mailbox; the adapter fills them in turn (5-17). False: the next one is empty."""
        layout = self.layout
        with self._lock:
            if not self._open:
                return False  # a reset is under way, which settles everything
            at = layout.BOX * (self._count + self._next_in)
            with self._mailbox(at):
                status, address = layout.read_mailbox(self._mail.view, at)
                if status != mailbox_port.FREE:
                    layout.write_mailbox(self._mail.view, at, mailbox_port.FREE, 0)
            if status == mailbox_port.FREE:
                return False
            self._next_in = (self._next_in + 1) % self._count
            index, rest = divmod(address - self._mail.address - self._ccbs_at, layout.SLOT)
            slot = self._slots[index] if rest == 0 and 0 <= index < len(self._slots) else None
            if slot is None or not slot.told:
                self._counts["stray"] += 1
                return True
            if slot.given:  # an abort that finds nothing comes behind the end of its command
                self._mail.sync(FROM_DEVICE, slot.offset, layout.SLOT)
                slot.given = False
        if status in (mailbox_port.DONE, mailbox_port.FAILED):
            self._finished(slot, layout.read_outcome(self._mail.view, slot.offset))
        elif status in (mailbox_port.ABORTED, mailbox_port.NOT_FOUND):
            self._aborted(slot)
        return True
