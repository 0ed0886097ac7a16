"""The uio: scatter-gather in the virtual addresses of one address space, the kernel's or a process's.

A process's scatter/gather list is the same thing, handed straight down: its page tables are walked, the pages stay
where they are while they are loaded, and nothing is mapped into the kernel or copied.

Source: Thorpe, USENIX 1998, "Data buffer structures"; bus_dma(9), bus_dmamap_load_uio; Merry and Belousov,
freebsd-scsi, 1 April 2015 (the scatter/gather list of user pointers).
"""

from __future__ import annotations

from collections.abc import Iterable

from busdma.buffers import Buffer
from busdma.errors import BusdmaError, DriverError
from busdma.lists import ElementList
from busdma.machine.space import AddressSpace


class Uio(ElementList):
    """Ranges (address, length) of `space`, in order; lengths of 0 are legal.

    `writable`: a device may write it; the process must then have the right to. Each load looks the addresses up anew.
    DriverError: a range wraps around the address space, or lacks rights. BufferGone: it has an unmapped hole.
    """

    def __init__(self, space: AddressSpace, ranges: Iterable[tuple[int, int]], *, writable: bool = True) -> None:
        if not isinstance(space, AddressSpace):
            raise DriverError(f"a uio lies in an address space, not in {space!r}: give machine.kernel or a process")
        self.space = space
        try:
            self.ranges = tuple((address, length) for address, length in ranges)
        except (TypeError, ValueError):
            raise DriverError(f"a uio of {space.name!r}: give pairs of address and length") from None
        self.writable = writable
        for address, length in self.ranges:
            if address < 0 or length < 0:
                raise DriverError(
                    f"a uio of {space.name!r}: ({address:#x}, {length}) is no range: give no negative numbers"
                )

    @property
    def length(self) -> int:
        """The sum of the ranges, in bytes."""
        return sum(length for _, length in self.ranges)

    @property
    def readonly(self) -> bool:
        """True if a device must not write it."""
        return not self.writable

    def elements(self) -> list[Buffer]:
        """See `ElementList.elements`."""
        found: list[Buffer] = []
        for at, (address, length) in enumerate(self.ranges):
            if not length:
                continue
            try:
                view = self.space.view(address, length)
            except BusdmaError as error:
                error.add_note(f"this is range {at} of {self.describe()}")
                raise
            if self.writable and view.readonly:
                raise DriverError(
                    f"range {at} of {self.describe()}, {view.describe()}, is read-only there: make the uio with "
                    "writable=False and load it to the device"
                )
            found.append(view)
        return found

    def describe(self) -> str:
        """For example ``a uio of process 'cp', 3 ranges, 6000 bytes``."""
        owner = self.space.owner if self.space.owner == self.space.name else f"{self.space.owner} {self.space.name!r}"
        return f"a uio of {owner}, {len(self.ranges)} ranges, {self.length} bytes"
