"""NVM Express on PCI: is it one, and what can it address?

Source: NVM Express Base Specification 1.4, 2.1 (PCI header), 4.3 (PRPs), 7.5.1 (interrupts).
"""

from __future__ import annotations

from typing import Final

from busdma.drivers import msix
from busdma.drivers.nvme.core import Nvme
from busdma.drivers.nvme.layout import PAGE
from busdma.drivers.pci import PciDevice
from busdma.errors import ConfigurationError
from busdma.machine.attachment import Attachment

MAX_TRANSFER: Final = 128 << 10  #: 32 pages, and one more for a buffer that begins inside a page
CLASS: Final = 0x010802  #: mass storage, non-volatile memory, NVM Express


def attach(attachment: Attachment, *, maxio: int = MAX_TRANSFER, depth: int = 31) -> Nvme:
    """The driver of the controller: at most `maxio` bytes a command, `depth` commands of a namespace in flight.

    DeviceFault if nothing answers, ConfigurationError if it is no NVMe controller. Two properties, in ns: ``poll``, how
    often to look for completions on a machine that delivers no interrupts; ``spin``, how long whoever waits for one is
    to look for it himself first.
    """
    device = PciDevice(attachment)
    if device.class_code != CLASS:
        raise ConfigurationError(f"{attachment.name} is of class {device.class_code:06x}, not NVMe's {CLASS:06x}")
    tag = attachment.tag.derive(
        name="data",
        alignment=4,  # of PRP 1 (4.3); 64-bit addresses, whatever the bus has
        joint=PAGE,
        nsegments=maxio // PAGE + 1,
        maxsize=maxio,
        clip=True,
    )
    return Nvme(
        attachment,
        tag,
        device.registers,
        enable=lambda registers, memory: device.enable(memory_space=registers, bus_master=memory),
        maxio=maxio,
        depth=depth,
        poll=attachment.properties.get("poll", 0),
        spin=attachment.properties.get("spin", 0),
        vectors=msix.find(device, attachment.messages),
    )
