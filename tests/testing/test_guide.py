"""docs/testing.md: its examples work, its commands run, and what it shows is what they print."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import busdma_pytest
from busdma.testing import conformance

pytest_plugins = ("pytester",)

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
QUIET = ("-p", "no:cacheprovider", "-W", "error")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def text(done: pytest.RunResult) -> str:
    return "\n".join(done.outlines + done.errlines)


@pytest.fixture
def guide(pytester: pytest.Pytester) -> pytest.Pytester:
    """The three files of docs/testing.md, in a folder of their own, which is not on the path."""
    driver, test = blocks("python")
    (ini,) = blocks("ini")
    pytester.makepyfile(echo=driver, test_echo=test)
    (pytester.path / "pytest.ini").write_text(ini, encoding="utf-8")
    return pytester


def test_the_examples_of_the_guide_work(guide: pytest.Pytester) -> None:
    done = guide.runpytest_subprocess(*QUIET, "-v")
    done.assert_outcomes(passed=8)
    assert "test_echo.py::test_what_goes_in_comes_out[sim:x86-64?iommu=on-4000] PASSED" in text(done)


def test_the_examples_need_no_more_than_their_folder(guide: pytest.Pytester) -> None:
    """Nothing else brings it to Python's path: neither how pytest imports a test, nor how it was called."""
    command = [sys.executable, "-P", "-m", "pytest", "--import-mode=importlib", *QUIET]
    done = subprocess.run(command, cwd=guide.path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (guide.path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    done = subprocess.run(command, cwd=guide.path, capture_output=True, text=True, check=False)
    assert "No module named 'echo'" in done.stdout


def test_what_the_guide_shows(guide: pytest.Pytester) -> None:
    """The PC is coherent, and the data comes out right; the checker sees the mistake nevertheless."""
    counted, found, again = blocks("text")
    for line in counted.splitlines():
        assert line in text(guide.runpytest_subprocess(*QUIET, "test_echo.py"))
    guide.makeconftest(
        """
        import busdma

        real = busdma.Map.sync
        busdma.Map.sync = lambda map, op, *range: None if op is busdma.PREWRITE else real(map, op, *range)
        """
    )
    done = guide.runpytest_subprocess(*QUIET, "--busdma-machine", "sim:x86-64", "test_echo.py")
    assert done.ret == 1
    for words in re.split(r"\n *|\.\.\.", found + again):
        assert words in text(done)
    (line,) = [line for line in again.splitlines() if line.startswith("pytest ")]
    alone = guide.run(sys.executable, "-m", *shlex.split(line), *QUIET)
    alone.assert_outcomes(failed=1, deselected=0)


def test_the_commands_of_the_guide(guide: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    starved, seeds, carriers, suite = blocks("sh")
    for script, passed in ((starved, 8), (seeds, 3 * 8), (carriers, 3 * 8)):
        done = guide.run("sh", "-c", script)
        assert sum(int(count) for count in re.findall(r"(\d+) passed in", text(done))) == passed, text(done)
        assert "failed" not in text(done)
    for line in suite.splitlines():
        collected = guide.run("sh", "-c", f"{line} --collect-only -q")
        assert re.search(r"\d\d\d tests collected", text(collected)), text(collected)


def test_the_guide_names_every_option_and_every_module() -> None:
    options = set(re.findall(r'"(--busdma-[a-z]+)"', (Path(busdma_pytest.__file__)).read_text(encoding="utf-8")))
    assert options == set(re.findall(r"--busdma-[a-z]+", GUIDE))
    modules = {path.stem for path in Path(conformance.__path__[0]).glob("test_*.py")}
    assert modules == set(re.findall(r"^\| `(test_\w+)` \|", GUIDE, re.MULTILINE))
