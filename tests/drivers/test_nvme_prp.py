"""PRPs from segments: a table of cases, and every byte against the walk of the model, which was written from the
device's side."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers.nvme.prp import arrange, list_size, pages
from busdma.errors import MappingRefused
from busdma.sim.nvme.queue import walk

P = 4096


@pytest.mark.parametrize(
    ("segments", "entries"),
    [
        ([(0x1000, 512)], [0x1000]),
        ([(0x1004, P - 4)], [0x1004]),
        ([(0x1FFC, 4)], [0x1FFC]),
        ([(0x1000, P + 1)], [0x1000, 0x2000]),
        ([(0x1FFC, 8)], [0x1FFC, 0x2000]),
        ([(0x1E00, 0x200), (0x8000, 0x200)], [0x1E00, 0x8000]),
        ([(0x1000, 3 * P)], [0x1000, 0x2000, 0x3000]),  # adjacent pages stay one segment, and are told one by one
        ([(0x1800, 0x1800), (0x9000, P), (0x4000, 1)], [0x1800, 0x2000, 0x9000, 0x4000]),
        ([(2**64 - P, P)], [2**64 - P]),
        ([(2**64 - 2 * P + 8, 2 * P - 8)], [2**64 - 2 * P + 8, 2**64 - P]),
    ],
)
def test_pages_of_segments(segments: list[tuple[int, int]], entries: list[int]) -> None:
    assert pages(segments) == entries


@pytest.mark.parametrize(
    "segments",
    [
        [(0x1001, 512)],
        [(0x1002, 512)],
        [(0x1000, 512), (0x2000, 512)],  # the first ends inside its page
        [(0x1000, P), (0x2004, 512)],  # the second begins inside its page
        [(0x1000, P), (0x3000, P - 4), (0x4000, P)],
        [(0x1000, 0)],
    ],
)
def test_segments_that_are_no_prps(segments: list[tuple[int, int]]) -> None:
    with pytest.raises(MappingRefused, match="joint=4096"):
        pages(segments)


@pytest.mark.parametrize(
    ("count", "lists", "prp2", "written"),
    [
        (1, [], 0, []),
        (2, [], 1, []),
        (3, [0x5000], 0x5000, [2]),
        (513, [0x5000], 0x5000, [512]),  # the page's last word is a PRP, for no list follows
        (514, [0x5000, 0x8000], 0x5000, [512, 2]),  # now it is the next list's address
        (3, [0x5FF0], 0x5FF0, [2]),
        (4, [0x5FF0, 0x8000], 0x5FF0, [2, 2]),
        (4, [0x5FF8, 0x8000], 0x5FF8, [1, 3]),
        (1025, [0x5000, 0x8000, 0x9000], 0x5000, [512, 512, 2]),
    ],
)
def test_lists(count: int, lists: list[int], prp2: int, written: list[int]) -> None:
    entries = [P * number for number in range(count)]
    first, second, found = arrange(entries, lists)
    assert first == 0
    assert second == (P if prp2 == 1 else prp2)
    assert [len(words) for words in found] == written
    for number, words in enumerate(found[:-1]):
        assert words[-1] == lists[number + 1]


def test_too_few_lists() -> None:
    entries = [P * number for number in range(514)]
    for lists in ([], [0x5000], [0x5FF8, 0x8000]):
        with pytest.raises(MappingRefused, match="do not fit"):
            arrange(entries, lists)


@pytest.mark.parametrize(
    ("entries", "size"),
    [(1, 8), (2, 8), (3, 16), (33, 256), (34, 512), (513, P), (514, 2 * P), (1024, 2 * P), (1025, 3 * P)],
)
def test_room_for_lists(entries: int, size: int) -> None:
    assert list_size(entries) == size


@st.composite
def segment_lists(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Segments that join at pages, some of them many pages long."""
    sizes = draw(st.lists(st.one_of(st.integers(1, 5), st.integers(300, 700)), min_size=1, max_size=6))
    order = random.Random(draw(st.integers(0, 99)))
    found, at = [], P
    for size in sizes:
        at += P * order.randrange(0, 3)
        found.append((at, P * size))
        at += P * size
    order.shuffle(found)
    head, tail = 4 * draw(st.integers(0, P // 4 - 1)), draw(st.integers(0, P - 1))
    found[0] = (found[0][0] + head, found[0][1] - head)
    address, length = found[-1]
    found[-1] = (address, max(length - tail, 1 if len(found) > 1 else min(length, 4)))
    return found


@given(segment_lists(), st.integers(0, 511))
def test_the_device_finds_every_byte_and_no_other(segments: list[tuple[int, int]], word: int) -> None:
    entries = pages(segments)
    size = list_size(len(entries))
    listed = 8 * max(len(entries) - 1, 1)
    base = 1 << 40
    begin = base + (8 * word if listed <= P - 8 * word else 0)
    lists = [begin] if listed <= P - (begin - base) else [base + P * number for number in range(size // P)]
    prp1, prp2, written = arrange(entries, lists)
    memory = {address: struct.pack(f"<{len(words)}Q", *words) for address, words in zip(lists, written, strict=False)}

    def read(address: int, length: int) -> bytes:
        assert length <= len(memory[address])
        return memory[address][:length]

    length = sum(length for _, length in segments)
    told = walk(read, prp1, prp2, length)
    assert sum(count for _, count in told) == length
    joined: list[list[int]] = []
    for address, count in told:
        if joined and joined[-1][0] + joined[-1][1] == address:
            joined[-1][1] += count
        else:
            joined.append([address, count])
    expected: list[list[int]] = []
    for address, count in segments:
        if expected and expected[-1][0] + expected[-1][1] == address:
            expected[-1][1] += count
        else:
            expected.append([address, count])
    assert joined == expected
