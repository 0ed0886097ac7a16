"""The DES driver against the card's model: the same core on PCI (sim:x86-64) and on ISA (sim:pc-isa)."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest
from Crypto.Cipher import DES as library
from hypothesis import given, settings
from hypothesis import strategies as st

import busdma
from busdma.buffers import LinearBuffer
from busdma.drivers.des.core import CONTROL_SIZE, MAX_PIECE, PATIENCE, TIMEOUT, TRIES, Des
from busdma.drivers.des.isa import attach as attach_isa
from busdma.drivers.des.layout import SIGNATURE
from busdma.drivers.des.pci import attach as attach_pci
from busdma.errors import (
    ConfigurationError,
    DeadlineExpired,
    DeviceFault,
    DriverError,
    MappingRefused,
    ResourceShortage,
    WaitCancelled,
)
from busdma.lifecycle import State
from busdma.machine.attachment import Attachment
from busdma.machine.interrupt import Interrupt
from busdma.machine.machine import Machine
from busdma.runtime import NAMES, by_name
from busdma.sim.chips.des import IDENTITY, DesIsa, DesPci
from busdma.waiting import Runtime, Waiter

T = TypeVar("T")
MACHINES = ["sim:pc-isa", "sim:x86-64"]
KEY, OTHER = bytes.fromhex("0123456789abcdef"), bytes.fromhex("fedcba9876543210")
VECTOR = bytes.fromhex("1234567890abcdef")


def software(key: bytes, data: bytes, iv: bytes | None = None) -> bytes:
    """What the library makes of it."""
    cipher = library.new(key, library.MODE_ECB) if iv is None else library.new(key, library.MODE_CBC, iv=iv)
    return cipher.encrypt(data)


class Rig:
    """A machine, and the driver of its card, attached and not started."""

    def __init__(self, runtime: Runtime, spec: str, *, check: bool = True) -> None:
        self.runtime = runtime
        self.machine: Machine = busdma.open(spec, runtime=runtime, check=check)
        self.driver = cast(Des, self.machine.driver("des0"))
        self.model: DesPci | DesIsa = self.machine.des  # type: ignore[attr-defined]

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Start the driver, run `main`, stop the driver, and see that nothing is left behind."""

        async def all_of_it() -> T:
            await self.driver.start()
            try:
                return await main()
            finally:
                await self.driver.stop()

        result = self.runtime.run(all_of_it)
        self.nothing_is_left()
        return result

    def nothing_is_left(self) -> None:
        assert self.machine.checker is None or list(self.machine.checker.findings) == []
        assert self.machine.leaks() == []
        assert all(zone.active == 0 for zone in self.machine.domain.zones)
        assert self.machine.domain.frames.statistics()["by_owner"].get("dma-safe", 0) == 0

    def buffer(self, data: bytes, offset: int = 0) -> LinearBuffer:
        buffer = self.machine.allocate(len(data), offset=offset)
        buffer.write(data)
        return buffer

    def deferred(self) -> int:
        return sum(zone.statistics()["deferred"] for zone in self.machine.domain.zones)

    def attachment(self, **changes: Any) -> Attachment:
        """What the device's bus would hand over, with some of it changed."""
        device = self.machine.devices["des0"]
        attachment = Attachment(
            "other", device.tag, device.registers, device.interrupt, self.runtime, device.properties, device.config
        )
        return replace(attachment, **changes)


def make(spec: str, runtime: str = "virtual", *, check: bool = True) -> Rig:
    return Rig(by_name(runtime), spec, check=check)


@pytest.fixture(params=MACHINES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = make(request.param)
    yield rig
    rig.machine.close()


async def pause(runtime: Runtime, time: int) -> None:
    waiter = Waiter("a pause")
    runtime.call_at(runtime.now() + time, waiter.wake)
    await runtime.park(waiter)


# -- what it is for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", MACHINES)
@pytest.mark.parametrize("name", NAMES)
def test_scattered_buffers_at_odd_offsets_on_every_runtime(name: str, spec: str) -> None:
    data = random.Random(1).randbytes(100_000)
    with by_name(name) as runtime:
        rig = Rig(runtime, spec)
        plain, cipher, back = rig.buffer(data, 1365), rig.buffer(bytes(len(data)), 4095), bytearray(len(data))

        async def main() -> None:
            await rig.driver.encrypt(KEY, plain, cipher, iv=VECTOR)
            await rig.driver.encrypt(KEY, cipher, back, iv=VECTOR, decrypt=True)

        rig.run(main)
        assert cipher.read() == software(KEY, data, VECTOR)
        assert back == data
        assert plain.read() == data
        traffic = rig.machine.traffic("des0")
        assert (traffic.bytes, traffic.mechanism) == (4 * len(data), "direct+bounce")
        assert runtime.now() == 2 * (len(data) * 50 + 4 * 2_000) + 2 * 2_000  # two keys, and four pieces each
        rig.machine.close()


@pytest.mark.parametrize(
    ("spec", "device", "way"),
    [
        ("sim:pc-isa", "des0", "direct+bounce"),
        ("sim:x86-64", "des0", "direct+bounce"),
        ("sim:alpha", "des0", "window+remap"),  # it has more memory than the direct window
        ("sim:alpha", "des1", "remap"),
    ],
)
def test_the_four_permutations_of_the_paper(spec: str, device: str, way: str) -> None:
    """One core: PCI and ISA, on a PC and on an Alpha. Equal results, each by the way that the paper names."""
    with busdma.open(spec) as machine:
        driver = cast(Des, machine.driver(device))
        data = random.Random(8).randbytes(50_000)
        plain, cipher = (machine.allocate(len(data), offset=offset) for offset in (1365, 4095))
        plain.write(data)

        async def main() -> None:
            await driver.start()
            await driver.encrypt(KEY, plain, cipher, iv=VECTOR)
            await driver.encrypt(KEY, cipher, plain, iv=VECTOR, decrypt=True)
            await driver.stop()

        machine.run(main)
        assert cipher.read() == software(KEY, data, VECTOR)
        assert plain.read() == data
        assert machine.traffic(device).mechanism == way
        assert machine.leaks() == []


def test_in_place(rig: Rig) -> None:
    data = random.Random(2).randbytes(2 * MAX_PIECE + 8)
    buffer, host = rig.buffer(data, 7), bytearray(data)

    async def main() -> None:
        await rig.driver.encrypt(KEY, buffer, buffer, iv=VECTOR)
        assert buffer.read() == software(KEY, data, VECTOR)
        await rig.driver.encrypt(KEY, buffer, buffer, iv=VECTOR, decrypt=True)
        await rig.driver.encrypt(KEY, host, host)

    rig.run(main)
    assert buffer.read() == data
    assert host == software(KEY, data)


def test_what_is_within_reach_is_not_copied(rig: Rig) -> None:
    reach = rig.driver.tag.constraints.reach
    source, into = (rig.machine.kernel.allocate(5000, offset=33, within=reach) for _ in range(2))
    source.write(b"low" * 1000)

    async def main() -> None:
        await rig.driver.encrypt(KEY, source, into)

    rig.run(main)
    assert into.read() == software(KEY, source.read())
    assert rig.machine.traffic("des0").mechanism == "direct"


def test_the_reach_of_each_card() -> None:
    rigs = [make(spec) for spec in MACHINES]
    reach = [rig.driver.tag.constraints.reach for rig in rigs]
    for rig in rigs:
        rig.machine.close()
    assert [(1 << 24) - 1 in reach[0], 1 << 24 in reach[0]] == [True, False]
    assert [1 << 24 in reach[1], 1 << 32 in reach[1]] == [True, False]


def test_read_only_sources_and_kinds_of_buffers(rig: Rig) -> None:
    process = rig.machine.process("shell")
    mine = process.allocate(24, offset=4090)

    async def main() -> None:
        await rig.driver.encrypt(KEY, b"Now is the time for all ", mine)
        with pytest.raises(DriverError, match="read-only"):
            await rig.driver.encrypt(KEY, mine, bytes(24))
        with pytest.raises(DriverError, match="cannot encrypt 'list' in pieces"):
            await rig.driver.encrypt(KEY, [0] * 8, bytearray(8))
        words = array("I", [0, 1, 2, 3])
        await rig.driver.encrypt(KEY, words, words)
        assert words.tobytes() == software(KEY, array("I", [0, 1, 2, 3]).tobytes())
        await rig.driver.encrypt(KEY, memoryview(mine.read()), mine, decrypt=True)

    rig.run(main)
    assert mine.read() == b"Now is the time for all "


def test_a_list_never_has_more_entries_than_the_card_takes(rig: Rig) -> None:
    """A thousand pages, none beside the next: in pieces."""
    data = random.Random(3).randbytes(1000 * 4096)
    buffer = rig.buffer(data)

    async def main() -> None:
        await rig.driver.encrypt(KEY, buffer, buffer)

    rig.run(main)
    assert buffer.read() == software(KEY, data)
    assert rig.model.statistics()["longest_list"] <= 8


@pytest.mark.parametrize("nsegments", [1, 2])
def test_a_bus_of_few_segments_joins_pages(rig: Rig, nsegments: int) -> None:
    narrow = rig.attachment().tag.derive("narrow", nsegments=nsegments)
    attach = attach_isa if "isa" in rig.machine.spec else attach_pci
    rig.driver = attach(rig.attachment(tag=narrow))
    data = random.Random(4).randbytes(60_000)
    source, into = rig.buffer(data, 100), rig.buffer(bytes(60_000), 200)

    async def main() -> None:
        await rig.driver.encrypt(KEY, source, into, iv=VECTOR)

    rig.run(main)
    assert into.read() == software(KEY, data, VECTOR)
    assert rig.model.statistics()["longest_list"] <= nsegments


# -- several users ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", MACHINES)
@pytest.mark.parametrize("name", NAMES)
def test_requests_of_many_users_with_17_bounce_pages(name: str, spec: str) -> None:
    """Two pieces at a time, of 8 bounce pages each way, cannot be loaded: the second waits, and its chain is kept."""
    with by_name(name) as runtime:
        rig = Rig(runtime, f"{spec}?bounce=17")
        data = [random.Random(seed).randbytes(70_000) for seed in range(5)]
        back = [bytearray(len(each)) for each in data]

        async def user(number: int) -> None:
            key, iv = (KEY, OTHER)[number % 2], (VECTOR, None)[number % 3 == 2]
            await rig.driver.encrypt(key, data[number], back[number], iv=iv)
            assert back[number] == software(key, data[number], iv)
            await rig.driver.encrypt(key, back[number], back[number], iv=iv, decrypt=True)

        async def main() -> None:
            tasks = [runtime.start(user, number) for number in range(5)]
            for task in tasks:
                await runtime.park(task.done)
                task.result()

        rig.run(main)
        assert back == data
        assert rig.deferred() > 0
        assert rig.machine.traffic("des0").mechanism == "bounce"
        rig.machine.close()


def test_requests_are_served_in_their_order(rig: Rig) -> None:
    order: list[int] = []

    async def user(number: int) -> None:
        await rig.driver.encrypt(KEY, bytes(8), bytearray(8))
        order.append(number)

    async def main() -> None:
        tasks = [rig.runtime.start(user, number) for number in range(6)]
        for task in tasks:
            await rig.runtime.park(task.done)
            task.result()

    rig.run(main)
    assert order == list(range(6))


def test_the_key_is_set_when_it_must_be_and_does_not_stay_in_memory(rig: Rig) -> None:
    memory = rig.machine.domain.memory

    def held(secret: bytes) -> bool:
        at = rig.driver._control_memory().address  # a physical one too, on both machines
        return secret in bytes(memory[at : at + CONTROL_SIZE])

    async def main() -> None:
        for _ in range(3):
            await rig.driver.encrypt(KEY, bytes(16), bytearray(16))
        assert rig.driver.statistics()["keys"] == 1
        await rig.driver.encrypt(OTHER, bytes(16), bytearray(16))
        await rig.driver.encrypt(OTHER, bytes(2 * MAX_PIECE), bytearray(2 * MAX_PIECE), iv=VECTOR)
        assert rig.driver.statistics()["keys"] == 3
        assert not held(KEY)
        assert not held(OTHER)

    rig.run(main)
    assert rig.driver.statistics() == {
        "interrupts": 9,
        "commands": 9,
        "keys": 3,
        "encrypted": 64 + 2 * MAX_PIECE,
        "decrypted": 0,
        "halved": 0,
        "resets": 2,
        "stray": 0,
    }


def test_another_device_that_wants_the_same_pages() -> None:
    """The disk wants 17 of 17, the card 8 and 8: nobody holds some and waits for the others' for ever."""
    rig = make("sim:pc-isa?bounce=17")
    disk_driver = rig.machine.driver("aha0")
    data = random.Random(5).randbytes(64 << 10)
    host, back = bytearray(MAX_PIECE), bytearray(len(data))

    async def cards() -> None:
        for _ in range(10):
            await rig.driver.encrypt(KEY, bytes(MAX_PIECE), host, iv=VECTOR)

    async def disks() -> None:
        (disk,) = disk_driver.disks
        for _ in range(5):
            await disk.write(0, rig.buffer(data, 1365))
            await disk.read(0, back)

    async def main() -> None:
        await disk_driver.start()
        tasks = [rig.runtime.start(work) for work in (disks, cards, disks, cards)]
        for task in tasks:
            await rig.runtime.park(task.done)
            task.result()
        await disk_driver.stop()

    rig.run(main)
    assert back == data
    assert host == software(KEY, bytes(MAX_PIECE), VECTOR)
    assert rig.deferred() > 0
    rig.machine.close()


# -- few bounce pages -------------------------------------------------------------------------------------------------


def test_a_zone_that_holds_one_buffer_and_not_two(rig: Rig) -> None:
    few = make(f"{rig.machine.spec}?bounce=9")
    data = random.Random(6).randbytes(MAX_PIECE)
    back = bytearray(MAX_PIECE)

    async def main() -> None:
        await few.driver.encrypt(KEY, data, back, iv=VECTOR)

    few.run(main)
    assert back == software(KEY, data, VECTOR)
    assert few.driver.statistics()["halved"] == 1
    assert few.runtime.now() >= PATIENCE
    few.machine.close()


def test_two_who_waited_for_their_first_buffer_do_not_take_each_other_s_second(rig: Rig) -> None:
    few = make(f"{rig.machine.spec}?bounce=14")
    held = [few.driver.tag.create_map(name=f"held {number}") for number in range(2)]
    for map in held:
        map.load_nowait(bytearray(7 * 4096))

    async def main() -> None:
        encrypt = few.driver.encrypt
        tasks = [few.runtime.start(encrypt, KEY, bytes(MAX_PIECE), bytearray(MAX_PIECE)) for _ in range(2)]
        await pause(few.runtime, 1000)
        for map in held:
            map.unload()
        for task in tasks:
            await few.runtime.park(task.done)
            task.result()
        for map in held:
            map.destroy()

    few.run(main)
    assert few.driver.statistics()["halved"] == 0
    few.machine.close()


def test_a_zone_that_does_not_hold_one(rig: Rig) -> None:
    few = make(f"{rig.machine.spec}?bounce=5", check=False)

    async def main() -> None:
        with pytest.raises(MappingRefused, match="7 bounce pages needed and bounce zone 0 may hold 5"):
            await few.driver.encrypt(KEY, bytes(MAX_PIECE), bytearray(MAX_PIECE))
        await few.driver.encrypt(KEY, bytes(4096), bytearray(4096))

    few.run(main)
    few.machine.close()


def test_who_never_gets_the_second_buffer_gives_up(rig: Rig) -> None:
    few = make(f"{rig.machine.spec}?bounce=17")
    held = [few.driver.tag.create_map(name=f"held {number}") for number in range(4)]
    for map in held:
        map.load_nowait(bytearray(4 * 4096))  # one page is left

    async def main() -> None:
        with pytest.raises(ResourceShortage, match=f"within {TRIES} tries: raise the limit"):
            await few.driver.encrypt(KEY, bytes(512), bytearray(512))
        assert few.runtime.now() == TRIES * PATIENCE
        with pytest.raises(DeadlineExpired):
            await few.driver.encrypt(KEY, bytes(512), bytearray(512), deadline=few.runtime.now() + 1000)
        for map in held:
            map.unload()
        await few.driver.encrypt(KEY, bytes(512), bytearray(512))
        for map in held:
            map.destroy()

    few.run(main)
    few.machine.close()


# -- errors -----------------------------------------------------------------------------------------------------------


def test_refused(rig: Rig) -> None:
    encrypt = rig.driver.encrypt

    async def main() -> None:
        with pytest.raises(DriverError, match="already started"):
            await rig.driver.start()
        for key, iv in ((b"short", None), (KEY + b"x", None), (KEY, b"short"), (KEY, b"")):
            with pytest.raises(DriverError, match="8 bytes each"):
                await encrypt(key, bytes(8), bytearray(8), iv=iv)
        for length in (0, 7, 12):
            with pytest.raises(DriverError, match=f"{length} bytes are not one or more blocks of 8; pad them"):
                await encrypt(KEY, bytes(length), bytearray(length))
        with pytest.raises(DriverError, match="8 bytes do not fill a destination of 16: give equal lengths"):
            await encrypt(KEY, bytes(8), bytearray(16))
        for length in (0, rig.driver.most + 1):
            with pytest.raises(DriverError, match="split it"):
                await rig.driver.echo(bytes(length), bytearray(length))
        await encrypt(KEY, b"it still", bytearray(8))

    async def before() -> None:
        with pytest.raises(DriverError, match="start it first"):
            await encrypt(KEY, bytes(8), bytearray(8))

    rig.runtime.run(before)
    rig.run(main)
    with pytest.raises(DriverError, match="des0 was stopped"):
        rig.runtime.run(encrypt, KEY, bytes(8), bytearray(8))


def test_what_the_card_says_was_wrong(rig: Rig) -> None:
    back = bytearray(8)

    async def main() -> None:
        await rig.driver.encrypt(KEY, bytes(8), back)
        rig.model._key = b""  # the card has lost it
        with pytest.raises(DeviceFault, match="des0 ended a command with status 5: no key"):
            await rig.driver.encrypt(KEY, bytes(8), back)
        await rig.driver.encrypt(KEY, b"8 bytes.", back)  # and is told again

    rig.run(main)
    assert back == software(KEY, b"8 bytes.")


def test_a_card_that_writes_no_status(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        finish = rig.model._finish
        monkeypatch.setattr(rig.model, "_finish", lambda status: finish(0))
        with pytest.raises(DeviceFault, match="status 0: it interrupted without one"):
            await rig.driver.encrypt(KEY, bytes(8), bytearray(8))
        monkeypatch.undo()
        await rig.driver.encrypt(KEY, bytes(8), bytearray(8))

    rig.run(main)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", MACHINES)
def test_a_command_that_does_not_end_is_reset(spec: str, name: str) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime, spec)
        hung, good = bytearray(8), bytearray(8)

        async def main() -> None:
            await rig.driver.encrypt(KEY, bytes(8), good)
            rig.model.inject_hang()
            start = runtime.now()
            tasks = [runtime.start(rig.driver.encrypt, KEY, b"8 bytes.", back) for back in (hung, good)]
            for task in tasks:
                await runtime.park(task.done)
            with pytest.raises(DeviceFault, match="des0 did not end a command within 1000 ms, and was reset"):
                [task.result() for task in tasks]
            assert runtime.now() >= start + TIMEOUT
            assert sum(isinstance(_outcome(task), DeviceFault) for task in tasks) == 1
            assert {map.state for slot in rig.driver._all for map in slot.maps} == {State.IDLE}

        rig.run(main)
        assert software(KEY, b"8 bytes.") in (hung, good)
        rig.machine.close()


def _outcome(task: Any) -> object:
    try:
        return task.result()
    except DeviceFault as fault:
        return fault


def test_a_card_on_isa_that_no_reset_stops_keeps_what_it_was_given() -> None:
    """Nothing keeps it from memory: quarantine, until it has been found idle."""
    rig = make("sim:pc-isa", check=False)  # which would tell who frees it all the same
    destination = rig.buffer(bytes(8))

    async def main() -> None:
        await rig.driver.start()
        await rig.driver.encrypt(KEY, bytes(8), bytearray(8))
        rig.model.inject_hang(deaf=3)
        with pytest.raises(DeviceFault, match="des0 is out of service: it stays busy through a reset"):
            await rig.driver.encrypt(KEY, bytes(8), destination)
        with pytest.raises(DeviceFault, match="out of service"):
            await rig.driver.encrypt(KEY, bytes(8), bytearray(8))
        with pytest.raises(DriverError, match="cannot be freed"):
            destination.free()
        with pytest.raises(DeviceFault, match="what it was given stays in quarantine"):
            await rig.driver.stop()
        assert len(rig.machine.leaks()) >= 2
        with pytest.raises(DeviceFault, match="des0 stays busy through a reset; reset the machine"):
            await rig.driver.start()
        await rig.driver.start()  # somebody has knocked on it
        await rig.driver.encrypt(KEY, bytes(8), destination)
        await rig.driver.stop()

    rig.runtime.run(main)
    assert destination.read() == software(KEY, bytes(8))
    destination.free()
    rig.nothing_is_left()
    rig.machine.close()


def test_who_leaves_a_card_on_isa_that_no_reset_stops() -> None:
    """The pages stay in quarantine though nobody waits for them any more."""
    rig = make("sim:pc-isa")

    async def main() -> None:
        await rig.driver.start()
        rig.model.inject_hang(deaf=2)
        task = rig.runtime.start(rig.driver.encrypt, KEY, bytes(8), bytearray(8))
        await pause(rig.runtime, 1_000_000)
        task.cancel()
        await pause(rig.runtime, TIMEOUT)
        assert [map.state for map in rig.driver._all[0].maps] == [State.QUARANTINED] * 2
        with pytest.raises(DeviceFault, match="stays in quarantine"):
            await rig.driver.stop()
        await rig.driver.start()
        await rig.driver.stop()

    rig.runtime.run(main)
    rig.nothing_is_left()
    rig.machine.close()


def test_a_card_on_pci_that_no_reset_stops_is_cut_off() -> None:
    rig = make("sim:x86-64")

    async def main() -> None:
        await rig.driver.start()
        rig.model.inject_hang(deaf=3)
        tasks = [rig.runtime.start(rig.driver.encrypt, KEY, bytes(8), bytearray(8)) for _ in range(4)]
        for task in tasks:
            await rig.runtime.park(task.done)
            with pytest.raises(DeviceFault, match="out of service"):
                task.result()
        assert {map.state for slot in rig.driver._all for map in slot.maps} == {State.IDLE}
        config = rig.machine.devices["des0"].config
        assert config is not None
        assert not config.read16(4) & 4
        await rig.driver.stop()
        rig.nothing_is_left()
        with pytest.raises(DeviceFault, match="stays busy through a reset"):
            await rig.driver.start()
        await rig.driver.start()
        await rig.driver.encrypt(KEY, bytes(8), bytearray(8))
        await rig.driver.stop()

    rig.runtime.run(main)
    rig.nothing_is_left()
    rig.machine.close()


def test_an_interrupt_of_somebody_else_ends_nothing(rig: Rig) -> None:
    line = cast(Interrupt, rig.machine.devices["des0"].interrupt)
    back = bytearray(8)

    async def main() -> None:
        task = rig.runtime.start(rig.driver.encrypt, KEY, bytes(8), back)
        await pause(rig.runtime, 100)
        line.assert_()  # noqa: PT009
        line.deassert()
        await rig.runtime.park(task.done)
        task.result()

    rig.run(main)
    assert back == software(KEY, bytes(8))
    assert rig.driver.statistics()["interrupts"] == 2


def test_start_and_stop_again_and_again(rig: Rig) -> None:
    async def main() -> None:
        await rig.driver.encrypt(KEY, bytes(8), bytearray(8))

    for _ in range(3):
        rig.run(main)
    config = rig.machine.devices["des0"].config
    assert config is None or config.read16(4) == 0  # what is stopped is disabled
    rig.runtime.run(rig.driver.stop)


# -- who leaves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", MACHINES)
@pytest.mark.parametrize("name", NAMES)
def test_who_leaves_in_the_middle_leaves_a_quarantine(name: str, spec: str) -> None:
    """Until the card has ended the command nobody gets its pages; then slot and turn are there again."""
    with by_name(name) as runtime:
        rig = Rig(runtime, spec, check=False)  # which would tell who frees it all the same
        mine, back = rig.buffer(b"?" * MAX_PIECE), bytearray(8)

        async def main() -> None:
            for _ in range(3):  # more than there are slots
                task = runtime.start(rig.driver.encrypt, KEY, bytes(MAX_PIECE), mine)
                await pause(runtime, 100_000)
                task.cancel()
                await runtime.park(task.done)
                with pytest.raises(WaitCancelled):
                    task.result()
                assert State.QUARANTINED in [map.state for slot in rig.driver._all for map in slot.maps]
                with pytest.raises(DriverError, match="cannot be freed"):
                    mine.free()
                await rig.driver.encrypt(KEY, b"8 bytes.", back)
                assert back == software(KEY, b"8 bytes.")
                assert {map.state for slot in rig.driver._all for map in slot.maps} == {State.IDLE}
            mine.free()

        rig.run(main)
        assert rig.driver.statistics()["resets"] == 2
        rig.machine.close()


def test_who_leaves_a_command_that_hangs(rig: Rig) -> None:
    async def main() -> None:
        rig.model.inject_hang()
        task = rig.runtime.start(rig.driver.encrypt, KEY, bytes(8), bytearray(8))
        await pause(rig.runtime, 100)
        task.cancel()
        await rig.driver.encrypt(KEY, bytes(8), bytearray(8))
        assert rig.runtime.now() >= TIMEOUT

    rig.run(main)


def test_deadlines(rig: Rig) -> None:
    async def main() -> None:
        runtime = rig.runtime
        tasks = [runtime.start(rig.driver.encrypt, KEY, bytes(MAX_PIECE), bytearray(MAX_PIECE)) for _ in range(2)]
        await pause(runtime, 1000)
        with pytest.raises(DeadlineExpired, match="a slot of des0"):
            await rig.driver.encrypt(KEY, bytes(8), bytearray(8), deadline=runtime.now() + 1000)
        with pytest.raises(DeadlineExpired, match="a slot of des0"):
            await rig.driver.echo(bytes(8), bytearray(8), runtime.now() + 1000)
        await runtime.park(tasks[0].done)
        with pytest.raises(DeadlineExpired, match="a turn of des0"):
            await rig.driver.encrypt(KEY, bytes(8), bytearray(8), deadline=runtime.now() + 1000)
        await runtime.park(tasks[1].done)
        await rig.driver.encrypt(KEY, bytes(8), bytearray(8), deadline=runtime.now() + 1000)

    rig.run(main)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", MACHINES)
def test_stop_in_the_middle(spec: str, name: str) -> None:
    """What was under way fails, as does what waited; nothing late reaches memory; and it can be started again."""
    with by_name(name) as runtime:
        rig = Rig(runtime, spec)
        backs = [rig.buffer(bytes(MAX_PIECE)) for _ in range(4)]

        async def main() -> None:
            await rig.driver.start()
            tasks = [runtime.start(rig.driver.encrypt, KEY, bytes(MAX_PIECE), back) for back in backs]
            await pause(runtime, 100_000)
            await rig.driver.stop()
            for task in tasks:
                await runtime.park(task.done)
                with pytest.raises(DriverError, match="des0 was stopped"):
                    task.result()
            rig.nothing_is_left()
            for back in backs:
                back.free()
            await pause(runtime, TIMEOUT)
            await rig.driver.start()
            await rig.driver.encrypt(KEY, bytes(8), bytearray(8))
            await rig.driver.stop()
            await rig.driver.stop()

        runtime.run(main)
        rig.nothing_is_left()
        rig.machine.close()


@pytest.mark.parametrize("pages", [7, 5])
def test_stop_while_a_load_waits(rig: Rig, pages: int) -> None:
    """For the first buffer, holding nothing; or for the second."""
    few = make(f"{rig.machine.spec}?bounce=7")

    async def main() -> None:
        await few.driver.start()
        holder = few.driver.tag.create_map(name="holder")
        holder.load_nowait(bytearray(pages * 4096))
        tasks = [few.runtime.start(few.driver.encrypt, KEY, bytes(8192), bytearray(8192)) for _ in range(4)]
        await pause(few.runtime, 1000)
        assert State.WAITING in [map.state for slot in few.driver._all for map in slot.maps]
        await few.driver.stop()
        for task in tasks:
            await few.runtime.park(task.done)
            with pytest.raises(DriverError, match="des0 was stopped"):
                task.result()
        holder.unload()
        holder.destroy()

    few.runtime.run(main)
    few.nothing_is_left()
    few.machine.close()


# -- the bus ----------------------------------------------------------------------------------------------------------


def test_no_card_there() -> None:
    isa, pci = make("sim:pc-isa"), make("sim:x86-64")
    with pytest.raises(DeviceFault, match="no card answers at its ports"):
        attach_isa(isa.attachment(registers=isa.machine.bus.registers(0x300)))  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="this driver is for 1998:0de5"):
        other = pci.machine.devices["edu0"]
        attach_pci(pci.attachment(registers=other.registers, config=other.config))
    with pytest.raises(ConfigurationError, match="not on a PCI bus"):
        attach_pci(isa.attachment())
    for rig in (isa, pci):
        rig.machine.close()


def test_something_else_at_the_ports(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    load = rig.model.load
    monkeypatch.setattr(rig.model, "load", lambda at: SIGNATURE ^ 1 if at == IDENTITY else load(at))
    with pytest.raises(DeviceFault, match="which is no DES card"):
        rig.runtime.run(rig.driver.start)
    rig.nothing_is_left()


# -- echoes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 9, 4095, MAX_PIECE, MAX_PIECE + 1, 64 << 10])
def test_an_echo_goes_through_the_card_in_both_directions(rig: Rig, length: int) -> None:
    """Of any length: what is missing to whole blocks comes from the control memory, by a list entry."""
    (echo,) = rig.driver.echoes
    data = random.Random(length).randbytes(length)
    out, back = rig.buffer(data, 3), rig.buffer(bytes(255 - byte for byte in data), 4093)

    async def main() -> None:
        await echo.echo(out, back)

    rig.run(main)
    assert (out.read(), back.read()) == (data, data)
    assert rig.machine.traffic("des0").bytes == 4 * length  # no byte of it was copied past the card
    assert rig.model.statistics()["bytes"] == 2 * -(-length // 8) * 8


requests = st.lists(
    st.tuples(
        st.integers(1, 6000),  # blocks
        st.integers(0, 4095),
        st.integers(0, 4095),
        st.booleans(),  # within reach
        st.booleans(),  # decrypt
        st.booleans(),  # chained
        st.sampled_from(["other", "same", "host"]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=20, deadline=None)
@given(requests, st.sampled_from(MACHINES), st.sampled_from([16, 17, 128]), st.integers(0, 2**16))
def test_requests_against_the_library(plan: list[Any], spec: str, bounce: int, seed: int) -> None:
    """All at the same time; each gets what the library makes of its data with its key, mode and vector."""
    rig = make(f"{spec}?bounce={bounce}&seed={seed % 7}")
    chance = random.Random(seed)

    async def user(number: int) -> None:
        blocks, offset, other, low, decrypt, chained, where = plan[number]
        key, iv = chance.randbytes(8), chance.randbytes(8) if chained else None
        data = chance.randbytes(8 * blocks)
        within = rig.driver.tag.constraints.reach if low else None
        source = rig.machine.kernel.allocate(len(data), offset=offset, within=within)
        source.write(data)
        into: Any = source
        if where == "other":
            into = rig.machine.allocate(len(data), offset=other)
        elif where == "host":
            into = bytearray(len(data))
        await rig.driver.encrypt(key, source, into, decrypt=decrypt, iv=iv)
        cipher = library.new(key, library.MODE_ECB) if iv is None else library.new(key, library.MODE_CBC, iv=iv)
        expected = cipher.decrypt(data) if decrypt else cipher.encrypt(data)
        assert (bytes(into) if where == "host" else into.read()) == expected
        if into is not source:
            assert source.read() == data

    async def main() -> None:
        tasks = [rig.runtime.start(user, number) for number in range(len(plan))]
        for task in tasks:
            await rig.runtime.park(task.done)
        for task in tasks:
            task.result()

    rig.run(main)
    counts = rig.machine.statistics()["bus"]["des0"]
    assert set(counts["by_owner"]) <= {"kernel", "bounce", "dma-safe"}
    assert counts["wrapped"] == counts["unclaimed"] == 0
    rig.machine.close()
