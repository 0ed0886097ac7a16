"""The receive side: places for frames are given to the controller in order, and come back as frames.

`Receiver` keeps the ring. `Supply` is what usually stands behind it: clusters of an mbuf pool, loaded into maps, and
handed up as chains. A frame takes its mbufs away from the ring only if all of them can be replaced. Otherwise it is
copied, or where there is no mbuf to copy it into, dropped; its places are used again, and the ring never runs dry.

Source: AMD Am79C970A data sheet (publication 19436), "Buffer Management", "Receive Descriptors"; mbuf(9).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from busdma.drivers.pcnet.ring import ENP, ERR, RECEIVE_ERRORS, DescriptorRing, in_words
from busdma.drivers.queues import Channel
from busdma.errors import ResourceShortage
from busdma.lifecycle import State
from busdma.mbuf import MCLBYTES, MLEN, Mbuf, MbufChain, MbufPool
from busdma.sync import Direction
from busdma.tag import Tag
from busdma.waiting import Runtime

if TYPE_CHECKING:
    from busdma.map import Map

FCS: Final = 4  #: bytes of the check sequence, at the end of what is received
MOST_WAITING: Final = 64  #: packets that wait to be taken; more are dropped


@dataclass(frozen=True, slots=True)
class Place:
    """Memory for the whole or a part of a frame, loaded for the controller to write: where it is on the bus."""

    address: int
    length: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame, or what the controller has made of it: `length` bytes in `places`, without the check sequence."""

    places: Sequence[Place]
    length: int
    error: str  #: "" if there was none


class Consumer(Protocol):
    """Who stands behind the ring. The driver's lock is held."""

    def arrived(self, arrival: Arrival) -> None:
        """A frame has come. Its places are the consumer's again."""

    def reset(self, places: Sequence[Place], error: Exception, *, again: bool) -> None:
        """The controller was reset because of `error`, and reported idle: the `places` it had are the consumer's.

        `again`: it will go on, and places can be posted.
        """


class Receiver:
    """The receive ring. The caller holds the driver's lock."""

    def __init__(self, ring: DescriptorRing) -> None:
        self._ring = ring
        self._next = 0  # descriptor to fill, counted without end
        self._posted: deque[Place] = deque()

    @property
    def room(self) -> int:
        """Places that can be posted."""
        return self._ring.size - len(self._posted)

    def post(self, place: Place) -> None:
        """Give `place` to the controller; there must be room."""
        self._posted.append(place)
        self._ring.put(self._next, place.address, place.length, 0)
        self._next += 1

    def take(self) -> Arrival | None:
        """The next frame that the controller has finished, with all its places."""
        first = self._next - len(self._posted)
        for number in range(len(self._posted)):
            status = self._ring.look(first + number)
            if status is None:
                return None
            if status.word & (ENP | ERR):
                places = [self._posted.popleft() for _ in range(number + 1)]
                error = in_words(status.word, RECEIVE_ERRORS) if status.word & ERR else ""
                return Arrival(places, (status.detail & 0xFFF) - FCS if status.word & ENP else 0, error)
        return None

    def empty(self) -> list[Place]:
        """The controller was reset: all places that it had, in order."""
        places = list(self._posted)
        self._posted.clear()
        self._next = 0
        return places


@dataclass(frozen=True, slots=True)
class MbufPlace(Place):
    """An mbuf in a map."""

    mbuf: Mbuf
    map: Map


class Supply:
    """Mbufs of `pool` for the ring, `buffers` of them, and the packets that wait to be taken.

    `small`: the 224 bytes of small mbufs, where otherwise each is a cluster. `lock`: the driver's, which the caller
    holds except where something is awaited.
    """

    def __init__(
        self,
        receiver: Receiver,
        pool: MbufPool,
        tag: Tag,
        lock: AbstractContextManager[object],
        *,
        buffers: int,
        small: bool,
    ) -> None:
        self.counts = dict.fromkeys(("received", "bytes_in", "receive_errors", "copied", "dropped"), 0)
        self.packets: Channel[MbufChain | None] = Channel("a packet")  #: None: there will be no more
        self._receiver, self._pool, self._tag, self._lock = receiver, pool, tag, lock
        self._buffers, self._small = buffers, small
        self._idle: list[Map] = []
        self._left: list[MbufPlace] = []  # that the controller had when it was reset for good
        self._loading: Map | None = None
        self._closed: Exception | None = None

    async def fill(self, deadline: int | None) -> None:
        """Fill the ring as far as that goes at once; wait for the first place if need be."""
        try:
            first = self._fresh()
        except ResourceShortage:
            first = await self._wait_for(deadline)
        with self._lock:
            if self._closed is not None:
                self._release(first).free()
                raise self._closed
            self._receiver.post(first)
            with suppress(ResourceShortage):
                for _ in range(1, self._buffers):
                    self._receiver.post(self._fresh())

    def arrived(self, arrival: Arrival) -> None:
        """As `Consumer.arrived`: hand the frame up and replace its places, or use them again."""
        places = [place for place in arrival.places if isinstance(place, MbufPlace)]
        if arrival.error:
            self.counts["receive_errors"] += 1
            self._drop(places)
        elif len(self.packets) >= MOST_WAITING:
            self.counts["dropped"] += 1
            self._drop(places)
        elif fresh := self._replacements(len(places)):
            self._hand_up(self._chain(places, arrival.length), arrival.length)
            for place in fresh:
                self._receiver.post(place)
        else:
            self._copy(places, arrival.length)

    def _replacements(self, count: int) -> list[MbufPlace]:
        """So many fresh places; none if there are not all of them."""
        fresh: list[MbufPlace] = []
        try:
            for _ in range(count):
                fresh.append(self._fresh())
        except ResourceShortage:
            for place in fresh:
                self._release(place).free()
            fresh.clear()
        return fresh

    def _copy(self, places: Sequence[MbufPlace], length: int) -> None:
        for place in places:
            place.map.sync(Direction.FROM_DEVICE.post)
        data = b"".join(place.mbuf.read() for place in places)[:length]
        for place in places:
            self._use_again(place)
        try:
            self._hand_up(self._pool.chain_of(data), length)
        except ResourceShortage:
            self.counts["dropped"] += 1
        else:
            self.counts["copied"] += 1

    def _hand_up(self, chain: MbufChain, length: int) -> None:
        self.counts["received"] += 1
        self.counts["bytes_in"] += length
        self.packets.put(chain)

    def reset(self, places: Sequence[Place], error: Exception, *, again: bool) -> None:
        """As `Consumer.reset`: go on with the same places."""
        for place in places:
            if isinstance(place, MbufPlace):
                if again and place.map.state is State.LOADED:  # and not abandoned with a context of the driver
                    self._use_again(place)
                else:
                    self._left.append(place)
        if not again:
            self._closed = error
            self.packets.put(None)
            if self._loading is not None:
                self._loading.cancel_load()

    def _drop(self, places: Sequence[MbufPlace]) -> None:
        for place in places:
            place.map.sync(Direction.FROM_DEVICE.post)
            self._use_again(place)

    def _use_again(self, place: MbufPlace) -> None:
        place.map.sync(Direction.FROM_DEVICE.pre)
        self._receiver.post(place)

    async def end(self, runtime: Runtime) -> None:
        """Free everything that was not taken. The controller has none of it any more."""
        for place in self._left:
            if place.map.state is State.LOADED:
                place.map.unload()
            self._put_back(place.mbuf, place.map)
        self._left.clear()
        while len(self.packets):
            packet = await self.packets.take(runtime)
            if packet is not None:
                packet.free()
        self.packets.put(None)
        while self._idle:
            self._idle.pop().destroy()

    def _chain(self, places: Sequence[MbufPlace], length: int) -> MbufChain:
        chain: MbufChain | None = None
        for place in places:
            mbuf = self._release(place)
            mbuf.window(mbuf.offset, min(mbuf.length, length))  # the check sequence may have places of its own
            length -= mbuf.length
            if chain is None:
                chain = MbufChain(mbuf)
            else:
                chain.append(mbuf)
        assert chain is not None
        return chain

    def _fresh(self) -> MbufPlace:
        mbuf, map = self._mbuf(), self._map()
        try:
            map.load_nowait(mbuf.data, Direction.FROM_DEVICE)
        except BaseException:
            self._put_back(mbuf, map)
            raise
        return self._ready(mbuf, map)

    async def _wait_for(self, deadline: int | None) -> MbufPlace:
        mbuf, map = self._mbuf(), self._map()
        self._loading = map
        try:
            await map.load(mbuf.data, Direction.FROM_DEVICE, deadline=deadline)
        except BaseException:
            self._put_back(mbuf, map)
            raise
        finally:
            self._loading = None
        return self._ready(mbuf, map)

    def _mbuf(self) -> Mbuf:
        mbuf = self._pool.get() if self._small else self._pool.cluster()
        mbuf.window(0, MLEN if self._small else MCLBYTES)
        return mbuf

    def _map(self) -> Map:
        return self._idle.pop() if self._idle else self._tag.create_map(name="mbuf")

    def _ready(self, mbuf: Mbuf, map: Map) -> MbufPlace:
        map.sync(Direction.FROM_DEVICE.pre)
        ((address, length),) = map.segments
        return MbufPlace(address, length, mbuf, map)

    def _release(self, place: MbufPlace) -> Mbuf:
        place.map.sync(Direction.FROM_DEVICE.post)
        place.map.unload()
        self._idle.append(place.map)
        return place.mbuf

    def _put_back(self, mbuf: Mbuf, map: Map) -> None:
        self._idle.append(map)
        mbuf.free()
