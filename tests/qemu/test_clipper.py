"""QEMU's Alpha: three ways to one memory, what leads nowhere, and what its scatter-gather map shows of itself."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import busdma
from busdma.addresses import AddressSet
from busdma.drivers.block import transfer_all
from busdma.drivers.ncr53c9x import chip as ncr
from busdma.drivers.nvme import layout
from busdma.errors import ConfigurationError
from busdma.machines import MACHINES, options_of
from busdma.qemu.clipper import DIRECT, DRIR, MAPPED, MAPPED_SIZE, Clipper
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.translators.tsunami import MONSTER_BASE
from busdma.translators.windows import PAGE
from qemu.esp_rig import BLOCK, IN, OUT, Esp, ended, filled, loaded
from qemu.idle import cpu_sleeps
from qemu.machines import need

MIB = 1 << 20
LOW, HIGH = AddressSet.span(0, 64 * MIB - 1), AddressSet.span(64 * MIB, 72 * MIB - 1)
ESP_IRQ = 24  #: pin A of slot 5
ISA_IRQ = 55  #: all interrupts of ISA
LOOKS = 100_000


@contextmanager
def opened(**options: object) -> Iterator[Clipper]:
    need("alpha")
    given: dict[str, Any] = {"disk_mib": 1, **options}
    with busdma.open("qemu:clipper", **given) as machine:
        assert isinstance(machine, Clipper)
        yield machine


@pytest.fixture
def machine() -> Iterator[Clipper]:
    with opened() as machine:
        yield machine


class Nvme:
    """``nvme0``, whose driver is not started: it writes 4096 bytes that are not all zeros to any bus address."""

    def __init__(self, machine: Clipper) -> None:
        given = machine.attachment("nvme0")
        registers: Any = given.registers
        assert given.config is not None
        given.config.write16(0x04, 0x6)
        self.registers = registers
        self.queues = given.tag.derive("queues", nsegments=1, alignment=4096).alloc(2 * PAGE)
        self.told = 0
        registers.write32(layout.AQA, 15 << 16 | 15)
        registers.write64(layout.ASQ, self.queues.address)
        registers.write64(layout.ACQ, self.queues.address + PAGE)
        registers.write32(layout.CC, layout.ENABLE)
        self.until(lambda: registers.read32(layout.CSTS) & layout.READY)

    def store(self, address: int) -> int:
        """Have it write there. The status of the command."""
        at = self.told
        words = (layout.CONTROLLER,)
        layout.write_command(self.queues.view, at * layout.SQ_ENTRY, layout.IDENTIFY, at, 0, address, 0, words)
        self.told += 1
        self.registers.write32(layout.DOORBELLS, self.told)
        where = PAGE + at * layout.CQ_ENTRY
        self.until(lambda: self.queues.view[where + layout.PHASE_BYTE] & 1)
        return layout.read_completion(self.queues.view, where).status

    def until(self, done: Any) -> None:
        for _ in range(LOOKS):
            if done():
                return
            self.registers.read32(layout.CSTS)
        raise AssertionError("the controller does not answer")


def tag_of(machine: Clipper, name: str = "esp0") -> Tag:
    return machine.devices[name].tag.derive("mine")


def frame_of(buffer: Any) -> int:
    return int(buffer.frames.table[buffer.start // PAGE])


# -- the machine ------------------------------------------------------------------------------------------------------


def test_the_cpu_sleeps_in_our_firmware(machine: Clipper) -> None:
    assert cpu_sleeps(machine.qemu)
    assert "PC      fffffc0000000004" in machine.qemu.monitor.hmp("info registers")  # behind wtint
    assert machine.frames.owner_of(0) == "reserved"


@pytest.mark.parametrize(
    ("options", "nvme", "esp"),
    [
        ({}, "window", "window+remap"),
        ({"check": True}, "window", "window+remap"),
        ({"runtime": "threads"}, "window", "window+remap"),
        ({"strict": 0}, "window", "window+remap"),
        ({"direct": 0}, "window", "remap"),
        ({"direct": 128}, "window", "window"),
        ({"monster": 0}, "window+remap", "window+remap"),
        ({"monster": 0, "direct": 0, "check": True}, "remap", "remap"),
    ],
    ids=str,
)
def test_data_goes_the_ways_that_are_open(options: dict[str, Any], nvme: str, esp: str, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300 * BLOCK)
    with opened(images=str(tmp_path), **options) as machine:
        for name, ways in (("nvme0", nvme), ("esp0", esp)):
            driver: Any = machine.driver(name)
            machine.run(driver.start)
            source, back = machine.allocate(len(data), offset=8), machine.allocate(len(data), offset=512)
            source.write(data)

            async def there_and_back(disk: Any, source: Any = source, back: Any = back) -> None:
                for buffer, direction in ((source, OUT), (back, IN)):
                    await transfer_all(disk, 3, buffer, direction, runtime=machine.runtime, chunk=16 * BLOCK)

            machine.run(there_and_back, driver.disks[0])
            assert back.read() == data
            assert set(machine.traffic(name).mechanism.split("+")) == set(ways.split("+"))
            assert machine.traffic(name).bytes == 2 * len(data)
            machine.run(driver.stop)
        assert machine.leaks() == []
        assert machine.statistics()["sgmap"]["active"] == 0
    for name in ("nvme0", "esp0"):
        assert (tmp_path / f"{name}.img").read_bytes()[3 * BLOCK :][: len(data)] == data


# -- three ways --------------------------------------------------------------------------------------------------------


def test_a_buffer_gets_the_address_of_the_first_way_that_leads_to_it(machine: Clipper) -> None:
    low, high = machine.kernel.allocate(PAGE, within=LOW), machine.kernel.allocate(PAGE, within=HIGH)
    for name, base in (("nvme0", MONSTER_BASE), ("esp0", DIRECT)):
        dma, address = loaded(tag_of(machine, name), low, IN)
        assert address == base + frame_of(low)
        ended(dma)
    dma, address = loaded(tag_of(machine, "nvme0"), high, IN)
    assert address == MONSTER_BASE + frame_of(high)
    ended(dma)
    dma, address = loaded(tag_of(machine), high, IN)
    assert MAPPED <= address < MAPPED + MAPPED_SIZE
    ended(dma)


def test_all_three_lead_to_the_same_memory(machine: Clipper) -> None:
    buffer = machine.kernel.allocate(PAGE, within=LOW)
    frame = frame_of(buffer)
    narrow = tag_of(machine).subregion("narrow", 0, MAPPED + MAPPED_SIZE - 1)
    dma, mapped = loaded(narrow, buffer, Direction.BOTH)
    esp, nvme = Esp(machine), Nvme(machine)
    for address in (MONSTER_BASE + frame, DIRECT + frame, mapped):
        buffer.write(bytes(PAGE))
        assert nvme.store(address) == 0
        found = buffer.read()
        assert found[4:24].rstrip() == b"nvme0"  # its serial number
        if address >> 32 == 0:
            esp.from_memory(address, 7)
            buffer.write(bytes(PAGE))
            esp.to_memory(7, address + PAGE - BLOCK)
            assert buffer.read() == bytes(PAGE - BLOCK) + found[:BLOCK]
    ended(dma)


def test_other_addresses_lead_nowhere(machine: Clipper) -> None:
    """What a device writes there changes nothing, what it reads there is zeros, and nobody hears of it."""
    esp, nvme = Esp(machine), Nvme(machine)
    frame = frame_of(machine.kernel.allocate(PAGE, within=HIGH))
    before = bytes(machine.ram.bus)
    nowhere = [
        frame,  # a physical address
        MAPPED,  # no entry
        MAPPED + MAPPED_SIZE - PAGE,
        DIRECT - PAGE,
        DIRECT + 64 * MIB,  # memory, but beyond the window
        MONSTER_BASE >> 1,
        2 * MONSTER_BASE,
        MONSTER_BASE + machine.ram.bus.nbytes,  # the window, but beyond memory
    ]
    for address in nowhere:
        nvme.store(address)
        if address >> 32 == 0:
            assert esp.to_memory(0, address) == 0
    after = bytearray(machine.ram.bus)
    at = int(nvme.queues.address) - MONSTER_BASE
    after[at : at + 2 * PAGE] = before[at : at + 2 * PAGE]
    assert bytes(after) == before
    buffer = filled(machine, 0x66, PAGE)
    esp.from_memory(DIRECT - PAGE, 9)
    dma, address = loaded(tag_of(machine), buffer, IN)
    esp.to_memory(9, address)
    assert buffer.read() == bytes(BLOCK) + b"\x66" * (PAGE - BLOCK)
    ended(dma)


def test_a_window_that_was_not_opened_leads_nowhere() -> None:
    with opened(monster=0, direct=0) as machine:
        buffer = machine.kernel.allocate(PAGE, within=LOW)
        nvme = Nvme(machine)
        for base in (MONSTER_BASE, DIRECT):
            nvme.store(base + frame_of(buffer))
        assert buffer.read() == bytes(PAGE)
        dma, address = loaded(tag_of(machine, "nvme0"), buffer, IN)
        assert MAPPED <= address < MAPPED + MAPPED_SIZE
        nvme.store(address)
        assert buffer.read() != bytes(PAGE)
        ended(dma)


# -- the map -----------------------------------------------------------------------------------------------------------


def test_scattered_frames_are_one_segment_through_the_map(machine: Clipper) -> None:
    data = random.Random(2).randbytes(5 * PAGE + 1024)
    buffer = machine.kernel.allocate(len(data), offset=512, within=HIGH)
    esp = Esp(machine)
    blocks = len(data) // BLOCK
    buffer.write(data)
    dma, address = loaded(tag_of(machine), buffer, OUT)
    assert address % PAGE == 512
    frames = buffer.frames.table[buffer.start // PAGE :][:6]
    assert sorted(frames) != list(range(min(frames), min(frames) + 6 * PAGE, PAGE))
    esp.from_memory(address, 0, blocks)
    ended(dma)
    buffer.write(bytes(len(data)))
    dma, address = loaded(tag_of(machine), buffer, IN)
    esp.to_memory(0, address, blocks)
    ended(dma)
    assert buffer.read() == data


def test_entries_are_where_the_pchip_looks_for_them(machine: Clipper) -> None:
    buffer = machine.kernel.allocate(3 * PAGE, within=HIGH)
    dma, address = loaded(tag_of(machine), buffer, OUT)
    frames = buffer.frames.table[buffer.start // PAGE :][:3]
    table = machine.pchip.read64(0x200)
    entries = machine.qtest.read_bytes(table + (address - MAPPED) // PAGE * 8, 32)
    assert struct.unpack("<4Q", entries) == tuple(frame >> 12 | 1 for frame in (*frames, frames[-1]))  # the last: ahead
    ended(dma)
    assert machine.qtest.read_bytes(table, MAPPED_SIZE // PAGE * 8) == bytes(MAPPED_SIZE // PAGE * 8)


def test_what_a_device_only_writes_needs_no_page_to_read_ahead(machine: Clipper) -> None:
    for direction, pages in ((OUT, 3), (IN, 2)):
        dma, _ = loaded(tag_of(machine), machine.kernel.allocate(2 * PAGE, within=HIGH), direction)
        assert machine.pool.statistics()["active"] == pages
        ended(dma)


def test_what_is_unloaded_leads_nowhere(machine: Clipper) -> None:
    esp = Esp(machine)
    buffer = machine.kernel.allocate(PAGE, within=HIGH)
    dma, address = loaded(tag_of(machine), buffer, IN)
    esp.to_memory(0, address)
    ended(dma)
    buffer.write(b"\x77" * PAGE)
    esp.to_memory(0, address)
    assert buffer.read() == b"\x77" * PAGE


def test_entries_that_stand_lead_on_until_their_frame_changes_owner() -> None:
    with opened(strict=0) as machine:
        esp = Esp(machine)
        buffer = machine.kernel.allocate(PAGE, within=HIGH)
        dma, address = loaded(tag_of(machine), buffer, IN)
        for _ in range(2):
            ended(dma)
            dma, again = loaded(tag_of(machine), buffer, IN)
            assert again == address
        ended(dma)
        counts = machine.pool.statistics()
        assert (counts["entered"], counts["reused"]) == (1, 2)
        frame = frame_of(buffer)
        buffer.write(b"\x77" * PAGE)
        esp.to_memory(0, address)
        assert buffer.read() == bytes(BLOCK) + b"\x77" * (PAGE - BLOCK)
        buffer.free()
        freed = bytes(machine.ram.bus[frame : frame + PAGE])
        esp.to_memory(0, address)
        assert bytes(machine.ram.bus[frame : frame + PAGE]) == freed != bytes(PAGE)


def test_the_model_has_no_tlb(machine: Clipper) -> None:
    """So a flush that is left out does no harm here: it is the simulated Alpha that shows it."""
    esp = Esp(machine)
    buffer = machine.kernel.allocate(PAGE, within=HIGH)
    dma, address = loaded(tag_of(machine), buffer, IN)
    esp.to_memory(0, address)
    entry = machine.pchip.read64(0x200) + (address - MAPPED) // PAGE * 8
    kept = bytes(machine.ram.bus[entry : entry + 8])
    machine.ram.bus[entry : entry + 8] = bytes(8)
    buffer.write(b"\x77" * PAGE)
    esp.to_memory(0, address)
    assert buffer.read() == b"\x77" * PAGE
    machine.ram.bus[entry : entry + 8] = kept
    esp.to_memory(0, address)
    assert buffer.read() != b"\x77" * PAGE
    ended(dma)


# -- interrupts, options -----------------------------------------------------------------------------------------------


def test_the_line_is_the_slots_bit_in_drir(machine: Clipper) -> None:
    def lines() -> int:
        return machine.cchip.read64(DRIR) & ~(1 << ISA_IRQ)  # where the board's timer may be up

    chip = Esp(machine).chip
    assert lines() == 0
    chip.write(ncr.DESTINATION, 1)  # nobody is there: it says so at once
    chip.put(bytes(7))
    chip.command(ncr.SELECT_ATN)
    assert lines() == 1 << ESP_IRQ
    chip.acknowledge()
    assert lines() == 0


def test_drivers_are_told_of_interrupts(machine: Clipper) -> None:
    driver: Any = machine.driver("esp0")
    machine.run(driver.start)
    counts = driver.statistics()
    assert counts["interrupts"] > counts["commands"] > 0
    assert counts["stray"] == 0
    machine.run(driver.stop)


def test_more_devices_are_on_the_same_bus() -> None:
    with opened(devices="am53c974,id=esp9,addr=9") as machine:
        driver: Any = machine.driver("esp9")
        machine.run(driver.start)
        assert driver.statistics()["interrupts"] > 0
        assert driver.tag.routes == machine.driver("esp0").tag.routes
        machine.run(driver.stop)
    with pytest.raises(ConfigurationError, match="put esp9 on bus=pci"):
        busdma.open("qemu:clipper", devices="pci-bridge,id=b,chassis_nr=1,addr=9;am53c974,id=esp9,bus=b,addr=1")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"direct": 3}, "direct=3: give 0 or a power of two up to 1024, in MiB"),
        ({"direct": 2048}, "direct=2048: give 0"),
        ({"monster": 2}, "monster=2: give 0 or 1"),
        ({"warp": 1}, "no option warp"),
    ],
)
def test_bad_options(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        busdma.open("qemu:clipper", **options)


def test_what_the_table_says_of_it() -> None:
    entry = MACHINES["qemu:clipper"]
    with opened() as machine:
        assert {device.driver for device in machine.devices.values()} == set(entry.drivers)
    asked = options_of("qemu:clipper")
    assert (asked["monster"], asked["direct"], asked["strict"], asked["ram"]) == ("1", "64", "1", "72")
