"""The transmit side: buffers become frames of one descriptor a segment, in the order in which they were given.

A sender has the turn while it loads and waits for descriptors, so nobody passes it; once its frame is in the ring the
next one may go on. A buffer in more pieces than the tag's nsegments is joined by the load.

Nobody waits for bounce pages, which the driver's own receive ring may hold for ever: one map has pages reserved, and
who finds the pools short waits for that one.

Source: AMD Am79C970A data sheet (publication 19436), "Buffer Management", "Transmit Descriptors".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from busdma.drivers.pcnet.ring import ENP, ERR, STP, TRANSMIT_ERRORS, DescriptorRing, in_words
from busdma.drivers.queues import Channel
from busdma.errors import DeviceFault, DriverError, ResourceShortage
from busdma.lifecycle import State
from busdma.sync import POSTWRITE, PREWRITE, Direction
from busdma.tag import Tag
from busdma.waiting import Runtime, Timer, Waiter

if TYPE_CHECKING:
    from busdma.map import Map

HEADER: Final = 14  #: bytes: the addresses of destination and source, and the type
DEPTH: Final = 16  #: buffers that can be loaded at the same time


class Sending:
    """One frame in the ring: `count` descriptors from `first` on. `done` is woken with None, or with an error."""

    __slots__ = ("count", "done", "first", "length", "map", "timer")

    def __init__(self, name: str, first: int, count: int, length: int, map: Map | None) -> None:
        self.first, self.count, self.length, self.map = first, count, length, map
        self.done = Waiter(f"a frame that {name} sends")
        self.timer: Timer | None = None


class Transmitter:
    """`tag`: what a frame may look like; `lock`: the driver's; `timeout`, in ns, of a frame in the ring.

    `demand` tells the controller that there is a frame; `expired` is called when one has taken too long.
    """

    def __init__(
        self,
        name: str,
        tag: Tag,
        ring: DescriptorRing,
        runtime: Runtime,
        lock: AbstractContextManager[object],
        *,
        timeout: int,
        demand: Callable[[], object],
        expired: Callable[[], object],
    ) -> None:
        self.refusal: Exception | None = None  #: why nothing is sent any more
        self.counts = dict.fromkeys(("sent", "bytes_out", "send_errors"), 0)
        self._name, self._ring, self._runtime, self._lock = name, ring, runtime, lock
        self._timeout, self._demand, self._expired = timeout, demand, expired
        self._turn: Channel[None] = Channel(f"a turn to send through {name}", (None,))
        self._all = [tag.create_map(name="last resort", reserve=True)]
        self._all += [tag.create_map(name=f"frame {number}") for number in range(DEPTH)]
        self._last_resort: Channel[Map] = Channel(f"the last map of {name}", self._all[:1])
        self._maps: Channel[Map] = Channel(f"a map of {name}", self._all[1:])
        self._next = 0  # descriptor to fill, counted without end
        self._flying: deque[Sending] = deque()
        self._room: Waiter | None = None

    @property
    def in_flight(self) -> int:
        """Frames in the ring."""
        return len(self._flying)

    async def send(self, buffer: object, deadline: int | None = None) -> None:
        """Send `buffer` as one frame; return when the controller has let go of it. Errors: as `Pcnet.send`."""
        await self._turn.take(self._runtime, deadline)
        try:
            self._check()
            map = await self._load(buffer, deadline)
            try:
                pieces = list(map.segments)
                if sum(length for _, length in pieces) < HEADER:
                    raise DriverError(f"{self._name}: a frame begins with a header of {HEADER} bytes; prepend it")
                sending = await self._enter(pieces, map, deadline)
            except BaseException:
                map.unload()
                self._give_back(map)
                raise
        finally:
            self._turn.put(None)
        await self.finished(sending)

    async def begin(self, pieces: Sequence[tuple[int, int]], deadline: int | None = None) -> Sending:
        """Put a frame of memory that the caller has loaded and synced into the ring: (bus address, length) each."""
        await self._turn.take(self._runtime, deadline)
        try:
            return await self._enter(pieces, None, deadline)
        finally:
            self._turn.put(None)

    async def finished(self, sending: Sending) -> None:
        """Wait until the controller has let go of the frame. DeviceFault if it was not sent."""
        try:
            outcome = await self._runtime.park(sending.done)
        except BaseException:
            with self._lock:
                if sending in self._flying and sending.map is not None:
                    sending.map.quarantine()  # until the controller has let go
            raise
        if isinstance(outcome, Exception):
            raise outcome

    async def _load(self, buffer: object, deadline: int | None) -> Map:
        """A map with the buffer in it; the one that is never short where the pools are."""
        map = await self._maps.take(self._runtime, deadline)
        try:
            map.load_nowait(buffer, Direction.TO_DEVICE)
        except ResourceShortage:
            self._maps.put(map)
        except BaseException:
            self._maps.put(map)
            raise
        else:
            return map
        map = await self._last_resort.take(self._runtime, deadline)
        try:
            map.load_nowait(buffer, Direction.TO_DEVICE)
        except BaseException:
            self._last_resort.put(map)
            raise
        return map

    def _give_back(self, map: Map) -> None:
        (self._last_resort if map is self._all[0] else self._maps).put(map)

    async def _enter(self, pieces: Sequence[tuple[int, int]], map: Map | None, deadline: int | None) -> Sending:
        """Wait for descriptors, and fill them."""
        while True:
            with self._lock:
                self._check()
                if len(pieces) <= self._ring.size - sum(sending.count for sending in self._flying):
                    return self._fill(pieces, map)
                self._room = waiter = Waiter(f"descriptors of {self._name}")
            await self._runtime.park(waiter, deadline)

    def _fill(self, pieces: Sequence[tuple[int, int]], map: Map | None) -> Sending:
        if map is not None:
            map.sync(PREWRITE)
        count = len(pieces)
        sending = Sending(self._name, self._next, count, sum(length for _, length in pieces), map)
        self._next += count
        self._flying.append(sending)
        for number in reversed(range(count)):  # the first is given last, or the controller could overtake the driver
            flags = (STP if number == 0 else 0) | (ENP if number == count - 1 else 0)
            self._ring.put(sending.first + number, *pieces[number], flags)
        sending.timer = self._runtime.call_at(self._runtime.now() + self._timeout, lambda: self._late(sending))
        self._demand()
        return sending

    def _late(self, sending: Sending) -> None:
        with self._lock:
            late = sending in self._flying
        if late:
            self._expired()

    def reap(self) -> None:
        """End what the controller has finished with. Under the lock."""
        while self._flying:
            sending = self._flying[0]
            found = [self._ring.look(sending.first + number) for number in reversed(range(sending.count))]
            bad = next((status for status in found if status is not None and status.word & ERR), None)
            if bad is None and found[0] is None:
                return
            self._flying.popleft()
            error = None
            if bad is not None:
                error = DeviceFault(f"{self._name} could not send a frame: {in_words(bad.detail, TRANSMIT_ERRORS)}")
            self._end(sending, error)

    def _end(self, sending: Sending, error: Exception | None) -> None:
        if sending.timer is not None:
            sending.timer.cancel()
        if error is None:
            self.counts["sent"] += 1
            self.counts["bytes_out"] += sending.length
        else:
            self.counts["send_errors"] += 1
        map = sending.map
        if map is not None:
            if map.state is State.LOADED:
                map.sync(POSTWRITE)
                map.unload()
            else:
                map.report_idle()
            self._give_back(map)
        sending.done.wake(error)
        self._wake()

    def _wake(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.wake()

    def quarantine(self) -> None:
        """Nobody knows what the controller does with the frames in the ring. Under the lock."""
        for sending in self._flying:
            if sending.map is not None:
                sending.map.quarantine()

    def empty(self, error: Exception) -> None:
        """The controller was reset, and its user reported idle: every frame in the ring fails. Under the lock."""
        self._next = 0
        while self._flying:
            self._end(self._flying.popleft(), error)

    async def drain(self) -> None:
        """After `refusal` was set and the ring emptied: wait until nobody is inside."""
        with self._lock:
            self._wake()
        await self._turn.take(self._runtime)
        self._turn.put(None)

    def close(self) -> None:
        """Give the maps back. Nobody is inside."""
        for map in self._all:
            map.destroy()

    def _check(self) -> None:
        if self.refusal is not None:
            raise self.refusal
