"""Ranges of virtual addresses as buffers: holes, wrap-around, rights."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import BufferGone, DriverError
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import AddressSpace
from busdma.sync import Direction
from core.small_machine import PAGE, SmallMachine


def space(pages: int = 64) -> AddressSpace:
    memory = memoryview(bytearray(pages * PAGE))
    return AddressSpace("cp", memory, FrameAllocator(0, pages, seed=2), pages=4 * pages, owner="process")


def test_a_range_is_the_memory_behind_it() -> None:
    cp = space()
    cp.allocate(PAGE)
    buffer = cp.allocate(3 * PAGE, offset=100)
    view = cp.view(buffer.address + 50, 2 * PAGE)
    assert (view.address, len(view), view.owner) == (buffer.address + 50, 2 * PAGE, "process 'cp'")
    view.write(b"seen from both sides", PAGE)
    assert buffer.read(PAGE + 50, 20) == b"seen from both sides"
    assert view.frames is buffer.frames
    with pytest.raises(DriverError, match="is a view: free the whole allocation"):
        view.free()
    buffer.free()
    with pytest.raises(BufferGone, match="released"):
        view.read()


@pytest.mark.parametrize(
    ("start", "length", "hole"),
    [
        (0, PAGE + 1, PAGE),  # into the guard page
        (0, 3 * PAGE, PAGE),  # over it, into the next allocation
        (PAGE, 1, PAGE),
        (PAGE - 1, 2, PAGE),
        (-1, 2, -1),  # before the first allocation
        (2 * PAGE - 1, 5, 2 * PAGE - 1),
        (2 * PAGE, 201, 2 * PAGE + 200),  # an allocation ends with its last byte
        (50 * PAGE, 1, 50 * PAGE),
        (1 << 40, 1, 1 << 40),  # beyond the space
    ],
)
def test_the_first_address_that_is_not_mapped(start: int, length: int, hole: int) -> None:
    cp = space()
    first = cp.allocate(PAGE)
    assert cp.allocate(200).address == first.address + 2 * PAGE
    with pytest.raises(BufferGone) as caught:
        cp.view(first.address + start, length)
    assert f"nothing is mapped at {first.address + hole:#x}, {max(hole - start, 0)} bytes into it" in str(caught.value)
    assert (caught.value.address, caught.value.length) == (first.address + hole, length)


def test_an_empty_space_and_a_released_allocation() -> None:
    cp = space()
    with pytest.raises(BufferGone, match="nothing is mapped at 0x10000"):
        cp.view(0x10000, 5)
    buffer = cp.allocate(PAGE)
    buffer.free()
    with pytest.raises(BufferGone, match="nothing is mapped at 0x10000"):
        cp.view(buffer.address, 5)


@pytest.mark.parametrize(("address", "length"), [(2**64 - 10, 11), (2**64, 1), (-1, 1), (0x10000, -1), (5, 2**64)])
def test_a_range_that_wraps_around(address: int, length: int) -> None:
    cp = space()
    cp.allocate(PAGE)
    with pytest.raises(DriverError, match="wrap around, or are no addresses") as caught:
        cp.view(address, length)
    assert not isinstance(caught.value, BufferGone)


@pytest.mark.parametrize("address", [0, 0x10000, 2**64 - 1])
def test_no_bytes_are_anywhere(address: int) -> None:
    cp = space()
    view = cp.view(address, 0)
    assert (len(view), view.address, view.read()) == (0, address, b"")


def test_rights_that_the_process_lacks() -> None:
    small = SmallMachine()
    tv = small.space("tv")
    shown = small.isa.alloc(2 * PAGE).mmap(tv, writable=False)
    view = tv.view(shown.address + 5, 100)
    assert view.readonly
    with pytest.raises(DriverError, match="are mapped read-only: they can only go to a device"):
        tv.view(shown.address + 5, 100, write=True)
    with pytest.raises(DriverError, match="it is read-only"):
        small.isa.create_map().load_nowait(view, Direction.FROM_DEVICE)
    own = tv.allocate(PAGE)
    assert not tv.view(own.address, PAGE, write=True).readonly


def test_a_dead_process() -> None:
    cp = space()
    buffer = cp.allocate(PAGE)
    cp.destroy()
    with pytest.raises(BufferGone, match="process 'cp' was freed"):
        cp.view(buffer.address, 1)


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 3 * PAGE), st.integers(0, PAGE - 1), st.booleans()), min_size=1, max_size=8
    ),
    start=st.integers(0, 24 * PAGE),
    length=st.integers(1, 4 * PAGE),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_exactly_the_bytes_of_live_allocations(sizes: list[tuple[int, int, bool]], start: int, length: int) -> None:
    """Some allocations are released again; what is left says which addresses are mapped."""
    cp = space()
    made = [(cp.allocate(size, offset=offset), released) for size, offset, released in sizes]
    mapped: set[int] = set()
    for buffer, released in made:
        if released:
            buffer.free()
        else:
            mapped.update(range(buffer.address, buffer.address + buffer.length))
    address = cp.base + start
    missing = next((at for at in range(address, address + length) if at not in mapped), None)
    if missing is None:
        assert cp.view(address, length).address == address
    else:
        with pytest.raises(BufferGone) as caught:
            cp.view(address, length)
        assert caught.value.address == missing
