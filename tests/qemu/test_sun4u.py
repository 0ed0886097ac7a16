"""QEMU's sun4u: PCI behind a bridge and an IOMMU, and memory that lies in PCI's memory space."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import busdma
from busdma.errors import ConfigurationError, DriverError
from busdma.qemu.pci import Config, Mapped
from busdma.qemu.registers import Mmio
from busdma.qemu.sun4u import BUS_B, CONFIGURATION, DVMA, MEMORY, PMRCTL, SABRE, SPACES, Sun4u
from busdma.translators.sabre import CONTROL, TSB_BASE
from qemu.esp_rig import BLOCK, IN, OUT, Esp, ended, filled, loaded, round_trip
from qemu.idle import cpu_sleeps
from qemu.machines import need

PAGE = 8192
MIB = 1 << 20
RAM = 16  # MiB
ROOM = 64  # bus pages


@contextmanager
def opened(**options: object) -> Iterator[Sun4u]:
    need("sparc64")
    given: dict[str, Any] = {"disk_mib": 1, "ram": RAM, **options}
    with busdma.open("qemu:sun4u", **given) as machine:
        assert isinstance(machine, Sun4u)
        yield machine


def config(machine: Sun4u, bus: int, device: int, function: int = 0) -> Config:
    return Config(Mapped(machine.qtest, CONFIGURATION), bus, device << 3 | function)


def table(machine: Sun4u) -> int:
    """The physical address of the IOMMU's table."""
    return machine.qtest.read(SABRE + TSB_BASE, 8, "big")


# -- the machine ------------------------------------------------------------------------------------------------------


def test_the_cpu_sleeps() -> None:
    with opened() as machine:
        assert cpu_sleeps(machine.qemu)
        assert "pc: 000001fff0000020 " in machine.qemu.monitor.hmp("info registers")  # where it would begin


def test_the_cpu_and_this_process_see_the_same_memory() -> None:
    with opened() as machine:
        base, ram = machine.frames.base, machine.ram.cpu
        assert (base, len(ram)) == (SPACES.memory_at + (config(machine, BUS_B, MEMORY).read32(0x20) & ~0xF), RAM * MIB)
        machine.qtest.write(base + 5 * MIB, 4, 0x12345678, "big")
        machine.qtest.flush()
        assert bytes(ram[5 * MIB : 5 * MIB + 4]) == b"\x12\x34\x56\x78"
        ram[-4:] = b"last"
        assert machine.qtest.read_bytes(base + RAM * MIB - 4, 4) == b"last"


def test_no_driver_resets_the_controller_that_has_the_memory() -> None:
    with opened() as machine:
        assert set(machine.devices) == {"nvme0", "esp0"}
        hidden = config(machine, BUS_B, MEMORY)
        registers = Mmio(machine.qtest, "memory", SPACES.memory_at + (hidden.read32(0x10) & ~0xF), 0x1000)
        for _ in range(2):
            driver: Any = machine.driver("nvme0")
            machine.run(driver.start)
            machine.run(driver.stop)
        assert registers.read32(PMRCTL) == 1
        assert hidden.read16(0x04) & 0b111 == 0b010  # it answers, and is no bus master


def test_firmware_opens_the_bridges() -> None:
    """Their windows do not overlap. One goes beyond 64 KiB of I/O space, which these bridges can forward."""
    with opened() as machine:
        memory, ports = [], []
        for function in (0, 1):  # pciB, pciA
            bridge = config(machine, 0, 1, function)
            assert bridge.read8(0x19) == function + 1
            memory.append((bridge.read16(0x20) << 16, bridge.read16(0x22) << 16 | 0xF_FFFF))
            first, last = (
                bridge.read16(high) << 16 | (bridge.read8(low) & 0xF0) << 8
                for high, low in ((0x30, 0x1C), (0x32, 0x1D))
            )
            ports.append((first, last | 0xFFF))
        for (one, end), (other, top) in (memory, ports):
            assert one < end < other < top
        assert memory[1][1] < DVMA
        assert ports[1][1] > 0xFFFF
        for slot, bar in ((1, 0x10), (MEMORY, 0x10), (MEMORY, 0x20)):
            assert memory[0][0] <= config(machine, BUS_B, slot).read32(bar) & ~0xF <= memory[0][1]


# -- DVMA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"strict": 1}, {"dvma": 8}, {"check": True}, {"runtime": "threads"}], ids=str)
def test_data_go_to_the_disks_by_dvma(options: dict[str, Any], tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300 * BLOCK)
    names = ("nvme0", "esp0")
    with opened(images=tmp_path, **options) as machine:
        for name in names:
            round_trip(machine, data, device=name)
            traffic = machine.traffic(name)
            assert (traffic.mechanism.split("+")[0], traffic.bytes) == ("remap", 2 * len(data))
        statistics = machine.statistics()["iommu"]
        assert statistics["active"] == 0
        assert (statistics["standing"] == 0) == ("strict" in options)
        assert statistics["entered"] >= 2 * len(data) // PAGE
    for name in names:
        assert (tmp_path / f"{name}.img").read_bytes()[3 * BLOCK :][: len(data)] == data
    assert machine.leaks() == []


def test_scattered_frames_are_one_run_of_dvma_and_entries_are_big_endian() -> None:
    with opened() as machine:
        buffer = machine.allocate(3 * PAGE)
        dma, address = loaded(machine.attachment("esp0").tag, buffer, IN)
        source, other = loaded(machine.attachment("nvme0").tag, machine.allocate(PAGE), OUT)
        assert DVMA + PAGE <= address <= DVMA + 64 * MIB - 3 * PAGE
        frames = buffer.frames.table[buffer.start // PAGE :][:3]
        assert frames != sorted(frames) or frames[2] - frames[0] != 2 * PAGE
        assert machine.qtest.read(SABRE + CONTROL, 8, "big") == 3 << 16 | 1  # 64 MiB, on
        entries = machine.qtest.read_bytes(table(machine) + (address - DVMA) // PAGE * 8, 24)
        expected = [(1 << 63 | frame | 0b10010).to_bytes(8, "big") for frame in frames]
        assert [entries[n : n + 8] for n in (0, 8, 16)] == expected
        assert not machine.qtest.read_bytes(table(machine) + (other - DVMA) // PAGE * 8, 8)[7] & 0b10  # read-only
        ended(dma)
        ended(source)


def test_devices_registers_are_little_endian_and_the_hosts_big_endian() -> None:
    with opened() as machine:
        assert machine.qtest.order == "big"
        assert config(machine, BUS_B, 2).read32(0) == 0x2020_1022
        nvme: Any = machine.devices["nvme0"].registers
        machine.devices["nvme0"].config.write16(0x04, 0b010)  # type: ignore[union-attr]
        assert nvme.read32(8) == 0x0001_0400  # version 1.4


def test_the_chip_reaches_what_is_loaded_through_the_bridge() -> None:
    with opened() as machine:
        esp = Esp(machine)
        tag = machine.attachment("esp0").tag
        source, out = loaded(tag, filled(machine, 0x5A, 2 * PAGE), OUT)
        buffer = machine.allocate(2 * PAGE)
        dma, into = loaded(tag, buffer, IN)
        assert esp.from_memory(out, 0, 32) == 0
        assert esp.to_memory(0, into, 32) == 0
        dma.sync(IN.post)
        assert buffer.read() == b"\x5a" * 2 * PAGE
        ended(dma)
        ended(source)


def test_what_is_unloaded_leads_nowhere_at_once() -> None:
    """The model keeps no translations: nobody has flushed anything between the entry's end and the access."""
    with opened(strict=1) as machine:
        esp = Esp(machine)
        tag = machine.attachment("esp0").tag
        buffer = filled(machine, 0x11, PAGE)
        dma, address = loaded(tag, buffer, OUT)
        esp.from_memory(address, 5)
        machine.iommu.clear(address, 1)
        assert esp.from_memory(address, 6) == 0  # and the disk is content
        ended(dma)
        before = bytes(machine.ram.bus)
        assert esp.to_memory(5, address) == 0
        assert bytes(machine.ram.bus) == before
        into = machine.allocate(2 * BLOCK)
        dma, address = loaded(tag, into, IN)
        esp.to_memory(5, address, 2)
        dma.sync(IN.post)
        assert into.read() == b"\x11" * BLOCK + bytes(BLOCK)
        ended(dma)


def test_a_standing_entry_ends_before_its_frame_changes_hands() -> None:
    with opened() as machine:
        esp = Esp(machine)
        buffer = filled(machine, 0x22, PAGE)
        dma, address = loaded(machine.attachment("esp0").tag, buffer, IN)
        ended(dma)
        esp.to_memory(0, address)  # the disk's zeros
        assert buffer.read() == bytes(BLOCK) + b"\x22" * (PAGE - BLOCK)  # it stands, and reaches whose page it was
        buffer.free()
        before = bytes(machine.ram.bus)
        esp.to_memory(0, address)
        assert bytes(machine.ram.bus) == before
        assert bytes(machine.qtest.read_bytes(table(machine) + (address - DVMA) // PAGE * 8, 8)) == bytes(8)


def test_what_is_loaded_to_the_device_is_read_only() -> None:
    with opened(strict=1) as machine:
        esp = Esp(machine)
        buffer = filled(machine, 0x33, PAGE)
        dma, address = loaded(machine.attachment("esp0").tag, buffer, OUT)
        assert esp.to_memory(0, address) == 0
        dma.sync(OUT.post)
        assert buffer.read() == b"\x33" * PAGE
        ended(dma)


def test_the_model_looks_at_the_lower_bits_only_and_the_first_page_is_nobodys() -> None:
    """So address 0, where a device goes that was not programmed, leads nowhere."""
    with opened(strict=1, dvma=8) as machine:
        esp = Esp(machine)
        tag = machine.attachment("esp0").tag
        buffer = filled(machine, 0x44, 32 * PAGE)
        maps = []
        while free := machine.pool.statistics()["free"]:  # the same page frames again and again
            maps.append(loaded(tag, buffer[: min(32, free) * PAGE], IN))
        first = min(address for _, address in maps)
        assert (first, machine.pool.statistics()["pages"]) == (DVMA + PAGE, 8 * MIB // PAGE - 1)
        before = bytes(machine.ram.bus)
        for nowhere in (0, DVMA, DVMA + 8 * MIB):
            esp.to_memory(0, nowhere)
        assert bytes(machine.ram.bus) == before
        esp.to_memory(0, first - DVMA)
        assert bytes(machine.ram.bus) != before  # of the real sabre, nobody would answer there
        for dma, _ in maps:
            dma.sync(IN.post)
            ended(dma)


def test_more_than_dvma_waits_for_room(tmp_path: Path) -> None:
    """8 MiB of bus pages, most of which somebody else has."""
    with opened(dvma=8, disk_mib=2, images=tmp_path) as machine:
        hog = machine.attachment("esp0").tag
        buffer = machine.allocate(32 * PAGE)
        maps = []
        while (free := machine.pool.statistics()["free"]) > ROOM:
            maps.append(loaded(hog, buffer[: min(32, free - ROOM) * PAGE], OUT))
        data = random.Random(3).randbytes(ROOM * PAGE * 2)
        for name in ("nvme0", "esp0"):
            round_trip(machine, data, device=name)
        assert machine.pool.statistics()["deferred"] > 0
        for dma, _ in maps:
            ended(dma)
    for name in ("nvme0", "esp0"):
        assert (tmp_path / f"{name}.img").read_bytes()[3 * BLOCK :][: len(data)] == data


# -- options ----------------------------------------------------------------------------------------------------------


def test_devices_of_ones_own_are_behind_the_iommu_too() -> None:
    devices = "nvme,id=more,serial=more,drive=none,bus=pciB,addr=0"
    with pytest.raises(ConfigurationError, match="did not start"), opened(devices=devices):
        pass
    devices = "am53c974,id=mine,bus=pciB,addr=0;nvme,id=theirs,serial=theirs,bus=pciA,addr=2"
    with opened(devices=devices) as machine:
        assert {name: device.tag.name for name, device in machine.devices.items()} == {
            "nvme0": "pciB",
            "esp0": "pciB",
            "mine": "pciB",
            "theirs": "pci0",
        }
        for name in ("mine", "theirs"):
            driver: Any = machine.driver(name)
            machine.run(driver.start)  # by its interrupt line, which is looked at
            assert driver.disks == []
            machine.run(driver.stop)
            assert driver.statistics()["stray"] == 0
        assert machine.pool.statistics()["active"] == 0


def test_as_much_memory_as_there_is_room_for() -> None:
    with opened(ram=1024) as machine:
        buffer = machine.allocate(PAGE)
        assert machine.frames.base + len(machine.ram.cpu) <= SPACES.memory_at + DVMA
        esp = Esp(machine)
        buffer.write(b"\x77" * PAGE)
        dma, address = loaded(machine.attachment("esp0").tag, buffer, IN)
        esp.to_memory(0, address)
        dma.sync(IN.post)
        assert buffer.read() == bytes(BLOCK) + b"\x77" * (PAGE - BLOCK)
        ended(dma)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("dvma", 48, "power of two from 8 to 1024"),
        ("dvma", 2048, "power of two from 8 to 1024"),
        ("ram", 48, "power of two from 8 to 1024"),
        ("ram", 2048, "at most 1024 MiB"),
        ("strict", 2, "give 0 or 1"),
    ],
)
def test_what_it_cannot_be(option: str, value: int, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words), opened(**{option: value}):
        pass


def test_registers_of_the_sabre_have_an_end() -> None:
    with opened() as machine, pytest.raises(DriverError, match="sabre has no 64-bit register"):
        machine.iommu.registers.read64(0x1_0000)
