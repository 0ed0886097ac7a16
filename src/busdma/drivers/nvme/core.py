"""The NVMe driver, independent of machine and bus: a pair of queues a namespace, many commands in flight.

Contexts, retries and resets are those of `busdma.drivers.host`; how the controller is told and looked at is in
`busdma.drivers.nvme.reaper`. What is its own: requests go express, and a command that is aborted completes all the
same.

Source: NVM Express Base Specification 1.4: 4.3 (PRPs), 5.15 (Identify), 7.6 (initialization), 9.1 (recovery).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from busdma.drivers.host import TIMEOUT, HostExpress
from busdma.drivers.nvme import layout, prp
from busdma.drivers.nvme.controller import ADMIN_TIME, SECOND, Controller, NvmeFault
from busdma.drivers.nvme.disk import NvmeDisk
from busdma.drivers.nvme.layout import PAGE
from busdma.drivers.nvme.queue import control_tag
from busdma.drivers.nvme.reaper import Reaper, Vectors
from busdma.drivers.nvme.slot import Slot, Unit
from busdma.drivers.queues import Request, RequestQueue
from busdma.errors import ConfigurationError, DeadlineExpired, DeviceFault, ResourceShortage
from busdma.machine.attachment import Attachment, MmioRegisters
from busdma.sync import POSTWRITE, PREWRITE
from busdma.waiting import Waiter

if TYPE_CHECKING:
    from busdma.memory import DmaMemory
    from busdma.tag import Tag

RETRY: Final = SECOND // 100
MOST_ATTEMPTS: Final = 5
MOST_PAIRS: Final = 64


class Nvme(Reaper):
    """One controller. ``start``, then use ``disks``.

    `maxio`: bytes in one command; `depth`: commands of one namespace in flight. `poll`, `spin`, `vectors`: as `Reaper`.
    `enable`, of the front end: may (the CPU reach the registers, the controller reach memory)?
    """

    def __init__(
        self,
        attachment: Attachment,
        tag: Tag,
        registers: MmioRegisters,
        *,
        enable: Callable[[bool, bool], object],
        maxio: int,
        depth: int = 31,
        timeout: int = TIMEOUT,
        poll: int = 0,
        spin: int = 0,
        vectors: Vectors | None = None,
    ) -> None:
        super().__init__(
            attachment, tag, registers, maxio=maxio, timeout=timeout, poll=poll, spin=spin, vectors=vectors
        )
        if depth < 1 or maxio < PAGE:
            raise ConfigurationError(f"{self.name}: 1 command or more, of {PAGE} bytes or more, not {depth} of {maxio}")
        self.disks: list[NvmeDisk] = []
        self._enable, self._depth = enable, depth
        self._lists: list[DmaMemory] = []
        self._parent, self._largest = attachment.tag, maxio
        self._control: Tag

    # -- start and stop -----------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        self._enable(True, False)  # what somebody else left under way does not reach memory
        self._take_interrupts()
        self._control = control_tag(self._parent)
        try:
            self._controller = Controller(
                self.name, self._control, self._registers, self._runtime, self._lock, self._look
            )
        except BaseException:
            self._control.destroy()
            raise

    async def _find(self) -> None:
        await self._controller.stop()
        self._enable(True, True)
        granted = await self._controller.enable(MOST_PAIRS)
        identity = await self._controller.identify(layout.CONTROLLER)
        if layout.offers_shadow_doorbells(identity):
            await self._controller.offer_shadow()
        largest, count = layout.parse_controller(identity)
        self._largest = min(self._maxio, self.tag.constraints.maxsize.value, largest or self._maxio)
        self._open = True
        found = await self._namespaces(count)
        for nsid in found:
            await self._add(nsid, min(granted, len(found)), -(-len(found) // granted))

    async def _quiesce(self) -> None:
        await self._controller.shut_down()
        await self._controller.stop()

    def _deallocate(self) -> None:
        with self._lock:
            self._freeze()
        self._leave_interrupts()
        self._enable(True, False)
        self._control.report_idle()
        for lists in self._lists:
            lists.free()
        for pair in self._pairs:
            pair.free()
        self._controller.free()
        self._control.destroy()
        for things in (self._by_id, self._lists, self._pairs, self.disks):
            things.clear()

    def statistics(self) -> dict[str, Any]:
        """Counters since the driver was made; by disk what waits and what is in flight; doorbell writes since start."""
        free = sum(len(unit.free) for unit in self._units)
        doorbells = sum(pair.doorbells for pair in self._pairs)
        return {**super().statistics(), "doorbells": doorbells, "free_slots": free}

    async def _namespaces(self, count: int) -> list[int]:
        """The active ones' identifiers; a controller older than the list has 1 to `count` (5.15.2.3)."""
        try:
            data = await self._controller.identify(layout.ACTIVE_NAMESPACES)
        except NvmeFault:
            return list(range(1, count + 1))
        return [nsid for (nsid,) in struct.iter_unpack("<I", data) if nsid]

    async def _add(self, nsid: int, pairs: int, sharers: int) -> None:
        """Have a disk for the namespace: with a pair of queues of its own, or one that `sharers` have together."""
        name = f"{self.name}n{nsid}"
        blocks, block_size, metadata = layout.parse_namespace(await self._controller.identify(layout.NAMESPACE, nsid))
        if metadata or block_size > self._largest:
            self.silent[name] = DeviceFault(f"{name}: blocks of {block_size} bytes, {metadata} of metadata beside each")
            return
        depth = max(1, min(self._depth, (self._controller.most_entries - 1) // sharers))
        number = len(self._units) % pairs
        if number == len(self._pairs):
            pair = self._controller.pair(number + 1, depth * sharers + 1)
            self._pairs.append(pair)
            self._interrupt_by_its_own(pair, pairs)
            await self._controller.create(pair, not self._poll)
        unit = Unit(nsid, RequestQueue(name, self._runtime), self._pairs[number])
        unit.queue.express = HostExpress(self, unit)
        size = prp.list_size(self._largest // PAGE + 1)
        lists = self._control.alloc(depth * size)
        lists.sync(PREWRITE)  # the controller's, but for what is being written
        self._lists.append(lists)
        first = sum(pair == unit.pair.id for pair, _ in self._by_id)
        for i in range(depth):
            places = list(range(lists.address + i * size, lists.address + (i + 1) * size, PAGE))
            slot = Slot(unit, first + i, self.tag.create_map(), lists, i * size, places)
            self._slots.append(slot)
            self._by_id[unit.pair.id, slot.id] = slot
            unit.free.put(slot)
        self._admit(unit)
        self._context(partial(self._serve, unit), name)
        self.disks.append(NvmeDisk(unit.queue, blocks=blocks, block_size=block_size, maxio=self._largest))

    # -- serve --------------------------------------------------------------------------------------------------------

    async def _load(self, slot: Slot, request: Request) -> None:
        """What is written already is told of before a wait."""
        try:
            self._load_now(slot, request)
        except ResourceShortage:
            self._tell(slot.unit)
            await super()._load(slot, request)

    def _arrange(self, slot: Slot, request: Request) -> None:
        """PRPs, and their lists."""
        slot.loaded = request.direction
        single = slot.map.segments.single()
        if single is not None and single[0] % PAGE + single[1] <= PAGE:  # most are one page, or part of one
            slot.prps = single[0], 0
            return
        prp1, prp2, lists = prp.arrange(prp.pages(slot.map.segments), slot.places)
        for number, entries in enumerate(lists):
            at, size = slot.offset + number * PAGE, prp.ENTRY * len(entries)
            slot.lists.sync(POSTWRITE, at, size)
            struct.pack_into(f"<{len(entries)}Q", slot.lists.view, at, *entries)
            slot.lists.sync(PREWRITE, at, size)
        slot.prps = prp1, prp2

    def _begin(self, slot: Slot) -> None:
        """Write the command. The controller is told at the next ``_tell``."""
        assert slot.request is not None
        opcode, words = layout.parse_request(slot.request.cdb)
        slot.unit.pair.put(opcode, slot.id, slot.unit.nsid, *slot.prps, words)

    # -- the end of a command -----------------------------------------------------------------------------------------

    def _conclude(self, slot: Slot) -> None:
        assert slot.request is not None
        request, queue, status = slot.request, slot.unit.queue, slot.status & ~layout.DO_NOT_RETRY
        result: bytes | NvmeFault = b""
        if status:
            name = f"{queue.name}: {layout.name_request(request.cdb)}"
            transient = slot.status == status != layout.ABORTED  # without DO_NOT_RETRY (4.6.1)
            request.attempts += 1
            if transient and request.attempts < MOST_ATTEMPTS and self._rest(slot, RETRY):
                return
            if slot.abort is not None and status == layout.ABORTED:
                result = NvmeFault(f"{name} was aborted: no answer in time", status)
            else:
                result = NvmeFault(f"{name} failed: {layout.name_status(status)}", status)
        self._settle(slot, request, result)

    # -- recover: abort, then reset -----------------------------------------------------------------------------------

    async def _recover(self) -> None:
        while True:
            trouble = await self._trouble.take(self._runtime)
            assert not isinstance(trouble, str)
            slot, request = trouble
            self._reap_all()  # was it only the interrupt that got lost?
            with self._lock:
                if slot.request is not request:
                    continue  # it ended meanwhile
                slot.abort = ended = Waiter(f"the end of an aborted command of {slot.unit.queue.name}")
                told, resting = slot.told, slot.resting
            if not (told or resting):
                continue  # its end is just being looked at, and it is not tried again
            why = "" if resting else await self._abort(slot, ended)
            if not why or slot not in await self._reset(why):
                self._conclude(slot)

    async def _abort(self, slot: Slot, ended: Waiter) -> str:
        """Have the controller end the command; why it does not, or ""."""
        self._tell(slot.unit)
        if self._controller.fatal:
            return "it reports a fatal status"
        self._counts["aborts"] += 1
        try:
            await self._controller.abort(slot.unit.pair, slot.id)
            await self._runtime.park(ended, self._runtime.now() + ADMIN_TIME)  # aborted or not, it has to complete
        except (NvmeFault, DeadlineExpired):
            return "it did not end an aborted command"
        return ""

    def _freeze(self) -> None:
        for pair in self._pairs:
            pair.live = False

    async def _revive(self) -> None:
        granted = await self._controller.enable(MOST_PAIRS)
        if granted < len(self._pairs):
            raise DeviceFault(f"{self.name} has only {granted} pairs of queues now")
        for pair in self._pairs:
            await self._controller.create(pair, not self._poll)

    def _lost(self, slot: Slot, why: str) -> DeviceFault:
        assert slot.request is not None
        name = f"{slot.unit.queue.name}: {layout.name_request(slot.request.cdb)}"
        return NvmeFault(f"{name} was lost when {self.name} was reset: {why}")
