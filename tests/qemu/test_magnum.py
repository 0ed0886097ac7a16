"""QEMU's Magnum, in both byte orders: all DMA through the RC4030's table, which knows no rights and no nowhere."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import busdma
from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError
from busdma.qemu.magnum import LOGICAL, RC4030, TARGETS, Magnum
from qemu.esp_rig import BLOCK, IN, OUT, Esp, ended, filled, loaded, round_trip
from qemu.idle import cpu_sleeps
from qemu.machines import need

PAGE = 4096
FIRST_FRAME = b"vectors of exceptions, 32 bytes." * (PAGE // 32)
orders = pytest.mark.parametrize("order", list(TARGETS))


@contextmanager
def opened(order: str = "little", **options: object) -> Iterator[Magnum]:
    need(TARGETS[order])
    given: dict[str, Any] = {"order": order, "disk_mib": 1, "ram": 16, **options}
    with busdma.open("qemu:magnum", **given) as machine:
        assert isinstance(machine, Magnum)
        assert machine.qtest.order == order
        yield machine


@orders
def test_the_cpu_sleeps(order: str) -> None:
    with opened(order) as machine:
        assert cpu_sleeps(machine.qemu)
        assert "pc=0xffffffffbfc00000" in machine.qemu.monitor.hmp("info registers")  # and has not begun


@orders
@pytest.mark.parametrize("options", [{}, {"check": True}, {"runtime": "threads"}], ids=str)
def test_data_go_to_the_disk_through_the_table(order: str, options: dict[str, Any], tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300 * BLOCK)
    with opened(order, images=tmp_path, disks=2, **options) as machine:
        round_trip(machine, data)
        traffic = machine.traffic("esp0")
        assert (traffic.mechanism, traffic.bytes) == ("remap", 4 * len(data))
        statistics = machine.statistics()["rc4030"]
        assert (statistics["active"], statistics["standing"]) == (0, 0)
    for name in ("esp0", "esp0-3"):
        assert (tmp_path / f"{name}.img").read_bytes()[3 * BLOCK :][: len(data)] == data
    assert machine.leaks() == []


@orders
def test_registers_have_the_cpus_byte_order_and_entries_are_little_endian(order: Any) -> None:
    with opened(order) as machine:
        buffer = machine.allocate(3 * PAGE)
        dma, address = loaded(machine.attachment("esp0").tag, buffer, IN)
        assert address <= LOGICAL - 3 * PAGE
        frames = buffer.frames.table[buffer.start // PAGE :][:3]
        table, limit = (machine.qtest.read(RC4030 + at, 4, order) for at in (0x18, 0x20))
        assert limit == LOGICAL // PAGE * 8
        entries = machine.qtest.read_bytes(table + address // PAGE * 8, 24)
        assert [entries[n : n + 8] for n in (0, 8, 16)] == [frame.to_bytes(8, "little") for frame in frames]
        registers: Any = machine.devices["esp0"].registers
        registers.write32(0x1018, 0x12_3456)  # where channel 0 has its address
        assert machine.qtest.read(RC4030 + 0x118, 4, order) == 0x12_3456
        registers.write8(8, 0x57)  # CONFIG 1 of the chip
        assert machine.qtest.read(0x8000_2008, 1) == 0x57
        ended(dma)


@orders
def test_what_is_unloaded_leads_to_the_first_frame_and_nowhere_else(order: str) -> None:
    """No entry is invalid. So the frame at 0 is nobody's: a device that uses an old address finds that one."""
    with opened(order) as machine:
        assert machine.frames.owner_of(0) == "reserved"
        machine.ram.bus[:PAGE] = FIRST_FRAME
        esp = Esp(machine)
        tag = machine.attachment("esp0").tag
        buffer = filled(machine, 0x11)
        dma, address = loaded(tag, buffer, OUT)
        esp.from_memory(address, 5)
        ended(dma)
        esp.from_memory(address + 64, 6)
        esp.to_memory(5, address + PAGE // 2)
        memory = bytes(machine.ram.bus)
        assert memory[:PAGE] == FIRST_FRAME[: PAGE // 2] + b"\x11" * BLOCK + FIRST_FRAME[PAGE // 2 + BLOCK :]
        assert buffer.read() == b"\x11" * PAGE
        into = machine.allocate(2 * BLOCK)
        dma, address = loaded(tag, into, IN)
        esp.to_memory(5, address, 2)
        dma.sync(IN.post)
        assert into.read() == b"\x11" * BLOCK + FIRST_FRAME[64 : 64 + BLOCK]
        ended(dma)


@orders
def test_beyond_the_limit_is_nowhere(order: str) -> None:
    with opened(order) as machine:
        esp = Esp(machine)
        into = filled(machine, 0x22, 2 * BLOCK)
        dma, address = loaded(machine.attachment("esp0").tag, into, IN)
        esp.from_memory(address, 5)
        before = bytes(machine.ram.bus)
        for beyond in (LOGICAL, LOGICAL + int(into.frames.table[into.start // PAGE]), 0xF000_0000):
            assert esp.to_memory(5, beyond) == 0  # and the disk is content
            assert esp.from_memory(beyond, 6) == 0
        assert bytes(machine.ram.bus) == before
        assert esp.to_memory(6, address) == 0
        dma.sync(IN.post)
        assert into.read() == bytes(BLOCK) + b"\x22" * BLOCK  # what was read there is zeros
        ended(dma)


@orders
def test_there_are_no_rights(order: str) -> None:
    with opened(order) as machine:
        esp = Esp(machine)
        buffer = filled(machine, 0x33)
        dma, address = loaded(machine.attachment("esp0").tag, buffer, OUT)
        esp.to_memory(0, address)
        dma.sync(OUT.post)
        assert buffer.read() == bytes(BLOCK) + b"\x33" * (PAGE - BLOCK)
        ended(dma)


def test_the_last_bus_pages_before_the_limit_are_as_good_as_any() -> None:
    with opened() as machine:
        esp = Esp(machine)
        tag = machine.attachment("esp0").tag
        buffer = filled(machine, 0x44, 8 * PAGE)
        assert machine.pool.statistics()["pages"] == LOGICAL // PAGE
        maps = []
        while free := machine.pool.statistics()["free"]:  # the same page frames again and again
            maps.append(loaded(tag, buffer[: min(8, free) * PAGE], IN))
        last, address = max(maps, key=lambda each: each[1])
        assert address + last.segments[0][1] == LOGICAL
        esp.to_memory(0, LOGICAL - BLOCK)
        for dma, _ in maps:
            dma.sync(IN.post)
            ended(dma)
        assert buffer.read() == b"\x44" * (8 * PAGE - BLOCK) + bytes(BLOCK)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("order", "middle", "give little or big"), ("ram", 512, "at most 256 MiB"), ("disks", 3, "at most 2")],
)
def test_what_it_cannot_be(option: str, value: Any, words: str) -> None:
    need("mips64el")
    with pytest.raises(ConfigurationError, match=words):
        busdma.open("qemu:magnum", **{option: value})


def test_the_window_ends_where_the_table_does() -> None:
    with opened() as machine:
        assert machine.pool.translator.window == AddressSet.span(0, LOGICAL - 1)
