"""A window of DMA-safe memory, mapped for the CPU as long as it is wanted.

Source: Thorpe, USENIX 1998, "Data buffer structures" (a frame grabber's buffer, of which only small regions are
mapped); bus_dma(9), bus_dmamem_map and bus_dmamem_unmap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Self

from busdma.buffers import BytesLike
from busdma.errors import BufferGone, ConstraintError, DriverError
from busdma.tracebacks import hidden

if TYPE_CHECKING:
    from busdma.memory import DmaMemory

__tracebackhide__ = hidden


class MemoryWindow:
    """Bytes [offset, offset + length) of DMA-safe memory as the CPU sees them, from `DmaMemory.map` to `unmap`.

    A context manager: ``with memory.map(offset, length) as window``. Offsets of `read` and `write` count from the
    window's first byte. Sync the range before and after, as for all of the memory.
    """

    def __init__(self, memory: DmaMemory, offset: int, views: Sequence[memoryview]) -> None:
        self.memory: Final = memory
        self.offset: Final = offset
        self.length: Final = sum(len(view) for view in views)
        self._views = tuple(views)
        self._mapped = True

    @property
    def view(self) -> memoryview:
        """All of the window, writable. ConstraintError where its page frames are not one run: see `views`."""
        self._alive()
        if len(self._views) > 1:
            raise ConstraintError(
                f"{self._describe()} lies in {len(self._views)} runs of page frames, which no single view can show: "
                "use read() and write(), or views, or allocate with contiguous=True"
            )
        return self._views[0]

    @property
    def views(self) -> tuple[memoryview, ...]:
        """The window, run by run of its page frames, in order."""
        self._alive()
        return self._views

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """A copy of `length` bytes from `offset` on; all the rest without a length. DriverError outside the window."""
        count = self.length - offset if length is None else length
        return b"".join(bytes(piece) for piece in self._within(offset, count))

    def write(self, data: BytesLike, offset: int = 0) -> None:
        """Copy `data` in at `offset`. DriverError if it does not fit; nothing is written then."""
        source = memoryview(data).cast("B")
        at = 0
        for piece in self._within(offset, len(source)):
            piece[:] = source[at : at + len(piece)]
            at += len(piece)

    def unmap(self) -> None:
        """End it, and with it its views, but not slices that were taken of them: drop those before.

        DriverError while something else, such as an array of another package, holds a buffer on a view. A second time
        does nothing.
        """
        if not self._mapped:
            return
        again = [view[:] for view in self._views]
        for at, view in enumerate(self._views):
            try:
                view.release()
            except BufferError:
                self._views = (*again[:at], *self._views[at:])  # all of it stays mapped
                raise DriverError(
                    f"{self._describe()} cannot be unmapped: something still looks at its view; release that first"
                ).about(tag=self.memory.tag.path, length=self.length) from None
        self._mapped = False
        self.memory._unmapped(self)

    def _within(self, offset: int, length: int) -> list[memoryview]:
        self._alive()
        if offset < 0 or length < 0 or offset + length > self.length:
            raise DriverError(f"{self._describe()}: {length} bytes at offset {offset} are not inside it")
        found, at = [], 0
        for view in self._views:
            lo, hi = max(offset - at, 0), min(offset + length - at, len(view))
            if lo < hi:
                found.append(view[lo:hi])
            at += len(view)
        return found

    def _alive(self) -> None:
        if not self._mapped:
            raise BufferGone(f"{self._describe()} was unmapped; map it again").about(tag=self.memory.tag.path)

    def _describe(self) -> str:
        return f"the window of {self.length} bytes at {self.offset} of {self.memory.describe()}"

    def __len__(self) -> int:
        return self.length

    def __enter__(self) -> Self:
        self._alive()
        return self

    def __exit__(self, *exc: object) -> None:
        self.unmap()

    def __repr__(self) -> str:
        return f"<{self._describe()}{'' if self._mapped else ', unmapped'}>"
