"""What is wrong in a marker or an option is said in a line, with the name of the test, and never skips it."""

from __future__ import annotations

import pytest

pytest_plugins = ("pytester",)


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makeini("[pytest]")
    pytester.makepyfile(test_m=source)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *options)


def text(done: pytest.RunResult) -> str:
    return "\n".join(done.outlines + done.errlines)


MARKED = """
import pytest

@pytest.mark.busdma({words})
def test_typo(machine): pass
"""


WRONG = {
    'driver="edu"': "the marker busdma has no argument 'driver'; it has drivers, buses, machine, runtimes, check",
    '"edu"': "the marker busdma takes names with its arguments, not 'edu' alone: write drivers= or buses= or machine=",
    'drivers="eud"': "there is no driver 'eud'; did you mean 'edu'?",
    'drivers=("edu", "eud")': "there is no driver 'eud'; did you mean 'edu'?",
    'drivers="zzzz"': "there is no driver 'zzzz'; there are: aha1542, bt, ",
    'buses="pic"': "there is no bus 'pic'; did you mean 'pci'?",
    'buses="zzzz"': "there is no bus 'zzzz'; there are: isa, ",
    'machine="sim:foo"': "no machine matches 'sim:foo'; ",
    'machine="sim:pc-isb"': "no machine matches 'sim:pc-isb'; did you mean 'sim:pc-isa'?",
    'machine=["sim:pc-isa", "sim:foo"]': "no machine matches 'sim:foo'; ",
    'machine="sim:mips?bounce=9&seed"': "sim:mips?bounce=9&seed: options are written ?name=value&name=value",
    'runtimes="steam"': "there is no runtime 'steam'; there are: virtual, asyncio, threads",
    'runtimes=["thread"]': "there is no runtime 'thread'; did you mean 'threads'?",
    "drivers=7": "the marker busdma has drivers=7: give a name, or a tuple of names",
    'buses=("pci", 7)': "the marker busdma has buses=('pci', 7): give a name, or a tuple of names",
    "runtimes=()": "the marker busdma has runtimes=(): give a name, or a tuple of names",
    'machine={"sim:mips": 1}': "the marker busdma has machine={'sim:mips': 1}: give a name, or a tuple of names",
    'check="yes"': "the marker busdma has check='yes': give True or False",
}


def test_wrong_markers(pytester: pytest.Pytester) -> None:
    """A few lines for each: pytest's own about the file, ours, and pytest's summary."""
    pytester.makeini("[pytest]")
    files = [pytester.makepyfile(**{f"test_{at:02}": MARKED.format(words=words)}) for at, words in enumerate(WRONG)]
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")
    assert done.ret == pytest.ExitCode.INTERRUPTED
    assert f"{len(WRONG)} errors during collection" in text(done)
    for file, said in zip(files, WRONG.values(), strict=True):
        (line,) = [line for line in done.outlines if line.startswith(f"{file.name}::")]
        assert line.startswith(f"{file.name}::test_typo: {said}")
    assert "busdma/testing" not in text(done)
    assert "pluggy/" not in text(done)
    assert len(done.outlines) < 3 * len(WRONG) + 15


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--busdma-machine", "sim:nothing"], "--busdma-machine: no machine matches 'sim:nothing'; "),
        (["--busdma-machine", "sim:pc-isa?bounce=9&"], "--busdma-machine: sim:pc-isa?bounce=9&: options are written ?"),
        (["--busdma-runtime", "steam"], "--busdma-runtime: there is no runtime 'steam'; there are: virtual, asyncio, "),
        (["--busdma-seed", "x"], "invalid int value: 'x'"),
        (["--busdma-seed", "-1"], "--busdma-seed -1: give 0 or more"),
    ],
)
def test_a_wrong_option(pytester: pytest.Pytester, options: list[str], said: str) -> None:
    """Before any test is looked for, in a line."""
    done = run(pytester, "def test_a(machine): pass", *options)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert said in text(done)
    assert len([*done.outlines, *done.errlines]) < 8


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sim:pc-isa?bonce=17", "sim:pc-isa?bonce=17: no option bonce; there are: bounce, "),
        ("sim:pc-isa?bounce=0", "sim:pc-isa?bounce=0: bounce=0 is too small: give 1 or more"),
    ],
)
@pytest.mark.parametrize("where", ["option", "marker"])
def test_a_wrong_option_of_a_machine(pytester: pytest.Pytester, spec: str, said: str, where: str) -> None:
    """Only the machine knows its options: the tests that would have it fail, each with a line."""
    words = f'machine="{spec}"' if where == "marker" else ""
    done = run(pytester, MARKED.format(words=words), *(["--busdma-machine", spec] if where == "option" else []))
    done.assert_outcomes(errors=1)
    assert any(line.startswith(said) for line in done.outlines)
    assert "spec.py" not in text(done)
    assert f"ERROR test_m.py::test_typo[{spec}]" in text(done)


def test_machines_of_a_conftest_are_known(pytester: pytest.Pytester) -> None:
    """A back end that is only in the table once the tests' own conftest.py has run."""
    pytester.makeconftest(
        """
        import busdma.machines as machines

        def pytest_configure(config):
            entry = machines.Entry("busdma.sim.pc_isa", "mine", ("mybus",), ("mydriver",))
            machines.MACHINES["mine:one"] = entry
        """
    )
    source = """
    import pytest

    @pytest.mark.busdma(machine="mine:*", drivers="mydriver", buses="mybus")
    def test_mine(machine): assert False
    """
    done = run(pytester, source, "--busdma-machine", "mine:one", "-rs")
    done.assert_outcomes(skipped=1)
    assert "mine:one has no device of mydriver here" in text(done)
