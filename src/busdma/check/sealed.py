"""Data for a driver that is to pass it on: it can be loaded, sliced and described, and who reads it is reported.

A driver between a user's data and a device (a SIM, in CAM's words) needs none of the bytes. If it looks at them all the
same it works on simulated machines, and fails where the CPU cannot reach the data, or has no right to.

Source: Gibbs, tech-kern 10 June 1998 (data that the kernel has not mapped).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from busdma.buffers import Buffer, BytesLike
from busdma.lists import Resolve, linear_parts, part_of


class Sealed:
    """A buffer for a driver that passes it on. `told` hears of everybody who reads bytes of it, and gets them.

    Not so of writes: what came by another way than DMA has to be put somewhere.
    """

    __slots__ = ("_buffer", "_told")

    def __init__(self, buffer: Buffer, told: Callable[[Buffer], object]) -> None:
        self._buffer = buffer
        self._told = told

    def dma_buffer(self, resolve: Resolve) -> Buffer:
        """What a map loads: see `busdma.lists.as_loadable`."""
        return self._buffer

    @property
    def length(self) -> int:
        """Bytes."""
        return self._buffer.length

    @property
    def readonly(self) -> bool:
        """True if a device must not write it."""
        return self._buffer.readonly

    def __len__(self) -> int:
        return self._buffer.length

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> Sealed: ...
    def __getitem__(self, key: int | slice) -> int | Sealed:
        if isinstance(key, slice):
            found: Any = self._buffer
            lo, hi, step = key.indices(self.length)
            part = part_of(self._buffer, lo, max(hi - lo, 0)) if step == 1 else found[key]  # which refuses that
            return Sealed(part, self._told)
        return self.read(range(self.length)[key], 1)[0]

    def __bytes__(self) -> bytes:
        return self.read()

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes [offset, offset + length); all the rest without a length. Reported."""
        self._told(self._buffer)
        part = part_of(self._buffer, offset, self.length - offset if length is None else length)
        return b"".join(each.read() for each in _linear(part))

    def write(self, data: BytesLike, offset: int = 0) -> None:
        """Copy `data` in at `offset`."""
        source, at = memoryview(data).cast("B"), 0
        for each in _linear(part_of(self._buffer, offset, len(source))):
            each.write(source[at : at + each.length])
            at += each.length

    def describe(self) -> str:
        """In a few words, for messages."""
        return self._buffer.describe()

    def __repr__(self) -> str:
        return f"<sealed: {self.describe()}>"


def _linear(buffer: Buffer) -> list[Any]:
    return list(linear_parts(buffer))
