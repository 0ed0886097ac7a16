"""The edu driver against the device's model, on the machine sim:x86-64."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.drivers.edu.core import Edu
from busdma.drivers.edu.pci import attach
from busdma.errors import (
    BufferTooLong,
    ConfigurationError,
    DeadlineExpired,
    DeviceFault,
    DriverError,
    WaitCancelled,
)
from busdma.lifecycle import State
from busdma.machine.attachment import Attachment
from busdma.machine.spec import parse
from busdma.runtime import NAMES, by_name
from busdma.sim.x86_64 import X8664
from busdma.waiting import Runtime, Waiter

T = TypeVar("T")
SECOND = 1_000_000_000
DEVICES = ["edu0", "edu1"]


class Rig:
    """The machine, and the driver of one of its devices, attached and not started."""

    def __init__(self, runtime: Runtime, name: str = "edu0", spec: str = "sim:x86-64", *, check: bool = True) -> None:
        self.runtime = runtime
        _, options = parse(spec)
        options.check = check
        self.machine = X8664(spec, runtime, options)
        self.name = name
        self.driver = cast(Edu, self.machine.driver(name))
        self.model = self.machine.edus[name]
        self.slot = self.machine.host.slots[name]

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
        assert all(zone.active == 0 for zone in self.machine.domain.zones)
        return result

    def attachment(self, **changes: Any) -> Attachment:
        """What the device's bus would hand over, with some of it changed."""
        device = self.machine.devices[self.name]
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


async def pause(runtime: Runtime, time: int) -> None:
    waiter = Waiter("a pause")
    runtime.call_at(runtime.now() + time, waiter.wake)
    await runtime.park(waiter)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_on_every_runtime(name: str, device: str) -> None:
    data = random.Random(1).randbytes(4096)
    with by_name(name) as runtime:
        rig = Rig(runtime, device)
        buffer, back = rig.machine.allocate(4096, offset=77), bytearray(4096)
        buffer.write(data)

        async def main() -> None:
            await rig.driver.copy_in(buffer)
            await rig.driver.copy_out(back)
            assert await rig.driver.factorial(12) == 479_001_600

        rig.run(main)
        assert back == data
        assert runtime.now() == 200_000_000 + 1200
        traffic = rig.machine.traffic(device)
        assert (traffic.segments, traffic.bytes, traffic.mechanism) == (2, 8192, "bounce")
        assert rig.slot.statistics() == {"aborts": 0, "not_enabled": 0}
        assert rig.model.statistics()["truncated"] == 0
        rig.machine.close()


@pytest.mark.parametrize("name", NAMES)
def test_many_users_take_turns(name: str) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime, spec="sim:x86-64?bounce=2", check=False)  # which packs the pages

        async def user(number: int) -> None:
            text, back = bytes([number]) * 512, bytearray(512)
            await rig.driver.copy_in(text, at=number * 512)
            assert await rig.driver.factorial(number) == math.factorial(number)
            await rig.driver.copy_out(back, at=number * 512)
            assert back == text

        async def main() -> None:
            tasks = [runtime.start(user, number) for number in range(8)]
            for task in tasks:
                await runtime.park(task.done)
                task.result()

        rig.run(main)
        statistics = rig.driver.statistics()
        assert statistics == {
            "interrupts": statistics["interrupts"],
            "copies": 16,
            "bytes_in": 4096,
            "bytes_out": 4096,
            "factorials": 8,
            "stray": 0,
        }
        rig.machine.close()


@pytest.mark.parametrize("name", NAMES)
def test_echoes_take_turns(name: str) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime, "edu1")
        (echo,) = rig.driver.echoes
        assert (echo.name, echo.most) == ("edu1", 4096)
        out = [random.Random(seed).randbytes(4096 - 100 * seed) for seed in range(5)]
        back = [bytearray(len(data)) for data in out]

        async def main() -> None:
            with pytest.raises(DriverError, match="give equal lengths"):
                await echo.echo(b"four", bytearray(5))
            with pytest.raises(DriverError, match="split the copy"):
                await echo.echo(bytes(4097), bytearray(4097))
            tasks = [runtime.start(echo.echo, *pair) for pair in zip(out, back, strict=True)]
            await pause(runtime, 1000)
            with pytest.raises(DeadlineExpired):
                await echo.echo(b"late", bytearray(4), runtime.now() + 1000)
            for task in tasks:
                await runtime.park(task.done)
                task.result()

        rig.run(main)
        assert back == out
        assert rig.machine.traffic("edu1").bytes == 2 * sum(map(len, out))
        rig.machine.close()


def test_what_is_within_reach_is_not_copied(rig: Rig) -> None:
    low = rig.machine.kernel.allocate(4000, within=rig.driver.tag.constraints.reach)
    low.write(b"low" * 1000)

    async def main() -> None:
        await rig.driver.copy_in(low)
        low.write(bytes(4000))
        await rig.driver.copy_out(low)

    rig.run(main)
    assert low.read(0, 3000) == b"low" * 1000
    assert rig.machine.traffic("edu0").mechanism == "direct"


def test_a_transfer_of_the_user_s_own(rig: Rig) -> None:
    """The device is told bus addresses by hand; the transfer says which."""
    data = b"hello, DMA" * 400
    back = bytearray(4000)

    async def main() -> None:
        async with rig.driver.tag.transfer(data, to_device=True) as segments:
            for address, length in segments:
                await rig.driver.fetch(address, length)
        async with rig.driver.tag.transfer(back, from_device=True) as segments:
            for address, length in segments:
                await rig.driver.store(address, length)

    rig.run(main)
    assert back == data


@unchecked  # which would tell
def test_a_driver_that_cheats_corrupts_visibly(rig: Rig) -> None:
    """Memory above 256 MiB has an address that the device cannot drive: it goes to other bytes."""
    frame = rig.machine.domain.frames.allocate_run(1, "kernel")  # the highest
    assert frame > 16 << 30
    memory = rig.machine.domain.memory

    async def main() -> None:
        await rig.driver.copy_in(b"wrong" * 100)
        await rig.driver.store(frame, 500)

    rig.run(main)
    assert bytes(memory[frame : frame + 500]) == bytes(500)
    assert bytes(memory[frame % (1 << 28) : frame % (1 << 28) + 500]) == b"wrong" * 100
    assert rig.model.statistics()["truncated"] == 1


def test_behind_the_bridge_a_cheat_reaches_nothing() -> None:
    rig = Rig(by_name("virtual"), "edu1", check=False)
    frame = rig.machine.domain.frames.allocate_run(1, "kernel")
    rig.machine.domain.memory[frame : frame + 4] = b"high"
    back = bytearray(4)

    async def main() -> None:
        await rig.driver.fetch(frame, 4)
        await rig.driver.copy_out(back)

    rig.run(main)
    assert back == b"\xff" * 4
    assert rig.slot.statistics()["aborts"] == 1
    rig.machine.close()


def test_the_reach_of_each_device(rig: Rig) -> None:
    tags = {name: rig.machine.driver(name).tag for name in DEVICES}
    assert {name: tag.path for name, tag in tags.items()} == {
        "edu0": "pc/pci0/edu0/data",
        "edu1": "pc/pci0/bridge0/edu1/data",
    }
    assert [tags[name].constraints.reach.size() for name in DEVICES] == [1 << 28, 1 << 32]


def test_a_factorial_is_modulo_32_bits(rig: Rig) -> None:
    async def main() -> list[int]:
        return [await rig.driver.factorial(n) for n in (0, 1, 13, 20, 40, 0xFFFF_FFFF)]

    expected = [math.factorial(n) % (1 << 32) if n < 99 else 0 for n in (0, 1, 13, 20, 40, 99)]
    assert rig.run(main) == expected


def test_refused(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        with pytest.raises(DriverError, match="already started"):
            await driver.start()
        for at, length in ((-1, 4), (0, 0), (4096, 1), (1, 4096), (0, 4097)):
            with pytest.raises(DriverError, match="split the copy"):
                await driver.copy_in(bytes(length), at)
            with pytest.raises(DriverError, match="split the copy"):
                await driver.store(0x1000, length, at)
        for number in (-1, 1 << 32):
            with pytest.raises(DriverError, match="no number of 32 bits"):
                await driver.factorial(number)
        with pytest.raises(DriverError, match="read-only"):
            await driver.copy_out(bytes(4))
        with pytest.raises(BufferTooLong):
            rig.driver.tag.create_map(name="other").load_nowait(bytearray(4097))
        await driver.copy_in(b"it still works")

    async def before() -> None:
        with pytest.raises(DriverError, match="start it first"):
            await rig.driver.copy_in(b"too early")
        with pytest.raises(DriverError, match="start it first"):
            await rig.driver.factorial(3)

    rig.runtime.run(before)
    rig.run(main)
    with pytest.raises(DriverError, match="was stopped"):
        rig.runtime.run(rig.driver.copy_in, b"too late")


def test_start_and_stop_again_and_again(rig: Rig) -> None:
    async def main() -> int:
        return await rig.driver.factorial(5)

    assert [rig.run(main) for _ in range(3)] == [120] * 3
    assert rig.slot.config.read16(4) == 0  # what is stopped is disabled
    rig.runtime.run(rig.driver.stop)


def test_it_is_another_device(rig: Rig) -> None:
    rig.slot.config.define(0, 4, value=0x1234_8086)
    with pytest.raises(ConfigurationError, match="other is a 8086:1234; this driver is for 1234:11e8"):
        attach(rig.attachment())
    rig.slot.config.define(0, 4, value=0xFFFF_FFFF)
    with pytest.raises(DeviceFault, match="no function answers"):
        attach(rig.attachment())
    with pytest.raises(ConfigurationError, match="not on a PCI bus"):
        attach(rig.attachment(config=None))


@pytest.mark.parametrize(("offset", "value", "why"), [(0x00, 0x0100_00EE, "which is no edu"), (0x04, 7, "liveness")])
def test_it_does_not_answer_as_described(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, offset: int, value: int, why: str
) -> None:
    read = rig.model.read
    monkeypatch.setattr(rig.model, "read", lambda bar, at, size: value if at == offset else read(bar, at, size))
    with pytest.raises(DeviceFault, match=why):
        rig.runtime.run(rig.driver.start)
    assert rig.machine.leaks() == []
    monkeypatch.undo()

    async def main() -> None:
        await rig.driver.copy_in(b"now it does")

    rig.run(main)


def test_a_deadline_bounds_the_wait_for_a_turn(rig: Rig) -> None:
    async def main() -> None:
        runtime = rig.runtime
        first = runtime.start(rig.driver.copy_in, bytes(100))
        await pause(runtime, 1000)
        with pytest.raises(DeadlineExpired):
            await rig.driver.copy_in(bytes(100), 0, runtime.now() + 1000)
        await runtime.park(first.done)
        first.result()
        await rig.driver.copy_in(bytes(100), 0, runtime.now() + 1000)

    rig.run(main)


@pytest.mark.parametrize("name", NAMES)
def test_who_leaves_in_the_middle_leaves_a_quarantine(name: str) -> None:
    """The engine cannot be stopped: until it has ended, nobody gets its pages; the next in line waits for it."""
    with by_name(name) as runtime:
        rig = Rig(runtime, check=False)  # under which nobody knows what is in it
        mine = rig.machine.allocate(4096, offset=5)
        mine.write(b"?" * 4096)

        async def main() -> None:
            await rig.driver.copy_in(b"!" * 4096)
            task = runtime.start(rig.driver.copy_out, mine)
            await pause(runtime, 1000)
            task.cancel()
            await runtime.park(task.done)
            with pytest.raises(WaitCancelled):
                task.result()
            states = [map.state for map in rig.driver.tag.maps]
            assert states == [State.QUARANTINED]
            start = runtime.now()
            await rig.driver.copy_in(b".")
            assert runtime.now() - start > 100_000_000
            assert mine.read() == b"?" * 4096  # it went into the bounce pages, and no further
            rig.machine.kernel.free(mine)

        rig.run(main)
        assert rig.model.statistics()["transfers"] == 3
        rig.machine.close()


def test_a_transfer_that_does_not_end_puts_the_device_out_of_service(rig: Rig) -> None:
    async def main() -> None:
        await rig.driver.start()
        driver, runtime = rig.driver, rig.runtime
        rig.model.inject_stuck_transfer()
        start = runtime.now()
        behind = runtime.start(driver.copy_in, b"behind")
        hung = runtime.start(driver.copy_out, bytearray(4096))
        for task in (behind, hung):
            await runtime.park(task.done)
            with pytest.raises(DeviceFault, match="out of service: the DMA engine of edu0 did not finish within 5 s"):
                task.result()
        assert runtime.now() == start + 5 * SECOND
        with pytest.raises(DeviceFault, match="out of service"):
            await driver.factorial(3)
        assert [map.state for map in driver.tag.maps] == [State.IDLE]  # it is cut off, so nothing is lost
        assert not rig.slot.config.read16(4) & 4
        await driver.stop()
        with pytest.raises(DeviceFault, match="does not end the transfer that it was left with"):
            await driver.start()

    rig.runtime.run(main)
    assert rig.machine.leaks() == []


def test_stop_in_the_middle(rig: Rig) -> None:
    """What was under way fails; the device's late access reaches nothing; and it can be started again."""
    back = bytearray(4096)

    async def main() -> None:
        await rig.driver.start()
        driver, runtime = rig.driver, rig.runtime
        tasks = [runtime.start(driver.copy_out, back), runtime.start(driver.copy_in, b"x")]
        factorial = runtime.start(driver.factorial, 30)
        await pause(runtime, 1000)
        await driver.stop()
        for task in (*tasks, factorial):
            await runtime.park(task.done)
            with pytest.raises(DriverError, match="edu0 was stopped"):
                task.result()
        assert rig.machine.leaks() == []
        await driver.start()
        assert rig.slot.statistics()["not_enabled"] == 1
        await driver.copy_in(b"y")
        await driver.stop()

    rig.runtime.run(main)
    assert back == bytes(4096)
    assert rig.slot.statistics() == {"aborts": 0, "not_enabled": 1}


def test_stop_while_a_copy_waits_for_bounce_pages(rig: Rig) -> None:
    machine = Rig(by_name("virtual"), spec="sim:x86-64?bounce=1")

    async def main() -> None:
        await machine.driver.start()
        driver, runtime = machine.driver, machine.runtime
        holder = machine.driver.tag.create_map(name="holder")
        holder.load_nowait(bytearray(10))
        task = runtime.start(driver.copy_in, b"x")
        await pause(runtime, 1000)
        assert State.WAITING in [map.state for map in driver.tag.maps]
        await driver.stop()
        await runtime.park(task.done)
        with pytest.raises(DriverError, match="edu0 was stopped"):
            task.result()
        holder.unload()

    machine.runtime.run(main)
    assert machine.machine.leaks() == []
    machine.machine.close()


def test_two_devices_share_one_zone(rig: Rig) -> None:
    """With two bounce pages and copies of two pages each, one waits for the other, on whichever bus it is."""
    both = Rig(by_name("virtual"), spec="sim:x86-64?bounce=2", check=False)  # which packs the pages
    other = cast(Edu, both.machine.driver("edu1"))

    async def main() -> None:
        await other.start()
        runtime = both.runtime
        buffers = [both.machine.allocate(4096, offset=9) for _ in range(4)]
        tasks = [
            runtime.start(driver.copy_in, buffer)
            for buffer, driver in zip(buffers, (both.driver, other, both.driver, other), strict=True)
        ]
        for task in tasks:
            await runtime.park(task.done)
            task.result()
        assert runtime.now() == 4 * 100_000_000
        await other.stop()

    both.run(main)
    assert [zone.statistics()["deferred"] for zone in both.machine.domain.zones] == [3]
    both.machine.close()


steps = st.lists(
    st.tuples(st.booleans(), st.integers(0, 4095), st.integers(1, 4096), st.integers(0, 4095), st.booleans()),
    min_size=1,
    max_size=10,
)


@settings(max_examples=25)
@given(steps, st.sampled_from(DEVICES))
def test_copies_against_a_model(plan: list[tuple[bool, int, int, int, bool]], name: str) -> None:
    """Any part of the device's memory, from and to buffers anywhere, low and high, begun at any place in a page."""
    runtime = by_name("virtual")
    rig = Rig(runtime, name)
    chance = random.Random(7)
    model = bytearray(4096)

    async def main() -> None:
        await rig.driver.copy_in(bytes(4096))
        for inward, at, wanted, offset, low in plan:
            length = min(wanted, 4096 - at)
            within = rig.driver.tag.constraints.reach if low else None
            buffer = rig.machine.kernel.allocate(length, offset=offset, within=within)
            if inward:
                data = chance.randbytes(length)
                buffer.write(data)
                await rig.driver.copy_in(buffer, at)
                model[at : at + length] = data
            else:
                await rig.driver.copy_out(buffer, at)
                assert buffer.read() == model[at : at + length]
            buffer.free()

    rig.run(main)
    counts = rig.machine.host.statistics()[name]
    assert set(counts["by_owner"]) <= {"kernel", "bounce"}
    rig.machine.close()
    runtime.close()
