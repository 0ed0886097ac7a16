"""The floppy driver and the 8237's software on QEMU's models of both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from busdma.addresses import AddressSet
from busdma.drivers.block import transfer_all
from busdma.drivers.fdc.layout import FdcFault
from busdma.errors import DeviceFault
from busdma.sync import Direction
from qemu.fdc_rig import Rig, rig

BLOCK = 512
MIB = 1 << 20
CYLINDER = 36 * BLOCK
SIZE = 2880 * BLOCK
MASK_PORT, UNMASK = 0x0A, 0x02


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A medium of 1.44 MB that is full of noise."""
    path = tmp_path / "floppy.img"
    path.write_bytes(noise(SIZE, 9))
    return path


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def bounced(rig: Rig) -> int:
    return sum(zone.counts["bounced_pages"] for zone in rig.domain.zones)


@pytest.mark.parametrize("runtime", ["asyncio", "threads"])
def test_a_whole_disk_there_and_back(image: Path, runtime: str) -> None:
    """From a buffer at an odd address; what the image has is read by another process's means, after QEMU has gone."""
    data = noise(SIZE)
    with rig(image, runtime=runtime) as pc:

        async def main() -> None:
            (disk,) = pc.driver.disks
            assert (disk.blocks, disk.maxio) == (2880, CYLINDER)
            out, back = pc.buffer(data, 77), pc.buffer(bytes(SIZE), 4095)
            for buffer, way in ((out, Direction.TO_DEVICE), (back, Direction.FROM_DEVICE)):
                await transfer_all(disk, 0, buffer, way, runtime=pc.runtime)
            await disk.flush()
            assert back.read() == data

        pc.run(main)
        counts = pc.driver.statistics()
        assert (counts["commands"], counts["retries"], counts["resets"]) == (160, 0, 0)
    assert image.read_bytes() == data


def test_any_blocks_and_any_part_of_a_page(image: Path) -> None:
    expected = bytearray(image.read_bytes())
    choose = random.Random(5)
    with rig(image) as pc:

        async def main() -> None:
            (disk,) = pc.driver.disks
            for turn in range(25):
                blocks = choose.randrange(1, 37)
                lba, byte = choose.randrange(2880 - blocks), choose.randrange(4096)
                at = slice(lba * BLOCK, (lba + blocks) * BLOCK)
                data = noise(blocks * BLOCK, turn)
                buffer = pc.buffer(data, byte)
                if turn % 2:
                    await disk.write(lba, buffer)
                    expected[at] = data
                else:
                    await disk.read(lba, buffer)
                    assert buffer.read() == expected[at]
                buffer.free()

        pc.run(main)
    assert image.read_bytes() == expected


def test_memory_above_16_mib_and_buffers_across_64_kib_are_bounced(image: Path) -> None:
    """And nothing else: a run of adjacent pages below both is given to the controller as it is."""
    data = noise(CYLINDER)
    with rig(image) as pc:
        low, high = (pc.run_of_pages(32, above=mib * MIB, below=(mib + 8) * MIB) for mib in (4, 20))
        inside, across = low[0x2000 : 0x2000 + CYLINDER], low[0xF000 : 0xF000 + CYLINDER]
        pages = -(-CYLINDER // 4096)

        async def main() -> None:
            (disk,) = pc.driver.disks
            for lba, part, cost in ((0, inside, 0), (36, across, pages), (72, high[0x2000 : 0x2000 + CYLINDER], pages)):
                before = bounced(pc)
                part.write(data)
                await disk.write(lba, part)
                assert bounced(pc) - before == cost
                part.write(bytes(CYLINDER))
                await disk.read(lba, part)
                assert part.read() == data

        pc.run(main)
    assert image.read_bytes()[: 3 * CYLINDER] == 3 * data


def test_the_boundary_is_in_the_tag_of_this_device_alone(image: Path) -> None:
    with rig(image) as pc:
        limits = pc.driver.tag.constraints
        assert (limits.boundary.value, limits.nsegments.value) == (0x10000, 1)
        assert limits.reach == AddressSet.span(0, 0xFFFFFF)
        master = pc.bus.derive("a card that is master of the bus")
        assert master.constraints.boundary.value == pc.bus.constraints.boundary.value == 0
        pages = pc.run_of_pages(32, above=4 * MIB, below=12 * MIB)
        dma = master.create_map()
        ((address, length),) = dma.load_nowait(pages[0xF000:0x12000], Direction.TO_DEVICE)
        assert (address & 0xFFFF, length) == (0xF000, 0x3000)
        dma.unload()
        dma.destroy()


@pytest.mark.parametrize(("blocks", "name"), [(1440, "720 KB"), (5760, "2.88 MB")])
def test_other_media(tmp_path: Path, blocks: int, name: str) -> None:
    image = tmp_path / "floppy.img"
    image.write_bytes(noise(blocks * BLOCK, 2))
    with rig(image) as pc:

        async def main() -> None:
            (disk,) = pc.driver.disks
            assert (disk.format.name, disk.blocks) == (name, blocks)
            back = bytearray(disk.maxio)
            await disk.read(blocks - disk.maxio // BLOCK, back)
            assert back == image.read_bytes()[-disk.maxio :]
            await disk.write(5, noise(disk.maxio))

        pc.run(main)
        size = pc.driver.tag.constraints.maxsize.value
    whole = image.read_bytes()
    length = blocks // 80 * BLOCK
    assert length <= size
    assert whole[5 * BLOCK : 5 * BLOCK + length] == noise(length)


def test_a_protected_medium_is_only_read(image: Path) -> None:
    before = image.read_bytes()
    with rig(image, read_only=True) as pc:

        async def main() -> None:
            (disk,) = pc.driver.disks
            with pytest.raises(
                FdcFault, match=r"WRITE DATA at cylinder 0, head 0, sector 4 failed: .* write-protected"
            ):
                await disk.write(3, bytes(CYLINDER))
            back = bytearray(BLOCK)
            await disk.read(3, back)
            assert back == before[3 * BLOCK : 4 * BLOCK]

        pc.run(main)
    assert image.read_bytes() == before


def test_an_empty_drive() -> None:
    with rig(None) as pc:

        async def main() -> None:
            assert pc.driver.disks == []
            assert str(pc.driver.silent["fd0"]) == "fd0: there is no medium in the drive: put one in"

        pc.run(main)


def test_a_medium_that_is_taken_out(image: Path) -> None:
    with rig(image) as pc:

        async def main() -> None:
            (disk,) = pc.driver.disks
            await disk.read(100, bytearray(BLOCK))
            pc.qemu.monitor.execute("eject", {"id": "drive", "force": True})
            with pytest.raises(FdcFault, match="there is no medium in the drive: put one in"):
                await disk.read(100, bytearray(BLOCK))
            pc.qemu.monitor.execute("blockdev-change-medium", {"id": "drive", "filename": str(image), "format": "raw"})
            with pytest.raises(FdcFault, match="the medium was changed: stop the driver and start it again"):
                await disk.write(100, bytes(BLOCK))

        pc.run(main)

        async def again() -> None:
            (disk,) = pc.driver.disks
            await disk.write(100, b"again" + bytes(BLOCK - 5))

        pc.run(again)
    assert image.read_bytes()[100 * BLOCK : 100 * BLOCK + 5] == b"again"


def test_a_controller_whose_requests_are_not_heard_is_reset(image: Path) -> None:
    """The channel stays masked once: the command does not end, the controller is reset, and it is done again."""
    data = noise(CYLINDER)
    with rig(image) as pc:
        lost: list[int] = []

        def lose(port: int, value: int) -> bool:
            if (port, value) != (MASK_PORT, UNMASK) or lost:
                return False
            lost.append(port)
            return True

        async def main() -> None:
            (disk,) = pc.driver.disks
            pc.dma.lose = lose
            await disk.write(36, data)
            assert pc.driver.statistics()["resets"] == 1
            lost.clear()
            with pytest.raises(DeviceFault, match="was lost when the controller was reset"):
                await disk.write(72, data, deadline=pc.runtime.now() + 100_000_000)
            assert pc.driver.statistics()["resets"] == 2
            back = bytearray(CYLINDER)
            await disk.read(36, back)
            assert back == data

        pc.run(main)
        assert lost
    assert image.read_bytes()[36 * BLOCK : 72 * BLOCK] == data
    assert image.read_bytes()[72 * BLOCK :] == noise(SIZE, 9)[72 * BLOCK :]
