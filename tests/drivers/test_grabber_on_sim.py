"""The bt848 driver against the chip's model, on the machine sim:x86-64, with and without an IOMMU."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.drivers.bt848.capture import Frame
from busdma.drivers.bt848.core import Grabber
from busdma.drivers.bt848.layout import Shape
from busdma.drivers.bt848.pci import attach
from busdma.errors import (
    BufferGone,
    ConfigurationError,
    DeadlineExpired,
    DeviceFault,
    DriverError,
    ResourceShortage,
    WaitCancelled,
)
from busdma.machine.attachment import Attachment
from busdma.machine.spec import parse
from busdma.runtime import NAMES, by_name
from busdma.sim.chips.camera import FIELD, line, stamp
from busdma.sim.chips.grabber import GPIO_DMA_CTL
from busdma.sim.x86_64 import X8664
from busdma.waiting import Runtime, Waiter

T = TypeVar("T")
SPECS = ["sim:x86-64", "sim:x86-64?iommu=on"]
SMALL = {"width": 32, "height": 8, "buffer": 4096}


class Rig:
    """The machine, and its grabber's driver, attached and not started."""

    def __init__(self, runtime: Runtime, spec: str = "sim:x86-64", *, check: bool = True) -> None:
        self.runtime = runtime
        _, options = parse(spec)
        options.check = check
        self.machine = X8664(spec, runtime, options)
        self.driver = cast(Grabber, self.machine.driver("grab0"))
        self.model = self.machine.grabber
        self.camera = self.model.camera

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Start the driver, run `main`, stop the driver, and see that nothing is left behind."""

        async def all_of_it() -> T:
            await self.driver.start()
            try:
                return await main()
            finally:
                await self.driver.stop()

        result = self.runtime.run(all_of_it)
        assert self.machine.leaks() == []
        assert self.machine.checker is None or list(self.machine.checker.findings) == []
        assert self.owned() == 0
        return result

    async def pause(self, fields: int) -> None:
        """Let so many fields go by, two of which are a picture, and half a one."""
        waiter = Waiter("a pause")
        self.runtime.call_at(self.runtime.now() + fields * FIELD + (FIELD // 2 if fields else 0), waiter.wake)
        await self.runtime.park(waiter)

    def owned(self) -> int:
        return self.machine.domain.frames.statistics()["by_owner"].get("dma-safe", 0)

    def attachment(self, **changes: Any) -> Attachment:
        """What the device's bus would hand over, with some of it changed."""
        device = self.machine.devices["grab0"]
        attachment = Attachment(
            "other", device.tag, device.registers, device.interrupt, self.runtime, device.properties, device.config
        )
        return replace(attachment, **changes)


unchecked = pytest.mark.parametrize("rig", [False], ids=["unchecked"], indirect=True)


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(by_name("virtual"), check=getattr(request, "param", True))
    yield rig
    rig.machine.close()


def look(frame: Frame, first: int, count: int) -> int:
    """See that these lines are what the camera has shown, all of one picture; which."""
    with frame.lines(first, count) as view:
        seen = [bytes(view[at * frame.width : (at + 1) * frame.width]) for at in range(count)]
    mark = stamp(seen[0])
    assert mark is not None
    picture, number = mark
    assert number == first
    assert seen == [line(picture, first + at, frame.width) for at in range(count)]
    return picture


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", NAMES)
def test_a_large_buffer_looked_at_in_small_windows_while_it_is_filled(name: str, spec: str) -> None:
    """2 MiB hold six pictures; never more than 16 lines of one are mapped, and every line of five pictures is seen."""
    with by_name(name) as runtime:
        rig = Rig(runtime, spec)

        async def main() -> list[int]:
            assert await rig.driver.start_capture() == 6
            pictures = []
            for _ in range(5):
                frame = await rig.driver.frame()
                assert (frame.width, frame.height) == (640, 480)
                pictures += [look(frame, first, 16) for first in range(0, 480, 16)]
                assert frame.intact
            memory = rig.driver.statistics()["memory"]
            assert (memory["size"], memory["runs"], memory["segments"]) == (2 << 20, 1, 1)
            assert (memory["mapped"], memory["mapped_peak"]) == (0, 16 * 640)
            assert rig.owned() == 512 + 6
            return pictures

        pictures = rig.run(main)
        assert pictures == sorted(pictures)
        assert len(set(pictures)) == 5
        statistics = rig.model.statistics()
        assert (statistics["resyncs"], statistics["faults"]) == (0, 0)
        assert statistics["bytes"] >= 5 * 640 * 480
        assert rig.machine.host.statistics()["grab0"]["by_owner"].keys() == {"dma-safe"}
        rig.machine.close()


def test_the_device_goes_on_while_lines_are_looked_at(rig: Rig) -> None:
    """What it writes meanwhile goes to other slots; what it wrote before is there."""

    async def main() -> None:
        slots = await rig.driver.start_capture(**SMALL)
        assert slots == 15
        frame = await rig.driver.frame()
        with frame.lines(2, 3) as view:
            before, written = bytes(view), rig.model.statistics()["bytes"]
            await rig.pause(8)
            assert rig.model.statistics()["bytes"] >= written + 4 * 32 * 8
            assert bytes(view) == before == b"".join(line(0, number, 32) for number in (2, 3, 4))
        newest = await rig.driver.frame()
        assert newest.number == 4
        assert look(newest, 0, 8) == 4
        assert look(frame, 0, 8) == 0

    rig.run(main)
    assert rig.driver.statistics()["skipped"] == 3


@unchecked  # it looks at lines for too long
def test_a_picture_is_there_until_the_ring_has_gone_round(rig: Rig) -> None:
    async def main() -> None:
        assert await rig.driver.start_capture(**SMALL, slots=3) == 3
        first = await rig.driver.frame()
        await rig.pause(2)
        second = await rig.driver.frame()
        assert [look(frame, 0, 8) for frame in (first, second)] == [0, 1]
        await rig.pause(2)  # three are complete: the device is at the first's slot
        assert (first.intact, second.intact) == (False, True)
        with pytest.raises(BufferGone, match="picture 0 is there no more; the device has come round to its slot"):
            look(first, 0, 1)
        with pytest.raises(BufferGone, match="picture 1 is there no more"), second.lines(0):
            await rig.pause(4)
        assert look(await rig.driver.frame(), 0, 8) == 4

    rig.run(main)


def test_every_frame_is_handed_out_once(rig: Rig) -> None:
    async def main() -> list[int]:
        await rig.driver.start_capture(**SMALL)
        numbers = []
        for pause in (0, 0, 5, 0, 20, 0, 0):
            await rig.pause(pause)
            numbers.append((await rig.driver.frame()).number)
        return numbers

    numbers = rig.run(main)
    assert numbers == [0, 1, 3, 4, 14, 15, 16]
    statistics = rig.driver.statistics()
    assert (statistics["pictures"], statistics["skipped"]) == (7, 10)


def test_several_may_wait_and_one_gets_it(rig: Rig) -> None:
    async def taker(numbers: list[int]) -> None:
        numbers.append((await rig.driver.frame()).number)

    async def main() -> list[int]:
        numbers: list[int] = []
        await rig.driver.start_capture(**SMALL)
        tasks = [rig.runtime.start(taker, numbers) for _ in range(3)]
        for task in tasks:
            await rig.runtime.park(task.done)
        return numbers

    assert sorted(rig.run(main)) == [0, 1, 2]


def test_lines_and_their_errors(rig: Rig) -> None:
    async def main() -> None:
        await rig.driver.start_capture(**SMALL)
        frame = await rig.driver.frame()
        assert repr(frame) == "<picture 0 of grab0, 32 by 8>"
        for first, count in ((-1, 1), (0, 0), (8, 1), (0, 9), (7, 2)):
            with pytest.raises(DriverError, match="are not 1 or more of a picture's 8"), frame.lines(first, count):
                pass
        with pytest.raises(KeyError), frame.lines(3, 2):
            raise KeyError("the user's own")
        assert look(frame, 3, 2) == 0  # given back to the device, and taken again

    rig.run(main)


@unchecked  # which nobody syncs
def test_a_process_reads_pictures_through_its_own_mapping(rig: Rig) -> None:
    viewer = rig.machine.process("viewer")

    async def main() -> None:
        await rig.driver.start_capture(**SMALL)
        screen = rig.driver.mmap(viewer)
        await rig.driver.frame()
        assert screen.read(0, 8 * 32) == b"".join(line(0, number, 32) for number in range(8))
        with pytest.raises(DriverError, match="mapped read-only"):
            screen.write(b"x")
        with pytest.raises(DriverError, match="process 'viewer' has 4096 bytes of it mapped; free its buffer first"):
            await rig.driver.stop_capture()
        with pytest.raises(DriverError, match="captures nothing"):
            await rig.driver.frame()
        viewer.destroy()
        await rig.driver.stop_capture()

    rig.run(main)


def test_stopped_while_lines_are_looked_at(rig: Rig) -> None:
    """The device is off at once; the memory goes when nobody looks any more."""

    async def main() -> None:
        await rig.driver.start_capture(**SMALL)
        frame = await rig.driver.frame()
        with pytest.raises(BufferGone, match="the capture has ended"), frame.lines(0, 8) as view:
            with pytest.raises(DriverError, match="1 of its windows are still mapped"):
                await rig.driver.stop_capture()
            written = rig.model.statistics()["bytes"]
            await rig.pause(6)
            assert rig.model.statistics()["bytes"] == written
            assert bytes(view[:32]) == line(0, 0, 32)
        await rig.driver.stop_capture()
        assert not frame.intact
        with pytest.raises(DriverError, match="captures nothing"):
            await rig.driver.stop_capture()

    rig.run(main)


def test_several_look_at_the_same_lines(rig: Rig) -> None:
    """The first takes a line, and the last gives it back; the capture may end meanwhile."""

    async def main() -> None:
        await rig.driver.start_capture(**SMALL)
        frame = await rig.driver.frame()
        with frame.lines(0, 4) as upper, frame.lines(2, 4) as lower:
            assert upper[2 * 32 :] == lower[: 2 * 32]
            with frame.lines(1, 2) as third:
                assert third == upper[32 : 3 * 32]
            assert bytes(upper) == b"".join(line(0, n, 32) for n in range(4))
            with frame.lines(0, 8) as whole:
                assert bytes(whole) == b"".join(line(0, n, 32) for n in range(8))
        assert look(frame, 0, 8) == 0
        frame = await rig.driver.frame()
        with pytest.raises(BufferGone, match="the capture has ended"), frame.lines(2, 3) as view:
            with pytest.raises(DriverError, match="still mapped"):
                await rig.driver.stop_capture()
            assert bytes(view[:32]) == line(1, 2, 32)
        await rig.driver.stop_capture()

    rig.run(main)


def test_capture_again_and_again(rig: Rig) -> None:
    async def main() -> None:
        for width in (32, 64, 8):
            await rig.driver.start_capture(width=width, height=4, buffer=4096)
            first = await rig.driver.frame()
            picture = look(first, 0, 4)
            assert look(await rig.driver.frame(), 0, 4) == picture + 1
            with pytest.raises(DriverError, match="captures already"):
                await rig.driver.start_capture()
            await rig.driver.stop_capture()
            with pytest.raises(BufferGone, match="the capture has ended: start another"):
                look(first, 0, 1)

    rig.run(main)
    assert rig.model.statistics()["resyncs"] == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"width": 4}, "is no picture"),
        ({"width": 642}, "is no picture"),
        ({"width": 772}, "is no picture"),
        ({"height": 0}, "is no picture"),
        ({"height": 481}, "is no picture"),
        ({"height": 482}, "is no picture"),
        ({"buffer": 600_000}, "hold 1 pictures of 307200, and the ring of a capture has 2 to 15, not 1"),
        ({"slots": 7}, "hold 6 pictures .*, not 7"),
        ({"slots": 1}, "not 1: give a larger buffer"),
    ],
)
def test_captures_that_cannot_be(rig: Rig, wrong: dict[str, int], words: str) -> None:
    async def main() -> None:
        with pytest.raises(DriverError, match=words):
            await rig.driver.start_capture(**wrong)
        with pytest.raises(DriverError, match="captures nothing"):
            await rig.driver.frame()

    rig.run(main)


def test_no_signal(rig: Rig) -> None:
    async def main() -> None:
        rig.camera.signal = False
        with pytest.raises(DeviceFault, match="no video signal: connect a camera"):
            await rig.driver.start_capture()
        rig.camera.signal = True
        await rig.driver.start_capture(**SMALL)
        await rig.driver.frame()
        rig.camera.signal = False
        with pytest.raises(DeadlineExpired):
            await rig.driver.frame(deadline=rig.runtime.now() + 10 * FIELD)
        rig.camera.signal = True
        look(await rig.driver.frame(), 0, 8)

    rig.run(main)


def test_no_memory_for_it(rig: Rig) -> None:
    """Nothing is left over where only the program does not fit."""

    async def main() -> None:
        frames = rig.machine.domain.frames
        reach = rig.driver.tag.constraints.reach
        frames.allocate_run(frames.usable(reach) - 1 - 0x60000 // 4096 - 255, "kernel", within=reach)
        with pytest.raises(ResourceShortage):
            await rig.driver.start_capture()
        assert rig.owned() == 0

    rig.run(main)


@pytest.mark.parametrize("spec", SPECS)
def test_a_device_that_loses_its_way(spec: str) -> None:
    """A program that is overwritten while the device has it."""
    rig = Rig(by_name("virtual"), spec, check=False)

    async def main() -> None:
        await rig.driver.start_capture(**SMALL)
        await rig.driver.frame()
        capture = rig.driver._capture
        assert capture is not None
        capture.program.view[:] = b"\xff" * len(capture.program)
        with pytest.raises(DeviceFault, match=r"grab0 has stopped: its RISC program cannot go on .*; stop_capture"):
            await rig.driver.frame()
        with pytest.raises(DeviceFault, match="grab0 has stopped"):
            await rig.driver.frame()
        assert rig.machine.grabber.read(0, GPIO_DMA_CTL, 4) == 0
        await rig.driver.stop_capture()
        await rig.driver.start_capture(**SMALL)
        look(await rig.driver.frame(), 0, 8)

    rig.run(main)
    assert rig.driver.statistics()["faults"] == 1
    rig.machine.close()


def test_a_wait_that_is_cancelled_leaves_nothing(rig: Rig) -> None:
    async def main() -> None:
        await rig.driver.start_capture(**SMALL)
        await rig.driver.frame()
        task = rig.runtime.start(rig.driver.frame)
        await rig.pause(0)
        task.cancel()
        await rig.runtime.park(task.done)
        with pytest.raises(WaitCancelled):
            task.result()
        assert rig.driver._waiting == []
        assert (await rig.driver.frame()).number == 1

    rig.run(main)


def test_stop_ends_waits_and_the_capture(rig: Rig) -> None:
    async def waits() -> None:
        await rig.driver.start_capture(**SMALL)
        await rig.driver.frame()
        await rig.driver.frame()

    async def main() -> None:
        await rig.driver.start()
        with pytest.raises(DriverError, match="already started"):
            await rig.driver.start()
        task = rig.runtime.start(waits)
        await rig.pause(2)
        await rig.driver.stop()
        await rig.driver.stop()
        await rig.runtime.park(task.done)
        with pytest.raises(DriverError, match="captures nothing"):
            task.result()
        with pytest.raises(DriverError, match="is not started"):
            await rig.driver.start_capture()

    rig.runtime.run(main)
    assert rig.machine.leaks() == []
    assert rig.owned() == 0
    assert rig.machine.host.slots["grab0"].statistics()["not_enabled"] == 0


def test_what_is_no_bt848(rig: Rig) -> None:
    with pytest.raises(ConfigurationError, match="is not on a PCI bus"):
        attach(rig.attachment(config=None))
    other = rig.machine.devices["edu0"]
    with pytest.raises(ConfigurationError, match="is a 1234:11e8; this driver is for 109e:0350, 109e:036e"):
        attach(rig.attachment(config=other.config, registers=other.registers))


@given(width=st.integers(2, 24), height=st.integers(1, 12), slots=st.integers(2, 15), skip=st.integers(0, 12))
@settings(max_examples=20, deadline=None)
def test_any_shape_fills_its_slots_and_nothing_else(width: int, height: int, slots: int, skip: int) -> None:
    rig = Rig(by_name("virtual"))
    shape = Shape(4 * width, 2 * height, slots)

    async def main() -> None:
        size = shape.picture * slots
        await rig.driver.start_capture(width=shape.width, height=shape.height, buffer=size + 64, slots=slots)
        capture = rig.driver._capture
        assert capture is not None
        assert len(capture.program) == shape.program_size
        with capture.memory.map(size) as behind:
            behind.write(b"\xee" * 64)
        await rig.pause(2 * skip)
        frame = await rig.driver.frame()
        assert look(frame, 0, shape.height) == frame.number
        with capture.memory.map(size) as behind:
            assert behind.read() == b"\xee" * 64

    rig.run(main)
    rig.machine.close()
