"""The pytest plugin of busdma: the fixture ``machine``, its options and its marker. See `busdma.testing`.

pytest imports this file in every run of everybody who has busdma installed. So it is no part of the package, whose
import costs a hundred times as much, and imports nothing of it until a test asks for a machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from busdma.machine.machine import Machine
    from busdma.testing.plugin import Choice

_CHOICE = "_busdma_choice"  # the fixture that is parametrised; `machine` may be somebody else's
_MACHINE = "busdma_machine"  # the property of a test that says which it was; so it is in JUnit's XML too
_CHECKED = ("busdma_machine", "busdma_runtime", "busdma_seed")  # the options that can be wrong
_OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("busdma", "machines for tests of drivers (busdma)")
    group.addoption(
        "--busdma-machine",
        metavar="GLOB",
        action="append",
        default=[],
        help="run tests that take `machine` on these, as listed by `busdma machines`; options may follow, as in "
        "'sim:pc-isa?bounce=17'; may be repeated; default: the simulated ones, or those that the test's marker names",
    )
    group.addoption(
        "--busdma-runtime",
        metavar="NAME",
        action="append",
        default=[],
        help="who carries the drivers: virtual (the default on simulated machines), asyncio (on the others) or "
        "threads; may be repeated",
    )
    group.addoption(
        "--busdma-seed",
        metavar="N",
        type=int,
        help="another run: page frames lie elsewhere, and drivers that can run take other turns",
    )
    group.addoption("--busdma-check", action="store_true", help="under the DMA checker: what it finds fails the test")


@pytest.hookimpl(trylast=True)  # a conftest.py may have machines of its own
def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and refuse options that no test could follow."""
    config.addinivalue_line(
        "markers",
        "busdma(drivers=..., buses=..., machine=..., runtimes=..., check=True): which machines the fixture `machine` "
        "is, those of these globs, with one of these drivers and one of these buses; under which runtimes; and the DMA "
        "checker, or not",
    )
    if any(config.getoption(option) not in ([], None) for option in _CHECKED):
        from busdma.testing.plugin import check_options

        check_options(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat a test that takes `machine` for every machine that fits."""
    if _CHOICE in metafunc.fixturenames:
        from busdma.testing.plugin import repeat

        repeat(metafunc, _CHOICE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say how to run a failed test again."""
    report = yield
    if call.excinfo is not None and _CHOICE in getattr(item, "fixturenames", ()):
        from busdma.testing.plugin import interrupted

        interrupted(item, report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the tests by machine, unless it is to be quiet."""
    counts: dict[str, dict[str, int]] = {}
    for outcome in _OUTCOMES:
        for report in terminalreporter.stats.get(outcome, ()):
            for name, spec in getattr(report, "user_properties", ()):
                if name == _MACHINE:
                    row = counts.setdefault(spec, {})
                    row[outcome] = row.get(outcome, 0) + 1
    if counts and terminalreporter.verbosity >= 0:
        width = max(map(len, counts))
        terminalreporter.write_sep("=", "tests by machine")
        for spec, row in counts.items():
            words = ", ".join(f"{row[outcome]:5} {outcome}" for outcome in _OUTCOMES if outcome in row)
            terminalreporter.write_line(f"{spec:{width}} {words}")


@pytest.fixture
def _busdma_choice(request: pytest.FixtureRequest) -> Choice:
    """Which machine."""
    choice: Choice = request.param
    return choice


@pytest.fixture
def machine(request: pytest.FixtureRequest, _busdma_choice: Choice) -> Generator[Machine]:
    """A machine that has just been switched on, one test for each that fits; closed afterwards. Leaks are failures."""
    from busdma.testing.plugin import switched_on

    if _busdma_choice.spec:
        request.node.user_properties.append((_MACHINE, _busdma_choice.spec))
    yield from switched_on(request.node, _busdma_choice)
