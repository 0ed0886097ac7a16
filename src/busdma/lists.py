"""Buffers of several elements: what an mbuf chain, a uio and a scatter/gather list have in common.

A load takes them as one buffer. Each element is itself a buffer that lies in one page table; elements of zero length
are legal anywhere, elements may share pages and even bytes, and memory of the machine and of the host may be mixed.

Source: Thorpe, USENIX 1998, "Data buffer structures"; bus_dma(9), bus_dmamap_load_mbuf, bus_dmamap_load_uio.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from busdma.buffers import Buffer, as_buffer
from busdma.errors import DriverError
from busdma.segments import Frames
from busdma.tracebacks import hidden

__tracebackhide__ = hidden

_OF_PARTS: Final = frozenset({"gone", "owner", "uncached"})
DEEPEST: Final = 16  #: how far lists and what refers to buffers may be nested
_NO_FRAMES: Final = Frames(array("Q"))  # in no one page table: so that a load never takes it for a linear buffer

Resolve = Callable[[object], Buffer]  #: what ``dma_buffer`` is given: `as_loadable`, and how deep it is nested


class ElementList(ABC):
    """A buffer of several elements. Whoever derives from it says what they are."""

    frames: Frames  # only what was taken has these two: so a load meets no list that may still change
    start: int
    host: memoryview | None = None

    @abstractmethod
    def elements(self) -> list[Buffer]:
        """The elements, in order, as they are at this moment. DriverError if the list is broken (a cycle)."""

    @abstractmethod
    def describe(self) -> str:
        """The list in a few words, for messages."""

    @property
    def length(self) -> int:
        """The sum of the elements' lengths, in bytes."""
        return sum(element.length for element in self.elements())

    @property
    def readonly(self) -> bool:
        """True if a device must not write some element."""
        return any(element.readonly for element in self.elements())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: slice) -> BufferList:
        """The bytes of a range, as views of the elements they lie in."""
        if not isinstance(key, slice):
            raise DriverError(f"{self.describe()}: give a range of bytes, such as [a:b], not {key!r}")
        lo, hi, step = key.indices(self.length)
        if step != 1:
            raise DriverError(f"a view of a list of buffers has step 1, not {step}")
        found: list[Buffer] = []
        for element in self.elements():
            if lo < min(element.length, hi):
                found.append(part_of(element, lo, min(element.length, hi) - lo))
            lo, hi = max(lo - element.length, 0), hi - element.length
        return BufferList(found)

    def __repr__(self) -> str:
        return f"<{self.describe()}>"


class BufferList(ElementList):
    """Any buffers one after the other, for example ``BufferList([header, payload])``."""

    def __init__(self, elements: Iterable[Buffer]) -> None:
        self._elements = list(elements)

    def elements(self) -> list[Buffer]:
        """See `ElementList.elements`."""
        return list(self._elements)

    def describe(self) -> str:
        """For example ``a list of 3 buffers, 6000 bytes``."""
        return f"a list of {len(self._elements)} buffers, {self.length} bytes"


class Taken(BufferList):
    """The linear buffers that a list consisted of when a map took it, whatever becomes of the list."""

    def __init__(self, whole: ElementList) -> None:
        super().__init__(linear_parts(whole))
        self.frames, self.start = _NO_FRAMES, 0
        self._whole = whole
        self._length = sum(element.length for element in self._elements)
        self._readonly = whole.readonly

    @property
    def length(self) -> int:
        """See `ElementList.length`."""
        return self._length

    @property
    def readonly(self) -> bool:
        """See `ElementList.readonly`."""
        return self._readonly

    def describe(self) -> str:
        """The words of the list itself."""
        return self._whole.describe()


class Part:
    """Bytes [start, start + length) of a linear buffer that offers no views of itself."""

    private = False

    def __init__(self, whole: Buffer, first: int, length: int) -> None:
        self._whole = whole
        self.start = whole.start + first
        self.length = length
        self.host = whole.host
        self.readonly = whole.readonly

    @property
    def frames(self) -> Frames:
        """See `busdma.buffers.Buffer.frames`."""
        return self._whole.frames

    def __getattr__(self, name: str) -> object:
        """What else is known of the whole, as far as it is true of a part."""
        if name in _OF_PARTS:
            return getattr(self._whole, name)
        raise AttributeError(f"a part of {self._whole.describe()} has no attribute {name!r}")

    def describe(self) -> str:
        """For example ``6 bytes of DMA-safe memory of tag pc/isa, 4096 bytes``."""
        return f"{self.length} bytes of {self._whole.describe()}"


def part_of(buffer: Buffer, first: int, length: int) -> Buffer:
    """`length` bytes of a buffer from byte `first` on, which it has: a view."""
    if (first, length) == (0, buffer.length):
        return buffer
    if hasattr(buffer, "__getitem__"):
        view: Buffer = buffer[first : first + length]
        return view
    return Part(buffer, first, length)


def linear_parts(buffer: Buffer) -> Iterator[Buffer]:
    """The linear buffers that `buffer` consists of, in order, without empty ones."""
    if isinstance(buffer, ElementList):
        for element in buffer.elements():
            yield from linear_parts(element)
    elif buffer.length:
        yield buffer


def as_loadable(source: object, page_size: int = 4096) -> Buffer:
    """What a map can load: a buffer, a list or tuple of anything that can be loaded, or what refers to such a thing.

    What refers to a buffer (a CCB, a bio) has a method ``dma_buffer(resolve)`` that answers it, or a part of it, with
    ``resolve(data)`` being the buffer that its data is. DriverError for anything else, and for a list that contains
    itself.
    """
    return _resolve(source, page_size, 0)


def _resolve(source: object, page_size: int, depth: int) -> Buffer:
    if depth > DEEPEST:
        raise DriverError(
            f"cannot load {type(source).__name__!r}: it refers to itself, or more than {DEEPEST} deep; let its data "
            "lead to memory"
        )
    if isinstance(source, (list, tuple)):
        return BufferList([_resolve(each, page_size, depth + 1) for each in source])
    if isinstance(source, ElementList):
        return source
    refer = getattr(source, "dma_buffer", None)
    if refer is not None:
        return _resolve(refer(lambda data: _resolve(data, page_size, depth + 1)), page_size, depth + 1)
    return as_buffer(source, page_size)
