"""The MultiMaster driver on the machine with a BT-445S: tags, slots, recovery, and who the board is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

import busdma
from busdma.buffers import LinearBuffer
from busdma.drivers import attach
from busdma.drivers.aha1542.isa import attach as attach_1542
from busdma.drivers.block import transfer_all
from busdma.drivers.bt.core import Bt
from busdma.drivers.bt.vlb import attach as attach_445s
from busdma.drivers.disk import ScsiFault
from busdma.errors import ConfigurationError, DeviceFault
from busdma.machine.attachment import Attachment
from busdma.runtime import NAMES
from busdma.sim.pc_vlb import PcVlb
from busdma.sim.scsi.mailbox_adapter import ForeignBusReset, MediumError
from busdma.sim.scsi.mailbox_layout import BITS_24, BITS_32, NeverCompletes
from busdma.sync import Direction
from busdma.waiting import Waiter

SECOND = 1_000_000_000
IN, OUT = Direction.FROM_DEVICE, Direction.TO_DEVICE


@contextmanager
def switch_on(spec: str = "sim:pc-vlb", runtime: str = "virtual") -> Iterator[PcVlb]:
    with busdma.open(spec, runtime=runtime, check=True) as machine:
        assert isinstance(machine, PcVlb)
        yield machine
    assert machine.checker is not None
    assert list(machine.checker.findings) == []


@pytest.fixture
def machine() -> Iterator[PcVlb]:
    with switch_on() as made:
        yield made


def attachment(machine: PcVlb, **changes: Any) -> Attachment:
    device = machine.devices["bt0"]
    found = Attachment(
        name="bt0",
        tag=device.tag,
        registers=device.registers,
        interrupt=device.interrupt,
        runtime=machine.runtime,
        properties=device.properties,
    )
    return replace(found, **changes)


def buffers(machine: PcVlb, count: int, size: int) -> list[LinearBuffer]:
    return [machine.kernel.allocate(size, offset=index % 512 * 8) for index in range(count)]


async def at_once(machine: PcVlb, disk: Any, pieces: list[LinearBuffer], direction: Direction, step: int) -> None:
    """One request a buffer, all submitted before the first ends."""
    move = disk.write if direction is OUT else disk.read
    tasks = [machine.runtime.start(move, index * step, buffer) for index, buffer in enumerate(pieces)]
    for task in tasks:
        await machine.runtime.park(task.done)


def there_and_back(spec: str, count: int, size: int) -> tuple[dict[str, Any], int]:
    """Write `count` buffers at once, read them back at once, compare: the adapter's statistics, and the time."""
    rng = random.Random(count)
    with switch_on(spec) as machine:
        driver = machine.driver("bt0")
        machine.run(driver.start)
        disk, start = driver.disks[0], machine.runtime.now()
        out, back = buffers(machine, count, size), buffers(machine, count, size)
        data = [rng.randbytes(size) for _ in out]
        for buffer, block in zip(out, data, strict=True):
            buffer.write(block)
        machine.run(at_once, machine, disk, out, OUT, 4 * size // 512)
        machine.run(at_once, machine, disk, back, IN, 4 * size // 512)
        took = machine.runtime.now() - start
        assert [buffer.read() for buffer in back] == data
        counts = driver.statistics() | machine.adapter.statistics()
        machine.run(driver.stop)
        assert machine.leaks() == []
        assert machine.domain.frames.statistics()["by_owner"].get("dma-safe", 0) == 0
        return counts, took


@pytest.mark.parametrize("runtime", NAMES)
def test_a_file_there_and_back_on_every_runtime(runtime: str) -> None:
    data = random.Random(1).randbytes(700 * 512)
    with switch_on(runtime=runtime) as machine:
        driver = machine.driver("bt0")
        machine.run(driver.start)
        disk = driver.disks[0]
        assert (disk.name, disk.maxio) == ("bt0:0", 128 << 10)
        out, back = machine.allocate(len(data), offset=4095), machine.allocate(len(data), offset=77)
        out.write(data)
        machine.run(lambda: transfer_all(disk, 5, out, OUT, runtime=machine.runtime))
        machine.run(disk.flush)
        machine.run(lambda: transfer_all(disk, 5, back, IN, runtime=machine.runtime, chunk=20_000))
        assert back.read() == data
        statistics = driver.statistics()
        assert (statistics["model"], statistics["firmware"], statistics["tagged"]) == ("445S", "3.36", ["bt0:0"])
        machine.run(driver.stop)
        assert machine.adapter.bus.layout is BITS_32
        assert machine.adapter.bus.targets[0].disk.read(5, 700) == data


def test_the_runtimes_agree_to_the_nanosecond() -> None:
    times = set()
    for runtime in NAMES:
        with switch_on(runtime=runtime) as machine:
            driver = machine.driver("bt0")
            machine.run(driver.start)
            machine.run(driver.disks[0].write, 9, machine.allocate(65536, offset=5))
            times.add(machine.runtime.now())
            machine.run(driver.stop)
    assert len(times) == 1


def test_tagged_commands_are_in_flight_together() -> None:
    counts, _ = there_and_back("sim:pc-vlb", 40, 4096)
    assert counts["at_once"] == 29  # of 30 slots, one is kept back
    assert counts["tagged"] > 80
    assert counts["retries"] == 1  # the unit attention


def test_transfers_of_some_length_end_earlier_with_tags() -> None:
    tagged, took = there_and_back("sim:pc-vlb", 20, 65536)
    untagged, longer = there_and_back("sim:pc-vlb?tags=0", 20, 65536)
    assert tagged["tagged"] > 40
    assert untagged["tagged"] == 0
    assert took < longer


def test_firmware_that_has_no_tags_is_not_asked_for_them() -> None:
    assert there_and_back("sim:pc-vlb?firmware=3.34", 4, 4096)[0]["tagged"] == 0


def test_firmware_without_strict_round_robin() -> None:
    assert there_and_back("sim:pc-vlb?firmware=3.10", 4, 4096)[0]["firmware"] == "3.10"


def test_255_slots() -> None:
    counts, _ = there_and_back("sim:pc-vlb?slots=255&tags=255", 260, 512)
    assert counts["at_once"] == 254
    assert counts["resets"] == counts["stray"] == 0


@pytest.mark.parametrize("tags", [1, 3])
def test_a_disk_with_fewer_tags_than_the_board_has_slots_says_queue_full(tags: int) -> None:
    """However often: as long as others are in flight, that is no failure."""
    counts, _ = there_and_back(f"sim:pc-vlb?tags={tags}", 40, 4096)
    assert counts["retries"] > 10
    assert counts["resets"] == counts["aborts"] == 0


def test_an_unreadable_block_among_good_ones(machine: PcVlb) -> None:
    driver = machine.driver("bt0")
    machine.run(driver.start)
    disk, pieces = driver.disks[0], buffers(machine, 6, 4096)
    machine.adapter.inject(MediumError(0, 803))

    async def main() -> list[BaseException | None]:
        ended: list[BaseException | None] = []
        tasks = [machine.runtime.start(one, index, buffer, ended) for index, buffer in enumerate(pieces)]
        for task in tasks:
            await machine.runtime.park(task.done)
        return ended

    async def one(index: int, buffer: LinearBuffer, ended: list[BaseException | None]) -> None:
        try:
            await disk.read(200 * index, buffer)
            ended.append(None)
        except ScsiFault as fault:
            ended.append(fault)

    ended = machine.run(main)
    assert ended.count(None) == 5
    (fault,) = (fault for fault in ended if fault is not None)
    assert isinstance(fault, ScsiFault)
    assert fault.sense is not None
    assert (fault.sense.key, fault.sense.asc, fault.sense.block) == (3, 0x11, 803)
    machine.run(driver.stop)


def test_an_ordered_tag_now_and_then(machine: PcVlb) -> None:
    driver = machine.driver("bt0")
    machine.run(driver.start)
    disk, buffer = driver.disks[0], machine.kernel.allocate(512)

    async def main() -> None:
        for _ in range(3):
            for _ in range(5):
                await disk.read(0, buffer)
            pause = Waiter("a pause")
            machine.runtime.call_at(machine.runtime.now() + 5 * SECOND, pause.wake)
            await machine.runtime.park(pause)

    machine.run(main)
    assert machine.adapter.statistics()["ordered"] == 2
    machine.run(driver.stop)


@pytest.mark.parametrize("stubborn", [False, True])
def test_what_takes_too_long_is_aborted_or_reset_and_the_others_go_on(machine: PcVlb, stubborn: bool) -> None:
    driver = machine.driver("bt0")
    machine.run(driver.start)
    disk, pieces = driver.disks[0], buffers(machine, 4, 8192)

    async def main() -> int:
        machine.adapter.inject(NeverCompletes(0, ignore_abort=stubborn))
        failed = 0
        tasks = [machine.runtime.start(disk.read, 100 * index, buffer) for index, buffer in enumerate(pieces)]
        for task in tasks:
            try:
                await machine.runtime.park(task.done)
                task.result()
            except ScsiFault:
                failed += 1
        await disk.read(0, pieces[0])
        return failed

    assert machine.run(main) == 1
    statistics = driver.statistics()
    assert (statistics["aborts"], statistics["resets"], statistics["free_slots"]) == (1, int(stubborn), 29)
    machine.run(driver.stop)
    assert machine.leaks() == []


def test_a_bus_reset_by_another_device_loses_nothing(machine: PcVlb) -> None:
    driver = machine.driver("bt0")
    machine.run(driver.start)
    pieces = buffers(machine, 12, 16384)
    data = [random.Random(index).randbytes(16384) for index in range(12)]
    for buffer, block in zip(pieces, data, strict=True):
        buffer.write(block)
    machine.runtime.call_at(machine.runtime.now() + 30_000_000, lambda: machine.adapter.inject(ForeignBusReset()))
    machine.run(at_once, machine, driver.disks[0], pieces, OUT, 100)
    assert driver.statistics()["resets"] == 1
    assert [machine.adapter.bus.targets[0].disk.read(100 * index, 32) for index in range(12)] == data
    assert driver.statistics()["tagged"] == ["bt0:0"]
    machine.run(driver.stop)


# Who the board is


def test_the_table_of_drivers(machine: PcVlb) -> None:
    driver = attach("bt", "vlb", attachment(machine))
    assert isinstance(driver, Bt)
    with pytest.raises(ConfigurationError, match="bt on vlb"):
        attach("bt", "pci", attachment(machine))


def test_nothing_at_the_ports(machine: PcVlb) -> None:
    with pytest.raises(DeviceFault, match="no BusLogic adapter answers"):
        attach_445s(attachment(machine, registers=machine.bus.registers(0x230)))


@pytest.mark.parametrize(("expected", "words"), [(0, "expects it nowhere"), (0xC8000, "expects it at 0xc8000")])
def test_a_rom_that_the_bus_does_not_know_of(machine: PcVlb, expected: int, words: str) -> None:
    driver = attach_445s(attachment(machine, properties={"irq": 11, "bios": expected}))
    with pytest.raises(ConfigurationError, match=f"BIOS at 0xdc000, and the bus {words}"):
        machine.run(driver.start)
    assert machine.leaks() == []


def test_a_sound_board_may_have_its_rom_anywhere() -> None:
    with switch_on("sim:pc-vlb?firmware=3.37A") as machine:
        driver = attach_445s(attachment(machine, properties={"irq": 11}))
        machine.run(driver.start)
        assert driver.firmware == "3.37A"
        assert driver.bios == 0xDC000
        machine.run(driver.stop)


def test_an_interrupt_that_does_not_agree(machine: PcVlb) -> None:
    driver = attach_445s(attachment(machine, properties=machine.devices["bt0"].properties | {"irq": 9}))
    with pytest.raises(ConfigurationError, match="irq 11; the bus expects irq 9"):
        machine.run(driver.start)


def test_the_driver_of_a_1542_runs_it_too(machine: PcVlb) -> None:
    """The board takes that adapter's mailboxes; with 24 bits, nothing reaches where the bug is."""
    driver = attach_1542(attachment(machine))
    machine.run(driver.start)
    data = random.Random(2).randbytes(65536)
    out, back = machine.allocate(len(data), offset=3), machine.allocate(len(data), offset=9)
    out.write(data)
    machine.run(driver.disks[0].write, 0, out)
    machine.run(driver.disks[0].read, 0, back)
    assert back.read() == data
    assert machine.adapter.bus.layout is BITS_24
    assert machine.traffic("bt0").mechanism == "direct+bounce"
    machine.run(driver.stop)


def test_the_filter_leads_around_the_bug_as_the_holes_do(machine: PcVlb) -> None:
    by_holes, by_filter = attach_445s(attachment(machine)), attach_445s(attachment(machine), by_filter=True)
    machine.run(by_filter.start)
    everything = machine.kernel.allocate(56 << 20)
    page, chunk = 4096, 128 << 10
    seen = 0
    for at in range(0, len(everything), chunk):
        buffer = everything[at : at + chunk]
        fates = [
            [(fate.page, fate.mechanism, fate.bus_address) for fate in driver.tag.explain(buffer).pages]
            for driver in (by_holes, by_filter)
        ]
        assert fates[0] == fates[1]
        bounced = sum(way == "bounce" for _, way, _ in fates[0])
        if bounced and seen < 4:
            data = random.Random(at).randbytes(chunk)
            buffer.write(data)
            machine.run(by_filter.disks[0].write, 8 * seen * 32, buffer)
            buffer.write(bytes(chunk))
            machine.run(by_filter.disks[0].read, 8 * seen * 32, buffer)
            assert buffer.read() == data
            seen += 1
    assert seen == 4
    assert len(everything) % page == 0
    machine.run(by_filter.stop)
