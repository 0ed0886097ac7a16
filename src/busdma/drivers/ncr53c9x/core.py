"""The 53C9x driver, independent of the bus: commands for `sequencer` from what `busdma.drivers.scsi_host` decides.

The chip knows no queues, no lists of segments and no sense data. So commands wait here for the bus, each segment is a
transfer of its own, and a CHECK CONDITION is followed by a REQUEST SENSE before its unit gets anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from busdma.buffers import HostBuffer, LinearBuffer
from busdma.drivers import scsi
from busdma.drivers.host import TIMEOUT
from busdma.drivers.ncr53c9x.chip import Chip
from busdma.drivers.ncr53c9x.engine import DmaEngine
from busdma.drivers.ncr53c9x.nexus import Nexus, Pointers
from busdma.drivers.ncr53c9x.sequencer import HOST_STATUS, NO_DEVICE, SENSE_FAILED, Sequencer
from busdma.drivers.scsi_host import ScsiHost
from busdma.errors import ConfigurationError
from busdma.lists import as_loadable
from busdma.machine.attachment import Attachment
from busdma.sync import POSTREAD, PREREAD, Direction
from busdma.waiting import Waiter

if TYPE_CHECKING:
    from busdma.memory import DmaMemory
    from busdma.tag import Tag

SLOTS: Final = 16
TARGETS: Final = 8

# the control memory of a slot: short answers, and sense data
REPLY_MOST: Final = 224
SENSE_AT: Final = REPLY_MOST
SENSE_LENGTH: Final = 18
SLOT: Final = 256

SETTLE: Final = 300_000_000  #: ns from a bus reset to the next selection: SCSI-2 5.1.14 says 250 ms, and RST lasts
POLL: Final = 1_000  #: ns from one look to the next whether a DMA engine is empty
MOST_POLLS: Final = 10_000
REQUEST_SENSE: Final = bytes((0x03, 0, 0, 0, SENSE_LENGTH, 0))  #: SCSI-2 8.2.14


class Ncr53c9x(ScsiHost[Nexus]):
    """One chip. `slots`: commands that wait, run or have disconnected. `maxio`: bytes in one of them."""

    HOST_STATUS: ClassVar = HOST_STATUS
    ABSENT: ClassVar = frozenset({NO_DEVICE})

    def __init__(
        self,
        attachment: Attachment,
        tag: Tag,
        chip: Chip,
        engine: DmaEngine,
        *,
        maxio: int,
        slots: int = SLOTS,
        timeout: int = TIMEOUT,
    ) -> None:
        super().__init__(attachment, tag, maxio=maxio, timeout=timeout)
        if slots < 1:
            raise ConfigurationError(f"{self.name}: one slot or more, not {slots}")
        self._chip, self._engine, self._many = chip, engine, slots
        self._sequencer = Sequencer(chip, engine, self)
        self._control: DmaMemory

    def statistics(self) -> dict[str, Any]:
        """As `ScsiHost.statistics`, with what happened on the SCSI bus."""
        return {**super().statistics(), **self._sequencer.counts}

    # -- up and down --------------------------------------------------------------------------------------------------

    def _make_slots(self) -> list[Nexus]:
        size = SLOT * self._many
        control = self.tag.derive(name="control", nsegments=1, maxsize=size, maxsegsz=size)
        try:
            self._control = control.alloc(size)
        except BaseException:
            control.destroy()
            raise
        return [Nexus(self.tag.create_map(), at, self._control.address + at) for at in range(0, size, SLOT)]

    def _free_memory(self) -> None:
        self._control.free()
        self._control.tag.destroy()

    async def _bring_up(self, hard: bool) -> None:
        """Reset engine, chip and bus, which is all there is; `hard` or not."""
        await self._reset_all()
        with self._lock:
            self._sequencer.listen()

    async def _quiesce(self) -> None:
        try:
            await self._reset_all()
        finally:
            self._engine.close()

    async def _reset_all(self) -> None:
        with self._lock:
            self._sequencer.clear()
            self._engine.reset()
            self._chip.reset()
            self._chip.reset_bus()
        await self._pause(SETTLE)

    async def _installed(self) -> list[tuple[int, int]]:
        return [(target, 0) for target in range(TARGETS) if target != self._chip.own]

    async def _pause(self, time: int) -> None:
        waiter = Waiter(self.name)
        self._runtime.call_at(self._runtime.now() + time, waiter.wake)
        await self._runtime.park(waiter)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _begin(self, slot: Nexus) -> None:
        request = slot.request
        assert request is not None
        self._control.sync(PREREAD, slot.offset, SLOT)
        if slot.loaded is not None:
            slot.prepare(request.cdb, slot.map.segments, request.direction is Direction.FROM_DEVICE)
        else:
            area = [(slot.address, min(request.reply, REPLY_MOST))] if request.reply else []
            slot.prepare(request.cdb, area, True)
        slot.first, slot.flaw, slot.doomed = None, 0, False
        self._sequencer.submit(slot)

    def _begin_abort(self, slot: Nexus) -> None:
        if not self._cut_off():  # or that is what it waits for
            self._sequencer.abort(slot)

    def ended(self, nexus: Nexus, host: int, aborted: bool) -> None:
        """As `busdma.drivers.ncr53c9x.sequencer.Client.ended`."""
        if aborted:
            self._over(nexus, None)
            return
        if nexus.first is None:
            if host == 0 and nexus.status == scsi.CHECK_CONDITION and not nexus.doomed:
                nexus.first = nexus.pointers
                nexus.prepare(REQUEST_SENSE, [(nexus.address + SENSE_AT, SENSE_LENGTH)], True)
                self._sequencer.submit(nexus, first=True)  # before anything else clears what it asks for
                return
            self._over(nexus, self._outcome(nexus, nexus.pointers, host, nexus.status or scsi.GOOD, 0))
            return
        sensed = 0 if host or nexus.status != scsi.GOOD else SENSE_LENGTH - nexus.pointers.residual
        self._over(
            nexus, self._outcome(nexus, nexus.first, 0 if sensed else SENSE_FAILED, scsi.CHECK_CONDITION, sensed)
        )

    def _outcome(self, nexus: Nexus, pointers: Pointers, host: int, status: int, sensed: int) -> scsi.Outcome:
        self._control.sync(POSTREAD, nexus.offset, SLOT)
        area = self._control.view[nexus.offset : nexus.offset + SLOT]
        nexus.pointers = pointers
        if nexus.loaded is None:
            for at, data in pointers.strays:
                area[at : at + len(data)] = data
        sense = bytes(area[SENSE_AT : SENSE_AT + sensed])
        return scsi.Outcome(host, status, pointers.residual, sense, bytes(area[:REPLY_MOST]))

    def _landed(self, slot: Nexus) -> None:
        request = slot.request
        assert request is not None
        buffer = as_loadable(request.buffer)
        if isinstance(buffer, LinearBuffer | HostBuffer):
            for at, data in slot.pointers.strays:
                buffer.write(data, at)

    def trouble(self, why: str) -> None:
        """As `busdma.drivers.ncr53c9x.sequencer.Client.trouble`."""
        self._trouble.put(why)

    # -- interrupts ---------------------------------------------------------------------------------------------------

    async def _complete(self) -> None:
        while True:
            await self._attachment.interrupt.wait()
            with self._lock:
                self._counts["interrupts"] += 1
                if not self._open:  # a reset is under way, which settles everything
                    self._chip.acknowledge()
                    continue
                if self._cut_off():
                    continue
                if not self._chip.interrupting:
                    self._counts["stray"] += 1
                    continue
            if not await self._emptied():
                with self._lock:
                    self._sequencer.fail("its DMA engine does not write what it has")
                continue
            with self._lock:
                if self._open:
                    self._sequencer.handle()

    def _cut_off(self) -> bool:
        """True if the engine could not reach memory. Not every one asks for an interrupt then. Under the lock."""
        fault = self._engine.fault()
        if fault:
            self._engine.reset()  # whoever does ask goes on asking until then
            self._sequencer.cut_off(f"its DMA engine reports {fault}")
        return bool(fault)

    async def _emptied(self) -> bool:
        for _ in range(MOST_POLLS):
            with self._lock:
                if not self._open or self._sequencer.emptied():
                    return True
            await self._pause(POLL)
        return False
