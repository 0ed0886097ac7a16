"""The floppy driver against the models of its controller and of the 8237s, on the machine sim:pc-isa."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.drivers.block import transfer_all
from busdma.drivers.fdc.isa import attach
from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.machine.attachment import Attachment
from busdma.runtime import NAMES, by_name
from busdma.sync import Direction
from drivers.fdc_rig import MS, SECOND, Rig, pause

BLOCK = 512
CYLINDER = 36 * BLOCK


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(by_name("virtual"))
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    """One for all examples."""
    rig = Rig(by_name("virtual"))
    yield rig
    rig.close()


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def attachment(rig: Rig) -> Attachment:
    device = rig.machine.devices["fd0"]
    return Attachment(
        "other", device.tag, device.registers, device.interrupt, rig.runtime, device.properties, dma=device.dma
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_disk_there_and_back_on_every_runtime(name: str) -> None:
    data = noise(2880 * BLOCK)
    with by_name(name) as runtime:
        rig = Rig(runtime, check=False)
        out, back = rig.buffer(data, 77), rig.buffer(bytes(len(data)), 4095)

        async def main() -> None:
            disk = rig.disk
            assert (disk.blocks, disk.block_size, disk.maxio) == (2880, 512, CYLINDER)
            assert repr(disk) == "<disk fd0, 1.44 MB>"
            for buffer, way in ((out, Direction.TO_DEVICE), (back, Direction.FROM_DEVICE)):
                await transfer_all(disk, 0, buffer, way, runtime=runtime)

        rig.run(main)
        assert back.read() == data
        assert rig.medium.read(0, 2880) == data
        counts = rig.driver.statistics()
        assert (counts["commands"], counts["retries"], counts["resets"], counts["stray"]) == (160, 0, 0, 0)
        traffic = rig.machine.traffic("fd0")
        assert (traffic.bytes, traffic.segments) == (2 * len(data), 2 * 2880)
        assert runtime.now() < 160 * 800 * MS  # two turns a cylinder, a third one where the first sector is missed
        rig.close()


@pytest.mark.parametrize(("blocks", "name", "sectors"), [(1440, "720 KB", 9), (5760, "2.88 MB", 36)])
def test_other_media(rig: Rig, blocks: int, name: str, sectors: int) -> None:
    medium = rig.put_in(blocks)
    data = noise(2 * 2 * sectors * BLOCK)
    medium.write(blocks - 8, noise(8 * BLOCK, 3))

    async def main() -> None:
        disk = rig.disk
        assert (disk.format.name, disk.blocks, disk.maxio) == (name, blocks, 2 * sectors * BLOCK)
        out = rig.buffer(data, 9)
        await transfer_all(disk, 5, out, Direction.TO_DEVICE, runtime=rig.runtime)
        tail = bytearray(8 * BLOCK)
        await disk.read(blocks - 8, tail)
        assert tail == noise(8 * BLOCK, 3)

    rig.run(main)
    assert medium.read(5, len(data) // BLOCK) == data


def test_a_request_that_lies_in_two_cylinders_is_two_commands(rig: Rig) -> None:
    data = noise(CYLINDER)

    async def main() -> None:
        await rig.disk.write(7, rig.buffer(data))
        assert rig.driver.statistics()["commands"] == 2
        back = bytearray(CYLINDER)
        await rig.disk.read(7, back)
        assert back == data
        await rig.disk.flush()

    rig.run(main)


# -- the channel's limits ---------------------------------------------------------------------------------------------


def test_the_boundary_is_in_the_tag_of_this_device_alone(rig: Rig) -> None:
    machine = rig.machine
    assert rig.driver.tag.constraints.boundary.value == 0x10000
    assert rig.driver.tag.constraints.boundary.origin == "data"
    assert machine.driver("aha0").tag.constraints.boundary.value == 0
    assert machine.devices["fd0"].tag is machine.devices["aha0"].tag
    assert machine.devices["fd0"].tag.constraints.boundary.value == 0


@settings(max_examples=40)
@given(st.integers(0, 36), st.integers(1, 36), st.integers(0, 4095))
def test_a_buffer_that_crosses_a_line_is_moved_and_one_that_does_not_stays(
    shared: Rig, lba: int, blocks: int, byte: int
) -> None:
    """Adjacent page frames across a multiple of 64 KiB, which a bus master takes as they are."""
    rig = shared
    pages = rig.run_of_pages(32)
    start = 0xF000 + byte
    length = blocks * BLOCK
    part = pages[start : start + length]
    crosses = start // 0x10000 != (start + length - 1) // 0x10000
    data = noise(length, byte)
    part.write(data)
    before = sum(zone.counts["bounced_pages"] for zone in rig.machine.domain.zones)
    assert {page.mechanism for page in rig.machine.driver("aha0").tag.explain(part).pages} == {"direct"}

    async def main() -> None:
        await rig.disk.write(lba, part)
        part.write(bytes(length))
        await rig.disk.read(lba, part)

    rig.run(main)
    assert part.read() == rig.medium.read(lba, blocks) == data
    bounced = sum(zone.counts["bounced_pages"] for zone in rig.machine.domain.zones) - before
    assert (bounced > 0) == crosses
    rig.machine.frames.free(pages.frames.table)


def test_memory_above_16_mib_is_bounced(rig: Rig) -> None:
    data = noise(CYLINDER)
    pages = [rig.machine.allocate(4096) for _ in range(100)]
    high = [page for page in pages if page.frames.table[page.start // 4096] >= 0x100_0000]

    async def main() -> None:
        for number, page in enumerate(high[:4]):
            page.write(data[4096 * number : 4096 * number + 4096])
            await rig.disk.write(8 * number, page)

    rig.run(main)
    assert 4 < len(high) < 100
    assert rig.machine.traffic("fd0").mechanism == "bounce"
    assert rig.medium.read(0, 32) == data[: 32 * BLOCK]


# -- start, stop, order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("after", [1, 300 * MS, 700 * MS, 900 * MS])
def test_stop_while_requests_are_under_way(name: str, after: int) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime)
        buffers = [rig.buffer(bytes([number]) * CYLINDER, 55) for number in range(3)]

        async def one(number: int) -> str:
            try:
                await rig.disk.read(36 * number, buffers[number])
            except DriverError as error:
                return str(error)
            return "done"

        async def main() -> list[str]:
            disk = rig.disk
            tasks = [runtime.start(one, number) for number in range(3)]
            await pause(runtime, after)
            await rig.driver.stop()
            for task in tasks:
                await runtime.park(task.done)
            with pytest.raises(DriverError, match="fd0 was stopped"):
                await disk.read(0, bytearray(BLOCK))
            return [task.result() for task in tasks]

        found = rig.run(main)
        assert set(found) <= {"done", "fd0 was stopped"}
        assert found[-1] == "fd0 was stopped"
        before = rig.machine.traffic("fd0").bytes
        runtime.run(pause, runtime, SECOND)
        assert rig.machine.traffic("fd0").bytes == before
        for buffer in buffers:
            buffer.free()

        async def again() -> None:
            await rig.disk.read(0, bytearray(BLOCK))

        rig.run(again)
        rig.close()


def test_starting_twice(rig: Rig) -> None:
    async def main() -> None:
        with pytest.raises(DriverError, match="fd0 is already started: stop it first"):
            await rig.driver.start()

    rig.run(main)
    rig.runtime.run(rig.driver.stop)  # of what was stopped


def test_of_two_requests_for_a_block_the_first_takes_effect_first(rig: Rig) -> None:
    rig.model.inject_silence()
    rig.model.inject_overrun(2)

    async def main() -> None:
        tasks = [rig.runtime.start(rig.disk.write, 9, bytes([number]) * BLOCK) for number in range(5)]
        for task in tasks:
            await rig.runtime.park(task.done)
            task.result()

    rig.run(main)
    assert rig.medium.read(9, 1) == b"\x04" * BLOCK


def test_a_user_that_leaves(rig: Rig) -> None:
    buffer = rig.buffer(noise(CYLINDER))

    async def main() -> None:
        task = rig.runtime.start(rig.disk.write, 0, buffer)
        await pause(rig.runtime, 300 * MS)
        task.cancel()
        await rig.runtime.park(task.done)
        assert rig.machine.domain.in_use(buffer)
        await rig.disk.write(0, b"z" * BLOCK)

    rig.run(main)
    assert rig.medium.read(0, 36) == b"z" * BLOCK + noise(CYLINDER)[BLOCK:]


def test_the_motor_stops_when_nobody_wants_it(rig: Rig) -> None:
    motor = 0x10

    async def main() -> None:
        await rig.disk.read(0, bytearray(BLOCK))
        assert rig.model.read8(2) & motor
        await pause(rig.runtime, 3 * SECOND)
        assert not rig.model.read8(2) & motor
        begin = rig.runtime.now()
        await rig.disk.read(0, bytearray(BLOCK))
        assert rig.runtime.now() - begin > 500 * MS
        assert rig.model.read8(2) & motor

    rig.run(main)
    assert rig.model.read8(2) == 0


def test_it_needs_a_channel_and_a_controller(rig: Rig) -> None:
    given = attachment(rig)
    with pytest.raises(ConfigurationError, match="other: a floppy disk controller needs a DMA channel: wire one to it"):
        attach(replace(given, dma=None))
    with pytest.raises(DeviceFault, match="other: no controller answers at its ports"):
        attach(replace(given, registers=rig.machine.bus.registers(0x370)))
