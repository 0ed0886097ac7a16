"""The controller as a whole: its reset, its admin commands, its end.

Source: NVM Express Base Specification 1.4: 7.6 (initialization, shutdown), 7.3.2 (reset), 5 (admin commands).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Final

from busdma.drivers.nvme import layout
from busdma.drivers.nvme.layout import PAGE, Completion
from busdma.drivers.nvme.queue import QueuePair
from busdma.drivers.nvme.shadow import ShadowDoorbells
from busdma.errors import DeadlineExpired, DeviceFault
from busdma.machine.attachment import MmioRegisters
from busdma.sync import POSTREAD, PREREAD
from busdma.tag import Tag
from busdma.waiting import Runtime, Waiter

SECOND: Final = 1_000_000_000  # ns
ADMIN_TIME: Final = 2 * SECOND  #: of an admin command, an abort among them
SHUTDOWN_TIME: Final = 2 * SECOND
POLL: Final = 1_000_000  #: between two looks at CSTS
ADMIN_ENTRIES: Final = 16


class NvmeFault(DeviceFault):
    """A command that failed. ``status``: type and code of its completion; None if there was none."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Controller:
    """Registers and admin queue of one controller. `tag`: for memory that begins at a page; `lock`: the driver's."""

    def __init__(
        self,
        name: str,
        tag: Tag,
        registers: MmioRegisters,
        runtime: Runtime,
        lock: AbstractContextManager[object],
        told: Callable[[], object],
    ) -> None:
        """`told` is called when an admin command is under way. DeviceFault for what is no such controller."""
        self.name = name
        self._tag, self._registers, self._runtime, self._lock, self._told = tag, registers, runtime, lock, told
        cap = registers.read32(layout.CAP) | registers.read32(layout.CAP + 4) << 32
        if cap >> 48 & 0xF or not cap >> 37 & 1 or cap == layout.GONE << 32 | layout.GONE:
            raise DeviceFault(
                f"{name}: no controller with the NVM command set and pages of {PAGE} bytes (CAP {cap:#x})"
            )
        self._patience = max(cap >> 24 & 0xFF, 1) * SECOND // 2  # CAP.TO
        self._stride = 4 << (cap >> 32 & 0xF)
        self.most_entries = (cap & 0xFFFF) + 1
        self._data = tag.alloc(PAGE)
        try:
            self.queues = self.pair(0, ADMIN_ENTRIES)
        except BaseException:
            self._data.free()
            raise
        self.shadow: ShadowDoorbells | None = None  #: the controller has them, and is told of them when enabled
        self._asked: dict[int, Waiter] = {}  # admin commands under way, by identifier
        self._last = 0
        self._over: Exception | None = None

    def pair(self, id: int, entries: int) -> QueuePair:
        """A pair of queues of its own, which it does not know yet."""
        return QueuePair(id, self._tag, entries, self._registers, self._stride, self.shadow if id else None)

    def free(self) -> None:
        """Give the memory back."""
        self.queues.free()
        self._data.free()
        if self.shadow is not None:
            self.shadow.free()

    @property
    def fatal(self) -> bool:
        """It has failed for good, or is gone: only a reset helps, if that does (9.5)."""
        status = self._registers.read32(layout.CSTS)
        return status == layout.GONE or bool(status & layout.FATAL)

    async def stop(self) -> None:
        """A controller reset: it forgets everything, and touches memory no more. DeviceFault if it does not answer."""
        with self._lock:
            self.queues.live = False
        self._registers.write32(layout.CC, 0)
        await self._status(layout.READY, 0, self._patience, "is not disabled")

    async def shut_down(self) -> None:
        """Have it end what it does, and write out what it keeps; as long as that takes, up to a time."""
        if self._registers.read32(layout.CSTS) & layout.READY:
            self._registers.write32(layout.CC, layout.ENABLE | layout.SHUT_DOWN)
            with suppress(DeviceFault):  # the reset that follows ends it anyway
                await self._status(layout.SHUTDOWN_STATUS, layout.SHUT, SHUTDOWN_TIME, "does not shut down")

    async def enable(self, pairs: int) -> int:
        """Reset it, enable it, ask for so many pairs of I/O queues; how many there are. DeviceFault if it will not."""
        await self.stop()
        queues = self.queues
        queues.clear()
        write = self._registers.write32
        write(layout.AQA, (queues.entries - 1) * 0x10001)
        for register, memory in ((layout.ASQ, queues.commands), (layout.ACQ, queues.completions)):
            write(register, memory.address & 0xFFFFFFFF)
            write(register + 4, memory.address >> 32)
        self._registers.barrier()
        queues.live = True
        write(layout.CC, layout.ENABLE)
        await self._status(layout.READY | layout.FATAL, layout.READY, self._patience, "does not get ready")
        if self.shadow is not None:
            await self._share_doorbells(self.shadow)
        words = layout.QUEUES_FEATURE, (pairs - 1) * 0x10001
        granted = await self.admin("the request for queues", layout.SET_FEATURES, words=words)
        return min(pairs, (granted & 0xFFFF) + 1, (granted >> 16) + 1)

    async def offer_shadow(self) -> None:
        """Have doorbells in memory from now on, for queues that are made from now on (5.7)."""
        shadow = ShadowDoorbells(self._tag, self._stride)
        try:
            await self._share_doorbells(shadow)
        except NvmeFault:
            shadow.take_back()  # it has changed its mind: registers always work
            shadow.free()
        except BaseException:
            self.shadow = shadow  # it may have been told
            raise
        else:
            self.shadow = shadow

    async def _share_doorbells(self, shadow: ShadowDoorbells) -> None:
        shadow.clear()
        what, shadows, events = "the configuration of shadow doorbells", shadow.shadows.address, shadow.events.address
        await self.admin(what, layout.DOORBELL_BUFFERS, prp1=shadows, prp2=events)

    async def create(self, pair: QueuePair, interrupts: bool) -> None:
        """Tell it of a pair of I/O queues (5.3, 5.4)."""
        pair.clear()
        size = (pair.entries - 1) << 16 | pair.id
        flags = layout.CONTIGUOUS | (layout.INTERRUPTS | pair.vector << 16 if interrupts else 0)
        what, address = f"the creation of queue {pair.id}", pair.completions.address
        await self.admin(what, layout.CREATE_CQ, prp1=address, words=(size, flags))
        words = size, pair.id << 16 | layout.CONTIGUOUS
        await self.admin(what, layout.CREATE_SQ, prp1=pair.commands.address, words=words)
        pair.live = True

    async def identify(self, what: int, nsid: int = 0) -> bytes:
        """The 4096 bytes of an Identify (5.15)."""
        self._data.sync(PREREAD)
        await self.admin("Identify", layout.IDENTIFY, nsid, self._data.address, (what,))
        self._data.sync(POSTREAD)
        return bytes(self._data.view)

    async def abort(self, pair: QueuePair, id: int) -> None:
        """Ask it to end command `id` of `pair` (5.1), which then completes, unless it had."""
        await self.admin("Abort", layout.ABORT, words=(id << 16 | pair.id,))

    async def admin(
        self, what: str, opcode: int, nsid: int = 0, prp1: int = 0, words: Sequence[int] = (), prp2: int = 0
    ) -> int:
        """Run an admin command; dword 0 of its completion. NvmeFault for a bad end, or for none in time.

        After `give_up` its error.
        """
        done = Waiter(f"{self.name}: {what}")
        with self._lock:
            if self._over is not None:
                raise self._over
            self._last = id = (self._last + 1) & 0xFFFF
            self._asked[id] = done
            self.queues.put(opcode, id, nsid, prp1, prp2, words)
            self.queues.ring()
        self._told()
        try:
            completion: Completion | None = await self._runtime.park(done, self._runtime.now() + ADMIN_TIME)
        except DeadlineExpired:
            raise NvmeFault(f"{self.name}: no answer to {what}") from None
        finally:
            with self._lock:
                self._asked.pop(id, None)
        if completion is None:
            assert self._over is not None
            raise self._over
        if completion.status:
            status = completion.status & ~layout.DO_NOT_RETRY
            raise NvmeFault(f"{self.name}: {what} failed: {layout.name_status(status)}", status)
        return completion.result

    @property
    def asked(self) -> bool:
        """An admin command is under way."""
        return bool(self._asked)

    def answered(self, completion: Completion) -> bool:
        """An admin command has completed. False: nobody waits for it."""
        waiter = self._asked.get(completion.id)
        return waiter is not None and waiter.wake(completion)

    def give_up(self, error: Exception) -> None:
        """Nobody looks for completions any more: admin commands end with `error`."""
        with self._lock:
            self._over, asked = error, list(self._asked.values())
        for waiter in asked:
            waiter.wake(None)

    async def _status(self, mask: int, wanted: int, limit: int, what: str) -> None:
        """Wait until CSTS & mask == wanted. DeviceFault after `limit` ns."""
        end = self._runtime.now() + limit
        while (status := self._registers.read32(layout.CSTS)) & mask != wanted or status == layout.GONE:
            fatal = status & layout.FATAL and wanted & layout.READY
            if fatal or status == layout.GONE or self._runtime.now() >= end:
                raise DeviceFault(f"{self.name} {what}: its status stays {status:#x}")
            pause = Waiter(f"{self.name}: CSTS")
            self._runtime.call_at(self._runtime.now() + POLL, pause.wake)
            await self._runtime.park(pause)
