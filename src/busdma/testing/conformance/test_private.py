"""Physical addresses never reach a driver, and a driver knows nothing of the machine but its attachment."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from busdma.buffers import LinearBuffer
from busdma.domain import DmaDomain
from busdma.drivers import FRONT_ENDS
from busdma.machine.machine import Machine
from busdma.machine.space import AddressSpace

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose

#: what only a machine may know: back ends, page frames, address spaces, physical addresses
FORBIDDEN: Final = (
    "busdma.sim",
    "busdma.qemu",
    "busdma.vfio",
    "busdma.machines",
    "busdma.machine.machine",
    "busdma.machine.frames",
    "busdma.machine.space",
    "busdma.domain",
)


def sources(machine: Machine) -> Iterator[tuple[str, str]]:
    """(name, text) of each module of each driver that the machine has a device for."""
    packages = {
        FRONT_ENDS[device.driver, device.bus].rpartition(".")[0]
        for device in machine.devices.values()
        if (device.driver, device.bus) in FRONT_ENDS
    }
    for package in sorted(packages):
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            spec = find_spec(module.name)
            assert spec is not None
            assert spec.origin is not None
            yield module.name, Path(spec.origin).read_text(encoding="utf-8")


def test_no_driver_imports_a_machine(machine: Machine) -> None:
    """What its bus hands over is all that a driver knows: no back end, no page frame, no physical address."""
    seen = 0
    for name, text in sources(machine):
        seen += 1
        for node in ast.walk(ast.parse(text)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for imported in names:
                assert not imported.startswith(FORBIDDEN), f"{name} imports {imported}"
                assert not imported.endswith("PhysicalAddress"), f"{name} imports {imported}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"domain", "frames", "holder"}, f"{name} looks at .{node.attr}"
    assert seen > 1


def test_an_attachment_holds_no_machine(machine: Machine) -> None:
    """A tag, registers, an interrupt, a runtime and numbers: no memory, no address space, no machine."""
    for name in machine.devices:
        given = machine.attachment(name)
        for field in fields(given):
            value = getattr(given, field.name)
            assert not isinstance(value, Machine | DmaDomain | AddressSpace | LinearBuffer | memoryview)
        assert all(isinstance(number, int) for number in given.properties.values())
        given.tag.destroy()
