"""The admin commands of the NVMe model: who it is, its I/O queues, its one feature, shadow doorbells, Abort.

Source: NVM Express Base Specification 1.4, 5.1 (Abort), 5.3 to 5.6 (I/O queues), 5.7 (Doorbell Buffer Config), 5.15
(Identify), 5.21.1.7 (number of queues).
"""

from __future__ import annotations

import struct
from collections.abc import Container
from typing import TYPE_CHECKING, Final

from busdma.sim.nvme.queue import PAGE, Command, CompletionQueue, RefusedError, Status, SubmissionQueue, require

if TYPE_CHECKING:
    from busdma.sim.nvme.controller import NvmeController

DELETE_SQ, CREATE_SQ, DELETE_CQ, CREATE_CQ = 0x00, 0x01, 0x04, 0x05
IDENTIFY, ABORT, SET_FEATURES, GET_FEATURES, DOORBELL_BUFFERS = 0x06, 0x08, 0x09, 0x0A, 0x7C
SHADOW_DOORBELLS: Final = 1 << 8  #: OACS (figure 247)
NAMESPACE, CONTROLLER, ACTIVE_NAMESPACES = 0x00, 0x01, 0x02  # what to identify (figure 244)
QUEUES_FEATURE: Final = 0x07
ENTRIES: Final = 1024  #: of the longest queue
CONTIGUOUS, INTERRUPTS = 1 << 0, 1 << 1  # of a new queue


class Admin:
    """The commands of one controller's admin queue."""

    def __init__(self, controller: NvmeController, serial: str) -> None:
        self._controller = controller
        self._serial = serial

    def execute(self, command: Command) -> None:
        """Do `command` and complete it. RefusedError with the status it ends with; DeviceFault of a transfer."""
        perform = {
            IDENTIFY: self._identify,
            CREATE_CQ: self._create_cq,
            CREATE_SQ: self._create_sq,
            DELETE_CQ: self._delete_cq,
            DELETE_SQ: self._delete_sq,
            ABORT: self._abort,
            SET_FEATURES: self._set_feature,
            GET_FEATURES: self._get_feature,
            DOORBELL_BUFFERS: self._doorbell_buffers,
        }.get(command.opcode)
        if perform is None:
            raise RefusedError(Status.INVALID_OPCODE)
        require(command.flags == 0, Status.INVALID_FIELD)
        result = perform(command)
        self._controller.complete(command, Status.SUCCESS, result)

    # -- Identify -----------------------------------------------------------------------------------------------------

    def _identify(self, command: Command) -> int:
        what, number, media = command.words[0] & 0xFF, command.namespace, self._controller.media
        if what == CONTROLLER:
            data = self._about_controller()
        elif what == NAMESPACE:
            require(1 <= number <= len(media), Status.INVALID_NAMESPACE)
            data = self._about_namespace(number)
        elif what == ACTIVE_NAMESPACES:  # those above the one given, in order (5.15.2.3)
            require(number < 0xFFFFFFFE, Status.INVALID_NAMESPACE)
            listed = range(number + 1, len(media) + 1)[:1024]
            data = bytearray(struct.pack(f"<{len(listed)}I", *listed).ljust(4096, b"\0"))
        else:
            raise RefusedError(Status.INVALID_FIELD)
        self._controller.put(self._controller.pieces(command, len(data)), bytes(data))
        return 0

    def _about_controller(self) -> bytearray:
        """Figure 247."""
        data = bytearray(4096)
        struct.pack_into("<HH", data, 0, self._controller.vendor, self._controller.vendor)
        data[4:24] = self._serial.encode("ascii")[:20].ljust(20)
        data[24:64] = b"busdma NVMe model".ljust(40)
        data[64:72] = b"1".ljust(8)
        data[77] = self._controller.mdts
        struct.pack_into("<HI", data, 78, 1, 0x00010400)  # controller id, version
        struct.pack_into("<H", data, 256, SHADOW_DOORBELLS if self._controller.offers_shadow else 0)
        data[258] = 3  # aborts at once, less one
        data[512], data[513] = 0x66, 0x44  # entries of 64 and 16 bytes
        struct.pack_into("<I", data, 516, len(self._controller.media))
        return data

    def _about_namespace(self, number: int) -> bytearray:
        """Figure 245: one format, no metadata."""
        data, disk = bytearray(4096), self._controller.media[number - 1]
        struct.pack_into("<QQQ", data, 0, disk.blocks, disk.blocks, disk.blocks)
        data[130] = disk.block_size.bit_length() - 1
        return data

    # -- I/O queues ---------------------------------------------------------------------------------------------------

    def _new_queue(self, command: Command, queues: Container[int]) -> tuple[int, int]:
        """(id, entries) of the queue to create, once they are found allowed."""
        number, entries = command.words[0] & 0xFFFF, (command.words[0] >> 16) + 1
        require(self._controller.entry_sizes_set, Status.INVALID_FIELD)
        require(1 <= number <= self._controller.granted and number not in queues, Status.QUEUE_ID_INVALID)
        require(2 <= entries <= ENTRIES, Status.QUEUE_SIZE_INVALID)
        require(bool(command.words[1] & CONTIGUOUS), Status.INVALID_FIELD)  # CAP.CQR
        require(command.prp1 % PAGE == 0, Status.PRP_OFFSET_INVALID)
        return number, entries

    def _create_cq(self, command: Command) -> int:
        number, entries = self._new_queue(command, self._controller.completions)
        msix, vector = self._controller.msix, command.words[1] >> 16
        vectors = msix.vectors if msix is not None and msix.enabled else 1  # the pin
        require(vector < vectors, Status.VECTOR_INVALID)
        queue = CompletionQueue(number, command.prp1, entries, vector if command.words[1] & INTERRUPTS else None)
        self._controller.completions[number] = queue
        return 0

    def _create_sq(self, command: Command) -> int:
        number, entries = self._new_queue(command, self._controller.submissions)
        completions = self._controller.completions.get(command.words[1] >> 16)
        if completions is None or completions.id == 0:
            raise RefusedError(Status.CQ_INVALID)
        self._controller.submissions[number] = SubmissionQueue(number, command.prp1, entries, completions)
        return 0

    def _delete_sq(self, command: Command) -> int:
        """5.6: what is under way ends, aborted, before this does."""
        number = command.words[0] & 0xFFFF
        require(number > 0 and number in self._controller.submissions, Status.QUEUE_ID_INVALID)
        queue = self._controller.submissions.pop(number)
        for doomed in self._controller.of_queue(queue):
            self._controller.complete(doomed, Status.SQ_DELETED)
        return 0

    def _delete_cq(self, command: Command) -> int:
        number = command.words[0] & 0xFFFF
        require(number > 0 and number in self._controller.completions, Status.QUEUE_ID_INVALID)
        queue = self._controller.completions[number]
        used = any(sq.completions is queue for sq in self._controller.submissions.values())
        require(not used, Status.QUEUE_DELETION_INVALID)
        del self._controller.completions[number]
        return 0

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _abort(self, command: Command) -> int:
        """5.1: bit 0 of the result is set where the command was not aborted: it is over, or cannot be."""
        victim = self._controller.find(command.words[0] & 0xFFFF, command.words[0] >> 16)
        if victim is None or victim is command or victim.ignores_abort:
            return 1
        self._controller.complete(victim, Status.ABORT_REQUESTED)
        return 0

    def _doorbell_buffers(self, command: Command) -> int:
        require(self._controller.offers_shadow, Status.INVALID_OPCODE)
        require(command.prp1 % PAGE == 0 and command.prp2 % PAGE == 0, Status.INVALID_FIELD)
        self._controller.shadow(command.prp1, command.prp2)
        return 0

    def _set_feature(self, command: Command) -> int:
        """Number of queues, both less one: allowed once, before there are any."""
        require(command.words[0] & 0xFF == QUEUES_FEATURE, Status.INVALID_FIELD)
        wanted = command.words[1] & 0xFFFF, command.words[1] >> 16
        require(0xFFFF not in wanted, Status.INVALID_FIELD)
        require(len(self._controller.completions) == 1, Status.SEQUENCE_ERROR)
        self._controller.granted = min(*(n + 1 for n in wanted), self._controller.queues)
        return self._get_feature(command)

    def _get_feature(self, command: Command) -> int:
        require(command.words[0] & 0xFF == QUEUES_FEATURE, Status.INVALID_FIELD)
        return (self._controller.granted - 1) * 0x10001
