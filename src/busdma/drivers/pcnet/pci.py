"""PCnet controllers on PCI: is it one, and what can it address?

Source: AMD Am79C970A data sheet (publication 19436), "PCI Configuration Registers", "Buffer Management".
"""

from __future__ import annotations

from typing import Final

from busdma.drivers.pci import PciDevice
from busdma.drivers.pcnet.core import TIMEOUT, Pcnet
from busdma.machine.attachment import Attachment

IDENTITY: Final = (0x1022, 0x2000)
ADDRESS_BITS: Final = 32  #: of every address in a descriptor


def attach(attachment: Attachment, *, timeout: int = TIMEOUT) -> Pcnet:
    """The driver of the controller at the attachment. DeviceFault if nothing answers, ConfigurationError if it is none.

    Its registers are those in memory space, base address register 1. The property ``inside``, if not 0, has frames turn
    round inside the chip.
    """
    device = PciDevice(attachment)
    device.expect([IDENTITY])
    tag = attachment.tag.derive(name="data", lowaddr=(1 << ADDRESS_BITS) - 1, clip=True)
    return Pcnet(
        attachment,
        tag,
        device.registers,
        enable=lambda registers, memory: device.enable(memory_space=registers, bus_master=memory),
        timeout=timeout,
        inside=bool(attachment.properties.get("inside", 0)),
    )
