"""Bus masters on any bus: what a route may do, and how it is counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import ConfigurationError, DeviceFault
from busdma.machine.frames import FrameAllocator
from busdma.sim.bus.master import FAULTED, FREE, UNCLAIMED, MasterBus, Wires

PAGE = 4096


class Table:
    """A route page by page: by bus page the physical address, None for unclaimed; other pages fault."""

    def __init__(self, pages: dict[int, int | None]) -> None:
        self.entries = pages
        self.asked: list[bool] = []

    def pieces(self, address: int, length: int, write: bool) -> Iterator[tuple[int | None, int]]:
        self.asked.append(write)
        while length > 0:
            page, offset = divmod(address, PAGE)
            if page not in self.entries:
                raise DeviceFault(f"no entry for {address:#x}", address)
            count = min(PAGE - offset, length)
            base = self.entries[page]
            yield (None if base is None else base + offset), count
            address += count
            length -= count

    def wraps(self, address: int, length: int) -> bool:
        return address + length > 1 << 20


def bus_of(pages: int) -> MasterBus:
    return MasterBus(memoryview(bytearray(pages * PAGE)), FrameAllocator(0, pages))


def test_an_access_goes_where_its_route_says() -> None:
    bus = bus_of(8)
    route = Table({0: 5 * PAGE, 1: 2 * PAGE, 2: None, 255: 0, 256: PAGE})
    master = bus.add_master("m", route)
    master.dma_write(PAGE - 2, b"abcd")
    assert bytes(bus.memory[6 * PAGE - 2 : 6 * PAGE]) == b"ab"
    assert bytes(bus.memory[2 * PAGE : 2 * PAGE + 2]) == b"cd"
    assert master.dma_read(2 * PAGE - 1, 3) == b"\0\xff\xff"
    assert master.dma_read((1 << 20) - 1, 2) == b"\0\0"
    assert route.asked == [True, False, False]
    counts = master.statistics()
    assert (counts["reads"], counts["writes"], counts["wrapped"], counts["unclaimed"]) == (2, 1, 1, 1)
    assert counts["by_owner"] == {FREE: {"accesses": 3, "bytes": 7}, UNCLAIMED: {"accesses": 1, "bytes": 2}}


def test_a_route_that_breaks_off() -> None:
    """What came before really moved; the rest is counted, and the device is told."""
    bus = bus_of(4)
    master = bus.add_master("m", Table({0: 3 * PAGE}))
    with pytest.raises(DeviceFault, match="no entry for 0x1000"):
        master.dma_write(PAGE - 1, b"xyz")
    assert bus.memory[4 * PAGE - 1] == ord("x")
    with pytest.raises(DeviceFault):
        master.dma_read(9 * PAGE, 5)
    counts = master.statistics()
    assert counts["by_owner"] == {FREE: {"accesses": 1, "bytes": 1}, FAULTED: {"accesses": 2, "bytes": 7}}
    assert (counts["reads"], counts["writes"], counts["bytes"]) == (1, 1, 8)


def test_a_route_out_of_memory_is_unclaimed() -> None:
    bus = bus_of(2)
    master = bus.add_master("m", Table({0: 2 * PAGE - 1, 1: -PAGE}))
    master.dma_write(0, b"ab")
    assert bus.memory[2 * PAGE - 1] == ord("a")
    assert master.dma_read(PAGE, 2) == b"\xff\xff"
    assert master.statistics()["by_owner"][UNCLAIMED] == {"accesses": 2, "bytes": 3}


def test_traffic_names_the_ways() -> None:
    bus = bus_of(4)
    high, low = bus.frames.allocate_run(1, "bounce"), bus.frames.allocate_run(1, "process")
    master = bus.add_master("m", Wires(32))
    assert bus.traffic("m").mechanism == ""
    master.dma_read(high, 10)
    assert bus.traffic("m").mechanism == "bounce"
    master.dma_read(low, 5)
    traffic = bus.traffic("m")
    assert (traffic.segments, traffic.bytes, traffic.mechanism) == (2, 15, "direct+bounce")


def test_names_are_unique() -> None:
    bus = bus_of(1)
    bus.add_master("m", Wires(32))
    with pytest.raises(ConfigurationError, match="a master 'm' already"):
        bus.add_master("m", Wires(32))


@given(st.integers(0, 12), st.integers(-50, 10_000), st.integers(1, 9000))
def test_wires_lose_the_upper_bits(width: int, address: int, length: int) -> None:
    wires = Wires(width)
    where = [at + i for at, count in wires.pieces(address, length, False) if at is not None for i in range(count)]
    assert where == [(address + i) % (1 << width) for i in range(length)]
    assert wires.wraps(address, length) == (where != list(range(address, address + length)))
