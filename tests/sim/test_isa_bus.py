"""The ISA bus: ports, 24 wires, and what is counted."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import ConfigurationError, DriverError
from busdma.machine.frames import FrameAllocator
from busdma.sim.bus.isa import IsaBus
from busdma.sim.bus.master import DATA_OWNERS, FREE, UNCLAIMED

PAGE = 4096
MIB = 1 << 20
LABELS = ["kernel", "process", "bounce", "dma-safe", "page-table"]


class Echo:
    """Four registers that remember."""

    def __init__(self) -> None:
        self.values = [0] * 4

    def read8(self, offset: int) -> int:
        return self.values[offset]

    def write8(self, offset: int, value: int) -> None:
        self.values[offset] = value


def bus_of(pages: int) -> IsaBus:
    return IsaBus(memoryview(bytearray(pages * PAGE)), FrameAllocator(0, pages))


def test_ports_reach_their_device_and_no_other() -> None:
    bus = bus_of(4)
    first, second = Echo(), Echo()
    bus.claim(0x330, 4, first)
    bus.claim(0x334, 4, second)
    registers = bus.registers(0x330)
    registers.write8(3, 0xAB)
    registers.barrier()
    assert (first.values, second.values) == ([0, 0, 0, 0xAB], [0, 0, 0, 0])
    assert (registers.read8(3), bus.read8(0x333), bus.read8(0x337)) == (0xAB, 0xAB, 0)
    assert bus.barriers == 1


def test_nobody_answers_at_an_unclaimed_port() -> None:
    bus = bus_of(4)
    registers = bus.registers(0x230)
    registers.write8(0, 1)
    assert registers.read8(0) == 0xFF


@pytest.mark.parametrize("value", [-1, 256])
def test_a_port_takes_bytes_only(value: int) -> None:
    with pytest.raises(DriverError, match="ports are bytes"):
        bus_of(4).write8(0x330, value)


@pytest.mark.parametrize(("base", "length"), [(0x32F, 2), (0x333, 1), (0x300, 0x100), (0x331, 2)])
def test_claims_do_not_overlap(base: int, length: int) -> None:
    bus = bus_of(4)
    device = Echo()
    bus.claim(0x330, 4, device)
    with pytest.raises(ConfigurationError, match=r"overlap 0x330\.\.0x333"):
        bus.claim(base, length, Echo())
    bus.claim(0x334, 1, Echo())
    bus.claim(0x32F, 1, Echo())


@pytest.mark.parametrize(("base", "length"), [(-1, 4), (0x330, 0), (0xFFFD, 4)])
def test_ports_that_do_not_exist(base: int, length: int) -> None:
    with pytest.raises(ConfigurationError, match="give ports below"):
        bus_of(4).claim(base, length, Echo())


def test_a_25th_address_bit_is_lost_and_corrupts_visibly() -> None:
    bus = bus_of(32 * MIB // PAGE)
    master = bus.master("aha0")
    bus.memory[20 * MIB : 20 * MIB + 4] = b"high"
    bus.memory[4 * MIB : 4 * MIB + 3] = b"low"
    assert master.dma_read(20 * MIB, 4) == b"low\0"
    master.dma_write(20 * MIB, b"cheat")
    assert bytes(bus.memory[4 * MIB : 4 * MIB + 5]) == b"cheat"
    assert bytes(bus.memory[20 * MIB : 20 * MIB + 4]) == b"high"
    assert master.statistics()["wrapped"] == 2


def test_an_access_across_16_mib_goes_on_at_address_0() -> None:
    bus = bus_of(17 * MIB // PAGE)
    master = bus.master("aha0")
    master.dma_write(16 * MIB - 2, b"abcd")
    assert bytes(bus.memory[16 * MIB - 2 : 16 * MIB + 2]) == b"ab\0\0"
    assert bytes(bus.memory[:2]) == b"cd"
    assert master.dma_read(16 * MIB - 2, 4) == b"abcd"
    assert master.statistics()["wrapped"] == 2


def test_the_last_bytes_below_16_mib_do_not_wrap() -> None:
    master = bus_of(1).master("aha0")
    assert master.dma_read(16 * MIB - PAGE, PAGE) == b"\xff" * PAGE
    assert master.statistics()["wrapped"] == 0


def test_beyond_memory_nobody_answers() -> None:
    bus = bus_of(2)
    master = bus.master("aha0")
    master.dma_write(2 * PAGE - 1, b"xyz")
    assert bytes(bus.memory[-2:]) == b"\0x"
    assert master.dma_read(2 * PAGE - 1, 3) == b"x\xff\xff"
    assert master.dma_read(5 * MIB, 2) == b"\xff\xff"
    counts = master.statistics()
    assert counts["unclaimed"] == 3
    assert counts["by_owner"][UNCLAIMED] == {"accesses": 3, "bytes": 6}
    assert counts["wrapped"] == 0


def test_an_access_counts_for_each_owner_it_touches() -> None:
    bus = bus_of(8)
    frames = bus.frames
    top = frames.allocate_run(2, "kernel")
    below = frames.allocate_run(1, "dma-safe")
    lowest = frames.allocate_run(1, "bounce")
    assert (lowest, below, top) == (4 * PAGE, 5 * PAGE, 6 * PAGE)
    master, other = bus.master("aha0"), bus.master("aha1")
    master.dma_read(lowest + PAGE - 10, 10 + PAGE + 2 * PAGE)
    master.dma_write(below, bytes(8))
    master.dma_write(0, b"z")
    assert master.statistics() == {
        "reads": 1,
        "writes": 2,
        "bytes": 10 + 3 * PAGE + 8 + 1,
        "data_accesses": 1,
        "data_bytes": 10 + 2 * PAGE,
        "wrapped": 0,
        "unclaimed": 0,
        "by_owner": {
            "bounce": {"accesses": 1, "bytes": 10},
            "dma-safe": {"accesses": 2, "bytes": PAGE + 8},
            "kernel": {"accesses": 1, "bytes": 2 * PAGE},
            FREE: {"accesses": 1, "bytes": 1},
        },
    }
    assert bus.statistics()["aha0"] == master.statistics()
    assert other.statistics()["bytes"] == 0


def test_an_empty_access_is_none() -> None:
    master = bus_of(1).master("aha0")
    assert master.dma_read(0, 0) == b""
    master.dma_write(0, b"")
    assert (master.statistics()["reads"], master.statistics()["writes"]) == (0, 0)


def test_every_master_has_a_name_of_its_own() -> None:
    bus = bus_of(1)
    bus.master("aha0")
    with pytest.raises(ConfigurationError, match="a master 'aha0' already"):
        bus.master("aha0")


def test_the_bus_sees_all_memory_from_0() -> None:
    with pytest.raises(ConfigurationError, match="from address 0"):
        IsaBus(memoryview(bytearray(PAGE)), FrameAllocator(PAGE, 1))
    with pytest.raises(ConfigurationError, match="from address 0"):
        IsaBus(memoryview(bytearray(PAGE)), FrameAllocator(0, 2))


def test_timers_of_devices_and_ports_exclude_each_other() -> None:
    """A device's timer, serialised, cannot begin on another thread while a port access is under way."""
    bus = bus_of(1)
    order: list[str] = []
    begun = threading.Event()

    def timer() -> None:
        order.append("timer")

    def other() -> None:
        begun.set()
        bus.serialised(timer)()

    class Device(Echo):
        def read8(self, offset: int) -> int:
            thread = threading.Thread(target=other)
            thread.start()
            begun.wait()
            bus.serialised(lambda: order.append("nested"))()
            order.append("port")
            threads.append(thread)
            return 1

    threads: list[threading.Thread] = []
    bus.claim(0x330, 1, Device())
    assert bus.read8(0x330) == 1
    for thread in threads:
        thread.join()
    assert order == ["nested", "port", "timer"]


accesses = st.lists(
    st.tuples(
        st.booleans(),
        st.one_of(
            st.integers(0, 40 * PAGE),
            st.integers(-3 * PAGE, 3 * PAGE).map(lambda n: (1 << 24) + n),
            st.integers(0, 20 * PAGE).map(lambda n: (3 << 24) + n),
        ),
        st.integers(0, 6 * PAGE),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(accesses, st.lists(st.sampled_from([*LABELS, None]), min_size=32, max_size=32))
def test_the_bus_against_a_byte_model(steps: list[tuple[bool, int, int]], owners: list[str | None]) -> None:
    """Each byte goes where 24 wires send it, and is counted for the owner of its frame."""
    bus = bus_of(32)
    for page in reversed(range(32)):  # the highest free frame is handed out, so this gives page n to owners[n]
        assert bus.frames.allocate_run(1, owners[page] or "nobody") == page * PAGE
    bus.frames.free(page * PAGE for page, owner in enumerate(owners) if owner is None)
    model = bytearray(32 * PAGE)
    master = bus.master("aha0")
    size: dict[str, int] = {}
    touching: dict[str, int] = {}
    data = wrapped = 0
    for number, (write, address, length) in enumerate(steps):
        where = [(address + i) % (1 << 24) for i in range(length)]
        if write:
            text = bytes((number + 7 * i) % 251 for i in range(length))
            master.dma_write(address, memoryview(text))
            for at, byte in zip(where, text, strict=True):
                if at < len(model):
                    model[at] = byte
        else:
            assert master.dma_read(address, length) == bytes(model[at] if at < len(model) else 0xFF for at in where)
        labels = [(owners[at // PAGE] or FREE) if at < len(model) else UNCLAIMED for at in where]
        for label in set(labels):
            size[label] = size.get(label, 0) + labels.count(label)
            touching[label] = touching.get(label, 0) + 1
        data += not DATA_OWNERS.isdisjoint(labels)
        wrapped += length > 0 and address + length > 1 << 24
    assert bus.memory == model
    counts = master.statistics()
    assert counts["by_owner"] == {label: {"accesses": touching[label], "bytes": size[label]} for label in size}
    assert (counts["bytes"], counts["data_accesses"], counts["wrapped"]) == (sum(size.values()), data, wrapped)
    assert counts["reads"] + counts["writes"] == sum(length > 0 for _, _, length in steps)
