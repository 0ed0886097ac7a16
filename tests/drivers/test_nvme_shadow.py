"""Shadow doorbells: what is told in memory, what at the register, and that nothing is ever missed."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from busdma.drivers.nvme import shadow
from busdma.drivers.nvme.controller import Controller, NvmeFault
from busdma.drivers.nvme.layout import FLUSH
from busdma.drivers.nvme.queue import QueuePair, control_tag
from busdma.drivers.nvme.shadow import ShadowDoorbells, passes
from busdma.errors import ResourceShortage
from busdma.runtime import NAMES, by_name
from busdma.sim.nvme.admin import DOORBELL_BUFFERS
from busdma.sim.nvme.controller import FailsWith, FatalStatus, NeverCompletes
from busdma.sim.nvme.queue import Status
from drivers.nvme_rig import Rig, pause

SECOND = 1_000_000_000


@given(st.integers(2, 1 << 16), st.data())
def test_a_value_passes_an_index_that_lies_on_its_way_round_the_ring(entries: int, data: st.DataObject) -> None:
    places = st.integers(0, entries - 1)
    event, old, new = data.draw(places), data.draw(places), data.draw(places)
    way = (new - old) % entries
    assert passes(event, old, new) == ((event - old) % entries < way)


def doorbells(rig: Rig) -> int:
    count: int = rig.driver.statistics()["doorbells"]
    return count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [{}, {"messages": True}, {"poll": 3_000}, {"messages": True, "vectors": 1}])
def test_data_there_and_back(name: str, how: dict[str, int]) -> None:
    with by_name(name) as runtime:
        rig = Rig(runtime, namespaces=2, depth=5, shadow_doorbells=True, **how)  # type: ignore[arg-type]

        async def main() -> None:
            for disk in rig.driver.disks:
                tasks = [
                    runtime.start(disk.write, 8 * n, rig.buffer(bytes([n + 1]) * 4096, offset=n % 3)) for n in range(40)
                ]
                for task in tasks:
                    await runtime.park(task.done)
                    task.result()
                back = rig.empty(40 * 4096 // 2)
                await disk.read(0, back)
                assert back.read() == b"".join(bytes([n + 1]) * 4096 for n in range(20))

        rig.run(main)
        statistics = rig.driver.statistics()
        assert (statistics["aborts"], statistics["resets"], statistics["stray"]) == (0, 0, 0)
        rig.close()


def test_registers_are_written_less_than_without() -> None:
    counts = {}
    for offered in (False, True):
        rig = Rig(by_name("virtual"), messages=True, shadow_doorbells=offered)

        async def main(rig: Rig = rig) -> int:
            runtime, disk, left = rig.runtime, rig.driver.disks[0], list(range(200))

            async def work() -> None:
                buffer = rig.empty(512)
                while left:
                    await disk.read(left.pop(), buffer)

            before = doorbells(rig)
            tasks = [runtime.start(work) for _ in range(8)]
            for task in tasks:
                await runtime.park(task.done)
                task.result()
            return doorbells(rig) - before

        counts[offered] = rig.run(main)
        rig.close()
    assert counts[True] < counts[False] / 1.5


def test_a_controller_that_looks_by_itself_is_not_rung_for() -> None:
    """While it fetches, and until it has looked once more, what is written behind needs no register."""
    rig = Rig(by_name("virtual"), messages=True, shadow_doorbells=True)

    async def main() -> None:
        runtime, disk = rig.runtime, rig.driver.disks[0]
        before = doorbells(rig)
        first = runtime.start(disk.read, 0, rig.empty(512))
        await pause(runtime, 500)  # rung for, and not fetched: it knows of one, and expects no other yet
        second = runtime.start(disk.read, 8, rig.empty(512))
        await pause(runtime, 1)
        assert doorbells(rig) - before == 1
        for task in (first, second):
            await runtime.park(task.done)
            task.result()

    rig.run(main)
    rig.close()


def test_without_the_register_an_idle_controller_sleeps_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what the state machine below looks for can happen."""
    rig = Rig(by_name("virtual"), messages=True, shadow_doorbells=True)

    async def main() -> None:
        disk, runtime = rig.driver.disks[0], rig.runtime
        await disk.read(0, rig.empty(512))
        await pause(runtime, SECOND)
        monkeypatch.setattr(shadow, "passes", lambda event, old, new: False)
        task = runtime.start(disk.read, 0, rig.empty(512))
        await pause(runtime, SECOND)
        assert task.done.state == "pending"
        monkeypatch.undo()
        await disk.read(8, rig.empty(512))  # in vain too, and so there is a reset
        await runtime.park(task.done)
        with pytest.raises(NvmeFault, match="was reset"):
            task.result()

    rig.run(main)
    rig.close()


def test_a_controller_that_refuses_them_after_all_is_served_by_registers() -> None:
    rig = Rig(by_name("virtual"), shadow_doorbells=True)
    execute = rig.controller._admin.execute

    def refuse(command: object) -> None:
        if command.opcode == DOORBELL_BUFFERS:  # type: ignore[attr-defined]
            rig.controller.complete(command, Status.INVALID_OPCODE)  # type: ignore[arg-type]
        else:
            execute(command)  # type: ignore[arg-type]

    rig.controller._admin.execute = refuse  # type: ignore[method-assign]

    async def main() -> None:
        assert rig.driver._controller.shadow is None
        await rig.driver.disks[0].read(0, rig.empty(512))

    rig.run(main)
    rig.close()


def test_they_are_told_of_again_after_a_reset() -> None:
    rig = Rig(by_name("virtual"), namespaces=2, shadow_doorbells=True)

    async def main() -> None:
        hung, other = rig.driver.disks
        for _ in range(2):
            for _ in range(5):
                await hung.read(0, rig.empty(512))
            rig.controller.inject(NeverCompletes(ignore_abort=True))
            with pytest.raises(Exception, match="was reset"):
                await hung.read(0, rig.empty(512), rig.runtime.now() + SECOND)
            await hung.read(0, rig.empty(512))
            await other.read(0, rig.empty(512))
            rig.controller.inject(FatalStatus())
            rig.controller.inject(FailsWith(Status.NAMESPACE_NOT_READY))
            await hung.read(0, rig.empty(512))

    rig.run(main)
    assert rig.controller.counts["ignored"] == 0
    rig.close()


def test_start_and_stop_again_and_again() -> None:
    rig = Rig(by_name("virtual"), shadow_doorbells=True)

    async def main() -> None:
        await rig.driver.disks[0].read(0, rig.empty(512))

    for _ in range(3):
        rig.run(main)
    rig.close()


@pytest.mark.parametrize("pages", [3, 4, 5, 6])
def test_a_machine_without_memory_for_them(pages: int) -> None:
    rig = Rig(by_name("virtual"), shadow_doorbells=True)
    held = rig.frames.allocate(rig.frames.statistics()["free"] - pages, "hog")
    with pytest.raises(ResourceShortage):
        rig.runtime.run(rig.driver.start)
    assert rig.domain.leaks() == []
    assert rig.frames.statistics()["by_owner"].get("dma-safe", 0) == 0
    rig.frames.free(held)
    rig.close()


@pytest.mark.parametrize(("stride", "most"), [(4, 1024), (8, 512), (1 << 12, 1), (1 << 14, 0)])
def test_a_page_has_room_for_so_many(stride: int, most: int) -> None:
    rig = Rig(by_name("virtual"))
    tag = control_tag(rig.domain.root("other"))
    doorbells = ShadowDoorbells(tag, stride)
    assert [number for number in range(1100) if doorbells.covers(number)] == list(range(most))
    doorbells.free()
    tag.destroy()
    rig.close()


class TwoSides(RuleBasedStateMachine):
    """The driver's pair of queues against the controller, whose every step takes as long as it likes."""

    @initialize(seed=st.integers(0, 1 << 32), entries=st.integers(3, 9), slow=st.sampled_from([1, 2_000, 100_000]))
    def begin(self, seed: int, entries: int, slow: int) -> None:
        self.rig = rig = Rig(by_name("virtual"), shadow_doorbells=True)
        chance, after = random.Random(seed), rig.controller.after
        rig.registers_on()
        self.under_way: set[int] = set()
        self.number = 0
        self.lock = threading.RLock()
        self.control = control_tag(rig.attachment.tag)

        async def answers() -> None:
            while self.setting_up:
                await pause(rig.runtime, 1_000)
                while (completion := self.controller.queues.take()) is not None:
                    self.controller.answered(completion)
                self.controller.queues.ring_head()

        async def main() -> None:
            self.controller = Controller(
                "nvme0",
                self.control,
                rig.slot.registers(0),
                rig.runtime,
                self.lock,
                lambda: None,
            )
            self.setting_up = True
            task = rig.runtime.start(answers)
            await self.controller.enable(1)
            await self.controller.offer_shadow()
            self.pair: QueuePair = self.controller.pair(1, entries)
            await self.controller.create(self.pair, False)
            self.setting_up = False
            await rig.runtime.park(task.done)

        rig.runtime.run(main)
        rig.controller.after = lambda time, fn: after(chance.randrange(slow), fn)  # type: ignore[method-assign]

    @precondition(lambda self: len(self.under_way) < self.pair.entries - 1)
    @rule(count=st.integers(1, 3))
    def put(self, count: int) -> None:
        for _ in range(min(count, self.pair.entries - 1 - len(self.under_way))):
            self.number += 1
            self.pair.put(FLUSH, self.number, 1, 0, 0, ())
            self.under_way.add(self.number)

    @rule(idle=st.booleans())
    def ring(self, idle: bool) -> None:
        self.pair.ring(idle=idle)

    @rule(lazily=st.booleans())
    def take(self, lazily: bool) -> None:
        while (completion := self.pair.take()) is not None:
            assert completion.status == 0
            self.under_way.remove(completion.id)
        self.pair.ring_head(lazily=lazily)

    @rule(time=st.sampled_from([1, 300, 5_000, 200_000]))
    def wait(self, time: int) -> None:
        self.rig.runtime.run(pause, self.rig.runtime, time)

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        self.pair.ring()
        for _ in range(4):  # a full completion queue takes more than one look
            self.wait(SECOND)
            self.take(lazily=False)
        assert not self.under_way
        assert self.pair.under_way == 0
        assert self.rig.controller.counts["ignored"] == 0
        assert list(self.rig.checker.findings) == []
        self.rig.close()


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
