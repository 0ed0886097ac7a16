"""The DES driver, independent of the bus: encrypts and decrypts buffers through the card's scatter/gather lists.

A request loads source and destination piece by piece and has the card go over each piece. The card does one command at
a time. There are two slots of control memory, so that a second request loads its piece while the card is at the first.
A card with another's key in it, or another's chain, is told the right one first. One context, the completion context,
waits for the interrupt and ends what has finished.

A piece needs two maps, and nobody may wait for the second without end while he holds what another waits for. So that
wait is short; then the first map is given up, and both are tried again with half the piece.

A command that does not end is ended by a reset: its maps are in quarantine until the card says that it is idle.

Source: docs/des-card.md; Thorpe, "A Machine-Independent DMA Framework for NetBSD", USENIX 1998, "Example of underlying
operation".
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from busdma.buffers import HostBuffer, LinearBuffer
from busdma.drivers.block import BlockDevice, Data
from busdma.drivers.des import layout
from busdma.drivers.des.layout import CIPHER_BLOCK, SLOT_SIZE
from busdma.drivers.des.slot import Slot
from busdma.drivers.echo import Echo
from busdma.drivers.queues import Channel
from busdma.errors import DeadlineExpired, DeviceFault, DriverError, ResourceShortage, WaitCancelled
from busdma.lifecycle import State
from busdma.machine.attachment import Attachment
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction
from busdma.waiting import Task, Timer, Waiter

if TYPE_CHECKING:
    from busdma.memory import DmaMemory
    from busdma.tag import Tag

MAX_PIECE: Final = 28 << 10  #: bytes: two such buffers, wherever they begin, take 16 pages of 4 KiB
MIN_PIECE: Final = 512
SLOTS: Final = 2
MILLISECOND: Final = 1_000_000  # ns
TIMEOUT: Final = 1000 * MILLISECOND  #: of a command, which takes a few milliseconds
PATIENCE: Final = 50 * MILLISECOND  #: of the wait for a second map while the first is held
TRIES: Final = 16  #: to load both

NSEGMENTS: Final = layout.LIST_ENTRIES - 1  #: of one buffer; the last entry is for padding
CONTROL_SIZE: Final = SLOTS * SLOT_SIZE  #: three pages of 4 KiB, as in the paper

ECHO_KEY: Final = bytes.fromhex("0123456789ABCDEF")
ECHO_VECTOR: Final = bytes.fromhex("1234567890ABCDEF")  # both from FIPS 81, appendix C


class Card(Protocol):
    """The card's registers, which each bus has in its own way."""

    def identity(self) -> int:
        """What must be `busdma.drivers.des.layout.SIGNATURE`."""

    def status(self) -> int:
        """The status register."""

    def control(self, bits: int) -> None:
        """Write the control register; on return it has been done."""

    def start(self, address: int) -> None:
        """The DMA address register: the command block is there, begin."""

    def connect(self, registers: bool, memory: bool) -> bool:
        """May (the CPU reach the registers, the card reach memory)? False: this bus cannot keep a card from memory."""


class Request:
    """One user's key, direction and chain. `chain`: the CBC vector of its next piece; None: ECB."""

    __slots__ = ("chain", "decrypt", "key", "left")

    def __init__(self, key: bytes, decrypt: bool, chain: bytes | None) -> None:
        self.key = key
        self.decrypt = decrypt
        self.chain = chain
        self.left = False  #: its owner has gone while the card was at it: turn and slot are the completion's to return


class Job:
    """The command that the card is at."""

    __slots__ = ("request", "slot", "timer", "waiter")

    def __init__(self, name: str, slot: Slot, request: Request) -> None:
        self.slot = slot
        self.request = request
        self.waiter = Waiter(f"a command of {name}")  # woken with an error, or None
        self.timer: Timer | None = None


class Des:
    """One card. ``start`` it, then `encrypt`, from any number of contexts."""

    disks: tuple[BlockDevice, ...] = ()
    most = 64 << 10  #: as `busdma.drivers.echo.Echo`

    def __init__(self, attachment: Attachment, tag: Tag, card: Card, *, timeout: int = TIMEOUT) -> None:
        """`tag`: that of the data, with a maxsize."""
        self.name, self.tag = attachment.name, tag
        self._interrupt, self._runtime = attachment.interrupt, attachment.runtime
        self._card, self._timeout = card, timeout
        self._control = tag.derive("control", maxsize=CONTROL_SIZE, nsegments=1)
        self._lock = threading.RLock()  # contexts may be OS threads; held briefly, never across an await
        self._refusal: Exception | None = DriverError(f"{self.name} is not started: start it first")
        self._task: Task[None] | None = None
        self._memory: DmaMemory | None = None
        self._all: list[Slot] = []
        self._slots: Channel[Slot] = Channel(f"a slot of {self.name}")
        self._loading: Channel[None] = Channel(f"a turn to load for {self.name}", (None,))
        self._turn: Channel[None] = Channel(f"a turn of {self.name}", (None,))
        self._job: Job | None = None
        self._key: bytes | None = None  # what the card has in it
        self._chained: Request | None = None  # whose chain it has in it
        self._counts = dict.fromkeys(
            ("interrupts", "commands", "keys", "encrypted", "decrypted", "halved", "resets", "stray"), 0
        )

    @property
    def echoes(self) -> tuple[Echo, ...]:
        """The card itself: what it encrypts and decrypts comes out again."""
        return (self,)

    async def start(self) -> None:
        """Reset the card, and let it reach memory. DeviceFault if there is none, or it stays busy."""
        if self._task is not None:
            raise DriverError(f"{self.name} is already started")
        self._card.connect(True, False)
        if self._card.identity() != layout.SIGNATURE:
            raise DeviceFault(f"{self.name} identifies as {self._card.identity():#010x}, which is no DES card")
        if not self._reset():
            raise DeviceFault(f"{self.name} stays busy through a reset; reset the machine")
        self._release()  # what a card left behind that could not be stopped
        self._memory = memory = self._control.alloc(CONTROL_SIZE)
        for offset in range(0, CONTROL_SIZE, SLOT_SIZE):
            source, destination = self.tag.create_map(name="source"), self.tag.create_map(name="destination")
            self._all.append(Slot(offset, memory.address + offset, source, destination))
            self._slots.put(self._all[-1])
        self._card.connect(True, True)
        self._refusal = None
        self._task = self._runtime.start(self._complete, name=f"{self.name} complete")

    async def stop(self) -> None:
        """Reset the card, and end the driver's contexts. What was under way fails.

        DeviceFault if the card stays busy and its bus cannot keep it from memory: its maps then stay in quarantine,
        until a `start` has found it idle.
        """
        task, self._task = self._task, None
        if task is None:
            return
        with self._lock:
            self._refusal = stopped = DriverError(f"{self.name} was stopped")
            idle = self._halt(stopped)
        task.cancel()
        await self._runtime.park(task.done)
        for slot in self._all:
            for map in slot.maps:
                map.cancel_load()
        for _ in self._all:
            await self._slots.take(self._runtime)
        self._card.connect(False, False)
        if not idle:
            raise DeviceFault(f"{self.name} stays busy through a reset: what it was given stays in quarantine")
        self._release()

    def statistics(self) -> dict[str, Any]:
        """Counters since the driver was made. `halved`: pieces cut because both maps could not be had together."""
        return dict(self._counts)

    # -- what it does -------------------------------------------------------------------------------------------------

    async def encrypt(
        self,
        key: bytes,
        source: Data,
        destination: Data,
        *,
        decrypt: bool = False,
        iv: bytes | None = None,
        deadline: int | None = None,
    ) -> None:
        """Encrypt `source` into `destination`, or decrypt: a multiple of 8 bytes each, and as long as each other.

        `key`: 8 bytes, the parity bits ignored. `iv`: 8 bytes; with it in CBC mode, without in ECB. `destination` may
        be `source`; if they overlap otherwise the outcome is undefined. `deadline`, in ns of the runtime's clock, is
        that of the waits for a turn and for bounce pages. Errors: DriverError (refused, or the driver was stopped),
        DeadlineExpired, ResourceShortage, DeviceFault; part of `destination` may then have been written.
        """
        if len(key) != CIPHER_BLOCK or (iv is not None and len(iv) != CIPHER_BLOCK):
            raise DriverError(f"{self.name}: a key and an initialization vector are 8 bytes each; give so many")
        source, destination = self._same_length(source, destination)
        if len(source) < 1 or len(source) % CIPHER_BLOCK:
            raise DriverError(f"{self.name}: {len(source)} bytes are not one or more blocks of 8; pad them")
        await self._serve([(Request(bytes(key), decrypt, iv), source, destination)], 0, deadline)

    async def echo(self, out: Data, back: Data, deadline: int | None = None) -> None:
        """As `busdma.drivers.echo.Echo.echo`: encrypts `out` to `back`, and decrypts that where it lies, in CBC mode.

        What is missing to whole blocks is a last entry of both lists, in the control memory.
        """
        out, back = self._same_length(out, back)
        if not 1 <= len(out) <= self.most:
            raise DriverError(f"{self.name}: an echo of {len(out)} bytes: give 1 to {self.most}; split it")
        there, again = (Request(ECHO_KEY, decrypt, ECHO_VECTOR) for decrypt in (False, True))
        await self._serve([(there, out, back), (again, back, back)], -len(out) % CIPHER_BLOCK, deadline)

    def _same_length(self, source: Data, destination: Data) -> tuple[Data, Data]:
        """Both, as what can be cut."""
        again = destination is source
        source = _sliceable(source)
        destination = source if again else _sliceable(destination)
        if len(source) != len(destination):
            raise DriverError(
                f"{self.name}: {len(source)} bytes do not fill a destination of {len(destination)}: give equal lengths"
            )
        return source, destination

    async def _serve(self, steps: Sequence[tuple[Request, Data, Data]], pad: int, deadline: int | None) -> None:
        """Do all steps, one after the other, in one slot."""
        self._check()
        slot = await self._slots.take(self._runtime, deadline)
        request = steps[0][0]
        try:
            for request, source, destination in steps:
                await self._crypt(slot, request, source, destination, pad, deadline)
        except WaitCancelled:
            if self._refusal is not None and not request.left:
                raise self._refusal from None  # it was `stop` that cancelled the load
            raise
        finally:
            if not request.left:
                self._slots.put(slot)

    async def _crypt(
        self, slot: Slot, request: Request, source: Data, destination: Data, pad: int, deadline: int | None
    ) -> None:
        at, most, size = 0, self.tag.constraints.maxsize.value, len(source)
        slot.in_place = source is destination
        while at < size:
            most = await self._load(slot, source, destination, at, most, deadline)
            end = min(at + most, size)
            last = slice(end - CIPHER_BLOCK, end)
            goes_on = request.chain is not None and end < size
            chain = _bytes(source[last]) if goes_on and request.decrypt else None  # before it is written over
            await self._piece(slot, request, pad if end == size else 0, deadline)
            if goes_on:
                request.chain = chain or _bytes(destination[last])
            self._counts["decrypted" if request.decrypt else "encrypted"] += end - at
            at = end

    # -- pieces -------------------------------------------------------------------------------------------------------

    async def _load(self, slot: Slot, source: Data, destination: Data, at: int, most: int, deadline: int | None) -> int:
        """Load up to `most` bytes of both from `at` on, and return of how many; or hold nothing, and raise."""
        await self._loading.take(self._runtime, deadline)
        try:
            for _ in range(TRIES):
                self._check()  # it may have been stopped meanwhile
                part = slice(at, min(at + most, len(source)))
                if slot.in_place:
                    await slot.source.load(source[part], Direction.BOTH, deadline=deadline)
                    return most
                await slot.source.load(source[part], Direction.TO_DEVICE, deadline=deadline)
                now = self._runtime.now()
                until = now + PATIENCE if deadline is None else min(now + PATIENCE, deadline)
                try:
                    await slot.destination.load(destination[part], Direction.FROM_DEVICE, deadline=until)
                    return most
                except DeadlineExpired:
                    if until == deadline:
                        raise
                    most = max(min(most, len(source) - at) // 2 // CIPHER_BLOCK * CIPHER_BLOCK, MIN_PIECE)
                    self._counts["halved"] += 1
                finally:
                    if slot.destination.state is not State.LOADED:
                        slot.unload(given=False)
        finally:
            self._loading.put(None)
        raise ResourceShortage(
            f"{self.name} could not load {most} bytes of both source and destination within {TRIES} tries: raise the "
            "limit of the bounce pages, or use fewer devices at a time"
        )

    async def _piece(self, slot: Slot, request: Request, pad: int, deadline: int | None) -> None:
        """Have the card go over what is loaded, and unload it."""
        slot.give()
        try:
            await self._turn.take(self._runtime, deadline)
            try:
                await self._set_key(slot, request)
                command = layout.DECRYPT if request.decrypt else layout.ENCRYPT
                if request.chain is not None:
                    command |= layout.CHAINED
                rest = [(slot.address + layout.PAD_AT, pad)] if pad else []
                lists = ([*map.segments, *rest] for map in (slot.used[0], slot.used[-1]))
                await self._command(slot, request, command, *lists)
            finally:
                if not request.left:
                    self._turn.put(None)
        finally:
            if not request.left:
                slot.unload(given=True)

    async def _set_key(self, slot: Slot, request: Request) -> None:
        """See that the card has the key of `request`, and its chain."""
        if self._key == request.key and (request.chain is None or self._chained is request):
            return
        secret = request.key + (request.chain or b"")
        view, at = self._control_memory().view, slot.offset + layout.KEY_AT
        view[at : at + len(secret)] = secret
        try:
            await self._command(slot, request, layout.SET_KEY, [(slot.address + layout.KEY_AT, len(secret))], [])
        finally:
            if not request.left:
                view[at : at + len(secret)] = bytes(len(secret))
        self._key, self._chained = request.key, None if request.chain is None else request
        self._counts["keys"] += 1

    # -- commands -----------------------------------------------------------------------------------------------------

    async def _command(
        self,
        slot: Slot,
        request: Request,
        code: int,
        inputs: Iterable[tuple[int, int]],
        outputs: Iterable[tuple[int, int]],
    ) -> None:
        """Do one command of the card, whose turn the caller has."""
        job = Job(self.name, slot, request)
        with self._lock:
            self._check()
            memory = self._control_memory()
            layout.write_command(memory.view, slot.offset, slot.address, code, list(inputs), list(outputs))
            memory.sync(PREREAD | PREWRITE, slot.offset, SLOT_SIZE)
            self._job = job
            job.timer = self._runtime.call_at(self._runtime.now() + self._timeout, lambda: self._expired(job))
            self._counts["commands"] += 1
            self._card.start(slot.address)
        try:
            outcome = await self._runtime.park(job.waiter)
        except BaseException:
            with self._lock:
                if self._job is job:
                    request.left = True  # the card is still at it; `_end` comes when it has ended
                    slot.quarantine()
            raise
        if isinstance(outcome, Exception):
            raise outcome

    def _end(self, error: Exception | None = None, *, idle: bool = True) -> None:
        """The card has ended its command, or will not; it is `idle` unless it may still reach memory."""
        with self._lock:
            job, self._job = self._job, None
            if job is None:
                self._counts["stray"] += error is None
                return
            assert job.timer is not None
            job.timer.cancel()
            slot, memory = job.slot, self._control_memory()
            memory.sync(POSTREAD | POSTWRITE, slot.offset, SLOT_SIZE)
            status = layout.read_status(memory.view, slot.offset)
            if error is None and status != layout.DONE:
                words = layout.ERRORS.get(status, "unknown to this driver")
                error = DeviceFault(f"{self.name} ended a command with status {status}: {words}")
            if error is not None:
                self._key = self._chained = None  # who knows
            if job.request.left:
                if idle:
                    slot.report_idle()
                self._turn.put(None)
                self._slots.put(slot)
        job.waiter.wake(error)

    def _expired(self, job: Job) -> None:
        with self._lock:
            if self._job is job:
                self._halt(
                    DeviceFault(
                        f"{self.name} did not end a command within {self._timeout / MILLISECOND:g} ms, and was reset; "
                        "what it was to write is not to be trusted"
                    )
                )

    def _halt(self, error: Exception) -> bool:
        """Reset the card, and end its command with `error`. True: it reaches memory no more. Under the lock."""
        job = self._job
        if job is not None:
            job.slot.quarantine()
        idle = self._reset()
        if not idle:
            idle = self._card.connect(True, False)
            error = self._refusal = DeviceFault(
                f"{self.name} is out of service: it stays busy through a reset; reset the machine ({error})"
            )
        if job is not None and idle:
            job.slot.report_idle()
        self._end(error, idle=idle)
        return idle

    def _reset(self) -> bool:
        """Reset the card. True: it is idle, and reaches memory no more."""
        self._card.control(layout.RESET)
        self._counts["resets"] += 1
        self._key = self._chained = None
        return not self._card.status() & layout.BUSY

    async def _complete(self) -> None:
        """The completion context. Waits for nothing but the interrupt."""
        try:
            while True:
                await self._interrupt.wait()
                with self._lock:  # or a reset, and the next command, could come between the look and the end
                    status = self._card.status()
                    if status & layout.INTERRUPT:
                        self._card.control(layout.ACKNOWLEDGE)
                        self._counts["interrupts"] += 1
                        self._end()
        except Exception as error:  # without this context nothing would ever end
            with self._lock:
                self._refusal = DeviceFault(f"the driver of {self.name} failed: {error!r}")
                self._halt(self._refusal)
            raise

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _control_memory(self) -> DmaMemory:
        assert self._memory is not None
        return self._memory

    def _release(self) -> None:
        """Free what `start` allocated. The card is idle."""
        self.tag.report_idle()
        for slot in self._all:
            for map in slot.maps:
                map.destroy()
        self._all.clear()
        if self._memory is not None:
            memory, self._memory = self._memory, None
            memory.free()


def _sliceable(data: Data) -> Data:
    """`data` as what can be cut without a copy."""
    if isinstance(data, LinearBuffer | HostBuffer):
        return data
    try:
        return memoryview(data).cast("B")  # type: ignore[arg-type]
    except TypeError:
        raise DriverError(
            f"cannot encrypt {type(data).__name__!r} in pieces: give a buffer of the machine, or bytes"
        ) from None


def _bytes(data: Any) -> bytes:
    return data.read() if isinstance(data, LinearBuffer | HostBuffer) else bytes(data)
