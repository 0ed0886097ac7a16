"""The Bt848 on a PCI bus, and the video function of the Bt878, which is the same for this driver."""

from __future__ import annotations

from typing import Final

from busdma.drivers.bt848.core import Grabber
from busdma.drivers.pci import PciDevice
from busdma.machine.attachment import Attachment

IDENTITIES: Final = ((0x109E, 0x0350), (0x109E, 0x036E))
ADDRESS_BITS: Final = 32
ALIGNMENT: Final = 4  # of RISC instructions and of lines, which are dwords


def attach(attachment: Attachment) -> Grabber:
    """The driver of the device at the attachment. DeviceFault: nothing answers. ConfigurationError: it is no Bt848."""
    device = PciDevice(attachment)
    device.expect(IDENTITIES)
    tag = attachment.tag.derive(
        "memory",
        lowaddr=(1 << ADDRESS_BITS) - 1,
        alignment=ALIGNMENT,
        nsegments=1,  # the driver computes where each line goes from one address
        clip=True,
    )
    return Grabber(
        attachment,
        tag,
        device.registers,
        enable=lambda registers, memory: device.enable(memory_space=registers, bus_master=memory),
    )
