"""Devices that run by themselves: what they write into a ring while the driver looks at it is not lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from busdma.check.sides import Sides, poison
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from check.bench import POST, PRE, Bench

ENTRY = 16


def test_an_entry_written_during_a_look_is_found_at_the_next() -> None:
    with Bench(watched=False) as bench:
        ring = bench.tag.alloc(4 * ENTRY)
        ring.sync(PREREAD)
        ring.sync(POSTREAD, ENTRY, ENTRY)
        assert bytes(ring.view[ENTRY : 2 * ENTRY]) == bytes(ENTRY)
        bench.device.dma_write(ring.address + ENTRY, b"completed it now")
        ring.sync(PREREAD, ENTRY, ENTRY)
        ring.sync(POSTREAD, ENTRY, ENTRY)
        assert bytes(ring.view[ENTRY : 2 * ENTRY]) == b"completed it now"
        ring.sync(PREREAD, ENTRY, ENTRY)
        bench.tag.report_idle()
        ring.free()
    assert bench.labels() == []


def test_what_the_driver_stores_during_a_look_reaches_the_device_and_nothing_else_does() -> None:
    with Bench(watched=False) as bench:
        ring = bench.tag.alloc(4 * ENTRY)
        ring.sync(PRE)
        ring.sync(POST, 0, ENTRY)
        ring.view[0:4] = b"ours"
        bench.device.dma_write(ring.address + 8, b"theirs")
        ring.sync(PRE, 0, ENTRY)
        assert bench.reads([(ring.address, ENTRY)]) == b"ours" + bytes(4) + b"theirs" + bytes(2)
        ring.sync(POSTREAD | POSTWRITE)
        ring.free()
    assert bench.labels() == []


def test_data_is_poison_for_a_late_device_all_the_same() -> None:
    """Only memory that is shared for good is looked at; what was loaded for a transfer comes back for good."""
    with Bench(watched=False) as bench:
        buffer = bench.near(100)
        buffer.write(bytes(100))
        map = bench.loaded(buffer)
        segments = [(int(address), length) for address, length in map.segments]
        map.sync(PREREAD | PREWRITE)
        map.sync(POSTREAD | POSTWRITE)
        assert bytes(ENTRY) not in bench.reads(segments)
        map.unload()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["look", "give", "cpu", "device"]),
            st.integers(0, 7),
            st.integers(1, 8),
            st.binary(min_size=8, max_size=8),
        ),
        max_size=40,
    )
)
def test_against_a_plain_memory(steps: list[tuple[str, int, int, bytes]]) -> None:
    """The device's side is what a coherent memory would be, with the CPU's stores arriving when they are given."""
    sides = Sides(memoryview(bytearray(8)), memoryview(bytearray(8)))
    sides.give(0, 8)
    plain, looked = bytearray(8), dict[int, int]()  # what was looked at, and is the CPU's, byte by byte
    for what, at, size, data in steps:
        size = min(size, 8 - at)
        mine = all(byte in looked for byte in range(at, at + size))
        if what == "look" and not any(byte in looked for byte in range(at, at + size)):
            sides.look(at, size)
            looked |= dict(zip(range(at, at + size), plain[at : at + size], strict=True))
            assert sides.cpu[at : at + size] == plain[at : at + size]
        elif what == "cpu" and mine:
            sides.cpu[at : at + size] = data[:size]
        elif what == "device":
            sides.device[at : at + size] = plain[at : at + size] = data[:size]
        elif what == "give" and mine:
            whole = {each for each in sides._looked if each == (at, size)}
            for byte in range(at, at + size):
                if not whole or sides.cpu[byte] != looked[byte]:
                    plain[byte] = sides.cpu[byte]
            sides.give(at, size)
            for byte in range(at, at + size):
                looked.pop(byte)
            assert sides.cpu[at : at + size] == poison(at, size)
        assert sides.device.tobytes() == plain
