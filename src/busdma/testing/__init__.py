"""For tests of drivers and of back ends: a pytest plugin, and the conformance suite.

With busdma installed, a test that takes ``machine`` runs on a fresh machine, once for each machine that fits::

    import pytest

    @pytest.mark.busdma(drivers="edu", check=True)
    def test_my_driver(machine):
        driver = MyDriver(attachment(machine, "edu0"))

``pytest --pyargs busdma.testing.conformance --busdma-machine GLOB`` shows of a machine that it keeps every promise of
the design. docs/testing.md is the guide to both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from busdma.errors import ConfigurationError
from busdma.machine.attachment import Attachment
from busdma.machine.owner import OwnedRuntime

if TYPE_CHECKING:
    from busdma.machine.machine import Machine

__all__ = ["attachment"]


def attachment(machine: Machine, name: str) -> Attachment:
    """The device `name` as its bus hands it to a driver: for a driver that is not in the table of drivers.

    Should a context of that driver die, what it had loaded is quarantined, as with any driver. ConfigurationError if
    the machine has no such device.
    """
    device = machine.devices.get(name)
    if device is None:
        why = machine.absent.get(name) or f"it has: {', '.join(sorted(machine.devices)) or 'none'}"
        raise ConfigurationError(f"{machine.spec} has no device {name!r}; {why}")
    tag = device.tag.derive(name)
    return Attachment(
        name=device.name,
        tag=tag,
        registers=device.registers,
        interrupt=device.interrupt,
        runtime=OwnedRuntime(machine.runtime, tag),
        properties=device.properties,
        config=device.config,
    )
