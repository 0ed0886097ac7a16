"""A BusLogic BT-445S SCSI host adapter: mailboxes on the VESA local bus, with numbers of 32 bits, and queue tags.

It also takes the mailboxes and CCBs of an AHA-1542, if it is told of them by that adapter's command. The bug of its
addresses is not here but on their way to memory: see `busdma.sim.bus.vlb`.

Source: BusLogic MultiMaster Technical Reference Manual, chapter 1: 1-8 to 1-14 (registers), 1-18 to 1-20 (commands).
What it leaves open, and what this model does: firmware before 3.35, which has no queue tags, refuses a CCB that asks
for one; the commands 07h and 08h, for ISA's bus times, are taken and do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from busdma.errors import ConfigurationError
from busdma.sim.scsi.mailbox_adapter import PARAMETERS, MailboxAdapter
from busdma.sim.scsi.mailbox_layout import BITS_32
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.wiring import CallAt, Memory, Pin

MODEL: Final = b"445S"
SLOTS: Final = 30  #: CCBs that the board works on at a time
BIOS: Final = 0xDC000  #: where its ROM lies unless it is told otherwise

MORE_PARAMETERS: Final = {0x81: 5, 0x84: 0, 0x85: 0, 0x8B: 1, 0x8C: 1, 0x8D: 1, 0x8F: 1}
STRICT_SINCE, TAGS_SINCE, SOUND_SINCE = "3.31", "3.35", "3.37"  #: firmware with round-robin, queue tags, no bug


class Bt445s(MailboxAdapter):
    """One adapter at power-on. See `MailboxAdapter`. `bios`: address of its ROM, 0 if it is switched off."""

    BYTE: ClassVar = 100  # fast SCSI-2: 10 MB/s; the local bus does not slow it down
    BUS_TIMES: ClassVar = (11, 0)
    FOURTH_PORT: ClassVar = 0x00  # the geometry register (no extended translation)

    def __init__(
        self,
        master: Memory,
        interrupt: Pin,
        call_at: CallAt,
        now: Callable[[], int],
        *,
        irq: int,
        scsi_id: int = 7,
        targets: Mapping[int, ScsiTarget],
        firmware: str = "3.36",
        bios: int = BIOS,
        slots: int = SLOTS,
    ) -> None:
        if not re.fullmatch(r"3\.\d\d[A-Z]?", firmware):
            raise ConfigurationError(f"a BT-445S has firmware such as 3.36 or 3.37A, not {firmware!r}")
        if bios % 0x4000 or not (bios == 0 or 0xC8000 <= bios <= 0xDC000):
            raise ConfigurationError(f"a BIOS ROM of 16 KiB lies at 0xc8000 to 0xdc000, not at {bios:#x}; 0: no BIOS")
        if not 1 <= slots <= 255:
            raise ConfigurationError(f"1 to 255 CCBs at a time, not {slots}")
        self.firmware, self.bios = firmware, bios
        super().__init__(
            master,
            interrupt,
            call_at,
            now,
            irq=irq,
            dma_channel=None,
            scsi_id=scsi_id,
            targets=targets,
            parameters=PARAMETERS | MORE_PARAMETERS,
            slots=slots,
        )
        self.bus.tags_known = firmware >= TAGS_SINCE

    def _execute(self, opcode: int, parameters: bytes) -> None:
        version = self.firmware.ljust(5).encode()
        match opcode:
            case 0x04:  # inquire board identification: type, features, the first two digits of the version
                self._answer(b"AA" + version[:1] + version[2:3])
            case 0x07 | 0x08:  # bus times
                self._command_complete()
            case 0x81:  # initialize mailboxes of 32 bits
                self._place_mailboxes(parameters[0], int.from_bytes(parameters[1:], "little"), BITS_32)
            case 0x84:  # the third digit
                self._answer(version[3:4])
            case 0x85 if self.firmware >= "3.3":  # and the letter
                self._answer(version[4:5])
            case 0x8B:  # inquire board model
                self._answer_padded(MODEL, parameters[0])
            case 0x8C:  # inquire synchronous periods: 0, asynchronous
                self._answer_padded(bytes(16), parameters[0])
            case 0x8D:  # inquire extended setup information
                self._answer_padded(self._extended_setup(version), parameters[0])
            case 0x8F if self.firmware >= STRICT_SINCE and parameters[0] <= 1:
                self._mailboxes.strict = bool(parameters[0])
                self._command_complete()
            case 0x85 | 0x8F:
                self._invalid()
            case _:
                super()._execute(opcode, parameters)

    def _extended_setup(self, version: bytes) -> bytes:
        """Bus type, BIOS page, segments, mailboxes, where they are, flags, the end of the version, flags."""
        fast_burst = 0x24
        return b"".join(
            (
                b"E",
                bytes((self.bios >> 12,)),
                BITS_32.most_segments.to_bytes(2, "little"),
                bytes((self._mailboxes.count,)),
                self._mailboxes.base.to_bytes(4, "little"),
                bytes((fast_burst,)),
                version[2:5],
                b"\0",
            )
        )
