"""Data round a loop at the end of the wire: sent as frames from where it lies, and received where it shall go.

The header and the trailer (padding, check sequence) of a frame have places of their own, so that nothing but data is
written where data goes: the controller gathers each frame from several descriptors, and spreads it over several. A
frame that is lost, or comes back as another, is found by its header; then the controller is reset.

`back` is loaded into a map with reserved pages: so nobody waits for pages while he holds some.

Source: IEEE 802.3, 3.2 (frames); IEEE 802, 9.2.3 (the type for local experiments).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Final

from busdma.drivers.block import Data
from busdma.drivers.pcnet.receive import Arrival, Place, Receiver
from busdma.drivers.pcnet.transmit import Transmitter
from busdma.errors import DeviceFault, DriverError, WaitCancelled
from busdma.lifecycle import State
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction
from busdma.tag import Tag
from busdma.waiting import Runtime, Waiter

TYPE: Final = b"\x88\xb5"
HEADER: Final = 16  #: bytes: destination, source, type, and a number
PAYLOAD: Final = 1498  #: bytes of data in one frame
SHORTEST: Final = 60  #: bytes of a frame without its check sequence
FRAMES: Final = 4  #: of one echo
MOST: Final = FRAMES * PAYLOAD
SEGMENTS: Final = 4  #: of a buffer that is as long as that

# Memory of one frame, beside its data: the header to send, the header that came back, the trailer.
SENT, CAME, TRAILER, SLOT = 0, 32, 64, 128


@dataclass(slots=True)
class Trip:
    """One echo under way: how many bytes each frame has, and how many frames are back."""

    lengths: list[int]
    groups: list[list[Place]]
    done: Waiter = field(default_factory=lambda: Waiter("an echo"))
    back: int = 0


class Loop:
    """The echo of one driver. `control`: the tag for memory that driver and controller share; `tag`: for data.

    `failed` has the controller reset, after which `reset` is called. `lock`: the driver's.
    """

    def __init__(
        self,
        name: str,
        control: Tag,
        tag: Tag,
        station: bytes,
        transmitter: Transmitter,
        receiver: Receiver,
        runtime: Runtime,
        lock: AbstractContextManager[object],
        *,
        timeout: int,
        failed: Callable[[Exception], object],
    ) -> None:
        self._name, self._header = name, station + station + TYPE
        self._transmitter, self._receiver, self._runtime, self._lock = transmitter, receiver, runtime, lock
        self._timeout, self._failed = timeout, failed
        self._trip: Trip | None = None
        self._number = 0
        with ExitStack() as undo:
            self._memory = control.alloc(FRAMES * SLOT)
            undo.callback(self._memory.free)
            self._out = tag.create_map(name="out")
            undo.callback(self._out.destroy)
            self._back = tag.create_map(name="back", reserve=True)
            undo.pop_all()

    async def run(self, out: Data, back: Data, deadline: int | None) -> None:
        """As `busdma.drivers.echo.Echo.echo`, one at a time."""
        try:
            await self._out.load(out, Direction.TO_DEVICE, deadline=deadline)
        except WaitCancelled:
            if self._transmitter.refusal is not None:
                raise self._transmitter.refusal from None  # it was `cancel` that cancelled the load
            raise
        try:
            self._back.load_nowait(back, Direction.FROM_DEVICE)
        except BaseException:
            self._out.unload()
            raise
        trip = self._begin(len(out))
        timer = self._runtime.call_at(self._runtime.now() + self._timeout, lambda: self._late(trip))
        over = False
        try:
            sent = [await self._transmitter.begin(pieces) for pieces in self._frames(trip)]
            error = await self._runtime.park(trip.done)
            if error is not None:
                raise error
            for sending in sent:
                await self._transmitter.finished(sending)
            over = True
        finally:
            timer.cancel()
            self._end(trip, over)

    def arrived(self, arrival: Arrival) -> None:
        """As `Consumer.arrived`: the next frame, if all is well."""
        trip = self._trip
        if trip is None:
            return
        why = self._objection(trip, arrival)
        if why:
            self._failed(DeviceFault(f"{self._name}: an echo did not come back: {why}"))
            return
        trip.back += 1
        if trip.back == len(trip.lengths):
            trip.done.wake(None)

    def reset(self, places: Sequence[Place], error: Exception, *, again: bool) -> None:
        """As `Consumer.reset`: the echo under way has failed."""
        trip, self._trip = self._trip, None
        if trip is not None:
            trip.done.wake(error)

    def close(self) -> None:
        """Give everything back. No echo is under way."""
        self._out.destroy()
        self._back.destroy()
        self._memory.free()

    def cancel(self) -> None:
        """End the wait of an echo that waits for its load."""
        self._out.cancel_load()

    def _begin(self, length: int) -> Trip:
        """Have everything ready, and the places given to the controller."""
        lengths = [min(PAYLOAD, length - at) for at in range(0, length, PAYLOAD)]
        memory, base = self._memory, self._memory.address
        groups = [
            [
                Place(base + k * SLOT + CAME, HEADER),
                *(Place(*piece) for piece in pieces),
                Place(base + k * SLOT + TRAILER, SLOT - TRAILER),
            ]
            for k, pieces in enumerate(_cut(self._back.segments, lengths))
        ]
        trip = Trip(lengths, groups)
        with self._lock:
            if self._transmitter.refusal is not None:
                return trip  # nothing can be sent, so that is all
            self._out.sync(PREWRITE)
            self._back.sync(PREREAD)
            for k, group in enumerate(groups):
                memory.view[k * SLOT : k * SLOT + HEADER] = self._header + self._sequence(k)
                memory.sync(PREWRITE, k * SLOT + SENT, HEADER)
                memory.sync(PREREAD, k * SLOT + CAME, SLOT - CAME)
                for place in group:
                    self._receiver.post(place)
            self._trip = trip
        return trip

    def _frames(self, trip: Trip) -> Iterator[list[tuple[int, int]]]:
        for k, pieces in enumerate(_cut(self._out.segments, trip.lengths)):
            yield [(self._memory.address + k * SLOT + SENT, HEADER), *pieces]

    def _sequence(self, frame: int) -> bytes:
        return (self._number + frame & 0xFFFF).to_bytes(2, "big")

    def _objection(self, trip: Trip, arrival: Arrival) -> str:
        """What is wrong with the arrival, if anything."""
        k = trip.back
        if arrival.error:
            return arrival.error
        if k == len(trip.lengths) or list(arrival.places) != trip.groups[k]:
            return "a frame of another length came"
        if arrival.length != max(HEADER + trip.lengths[k], SHORTEST):
            return f"a frame of {arrival.length} bytes came"
        self._memory.sync(POSTREAD, k * SLOT + CAME, SLOT - CAME)
        came = bytes(self._memory.view[k * SLOT + CAME : k * SLOT + CAME + HEADER])
        return "" if came == self._header + self._sequence(k) else f"a frame with the header {came.hex(' ')} came"

    def _late(self, trip: Trip) -> None:
        with self._lock:
            if self._trip is trip and trip.back < len(trip.lengths):
                back = f"{trip.back} of {len(trip.lengths)} frames came back within {self._timeout / 1e9:g} s"
                self._failed(DeviceFault(f"{self._name}: an echo did not come back: {back}"))

    def _end(self, trip: Trip, over: bool) -> None:
        """Unload both buffers; but if the controller still has some of them, not before it was reset."""
        with self._lock:
            reset = self._trip is not trip
            self._trip = None
            self._number += len(trip.lengths)
            if over and not reset:
                self._out.sync(POSTWRITE)
                self._back.sync(POSTREAD)
                for k in range(len(trip.lengths)):
                    self._memory.sync(POSTWRITE, k * SLOT + SENT, HEADER)
            for map in (self._out, self._back):
                if not over and not reset:
                    map.quarantine()
                elif map.state is State.LOADED:  # and not abandoned with a context of the driver
                    map.unload()
            if not over and not reset:
                self._failed(DriverError(f"{self._name}: an echo was left while it was under way"))


def _cut(segments: Iterable[tuple[int, int]], lengths: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """The pieces of `segments` that each of `lengths` bytes in turn lies in."""
    rest = iter(segments)
    address = left = 0
    for wanted in lengths:
        pieces = []
        while wanted:
            if not left:
                address, left = next(rest)
            here = min(wanted, left)
            pieces.append((address, here))
            address, left, wanted = address + here, left - here, wanted - here
        yield pieces
