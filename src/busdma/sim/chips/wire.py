"""An Ethernet wire in virtual time: it joins two stations, or loops one station's frames back to itself.

Both directions are independent of each other (full duplex). A frame is all its bytes, the check sequence included; it
arrives when its last bit does. Tests meddle with frames through `Wire.tamper`.

Source: IEEE 802.3, 3.1.1 (preamble and start of frame: 8 bytes), 4.4.2 (gap between frames: 96 bit times).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from busdma.errors import ConfigurationError
from busdma.sim.wiring import CallAt

PREAMBLE: Final = 8  #: bytes
GAP: Final = 12  #: bytes that could be sent in the gap between two frames
SPEEDS: Final = (10, 100)  #: Mb/s


class Wire:
    """A wire of `megabits` Mb/s. `call_at` and `now` are the machine's clock, in ns.

    ``tamper(frame)``, if set, returns what arrives in place of `frame`, or None: nothing does.
    """

    def __init__(self, call_at: CallAt, now: Callable[[], int], *, megabits: int = 10) -> None:
        if megabits not in SPEEDS:
            raise ConfigurationError(f"a wire of {megabits} Mb/s: give one of {', '.join(map(str, SPEEDS))}")
        self.call_at, self.now = call_at, now
        self.byte_time: Final = 8000 // megabits  #: ns
        self.tamper: Callable[[bytes], bytes | None] | None = None
        self.frames = 0  #: that went over it whole
        self._plugs: list[Plug] = []

    def plug(self, receive: Callable[[bytes], object]) -> Plug:
        """A station more, which is given what arrives for it. ConfigurationError for a third one."""
        if len(self._plugs) == 2:
            raise ConfigurationError("a wire has two ends, and both are taken: use another wire")
        self._plugs.append(Plug(self, receive))
        return self._plugs[-1]

    def carry(self, sender: Plug, frame: bytes) -> None:
        """All of `frame` has gone by; to the other end, or back to the only one."""
        self.frames += 1
        arriving = frame if self.tamper is None else self.tamper(frame)
        if arriving is not None:
            others = [plug for plug in self._plugs if plug is not sender]
            (others or [sender])[0].receive(arriving)


class Plug:
    """A station's end of the wire."""

    def __init__(self, wire: Wire, receive: Callable[[bytes], object]) -> None:
        self.receive = receive
        self._wire = wire
        self._free_at = 0
        self._sending: object = None

    def transmit(self, frame: bytes, done: Callable[[], object], *, inside: bool = False) -> None:
        """Send `frame` as soon as the wire is free, and call `done` when it has arrived.

        `inside`: the frame goes back to this station without ever leaving it.
        """
        wire, token = self._wire, object()
        end = max(wire.now(), self._free_at) + (PREAMBLE + len(frame)) * wire.byte_time
        self._free_at = end + GAP * wire.byte_time
        self._sending = token

        def arrived() -> None:
            if self._sending is token:
                self._sending = None
                if inside:
                    self.receive(frame)
                else:
                    wire.carry(self, frame)
                done()

        wire.call_at(end, arrived)

    def abort(self) -> None:
        """Break off what is being sent: it does not arrive."""
        self._sending = None
