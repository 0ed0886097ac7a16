"""An Adaptec AHA-1542 SCSI host adapter: a mailbox adapter on the ISA bus, with a lock on its mailboxes.

Source: Adaptec AHA-1540B/1542B User's Manual, and the AHA-1740A/1742A/1744 Technical Reference Manual. Neither has the
commands 28h and 29h of the 1542C's mailbox lock: they are modelled by what drivers of the time do with them; the lock,
once opened, stays open until power-off.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from busdma.sim.scsi.mailbox_adapter import PARAMETERS, MailboxAdapter, check_choice
from busdma.sim.scsi.target import ScsiTarget
from busdma.sim.wiring import CallAt, Memory, Pin

BOARDS: Final = {"1542B": 0x41, "1542C": 0x44, "1542CF": 0x45}  #: first byte of the adapter inquiry
LOCK_COMMANDS: Final = {0x28: 0, 0x29: 2}  #: and how many parameter bytes follow


class Aha1542(MailboxAdapter):
    """One adapter at power-on. See `MailboxAdapter`; `seed` chooses the code of the mailbox lock."""

    BYTE: ClassVar = 200  # 5 MB/s
    BUS_TIMES: ClassVar = (11, 4)

    def __init__(
        self,
        master: Memory,
        interrupt: Pin,
        call_at: CallAt,
        now: Callable[[], int],
        *,
        irq: int,
        dma_channel: int,
        scsi_id: int = 7,
        targets: Mapping[int, ScsiTarget],
        board: str = "1542CF",
        seed: int = 0,
    ) -> None:
        check_choice("board", board, BOARDS)
        self._board = board
        self._lock = 0 if board == "1542B" else random.Random(seed).randrange(1, 256)
        super().__init__(
            master,
            interrupt,
            call_at,
            now,
            irq=irq,
            dma_channel=dma_channel,
            scsi_id=scsi_id,
            targets=targets,
            parameters=PARAMETERS if board == "1542B" else PARAMETERS | LOCK_COMMANDS,
        )

    def _execute(self, opcode: int, parameters: bytes) -> None:
        match opcode:
            case 0x01 if self._lock:  # mailbox initialization
                self._invalid()
            case 0x04:  # adapter inquiry (5-3): board, options, firmware revision
                self._answer(bytes((BOARDS[self._board],)) + b"001")
            case 0x28:  # return extended BIOS information: no flag set, and the lock code, 0 when it is open
                self._answer(bytes((0, self._lock)))
            case 0x29 if parameters[1] != self._lock:  # mailbox interface enable: the second byte must be the code
                self._invalid()
            case 0x29:
                self._lock = 0
                self._command_complete()
            case _:
                super()._execute(opcode, parameters)
