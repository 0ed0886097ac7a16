"""The floppy driver when things go wrong: media and controllers, one fault at a time and all together."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.drivers.fdc.layout import FdcFault
from busdma.errors import DeviceFault, DriverError
from busdma.lifecycle import State
from busdma.runtime import NAMES, by_name
from busdma.sim.chips import fdc
from drivers.fdc_rig import MS, SECOND, Rig, pause

BLOCK = 512
CYLINDER = 36 * BLOCK


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(by_name("virtual"))
    yield rig
    rig.close()


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


# -- errors of the medium ---------------------------------------------------------------------------------------------


def test_a_sector_that_can_be_read_at_the_third_try(rig: Rig) -> None:
    rig.medium.write(40, noise(BLOCK))
    rig.model.bad[40] = 2

    async def main() -> None:
        back = bytearray(4 * BLOCK)
        await rig.disk.read(38, back)
        assert back[2 * BLOCK : 3 * BLOCK] == noise(BLOCK)
        assert rig.driver.statistics()["retries"] == 2

    rig.run(main)


def test_a_sector_that_cannot_be_read_says_so(rig: Rig) -> None:
    rig.model.bad[40] = 1000

    async def main() -> None:
        with pytest.raises(FdcFault) as caught:
            await rig.disk.read(38, rig.buffer(bytes(4 * BLOCK)))
        assert caught.value.status == (0x40, 0x20, 0x20)
        assert str(caught.value) == (
            "fd0: READ DATA at cylinder 1, head 0, sector 3 failed: CRC error; in the data of the sector"
        )
        assert rig.driver.statistics()["retries"] == 4
        await rig.disk.read(36, rig.buffer(bytes(2 * BLOCK)))
        await rig.disk.write(40, noise(BLOCK))

    rig.run(main)


def test_overruns_are_tried_again(rig: Rig) -> None:
    rig.model.inject_overrun(3)
    data = noise(CYLINDER)

    async def main() -> None:
        await rig.disk.write(0, rig.buffer(data))
        assert rig.driver.statistics()["retries"] == 3
        rig.model.inject_overrun(5)
        with pytest.raises(FdcFault, match="overrun: the bus was too late for a byte"):
            await rig.disk.read(0, bytearray(BLOCK))

    rig.run(main)
    assert rig.medium.read(0, 36) == data


def test_a_protected_medium_is_only_read(rig: Rig) -> None:
    rig.medium.write(3, noise(BLOCK))
    rig.medium.read_only = True

    async def main() -> None:
        with pytest.raises(FdcFault, match="sector 4 failed: the medium is write-protected; open its write-protect"):
            await rig.disk.write(3, bytes(BLOCK))
        assert rig.driver.statistics()["retries"] == 0
        back = bytearray(BLOCK)
        await rig.disk.read(3, back)
        assert back == noise(BLOCK)

    rig.run(main)


def test_an_empty_drive(rig: Rig) -> None:
    rig.model.insert(None)

    async def main() -> None:
        assert rig.driver.disks == []
        assert str(rig.driver.silent["fd0"]) == "fd0: there is no medium in the drive: put one in"

    rig.run(main)
    rig.put_in(2880)

    async def again() -> None:
        assert rig.driver.silent == {}
        await rig.disk.read(0, bytearray(BLOCK))

    rig.run(again)


def test_a_medium_that_nobody_can_read(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fdc.MEDIA, 2880, (1, 18))

    async def main() -> None:
        assert rig.driver.disks == []
        assert "not formatted as any of 1.44 MB, 720 KB, 2.88 MB" in str(rig.driver.silent["fd0"])

    rig.run(main)


def test_a_medium_that_is_exchanged(rig: Rig) -> None:
    """What was meant for one is not written on another."""

    async def main() -> None:
        await rig.disk.write(0, b"a" * BLOCK)
        rig.model.insert(None)
        with pytest.raises(FdcFault, match="there is no medium in the drive: put one in"):
            await rig.disk.read(0, bytearray(BLOCK))
        rig.put_in(2880)
        for _ in range(2):
            with pytest.raises(FdcFault, match="the medium was changed: stop the driver and start it again"):
                await rig.disk.write(0, b"b" * BLOCK)

    rig.run(main)
    assert rig.medium.read(0, 1) == bytes(BLOCK)

    async def again() -> None:
        await rig.disk.write(0, b"c" * BLOCK)

    rig.run(again)
    assert rig.medium.read(0, 1) == b"c" * BLOCK


# -- a controller that does not answer --------------------------------------------------------------------------------


def test_a_command_that_does_not_end_is_done_again_after_a_reset(rig: Rig) -> None:
    rig.model.inject_silence()
    data, quarantined = noise(CYLINDER), []

    reset = rig.driver._chip.reset

    async def watched(end: int) -> None:
        for step in (reset(end), None):
            quarantined.append(sum(zone.quarantined for zone in rig.machine.domain.zones))
            if step is not None:
                await step

    async def main() -> None:
        rig.driver._chip.reset = watched  # type: ignore[method-assign]
        await rig.disk.write(36, rig.buffer(data))

    rig.run(main)
    assert quarantined == [5, 5]
    assert rig.driver.statistics()["resets"] == 1
    assert rig.medium.read(36, 36) == data


def test_one_that_never_ends_fails_after_some_resets(rig: Rig) -> None:
    rig.model.inject_silence(3)

    async def main() -> None:
        with pytest.raises(FdcFault) as caught:
            await rig.disk.write(0, bytes(BLOCK))
        assert str(caught.value) == (
            "fd0: WRITE DATA at cylinder 0, head 0, sector 1 was lost when the controller was reset: "
            "fd0 does not end WRITE DATA at cylinder 0, head 0, sector 1"
        )
        assert rig.driver.statistics()["resets"] == 3
        await rig.disk.write(0, b"x" * BLOCK)

    rig.run(main)
    assert rig.medium.read(0, 1) == b"x" * BLOCK


@pytest.mark.parametrize("name", NAMES)
def test_a_deadline_while_the_controller_is_at_it(name: str) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime)
        buffer = rig.buffer(bytes(CYLINDER))

        async def main() -> None:
            rig.model.inject_silence()
            begin = runtime.now()
            with pytest.raises(DeviceFault, match="was lost when the controller was reset"):
                await rig.disk.read(0, buffer, deadline=begin + SECOND)
            assert SECOND <= runtime.now() - begin < SECOND + 100 * MS
            assert rig.machine.domain.in_use(buffer) is None
            await rig.disk.read(0, buffer)

        rig.run(main)
        rig.close()


def test_a_controller_that_dies(rig: Rig) -> None:
    async def main() -> None:
        rig.model.inject_death()
        with pytest.raises(
            DeviceFault, match=r"fd0 is out of service: .*; the reset failed: .* does not end its reset"
        ):
            await rig.disk.read(0, bytearray(BLOCK))
        with pytest.raises(DeviceFault, match="out of service"):
            await rig.disk.read(0, bytearray(BLOCK))

    rig.run(main)
    with pytest.raises(DeviceFault, match="does not end its reset"):
        rig.runtime.run(rig.driver.start)
    rig.clean()


def test_an_interrupt_that_gets_lost(rig: Rig) -> None:
    """The controller has an answer all the same, and is not reset for it."""
    line = rig.machine.devices["fd0"].interrupt

    async def main() -> None:
        raised = rig.model._pin.assert_
        rig.model._pin.assert_ = lambda: None  # type: ignore[method-assign]
        await rig.disk.write(40, b"y" * BLOCK)
        rig.model._pin.assert_ = raised  # type: ignore[method-assign]
        counts = rig.driver.statistics()
        assert (counts["lost"], counts["resets"]) == (2, 0)  # of the seek, and of the transfer
        assert line is not None

    rig.run(main)
    assert rig.medium.read(40, 1) == b"y" * BLOCK


def test_interrupts_that_mean_nothing(rig: Rig) -> None:
    pin = rig.model._pin

    async def disturb() -> None:
        for _ in range(30):
            await pause(rig.runtime, 20 * MS)
            if not rig.model._raised:
                pin.assert_()  # noqa: PT009  # the pin is raised
                pin.deassert()

    async def main() -> None:
        task = rig.runtime.start(disturb)
        data = noise(CYLINDER)
        await rig.disk.write(20, rig.buffer(data))
        back = bytearray(CYLINDER)
        await rig.disk.read(20, back)
        await rig.runtime.park(task.done)
        assert back == data

    rig.run(main)
    counts = rig.driver.statistics()
    assert counts["stray"] > 0
    assert (counts["retries"], counts["resets"]) == (0, 0)


# -- anything in any order --------------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "write", "read", "bad", "silence", "overrun", "deadline", "wait"]),
        st.integers(0, 100),
        st.integers(1, 36),
        st.integers(0, 4095),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(OPERATIONS)
def test_any_requests_and_faults_leave_what_was_written(operations: list[tuple[str, int, int, int]]) -> None:
    """A request that failed may have been done in part: what it covered is read again before it is compared."""
    rig = Rig(by_name("virtual"))
    expected = bytearray(140 * BLOCK)

    async def attempt(kind: str, lba: int, blocks: int, byte: int, deadline: int | None = None) -> None:
        data, at = noise(blocks * BLOCK, byte), slice(lba * BLOCK, (lba + blocks) * BLOCK)
        buffer = rig.buffer(data, byte)
        try:
            if kind == "write":
                expected[at] = data
                await rig.disk.write(lba, buffer, deadline)
            else:
                await rig.disk.read(lba, buffer, deadline)
                assert buffer.read() == expected[at]
        except (DeviceFault, TimeoutError):
            expected[at] = rig.medium.read(lba, blocks)
        buffer.free()

    async def main() -> None:
        for kind, lba, blocks, byte in operations:
            match kind:
                case "write" | "read":
                    await attempt(kind, lba, blocks, byte)
                case "deadline":
                    kind = "write" if byte % 2 else "read"
                    await attempt(kind, lba, blocks, byte, rig.runtime.now() + byte * MS // 4)
                case "bad":
                    rig.model.bad[lba] = byte % 8
                case "silence":
                    rig.model.inject_silence(1 + byte % 4)
                case "overrun":
                    rig.model.inject_overrun(1 + byte % 6)
                case "wait":
                    await pause(rig.runtime, byte * MS)

    rig.run(main)
    assert rig.medium.read(0, 140) == expected
    rig.close()


def test_a_stop_that_fails_ends_what_was_under_way_all_the_same(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise DeviceFault("it has gone")

    async def main() -> None:
        driver, runtime = rig.driver, rig.runtime
        task = runtime.start(rig.disk.write, 0, rig.buffer(noise(CYLINDER)))
        await pause(runtime, 10 * MS)
        with monkeypatch.context() as dead, pytest.raises(DeviceFault, match="it has gone"):
            dead.setattr(driver, "_quiesce", gone)
            await driver.stop()
        await runtime.park(task.done, runtime.now() + SECOND)
        with pytest.raises(DriverError, match="was stopped"):
            task.result()
        (map,) = driver.tag.maps
        assert map.state is State.QUARANTINED
        driver._quiesce()
        driver.tag.report_idle()
        map.destroy()

    rig.run(main)
