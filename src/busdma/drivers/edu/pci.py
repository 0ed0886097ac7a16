"""The edu device on a PCI bus: is it there, and what can it address?"""

from __future__ import annotations

from typing import Final

from busdma.drivers.edu.core import BUFFER_SIZE, Edu
from busdma.drivers.pci import PciDevice
from busdma.machine.attachment import Attachment

IDENTITY: Final = (0x1234, 0x11E8)
ADDRESS_BITS: Final = 28  #: "supports only 28 bits (256 MiB) by default"


def attach(attachment: Attachment) -> Edu:
    """The driver of the device at the attachment. DeviceFault if nothing answers, ConfigurationError if it is no edu.

    The device does not tell how many address lines it drives: the property ``address_bits`` does, if it is not 28. The
    property ``room``: how many bytes of its memory are used, if not all 4096.
    """
    device = PciDevice(attachment)
    device.expect([IDENTITY])
    bits = attachment.properties.get("address_bits", ADDRESS_BITS)
    room = attachment.properties.get("room", BUFFER_SIZE)
    tag = attachment.tag.derive(
        name="data",
        lowaddr=(1 << bits) - 1,
        nsegments=1,  # one source and one destination register
        maxsegsz=room,
        maxsize=room,
        clip=True,
    )
    return Edu(
        attachment,
        tag,
        device.registers,
        enable=lambda registers, memory: device.enable(memory_space=registers, bus_master=memory),
        room=room,
    )
