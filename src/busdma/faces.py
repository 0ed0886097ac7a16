"""One engine, four faces of a load: now or never, awaited, blocking, and by callback.

The engine (`busdma.loading`, `busdma.pool`) never waits. Each face tries; on a shortage it joins the same queue, so all
keep one order. A wait that is cancelled or expires after the grant was decided gives the grant back.

Source: FreeBSD bus_dmamap_load(9) (callback, EINPROGRESS); bus_dma(9) (WAITOK, NOWAIT); Thorpe, tech-kern 12 June 1998.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Final

from busdma.errors import MappingRefused, ResourceShortage, WaitCancelled
from busdma.loading import shortage_error
from busdma.mechanisms import Shortage
from busdma.pool import Requisition
from busdma.result import Segments
from busdma.sync import Direction
from busdma.tracebacks import hidden
from busdma.waiting import Runtime

__tracebackhide__ = hidden

Callback = Callable[[Segments | None, Exception | None], object]


class Progress(Enum):
    """What `load_callback` returns."""

    DONE = "done"  #: the callback has run
    IN_PROGRESS = "in progress"  #: the load waits; the callback runs later, in the runtime's context


class LoadFaces(ABC):
    """The loading half of a map."""

    __slots__ = ()

    segments: Segments
    _runtime: Runtime

    async def load(
        self, buffer: object, direction: Direction = Direction.BOTH, *, deadline: int | None = None
    ) -> Segments:
        """Load `buffer`, waiting for bounce pages as long as it takes: the face of a driver that may always block.

        `deadline`: an absolute time of the runtime's clock, in ns, such as ``machine.runtime.now() + 5_000_000``.
        Raises DeadlineExpired (nothing is held then), and what can never be loaded as MappingRefused, BufferTooLong,
        TooManySegments, BufferGone or MapStateError, at once.
        """
        shortage = self._try(buffer, direction)
        if shortage is not None:
            requisition = self._defer(shortage, direction)
            try:
                await self._runtime.park(requisition.waiter, deadline)
                self._granted(requisition, shortage)
            except BaseException as error:
                self._give_up(requisition, error)
                raise
        return self.segments

    def load_nowait(self, buffer: object, direction: Direction = Direction.BOTH) -> Segments:
        """Load now, or raise ResourceShortage, whose ``reason`` says whether waiting would help."""
        shortage = self._try(buffer, direction)
        if shortage is not None:
            raise self._refuse(shortage)
        return self.segments

    def load_blocking(
        self, buffer: object, direction: Direction = Direction.BOTH, *, deadline: int | None = None
    ) -> Segments:
        """As `load`, for a plain thread. BlockingInsideLoop if it has to wait on a thread that runs drivers."""
        shortage = self._try(buffer, direction)
        if shortage is not None:
            requisition = self._defer(shortage, direction)
            try:
                self._runtime.block(requisition.waiter, deadline)
                self._granted(requisition, shortage)
            except BaseException as error:
                self._give_up(requisition, error)
                raise
        return self.segments

    def load_callback(
        self,
        buffer: object,
        callback: Callback,
        direction: Direction = Direction.BOTH,
        *,
        deadline: int | None = None,
    ) -> Progress:
        """Load, and call ``callback(segments, None)``, or ``callback(None, error)`` if it cannot be loaded.

        DONE: it has been called. IN_PROGRESS: it will be, where drivers run (in virtual time: during ``machine.run`` or
        another wait), once the load is granted, refused, cancelled (`cancel_load`) or past its `deadline`. The segments
        stay valid until unload, as with every face. Misuse (a loaded map) raises here and calls nothing.
        """
        try:
            shortage = self._try(buffer, direction)
        except (MappingRefused, ResourceShortage) as error:
            callback(None, error)
            return Progress.DONE
        if shortage is None:
            callback(self.segments, None)
            return Progress.DONE
        self._later(shortage, direction, callback, deadline)
        return Progress.IN_PROGRESS

    def _later(self, shortage: Shortage, direction: Direction, callback: Callback, deadline: int | None) -> None:
        runtime = self._runtime
        requisition = self._defer(shortage, direction)
        waiter: Final = requisition.waiter
        timer = None if deadline is None else runtime.call_at(deadline, waiter.expire)

        def complete() -> None:
            if timer is not None:
                timer.cancel()
            try:
                self._granted(requisition, shortage)
            except (Exception, WaitCancelled) as error:
                told = error if isinstance(error, Exception) else ResourceShortage(str(error))
                self._give_up(requisition, told)
                callback(None, told)
                return
            except BaseException as error:  # Ctrl-C is nobody's shortage
                self._give_up(requisition, error)
                raise
            callback(self.segments, None)

        if not waiter.arm(lambda: runtime.post(complete)):
            runtime.post(complete)

    @abstractmethod
    def _try(self, buffer: object, direction: Direction) -> Shortage | None:
        """Load without waiting: None, or what is short."""

    @abstractmethod
    def _defer(self, shortage: Shortage, direction: Direction) -> Requisition:
        """Queue for what is short."""

    @abstractmethod
    def _granted(self, requisition: Requisition, shortage: Shortage) -> None:
        """The wait has ended: finish the load with what was granted, or raise why nothing was."""

    @abstractmethod
    def _give_up(self, requisition: Requisition, error: BaseException) -> None:
        """The wait ended without a load, by `error`; nothing stays held."""

    def _refuse(self, shortage: Shortage) -> ResourceShortage:
        return shortage_error(shortage, str(self))
