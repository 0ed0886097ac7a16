"""What can be loaded: the `Buffer` protocol, memory of the machine (`LinearBuffer`) and of the host (`HostBuffer`).

A load asks a buffer one question: which page frames are you? The answer is a page table, `frames`, and where in it the
buffer begins and how long it is. That much is the same for memory of the kernel and of a process, and for memory that
the machine does not know at all: its pages are FOREIGN, no bus reaches them, and so they bounce.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol, cast, overload, runtime_checkable

from busdma.errors import BufferGone, DriverError
from busdma.segments import ABSENT, FOREIGN, Frames
from busdma.tracebacks import hidden

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__tracebackhide__ = hidden

BytesLike = bytes | bytearray | memoryview

_NO_FRAMES: Final = Frames(array("Q"))  #: the page table of a released buffer: nothing in it, so that no load can work


@runtime_checkable
class Buffer(Protocol):
    """What a map can load. Lengths and offsets are bytes."""

    @property
    def frames(self) -> Frames:
        """The page table that the buffer lies in; empty once the buffer is released."""

    @property
    def start(self) -> int:
        """Where the buffer's first byte is, counted from page 0 of `frames`, and in `host` if there is one."""

    @property
    def length(self) -> int:
        """How long the buffer is."""

    @property
    def host(self) -> memoryview | None:
        """The memory itself, as bytes, where it is not the machine's; else None."""

    @property
    def readonly(self) -> bool:
        """True if a device must not write it."""

    def describe(self) -> str:
        """The buffer in a few words, for messages."""


class Space(Protocol):
    """What a LinearBuffer needs of the address space it lies in (`busdma.machine.space.AddressSpace`)."""

    name: str
    owner: str
    base: int  #: the virtual address of page 0
    page_size: int
    frames: Frames
    page_table: array[int]  #: the same entries as `frames`, for the CPU
    memory: memoryview  #: all RAM
    memory_base: int  #: the physical address of the first byte of `memory`

    def free(self, buffer: LinearBuffer) -> None:
        """Release an allocation."""

    def page_in(self, start: int, length: int) -> int:
        """Give frames to the pages of [start, start + length), counted as `Buffer.start`, that were paged out."""


class Allocation:
    """One allocation of a space, shared by every view of it: they die together."""

    __slots__ = ("frames", "gone", "length", "memory", "readonly", "space", "start", "wired")

    def __init__(
        self,
        space: Space,
        start: int,
        length: int,
        *,
        readonly: bool = False,
        wired: bool = False,
        memory: memoryview | None = None,
    ) -> None:
        self.space = space
        self.frames = space.frames
        self.start = start
        self.length = length
        self.readonly = readonly
        self.wired = wired  #: its pages keep their frames
        self.memory = space.memory if memory is None else memory  #: all RAM, as this allocation sees it
        self.gone = ""  #: why it is no more

    def end(self, reason: str) -> None:
        """Make every view useless."""
        self.gone = reason
        self.frames = _NO_FRAMES


class LinearBuffer:
    """A range of an address space's virtual memory, or a view of one. Reads and writes go as the CPU's do.

    ``len()``, views ``buffer[a:b]``, bytes ``buffer[i]``. Access raises BufferGone once the allocation was released,
    and ResourceShortage if a page of a process was paged out and no frame is free for it.
    """

    __slots__ = ("_allocation", "length", "readonly", "start")

    host: memoryview | None = None

    def __init__(self, allocation: Allocation, start: int, length: int) -> None:
        self._allocation = allocation
        self.start: Final = start
        self.length: Final = length
        self.readonly: Final = allocation.readonly  #: mapped without the right to write it

    @property
    def frames(self) -> Frames:
        """The space's page table; empty once the allocation was released."""
        return self._allocation.frames

    @property
    def allocation(self) -> Allocation:
        """What this is a view of."""
        return self._allocation

    @property
    def space(self) -> Space:
        """The address space that the buffer lies in."""
        return self._allocation.space

    @property
    def gone(self) -> str:
        """Why the buffer can no longer be used; empty while it can."""
        return self._allocation.gone

    @property
    def uncached(self) -> bool:
        """True if the CPU sees it past its caches."""
        return self._allocation.memory is not self._allocation.space.memory

    @property
    def owner(self) -> str:
        """Whose memory it is: ``kernel``, ``process 'cp'``."""
        space = self._allocation.space
        return space.owner if space.owner == space.name else f"{space.owner} {space.name!r}"

    @property
    def address(self) -> int:
        """The virtual address of the first byte."""
        return self._allocation.space.base + self.start

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> LinearBuffer: ...
    def __getitem__(self, key: int | slice) -> int | LinearBuffer:
        if isinstance(key, slice):
            first, length = _view(key, self.length)
            return LinearBuffer(self._allocation, self.start + first, length)
        return self.read(_index(key, self.length), 1)[0]

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """A copy of `length` bytes from `offset` on; all the rest without a length."""
        return b"".join(self._pieces(offset, self.length - offset if length is None else length))

    def write(self, data: BytesLike, offset: int = 0) -> None:
        """Copy `data` in at `offset`. DriverError if it does not fit or may not be written; nothing is written then."""
        self._check_writable()
        source = memoryview(data).cast("B")
        at = 0
        for piece in self._pieces(offset, len(source)):
            piece[:] = source[at : at + len(piece)]
            at += len(piece)

    def fill(self, byte: int) -> None:
        """Set every byte to `byte`. DriverError if it may not be written."""
        self._check_writable()
        for piece in self._pieces(0, self.length):
            piece[:] = bytes((byte,)) * len(piece)

    def free(self) -> None:
        """Release the allocation. Only the whole of it, and not while a map has any of it loaded (DriverError)."""
        self._allocation.space.free(self)

    def describe(self) -> str:
        """For example ``kernel buffer 0x00012345, 65536 bytes``."""
        return f"{self.owner} buffer {self.address:#010x}, {self.length} bytes"

    def _check_writable(self) -> None:
        if self.readonly:
            raise DriverError(f"{self.describe()} is mapped read-only: map it with writable=True to write it")

    def _pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """The memory of [offset, offset + length), page by page, once all of it was checked."""
        if self._allocation.gone:
            raise BufferGone(f"{self.describe()}: {self._allocation.gone}; allocate another")
        _check_range(self, offset, length)
        return self._walk(self.start + offset, length)

    def _walk(self, at: int, length: int) -> Iterator[memoryview]:
        space = self._allocation.space
        table, size, memory, base = space.page_table, space.page_size, self._allocation.memory, space.memory_base
        while length > 0:
            page, within = divmod(at, size)
            count = min(size - within, length)
            if table[page] == ABSENT:
                space.page_in(at, count)
            here = table[page] - base + within
            yield memory[here : here + count]
            at += count
            length -= count

    def __repr__(self) -> str:
        return f"<{self.describe()}{', gone' if self._allocation.gone else ''}>"


class HostBuffer:
    """An ordinary Python object with the buffer protocol: memory that the machine does not know, so every page bounces.

    It holds the object's buffer: a bytearray cannot change its length meanwhile. Slices with step 1 are views.
    DriverError if the object has no buffer, or not one C-contiguous run of plain items.
    """

    __slots__ = ("frames", "host", "length", "page_size", "readonly", "start")

    owner: str = "host"

    def __init__(self, source: ReadableBuffer, page_size: int = 4096) -> None:
        data = _as_bytes(source)
        self._be(data, 0, len(data), page_size, _foreign_frames(-(-len(data) // page_size)))

    def _be(self, host: memoryview, start: int, length: int, page_size: int, frames: Frames) -> None:
        self.host = host
        self.start = start  #: of the buffer's first byte, in ``host``
        self.length = length
        self.readonly = host.readonly
        self.page_size = page_size
        self.frames = frames

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> HostBuffer: ...
    def __getitem__(self, key: int | slice) -> int | HostBuffer:
        if isinstance(key, slice):
            first, length = _view(key, self.length)
            view = HostBuffer.__new__(HostBuffer)
            view._be(self.host, self.start + first, length, self.page_size, self.frames)
            return view
        byte: int = self.host[self.start + _index(key, self.length)]
        return byte

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """A copy of `length` bytes from `offset` on; all the rest without a length."""
        count = self.length - offset if length is None else length
        _check_range(self, offset, count)
        return self.host[self.start + offset : self.start + offset + count].tobytes()

    def write(self, data: BytesLike, offset: int = 0) -> None:
        """Copy `data` in at `offset`. DriverError if it does not fit, or the object is read-only."""
        if self.readonly:
            raise DriverError(f"{self.describe()} is read-only: give a bytearray instead")
        source = memoryview(data).cast("B")
        _check_range(self, offset, len(source))
        self.host[self.start + offset : self.start + offset + len(source)] = source

    def describe(self) -> str:
        """For example ``a bytearray of the host, 65536 bytes``."""
        view = "" if self.length == self.host.nbytes else f"bytes {self.start}..{self.start + self.length - 1} of "
        return f"{view}a {type(self.host.obj).__name__} of the host, {self.length} bytes"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"


def as_buffer(source: object, page_size: int = 4096) -> Buffer:
    """What a map can load: a Buffer as it is, any other object with the buffer protocol as a HostBuffer."""
    if isinstance(source, (LinearBuffer, HostBuffer)):
        return source
    if isinstance(source, Buffer):
        return source
    return HostBuffer(cast("ReadableBuffer", source), page_size)


def _as_bytes(source: ReadableBuffer) -> memoryview:
    try:
        view = memoryview(source)
    except TypeError:
        hint = "; encode it first" if isinstance(source, str) else ""
        raise DriverError(
            f"cannot load {type(source).__name__!r}: give a buffer of the machine, or an object with the buffer "
            f"protocol (bytearray, memoryview, array){hint}"
        ) from None
    if not view.c_contiguous:
        raise DriverError("cannot load a memory view that is not C-contiguous: load a contiguous copy of it instead")
    if view.nbytes == 0:
        return memoryview(b"" if view.readonly else bytearray())  # an empty view cannot always be cast
    try:
        return view.cast("B")
    except TypeError:
        raise DriverError(
            f"cannot load items of format {view.format!r} as bytes: give a view of unsigned bytes of the same memory"
        ) from None


@lru_cache(maxsize=64)
def _foreign_frames(pages: int) -> Frames:
    return Frames(array("Q", [FOREIGN]) * pages)


def _view(key: slice, length: int) -> tuple[int, int]:
    first, stop, step = key.indices(length)
    if step != 1:
        raise DriverError(f"a view of a buffer has step 1, not {step}")
    return first, max(stop - first, 0)


def _index(key: int, length: int) -> int:
    index = key + length if key < 0 else key
    if not 0 <= index < length:
        raise IndexError(f"byte {key} of a buffer of {length} bytes")
    return index


def _check_range(buffer: Buffer, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > buffer.length:
        raise DriverError(
            f"{length} bytes at offset {offset} are not inside {buffer.describe()}: stay within its bytes"
        )
