"""A failed test shows the driver's line, and not the way through busdma to it; a bug of busdma is shown whole."""

from __future__ import annotations

import re

import pytest

from busdma.errors import DeviceFault, MapStateError, WaitCancelled
from busdma.tracebacks import hidden

pytest_plugins = ("pytester",)

CASES = {
    "cannot load map '1' of tag pc/isa/aha0: it is loaded": "map.load_nowait(it); map.load_nowait(it)",
    "longer than maxsize 100": "tag.derive('short', maxsize=100).create_map().load_nowait(it)",
    "it was released": "it.free(); await map.load(it)",
    "it is read-only": "map.load_blocking(bytes(9), Direction.BOTH)",
    "cannot load 'int'": "map.load_callback(7, print)",
    "direct: 2 pages out of reach": "tag.derive('one', nsegments=1, maxsegsz=4096).create_map().load_nowait(it)",
    "give PREREAD, PREWRITE": "map.load_nowait(it); map.sync(PREREAD | POSTREAD)",
    "unload once after each load": "map.unload()",
    "wider than its parent's": "tag.derive('x', maxsize=10).derive('y', maxsize=11)",
    "could never hold it": "tag.alloc(1 << 40)",
    "(busy)": "map.load_nowait(MUCH, TO_DEVICE); tag.create_map().load_nowait(MUCH, TO_DEVICE)",
    "the deadline passed": "map.load_nowait(MUCH, TO_DEVICE); await tag.create_map().load(MUCH, TO_DEVICE, deadline=9)",
    "the device is on fire": "raise DeviceFault('the device is on fire')",
    "not inside kernel buffer": "it.write(bytes(10_000))",
}

SOURCE = """
import pytest
from busdma import *

TO_DEVICE, MUCH = Direction.TO_DEVICE, bytes(4 * 4096)

class Driver:
    def __init__(self, attachment):
        self.tag = attachment.tag

    async def work(self, it):
        tag = self.tag
        map = tag.create_map()
        {line}

@pytest.mark.busdma(machine="sim:pc-isa?bounce=4", runtimes=("virtual", "asyncio", "threads"))
def test_it(machine):
    machine.run(Driver(machine.attachment("aha0")).work, machine.allocate(9000))
"""


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def frames(done: pytest.RunResult) -> list[str]:
    """Of every traceback, in ``--tb=short``: ``file.py:name``."""
    return re.findall(r"^(\S+\.py:\d+: in \S+)$", "\n".join(done.outlines), re.MULTILINE)


def test_the_last_line_is_the_drivers(pytester: pytest.Pytester) -> None:
    files = {f"test_case{number:02}": SOURCE.format(line=line) for number, line in enumerate(CASES.values())}
    pytester.makeini("[pytest]")
    pytester.makepyfile(**files)
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--tb=short")
    done.assert_outcomes(failed=3 * len(CASES))
    first = SOURCE[: SOURCE.index("{line}")].count("\n")  # makepyfile strips the empty line
    shown = 3 * [f"{first + 4}: in test_it", f"{first}: in work"]  # once under each runtime
    expected = [f"test_case{number:02}.py:{frame}" for number in range(len(CASES)) for frame in shown]
    assert frames(done) == expected
    for said in CASES:
        assert len([line for line in done.outlines if line.startswith("E ") and said in line]) == 3, said


def test_a_bug_of_busdma_is_shown_whole(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.busdma(machine="sim:pc-isa")
        def test_it(machine, monkeypatch):
            monkeypatch.setattr("busdma.map.place", lambda *arguments: 1 / 0)
            machine.attachment("aha0").tag.create_map().load_nowait(bytearray(9))
        """
    )
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--tb=short")
    done.assert_outcomes(failed=1)
    assert [re.sub(r".*[/\\](\w+\.py):\d+", r"\1", frame) for frame in frames(done)][1:3] == [
        "faces.py: in load_nowait",
        "map.py: in _try",
    ]


def test_what_is_hidden() -> None:
    for error, expected in (
        (MapStateError("it is loaded"), True),
        (DeviceFault("it is dead"), True),
        (WaitCancelled(), True),
        (TypeError(), False),
        (KeyboardInterrupt(), False),
    ):
        assert hidden(pytest.ExceptionInfo.from_exc_info((type(error), error, None))) is expected  # type: ignore[arg-type]
    assert hidden(None) is False
