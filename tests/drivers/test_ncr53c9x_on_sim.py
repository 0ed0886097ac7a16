"""The driver against the models of chip and DMA engines, which were written from the data sheets by somebody else."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.drivers import attach, scsi
from busdma.drivers.block import transfer_all
from busdma.drivers.disk import ScsiFault
from busdma.drivers.ncr53c9x.sequencer import NO_DEVICE, OVERRUN, WRONG_WAY
from busdma.drivers.queues import Request
from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.runtime import NAMES, by_name
from busdma.sim.scsi.am53c974 import Am53c974
from busdma.sync import Direction
from busdma.waiting import Task
from drivers.ncr53c9x_rig import BLOCKS, BOARDS, RAM, Rig, pause

SECOND = 1_000_000_000
IN, OUT = Direction.FROM_DEVICE, Direction.TO_DEVICE


@pytest.fixture(params=BOARDS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(by_name("virtual"), request.param)
    yield rig
    rig.close()


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_there_and_back_on_every_runtime(name: str, board: str) -> None:
    data = random.Random(1).randbytes(301 * 512)
    with by_name(name) as runtime:
        rig = Rig(runtime, board, targets=(0, 3, 6), reach=(RAM >> 1) - 1, burst=5000)

        async def main() -> None:
            assert [disk.name for disk in rig.driver.disks] == ["esp0:0", "esp0:3", "esp0:6"]
            assert rig.driver.silent == {}
            disk = rig.driver.disks[1]
            assert (disk.block_size, disk.blocks, disk.maxio) == (512, BLOCKS, 128 << 10)
            back = rig.empty(len(data), offset=77)
            await transfer_all(disk, 5, rig.buffer(data, offset=4095), OUT, runtime=runtime)
            await disk.flush()
            await transfer_all(disk, 5, back, IN, runtime=runtime, chunk=20_000)
            assert back.read() == data

        rig.run(main)
        assert rig.disks[3].read(5, 301) == data
        traffic = rig.bus.statistics()["esp0"]
        assert traffic["by_owner"]["bounce"]["bytes"] > 0
        assert traffic["by_owner"]["kernel"]["bytes"] > 0
        assert traffic["wrapped"] == traffic["unclaimed"] == 0
        assert not set(traffic["by_owner"]) - {"kernel", "bounce", "dma-safe"}
        statistics = rig.driver.statistics()
        assert statistics["resets"] == statistics["stray"] == statistics["pads"] == statistics["unknown"] == 0
        assert statistics["disconnections"] > 60
        rig.close()


def test_the_runtimes_agree_to_the_nanosecond() -> None:
    times = set()
    for name in NAMES:
        with by_name(name) as runtime:
            rig = Rig(runtime, burst=3001)
            buffer = rig.buffer(bytes(65536))

            async def main(rig: Rig = rig, buffer: LinearBuffer = buffer) -> None:
                await rig.driver.disks[0].write(9, buffer)

            rig.run(main)
            times.add(runtime.now())
            rig.close()
    assert len(times) == 1


@pytest.mark.parametrize(
    ("board", "counter", "transfers"),
    [("sbus", 16, 2), ("jazz", 16, 2), ("sbus", 24, 1), ("jazz", 24, 1), ("pci", 24, 1)],
)
def test_one_transfer_a_segment_as_long_as_the_counter(board: str, counter: int, transfers: int) -> None:
    data = random.Random(2).randbytes(128 << 10)
    rig = Rig(by_name("virtual"), board, counter=counter)

    async def main() -> None:
        disk = rig.driver.disks[0]
        out = rig.kernel.allocate(len(data), contiguous=True)
        out.write(data)
        back = rig.kernel.allocate(len(data), contiguous=True)
        before = rig.driver.statistics()["segments"]
        await disk.write(0, out)
        assert rig.driver.statistics()["segments"] == before + transfers
        await disk.read(0, back)
        assert back.read() == data

    rig.run(main)
    assert rig.driver.tag.constraints.maxsegsz.value == min(1 << counter, 1 << 24)
    rig.close()


def test_espdma_never_crosses_a_line_of_16_mib() -> None:
    data = random.Random(3).randbytes(64 << 10)
    line = 1 << 24
    rig = Rig(by_name("virtual"), counter=24)

    async def main() -> None:
        disk = rig.driver.disks[0]
        around = AddressSet.span(line - (32 << 10), line + (32 << 10) - 1)
        buffer = rig.kernel.allocate(len(data), contiguous=True, within=around)
        buffer.write(data)
        await disk.write(0, buffer)
        buffer.fill(0)
        before = rig.driver.statistics()["segments"]
        await disk.read(0, buffer)
        assert rig.driver.statistics()["segments"] == before + 2
        assert buffer.read() == data

    rig.run(main)
    assert rig.engine.statistics()["wrapped"] == 0
    assert rig.driver.tag.constraints.boundary.value == line
    rig.close()


@pytest.mark.parametrize("board", BOARDS)
def test_a_target_that_leaves_in_mid_list_at_odd_bytes(board: str) -> None:
    """What it left behind in the engine reaches memory too, and the next transfer goes on at the right byte."""
    data = random.Random(4).randbytes(40 * 512)
    rig = Rig(by_name("virtual"), board, burst=2749)

    async def main() -> None:
        disk = rig.driver.disks[0]
        back = rig.empty(len(data), offset=1013)
        await disk.write(1, rig.buffer(data, offset=3))
        before = rig.driver.statistics()["disconnections"]
        await disk.read(1, back)
        assert back.read() == data
        assert rig.driver.statistics()["disconnections"] - before >= len(data) // 2749

    rig.run(main)
    assert rig.disks[0].read(1, 40) == data
    if board == "sbus":
        assert rig.engine.statistics()["drained"] > 0
    if board == "pci":
        assert rig.device.statistics()["blasts"] > 0
        assert rig.device.statistics()["forgotten"] == 0
    rig.close()


def test_odd_bytes_that_stay_in_the_fifo_get_to_their_places() -> None:
    data = random.Random(5).randbytes(16 * 512)
    rig = Rig(by_name("virtual"), "jazz", burst=1001, odd=True, reach=(RAM >> 1) - 1)

    async def main() -> None:
        disk = rig.driver.disks[0]
        await disk.write(1, rig.buffer(data, offset=3))
        for back in (rig.empty(len(data), offset=1013), rig.empty(len(data), offset=1)):
            await disk.read(1, back)
            assert back.read() == data
        foreign = bytearray(len(data))
        await disk.read(1, foreign)
        assert foreign == data
        identity = await disk.queue.submit(Request(scsi.inquiry(35), reply=35))  # the last byte of which is odd
        assert identity[8:30] == b"BUSDMA  SIMULATED DISK"
        assert len(identity) == 35

    rig.run(main)
    rig.close()


def test_nothing_is_installed() -> None:
    rig = Rig(by_name("virtual"), targets=())

    async def main() -> None:
        assert (rig.driver.disks, rig.driver.silent) == ([], {})
        statistics = rig.driver.statistics()
        assert (statistics["disks"], statistics["selections"], statistics["free_slots"]) == ({}, 7, 16)
        assert rig.runtime.now() >= 7 * SECOND // 4

    rig.run(main)
    rig.close()


def test_a_disk_that_was_unplugged(rig: Rig) -> None:
    async def main() -> None:
        disk = rig.driver.disks[0]
        plugged = rig.targets.pop(0)
        with pytest.raises(ScsiFault, match="selection timeout: no device answers") as caught:
            await disk.read(0, rig.empty(512))
        assert caught.value.host_status == NO_DEVICE
        rig.targets[0] = plugged
        await disk.read(0, rig.empty(512))

    rig.run(main)


def test_an_unreadable_block_says_so(rig: Rig) -> None:
    """REQUEST SENSE is automatic, and its data come whole, though 18 bytes fill no burst of any engine."""

    async def main() -> None:
        disk = rig.driver.disks[0]
        rig.targets[0].bad.add(40)
        back = rig.empty(4096)
        with pytest.raises(ScsiFault) as caught:
            await disk.read(38, back)
        fault = caught.value
        assert fault.sense is not None
        assert (fault.sense.key, fault.sense.asc, fault.sense.block) == (3, 0x11, 40)
        assert (fault.host_status, fault.target_status) == (0, scsi.CHECK_CONDITION)
        assert "CHECK CONDITION; MEDIUM ERROR, unrecovered read error (11/00), block 40; 3072 bytes" in str(fault)
        assert back.read(0, 1024) == rig.disks[0].read(38, 2)  # what came before it
        await disk.read(41, back)

    rig.run(main)


def test_a_unit_attention_is_tried_again(rig: Rig) -> None:
    async def main() -> None:
        before = rig.driver.statistics()["retries"]
        rig.targets[0].reset()
        await rig.driver.disks[0].read(0, rig.empty(512))
        assert rig.driver.statistics()["retries"] == before + 1

    rig.run(main)


def test_sense_before_anything_else_of_that_unit(rig: Rig) -> None:
    """Another command in between would clear what the sense data say (SCSI-2 7.6)."""

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.targets[0].bad.add(40)
        doomed = runtime.start(disk.read, 40, rig.empty(512))
        others = [runtime.start(disk.read, 100 + n, rig.empty(512)) for n in range(5)]
        for task in others:
            await runtime.park(task.done)
            task.result()
        await runtime.park(doomed.done)
        with pytest.raises(ScsiFault, match="MEDIUM ERROR"):
            doomed.result()

    rig.run(main)


@pytest.mark.parametrize(
    ("blocks", "length", "direction", "host", "words"),
    [
        (2, 512, IN, OVERRUN, "data overrun"),
        (2, 512, OUT, OVERRUN, "data overrun"),
        (1, 1024, IN, 0, "512 bytes not moved"),
        (1, 1024, OUT, 0, "512 bytes not moved"),
    ],
)
def test_buffers_of_the_wrong_length(
    rig: Rig, blocks: int, length: int, direction: Direction, host: int, words: str
) -> None:
    async def main() -> None:
        disk = rig.driver.disks[0]
        cdb = (scsi.read10 if direction is IN else scsi.write10)(0, blocks)
        space = rig.empty(length + 512)
        request = Request(cdb, buffer=space[:length], direction=direction)
        with pytest.raises(ScsiFault, match=words) as caught:
            await disk.queue.submit(request)
        assert caught.value.host_status == host
        assert space.read(length) == bytes(512)
        await disk.read(0, rig.empty(512))

    rig.run(main)


def test_data_in_the_wrong_direction(rig: Rig) -> None:
    async def main() -> None:
        disk = rig.driver.disks[0]
        buffer = rig.buffer(b"x" * 512)
        with pytest.raises(ScsiFault, match="wrong direction") as caught:
            await disk.queue.submit(Request(scsi.read10(0, 1), buffer=buffer, direction=OUT))
        assert caught.value.host_status == WRONG_WAY
        assert buffer.read() == b"x" * 512

    rig.run(main)


@pytest.mark.parametrize("board", BOARDS)
def test_a_selection_that_a_reselection_beats(board: str) -> None:
    """Many short commands of several disks: sooner or later one is selected while another disk comes back."""
    rig = Rig(by_name("virtual"), board, targets=(0, 1, 2, 3), burst=700)

    async def main() -> None:
        runtime = rig.runtime
        tasks = [
            runtime.start(disk.write, 16 * n, rig.buffer(bytes([n + 1]) * 8192))
            for n in range(20)  # more than there are slots
            for disk in rig.driver.disks
        ]
        for task in tasks:
            await runtime.park(task.done)
            task.result()

    rig.run(main)
    for disk in rig.disks.values():
        assert disk.read(0, 320) == b"".join(bytes([n + 1]) * 8192 for n in range(20))
    assert rig.chip.statistics()["beaten"] > 0
    assert rig.driver.statistics()["resets"] == 0
    rig.close()


def test_nothing_at_its_place() -> None:
    rig = Rig(by_name("virtual"))
    rig.cable.cut = True
    with pytest.raises(DeviceFault, match="no 53C9x answers"):
        rig.runtime.run(rig.driver.start)
    rig.close()


def test_another_bus_and_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(by_name("virtual"), "pci")
    a = rig.attachment
    with pytest.raises(ConfigurationError, match="not on a PCI bus"):
        attach("ncr53c9x", "pci", type(a)("esp1", a.tag, a.registers, a.interrupt, a.runtime))
    rig.close()
    monkeypatch.setattr(Am53c974, "device", 0x2000)
    with pytest.raises(ConfigurationError, match="1022:2000; this driver is for 1022:2020"):
        Rig(by_name("virtual"), "pci")


def test_a_counter_of_24_bits_that_the_chip_does_not_have() -> None:
    rig = Rig(by_name("virtual"), counter=24)
    rig.cable.lost.add(0x1002C)
    with pytest.raises(DeviceFault, match="no counter of 24 bits"):
        rig.runtime.run(rig.driver.start)
    rig.close()


def test_start_twice_and_again(rig: Rig) -> None:
    async def main() -> None:
        with pytest.raises(DriverError, match="already"):
            await rig.driver.start()

    rig.run(main)
    rig.run(main)


REQUESTS = st.tuples(
    st.sampled_from(["read", "read", "write", "write", "write", "hang", "parity", "bus reset"]),
    st.integers(0, 1),  # disk
    st.integers(0, 24),  # block
    st.integers(1, 9),  # blocks
    st.integers(0, 4095),  # where in its first page the buffer begins
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("board", BOARDS)
def test_any_mix_of_requests_and_faults_is_like_a_bytearray(name: str, board: str) -> None:
    """What succeeds has happened, in the order of asking; what fails has not happened at all."""

    @settings(max_examples=12)
    @given(
        st.lists(REQUESTS, min_size=1, max_size=12),
        st.integers(33, 50),
        st.sampled_from([0, 100, 513, 1000, 4096]),
        st.booleans(),
    )
    def check(plan: list[tuple[str, int, int, int, int]], bounce: int, burst: int, odd: bool) -> None:
        with by_name(name) as runtime:
            rig = Rig(runtime, board, targets=(0, 1), bounce=bounce, burst=burst, reach=(RAM >> 2) - 1, odd=odd)
            model = [bytearray(64 * 512), bytearray(64 * 512)]
            asked: list[tuple[Task[None], int, int, LinearBuffer, bytes | None]] = []

            async def main() -> None:
                for number, (what, which, lba, count, offset) in enumerate(plan):
                    disk, data = rig.driver.disks[which], random.Random(number).randbytes(count * 512)
                    if what == "read":
                        buffer = rig.empty(len(data), offset)
                        asked.append((runtime.start(disk.read, lba, buffer), which, lba, buffer, None))
                    elif what == "write":
                        buffer = rig.buffer(data, offset)
                        asked.append((runtime.start(disk.write, lba, buffer), which, lba, buffer, data))
                    else:
                        with rig.bus.lock:
                            if what == "hang":  # the next command for that disk, whichever it is
                                rig.chip.inject_silence(which)
                            elif what == "parity":
                                rig.chip.inject_parity_error()
                            else:
                                rig.chip.inject_bus_reset()
                    await pause(runtime, 100_000)  # so that requests are made in this order on threads too
                for task, *_ in asked:
                    await runtime.park(task.done)

            rig.run(main)
            for task, which, lba, buffer, data in asked:
                at = slice(lba * 512, lba * 512 + len(buffer))
                try:
                    task.result()
                except ScsiFault:
                    continue
                if data is None:
                    assert buffer.read() == model[which][at]
                else:
                    model[which][at] = data
            for which, disk in rig.disks.items():
                assert disk.read(0, 64) == model[which]
            rig.close()

    check()
