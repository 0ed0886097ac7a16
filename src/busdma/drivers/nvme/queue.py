"""A submission queue and the completion queue that belongs to it, as the host sees them.

Commands are written at the tail and told of at the doorbell: one write for as many as there are. A completion is new
if its phase bit is that of this round.

Source: NVM Express Base Specification 1.4, 4.1, 4.6 (phase tag), 3.1.24, 3.1.25 (doorbells).
"""

from __future__ import annotations

from collections.abc import Sequence

from busdma.drivers.nvme import layout
from busdma.drivers.nvme.layout import CQ_ENTRY, DOORBELLS, PAGE, SQ_ENTRY, Completion
from busdma.machine.attachment import MmioRegisters
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from busdma.tag import Tag


class QueuePair:
    """Pair `id`, of `entries` each: at most one less can be under way. The caller holds the driver's lock.

    `tag`: for memory that begins at a page; `stride`: bytes from doorbell to doorbell.
    """

    def __init__(self, id: int, tag: Tag, entries: int, registers: MmioRegisters, stride: int) -> None:
        self.id = id
        self.entries = entries
        self.live = False  #: the controller knows it
        self.doorbells = 0  #: writes
        self.commands = tag.alloc(SQ_ENTRY * entries)
        try:
            self.completions = tag.alloc(CQ_ENTRY * entries)
        except BaseException:
            self.commands.free()
            raise
        self._registers = registers
        self._tail_bell = DOORBELLS + 2 * id * stride
        self._head_bell = self._tail_bell + stride
        self._give()
        self.clear()

    def clear(self) -> None:
        """Both queues as a controller that has just been enabled takes them: empty."""
        self._tail = self._told = self._head = self._head_told = 0
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
        at = SQ_ENTRY * self._tail
        self.commands.sync(POSTWRITE, at, SQ_ENTRY)
        layout.write_command(self.commands.view, at, opcode, id, nsid, prp1, prp2, words)
        self.commands.sync(PREWRITE, at, SQ_ENTRY)
        self._tail = (self._tail + 1) % self.entries

    def ring(self) -> None:
        """Tell the controller of every command that it has not been told of."""
        if self._told != self._tail:
            self._told = self._tail
            self._bell(self._tail_bell, self._tail)

    def take(self) -> Completion | None:
        """The next new completion. The controller is told at the next `ring_head`."""
        at = CQ_ENTRY * self._head
        self.completions.sync(POSTREAD, at, CQ_ENTRY)
        completion = layout.read_completion(self.completions.view, at)
        self.completions.sync(PREREAD, at, CQ_ENTRY)
        if completion.phase != self._phase:
            return None
        self._head += 1
        if self._head == self.entries:
            self._head, self._phase = 0, self._phase ^ 1
        return completion

    def ring_head(self) -> None:
        """Tell the controller which completions were taken."""
        if self._head_told != self._head:
            self._head_told = self._head
            self._bell(self._head_bell, self._head)

    def free(self) -> None:
        """Give the memory back."""
        self.commands.free()
        self.completions.free()

    def _bell(self, register: int, value: int) -> None:
        self.doorbells += 1
        self._registers.barrier()
        self._registers.write32(register, value)


def control_tag(parent: Tag) -> Tag:
    """A tag for memory that driver and controller share: one segment, from a page on."""
    return parent.derive("control", alignment=PAGE, nsegments=1)
