"""The floppy disk controller on an ISA bus: is it there, and what can its DMA channel do?"""

from __future__ import annotations

from busdma.drivers.fdc import layout
from busdma.drivers.fdc.core import Fdc
from busdma.errors import ConfigurationError, DeviceFault
from busdma.machine.attachment import Attachment


def attach(attachment: Attachment) -> Fdc:
    """The driver of the controller at the attachment's registers, 8 ports, and its DMA channel.

    ConfigurationError: no channel is wired to it; DeviceFault: nothing drives the bus there.
    """
    channel = attachment.dma
    if channel is None:
        raise ConfigurationError(f"{attachment.name}: a floppy disk controller needs a DMA channel: wire one to it")
    if attachment.registers.read8(layout.MSR) == 0xFF:
        raise DeviceFault(f"{attachment.name}: no controller answers at its ports (the status port reads 0xff)")
    tag = attachment.tag.derive(
        name="data",
        lowaddr=channel.lowaddr,
        alignment=channel.alignment,
        boundary=channel.boundary,
        nsegments=channel.nsegments,
        maxsegsz=channel.maxsegsz,
        maxsize=layout.LARGEST,
        clip=True,
    )
    return Fdc(attachment, tag, channel)
