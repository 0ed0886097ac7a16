"""A map: one transfer at a time between a buffer and a device, and the segments that the device is given.

Its life is the table of `busdma.lifecycle`. A load that finds all pages in reach allocates nothing and takes no lock;
sync of such a map is a check and the machine's barrier, unload a change of state.

Source: bus_dma(9); founding rules: sync is always required, unload never syncs, sub-range sync works everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from busdma.buffers import Buffer, LinearBuffer
from busdma.errors import (
    BufferGone,
    BufferTooLong,
    BusdmaError,
    DriverError,
    MapStateError,
    ResourceShortage,
    SyncError,
)
from busdma.faces import LoadFaces
from busdma.lifecycle import LIFE, SYNCS, SYNCS_BY_DIRECTION, Event, State, after
from busdma.lists import ElementList, Taken, as_loadable
from busdma.loading import place
from busdma.mechanisms import Chain, Holder, Shortage
from busdma.mechanisms.direct import Direct
from busdma.owned import OwnedRange
from busdma.pool import Requisition
from busdma.result import Segments
from busdma.segments import UNREACHABLE, Segmenter
from busdma.sync import Direction, SyncOp
from busdma.tracebacks import hidden

if TYPE_CHECKING:
    from busdma.tag import Tag

__tracebackhide__ = hidden

_LOADABLE: Final = frozenset(LIFE[Event.LOAD])
_UNLOADABLE: Final = frozenset(LIFE[Event.UNLOAD])
_LOADED: Final = State.LOADED
_IDLE: Final = State.IDLE


class Map(LoadFaces):
    """Create with `Tag.create_map`. One context uses it at a time; different maps are independent.

    ``load*``, ``sync`` (PREREAD, PREWRITE), tell the device, ``sync`` (POSTREAD, POSTWRITE), ``unload``, and again.

    ``segments`` is the same object for the map's whole life and shows what is loaded now.
    """

    __slots__ = (
        "_barrier",
        "_bytes",
        "_chain",
        "_deferred",
        "_effects",
        "_holder",
        "_home",
        "_hooks",
        "_length",
        "_loads",
        "_maxsize",
        "_reads",
        "_recall",
        "_requisition",
        "_runtime",
        "_segmenter",
        "_segments",
        "_syncs",
        "_writes",
        "buffer",
        "direct",
        "direction",
        "name",
        "segments",
        "state",
        "tag",
    )

    def __init__(self, tag: Tag, name: str, segmenter: Segmenter, direct: Direct | None, chain: Chain) -> None:
        self.tag = tag
        self.name = name
        self.state = _IDLE
        self.buffer: Buffer | None = None  #: what is loaded, or is to be: from then on its pages stay
        self.direction = Direction.BOTH
        self.segments = Segments(segmenter)
        self._segmenter = segmenter
        self.direct = direct
        self._chain = chain
        self._recall = chain.recall
        self._holder: Holder | None = None  # who holds resources for this load
        self._requisition: Requisition | None = None
        domain = tag.domain
        self._runtime = domain.runtime
        self._hooks = domain.instruments
        self._barrier = domain.barrier
        self._home = domain.frames
        self._maxsize = tag.constraints.maxsize.value
        self._length = 0
        self._effects = SYNCS
        self._reads = OwnedRange()  # what the device may own after PREREAD, until POSTREAD
        self._writes = OwnedRange()  # after PREWRITE, until POSTWRITE
        self._loads = self._bytes = self._segments = self._syncs = self._deferred = 0

    # -- the engine under the faces of a load -------------------------------------------------------------------------

    def _try(self, source: Any, direction: Direction) -> Shortage | None:
        if self.state not in _LOADABLE:
            self._next(Event.LOAD)
        try:
            effects = SYNCS_BY_DIRECTION[direction.number]
        except AttributeError:
            raise self._no_direction(direction) from None
        try:
            try:
                frames = source.frames
                length = source.length
                readonly = source.readonly
                buffer: Buffer = source
                self.buffer = buffer  # before its page table is read: the pager asks `DmaDomain.in_use`
                if self._recall is not None and type(source) is LinearBuffer and self._recalled(source, direction):
                    answer = 1
                else:
                    answer = self._segmenter.load(frames, source.start, length)
            except AttributeError:
                self.buffer = buffer = self._as_buffer(source)
                frames, length, readonly = buffer.frames, buffer.length, buffer.readonly
                answer = self._segmenter.load(frames, buffer.start, length)
            if frames.home is not self._home and frames.home is not None:
                self._check_home(buffer)
            if answer < 1 or length > self._maxsize or readonly:
                if answer != UNREACHABLE or length > self._maxsize or readonly or buffer.host is not None:
                    self._check(buffer, direction)  # mapped pages of the machine are neither empty nor gone
                if answer < 1:
                    outcome = place(self._segmenter, buffer, self._chain, answer, direction, self)
                    if isinstance(outcome, Shortage):
                        return outcome
                    self._holder = outcome
                    answer = self._segmenter.count
        except BaseException as error:
            self._blame(error, self.buffer)
            self.buffer = None
            raise
        self.direction = direction
        self.state = _LOADED
        self._length = length
        self._effects = effects
        self._loads += 1
        self._bytes += length
        self._segments += answer
        if self._hooks:
            for hook in self._hooks:
                hook.loaded(self)
        return None

    def _recalled(self, buffer: LinearBuffer, direction: Direction) -> bool:
        """It is placed as it was before; nothing about it can be wrong."""
        recall = self._recall
        if recall is None or buffer.readonly or not 0 < buffer.length <= self._maxsize:
            return False
        if buffer.frames.home is not self._home:
            return False
        self._holder = recall(self._segmenter, buffer, direction)
        return self._holder is not None

    def _check_home(self, buffer: Buffer) -> None:
        try:
            self.tag.domain.check_home(buffer)
        except DriverError as error:
            self._segmenter.count = 0
            self._blame(error, buffer)
            raise

    def _check(self, buffer: Buffer, direction: Direction) -> None:
        """Everything about a buffer that is not a matter of where it lies."""
        limit = self.tag.constraints.maxsize
        kind: type[DriverError] = DriverError
        if buffer.length > limit.value:
            kind = BufferTooLong
            why = f": longer than maxsize {limit.value}, set by tag {limit.origin!r}; split the transfer"
        elif buffer.length < 1:
            why = ": it is empty; there is nothing to transfer"
        elif gone := getattr(buffer, "gone", ""):
            kind = BufferGone
            why = f": {gone}; allocate another"
        elif buffer.readonly and direction is not Direction.TO_DEVICE:
            why = f" {direction.label}: it is read-only; load it with Direction.TO_DEVICE, or give a writable buffer"
        else:
            return
        self._segmenter.count = 0  # it may lie well
        raise kind(f"cannot load {buffer.describe()} into {self.describe()}{why}")

    def _refuse(self, shortage: Shortage) -> ResourceShortage:
        self.tag._refused(shortage.needs)
        error = super()._refuse(shortage)
        self._blame(error, self.buffer)
        self.buffer = None
        return error

    def _defer(self, shortage: Shortage, direction: Direction) -> Requisition:
        self.state = self._next(Event.DEFER)
        self.direction = direction
        self._deferred += 1
        shortage.lender.deferred()
        self._requisition = requisition = self.tag.domain.queue.join(shortage.needs, self.describe())
        try:
            for hook in self._hooks:
                hook.deferred(self)
        except BaseException as error:
            self._give_up(requisition, error)
            raise
        return requisition

    def _granted(self, requisition: Requisition, shortage: Shortage) -> None:
        with self.tag.domain.queue.lock:  # who abandons the map meanwhile finds it waiting, or loaded
            requisition.outcome()
            assert self.buffer is not None
            self._holder = shortage.lender.finish(self._segmenter, self.buffer, requisition.needs)
            self._requisition = None
            self.state = self._next(Event.GRANT)
        self._length = self.buffer.length
        self._effects = SYNCS_BY_DIRECTION[self.direction.number]
        self._loads += 1
        self._bytes += self._length
        self._segments += self._segmenter.count
        if self._hooks:
            for hook in self._hooks:
                hook.loaded(self)

    def _give_up(self, requisition: Requisition, error: BaseException) -> None:
        self._blame(error, self.buffer)
        if self._requisition is None:
            return  # it was loaded, and then an instrument raised
        requisition.withdraw()
        self._requisition = None
        self.buffer = None
        self.state = self._next(Event.GIVE_UP)

    def cancel_load(self) -> bool:
        """Cancel the load that waits on this map; its face raises WaitCancelled. False: none waits any more."""
        requisition = self._requisition
        return requisition is not None and requisition.waiter.cancel()

    # -- between load and unload --------------------------------------------------------------------------------------

    def sync(self, op: SyncOp, offset: int = 0, length: int | None = None) -> None:
        """Make CPU and device agree on bytes [offset, offset + length) of the buffer; all of it without a range.

        `op`: one of PREREAD, PREWRITE, POSTREAD, POSTWRITE, or PRE with PRE, POST with POST. Always required, on
        coherent machines too. Where DMA does not see the caches, lines are cleaned and invalidated whole: what the CPU
        stores meanwhile beside the range, in a line that the device is given, may be lost. Raises SyncError for a mix,
        a direction that was not loaded or a range outside the buffer, MapStateError when nothing is loaded.
        """
        if self.state is not _LOADED:  # the one state of its row in the table
            self._next(Event.SYNC)
        size = self._length
        if length is None:
            length = size - offset
        end = offset + length
        effect = self._effects.get(op)
        if effect is None or offset < 0 or length < 1 or end > size:
            raise self._bad_sync(op, offset, length)
        if self._hooks:
            for hook in self._hooks:
                hook.syncing(self, op, offset, length)
        holder = self._holder
        if effect.to_device:
            if holder is not None:
                holder.copy_out(self._segmenter, offset, length)
            if effect.reads and (offset < self._reads.lo or end > self._reads.hi):
                self._reads.add(offset, end)
            if effect.writes and (offset < self._writes.lo or end > self._writes.hi):
                self._writes.add(offset, end)
        else:
            if holder is not None:
                if effect.copy_in:
                    holder.copy_in(self._segmenter, offset, length)
                else:
                    holder.done(self._segmenter, offset, length)
            if effect.reads and (offset <= self._reads.lo or end >= self._reads.hi):
                self._reads.remove(offset, end)
            if effect.writes and (offset <= self._writes.lo or end >= self._writes.hi):
                self._writes.remove(offset, end)
        self._syncs += 1
        if self._barrier is not None:
            self._barrier()
        if self._hooks:
            for hook in self._hooks:
                hook.synced(self, op, offset, length)

    def unload(self) -> None:
        """Give back what the load took. Never waits, and never syncs. The segments are invalid from here on."""
        if self.state not in _UNLOADABLE:
            self._next(Event.UNLOAD)
        if self._hooks:
            for hook in self._hooks:
                hook.unloading(self)
        self._segmenter.count = 0
        try:
            if self._holder is not None:
                holder, self._holder = self._holder, None
                holder.release(self._segmenter)
        finally:  # and not before: its pages stay until no translation leads to them
            self.state = _IDLE
            self.buffer = None
            if self._reads.hi:
                self._reads.clear()
            if self._writes.hi:
                self._writes.clear()

    @property
    def segmenter(self) -> Segmenter:
        """The map's numbers, for mechanisms."""
        return self._segmenter

    @property
    def holder(self) -> Holder | None:
        """Who holds resources for what is loaded, for instruments; None: it lies where it was."""
        return self._holder

    @property
    def device_may_own(self) -> tuple[int, int] | None:
        """The smallest known range [lo, hi) outside which the device owns no byte; None: it owns none."""
        owned = [each for each in (self._reads, self._writes) if each.hi]
        return (min(each.lo for each in owned), max(each.hi for each in owned)) if owned else None

    # -- leaving otherwise --------------------------------------------------------------------------------------------

    def quarantine(self) -> None:
        """Nobody may reuse this map and its pages until the device is reported idle: its fate is unknown."""
        if self.state is State.QUARANTINED:
            return
        self.state = self._next(Event.QUARANTINE)
        self._segmenter.count = 0
        if self._holder is not None:
            self._holder.quarantine(self._segmenter, True)
        if self._hooks:
            for hook in self._hooks:
                hook.quarantined(self)

    def abandon(self) -> None:
        """The owner leaves: cancel a waiting load; unload, or quarantine where the device may own bytes.

        A load that was granted, and whose context has not run since, is cancelled too; its pages go back at once.
        """
        if self.state is State.WAITING:
            with self.tag.domain.queue.lock:
                if self._requisition is not None:
                    self._requisition.withdraw()
                    return
        if self.state is State.LOADED:
            if self.device_may_own is None:
                self.unload()
            else:
                self.quarantine()

    def report_idle(self) -> None:
        """The device was reset, or has finished: it owns no byte of this map. Ends a quarantine."""
        quarantined = self.state is State.QUARANTINED
        following = self._next(Event.REPORT_IDLE)
        if self.state is not _IDLE:
            for hook in self._hooks:
                hook.idled(self)
        try:
            if quarantined and self._holder is not None:
                holder, self._holder = self._holder, None
                holder.quarantine(self._segmenter, False)
                holder.release(self._segmenter)
        finally:
            self.state = following
            self._reads.clear()
            self._writes.clear()
            if quarantined:
                self.buffer = None

    def destroy(self) -> None:
        """Give the map back to its tag. MapStateError unless it is idle; a second time is an error too."""
        self.state = self._next(Event.DESTROY)
        self.tag._forget(self, self._chain)

    # -- for people ---------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """For example ``map 'disk0' of tag pc/isa/aha0``."""
        return f"map {self.name!r} of tag {self.tag.path}"

    def statistics(self) -> dict[str, Any]:
        """Counters since the map was created."""
        return {
            "loads": self._loads,
            "bytes": self._bytes,
            "segments": self._segments,
            "syncs": self._syncs,
            "deferred": self._deferred,
        }

    def _next(self, event: Event) -> State:
        """The state after `event`, or MapStateError."""
        try:
            return after(event, self.state, self.describe(), self.tag.path, self.name)
        except MapStateError as error:
            for hook in self._hooks:
                hook.refused(self, error)
            raise

    def _as_buffer(self, source: object) -> Buffer:
        try:
            buffer = as_loadable(source, self.tag.domain.page_size)
            return Taken(buffer) if isinstance(buffer, ElementList) and not isinstance(buffer, Taken) else buffer
        except BusdmaError as error:
            self._blame(error)
            raise

    def _blame(self, error: BaseException, buffer: Buffer | None = None) -> None:
        """Add to `error` what it is about."""
        if isinstance(error, BusdmaError):
            error.about(tag=self.tag.path, map=self.name)
            if buffer is not None:
                address = buffer.address if isinstance(buffer, LinearBuffer) else None
                error.about(address=address, length=buffer.length, owner=getattr(buffer, "owner", None))

    def _no_direction(self, direction: object) -> DriverError:
        return DriverError(
            f"cannot load {self.describe()} in direction {direction!r}: give Direction.TO_DEVICE, FROM_DEVICE or BOTH"
        ).about(tag=self.tag.path, map=self.name)

    def _bad_sync(self, op: SyncOp, offset: int, length: int) -> SyncError:
        error = self._sync_words(op, offset, length).about(tag=self.tag.path, map=self.name, length=length)
        for hook in self._hooks:
            hook.refused(self, error)
        return error

    def _sync_words(self, op: SyncOp, offset: int, length: int) -> SyncError:
        if op in SYNCS and op not in self._effects:
            return SyncError(
                f"sync of {self.describe()} with {op!r}: it was loaded {self.direction.label}; load it the other way, "
                "or both ways, if the device is to do that"
            )
        if op in SYNCS:
            return SyncError(
                f"sync of {length} bytes at offset {offset} of {self.describe()}: "
                f"{self._length} bytes are loaded; give a range inside them, of at least one byte"
            )
        return SyncError(
            f"sync of {self.describe()} with {op!r}: give PREREAD, PREWRITE, POSTREAD or POSTWRITE, PRE only with PRE "
            "and POST only with POST"
        )

    def __str__(self) -> str:
        return self.describe()

    def __repr__(self) -> str:
        return f"<{self.describe()}, {self.state.name.lower()}>"
