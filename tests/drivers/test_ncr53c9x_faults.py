"""What goes wrong on a SCSI bus, and how the 53C9x driver gets out of it, against the models."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from busdma.drivers import scsi
from busdma.drivers.disk import ScsiFault
from busdma.drivers.ncr53c9x.sequencer import BUS_FREE, MEMORY
from busdma.errors import DeadlineExpired, DeviceFault, DriverError
from busdma.lifecycle import State
from busdma.runtime import by_name
from busdma.sim.scsi.nexus import EXTENDED, Hold, Nexus, Step
from drivers.ncr53c9x_rig import BOARDS, Rig, pause

SECOND = 1_000_000_000
CHIP_AT = {"sbus": (0x10000, 4), "jazz": (0, 1), "pci": (0, 4)}


@pytest.fixture(params=BOARDS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(by_name("virtual"), request.param)
    yield rig
    rig.close()


@pytest.fixture(params=BOARDS)
def two(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(by_name("virtual"), request.param, targets=(0, 2), bounce=33)
    yield rig
    rig.close()


def hang_on_the_bus(monkeypatch: pytest.MonkeyPatch, target: int = 0) -> None:
    """The next command of `target` that would disconnect stays connected, and asks for nothing any more."""
    wait, left = Nexus._wait, [1]

    def hold(self: Nexus, ns: int | None) -> Generator[Step, bytes, bool]:
        if self.target == target and left:
            left.pop()
            yield Hold(None)
        return (yield from wait(self, ns))

    monkeypatch.setattr(Nexus, "_wait", hold)


def test_what_takes_too_long_is_aborted(rig: Rig) -> None:
    """The target has disconnected: it is selected again, for an ABORT message."""

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.chip.inject_silence(0)
        start = runtime.now()
        with pytest.raises(ScsiFault, match="aborted: no answer in time"):
            await disk.read(0, rig.empty(65536, offset=1))
        assert 10 * SECOND <= runtime.now() - start < 11 * SECOND
        statistics = rig.driver.statistics()
        assert (statistics["aborts"], statistics["resets"], statistics["free_slots"]) == (1, 0, 16)
        await disk.read(0, rig.empty(512))

    rig.run(main)


def test_a_deadline_bounds_the_device_too(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.chip.inject_silence(0)
        end = runtime.now() + SECOND
        buffer = rig.empty(4096)
        with pytest.raises(ScsiFault, match="aborted"):
            await disk.write(0, buffer, deadline=end)
        assert end <= runtime.now() < end + SECOND
        rig.kernel.free(buffer)  # nothing has it loaded any more

    rig.run(main)


def test_deadlines_at_every_moment_of_a_command(two: Rig) -> None:
    """Waiting, selecting, connected, away, back, over: the command is done, or aborted, and the next one works."""
    rig = two
    rig.chip.bus.burst = 1500
    outcomes: list[str] = []

    async def attempt(time: int) -> None:
        disk, other = rig.driver.disks
        buffer = rig.empty(4096)
        traffic = rig.runtime.start(other.read, 900, rig.empty(30_208))
        try:
            await disk.read(7, buffer, rig.runtime.now() + time)
            outcomes.append("done")
            assert buffer.read() == rig.disks[0].read(7, 8)
        except DeadlineExpired:
            outcomes.append("never started")
        except ScsiFault as fault:
            outcomes.append("aborted" if "aborted: no answer in time" in str(fault) else str(fault))
        await rig.runtime.park(traffic.done)
        traffic.result()
        rig.kernel.free(buffer)

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        start = runtime.now()
        await disk.read(7, rig.empty(4096))
        usual = runtime.now() - start
        for step in range(150):
            await attempt(usual * step // 40)
        assert set(outcomes) - {"never started"} == {"done", "aborted"}
        statistics = rig.driver.statistics()
        assert (statistics["resets"], statistics["stray"], statistics["free_slots"]) == (0, 0, 16)

    rig.run(main)


def test_a_target_that_vanishes_is_not_waited_for(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.chip.inject_silence(0)
        task = runtime.start(disk.read, 0, rig.empty(512))
        await pause(runtime, SECOND)
        del rig.targets[0]
        await runtime.park(task.done)
        with pytest.raises(ScsiFault, match="aborted"):
            task.result()
        assert rig.driver.statistics()["resets"] == 0

    rig.run(main)


def test_a_target_that_does_not_let_go_of_the_bus(two: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No abort gets through: all is reset. What was only in the way is done again."""
    rig = two
    data = random.Random(5).randbytes(4 * 4096)

    async def main() -> None:
        (hung, other), runtime = rig.driver.disks, rig.runtime
        await other.write(0, rig.buffer(data))
        hang_on_the_bus(monkeypatch)
        start = runtime.now()
        victim, back = rig.empty(4096, offset=9), rig.empty(len(data))
        rig.chip.inject_silence(2)
        behind = runtime.start(other.read, 0, back, start + 60 * SECOND)
        await pause(runtime, 1_000_000)
        task = runtime.start(hung.read, 0, victim, start + 10 * SECOND)
        await runtime.park(behind.done)
        behind.result()
        assert back.read() == data
        await runtime.park(task.done)
        with pytest.raises(ScsiFault, match="lost when esp0 was reset: it did not answer an abort"):
            task.result()
        statistics = rig.driver.statistics()
        assert (statistics["aborts"], statistics["resets"], statistics["free_slots"]) == (1, 1, 16)
        rig.kernel.free(victim)  # it is not loaded any more
        await hung.read(0, rig.empty(512))

    rig.run(main)


def test_maps_are_in_quarantine_until_the_reset(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody knows whether the device still writes, nobody else gets the pages."""
    seen: list[list[State]] = []

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        hang_on_the_bus(monkeypatch)
        bring_up = rig.driver._bring_up

        async def watched(hard: bool) -> None:
            seen.append([map.state for map in rig.domain.maps() if map.state is State.QUARANTINED])
            await bring_up(hard)

        monkeypatch.setattr(rig.driver, "_bring_up", watched)
        with pytest.raises(ScsiFault, match="lost when"):
            await disk.read(0, rig.empty(65536, offset=1), deadline=runtime.now() + SECOND)

    rig.run(main)
    assert seen == [[State.QUARANTINED]]


def test_somebody_else_resets_the_bus(rig: Rig) -> None:
    data = random.Random(6).randbytes(65536)

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        task = runtime.start(disk.write, 0, rig.buffer(data))
        await pause(runtime, 1_000_000)
        rig.chip.inject_bus_reset()
        await runtime.park(task.done)
        task.result()
        back = rig.empty(len(data))
        await disk.read(0, back)
        assert back.read() == data
        assert rig.driver.statistics()["resets"] == 1

    rig.run(main)


def test_an_illegal_command_is_trouble(rig: Rig) -> None:
    """Somebody wrote nonsense into the command register: all is reset, and what was lost is done again."""
    base, stride = CHIP_AT[rig.kind]

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        task = runtime.start(disk.read, 9, rig.empty(8192))
        await pause(runtime, 500_000)
        rig.cable.write8(base + 3 * stride, 0x7F)
        await runtime.park(task.done)
        task.result()
        assert rig.driver.statistics()["resets"] == 1

    rig.run(main)


def test_a_damaged_byte_is_sent_again(rig: Rig) -> None:
    """The chip raises ATN, the driver says INITIATOR DETECTED ERROR, the target restores its pointers."""
    rig.chip.bus.burst = 3000

    async def main() -> None:
        disk = rig.driver.disks[0]
        rig.chip.inject_parity_error()
        back = rig.empty(8192, offset=5)
        await disk.read(3, back)
        assert back.read() == rig.disks[0].read(3, 16)
        assert rig.driver.statistics()["resets"] == 0

    rig.run(main)


def test_a_damaged_byte_that_is_not_sent_again_fails(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Nexus, "_obey", lambda self, message, obey=Nexus._obey: message[0] == 0x05 or obey(self, message)
    )

    async def main() -> None:
        disk = rig.driver.disks[0]
        rig.chip.inject_parity_error()
        with pytest.raises(ScsiFault, match="parity error on the SCSI bus"):
            await disk.read(3, rig.empty(512))
        await disk.read(3, rig.empty(512))

    rig.run(main)


def test_a_message_that_nobody_asked_for_is_rejected(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target wants synchronous transfers (SCSI-2 6.6.21), in five bytes; it hears MESSAGE REJECT."""
    execute, heard = Nexus._execute, []

    def negotiate(self: Nexus, cdb: bytes) -> Generator[Step, bytes, int]:
        heard.append((yield from self._say(EXTENDED, b"\x03\x01\x19\x0f")))
        return (yield from execute(self, cdb))

    monkeypatch.setattr(Nexus, "_execute", negotiate)

    async def main() -> None:
        rejected = rig.driver.statistics()["rejected"]
        await rig.driver.disks[0].read(0, rig.empty(512))
        assert rig.driver.statistics()["rejected"] == rejected + 1

    rig.run(main)
    assert heard == [False] * len(heard) != []


def test_a_target_that_just_leaves(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    say = Nexus._say
    armed: list[bool] = []

    def silent(self: Nexus, message: int, more: bytes = b"") -> Generator[Step, bytes, bool]:
        if message == 0x00 and armed:  # COMMAND COMPLETE
            armed.pop()
            return True
        return (yield from say(self, message, more))

    monkeypatch.setattr(Nexus, "_say", silent)

    async def main() -> None:
        armed.append(True)
        with pytest.raises(ScsiFault, match="unexpected bus free") as caught:
            await rig.driver.disks[0].read(0, rig.empty(512))
        assert caught.value.host_status == BUS_FREE
        await rig.driver.disks[0].read(0, rig.empty(512))

    rig.run(main)


def test_a_target_that_comes_back_unasked_is_sent_away(rig: Rig) -> None:
    """The driver has forgotten a command that the target has not: ABORT, and nothing of it reaches memory."""

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        task = runtime.start(disk.read, 2000, rig.empty(4096), runtime.now() + 20 * SECOND)
        while not rig.driver._sequencer._away:
            await pause(runtime, 50_000)
        rig.driver._sequencer._away.clear()
        await runtime.park(task.done)
        with pytest.raises(ScsiFault):
            task.result()
        statistics = rig.driver.statistics()
        assert statistics["unknown"] == 1
        await disk.read(0, rig.empty(512))

    rig.run(main)


@pytest.mark.parametrize("board", ["sbus", "jazz"])
@pytest.mark.parametrize("direction", ["read", "write"])
def test_memory_that_the_engine_cannot_reach(board: str, direction: str) -> None:
    """The command fails, and says why; the controller is reset, and goes on."""
    rig = Rig(by_name("virtual"), board)

    async def main() -> None:
        disk = rig.driver.disks[0]
        buffer = rig.empty(4096)
        rig.route.refuse = True
        with pytest.raises(ScsiFault, match="the DMA engine could not reach memory") as caught:
            await (disk.read if direction == "read" else disk.write)(0, buffer)
        assert caught.value.host_status == MEMORY
        rig.kernel.free(buffer)
        await disk.read(0, rig.empty(512))
        assert rig.driver.statistics()["resets"] == 1

    rig.run(main)
    rig.close()


def test_a_chip_that_does_not_come_back_is_out_of_service(rig: Rig) -> None:
    async def main() -> None:
        await rig.driver.start()
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.chip.inject_silence(0)
        task = runtime.start(disk.read, 0, rig.empty(65536, offset=1), runtime.now() + SECOND)
        behind = runtime.start(disk.write, 0, rig.empty(512))
        await pause(runtime, 1_000_000)
        rig.cable.cut = True
        for doomed in (task, behind):
            await runtime.park(doomed.done)
            with pytest.raises(DeviceFault, match=r"out of service: .* the reset failed: esp0: no 53C9x answers"):
                doomed.result()
        with pytest.raises(DeviceFault, match="out of service"):
            await disk.read(0, rig.empty(512))
        assert any("quarantine" in leak for leak in rig.domain.leaks())  # it may still write there
        with pytest.raises(DeviceFault, match="no 53C9x answers"):
            await rig.driver.stop()

    rig.runtime.run(main)
    assert any("quarantine" in leak for leak in rig.domain.leaks())


def test_a_shortage_stalls_one_disk_and_not_the_other(two: Rig) -> None:
    """The zone holds 33 pages. One disk's write holds them and hangs; the other disk reads what needs none."""
    rig = two

    async def main() -> None:
        (a, b), runtime = rig.driver.disks, rig.runtime
        rig.chip.inject_silence(0)
        hold = runtime.start(a.write, 0, bytearray(b"x" * (128 << 10)))  # memory the machine does not know: all bounces
        await pause(runtime, SECOND)
        stalled = runtime.start(a.write, 1000, bytearray(128 << 10))
        behind = runtime.start(a.read, 2000, rig.empty(512))
        await pause(runtime, SECOND)
        start = runtime.now()
        await b.read(0, rig.empty(512))
        assert runtime.now() - start < SECOND
        assert stalled.done.state == behind.done.state == "pending"
        await runtime.park(stalled.done)
        await runtime.park(behind.done)
        stalled.result()
        behind.result()
        await runtime.park(hold.done)
        with pytest.raises(ScsiFault, match="aborted"):
            hold.result()

    rig.run(main)
    assert rig.disks[0].read(1000, 256) == bytes(128 << 10)


def test_stop_with_requests_in_flight(rig: Rig) -> None:
    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        rig.chip.inject_silence(0)
        tasks = [runtime.start(disk.write, 0, rig.empty(8192)) for _ in range(3)]
        await pause(runtime, SECOND)
        await rig.driver.stop()
        for task in tasks:
            await runtime.park(task.done)
            with pytest.raises(DriverError, match="was stopped"):
                task.result()

    rig.run(main)


def test_sense_that_cannot_be_had(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    target = rig.targets[0]
    execute = target.execute

    def refuse(lun: int, cdb: bytes, now: Any) -> Generator[Any, Any, int]:
        if cdb[0] in (0x03, 0x28):
            return scsi.CHECK_CONDITION
        return (yield from execute(lun, cdb, now))

    async def main() -> None:
        monkeypatch.setattr(target, "execute", refuse)
        with pytest.raises(ScsiFault, match="automatic request sense failed; CHECK CONDITION"):
            await rig.driver.disks[0].read(0, rig.empty(512))
        await rig.driver.disks[0].flush()

    rig.run(main)
