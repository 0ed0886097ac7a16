"""The sequencer of an NCR 53C9x: FIFO, transfer counter, and what the chip does on the SCSI bus by itself.

An operation is a generator: it yields how long its next part takes, or None until something happens (the target asks
for bytes, the bus becomes free, the DMA engine can move bytes), and ends with an interrupt.

Source: NCR 53C94/53C95/53C96 data manual, and AMD Am53C94/Am53C96 data sheet: command set, sequence step tables,
current transfer count register, FIFO.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, TypeAlias

from busdma.sim.scsi.bus import ARBITRATION, ScsiBus
from busdma.sim.scsi.ncr53c9x_layout import (
    BUS_SERVICE,
    DISCONNECTED,
    FIFO_SIZE,
    FUNCTION_COMPLETE,
    RESELECTED,
    SELECT,
    SELECT_ATN,
    SELECT_ATN3,
    SELECT_ATN_STOP,
    DmaEngine,
)
from busdma.sim.scsi.nexus import Phase
from busdma.sim.wiring import CallAt

MESSAGES: Final = {SELECT: 0, SELECT_ATN: 1, SELECT_ATN_STOP: 1, SELECT_ATN3: 3}  #: bytes before the command
CONTROL_BYTE: Final = 2_000  #: ns that a byte of a message, a command or a status takes

Operation: TypeAlias = Generator[int | None, None, None]


class Sequencer:
    """What runs between a command and its interrupt. `byte`: ns that a byte of data takes. It is the bus's initiator.

    `interrupt` is called with the interrupt's bits.
    """

    def __init__(
        self,
        call_at: CallAt,
        now: Callable[[], int],
        interrupt: Callable[[int], None],
        byte: int,
    ) -> None:
        self._call_at, self._now, self._interrupt, self._byte = call_at, now, interrupt, byte
        self.bus: ScsiBus  # whose initiator this is
        self.engine: DmaEngine | None = None
        self.damaged = False  #: the next byte of data that comes in will be
        self.check_parity = False
        self.own_id = 0
        self._operation: Operation | None = None
        self.counts = dict.fromkeys(("selections", "timeouts", "reselections", "beaten", "disconnections"), 0)
        self.counts |= dict.fromkeys(("gross_errors", "bytes_in", "bytes_out"), 0)
        self._epoch = 0
        self.reset()

    def reset(self) -> None:
        """Everything as at power-on."""
        self.cancel()
        self.fifo = bytearray()
        self.counter, self.terminal = 0, False
        self.step = 0
        self.gross = self.bad_parity = False
        self.connected = self.deaf = self.reselectable = False

    def load(self, count: int) -> None:
        """Set the transfer counter."""
        self.counter, self.terminal = count, False

    def seen(self) -> None:
        """The interrupts have been read."""
        self.step = 0
        self.gross = self.bad_parity = self.deaf = False

    def fail(self) -> None:
        """A gross error: it only shows in the status."""
        self.counts["gross_errors"] += not self.gross
        self.gross = True

    def push(self, value: int) -> None:
        """The host writes the FIFO; a full one's top is written over."""
        if self.deaf:
            return
        if len(self.fifo) == FIFO_SIZE:
            self.fail()
            self.fifo.pop()
        self.fifo.append(value)

    # -- running ------------------------------------------------------------------------------------------------------

    def begin(self, operation: Operation) -> None:
        """Start an operation, unless one runs."""
        if self._operation is not None:
            self.fail()
            return
        self._operation = operation
        self._go_on()

    def cancel(self) -> None:
        """Forget the operation that runs."""
        self._epoch += 1
        self._operation = None
        self._idle = False

    def event(self) -> None:
        """Something has happened that an operation may wait for."""
        if self._idle:
            self._go_on()

    def after(self, ns: int, then: Callable[[], object]) -> None:
        """Call `then` after `ns`, unless all was cancelled by then."""
        epoch = self._epoch
        self._call_at(self._now() + ns, lambda: then() if epoch == self._epoch else None)

    def _go_on(self) -> None:
        if self._operation is None:
            return
        self._idle = False
        try:
            pause = next(self._operation)
        except StopIteration:
            self._operation = None
            return
        if pause is None:
            self._idle = True
        else:
            self.after(pause, self._go_on)

    # -- what the targets do: `busdma.sim.scsi.bus.Initiator` ---------------------------------------------------------

    def requested(self) -> None:
        """The target asks for bytes."""
        self.event()

    def freed(self) -> None:
        """The target has left the bus: whatever the chip was doing with it is over."""
        if self.connected:
            self.counts["disconnections"] += 1
            self.connected = False
            self.cancel()
            self._interrupt(DISCONNECTED)
        else:
            self.event()  # a selection may be waiting for it

    def reselected(self, target: int) -> None:
        """A target comes back; a selection that has not begun yet is forgotten."""
        self.counts["reselections"] += 1
        self.counts["beaten"] += self._operation is not None
        self.cancel()
        self.fifo[:] = bytes((1 << target | 1 << self.own_id,))
        self.connected, self.reselectable, self.deaf = True, False, True
        self.begin(self._identified())

    # -- operations ---------------------------------------------------------------------------------------------------

    def _request(self) -> Generator[None, None, None]:
        while not self.bus.requesting:
            yield None

    def _identified(self) -> Operation:
        yield from self._request()
        yield CONTROL_BYTE
        self.fifo += self._incoming(1, hold=True)
        self._interrupt(RESELECTED)

    def select(self, code: int, destination: int, timeout: int, dma: bool) -> Operation:
        """Arbitrate, select, send messages and command. `timeout`: ns until an absent target is given up."""
        bus = self.bus
        yield ARBITRATION
        while not bus.free:
            yield None
        self.counts["selections"] += 1
        if not bus.select(destination, attention=code != SELECT):
            yield timeout
            self.counts["timeouts"] += 1
            self._interrupt(DISCONNECTED)
            return bus.give_up()
        self.connected, self.reselectable = True, False
        yield from self._request()
        if MESSAGES[code]:
            data = yield from self._gather(MESSAGES[code], dma)
            yield len(data) * CONTROL_BYTE
            bus.attention = code == SELECT_ATN_STOP
            bus.send(data)
            yield from self._request()
        self.step = 1 if code == SELECT_ATN_STOP else 2
        while bus.phase == Phase.COMMAND:
            self.step = 3
            data = yield from self._gather(bus.available, dma)
            if not data:
                break
            yield len(data) * CONTROL_BYTE
            bus.send(data)
            yield from self._request()
        if self.step == 3 and not self.fifo and not (dma and self.counter):
            self.step = 4
        return self._interrupt(FUNCTION_COMPLETE | BUS_SERVICE)

    def _gather(self, count: int, dma: bool) -> Generator[None, None, bytes]:
        """Up to `count` bytes to send: those in the FIFO, then with DMA those of memory."""
        data = bytes(self.fifo[:count])
        del self.fifo[:count]
        while dma and len(data) < count and self.counter:
            ready = min(count - len(data), self.counter, self._room(self.engine, inward=False))
            if ready and self.engine is not None:
                data += self._counted(self.engine.fetch(ready))
            else:
                yield None
        return data

    def by_fifo(self) -> Operation:
        """A transfer without DMA: one byte in, or what the FIFO holds out."""
        bus = self.bus
        yield from self._request()
        phase = bus.phase
        if phase.inward:
            yield CONTROL_BYTE
            if len(self.fifo) == FIFO_SIZE:
                self.fail()
                self.fifo.pop()
            self.fifo += self._incoming(1, hold=phase == Phase.MESSAGE_IN)
        while self.fifo and not phase.inward and bus.phase == phase:
            yield min(len(self.fifo), bus.available) * CONTROL_BYTE
            count = min(len(self.fifo), bus.available)
            self._send(count, last=count == len(self.fifo))
            yield from self._request()
        if phase == Phase.MESSAGE_IN:
            return self._interrupt(FUNCTION_COMPLETE)
        yield from self._request()
        return self._interrupt(BUS_SERVICE)

    def transfer(self, engine: DmaEngine | None) -> Operation:
        """A transfer by DMA: until the counter is 0, the FIFO empty and the target asks again, or the phase changes."""
        bus = self.bus
        yield from self._request()
        phase = bus.phase
        inward = phase.inward
        each = self._byte if phase in (Phase.DATA_IN, Phase.DATA_OUT) else CONTROL_BYTE
        while bus.phase == phase and (self.counter or (self.fifo and not inward)):
            count = self._movable(engine, inward)
            if count:
                yield count * each
                count = min(count, self._movable(engine, inward))  # the engine may have been stopped meanwhile
            if not count or engine is None:
                yield None
            elif inward:
                hold = phase == Phase.MESSAGE_IN and count == self.counter
                engine.store(self._counted(self._incoming(count, hold=hold)))
            else:
                # It fetches ahead: what the target then does not take stays in the FIFO, and has been counted.
                ahead = min(count - len(self.fifo) + FIFO_SIZE, self.counter, self._room(engine, inward=False))
                self.fifo += self._counted(engine.fetch(ahead))
                count = min(count, len(self.fifo))
                if count:
                    self._send(count, last=not self.counter and count == len(self.fifo))
            if self.counter or not inward:
                yield from self._request()
        if phase == Phase.MESSAGE_IN and not self.counter:
            return self._interrupt(FUNCTION_COMPLETE)
        yield from self._request()
        return self._interrupt(BUS_SERVICE)

    def complete(self, *, dma: bool) -> Operation:
        """Initiator command complete steps: the status byte, and the message behind it."""
        bus, found = self.bus, b""
        yield from self._request()
        if bus.phase == Phase.STATUS:
            yield CONTROL_BYTE
            found = self._incoming(1, hold=False)
            yield from self._request()
        done = bool(found) and bus.phase == Phase.MESSAGE_IN
        if done:
            yield CONTROL_BYTE
            found += self._incoming(1, hold=True)
        if dma:
            while self.engine is None or self._room(self.engine, inward=True) < len(found):
                yield None
            self.engine.store(self._counted(found))
        else:
            self.fifo += found
        self._interrupt(FUNCTION_COMPLETE if done else BUS_SERVICE)

    def accept(self) -> Operation:
        """Message accepted: what follows is told by the target."""
        self.bus.accept()
        yield from self._request()
        self._interrupt(BUS_SERVICE)

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _room(self, engine: DmaEngine | None, *, inward: bool) -> int:
        """What the engine can move now. One that is set up the other way moves nothing: a gross error."""
        room = 0 if engine is None else engine.room()
        if room and engine is not None and engine.inward != inward:
            self.fail()
            return 0
        return room

    def _movable(self, engine: DmaEngine | None, inward: bool) -> int:
        ready = min(self.counter, self._room(engine, inward=inward)) + (0 if inward else len(self.fifo))
        return min(ready, self.bus.available)

    def _counted(self, data: bytes) -> bytes:
        self.counter -= min(len(data), self.counter)
        self.terminal = self.terminal or not self.counter
        return data

    def _incoming(self, count: int, *, hold: bool) -> bytes:
        damaged = self.damaged and self.bus.phase == Phase.DATA_IN
        if damaged:
            self.damaged = False
            if self.check_parity:  # attention rises before the byte is acknowledged
                self.bad_parity = self.bus.attention = True
        data = self.bus.receive(count, hold=hold)
        self.counts["bytes_in"] += count
        return bytes((data[0] ^ 1,)) + data[1:] if damaged else data

    def _send(self, count: int, *, last: bool) -> None:
        """Send `count` bytes of the FIFO; attention falls with the last byte of a message."""
        data = bytes(self.fifo[:count])
        del self.fifo[:count]
        self.counts["bytes_out"] += count
        if last and self.bus.phase == Phase.MESSAGE_OUT:
            self.bus.attention = False
        self.bus.send(data)
