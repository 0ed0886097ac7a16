"""The AHA-1542 on an ISA bus: is it there, and what can it address?"""

from __future__ import annotations

from typing import Final

from busdma.drivers import mailbox_port
from busdma.drivers.aha1542 import layout
from busdma.drivers.aha1542.core import Aha1542
from busdma.errors import DeviceFault
from busdma.machine.attachment import Attachment

MAX_TRANSFER: Final = 64 << 10  #: 16 pages of 4 KiB; 17 segments let such a buffer start anywhere in a page


def attach(attachment: Attachment) -> Aha1542:
    """The driver of the adapter at the attachment's registers. DeviceFault if nothing drives the bus there."""
    if attachment.registers.read8(mailbox_port.STATUS) == 0xFF:
        raise DeviceFault(f"{attachment.name}: no adapter answers at its ports (the status port reads 0xff)")
    tag = attachment.tag.derive(
        name="data",
        lowaddr=0xFFFFFF,  # 24 address lines, whatever the bus has (4.1)
        nsegments=layout.SEGMENTS_MOST,
        maxsegsz=0xFFFFFF,
        maxsize=MAX_TRANSFER,
        clip=True,
    )
    return Aha1542(attachment, tag, maxio=MAX_TRANSFER)
