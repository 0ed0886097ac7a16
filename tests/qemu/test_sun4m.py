"""QEMU's SPARCstations: all DMA is DVMA, through the model's IOMMU, and what that refuses is told."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import busdma
from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, DeviceFault
from busdma.map import Map
from busdma.qemu.sun4m import BOARDS, Sun4m
from qemu.esp_rig import BLOCK, IN, OUT, Esp, ended, filled, loaded, round_trip
from qemu.idle import cpu_sleeps
from qemu.machines import need

PAGE = 4096
MIB = 1 << 20
TOP = 1 << 32
both = pytest.mark.parametrize("model", ["SS-5", "SS-10"])


@contextmanager
def opened(model: str = "SS-5", **options: object) -> Iterator[Sun4m]:
    need("sparc")
    given: dict[str, Any] = {"disk_mib": 1, "ram": 16, **options}
    with busdma.open(f"qemu:{model}", **given) as machine:
        assert isinstance(machine, Sun4m)
        yield machine


@both
def test_the_cpu_sleeps(model: str) -> None:
    with opened(model) as machine:
        assert cpu_sleeps(machine.qemu)
        pc = next(line for line in machine.qemu.monitor.hmp("info registers").splitlines() if line.startswith("pc:"))
        assert int(pc.split()[1], 16) < 16  # in the firmware's four instructions


@both
@pytest.mark.parametrize("options", [{}, {"strict": 1}, {"check": True}, {"runtime": "threads"}], ids=str)
def test_data_go_to_the_disk_by_dvma(model: str, options: dict[str, Any], tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300 * BLOCK)
    with opened(model, images=tmp_path, **options) as machine:
        round_trip(machine, data)
        traffic = machine.traffic("esp0")
        assert (traffic.mechanism, traffic.bytes) == ("remap", 2 * len(data))
        assert not machine.fault_log
        statistics = machine.statistics()["iommu"]
        assert statistics["active"] == 0
        assert (statistics["standing"] == 0) == ("strict" in options)
        assert statistics["entered"] >= 2 * len(data) // PAGE
    assert (tmp_path / "esp0.img").read_bytes()[3 * BLOCK :][: len(data)] == data
    assert machine.leaks() == []


def test_two_disks(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(40 * BLOCK)
    with opened(disks=2, images=tmp_path) as machine:
        round_trip(machine, data, lba=9)
    for name in ("esp0", "esp0-3"):
        assert (tmp_path / f"{name}.img").read_bytes()[9 * BLOCK :][: len(data)] == data


@both
def test_addresses_are_in_the_window_and_entries_are_big_endian(model: str) -> None:
    with opened(model) as machine:
        tag = machine.attachment("esp0").tag
        buffer = machine.allocate(3 * PAGE)
        dma, address = loaded(tag, buffer, IN)
        assert TOP - 64 * MIB <= address <= TOP - 3 * PAGE
        frames = buffer.frames.table[buffer.start // PAGE :][:3]
        base = machine.qtest.read(BOARDS[model].iommu + 4, 4, "big") << 4
        at = base + (address - (TOP - 64 * MIB)) // PAGE * 4
        entries = machine.qtest.read_bytes(at, 12)
        assert [entries[n : n + 4] for n in (0, 4, 8)] == [(frame >> 4 | 0x86).to_bytes(4, "big") for frame in frames]
        assert machine.qtest.read(BOARDS[model].iommu, 4, "big") & 0x1D == 2 << 2 | 1  # 64 MiB, enabled
        ended(dma)


@pytest.mark.parametrize("mib", [16, 128])
def test_as_much_dvma_as_one_likes(mib: int) -> None:
    with opened(dvma=mib) as machine:
        assert machine.iommu.window == AddressSet.span(TOP - mib * MIB, TOP - 1)
        round_trip(machine, random.Random(3).randbytes(20 * BLOCK))


def test_memory_up_to_4_gib_is_in_reach() -> None:
    """And the table is below 2 GiB, where the IOMMU finds it."""
    with opened("SS-10", ram=4096) as machine:
        buffer = machine.kernel.allocate(2 * PAGE, within=AddressSet.span(3 << 30, (4 << 30) - 1))
        esp = Esp(machine)
        tag = machine.attachment("esp0").tag
        source, out = loaded(tag, filled(machine, 0x5A, 2 * PAGE), OUT)
        dma, into = loaded(tag, buffer, IN)
        assert esp.from_memory(out, 0, 16) == 0
        assert esp.to_memory(0, into, 16) == 0
        dma.sync(IN.post)
        assert buffer.read() == b"\x5a" * 2 * PAGE
        ended(dma)
        ended(source)


@both
def test_what_is_unloaded_leads_nowhere_at_once(model: str) -> None:
    """The model keeps no translations: nobody has flushed anything between the entry's end and the access."""
    with opened(model, strict=1) as machine:
        esp = Esp(machine)
        tag = machine.attachment("esp0").tag
        buffer = filled(machine, 0x11)
        dma, address = loaded(tag, buffer, OUT)
        esp.from_memory(address, 5)
        machine.iommu.clear(address, 1)
        assert esp.from_memory(address, 6) == 0  # and the disk is content
        assert machine.fault_log[-1].address == address & -PAGE
        ended(dma)
        esp.to_memory(5, address)
        assert buffer.read() == b"\x11" * PAGE
        fault = machine.fault_log[-1]
        assert (fault.device, fault.address, fault.write) == ("esp0", address & -PAGE, True)
        assert "had it until it was unloaded" in str(fault)
        into = machine.allocate(2 * BLOCK)
        dma, address = loaded(tag, into, IN)
        esp.to_memory(5, address, 2)
        with pytest.raises(DeviceFault, match="had it until it was unloaded"):  # the device has gone astray
            dma.sync(IN.post)
        dma.sync(IN.post)
        assert into.read() == b"\x11" * BLOCK + bytes(BLOCK)
        ended(dma)


@both
def test_a_standing_entry_ends_before_its_frame_changes_hands(model: str) -> None:
    with opened(model) as machine:
        esp = Esp(machine)
        tag = machine.attachment("esp0").tag
        buffer = filled(machine, 0x22)
        dma, address = loaded(tag, buffer, IN)
        ended(dma)
        esp.to_memory(0, address)  # the disk's zeros
        assert buffer.read() == bytes(BLOCK) + b"\x22" * (PAGE - BLOCK)  # it stands, and reaches whose page it was
        assert machine.fault_log == []
        buffer.free()
        esp.to_memory(0, address)
        assert machine.fault_log[-1].address == address


@both
def test_what_is_loaded_to_the_device_is_read_only(model: str) -> None:
    with opened(model, strict=1) as machine:
        esp = Esp(machine)
        buffer = filled(machine, 0x33)
        dma, address = loaded(machine.attachment("esp0").tag, buffer, OUT)
        assert esp.to_memory(0, address) == 0
        assert buffer.read() == b"\x33" * PAGE
        with pytest.raises(DeviceFault, match="is loaded to the device only; load it both ways") as caught:
            dma.sync(OUT.post)
        assert caught.value.address == address
        assert machine.fault_log[-1].map == dma.name
        ended(dma)


@both
def test_a_physical_address_is_no_bus_address(model: str) -> None:
    with opened(model) as machine:
        esp = Esp(machine)
        buffer = filled(machine, 0x44)
        frame = buffer.frames.table[buffer.start // PAGE]
        esp.to_memory(0, frame)
        assert buffer.read() == b"\x44" * PAGE
        fault = machine.fault_log[-1]
        assert (fault.address, fault.write) == (frame, True)
        esp.from_memory(frame, 1)
        assert machine.fault_log[-1].write is False
        assert machine.statistics()["faults"]["faults"] == 2


@both
def test_a_fault_ends_the_request_that_it_hit_and_no_other(model: str) -> None:
    class Saboteur:
        """Takes the entry of a page away behind everybody's back, as soon as it is loaded."""

        armed = False

        def loaded(self, dma: Map) -> None:
            if self.armed and dma.buffer is buffer:
                machine.iommu.clear(int(dma.segments[0][0]) & -PAGE, 1)

        def __getattr__(self, name: str) -> object:
            return lambda *_: None

    with opened(model, strict=1) as machine:
        saboteur = Saboteur()
        driver: Any = machine.driver("esp0")
        machine.run(driver.start)
        (disk,) = driver.disks
        buffer = filled(machine, 0x55)
        machine.domain.instruments.append(saboteur)  # type: ignore[arg-type]

        async def read() -> None:
            await disk.read(0, buffer)

        saboteur.armed = True
        with pytest.raises(DeviceFault, match="the IOMMU refused esp0 a write to the page at bus address"):
            machine.run(read)
        assert buffer.read() == b"\x55" * PAGE
        saboteur.armed = False
        machine.run(read)
        assert buffer.read() == bytes(PAGE)
        machine.run(driver.stop)
    assert machine.leaks() == []


def test_registers_of_chip_and_engine_are_one_region() -> None:
    with opened() as machine:
        registers: Any = machine.devices["esp0"].registers
        registers.write32(4, 0xFC12_3456)  # of the engine
        registers.write8(0x10000 + 4 * 8, 0x57)  # of the chip: CONFIG 1
        assert registers.read32(4) == machine.qtest.read(0x7840_0004, 4, "big") == 0xFC12_3456
        assert registers.read8(0x10020) == machine.qtest.read(0x7880_0020, 1) == 0x57
        for offset, name in ((0x10, "espdma"), (0x10040, "esp0 has no"), (-4, "espdma")):
            with pytest.raises(busdma.DriverError, match=name):
                registers.read32(offset)


@pytest.mark.parametrize(
    ("model", "option", "value", "words"),
    [
        ("SS-5", "dvma", 48, "power of two from 16 to 1024"),
        ("SS-5", "dvma", 2048, "power of two from 16 to 1024"),
        ("SS-5", "disks", 3, "at most 2"),
        ("SS-5", "ram", 512, "at most 256 MiB"),
        ("SS-10", "ram", 8192, "at most 4096 MiB"),
    ],
)
def test_what_it_cannot_be(model: str, option: str, value: int, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words), opened(model, **{option: value}):
        pass
