"""Firmware on a PCI bus: bridges of 16 and of 32 bits of I/O space, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest

from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.machine.handle import Handle32
from busdma.machine.pci_firmware import assign

MEMORY = AddressSet.span(0x2000_0000, 0x2FFF_FFFF)


class Function(Handle32):
    """A function with I/O base address registers of these sizes; or a bridge, with the bus behind it."""

    def __init__(self, ports: Sequence[int] = (), *, behind: Bus | None = None, wide: bool = False) -> None:
        self.behind = behind
        self._bytes = bytearray(64)
        self._bytes[0x0B] = 0x06 if behind else 0x01
        self._bytes[0x0A] = 0x04 if behind else 0x00
        self._bytes[0x0E] = 1 if behind else 0
        self._sizes = {0x10 + 4 * n: size for n, size in enumerate(ports)}
        self._wide = wide

    def _read(self, offset: int, size: int) -> int:
        value = int.from_bytes(self._bytes[offset : offset + size], "little")
        if offset in self._sizes:
            return value & -self._sizes[offset] & 0xFFFF_FFFF | 1
        if self.behind is not None and offset in (0x1C, 0x1D):
            return value & 0xF0 | self._wide
        return value

    def _write(self, offset: int, size: int, value: int) -> None:
        if 0x10 <= offset < (0x28 if self.behind is None else 0x18) and offset not in self._sizes:
            return
        if offset in (0x30, 0x32) and not self._wide:
            return
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")

    def forwarded(self) -> tuple[int, int]:
        """The first and the last port that the bridge forwards."""
        first, last = (
            self.read16(high) << 16 | (self.read8(low) & 0xF0) << 8 for low, high in ((0x1C, 0x30), (0x1D, 0x32))
        )
        return first, last | 0xFFF

    def __repr__(self) -> str:
        return "00:01.0"


class Bus:
    def __init__(self, *functions: Function) -> None:
        self.name = "pci0"
        self._functions = functions

    def functions(self) -> Iterator[Function]:
        yield from self._functions

    def behind(self, bridge: Function, number: int) -> Bus:
        assert bridge.behind is not None
        assert bridge.read8(0x19) == number
        return bridge.behind


def test_a_bridge_of_16_bits_forwards_its_ports() -> None:
    device = Function([0x100, 0x20])
    bridge, empty = Function(behind=Bus(device)), Function(behind=Bus())
    assign(Bus(empty, bridge), MEMORY, AddressSet.span(0xC000, 0xFFFF))
    assert bridge.forwarded() == (0xC000, 0xCFFF)
    assert [device.read32(0x10), device.read32(0x14)] == [0xC001, 0xC101]
    first, last = empty.forwarded()
    assert first > last


def test_a_bridge_of_32_bits_forwards_ports_above_64_kib() -> None:
    devices = [Function([0x100]), Function([0x8000, 0x10])]
    bridges = [Function(behind=Bus(device), wide=True) for device in devices]
    assign(Bus(*bridges), MEMORY, AddressSet.span(0x8000, 0xFF_FFFF))
    assert [bridge.forwarded() for bridge in bridges] == [(0x8000, 0x8FFF), (0x9000, 0x1_8FFF)]
    assert [devices[1].read32(0x10), devices[1].read32(0x14)] == [0x1_0001, 0x1_8001]


def test_a_bridge_of_16_bits_cannot() -> None:
    bridge = Function(behind=Bus(Function([0x8000, 0x10])))
    with pytest.raises(ConfigurationError, match=re.escape("behind 00:01.0 needs I/O space up to 0x19000")):
        assign(Bus(Function([0x100]), bridge), MEMORY, AddressSet.span(0x8000, 0xFF_FFFF))


def test_i_o_space_has_an_end() -> None:
    with pytest.raises(ConfigurationError, match=r"0x4010 bytes of I/O space from 0xc000 on"):
        assign(Bus(Function([0x2000, 0x2000, 0x10])), MEMORY, AddressSet.span(0xC000, 0xFFFF))
