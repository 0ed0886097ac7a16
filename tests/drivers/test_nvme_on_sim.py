"""The NVMe driver against the controller's model, on every runtime."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from busdma.buffers import LinearBuffer
from busdma.drivers import attach as attach_by_name
from busdma.drivers.block import transfer_all
from busdma.drivers.nvme.controller import NvmeFault
from busdma.drivers.nvme.pci import attach
from busdma.errors import BufferGone, ConfigurationError, DeviceFault, DriverError, ResourceShortage
from busdma.runtime import NAMES, by_name
from busdma.sim.nvme.controller import FatalStatus, NeverCompletes
from busdma.sync import Direction
from drivers.nvme_rig import BLOCKS, Rig, pause

SECOND = 1_000_000_000
IN, OUT = Direction.FROM_DEVICE, Direction.TO_DEVICE


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(by_name("virtual"))
    yield rig
    rig.close()


@pytest.fixture
def two() -> Iterator[Rig]:
    rig = Rig(by_name("virtual"), namespaces=2, bounce=33)
    yield rig
    rig.close()


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("poll", [0, 5_000])
def test_a_file_there_and_back_on_every_runtime(name: str, poll: int) -> None:
    data = random.Random(1).randbytes(1301 * 512)
    with by_name(name) as runtime:
        rig = Rig(runtime, namespaces=3, poll=poll)

        async def main() -> None:
            assert [disk.name for disk in rig.driver.disks] == ["nvme0n1", "nvme0n2", "nvme0n3"]
            disk = rig.driver.disks[1]
            assert (disk.block_size, disk.blocks, disk.maxio) == (512, BLOCKS, 131072)
            back = rig.empty(len(data), offset=77)
            await transfer_all(disk, 5, rig.buffer(data, offset=1365), OUT, runtime=runtime)
            await disk.flush()
            await transfer_all(disk, 5, back, IN, runtime=runtime, chunk=20_000)
            assert back.read() == data

        rig.run(main)
        assert rig.disks[1].read(5, 1301) == data
        traffic = rig.host.statistics()["nvme0"]
        assert traffic["unclaimed"] == 0
        assert not set(traffic["by_owner"]) - {"kernel", "bounce", "dma-safe"}
        assert rig.driver.statistics()["interrupts"] == (0 if poll else rig.line.statistics()["waited"])
        rig.close()


def test_the_runtimes_agree_to_the_nanosecond() -> None:
    times = set()
    for name in NAMES:
        with by_name(name) as runtime:
            rig = Rig(runtime)
            buffer = rig.buffer(bytes(65536))

            async def main(rig: Rig = rig, buffer: LinearBuffer = buffer) -> None:
                await rig.driver.disks[0].write(9, buffer)

            rig.run(main)
            times.add(runtime.now())
            rig.close()
    assert len(times) == 1


@pytest.mark.parametrize(
    ("offset", "used"), [(0, {"kernel"}), (4, {"kernel"}), (2048, {"kernel"}), (1, {"bounce"}), (4094, {"bounce"})]
)
def test_only_what_prps_cannot_say_is_bounced(rig: Rig, offset: int, used: set[str]) -> None:
    """The whole buffer then: were only its first page moved, the second would not join it at a page."""
    data = random.Random(offset).randbytes(65536)

    async def main() -> None:
        await rig.driver.disks[0].write(0, rig.buffer(data, offset))

    rig.run(main)
    assert rig.disks[0].read(0, 128) == data
    assert set(rig.host.statistics()["nvme0"]["by_owner"]) == used | {"dma-safe"}


def test_behind_a_bridge_only_the_pages_above_it_are_bounced() -> None:
    rig = Rig(by_name("virtual"), reach=(32 << 20) - 1)
    data = random.Random(4).randbytes(131072)

    async def main() -> None:
        back = rig.empty(len(data), 512)
        await rig.driver.disks[0].write(3, rig.buffer(data, 512))
        await rig.driver.disks[0].read(3, back)
        assert back.read() == data

    rig.run(main)
    assert {"kernel", "bounce"} <= set(rig.host.statistics()["nvme0"]["by_owner"])
    rig.close()


@pytest.mark.parametrize("offset", [0, 4092])
def test_transfers_whose_prp_lists_are_chained(offset: int) -> None:
    """4 MiB are 1024 pages, and a list page names 512."""
    size = 4 << 20
    rig = Rig(by_name("virtual"), maxio=size, depth=3)
    data = random.Random(8).randbytes(size)

    async def main() -> None:
        disk = rig.driver.disks[0]
        assert disk.maxio == size
        back = rig.empty(size, offset)
        await disk.write(1, rig.buffer(data, offset))
        await disk.read(1, back)
        assert back.read() == data

    rig.run(main)
    assert rig.controller.counts["lists"] == (4 if offset == 0 else 6)
    rig.close()


@pytest.mark.parametrize(
    ("mdts", "block_size", "maxio"), [(0, 512, 131072), (2, 512, 16384), (9, 512, 131072), (1, 4096, 8192)]
)
def test_the_controller_says_how_much_at_once(mdts: int, block_size: int, maxio: int) -> None:
    rig = Rig(by_name("virtual"), mdts=mdts, block_size=block_size)

    async def main() -> None:
        disk = rig.driver.disks[0]
        assert (disk.maxio, disk.block_size) == (maxio, block_size)
        await disk.read(0, rig.empty(maxio))

    rig.run(main)
    rig.close()


def test_ordinary_memory_and_buffers_that_cannot_be_used(rig: Rig) -> None:
    async def main() -> None:
        disk, back = rig.driver.disks[0], bytearray(1024)
        await disk.write(0, b"\x5a" * 1024)
        await disk.read(0, back)
        assert back == b"\x5a" * 1024
        buffer = rig.empty(512)
        gone = buffer[:]
        buffer.free()
        with pytest.raises(BufferGone):
            await disk.read(0, gone)
        with pytest.raises(DriverError, match="read-only"):
            await disk.read(0, bytes(512))

    rig.run(main)


@pytest.mark.parametrize(
    ("lba", "length", "words"),
    [(0, 131072 + 512, "split it"), (0, 100, "whole blocks"), (BLOCKS, 512, "stay within"), (-1, 512, "stay within")],
)
def test_requests_that_are_refused(rig: Rig, lba: int, length: int, words: str) -> None:
    async def main() -> None:
        with pytest.raises(DriverError, match=words):
            await rig.driver.disks[0].read(lba, rig.empty(length))

    rig.run(main)


# -- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("namespaces", "queues"), [(2, 8), (5, 2)])
def test_many_commands_of_many_namespaces(name: str, namespaces: int, queues: int) -> None:
    """A pair of queues each, or shared where the controller has fewer; many rounds of each ring."""
    with by_name(name) as runtime:
        rig = Rig(runtime, namespaces=namespaces, queues=queues, depth=5)

        async def main() -> None:
            tasks = [
                runtime.start(disk.write, 8 * n, rig.buffer(bytes([n + 1]) * 4096))
                for n in range(40)
                for disk in rig.driver.disks
            ]
            for task in tasks:
                await runtime.park(task.done)
                task.result()

        rig.run(main)
        for disk in rig.disks:
            assert disk.read(0, 320) == b"".join(bytes([n + 1]) * 4096 for n in range(40))
        assert rig.controller.counts["commands"] == 40 * namespaces
        rig.close()


def test_one_doorbell_for_many_commands(rig: Rig) -> None:
    async def main() -> None:
        runtime, disk = rig.runtime, rig.driver.disks[0]
        before = rig.driver.statistics()
        start = runtime.now()
        tasks = [runtime.start(disk.read, 8 * n, rig.empty(4096)) for n in range(8)]
        for task in tasks:
            await runtime.park(task.done)
            task.result()
        assert runtime.now() - start < 2 * 84_000  # all at the same time
        after = rig.driver.statistics()
        interrupts = after["interrupts"] - before["interrupts"]
        assert after["doorbells"] - before["doorbells"] == 1 + interrupts  # one for all, and one for each interrupt

    rig.run(main)


def test_overlapping_requests_keep_their_order(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        writes = [runtime.start(disk.write, 0, rig.buffer(bytes([n]) * 512 * (1 + n % 3))) for n in range(1, 10)]
        await pause(runtime, 1000)
        back = rig.empty(1536)
        await disk.read(0, back)
        for write in writes:
            await runtime.park(write.done)
        assert back.read() == bytes([9]) * 512 + bytes([8]) * 1024

    rig.run(main)


def test_a_shortage_stalls_one_namespace_and_not_the_other(two: Rig) -> None:
    """The zone holds 33 pages. One namespace's write holds 32 and hangs; the other reads what needs none."""
    rig = two

    async def main() -> None:
        (a, b), runtime = rig.driver.disks, rig.runtime
        rig.controller.inject(NeverCompletes())
        hold = runtime.start(a.write, 0, bytearray(b"x" * 131072))  # memory the machine does not know: all bounces
        await pause(runtime, SECOND)
        ahead = runtime.start(a.write, 5000, rig.buffer(b"y" * 4096))  # its doorbell must not wait for the next one
        stalled = runtime.start(a.write, 1000, bytearray(131072))
        behind = runtime.start(a.read, 2000, rig.empty(512))
        start = runtime.now()
        await runtime.park(ahead.done)
        await b.read(0, rig.empty(512))
        assert runtime.now() - start < SECOND
        assert stalled.done.state == behind.done.state == "pending"
        for task in (stalled, behind, hold):
            await runtime.park(task.done)
        stalled.result()
        behind.result()
        with pytest.raises(NvmeFault, match="aborted"):
            hold.result()

    rig.run(main)


# -- start and stop ---------------------------------------------------------------------------------------------------


def test_start_twice_and_again(rig: Rig) -> None:
    async def main() -> None:
        with pytest.raises(DriverError, match="already"):
            await rig.driver.start()

    rig.run(main)
    rig.run(main)


def test_the_table_of_drivers_and_what_is_no_controller(rig: Rig) -> None:
    assert attach_by_name("nvme", "pci", replace(rig.attachment, name="nvme1")).name == "nvme1"
    rig.slot.config.define(0x09, 3, value=0x020000)
    with pytest.raises(ConfigurationError, match="class 020000, not NVMe's 010802"):
        attach(rig.attachment)
    with pytest.raises(ConfigurationError, match="not on a PCI bus"):
        attach(replace(rig.attachment, config=None))


@pytest.mark.parametrize(("maxio", "depth"), [(2048, 31), (131072, 0)])
def test_drivers_that_cannot_be(rig: Rig, maxio: int, depth: int) -> None:
    with pytest.raises((ConfigurationError, DriverError)):
        attach(rig.attachment, maxio=maxio, depth=depth)


def test_a_dead_controller_does_not_start(rig: Rig) -> None:
    rig.controller.inject(FatalStatus(lasting=True))
    with pytest.raises(DeviceFault, match="does not get ready: its status stays 0x2"):
        rig.runtime.run(rig.driver.start)
    assert rig.domain.leaks() == []


def test_a_controller_that_does_not_answer_identify(rig: Rig) -> None:
    rig.controller.inject(NeverCompletes(admin=True))
    with pytest.raises(NvmeFault, match="no answer to the request for queues"):
        rig.runtime.run(rig.driver.start)
    assert rig.domain.leaks() == []


@pytest.mark.parametrize("pages", [0, 1, 2, 3, 5])
def test_a_machine_without_memory_for_queues(rig: Rig, pages: int) -> None:
    held = rig.frames.allocate(rig.frames.statistics()["free"] - pages, "hog")
    with pytest.raises(ResourceShortage):
        rig.runtime.run(rig.driver.start)
    assert rig.domain.leaks() == []
    assert rig.frames.statistics()["by_owner"].get("dma-safe", 0) == 0
    rig.frames.free(held)

    async def main() -> None:
        await rig.driver.disks[0].read(0, rig.empty(512))

    rig.run(main)


def test_a_context_that_fails_takes_the_driver_out_of_service(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        disk = rig.driver.disks[0]

        def broken(pairs: object) -> None:
            raise RuntimeError("a mistake")

        with monkeypatch.context() as patched:
            patched.setattr(rig.driver, "_reap", broken)
            for _ in range(2):
                with pytest.raises(DeviceFault, match="failed in context 'complete': RuntimeError"):
                    await disk.read(0, rig.empty(4096))
        assert any("quarantine" in leak for leak in rig.domain.leaks())

    rig.run(main)

    async def again() -> None:
        await rig.driver.disks[0].read(0, rig.empty(512))

    rig.run(again)


def test_stop_with_requests_in_flight(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.controller.inject(NeverCompletes())
        tasks = [runtime.start(disk.write, 0, rig.empty(8192)) for _ in range(3)]
        await pause(runtime, SECOND)
        await rig.driver.stop()
        for task in tasks:
            await runtime.park(task.done)
            with pytest.raises(DriverError, match="was stopped"):
                task.result()
        with pytest.raises(DriverError, match="was stopped"):
            await disk.read(0, rig.empty(512))

    rig.run(main)


def test_stop_lets_the_controller_end_and_write_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bytes] = []
    monkeypatch.setattr(rig.disks[0], "flush", lambda: flushed.append(rig.disks[0].read(0, 1)))

    async def main() -> None:
        task = rig.runtime.start(rig.driver.disks[0].write, 0, rig.buffer(b"z" * 512))
        await pause(rig.runtime, 5_000)
        await rig.driver.stop()
        await rig.runtime.park(task.done)
        with pytest.raises(DriverError, match="was stopped"):  # nobody was told that it did come to an end
            task.result()

    rig.run(main)
    assert flushed == [b"z" * 512]


# -- several at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", [0, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_many_parts_in_one_call(name: str, spin: int) -> None:
    """More than there are slots for, with parts that overlap: the later one wins; and what they say is read back."""
    with by_name(name) as runtime:
        rig = Rig(runtime, depth=5, spin=spin)
        rng = random.Random(7)
        data = [rng.randbytes(4096) for _ in range(23)]

        async def main() -> None:
            disk = rig.driver.disks[0]
            await disk.transfer([(4 * n, rig.buffer(each)) for n, each in enumerate(data)], OUT)
            back = [rig.empty(2048) for _ in data]
            await disk.transfer([(4 * n, each) for n, each in enumerate(back)], IN)
            assert [each.read() for each in back] == [each[:2048] for each in data]
            await disk.transfer([], IN)

        rig.run(main)
        assert rig.disks[0].read(0, 4 * 24)[-2048:] == data[-1][2048:]
        assert rig.controller.counts["commands"] == 2 * len(data)
        rig.close()


def test_many_parts_of_one_call_have_few_doorbells(rig: Rig) -> None:
    async def main() -> None:
        before = rig.driver.statistics()
        await rig.driver.disks[0].transfer([(8 * n, rig.empty(4096)) for n in range(20)], IN)
        after = rig.driver.statistics()
        interrupts = after["interrupts"] - before["interrupts"]
        assert after["doorbells"] - before["doorbells"] == 3 + interrupts  # after 8, after 16, and at the end
        assert rig.driver.disks[0].queue.in_flight == []

    rig.run(main)


def test_parts_that_are_refused_or_fail(rig: Rig) -> None:
    """One that is refused: none is made. One that the machine cannot load: the others are, and its error is raised."""

    async def main() -> None:
        disk = rig.driver.disks[0]
        good, gone = [rig.buffer(b"good" * 128), rig.buffer(b"well" * 128)], rig.buffer(bytes(512))
        before = rig.driver.statistics()["commands"]
        for parts, way in (
            ([(0, good[0]), (BLOCKS, good[1])], OUT),
            ([(0, good[0]), (1, good[1][:100])], OUT),
            ([(0, good[0])], Direction.BOTH),
        ):
            with pytest.raises(DriverError):
                await disk.transfer(parts, way)
        assert rig.driver.statistics()["commands"] == before
        rig.kernel.free(gone)
        with pytest.raises(BufferGone):
            await disk.transfer([(0, good[0]), (1, gone), (2, good[1])], OUT)
        assert rig.disks[0].read(0, 3) == b"good" * 128 + bytes(512) + b"well" * 128

    rig.run(main)
