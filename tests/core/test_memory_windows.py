"""The CPU's side of DMA-safe memory: whole, in windows, run by run, past the caches; and what may be freed when."""

from __future__ import annotations

from collections.abc import Callable
from pickle import PickleBuffer

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from busdma.errors import BufferGone, ConstraintError, DriverError
from busdma.memory import DmaMemory
from busdma.memory_window import MemoryWindow
from core.small_machine import PAGE, SmallMachine


def scattered(small: SmallMachine, size: int) -> DmaMemory:
    """Memory in runs of one and two page frames."""
    small.frames.allocate_run(128, "kernel", within=small.below)
    small.frames.free(number * PAGE for number in range(128) if number % 4 in (0, 2, 3))
    return small.isa.alloc(size)


def test_a_window_is_the_memory(small: SmallMachine) -> None:
    memory = small.isa.alloc(3 * PAGE)
    with memory.map(PAGE - 2, 4) as window:
        assert (window.offset, window.length, len(window)) == (PAGE - 2, 4, 4)
        window.view[:] = b"abcd"
        window.write(b"CD", 2)
        assert window.read() == b"abCD"
        assert window.read(1, 2) == b"bC"
        at = int(memory.address) + PAGE - 2
        assert bytes(small.memory[at : at + 4]) == b"abCD"
        assert memory.statistics()["mapped"] == 4
    assert memory.statistics() == {
        "size": 3 * PAGE,
        "runs": 1,
        "segments": 1,
        "mapped": 0,
        "mapped_peak": 4,
        "shown": 0,
    }


def test_nothing_is_mapped_that_was_not_asked_for(small: SmallMachine) -> None:
    memory = small.isa.alloc(64 * PAGE, zero=False)
    for line in range(0, 64 * PAGE, 8192):
        with memory.map(line, 8192):
            pass
    assert memory.statistics()["mapped_peak"] == 8192


def test_scattered_memory_run_by_run(small: SmallMachine) -> None:
    memory = scattered(small, 6 * PAGE)
    assert memory.statistics()["runs"] == memory.statistics()["segments"]
    with memory.map() as window:
        assert sum(len(view) for view in window.views) == 6 * PAGE
        assert len(window.views) == memory.statistics()["runs"] > 1
        with pytest.raises(ConstraintError, match=r"runs of page frames, which no single view can show: use read"):
            window.view  # noqa: B018
        text = bytes(n % 253 for n in range(6 * PAGE))
        window.write(text)
        assert b"".join(bytes(view) for view in window.views) == text
        assert small.peek(memory.segments) == text
    with memory.map(10, 100) as part:  # within one page
        assert part.view == text[10:110]
    with pytest.raises(ConstraintError):
        memory.view  # noqa: B018
    memory.free()


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, 0), (5, -1), (0, 101), (100, 1), (101, None), (99, 2)])
def test_windows_outside_the_memory(small: SmallMachine, offset: int, length: int | None) -> None:
    memory = small.isa.alloc(100)
    with pytest.raises(DriverError, match="not 1 or more inside it"):
        memory.map(offset, length)


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 11), (11, 0), (3, -1)])
def test_access_outside_a_window(small: SmallMachine, offset: int, length: int) -> None:
    """Also where the memory goes on behind it."""
    memory = small.isa.alloc(100)
    with memory.map(20, 10) as window:
        with pytest.raises(DriverError, match="not inside"):
            window.read(offset, length)
        with pytest.raises(DriverError, match="not inside"):
            window.write(b"x" * 4, 7)
        assert window.read() == bytes(10)


def test_after_unmap_a_window_is_dead(small: SmallMachine) -> None:
    memory = small.isa.alloc(100)
    window = memory.map(20, 10)
    view = window.view
    window.unmap()
    window.unmap()
    uses: list[Callable[[], object]] = [
        window.read,
        lambda: window.write(b"x"),
        lambda: window.view,
        lambda: window.views,
        window.__enter__,
    ]
    for use in uses:
        with pytest.raises(BufferGone, match=r"window of 10 bytes at 20 of .* was unmapped; map it again"):
            use()
    with pytest.raises(ValueError, match="released"):
        view[0]
    assert repr(window).endswith(", unmapped>")


def test_memory_with_windows_is_not_freed(small: SmallMachine) -> None:
    memory = small.isa.alloc(100)
    windows = [memory.map(0, 10), memory.map(5, 10)]
    with pytest.raises(DriverError, match="2 of its windows are still mapped; unmap them first"):
        memory.free()
    for window in windows:
        window.unmap()
    memory.free()
    with pytest.raises(BufferGone):
        memory.map()


def test_an_array_over_a_view_keeps_all_of_the_window_mapped(small: SmallMachine) -> None:
    memory = scattered(small, 6 * PAGE)
    window = memory.map()
    array = PickleBuffer(window.views[1])
    with pytest.raises(DriverError, match="something still looks at its view; release that first"):
        window.unmap()
    window.write(b"7" * 6 * PAGE)  # it is still mapped, also before the view in question
    assert small.peek(memory.segments) == b"7" * 6 * PAGE
    array.release()
    window.unmap()
    assert memory.statistics()["mapped"] == 0
    memory.free()


def test_zeroed_unless_told_otherwise(small: SmallMachine) -> None:
    small.memory[:] = b"\xee" * len(small.memory)
    assert bytes(small.isa.alloc(PAGE + 5).view) == bytes(PAGE + 5)
    assert bytes(small.isa.alloc(PAGE + 5, zero=False).view) == b"\xee" * (PAGE + 5)


def test_coherent_where_the_caches_are_seen_is_no_different(small: SmallMachine) -> None:
    memory = small.isa.alloc(100, coherent=True)
    assert not memory.uncached
    memory.view[3] = 9
    assert small.memory[int(memory.address) + 3] == 9


class WindowsAgainstModel(RuleBasedStateMachine):
    """Windows over scattered memory come and go; a bytearray says what they must show."""

    def __init__(self) -> None:
        super().__init__()
        self.small = SmallMachine()
        self.memory = scattered(self.small, 7 * PAGE - 5)
        self.model = bytearray(7 * PAGE - 5)
        self.windows: list[MemoryWindow] = []
        self.peak = 0

    @rule(data=st.data())
    def map(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, len(self.model) - 1))
        self.windows.append(self.memory.map(offset, data.draw(st.integers(1, len(self.model) - offset))))
        self.peak = max(self.peak, sum(map(len, self.windows)))

    @precondition(lambda self: self.windows)
    @rule(data=st.data(), byte=st.integers(1, 255))
    def write(self, data: st.DataObject, byte: int) -> None:
        window = data.draw(st.sampled_from(self.windows))
        at = data.draw(st.integers(0, len(window)))
        text = bytes((byte,)) * data.draw(st.integers(0, len(window) - at))
        window.write(text, at)
        self.model[window.offset + at : window.offset + at + len(text)] = text

    @precondition(lambda self: self.windows)
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        window = data.draw(st.sampled_from(self.windows))
        self.windows.remove(window)
        window.unmap()

    @invariant()
    def all_agree(self) -> None:
        assert self.small.peek(self.memory.segments) == self.model
        for window in self.windows:
            assert window.read() == self.model[window.offset : window.offset + len(window)]
            assert b"".join(map(bytes, window.views)) == window.read()
        statistics = self.memory.statistics()
        assert (statistics["mapped"], statistics["mapped_peak"]) == (sum(map(len, self.windows)), self.peak)


WindowsAgainstModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, derandomize=True
)
TestWindowsAgainstModel = WindowsAgainstModel.TestCase
