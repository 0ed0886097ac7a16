"""Devices that a user has added to a machine's PCI, by the option ``devices``: found by the ids they have in QEMU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from busdma.machine.attachment import ConfigSpace
from busdma.machine.pci_firmware import CLASS
from busdma.qemu.monitor import Monitor

#: drivers by (vendor, device), and by class code
BY_IDENTITY: Final = {(0x1022, 0x2020): "ncr53c9x", (0x1234, 0x11E8): "edu"}
BY_CLASS: Final = {0x010802: "nvme"}
#: properties of devices, by driver
PROPERTIES: Final = {"edu": {"room": 2048}}  # bytes of a transfer: QEMU 7.2 ends itself at one of all 4096


class Extra(NamedTuple):
    """A function on PCI that has a name: the `id` of its ``-device``."""

    name: str
    bus: int
    slot: int


def extras(monitor: Monitor, known: Iterable[str]) -> list[Extra]:
    """What has an id, and none of the `known` ones; bridges are passed through. DeviceFault: QEMU has gone."""
    known = set(known)
    return [
        extra
        for bus in monitor.execute("query-pci")
        for extra in _named(bus["devices"])
        if extra.name and extra.name not in known
    ]


def ids(lines: Iterable[str]) -> list[str]:
    """The ids that the arguments of ``-device`` give.

    >>> ids(["edu,id=edu9,addr=9", "e1000", "am53c974,id=esp9"])
    ['edu9', 'esp9']
    """
    return [found[1] for line in lines if (found := re.search(r",id=([^,]+)", line))]


def driver_for(config: ConfigSpace) -> str:
    """The name of a driver for the function; "" if there is none."""
    both = config.read32(0)
    found = BY_IDENTITY.get((both & 0xFFFF, both >> 16)) or BY_CLASS.get(config.read32(CLASS) >> 8)
    return found or ""


def _named(devices: list[dict[str, Any]]) -> Iterator[Extra]:
    for device in devices:
        if behind := device.get("pci_bridge"):
            yield from _named(behind.get("devices", []))
        elif device["function"] == 0:
            yield Extra(device["qdev_id"], device["bus"], device["slot"])
