"""What a bus hands to the front end of a driver: the whole of the machine that a driver may know.

A front end gets a tag, registers, an interrupt, somebody who carries its contexts, and the few numbers that the bus
configured (``irq``, ``drq``); on PCI also the configuration space of its function, and interrupts by message where the
machine has them. It gets no memory, no physical address and no machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from busdma.waiting import Runtime

if TYPE_CHECKING:
    from busdma.tag import Tag


class Registers(Protocol):
    """The registers of one device, by offset from its base (bus_space(9) narrowed to one region)."""

    def read8(self, offset: int) -> int:
        """The byte at `offset`."""

    def write8(self, offset: int, value: int) -> None:
        """Write the byte at `offset`."""

    def barrier(self) -> None:
        """What was written to memory and to registers before is seen by the device before what follows."""


@runtime_checkable
class MmioRegisters(Registers, Protocol):
    """Registers in memory space, of up to 64 bits. Offsets are multiples of the width, values are unsigned.

    The device sees its registers in the byte order of its data sheet: the machine swaps where the CPU has another.
    """

    def read16(self, offset: int) -> int:
        """The 16-bit register at `offset`."""

    def read32(self, offset: int) -> int:
        """The 32-bit register at `offset`."""

    def read64(self, offset: int) -> int:
        """The 64-bit register at `offset`."""

    def write16(self, offset: int, value: int) -> None:
        """Write the 16-bit register at `offset`."""

    def write32(self, offset: int, value: int) -> None:
        """Write the 32-bit register at `offset`."""

    def write64(self, offset: int, value: int) -> None:
        """Write the 64-bit register at `offset`."""


class ConfigSpace(Protocol):
    """The configuration space of one PCI function. Offsets are multiples of the width, values are unsigned."""

    def read8(self, offset: int) -> int:
        """The byte at `offset`; 0xFF if no function answers."""

    def read16(self, offset: int) -> int:
        """The 16 bits at `offset`."""

    def read32(self, offset: int) -> int:
        """The 32 bits at `offset`."""

    def write8(self, offset: int, value: int) -> None:
        """Write the byte at `offset`."""

    def write16(self, offset: int, value: int) -> None:
        """Write the 16 bits at `offset`."""

    def write32(self, offset: int, value: int) -> None:
        """Write the 32 bits at `offset`."""


class InterruptLine(Protocol):
    """The driver's end of an interrupt line."""

    async def wait(self, deadline: int | None = None) -> object:
        """Return once the line is, or since the last wait has been, asserted. DeadlineExpired at `deadline`, in ns."""


@dataclass(frozen=True, slots=True)
class Message:
    """An interrupt by message: a device that writes `data` to `address` interrupts `line`."""

    address: int  #: a bus address, whatever translates the others; a multiple of 4
    data: int  #: 32 bits, little-endian
    line: InterruptLine


class MessageInterrupts(Protocol):
    """The interrupts by message that a machine has."""

    def allocate(self) -> Message:
        """One that is the caller's alone from now on. ResourceShortage if there is none left."""


class IsaDmaChannel(Protocol):
    """A channel of the DMA controllers that ISA cards without address lines of their own share.

    The first five are what it can do: limits for the tag of its device's data, and for no other tag.
    """

    @property
    def lowaddr(self) -> int:
        """The highest bus address that it reaches."""

    @property
    def alignment(self) -> int:
        """Of addresses and lengths, in bytes."""

    @property
    def boundary(self) -> int:
        """A transfer never crosses a multiple of this many bytes."""

    @property
    def maxsegsz(self) -> int:
        """Bytes of one transfer."""

    @property
    def nsegments(self) -> int:
        """Segments of one transfer."""

    def program(self, address: int, length: int, *, to_memory: bool) -> None:
        """Have the device's next requests move `length` bytes from bus address `address` on, then terminal count.

        `to_memory`: the device writes memory. DriverError for what the channel cannot do.
        """

    def mask(self) -> None:
        """Serve no request any more: the device reaches no memory."""

    def left(self) -> int:
        """Bytes of the last `program` that have not been moved. The channel should be masked, or its device idle."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One device found on a bus, ready for ``attach`` of a front end."""

    name: str  #: the device's name on this machine, such as ``"aha0"``
    tag: Tag  #: the bus's tag, to derive from
    registers: Registers  #: on PCI: the first base address register's, as MmioRegisters
    interrupt: InterruptLine
    runtime: Runtime
    properties: Mapping[str, int] = field(default_factory=dict)  #: what the bus configured, such as ``{"irq": 11}``
    config: ConfigSpace | None = None  #: on a PCI bus only
    messages: MessageInterrupts | None = None  #: where the machine has interrupts by message
    dma: IsaDmaChannel | None = None  #: where the bus wired one to the device
