"""Mbufs: small buffers in chains, so that a header is prepended and a packet cut without copying it.

A small mbuf is 256 bytes, 224 of them data; a cluster has 2048 bytes of data. Several share a page. What an mbuf holds
is its window, `offset` and `length`, in its data area; before and after it there may be room. A packet is an
`MbufChain`, and a map loads it as it is. Mbufs of zero length are legal anywhere in it.

    >>> import busdma
    >>> with busdma.open("sim:x86-64") as machine:
    ...     pool = MbufPool(machine.kernel)
    ...     packet = pool.chain_of(b"payload", headroom=16)
    ...     packet.prepend(7)
    ...     packet.first.write(b"header ")
    ...     print(packet.read(), packet)
    b'header payload' <an mbuf chain of 1 mbuf, 14 bytes>

What real mbufs have and these do not: storage that several share, external storage, packet tags.

Source: mbuf(9) (m_get, m_getcl, M_PREPEND, m_adj, m_free, m_cat); Thorpe, USENIX 1998, "Data buffer structures".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from random import Random
from typing import Final, TypedDict

from busdma.addresses import AddressSet
from busdma.buffers import Allocation, Buffer, BytesLike, LinearBuffer
from busdma.errors import BufferGone, ConfigurationError, DriverError, ResourceShortage
from busdma.lists import ElementList
from busdma.machine.space import AddressSpace

MSIZE: Final = 256  #: bytes of a small mbuf
MLEN: Final = 224  #: of them data; the rest is where a kernel keeps `next`, `offset` and `length`
MCLBYTES: Final = 2048  #: bytes of a cluster


class MbufStatistics(TypedDict):
    """`mbufs` and `clusters` are in use now; `pages` belong to the pool; `got` and `freed` count since it was made."""

    mbufs: int
    clusters: int
    pages: int
    got: int
    freed: int


class _Page:
    """A page of the pool, and how many of its pieces are in use."""

    __slots__ = ("buffer", "used")

    def __init__(self, buffer: LinearBuffer) -> None:
        self.buffer = buffer
        self.used = 0


class Mbuf:
    """One mbuf, made by its pool. It is the caller's until `free`; after that every use raises BufferGone."""

    __slots__ = ("_allocation", "_at", "_page", "length", "next", "offset", "pool", "size")

    def __init__(self, pool: MbufPool, page: _Page, at: int, size: int, headroom: int) -> None:
        self.pool: Final = pool
        self.size: Final = size  #: bytes of the data area
        self.offset = headroom  #: where the window begins in the data area; change it with `window`
        self.length = 0  #: bytes in the window
        self.next: Mbuf | None = None
        self._page = page
        self._at = at  # of the data area, in its address space
        # Its own allocation, so that views die with the mbuf; it spans the page, so that no view is all of it.
        self._allocation = Allocation(page.buffer.space, page.buffer.start, page.buffer.length)

    @property
    def data(self) -> LinearBuffer:
        """The window: a view of `length` bytes, which reads and writes as the CPU does, and can be loaded."""
        self._alive()
        return LinearBuffer(self._allocation, self._at + self.offset, self.length)

    @property
    def leading(self) -> int:
        """Bytes of room before the window."""
        return self.offset

    @property
    def trailing(self) -> int:
        """Bytes of room behind the window."""
        return self.size - self.offset - self.length

    def window(self, offset: int, length: int) -> None:
        """Say which bytes of the data area it holds. DriverError if they are not inside it."""
        self._alive()
        if offset < 0 or length < 0 or offset + length > self.size:
            raise DriverError(
                f"{self.describe()}: {length} bytes at {offset} are no window of its {self.size}; take a cluster, or "
                "chain another mbuf"
            )
        self.offset, self.length = offset, length

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """A copy of `length` bytes of the window; all the rest without a length. DriverError beyond it."""
        return self.data.read(offset, length)

    def write(self, data: BytesLike, offset: int = 0) -> None:
        """Copy `data` into the window at `offset`. DriverError if it does not fit; nothing is written then."""
        count = memoryview(data).nbytes
        self._alive()
        if offset < 0 or offset + count > self.length:
            raise DriverError(
                f"{self.describe()}: {count} bytes at {offset} do not fit its window; append or prepend them"
            )
        self.data.write(data, offset)

    def append(self, data: BytesLike) -> None:
        """Copy `data` behind the window, which grows. DriverError if the room there is less."""
        count = memoryview(data).nbytes
        self._alive()
        if count > self.trailing:
            raise DriverError(
                f"{self.describe()}: no room for {count} bytes more, only for {self.trailing}; chain another mbuf"
            )
        self.length += count
        self.write(data, self.length - count)

    def prepend(self, count: int) -> Mbuf:
        """Have `count` bytes more before the window, for a header; the mbuf that they are in.

        That is this one if it has the room, else a new one whose `next` is this one. What the bytes are is not
        defined before they are written. DriverError for more than `MLEN` bytes, or less than none.
        """
        self._alive()
        if not 0 <= count <= MLEN:
            raise DriverError(f"{self.describe()}: cannot prepend {count} bytes; a header has at most {MLEN}")
        if count <= self.offset:
            self.offset -= count
            self.length += count
            return self
        front = self.pool.get(headroom=MLEN - count)
        front.length = count
        front.next = self
        return front

    def adjust(self, count: int) -> None:
        """Trim the window: `count` bytes at its head, or ``-count`` at its tail. DriverError if it has less."""
        self._alive()
        if abs(count) > self.length:
            raise DriverError(f"{self.describe()}: cannot trim {abs(count)} bytes; adjust the chain it is in instead")
        self.offset += max(count, 0)
        self.length -= abs(count)

    def free(self) -> Mbuf | None:
        """Give it back to the pool and return `next`. BufferGone the second time, DriverError while it is loaded."""
        self._alive()
        self.pool._free(self)
        return self.next

    @property
    def gone(self) -> str:
        """Why it can no longer be used; empty while it can."""
        return self._allocation.gone or self._page.buffer.gone

    def describe(self) -> str:
        """For example ``mbuf 0x00012320, 40 of 224 bytes from 16 on``."""
        kind = "mbuf" if self.size == MLEN else "mbuf cluster"
        address = self._page.buffer.space.base + self._at
        return f"{kind} {address:#010x}, {self.length} of {self.size} bytes from {self.offset} on"

    def _alive(self) -> None:
        if self.gone:
            raise BufferGone(f"{self.describe()}: {self.gone}; get another")

    def __repr__(self) -> str:
        return f"<{self.describe()}{', gone' if self.gone else ''}>"


class MbufChain(ElementList):
    """A packet: the mbufs from `first` on. A map loads it as it is, one element an mbuf."""

    def __init__(self, first: Mbuf) -> None:
        self.first = first

    def __iter__(self) -> Iterator[Mbuf]:
        """The mbufs, in order. DriverError for a cycle, BufferGone at one that was freed; each names the mbuf."""
        seen: set[int] = set()
        mbuf: Mbuf | None = self.first
        while mbuf is not None:
            if id(mbuf) in seen:
                raise DriverError(f"a cycle: {mbuf.describe()} is in the chain twice; end the chain with next = None")
            seen.add(id(mbuf))
            mbuf._alive()
            yield mbuf
            mbuf = mbuf.next

    def elements(self) -> list[Buffer]:
        """See `ElementList.elements`: the windows. Errors as for iteration."""
        return [mbuf.data for mbuf in self]

    @property
    def length(self) -> int:
        """The bytes of all windows together."""
        return sum(mbuf.length for mbuf in self)

    @property
    def readonly(self) -> bool:
        """See `ElementList.readonly`: mbufs can always be written."""
        return False

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """A copy of `length` bytes from `offset` on; all the rest without a length. DriverError beyond the end."""
        total = self.length
        count = total - offset if length is None else length
        if offset < 0 or count < 0 or offset + count > total:
            raise DriverError(f"{self.describe()}: {count} bytes at offset {offset} are not inside it")
        found = []
        for mbuf in self:
            if offset < mbuf.length and count:
                found.append(mbuf.read(offset, min(count, mbuf.length - offset)))
                count -= len(found[-1])
            offset = max(offset - mbuf.length, 0)
        return b"".join(found)

    def prepend(self, count: int) -> None:
        """As `Mbuf.prepend`; `first` is the mbuf that the new bytes are in."""
        self.first = self.first.prepend(count)

    def append(self, other: Mbuf | MbufChain) -> None:
        """Chain `other` behind the last mbuf. DriverError if that would close a cycle."""
        mine, first = list(self), other if isinstance(other, Mbuf) else other.first
        if any(mbuf in mine for mbuf in MbufChain(first)):
            raise DriverError(f"{first.describe()} ends in {self.describe()} already: chain each mbuf once")
        mine[-1].next = first

    def adjust(self, count: int) -> None:
        """Trim `count` bytes at the head, or ``-count`` at the tail; mbufs that are empty then stay in the chain.

        DriverError if the chain has less.
        """
        if abs(count) > self.length:
            raise DriverError(f"{self.describe()}: cannot trim {abs(count)} bytes of it")
        left, mbufs = abs(count), list(self)
        for mbuf in mbufs if count > 0 else reversed(mbufs):
            here = min(left, mbuf.length)
            mbuf.adjust(here if count > 0 else -here)
            left -= here

    def free(self) -> None:
        """Free every mbuf; on an error as those of iteration and `Mbuf.free`, none."""
        mbufs = list(self)
        for mbuf in mbufs:
            mbuf.pool._refuse_if_loaded(mbuf)
        for mbuf in mbufs:
            mbuf.free()

    def describe(self) -> str:
        """For example ``an mbuf chain of 3 mbufs, 1514 bytes``."""
        count = total = 0
        try:
            for mbuf in self:
                count += 1
                total += mbuf.length
        except DriverError as error:
            return f"an mbuf chain of {count} mbufs and then {error}"
        return f"an mbuf chain of {count} mbuf{'' if count == 1 else 's'}, {total} bytes"


class MbufPool:
    """Mbufs in pages of `space`, usually ``machine.kernel``. Any thread may call.

    `seed`: in which order the pieces of a page are dealt out. `within`: physical addresses the pages lie in. `limit`:
    pages it may have, 0 for any number; a pool that would need more raises ResourceShortage.
    """

    def __init__(self, space: AddressSpace, *, seed: int = 0, within: AddressSet | None = None, limit: int = 0) -> None:
        if not isinstance(space, AddressSpace):
            raise ConfigurationError(f"mbufs lie in an address space, not in {space!r}: give machine.kernel")
        if space.page_size < MCLBYTES or limit < 0:
            raise ConfigurationError(
                f"a pool of at most {limit} pages of {space.page_size} bytes: give pages of {MCLBYTES} bytes or more, "
                "and a limit, or 0"
            )
        self._space, self._within, self._limit = space, within, limit
        self._random = Random(seed)
        self._pages: list[_Page] = []
        self._free_pieces: dict[int, list[tuple[_Page, int]]] = {MSIZE: [], MCLBYTES: []}
        self._used = {MSIZE: 0, MCLBYTES: 0}
        self._got = self._freed = 0
        self._lock = threading.Lock()

    def get(self, *, headroom: int = 0) -> Mbuf:
        """A small mbuf that holds nothing, with `headroom` bytes of room before the window."""
        return self._take(MSIZE, MLEN, headroom)

    def cluster(self, *, headroom: int = 0) -> Mbuf:
        """The same with the data area of a cluster."""
        return self._take(MCLBYTES, MCLBYTES, headroom)

    def chain_of(self, data: BytesLike, *, headroom: int = 0) -> MbufChain:
        """A chain that holds a copy of `data`: clusters, and a small mbuf where what is left fits one.

        `headroom`: bytes of room in the first. ResourceShortage as for `get`; nothing is held then.
        """
        rest = memoryview(data).cast("B")
        first = last = self._suited(len(rest), headroom)
        try:
            while True:
                here = min(last.trailing, len(rest))
                last.append(rest[:here])
                rest = rest[here:]
                if not rest:
                    return MbufChain(first)
                last.next = last = self._suited(len(rest), 0)
        except BaseException:
            MbufChain(first).free()
            raise

    def drain(self) -> int:
        """Give pages that no mbuf is in back to the machine; how many."""
        with self._lock:
            idle = [page for page in self._pages if not page.used]
            self._pages = [page for page in self._pages if page.used]
            for size, pieces in self._free_pieces.items():
                self._free_pieces[size] = [(page, at) for page, at in pieces if page.used]
        for page in idle:
            page.buffer.free()
        return len(idle)

    def statistics(self) -> MbufStatistics:
        """Counts, now and since the pool was made."""
        with self._lock:
            return {
                "mbufs": self._used[MSIZE],
                "clusters": self._used[MCLBYTES],
                "pages": len(self._pages),
                "got": self._got,
                "freed": self._freed,
            }

    def _suited(self, length: int, headroom: int) -> Mbuf:
        small = length + headroom <= MLEN
        return self.get(headroom=headroom) if small else self.cluster(headroom=headroom)

    def _take(self, piece: int, size: int, headroom: int) -> Mbuf:
        if not 0 <= headroom <= size:
            raise DriverError(f"{headroom} bytes of headroom: this mbuf has {size} bytes; ask for less")
        with self._lock:
            pieces = self._free_pieces[piece]
            if not pieces:
                pieces.extend(self._carve(piece))
            page, at = pieces.pop()
            page.used += 1
            self._used[piece] += 1
            self._got += 1
        return Mbuf(self, page, at + piece - size, size, headroom)

    def _carve(self, piece: int) -> list[tuple[_Page, int]]:
        """A page more, in pieces, in the order of the seed."""
        if self._limit and len(self._pages) >= self._limit:
            raise ResourceShortage(f"the mbuf pool has its {self._limit} pages, all in use: free some mbufs")
        page = _Page(self._space.allocate(self._space.page_size, within=self._within))
        self._pages.append(page)
        places = [page.buffer.start + at for at in range(0, self._space.page_size, piece)]
        return [(page, at) for _, at in sorted((self._random.random(), at) for at in places)]

    def _refuse_if_loaded(self, mbuf: Mbuf) -> None:
        whole = LinearBuffer(mbuf._allocation, mbuf._at, mbuf.size)
        holder = self._space.in_use(whole)
        if holder is not None:
            error = DriverError(f"{mbuf.describe()} cannot be freed: {holder} has it loaded; unload it first")
            self._space.refused(error)
            raise error

    def _free(self, mbuf: Mbuf) -> None:
        self._refuse_if_loaded(mbuf)
        piece = MSIZE if mbuf.size == MLEN else MCLBYTES
        with self._lock:
            mbuf._alive()
            mbuf._allocation.end("it was freed")
            mbuf._page.used -= 1
            self._used[piece] -= 1
            self._freed += 1
            self._free_pieces[piece].append((mbuf._page, mbuf._at + mbuf.size - piece))

    def __repr__(self) -> str:
        counts = self.statistics()
        return f"<mbuf pool of {counts['pages']} pages, {counts['mbufs']} mbufs and {counts['clusters']} clusters used>"
