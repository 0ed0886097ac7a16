"""The model of the floppy disk controller, by its ports: phases, interrupts, status, and the time things take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from busdma.errors import ConfigurationError
from busdma.sim.chips import fdc
from busdma.sim.chips.fdc import Fdc
from busdma.sim.disk import Disk
from sim.aha1542_host import Clock

MS = 1_000_000
RUN = fdc.RUN | fdc.GATE | fdc.MOTOR
MULTI = 0x80


class Pin:
    def __init__(self) -> None:
        self.level = False

    def assert_(self) -> None:
        self.level = True

    def deassert(self) -> None:
        self.level = False


class Channel:
    """Memory of `room` bytes, and terminal count at its end."""

    def __init__(self) -> None:
        self.memory = bytearray()
        self.at = 0
        self.terminal = False
        self.deaf = False

    def set(self, memory: bytes) -> None:
        self.memory, self.at, self.terminal = bytearray(memory), 0, False

    def store(self, data: bytes) -> int:
        if self.deaf:
            return 0
        part = data[: len(self.memory) - self.at]
        self.memory[self.at : self.at + len(part)] = part
        return self._moved(len(part))

    def fetch(self, count: int) -> bytes:
        if self.deaf:
            return b""
        part = bytes(self.memory[self.at : self.at + count])
        self._moved(len(part))
        return part

    def _moved(self, count: int) -> int:
        self.at += count
        self.terminal = self.at == len(self.memory)
        return count


class Host:
    """A controller and what it is wired to. `blocks` of the medium, numbered; none: an empty drive."""

    def __init__(self, blocks: int = 2880, *, read_only: bool = False) -> None:
        self.clock, self.pin, self.channel = Clock(), Pin(), Channel()
        self.medium = Disk(blocks=blocks) if blocks else None
        if self.medium is not None:
            self.medium.write(0, b"".join(block(number) for number in range(blocks)))
            self.medium.read_only = read_only
        self.chip = Fdc(self.channel, self.pin, self.clock.call_at, self.clock.now, medium=self.medium)

    def ready(self, mask: int = 0xC0, wanted: int = 0x80) -> None:
        for _ in range(100):
            if self.chip.read8(fdc.STATUS) & mask == wanted:
                return
            self.clock.run(self.clock.now() + 10_000)
        raise AssertionError(f"status {self.chip.read8(fdc.STATUS):#04x}")

    def send(self, *command: int) -> None:
        for byte in command:
            self.ready()
            self.chip.write8(fdc.FIFO, byte)

    def result(self, count: int = 7) -> list[int]:
        found = []
        for _ in range(count):
            self.ready(wanted=0xC0)
            found.append(self.chip.read8(fdc.FIFO))
        return found

    def wait(self, limit: int = 3000 * MS) -> int:
        """Until it interrupts; how long that took."""
        begin = self.clock.now()
        while not self.pin.level:
            assert self.clock.now() < begin + limit
            assert self.clock.step()
        return self.clock.now() - begin

    def sense(self) -> list[int]:
        self.send(fdc.SENSE)
        (status,) = self.result(1)
        return [status] if status == fdc.INVALID else [status, *self.result(1)]

    def reset(self) -> None:
        """And turning."""
        self.chip.write8(fdc.DOR, 0)
        self.chip.write8(fdc.DOR, RUN)
        self.wait()
        assert [self.sense()[0] for _ in range(4)] == [0xC0, 0xC1, 0xC2, 0xC3]
        assert not self.pin.level
        self.chip.write8(fdc.INPUT, 0)
        self.send(fdc.SPECIFY, 0xDF, 0x02)
        self.clock.run(self.clock.now() + fdc.SPIN_UP)

    def seek(self, cylinder: int) -> int:
        self.send(fdc.SEEK, 0, cylinder)
        took = self.wait()
        assert self.sense() == [0x20, cylinder]
        return took

    def transfer(self, code: int, lba: int, last: int = 18) -> list[int]:
        cylinder, head, sector = lba // 36, lba // 18 % 2, lba % 18 + 1
        self.send(code | 0x40, head << 2, cylinder, head, sector, 2, last, 0x1B, 0xFF)
        self.wait()
        return self.result()


def block(number: int) -> bytes:
    return number.to_bytes(2, "little") * 256


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    host.reset()
    yield host
    assert host.chip.statistics()["dropped"] == 0


def test_power_on_is_reset() -> None:
    host = Host()
    assert host.chip.read8(fdc.STATUS) == 0
    host.chip.write8(fdc.FIFO, fdc.SENSE)
    assert host.chip.statistics()["dropped"] == 1
    assert host.chip.read8(0) == host.chip.read8(6) == 0xFF
    host.reset()
    assert host.chip.read8(fdc.DOR) == RUN
    assert host.chip.read8(fdc.STATUS) == fdc.READY


def test_bytes_take_their_time(host: Host) -> None:
    host.ready()
    host.chip.write8(fdc.FIFO, fdc.SENSE)
    assert not host.chip.read8(fdc.STATUS) & fdc.READY
    host.clock.run(host.clock.now() + fdc.BYTE)
    assert host.chip.read8(fdc.STATUS) == fdc.READY | fdc.OUTWARD | fdc.BUSY
    assert host.result(1) == [fdc.INVALID]  # there was nothing to sense


def test_a_byte_that_nobody_asked_for_is_dropped() -> None:
    host = Host()
    host.reset()
    host.ready()
    for byte in (fdc.SEEK, 0, 7):  # without a look at the status
        host.chip.write8(fdc.FIFO, byte)
    assert host.chip.read8(fdc.FIFO) == 0xFF
    assert host.chip.statistics()["dropped"] == 3


def test_seeks_take_a_step_time_for_each_cylinder(host: Host) -> None:
    assert host.seek(10) == 30 * MS
    assert host.seek(8) == 6 * MS
    host.send(fdc.RECALIBRATE, 0)
    assert host.chip.read8(fdc.STATUS) & 0x0F == 1  # the drive is busy
    assert host.wait() == 24 * MS
    assert host.sense() == [0x20, 0]
    assert host.sense() == [0x80]


def test_a_drive_that_is_not_there_has_no_track_0(host: Host) -> None:
    host.send(fdc.RECALIBRATE, 1)
    host.wait()
    assert host.sense() == [0x71, 0]


def test_a_cylinder_goes_over_in_two_turns(host: Host) -> None:
    host.seek(3)
    host.channel.set(bytes(36 * 512))
    begin = host.clock.now()
    assert host.transfer(fdc.READ | MULTI, 108) == [0, 0, 0, 4, 0, 1, 2]
    assert host.channel.memory == b"".join(block(number) for number in range(108, 144))
    assert 400 * MS <= host.clock.now() - begin < 602 * MS


def test_terminal_count_ends_it_anywhere(host: Host) -> None:
    host.channel.set(bytes(700))
    assert host.transfer(fdc.READ | MULTI, 17) == [4, 0, 0, 0, 1, 2, 2]
    assert host.channel.memory == block(17) + block(18)[:188]
    host.channel.set(b"x" * 700)
    assert host.transfer(fdc.WRITE | MULTI, 4) == [0, 0, 0, 0, 0, 7, 2]
    assert host.medium is not None
    assert host.medium.read(4, 3) == b"x" * 700 + bytes(324) + block(6)


def test_without_terminal_count_it_ends_with_the_cylinder(host: Host) -> None:
    host.channel.set(bytes(40 * 512))
    assert host.transfer(fdc.READ | MULTI, 34) == [0x40, 0x80, 0, 1, 0, 1, 2]
    assert host.channel.at == 1024
    assert host.transfer(fdc.READ, 17) == [0x40, 0x80, 0, 1, 0, 1, 2]  # and of one track, without multi-track


def test_no_such_sector_and_another_cylinder(host: Host) -> None:
    host.channel.set(bytes(512))
    host.send(fdc.READ | 0x40, 0, 0, 0, 19, 2, 19, 0x1B, 0xFF)
    host.wait()
    assert host.result()[:3] == [0x40, 0x04, 0]
    assert host.transfer(fdc.READ, 40)[:3] == [0x40, 0x04, 0x10]


def test_a_bad_sector_comes_all_the_same(host: Host) -> None:
    host.chip.bad[5] = 1
    host.channel.set(bytes(3 * 512))
    assert host.transfer(fdc.READ, 4) == [0x40, 0x20, 0x20, 0, 0, 6, 2]
    assert host.channel.at == 1024
    host.channel.set(bytes(512))
    assert host.transfer(fdc.READ, 5)[0] == 0


@pytest.mark.parametrize("code", [fdc.READ, fdc.WRITE])
def test_overrun(host: Host, code: int) -> None:
    host.channel.set(bytes(512))
    host.channel.deaf = True
    assert host.transfer(code, 9) == [0x40, 0x10, 0, 0, 0, 10, 2]
    host.channel.deaf = False
    host.chip.inject_overrun()
    assert host.transfer(code, 9)[:2] == [0x40, 0x10]
    assert host.transfer(code, 9)[0] == 0


def test_a_protected_medium() -> None:
    host = Host(read_only=True)
    host.reset()
    host.channel.set(bytes(512))
    assert host.transfer(fdc.WRITE, 0)[:3] == [0x40, 0x02, 0]
    assert host.channel.at == 0
    host.send(fdc.DRIVE_STATUS, 0)
    assert host.result(1) == [0x78]
    assert host.transfer(fdc.READ, 0)[0] == 0


@pytest.mark.parametrize(("blocks", "rate", "sectors"), [(1440, 2, 9), (2880, 0, 18), (5760, 3, 36)])
def test_a_medium_is_legible_at_its_own_rate(blocks: int, rate: int, sectors: int) -> None:
    host = Host(blocks)
    host.reset()
    for tried in (0, 1, 2, 3):
        host.chip.write8(fdc.INPUT, tried)
        host.send(fdc.PERPENDICULAR, 0x84 if tried == 3 else 0x80)
        host.send(fdc.READ_ID | 0x40, 0)
        host.wait()
        status = host.result()
        if tried == rate:
            assert status[:5] == [0, 0, 0, 0, 0]
            assert 1 <= status[5] <= sectors
        else:
            assert status[:2] == [0x40, 0x01]
            host.channel.set(bytes(512))
            assert host.transfer(fdc.READ, 0)[:2] == [0x40, 0x01]
    if rate == 3:
        host.send(fdc.PERPENDICULAR, 0x80)
        host.send(fdc.READ_ID | 0x40, 0)
        host.wait()
        assert host.result()[:2] == [0x40, 0x01]


def test_where_nothing_turns_a_command_waits_until_a_reset() -> None:
    for host in (Host(0), Host()):
        host.reset()
        if host.medium is not None:
            host.chip.write8(fdc.DOR, RUN & ~fdc.MOTOR)
        host.send(fdc.READ_ID | 0x40, 0)
        host.clock.run(host.clock.now() + 10_000 * MS)
        assert not host.pin.level
        assert host.chip.read8(fdc.STATUS) == fdc.BUSY
        host.reset()


def test_a_reset_ends_what_was_under_way(host: Host) -> None:
    host.channel.set(bytes(36 * 512))
    host.send(fdc.READ | 0xC0, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    host.clock.run(host.clock.now() + 250 * MS)
    moved = host.channel.at
    assert 0 < moved < 36 * 512
    host.reset()
    host.clock.run(host.clock.now() + 1000 * MS)
    assert host.channel.at == moved
    assert not host.pin.level


def test_the_interrupt_has_a_gate() -> None:
    host = Host()
    host.chip.write8(fdc.DOR, fdc.RUN | fdc.MOTOR)
    host.clock.run(10 * MS)
    assert not host.pin.level
    host.chip.write8(fdc.DOR, RUN)
    assert host.pin.level


def test_the_changed_disk_is_seen_until_the_heads_step_over_a_medium(host: Host) -> None:
    assert host.chip.read8(fdc.INPUT) == 0x80
    host.chip.write8(fdc.DOR, RUN & ~fdc.MOTOR)
    assert host.chip.read8(fdc.INPUT) == 0
    host.chip.write8(fdc.DOR, RUN)
    host.send(fdc.RECALIBRATE, 0)
    host.wait()
    host.sense()
    assert host.chip.read8(fdc.INPUT) == 0x80  # they have not moved
    host.seek(1)
    assert host.chip.read8(fdc.INPUT) == 0
    host.chip.insert(None)
    host.seek(2)
    assert host.chip.read8(fdc.INPUT) == 0x80
    host.chip.insert(host.medium)
    assert host.chip.read8(fdc.INPUT) == 0x80
    host.seek(1)
    assert host.chip.read8(fdc.INPUT) == 0


def test_unknown_commands(host: Host) -> None:
    host.send(0x1E)
    assert host.result(1) == [0x80]
    assert not host.pin.level


def test_no_such_medium() -> None:
    with Disk(blocks=2000) as disk, pytest.raises(ConfigurationError, match=r"no 3\.5-inch floppy has 2000 blocks"):
        Fdc(Channel(), Pin(), Clock().call_at, Clock().now, medium=disk)
