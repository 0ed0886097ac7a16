"""How the NVMe driver is interrupted: by messages, by the pin, or not at all; and what it looks for by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from busdma import machines
from busdma.drivers import msix
from busdma.drivers.block import transfer_all
from busdma.drivers.nvme.pci import attach
from busdma.drivers.nvme.reaper import MOST_IN_VAIN
from busdma.drivers.pci import PciDevice
from busdma.errors import ConfigurationError, ResourceShortage, ShortageReason
from busdma.machine.attachment import Message
from busdma.runtime import NAMES, by_name
from busdma.sim.nvme.controller import FatalStatus, NeverCompletes
from busdma.sim.x86_64 import X8664
from busdma.sync import Direction
from drivers.nvme_rig import Rig, pause

SECOND = 1_000_000_000
IN, OUT = Direction.FROM_DEVICE, Direction.TO_DEVICE
CAPABILITY = 0x40


class Few:
    """A machine with so many messages."""

    def __init__(self, rig: Rig, left: int) -> None:
        self.rig, self.left = rig, left

    def allocate(self) -> Message:
        if not self.left:
            raise ResourceShortage("no message is left", ShortageReason.TOO_LARGE)
        self.left -= 1
        assert self.rig.messages is not None
        return self.rig.messages.allocate()


def rises(rig: Rig) -> list[int]:
    assert rig.messages is not None
    return [line.statistics()["raised"] for line in rig.messages.lines.values()]


def use(rig: Rig) -> None:
    """Write and read with every disk."""
    data = random.Random(1).randbytes(24 * 512)

    async def main() -> None:
        for disk in rig.driver.disks:
            back = rig.empty(len(data), offset=77)
            await transfer_all(disk, 5, rig.buffer(data, offset=1365), OUT, runtime=rig.runtime, chunk=4096)
            await transfer_all(disk, 5, back, IN, runtime=rig.runtime, chunk=4096)
            assert back.read() == data

    rig.run(main)


@pytest.mark.parametrize("name", NAMES)
def test_a_message_for_the_admin_queue_and_each_pair(name: str) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime, namespaces=3, messages=True)
        use(rig)
        found = rises(rig)
        assert len(found) == 4
        assert all(found)
        assert rig.line.statistics()["raised"] == 0
        assert rig.driver.statistics()["interrupts"] > 0
        assert rig.driver.statistics()["stray"] == 0
        rig.close()


@pytest.mark.parametrize(("namespaces", "vectors"), [(3, 3), (1, 1), (8, 2)])
def test_all_by_one_where_there_are_few(namespaces: int, vectors: int) -> None:
    rig = Rig(by_name("virtual"), namespaces=namespaces, vectors=vectors, messages=True)
    use(rig)
    assert len(rises(rig)) == 1
    assert rig.line.statistics()["raised"] == 0
    rig.close()


@pytest.mark.parametrize(("left", "lines"), [(1, 1), (2, 2), (3, 3)])
def test_pairs_share_where_the_machine_runs_out(left: int, lines: int) -> None:
    rig = Rig(by_name("virtual"), namespaces=3, messages=True)
    rig.driver = attach(replace(rig.attachment, messages=Few(rig, left)))
    use(rig)
    assert len(rises(rig)) == lines
    assert rig.line.statistics()["raised"] == 0
    rig.close()


def test_the_pin_where_there_is_no_message_at_all() -> None:
    rig = Rig(by_name("virtual"), messages=True)
    rig.driver = attach(replace(rig.attachment, messages=Few(rig, 0)))
    use(rig)
    assert rises(rig) == []
    assert rig.line.statistics()["raised"] > 0
    rig.close()


def test_the_pin_where_the_controller_has_no_msix() -> None:
    rig = Rig(by_name("virtual"), vectors=0, messages=True)
    use(rig)
    assert rises(rig) == []
    assert rig.line.statistics()["raised"] > 0
    rig.close()


def test_no_table_behind_another_base_address_register() -> None:
    rig = Rig(by_name("virtual"), messages=True)
    device = PciDevice(rig.attachment)
    assert msix.find(device, rig.messages) is not None
    assert msix.find(device, rig.messages, bar=2) is None
    assert msix.find(device, None) is None
    rig.slot.config.define(CAPABILITY, 1, value=0x05)  # plain MSI
    assert msix.find(device, rig.messages) is None
    rig.slot.config.define(CAPABILITY + 1, 1, value=CAPABILITY)  # a list that goes round
    assert msix.find(device, rig.messages) is None
    rig.close()


def test_who_polls_takes_no_message() -> None:
    rig = Rig(by_name("virtual"), messages=True, poll=5_000)
    use(rig)
    assert rises(rig) == []
    rig.close()


def test_vectors_are_masked_when_the_driver_stops_and_used_again() -> None:
    rig = Rig(by_name("virtual"), namespaces=2, messages=True)
    for _ in range(3):
        use(rig)
        assert rig.messages is not None
        assert len(rig.messages.lines) == 3
        assert [rig.slot.config.read16(CAPABILITY + 2) & 0xC000 for _ in range(1)] == [0]
        table = rig.controller.msix
        assert table is not None
        assert all(table.read32(0x200C + 16 * vector) == 1 for vector in range(table.vectors))
    rig.close()


def test_messages_survive_a_reset_of_the_controller() -> None:
    rig = Rig(by_name("virtual"), messages=True)

    async def main() -> None:
        disk = rig.driver.disks[0]
        rig.controller.inject(NeverCompletes(ignore_abort=True))
        with pytest.raises(Exception, match="was reset"):
            await disk.write(0, rig.empty(4096), rig.runtime.now() + SECOND)
        before = rises(rig)[1]
        await disk.write(8, rig.empty(4096))
        assert rises(rig)[1] == before + 1
        rig.controller.inject(FatalStatus())
        await disk.read(8, rig.empty(4096))

    rig.run(main)
    rig.close()


@pytest.mark.parametrize("iommu", ["off", "on", "standing"])
def test_the_simulated_pc_of_today_has_messages_behind_its_iommu_too(iommu: str) -> None:
    with machines.open(f"sim:x86-64?iommu={iommu}", check=True) as machine:
        assert isinstance(machine, X8664)

        async def main() -> None:
            driver = machine.driver("nvme0")
            await driver.start()
            buffer = machine.allocate(65536, offset=9)
            buffer.write(bytes(range(256)) * 256)
            await driver.disks[0].write(3, buffer)
            back = machine.allocate(65536, offset=100)
            await driver.disks[0].read(3, back)
            assert back.read() == bytes(range(256)) * 256
            await driver.stop()

        machine.run(main)
        assert machine.checker is not None
        assert list(machine.checker.findings) == []
        assert machine.host.messages is not None
        assert [line.statistics()["raised"] > 0 for line in machine.host.messages.lines.values()] == [True, True]
        assert machine.statistics()["pci"]["nvme0"] == {"aborts": 0, "not_enabled": 0}
        if machine.iommu is not None:
            assert machine.iommu.model.faults.statistics() == {}


# -- looking by oneself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [{}, {"messages": True}, {"poll": 5_000}])
@pytest.mark.parametrize("shadow", [False, True])
def test_a_spin_that_never_sees_anything_changes_nothing(name: str, how: dict[str, int], shadow: bool) -> None:
    """Virtual time stands still meanwhile."""
    with by_name(name) as runtime:
        rig = Rig(runtime, namespaces=2, spin=1_000, shadow_doorbells=shadow, **how)  # type: ignore[arg-type]
        use(rig)
        rig.close()


@pytest.mark.parametrize("name", NAMES)
def test_who_spins_ends_what_has_completed_and_needs_no_interrupt(name: str) -> None:
    """A device that is done when the doorbell has been written, as a fast one is for somebody slow."""
    with by_name(name) as runtime:
        rig = Rig(runtime, messages=True, spin=SECOND)
        controller = rig.controller
        ring = controller._doorbell

        def now(time: int, fn: Callable[[], object]) -> None:
            fn()

        def at_once(number: int, value: int) -> None:
            after, controller.after = controller.after, now  # type: ignore[method-assign]
            try:
                ring(number, value)
            finally:
                controller.after = after  # type: ignore[method-assign]

        async def main() -> None:
            disk = rig.driver.disks[0]
            controller._doorbell = at_once  # type: ignore[method-assign]
            before = runtime.now(), rig.driver.statistics()
            for number in range(40):
                await disk.read(number, rig.empty(512))
            after = runtime.now(), rig.driver.statistics()
            controller._doorbell = ring  # type: ignore[method-assign]
            assert after[0] == before[0]
            assert after[1]["commands"] - before[1]["commands"] == 40
            assert after[1]["doorbells"] - before[1]["doorbells"] < 2 * 40  # heads are told of now and then
            tasks = [runtime.start(disk.read, 8 * number, rig.empty(4096)) for number in range(31)]
            for task in tasks:
                await runtime.park(task.done)
                task.result()

        rig.run(main)
        rig.close()


def test_a_spin_is_given_up_and_the_interrupt_ends_the_request() -> None:
    rig = Rig(by_name("virtual"), messages=True, spin=1)

    async def main() -> None:
        start = rig.runtime.now()
        await rig.driver.disks[0].read(0, rig.empty(4096))
        assert rig.runtime.now() - start >= 80_000

    rig.run(main)
    rig.close()


def test_a_context_that_is_cancelled_while_it_spins_leaves_its_request_to_the_driver() -> None:
    rig = Rig(by_name("virtual"), messages=True, spin=1)

    async def main() -> None:
        disk, runtime, buffer = rig.driver.disks[0], rig.runtime, rig.empty(4096)
        task = runtime.start(disk.write, 0, buffer)
        await pause(runtime, 1)
        task.cancel()
        await runtime.park(task.done)
        await pause(runtime, SECOND)
        assert rig.driver.statistics()["free_slots"] == 31
        await disk.read(0, buffer)

    rig.run(main)
    rig.close()


@pytest.mark.parametrize(("poll", "spin"), [(-1, 0), (0, -1)])
def test_times_that_cannot_be(poll: int, spin: int) -> None:
    with pytest.raises(ConfigurationError, match="give times of 0 ns or more"):
        Rig(by_name("virtual"), poll=poll, spin=spin)


@pytest.mark.parametrize("name", NAMES)
def test_a_pin_that_stays_up_is_masked_and_polled_instead(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime)
        data = random.Random(4).randbytes(4096)

        async def main() -> None:
            driver = rig.driver
            with monkeypatch.context() as stuck:
                stuck.setattr(rig.line, "deassert", lambda: None)
                rig.line.assert_()  # noqa: PT009
                for lba in range(0, 80, 8):
                    await driver.disks[0].write(lba, rig.buffer(data))
            assert MOST_IN_VAIN < driver.statistics()["interrupts"] < MOST_IN_VAIN + 100
            assert rig.slot.registers(0).read32(0x0C) == 0xFFFFFFFF
            rig.line.deassert()
            await driver.disks[0].read(72, back := rig.empty(4096))
            assert back.read() == data
            await driver.stop()
            await driver.start()  # with the pin again
            seen = driver.statistics()["interrupts"]
            assert rig.slot.registers(0).read32(0x0C) == 0
            await driver.disks[0].read(64, back)
            assert driver.statistics()["interrupts"] > seen
            assert driver.statistics()["aborts"] == 0

        rig.run(main)
        rig.close()
