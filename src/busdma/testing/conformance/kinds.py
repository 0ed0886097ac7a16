"""Every kind of thing that can be loaded, with given bytes in it."""

from __future__ import annotations

import ctypes
import mmap
from array import array
from collections.abc import Callable
from typing import Any, Final

from busdma.addresses import PhysicalAddress
from busdma.lists import BufferList
from busdma.machine.machine import Machine
from busdma.mbuf import MbufPool
from busdma.requests import Bio, Ccb
from busdma.sync import Direction
from busdma.uio import Uio
from busdma.unmapped import PageArray, PhysicalList

Kind = Callable[[Machine, bytes], "Filled"]


class Filled:
    """A loadable thing, and how the CPU looks at its bytes."""

    def __init__(self, data: Any, read: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
        self.data = data
        self.read = read
        self.write = write


def _linear(buffer: Any) -> Filled:
    return Filled(buffer, buffer.read, buffer.write)


def _kernel(machine: Machine, data: bytes) -> Filled:
    buffer = machine.allocate(len(data), offset=machine.domain.page_size - 3)
    buffer.write(data)
    return _linear(buffer)


def _process(machine: Machine, data: bytes) -> Filled:
    buffer = machine.process(f"process {len(machine.processes)}").allocate(len(data), offset=5)
    buffer.write(data)
    return _linear(buffer)


def _paged_out(machine: Machine, data: bytes) -> Filled:
    space = machine.process(f"process {len(machine.processes)}")
    buffer = space.allocate(len(data))
    buffer.write(data)
    assert space.page_out() > 0
    return _linear(buffer)


def _bytearray(machine: Machine, data: bytes) -> Filled:
    buffer = bytearray(data)
    return Filled(buffer, lambda: bytes(buffer), lambda new: buffer.__setitem__(slice(None), new))


def _memoryview(machine: Machine, data: bytes) -> Filled:
    view = memoryview(bytearray(b"..." + data + b"..."))[3:-3]
    return Filled(view, view.tobytes, lambda new: view.__setitem__(slice(None), new))


def _array(machine: Machine, data: bytes) -> Filled:
    buffer = array("B", data)
    return Filled(buffer, buffer.tobytes, lambda new: buffer.__setitem__(slice(None), array("B", new)))


def _ctypes(machine: Machine, data: bytes) -> Filled:
    buffer = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)
    return Filled(buffer, lambda: bytes(buffer), lambda new: ctypes.memmove(buffer, new, len(new)))


def _mmap(machine: Machine, data: bytes) -> Filled:
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    return Filled(buffer, lambda: buffer[:], lambda new: buffer.__setitem__(slice(None), new))


def _mbufs(machine: Machine, data: bytes) -> Filled:
    pool = MbufPool(machine.kernel)
    chain = pool.chain_of(data, headroom=14)

    def write(new: bytes) -> None:
        at = 0
        for mbuf in chain:
            mbuf.write(new[at : at + mbuf.length])
            at += mbuf.length

    return Filled(chain, chain.read, write)


def _split(machine: Machine, data: bytes) -> list[Any]:
    """Three kernel buffers of uneven length that hold `data` together."""
    third = len(data) // 3 & ~3
    parts = []
    for number, part in enumerate((data[:third], data[third : 2 * third], data[2 * third :])):
        buffer = machine.allocate(len(part), offset=64 * number)
        buffer.write(part)
        parts.append(buffer)
    return parts


def _of_parts(data: Any, parts: list[Any]) -> Filled:
    def write(new: bytes) -> None:
        at = 0
        for part in parts:
            part.write(new[at : at + len(part)])
            at += len(part)

    return Filled(data, lambda: b"".join(part.read() for part in parts), write)


def _uio(machine: Machine, data: bytes) -> Filled:
    parts = _split(machine, data)
    return _of_parts(Uio(machine.kernel, [(part.address, len(part)) for part in parts]), parts)


def _user_list(machine: Machine, data: bytes) -> Filled:
    """The scatter/gather list of a program: its own pointers, one of them to the middle of a page."""
    space = machine.process(f"process {len(machine.processes)}")
    half = len(data) // 2 & ~3
    parts = [space.allocate(half, offset=4), space.allocate(len(data) - half)]
    for part, piece in zip(parts, (data[:half], data[half:]), strict=True):
        part.write(piece)
    return _of_parts(Uio(space, [(part.address, len(part)) for part in parts]), parts)


def _buffer_list(machine: Machine, data: bytes) -> Filled:
    parts = _split(machine, data)
    return _of_parts(BufferList(parts), parts)


def _page_array(machine: Machine, data: bytes) -> Filled:
    pages = PageArray.allocate(machine.domain, len(data), start=9)
    pages.write(data)
    return _linear(pages)


def _physical_list(machine: Machine, data: bytes) -> Filled:
    """Whoever builds a machine's upper layers may name its frames; drivers still see bus addresses only."""
    page = machine.domain.page_size
    pages = PageArray.allocate(machine.domain, len(data))
    pages.write(data)
    ranges = []
    for number, frame in enumerate(pages.frames.table):
        size = min(page, len(data) - number * page)
        ranges.append((PhysicalAddress(frame), size))
    return Filled(PhysicalList(machine.domain, ranges), pages.read, pages.write)


def _plain_list(machine: Machine, data: bytes) -> Filled:
    parts = _split(machine, data)
    return _of_parts(parts, parts)


def _bio(machine: Machine, data: bytes) -> Filled:
    whole = machine.allocate(len(data) + 200)
    inner = whole[100 : 100 + len(data)]
    inner.write(data)
    return Filled(Bio(whole, Direction.BOTH, offset=100, length=len(data)), inner.read, inner.write)


def _ccb(machine: Machine, data: bytes) -> Filled:
    filled = _mbufs(machine, data)
    return Filled(Ccb(filled.data), filled.read, filled.write)


#: with a length in bytes: what disks and echoes take
SIZED: Final[dict[str, Kind]] = {
    "kernel": _kernel,
    "process": _process,
    "paged-out": _paged_out,
    "bytearray": _bytearray,
    "memoryview": _memoryview,
    "mbuf-chain": _mbufs,
    "uio": _uio,
    "user-list": _user_list,
    "buffer-list": _buffer_list,
    "page-array": _page_array,
    "physical-list": _physical_list,
}

#: what only a map takes
KINDS: Final[dict[str, Kind]] = {
    **SIZED,
    "array": _array,
    "ctypes": _ctypes,
    "mmap": _mmap,
    "list": _plain_list,
    "bio": _bio,
    "ccb": _ccb,
}
