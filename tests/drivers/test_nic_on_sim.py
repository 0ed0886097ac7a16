"""The PCnet driver against the chip's model: frames from chains, packets into mbufs, echoes, and trouble."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers.pcnet.core import MOST_FRAME, SEGMENTS, Pcnet
from busdma.drivers.pcnet.pci import attach
from busdma.drivers.pcnet.receive import MOST_WAITING
from busdma.drivers.pcnet.ring import ENP, STP, DescriptorRing
from busdma.errors import (
    BufferTooLong,
    ConfigurationError,
    ConstraintError,
    DeadlineExpired,
    DeviceFault,
    DriverError,
    ResourceShortage,
    WaitCancelled,
)
from busdma.lifecycle import State
from busdma.machine.spec import parse
from busdma.mbuf import MbufChain, MbufPool
from busdma.runtime import NAMES, by_name
from busdma.sim.bus.pci_config import BUS_MASTER
from busdma.sim.x86_64 import X8664
from busdma.waiting import Task
from drivers.nic_rig import TIMEOUT, Rig, frame, pause

EVERYBODY = b"\xff" * 6


@pytest.fixture
def rig() -> Iterator[Rig]:
    with by_name("virtual") as runtime:
        yield Rig(runtime)


def text(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


async def ended(rig: Rig, *tasks: Task[Any]) -> list[Exception | None]:
    """What each of them raised."""
    found: list[Exception | None] = []
    for task in tasks:
        await rig.runtime.park(task.done)
        try:
            task.result()
        except Exception as error:
            found.append(error)
        else:
            found.append(None)
    return found


# -- packets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_two_stations_on_every_runtime(name: str) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime, ports=2)
        one, two = (port.driver for port in rig.ports)
        sizes = [46, 1500, 47, 300, 1000] * 8

        async def talk(mine: Pcnet, other: Pcnet, seed: int) -> None:
            for number, size in enumerate(sizes):
                chain = rig.pool.chain_of(text(size, seed + number), headroom=14)
                chain.prepend(14)
                chain.first.write(frame(b"", other.station))
                await mine.send(chain)
                chain.free()

        async def listen(mine: Pcnet, seed: int) -> None:
            for number, size in enumerate(sizes):
                packet = await mine.receive()
                assert packet.read(14) == text(size, seed + number)
                packet.free()

        async def main() -> None:
            for driver in (one, two):
                await driver.supply(rig.pool)
            tasks = [runtime.start(listen, one, 1000), runtime.start(listen, two, 2000)]
            tasks += [runtime.start(talk, two, one, 1000), runtime.start(talk, one, two, 2000)]
            assert await ended(rig, *tasks) == [None] * 4
            counts = two.statistics()
            assert (counts["sent"], counts["received"], counts["missed"], counts["dropped"]) == (40, 40, 0, 0)
            assert counts["bytes_in"] == sum(sizes) + 14 * 40

        rig.run(main)
        assert rig.wire.frames == 80


@given(
    data=st.binary(min_size=46, max_size=1500), edges=st.lists(st.integers(0, 1514), max_size=20), small=st.booleans()
)
def test_any_chain_arrives_as_it_was(data: bytes, edges: list[int], small: bool) -> None:
    rig = Rig(by_name("virtual"))

    async def main() -> None:
        driver = rig.driver
        await driver.supply(rig.pool, small=small, buffers=20)
        sent = frame(data, driver.station)
        chain = rig.cut(sent, *sorted(edge for edge in edges if edge <= len(sent)))
        await driver.send(chain)
        assert chain.read() == sent  # it is still the sender's, and as it was
        chain.free()
        packet = await driver.receive()
        assert packet.read() == sent
        assert sum(1 for _ in packet) == (-(-(len(sent) + 4) // 224) if small else 1)
        packet.free()

    rig.run(main)
    assert rig.host.traffic("net0").bytes == 2 * len(data) + 28 + 4


def test_a_chain_goes_as_it_is(rig: Rig) -> None:
    """One descriptor a segment: nothing is copied where the bus reaches all of it."""
    rig = Rig(rig.runtime, reach=(1 << 32) - 1)

    async def main() -> None:
        chain = rig.cut(frame(text(600), EVERYBODY), 14, 14, 200, 424, 424)
        await rig.driver.send(chain)
        chain.free()

    rig.run(main)
    traffic = rig.host.traffic("net0")
    assert (traffic.segments, traffic.bytes, traffic.mechanism) == (4, 614, "direct")


def test_a_chain_in_too_many_pieces_is_joined(rig: Rig) -> None:
    rig = Rig(rig.runtime, reach=(1 << 32) - 1)
    sent = frame(text(1000), rig.driver.station)

    async def main() -> None:
        await rig.driver.supply(rig.pool)
        sent = frame(text(1000), rig.driver.station)
        chain = rig.cut(sent, *range(20, 1000, 20))
        await rig.driver.send(chain)
        chain.free()
        packet = await rig.driver.receive()
        assert packet.read() == sent
        packet.free()

    rig.run(main)
    traffic = rig.host.traffic("net0")
    assert traffic.segments <= SEGMENTS + 1
    assert traffic.mechanism == "direct+bounce"
    assert traffic.bytes == 2 * len(sent) + 4


def test_frames_wait_for_descriptors_in_their_order(rig: Rig) -> None:
    rig = Rig(rig.runtime, reach=(1 << 32) - 1)

    async def main() -> None:
        driver, order = rig.driver, list(range(30))
        await driver.supply(rig.pool, buffers=32)

        async def send(number: int) -> None:
            chain = rig.cut(frame(bytes([number]) * 800, driver.station), *range(100, 800, 100))
            await driver.send(chain)
            chain.free()

        tasks = [rig.runtime.start(send, number) for number in order]
        await pause(rig.runtime, 1)
        assert driver.statistics()["in_flight"] == 32 // 8
        assert await ended(rig, *tasks) == [None] * 30
        for number in order:
            packet = await driver.receive()
            assert packet.read(14) == bytes([number]) * 800
            packet.free()

    rig.run(main)


def test_the_first_descriptor_of_a_frame_is_given_last(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the controller could begin a frame whose rest is not there yet."""
    put, given = DescriptorRing.put, []

    def watched(self: DescriptorRing, index: int, address: int, length: int, flags: int) -> None:
        given.append((index, flags))
        put(self, index, address, length, flags)

    monkeypatch.setattr(DescriptorRing, "put", watched)

    async def main() -> None:
        chain = rig.cut(frame(text(600), EVERYBODY), 14, 300)
        await rig.driver.send(chain)
        chain.free()

    rig.run(main)
    assert given == [(2, ENP), (1, 0), (0, STP)]


def test_any_buffer_is_a_frame(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        await driver.supply(rig.pool)
        sent = frame(b"short", driver.station)
        for buffer in (sent, bytearray(sent), rig.high(sent, offset=4090)):
            await driver.send(buffer)
            packet = await driver.receive()
            assert packet.read() == sent + bytes(41)  # padded by the controller
            packet.free()

    rig.run(main)


def test_frames_that_are_none(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        with pytest.raises(DriverError, match="a header of 14 bytes"):
            await driver.send(bytes(13))
        with pytest.raises(BufferTooLong):
            await driver.send(bytes(MOST_FRAME + 1))
        cycle = rig.pool.get()
        cycle.append(bytes(100))
        cycle.next = cycle
        with pytest.raises(DriverError, match="a cycle"):
            await driver.send(MbufChain(cycle))
        cycle.free()
        await driver.send(bytes(MOST_FRAME))
        await driver.send(bytes(14))
        assert driver.statistics()["sent"] == 2

    rig.run(main)


# -- what is not received ---------------------------------------------------------------------------------------------


def test_without_a_pool_frames_are_missed(rig: Rig) -> None:
    async def main() -> None:
        for _ in range(3):
            await rig.driver.send(frame(b"", EVERYBODY))
        with pytest.raises(DriverError, match="supply it with an mbuf pool"):
            await rig.driver.receive()

    rig.run(main)
    assert rig.driver.statistics()["missed"] == 3


def test_a_dry_pool_drops_packets_and_the_ring_stays_full(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        await driver.supply(MbufPool(rig.kernel, limit=3), buffers=4)
        for number in range(5):
            await driver.send(frame(bytes([number]), driver.station))
        counts = driver.statistics()
        assert (counts["received"], counts["dropped"], counts["missed"]) == (2, 3, 0)
        packets = [await driver.receive() for _ in range(2)]
        assert [packet.read(14, 1) for packet in packets] == [b"\0", b"\1"]
        for packet in packets:
            packet.free()
        await driver.send(frame(b"again", driver.station))
        packet = await driver.receive()
        assert packet.read(14, 5) == b"again"
        packet.free()

    rig.run(main)


def test_one_bounce_page_is_enough(rig: Rig) -> None:
    """Beside those that are reserved; the ring has it. What arrives there is copied, what is sent has its own."""
    rig = Rig(rig.runtime, bounce=6, reach=(1 << 20) - 1)

    async def main() -> None:
        driver = rig.driver
        await driver.supply(rig.pool)
        tasks = []
        for number in range(4):
            chain = rig.cut(frame(bytes([number]) * 1000, driver.station), 14, 200, 400)
            tasks.append((chain, rig.runtime.start(driver.send, chain)))
        for number, (chain, task) in enumerate(tasks):
            assert await ended(rig, task) == [None]
            chain.free()
            packet = await driver.receive()
            assert packet.read(14) == bytes([number]) * 1000
            packet.free()
        counts = driver.statistics()
        assert (counts["sent"], counts["copied"], counts["missed"]) == (4, 4, 0)

    rig.run(main)


def test_packets_that_nobody_takes(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        await driver.supply(rig.pool)
        for _ in range(MOST_WAITING + 5):
            await driver.send(frame(b"", EVERYBODY))
        counts = driver.statistics()
        assert (counts["received"], counts["dropped"]) == (MOST_WAITING, 5)

    rig.run(main)


def test_spoiled_and_lost_frames(rig: Rig) -> None:
    async def main() -> None:
        driver, seen = rig.driver, iter([None, 30, -1])
        await driver.supply(rig.pool)

        def tamper(data: bytes) -> bytes | None:
            at = next(seen, 0)
            return None if at is None else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if at > 0 else data

        rig.wire.tamper = tamper
        for number in range(3):
            await driver.send(frame(bytes([number]), driver.station))
        packet = await driver.receive()
        assert packet.read(14, 1) == b"\2"
        packet.free()
        assert driver.statistics()["receive_errors"] == 1

    rig.run(main)


def test_a_frame_longer_than_what_is_left_in_the_ring(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        await driver.supply(rig.pool, small=True, buffers=4)
        await driver.send(frame(bytes(1000), driver.station))
        for number in range(3):
            await driver.send(frame(bytes([number]) * 300, driver.station))
            packet = await driver.receive()
            assert packet.read(14) == bytes([number]) * 300
            packet.free()
        assert driver.statistics()["receive_errors"] == 1

    rig.run(main)


# -- echoes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_echoes_on_every_runtime(name: str) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime)

        async def main() -> None:
            for number, length in enumerate((1, 44, 45, 1498, 1499, 4097, rig.driver.most)):
                out, back = rig.high(text(length), offset=(1365 * number) % 4096), rig.kernel.allocate(length, offset=9)
                await rig.driver.echo(out, back)
                assert back.read() == text(length)
                host = bytearray(length)
                await rig.driver.echo(out.read(), host)
                assert host == text(length)

        rig.run(main)
        assert rig.host.traffic("net0").bytes == 4 * (1 + 44 + 45 + 1498 + 1499 + 4097 + rig.driver.most)


@given(st.integers(1, Pcnet.most), st.integers(0, 4095), st.integers(0, 4095))
def test_echoes_touch_nothing_else(length: int, offset: int, other: int) -> None:
    rig = Rig(by_name("virtual"))
    out, whole = rig.high(text(length), offset), rig.kernel.allocate(length + 20, offset=other)
    whole.fill(0x77)

    async def main() -> None:
        await rig.driver.echo(out, whole[10 : 10 + length])

    rig.run(main)
    assert whole.read() == b"\x77" * 10 + text(length) + b"\x77" * 10
    assert out.read() == text(length)


@pytest.mark.parametrize("trouble", ["lost", "spoiled", "another"])
def test_an_echo_that_does_not_come_back(rig: Rig, trouble: str) -> None:
    out, back = rig.high(text(5000)), rig.kernel.allocate(5000)

    def tamper(data: bytes) -> bytes | None:
        if rig.wire.frames != 3:
            return data
        return {"lost": None, "spoiled": data[:40] + b"?" + data[41:], "another": old[0]}[trouble]

    old: list[bytes] = []

    def remember(data: bytes) -> bytes | None:
        old.append(data)
        return tamper(data)

    async def main() -> None:
        rig.wire.tamper = remember
        with pytest.raises(DeviceFault, match="an echo did not come back"):
            await rig.driver.echo(out, back)
        out.free()  # the device has let go of both
        back.fill(0)
        rig.wire.tamper = None
        again = rig.high(text(5000, 2))
        await rig.driver.echo(again, back)
        assert back.read() == again.read()
        assert rig.driver.statistics()["resets"] == 1

    rig.run(main)


def test_an_echo_that_is_left(rig: Rig) -> None:
    out, back = rig.high(text(5000)), rig.kernel.allocate(5000)

    async def main() -> None:
        task = rig.runtime.start(rig.driver.echo, out, back)
        await pause(rig.runtime, 2_000_000)
        task.cancel()
        await rig.runtime.park(task.done)
        with pytest.raises(WaitCancelled):
            task.result()
        assert rig.watch.quarantines == ["out", "back"]
        await rig.driver.echo(out, back)
        assert back.read() == text(5000)
        assert rig.driver.statistics()["resets"] == 1

    rig.run(main)


def test_echoes_that_are_refused(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        for out, back in ((b"", bytearray()), (bytes(2), bytearray(3)), (bytes(6000), bytearray(6000))):
            with pytest.raises(DriverError, match="give equal lengths"):
                await driver.echo(out, back)
        with pytest.raises(DriverError, match="read-only"):
            await driver.echo(bytes(2), bytes(2))
        await driver.echo(bytes(2), bytearray(2))
        await driver.supply(rig.pool)
        with pytest.raises(DriverError, match="receives into a pool"):
            await driver.echo(bytes(2), bytearray(2))
        with pytest.raises(DriverError, match="has a pool already"):
            await driver.supply(rig.pool)

    rig.run(main)


def test_the_loop_inside_the_chip() -> None:
    rig = Rig(by_name("virtual"), ports=2)
    inside = replace(rig.ports[0].attachment, name="inside", properties={"inside": 1})

    async def main() -> None:
        driver, back = attach(inside), bytearray(3000)
        await rig.ports[0].driver.stop()
        await driver.start()
        await driver.echo(text(3000), back)
        await driver.stop()
        assert back == text(3000)

    rig.run(main)
    assert rig.wire.frames == 0


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_frame_that_never_goes(rig: Rig) -> None:
    async def main() -> None:
        driver, chains = rig.driver, [rig.cut(frame(text(500), rig.driver.station), 100, 300) for _ in range(3)]
        await driver.supply(rig.pool)
        rig.nic.inject_stuck_transmit()
        tasks = [rig.runtime.start(driver.send, chain) for chain in chains[:2]]
        await pause(rig.runtime, TIMEOUT // 2)
        maps = [map for map in rig.domain.maps() if map.name.startswith("frame") and map.state is State.LOADED]
        assert len(maps) == 2
        found = await ended(rig, *tasks)
        assert all(isinstance(error, DeviceFault) and "within 1 s, and was reset" in str(error) for error in found)
        assert rig.watch.quarantines == [map.name for map in maps]
        assert [map.state for map in maps] == [State.IDLE] * 2
        await driver.send(chains[2])
        packet = await driver.receive()
        assert packet.read() == chains[2].read()
        packet.free()
        for chain in chains:
            chain.free()
        counts = driver.statistics()
        assert (counts["resets"], counts["sent"], counts["send_errors"]) == (1, 1, 2)

    rig.run(main)


def test_an_underflow(rig: Rig) -> None:
    """The frame fails by itself; the transmitter is off then, and a reset switches it on again."""

    async def main() -> None:
        driver = rig.driver
        await driver.supply(rig.pool)
        rig.nic.inject_underflow()
        chain = rig.cut(frame(text(500), driver.station), 100, 300)
        with pytest.raises(DeviceFault, match="could not send a frame: underflow"):
            await driver.send(chain)
        await pause(rig.runtime, TIMEOUT // 10)
        assert driver.statistics()["resets"] == 1
        await driver.send(chain)
        chain.free()
        packet = await driver.receive()
        assert packet.length == 514
        packet.free()

    rig.run(main)


def test_the_bus_refuses_an_access(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        await driver.supply(rig.pool)
        rig.ports[0].master.broken = True
        with pytest.raises(DeviceFault, match="the bus refused"):
            await driver.send(frame(b"one", driver.station))
        await pause(rig.runtime, TIMEOUT)
        await driver.send(frame(b"two", driver.station))
        packet = await driver.receive()
        assert packet.read(14, 3) == b"two"
        packet.free()

    rig.run(main)


def test_a_controller_that_is_pulled_out(rig: Rig) -> None:
    async def main() -> None:
        driver, port = rig.driver, rig.ports[0]
        await driver.supply(rig.pool)
        waiting = rig.runtime.start(driver.receive)
        rig.nic.inject_stuck_transmit()
        task = rig.runtime.start(driver.send, frame(b"", EVERYBODY))
        await pause(rig.runtime, 1000)
        port.registers.gone = True
        for error in await ended(rig, task, waiting):
            assert isinstance(error, DeviceFault)
        assert not port.slot.config.command(BUS_MASTER)
        for use in (driver.send(bytes(60)), driver.receive(), driver.echo(b"a", bytearray(1))):
            with pytest.raises(DeviceFault, match=r"out of service.* does not reset"):
                await use
        port.registers.gone = False
        await driver.stop()
        await driver.start()
        await driver.send(frame(b"", EVERYBODY))

    rig.run(main)


def test_it_is_stopped_in_the_middle_of_everything(rig: Rig) -> None:
    rig = Rig(rig.runtime, bounce=12, reach=(1 << 20) - 1)

    async def main() -> None:
        driver = rig.driver
        await driver.supply(rig.pool, buffers=4)
        rig.nic.inject_stuck_transmit()
        buffers = [rig.high(frame(text(1000), EVERYBODY), offset=3600) for _ in range(8)]
        tasks: list[Task[Any]] = [rig.runtime.start(driver.send, buffer) for buffer in buffers]
        tasks += [rig.runtime.start(driver.receive) for _ in range(2)]
        await pause(rig.runtime, 1_000_000)
        assert driver.statistics()["in_flight"] > 1
        await driver.stop()
        for error in await ended(rig, *tasks):
            assert isinstance(error, DriverError)
            assert str(error) == "net0 was stopped" or "not started" in str(error)
        for buffer in buffers:
            buffer.free()

    rig.run(main)


def test_it_is_stopped_during_an_echo_and_a_supply(rig: Rig) -> None:
    rig = Rig(rig.runtime, bounce=8, reach=(1 << 20) - 1)
    holder = rig.bus.create_map(name="holder")

    async def main() -> None:
        driver = rig.driver
        echo = rig.runtime.start(driver.echo, rig.high(text(5000)), bytearray(5000))
        await pause(rig.runtime, 2_000_000)
        await driver.stop()
        (error,) = await ended(rig, echo)
        assert str(error) == "net0 was stopped"
        await driver.start()
        holder.load_nowait(rig.high(bytes(3 * 4096)))
        supply = rig.runtime.start(driver.supply, rig.pool)
        await pause(rig.runtime, 2_000_000)
        await driver.stop()
        (error,) = await ended(rig, supply)
        assert isinstance(error, DriverError)
        await driver.start()
        with pytest.raises(DeadlineExpired):
            await driver.supply(rig.pool, deadline=rig.runtime.now() + 5)
        holder.unload()
        await driver.supply(rig.pool)

    rig.run(main)


def test_a_sender_that_leaves(rig: Rig) -> None:
    async def main() -> None:
        buffer = rig.high(frame(text(1000), EVERYBODY))
        task = rig.runtime.start(rig.driver.send, buffer)
        await pause(rig.runtime, 100_000)
        task.cancel()
        await rig.runtime.park(task.done)
        with pytest.raises(DriverError, match="quarantined"):
            buffer.free()
        await pause(rig.runtime, 2_000_000)  # the frame has gone
        buffer.free()
        assert rig.driver.statistics()["sent"] == 1
        await rig.driver.send(frame(b"", EVERYBODY))

    rig.run(main)


def test_deadlines(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        await driver.supply(rig.pool)
        with pytest.raises(DeadlineExpired):
            await driver.receive(rig.runtime.now() + 1000)
        rig.nic.inject_stuck_transmit()
        wide = [rig.cut(frame(text(800), EVERYBODY), *range(100, 800, 100)) for _ in range(6)]
        tasks = [rig.runtime.start(driver.send, chain, rig.runtime.now() + 5000) for chain in wide]
        found = await ended(rig, *tasks)
        kinds = [type(error) for error in found]
        assert set(kinds) == {DeviceFault, DeadlineExpired}
        assert kinds == sorted(kinds, key=lambda kind: kind is DeadlineExpired)  # those that were in the ring
        for chain in wide:
            chain.free()

    rig.run(main)


def test_before_it_is_started_and_twice(rig: Rig) -> None:
    async def main() -> None:
        driver = rig.driver
        await driver.stop()
        for use in (driver.send(b""), driver.receive(), driver.echo(b"", b""), driver.supply(rig.pool)):
            with pytest.raises(DriverError, match="is not started: start it first"):
                await use
        await driver.start()
        with pytest.raises(DriverError, match="already started"):
            await driver.start()
        with pytest.raises(DriverError, match="holds 1 to 32"):
            await driver.supply(rig.pool, buffers=33)
        await driver.stop()
        await driver.stop()

    rig.runtime.run(main)
    rig.check()


def test_what_cannot_be_started(rig: Rig) -> None:
    rig.ports[0].registers.gone = True
    with pytest.raises(DeviceFault, match="does not reset"):
        rig.runtime.run(rig.driver.start)
    rig.check()
    tight = Rig(rig.runtime, bounce=2, reach=(1 << 20) - 1)
    with pytest.raises(ConstraintError, match="bounce pages"):
        rig.runtime.run(tight.driver.start)
    tight.check()
    busy = Rig(rig.runtime, bounce=4, reach=(1 << 20) - 1)
    busy.bus.create_map().load_nowait(busy.high(bytes(4096 * 2)))
    with pytest.raises(ResourceShortage):
        rig.runtime.run(busy.driver.start)
    assert busy.frames.statistics()["by_owner"]["dma-safe"] == 0


def test_other_cards(rig: Rig) -> None:
    device = rig.ports[0].attachment
    with pytest.raises(ConfigurationError, match="not on a PCI bus"):
        attach(replace(device, config=None))
    with pytest.raises(ConfigurationError, match="is a 1234:11e8"):
        _, options = parse("sim:x86-64")
        machine = X8664("sim:x86-64", rig.runtime, options)
        try:
            attach(replace(device, config=machine.devices["edu0"].config))
        finally:
            machine.close()


# -- on the machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_on_the_machine(name: str) -> None:
    with by_name(name) as runtime:
        _, options = parse("sim:x86-64")
        machine = X8664("sim:x86-64", runtime, options)
        driver, pool = cast(Pcnet, machine.driver("net0")), MbufPool(machine.kernel)

        async def main() -> None:
            await driver.start()
            await driver.supply(pool)
            chain = pool.chain_of(text(1400), headroom=14)
            chain.prepend(14)
            chain.first.write(frame(b"", driver.station))
            for _ in range(20):
                await driver.send(chain)
                packet = await driver.receive()
                assert packet.read() == chain.read()
                packet.free()
            chain.free()
            await driver.stop()

        machine.run(main)
        assert machine.leaks() == []
        assert machine.traffic("net0").mechanism in ("bounce", "direct+bounce")
        assert machine.statistics()["bus"]["net0"]["unclaimed"] == 0
        assert pool.drain() > 0
        machine.close()
