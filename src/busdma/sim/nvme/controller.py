"""An NVMe controller as its host sees it: registers in memory space, doorbells, queues in memory, one interrupt pin.

The controller reaches memory only through its bus master: it fetches commands and PRP lists, moves data and writes
completions by bus address. Its namespaces are image files; how long its flash takes is a model of its own, `Flash`.

It has what a block driver needs: Identify, I/O queues, Abort, the feature "number of queues", Read, Write and Flush.
Left out, and answered with "invalid opcode" or "invalid field": log pages, asynchronous events, other features,
metadata, SGLs, fused commands, arbitration by weight, queues that are not contiguous.

It interrupts by its pin, or once MSI-X is enabled by messages: a vector each for the admin queue and the I/O queues,
if the host wants so. With shadow doorbells it looks for new tails and heads in the host's memory, and says there how
far it has looked; the host then rings only where that has been reached.

What the specification leaves open, and what this model does: a doorbell value that cannot be is ignored and counted; a
command that an abort finds unfinished ends before the Abort does; data of a Write is fetched when the command is.

Source: NVM Express Base Specification 1.4: chapter 3 (registers), 5 (admin commands), 6 (NVM commands), 7.3 (resets),
7.5 (interrupts), 7.6 (initialization and shutdown), 7.13 (shadow doorbells).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from busdma.errors import ConfigurationError, DeviceFault
from busdma.sim.bus.msix import MsixTable
from busdma.sim.bus.pci_config import Bar
from busdma.sim.disk import Disk
from busdma.sim.nvme.admin import ENTRIES, Admin
from busdma.sim.nvme.flash import SMALL_SSD, Flash, MediaError, Namespaces
from busdma.sim.nvme.queue import PAGE, Command, CompletionQueue, RefusedError, Status, SubmissionQueue, walk
from busdma.sim.nvme.shadow import LOOK_TIME, ShadowDoorbells
from busdma.sim.wiring import CallAt, Memory, Pin

# registers (3.1)
CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
EN, SHN = 1 << 0, 3 << 14  # CC
CC_ZERO: Final = 0x3FF << 4  #: CC.CSS, MPS and AMS: the NVM command set, 4 KiB pages, round robin
CC_ENTRIES, ENTRY_SIZES = 0xFF << 16, 0x46 << 16  #: CC.IOSQES, IOCQES: 64 and 16 bytes
RDY, CFS, SHST_UNDER_WAY, SHST_COMPLETE, SHST = 1 << 0, 1 << 1, 1 << 2, 2 << 2, 3 << 2  # CSTS
VERSION: Final = 0x00010400
TIMEOUT: Final = 4  #: CAP.TO, in units of 500 ms
MSIX_TABLE, MSIX_PENDING = 0x2000, 0x3000

#: Virtual time, in ns.
READY_TIME: Final = 5_000_000
RESET_TIME: Final = 1_000_000
FETCH_TIME: Final = 1_000  #: from a doorbell to the command
ADMIN_TIME: Final = 10_000


@dataclass(frozen=True, slots=True)
class NeverCompletes:
    """The next command of this kind is never heard of again; with `ignore_abort`, not even to be aborted."""

    ignore_abort: bool = False
    admin: bool = False


@dataclass(frozen=True, slots=True)
class FailsWith:
    """The next NVM command ends with this status before any data moves."""

    status: Status


@dataclass(frozen=True, slots=True)
class FatalStatus:
    """Now: the controller sets CSTS.CFS and does nothing any more; `lasting`: not even after a reset."""

    lasting: bool = False


Fault = NeverCompletes | FailsWith | MediaError | FatalStatus


class NvmeController:
    """One controller at power-on, a `busdma.sim.bus.pci.PciFunction`. `call_at`, `now`: the machine's clock, in ns.

    `namespaces`: their media, namespace 1 first. `mdts`: a command moves at most ``4096 << mdts`` bytes, 0: no limit.
    `queues`: pairs of I/O queues it has; `vectors`: of MSI-X, 0: it has none, None: enough. `shadow_doorbells`: it has
    them. Not thread-safe: the caller holds the bus's lock around register accesses and around what `call_at` calls.
    """

    vendor, device = 0x1234, 0x5D01  # nobody's
    class_code = 0x010802  # mass storage, non-volatile memory, NVM Express
    bars: Mapping[int, Bar] = MappingProxyType({0: Bar(0x4000, wide=True)})

    def __init__(
        self,
        master: Memory,
        pin: Pin,
        call_at: CallAt,
        now: Callable[[], int],
        *,
        namespaces: Sequence[Disk],
        mdts: int = 5,
        queues: int = 8,
        vectors: int | None = None,
        shadow_doorbells: bool = False,
        flash: Flash = SMALL_SSD,
        serial: str = "SIM0001",
    ) -> None:
        if not 1 <= len(namespaces) <= 1024 or not 0 <= mdts <= 255 or not 1 <= queues <= 64:
            raise ConfigurationError(
                f"an NVMe controller has 1 to 1024 namespaces, 1 to 64 queues and an mdts of one byte, not "
                f"{len(namespaces)}, {queues} and {mdts}"
            )
        self._master, self._call_at, self._now = master, call_at, now
        self._raise_pin, self._lower_pin = pin.assert_, pin.deassert
        self.media, self.mdts, self.queues = tuple(namespaces), mdts, queues
        vectors = queues + 1 if vectors is None else vectors
        self.msix = MsixTable(master, vectors, bar=0, table=MSIX_TABLE, pending=MSIX_PENDING) if vectors else None
        self.offers_shadow = shadow_doorbells
        self._shadow: ShadowDoorbells | None = None
        self._admin = Admin(self, serial)
        self._nvm = Namespaces(self, flash)
        self._faults: list[Fault] = []
        self._broken = False
        self.counts = dict.fromkeys(("commands", "admin", "doorbells", "ignored", "lists", "resets"), 0)
        self._epoch = 0
        self._registers = {AQA: 0, ASQ: 0, ASQ + 4: 0, ACQ: 0, ACQ + 4: 0}  # a controller reset leaves them (7.3.2)
        self._cc = self._csts = self._masked = 0
        self.completions: dict[int, CompletionQueue] = {}  #: by id; 0 is the admin queue, there while enabled
        self.submissions: dict[int, SubmissionQueue] = {}
        self.granted = queues  #: pairs of I/O queues that the host may create
        self._live: dict[tuple[int, int], Command] = {}  # by submission queue and command id

    def inject(self, fault: Fault) -> None:
        """Have `fault` happen."""
        if isinstance(fault, MediaError):
            self._nvm.spoil(fault)
        elif isinstance(fault, FatalStatus):
            self._broken = self._broken or fault.lasting
            self._die()
        else:
            self._faults.append(fault)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, bar: int, offset: int, size: int) -> int:
        """The CPU reads a register, or part of one."""
        if size == 8:
            return self._read32(offset) | self._read32(offset + 4) << 32
        return self._read32(offset & ~3) >> 8 * (offset & 3) & ((1 << 8 * size) - 1)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """The CPU writes a register; less than 32 bits at once are not defined, and ignored."""
        if size == 8:
            self._write32(offset, value & 0xFFFFFFFF)
            self._write32(offset + 4, value >> 32)
        elif size == 4:
            self._write32(offset, value)
        else:
            self.counts["ignored"] += 1

    def _read32(self, offset: int) -> int:
        if self.msix is not None and self.msix.claims(offset):
            return self.msix.read32(offset)
        cap = ENTRIES - 1 | 1 << 16 | TIMEOUT << 24 | 1 << 37  # contiguous queues only; NVM command set; 4 KiB pages
        values = {CAP: cap & 0xFFFFFFFF, CAP + 4: cap >> 32, VS: VERSION, CC: self._cc, CSTS: self._csts}
        values |= {INTMS: self._masked, INTMC: self._masked}
        return values.get(offset, self._registers.get(offset, 0))

    def _write32(self, offset: int, value: int) -> None:
        if self.msix is not None and self.msix.claims(offset):
            self.msix.write32(offset, value)
        elif offset >= DOORBELLS:
            self._doorbell((offset - DOORBELLS) // 4, value)
        elif offset in (INTMS, INTMC):
            self._masked = self._masked | value if offset == INTMS else self._masked & ~value
            self._interrupt()
        elif offset == CC:
            self._configure(value)
        elif offset in self._registers and not self._cc & EN:
            self._registers[offset] = value

    def _configure(self, value: int) -> None:
        old, self._cc = self._cc, value
        if not value & EN:
            if old & EN:
                self._reset()
            return
        if not old & EN:
            self.after(READY_TIME, self._start)
        if value & SHN and not old & SHN:
            self._csts = self._csts & ~SHST | SHST_UNDER_WAY
            self._shut_down()

    def _start(self) -> None:
        """Enabled (7.6.1): the admin queues are there."""
        asq, acq = (self._registers[at] | self._registers[at + 4] << 32 for at in (ASQ, ACQ))
        sizes = self._registers[AQA] & 0xFFF, self._registers[AQA] >> 16 & 0xFFF
        if self._broken or self._cc & CC_ZERO or 0 in sizes or asq % PAGE or acq % PAGE:
            self._die()
            return
        self.completions[0] = CompletionQueue(0, acq, sizes[1] + 1, vector=0)
        self.submissions[0] = SubmissionQueue(0, asq, sizes[0] + 1, self.completions[0])
        self._csts |= RDY

    def _reset(self) -> None:
        self.counts["resets"] += 1
        self._forget()
        self.after(RESET_TIME, self._stopped)

    def _stopped(self) -> None:
        self._csts = 0

    def _forget(self) -> None:
        """Everything under way, all queues and what the host has set (7.3.2)."""
        self._epoch += 1
        self.completions.clear()
        self.submissions.clear()
        self._live.clear()
        self._nvm.forget()
        self._masked = 0
        self.granted = self.queues
        self._shadow = None
        if self.msix is not None:
            self.msix.clear()
        self._interrupt()

    def _shut_down(self) -> None:
        """7.6.2: what is under way ends first."""
        if self._live:
            self.after(RESET_TIME, self._shut_down)
            return
        for disk in self.media:
            disk.flush()
        self._csts = self._csts & ~SHST | SHST_COMPLETE

    def _die(self) -> None:
        self._epoch += 1
        self._csts |= CFS

    def after(self, time: int, fn: Callable[[], object]) -> None:
        """Call `fn` after `time`, unless the controller has been reset or has died by then."""
        epoch = self._epoch

        def call() -> None:
            if epoch == self._epoch:
                try:
                    fn()
                except DeviceFault:
                    self._die()  # a queue of the host's that cannot be reached (3.1.6)

        self._call_at(self._now() + time, call)

    # -- queues -------------------------------------------------------------------------------------------------------

    def _doorbell(self, number: int, value: int) -> None:
        """3.1.24, 3.1.25: a tail and a head in turn, by queue id."""
        self.counts["doorbells"] += 1
        which, is_head = divmod(number, 2)
        submissions, completions = self.submissions.get(which), self.completions.get(which)
        if is_head and completions is not None and completions.move_head(value):
            while completions.waiting and not completions.full:
                self._post(completions, *completions.waiting.popleft())
            self._interrupt()
        elif not is_head and submissions is not None and submissions.move_tail(value):
            if not submissions.fetching:
                submissions.fetching = True
                self.after(FETCH_TIME, lambda: self._fetch(submissions))
        else:
            self.counts["ignored"] += 1

    def _fetch(self, queue: SubmissionQueue) -> None:
        queue.fetching = False
        while queue.head != queue.tail and self.submissions.get(queue.id) is queue:
            for command in queue.fetch(self._master.dma_read):
                self._begin(command)
        if self._shadow is not None and queue.id:
            self._shadow.wait_for(queue)
            self.after(LOOK_TIME, lambda: self._look(queue))

    def _look(self, queue: SubmissionQueue) -> None:
        """Is there more in a queue that was empty, and whose host need not have rung?"""
        if self._shadow is None or self.submissions.get(queue.id) is not queue:
            return
        if not self._shadow.look(queue):
            self.counts["ignored"] += 1
        elif queue.head != queue.tail and not queue.fetching:
            self._fetch(queue)

    def _begin(self, command: Command) -> None:
        admin = command.queue.id == 0
        self.counts["admin" if admin else "commands"] += 1
        key = command.queue.id, command.id
        if key in self._live:
            self._post(command.queue.completions, command, Status.ID_CONFLICT, 0)
            return
        self._live[key] = command
        fault = next((f for f in self._faults if getattr(f, "admin", False) is admin), None)
        if fault is not None:
            self._faults.remove(fault)
        if isinstance(fault, NeverCompletes):
            command.ignores_abort = fault.ignore_abort
        elif isinstance(fault, FailsWith):
            self.complete(command, fault.status)
        elif admin:
            self.after(ADMIN_TIME, lambda: self.attempt(command, self._admin.execute))
        else:
            self.attempt(command, self._nvm.execute)

    def attempt(self, command: Command, execute: Callable[[Command], None]) -> None:
        """Call `execute`, unless `command` has ended; what that raises becomes the command's status."""
        if command.ended:
            return
        try:
            execute(command)
        except RefusedError as refused:
            self.complete(command, refused.status)
        except DeviceFault:
            self.complete(command, Status.TRANSFER_ERROR)

    def complete(self, command: Command, status: Status = Status.SUCCESS, result: int = 0) -> None:
        """Tell the host that `command` is over, unless it has been told."""
        if command.ended:
            return
        command.ended = True
        del self._live[command.queue.id, command.id]
        self._post(command.queue.completions, command, status, result)

    def _post(self, queue: CompletionQueue, command: Command, status: Status, result: int) -> None:
        try:
            if self._shadow is not None and queue.id and not self._shadow.update(queue):
                self.counts["ignored"] += 1
            if queue.full:
                queue.waiting.append((command, status, result))
                return
            queue.put(self._master.dma_write, command, status, result)
        except DeviceFault:
            self._die()
            return
        if queue.vector is not None and self.msix is not None and self.msix.enabled:
            self.msix.signal(queue.vector)
        self._interrupt()

    def _interrupt(self) -> None:
        """7.5.1, pin-based: high while a queue with interrupts has completions that the host has not taken."""
        wanted = any(q.vector is not None and q.head != q.tail for q in self.completions.values())
        wanted = wanted and not self._masked & 1 and not (self.msix is not None and self.msix.enabled)
        (self._raise_pin if wanted else self._lower_pin)()

    # -- for the commands ---------------------------------------------------------------------------------------------

    @property
    def entry_sizes_set(self) -> bool:
        """True if the host has said how large entries of I/O queues are, as it must before it creates one (3.1.5)."""
        return self._cc & CC_ENTRIES == ENTRY_SIZES

    def shadow(self, shadows: int, events: int) -> None:
        """The host has doorbells at these bus addresses, and wants to be told there how far was looked."""
        self._shadow = ShadowDoorbells(self._master, shadows, events)

    def now(self) -> int:
        """The machine's clock, in ns."""
        return self._now()

    def find(self, queue: int, command: int) -> Command | None:
        """The command that is under way, of that submission queue and identifier."""
        return self._live.get((queue, command))

    def of_queue(self, queue: SubmissionQueue) -> list[Command]:
        """Every command of that queue that is under way."""
        return [command for command in self._live.values() if command.queue is queue]

    def get(self, address: int, length: int) -> bytes:
        """Read the host's memory. DeviceFault."""
        return self._master.dma_read(address, length)

    def put(self, pieces: Iterable[tuple[int, int]], data: bytes) -> None:
        """Write `data` to these (bus address, bytes), one access each. DeviceFault."""
        view = memoryview(data)
        for address, length in pieces:
            self._master.dma_write(address, view[:length])
            view = view[length:]

    def pieces(self, command: Command, length: int) -> list[tuple[int, int]]:
        """Where the command's PRPs say that its `length` bytes are. RefusedError, DeviceFault."""
        return walk(self._get_list, command.prp1, command.prp2, length)

    def _get_list(self, address: int, size: int) -> bytes:
        self.counts["lists"] += 1
        return self._master.dma_read(address, size)
