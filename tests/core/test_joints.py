"""Joints: where one segment ends and the next begins. A device with PRPs takes only whole pages in between."""

from __future__ import annotations

import mmap
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.constraints import Constraints
from busdma.domain import DmaDomain
from busdma.errors import ConstraintError
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import AddressSpace
from busdma.runtime import by_name
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction

PAGE = 4096
ROOT = Constraints.unlimited("root")


def domain(pages: int = 1024, limit: int = 128) -> tuple[DmaDomain, AddressSpace]:
    memory = memoryview(mmap.mmap(-1, pages * PAGE))
    frames = FrameAllocator(0, pages, seed=5)
    made = DmaDomain(memory, frames, by_name("virtual"), bounce_limit=limit)
    return made, AddressSpace("kernel", memory, frames, pages=pages)


def test_a_child_only_narrows() -> None:
    parent = ROOT.narrow("parent", joint=512)
    assert parent.narrow("child", joint=4096).joint.value == 4096
    assert parent.narrow("child").joint.origin == "parent"
    assert parent.narrow("child", joint=4, clip=True).joint.value == 512
    with pytest.raises(ConstraintError, match="joint 4 is wider than its parent's 512"):
        parent.narrow("child", joint=4)
    with pytest.raises(ConstraintError, match="power of two"):
        ROOT.narrow("child", joint=3)
    assert not ROOT.narrow("a", joint=512).subset_of(ROOT.narrow("b", joint=4096))


@pytest.mark.parametrize(
    "limits",
    [
        {"boundary": 512},
        {"maxsegsz": 8192},
        {"maxsegsz": 8192, "maxsize": 16384, "nsegments": 4},
        {"maxsegsz": 4096, "boundary": 8192},
        {"maxsegsz": 8193, "maxsize": 8193, "alignment": 4, "nsegments": 9},
    ],
)
def test_what_would_cut_segments_elsewhere(limits: dict[str, Any]) -> None:
    with pytest.raises(ConstraintError, match="joints at multiples of 4096"):
        ROOT.narrow("device", joint=4096, **limits)


@pytest.mark.parametrize(
    "limits", [{}, {"boundary": 4096}, {"boundary": 8192, "maxsegsz": 8192}, {"maxsize": 8192, "maxsegsz": 8192}]
)
def test_what_would_not(limits: dict[str, Any]) -> None:
    assert ROOT.narrow("device", joint=4096, **limits).joint.value == 4096


def test_joints_wider_than_a_page() -> None:
    made, _ = domain()
    with pytest.raises(ConstraintError, match="page size of this machine"):
        made.root("root").derive("device", joint=8192)


def test_explain_says_why_everything_moves() -> None:
    made, kernel = domain()
    tag = made.root("root").derive("device", alignment=4, joint=PAGE, nsegments=17, maxsize=16 * PAGE)
    explanation = tag.explain(kernel.allocate(3 * PAGE, offset=1))
    assert [page.mechanism for page in explanation.pages] == ["bounce"] * 4
    assert "not aligned to 4" in explanation.pages[0].reason
    assert "joined into one run: joint is 4096, set by tag 'device'" in explanation.pages[1].reason
    assert [page.mechanism for page in tag.explain(kernel.allocate(3 * PAGE, offset=8)).pages] == ["direct"] * 4


@settings(max_examples=60)
@given(
    st.integers(0, PAGE - 1),
    st.integers(1, 12 * PAGE),
    st.sampled_from([1, 4, 64]),
    st.sampled_from([1, 512, PAGE]),
    st.sampled_from([0, PAGE, 4 * PAGE]),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([4, 13]),
)
def test_every_joint_holds_and_every_byte_arrives(
    offset: int, length: int, alignment: int, joint: int, boundary: int, high: int, reserve: bool, few: int
) -> None:
    """Buffers anywhere in their first page, some of their pages out of reach."""
    made, kernel = domain()
    tag = made.root("root").derive(
        "device",
        alignment=alignment,
        joint=joint,
        boundary=boundary,
        nsegments=13 if boundary else few,
        maxsize=12 * PAGE,
        lowaddr=1024 * PAGE - 1 - high * 256 * PAGE,
    )
    data = random.Random(length).randbytes(length)
    buffer = kernel.allocate(length, offset=offset)
    buffer.write(data)
    map = tag.create_map(reserve=reserve)
    map.load_nowait(buffer, Direction.BOTH)
    map.sync(PREREAD | PREWRITE)
    found, end = [], 0
    for number, (address, size) in enumerate(map.segments):
        assert address % alignment == 0
        if number:
            assert address % joint == end % joint == 0
        end = address + size
        found.append(made.memory[address:end])
    assert b"".join(found) == data
    answer = random.Random(length + 1).randbytes(length)
    at = 0
    for piece in found:
        piece[:] = answer[at : at + len(piece)]
        at += len(piece)
    map.sync(POSTREAD | POSTWRITE)
    map.unload()
    assert buffer.read() == answer
