"""A submission queue and the completion queue that belongs to it, as the host sees them.

Commands are written at the tail and told of at the doorbell: one write for as many as there are. A completion is new
if its phase bit is that of this round. With shadow doorbells the registers are written only where the controller wants
to be told.

Source: NVM Express Base Specification 1.4, 4.1, 4.6 (phase tag), 3.1.24, 3.1.25 (doorbells), 7.13 (shadow doorbells).
"""

from __future__ import annotations

from collections.abc import Sequence

from busdma.drivers.nvme import layout
from busdma.drivers.nvme.layout import CQ_ENTRY, DOORBELLS, PAGE, PHASE_BYTE, SQ_ENTRY, Completion
from busdma.drivers.nvme.shadow import ShadowDoorbells
from busdma.machine.attachment import MmioRegisters
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from busdma.tag import Tag


class QueuePair:
    """Pair `id`, of `entries` each: at most one less can be under way. The caller holds the driver's lock.

    `tag`: for memory that begins at a page; `stride`: bytes from doorbell to doorbell; `shadow`: where the doorbells
    are in memory too.
    """

    def __init__(
        self,
        id: int,
        tag: Tag,
        entries: int,
        registers: MmioRegisters,
        stride: int,
        shadow: ShadowDoorbells | None = None,
    ) -> None:
        self.id = id
        self.entries = entries
        self.vector = 0  #: of its interrupts
        self.live = False  #: the controller knows it
        self.doorbells = 0  #: writes of registers
        self.under_way = 0  #: commands that were written, and whose completions were not taken
        self.commands = tag.alloc(SQ_ENTRY * entries)
        try:
            self.completions = tag.alloc(CQ_ENTRY * entries)
        except BaseException:
            self.commands.free()
            raise
        self._registers, self._stride = registers, stride
        self._shadow = shadow if shadow is not None and shadow.covers(2 * id + 1) else None
        self._command_bytes, self._completion_bytes = self.commands.view, self.completions.view
        self._command_map, self._completion_map = self.commands.dma_map, self.completions.dma_map
        self._give()
        self.clear()

    def clear(self) -> None:
        """Both queues as a controller that has just been enabled takes them: empty."""
        self._tail = self._told = self._head = self._head_told = self.under_way = 0
        self._phase = 1
        self.commands.sync(POSTWRITE)
        self.completions.sync(POSTREAD)
        for memory in (self.commands, self.completions):
            memory.view[:] = bytes(memory.size)
        self._give()

    def _give(self) -> None:
        """The controller reads commands and writes completions; whoever else looks at an entry takes that one back."""
        self.commands.sync(PREWRITE)
        self.completions.sync(PREREAD)

    def put(self, opcode: int, id: int, nsid: int, prp1: int, prp2: int, words: Sequence[int]) -> None:
        """Write a command at the tail. The controller is told at the next `ring`."""
        at, tail = SQ_ENTRY * self._tail, self._tail + 1
        self._command_map.sync(POSTWRITE, at, SQ_ENTRY)
        layout.write_command(self._command_bytes, at, opcode, id, nsid, prp1, prp2, words)
        self._command_map.sync(PREWRITE, at, SQ_ENTRY)
        self._tail = tail if tail < self.entries else 0
        self.under_way += 1

    def ring(self, *, idle: bool = False) -> None:
        """Tell the controller of every command that it has not been told of. `idle`: it is known to look for none."""
        old, self._told = self._told, self._tail
        if old != self._tail:
            self._bell(2 * self.id, old, self._tail, surely=idle)

    def take(self) -> Completion | None:
        """The next new completion. The controller is told at the next `ring_head`."""
        at = CQ_ENTRY * self._head
        self._completion_map.sync(POSTREAD, at, CQ_ENTRY)
        new = self._completion_bytes[at + PHASE_BYTE] & 1 == self._phase  # before the rest, which was written before it
        completion = layout.read_completion(self._completion_bytes, at) if new else None
        self._completion_map.sync(PREREAD, at, CQ_ENTRY)
        if new:
            self.under_way -= 1
            self._head += 1
            if self._head == self.entries:
                self._head, self._phase = 0, self._phase ^ 1
        return completion

    def ring_head(self, *, lazily: bool = False, surely: bool = False) -> None:
        """Tell the controller which completions were taken; `lazily`: if it may soon want the room.

        `surely`: at the register, as its pin needs, which stays up until it has heard (7.5.1.1).
        """
        old = self._head_told
        taken = (self._head - old) % self.entries
        if taken and not (lazily and 2 * taken < self.entries):
            self._head_told = self._head
            self._bell(2 * self.id + 1, old, self._head, surely=surely)

    def free(self) -> None:
        """Give the memory back."""
        self.commands.free()
        self.completions.free()

    def _bell(self, number: int, old: int, new: int, *, surely: bool) -> None:
        self._registers.barrier()
        if self._shadow is not None:
            if surely:
                self._shadow.store(number, new)
            elif not self._shadow.tell(number, old, new):
                return
        self.doorbells += 1
        self._registers.write32(DOORBELLS + number * self._stride, new)


def control_tag(parent: Tag) -> Tag:
    """A tag for memory that driver and controller share: one segment, from a page on."""
    return parent.derive("control", alignment=PAGE, nsegments=1)
