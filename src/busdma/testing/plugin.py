"""What the pytest plugin does once a test asks for a machine: which machines fit, and a fresh one for each test.

pytest loads `busdma_pytest`, which is small and calls this.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pytest

import busdma
from busdma.errors import ConfigurationError
from busdma.machine.machine import Machine
from busdma.machine.spec import with_option
from busdma.machines import Entry, select, specs, why_not
from busdma.runtime import NAMES
from busdma.testing.marker import Marker, known, read, selected

_MACHINE: Final = pytest.StashKey[Machine]()
_CHOICE: Final = pytest.StashKey["Choice"]()
_INTERRUPTED: Final = pytest.StashKey[bool]()
SEEDED: Final = ("sim", "qemu")  #: the families of machines that have an option ``seed``


@dataclass(frozen=True, slots=True)
class Choice:
    """One machine for one test."""

    spec: str
    runtime: str = ""  #: if it is not the machine's usual one
    seed: int | None = None
    check: bool = False
    drivers: tuple[frozenset[str], ...] = ()  #: of each of these, a device of one
    why_not: str = ""  #: then there is none

    def __str__(self) -> str:
        """How the test is called on it."""
        name = self.spec or "none"
        return f"{name}-{self.runtime}" if self.runtime else name

    def open(self) -> Machine:
        """Switch it on; a runtime made for it goes with it."""
        if self.seed is None:
            return busdma.open(self.spec, runtime=self.runtime or None, check=self.check)
        family, _, options = self.spec.partition(":")
        said = any(option.startswith("seed=") for option in options.partition("?")[2].split("&"))
        spec = self.spec if said or family not in SEEDED else with_option(self.spec, "seed", self.seed)
        carrier = _line(self.spec)[1].carrier(self.runtime or None, seed=self.seed)
        try:
            machine = busdma.open(spec, runtime=carrier, check=self.check)
        except BaseException:
            carrier.close()
            raise
        machine.at_close(carrier.close)
        return machine


# -- before the tests -------------------------------------------------------------------------------------------------


def check_options(config: pytest.Config) -> None:
    """pytest.UsageError for an option that no test could follow."""
    for pattern in config.getoption("busdma_machine"):
        _blaming("--busdma-machine", selected, pattern)
    for name in config.getoption("busdma_runtime"):
        _blaming("--busdma-runtime", known, name, "runtime", NAMES)
    seed = config.getoption("busdma_seed")
    if seed is not None and seed < 0:
        raise pytest.UsageError(f"--busdma-seed {seed}: give 0 or more")


def repeat(metafunc: pytest.Metafunc, fixture: str) -> None:
    """Have the test run once for every choice that it has. A marker that cannot be meant fails the collection."""
    definition = metafunc.definition
    try:
        found = choices(metafunc.config, [read(mark) for mark in definition.iter_markers("busdma")])
    except pytest.UsageError as error:
        raise pytest.fail.Exception(f"{definition.nodeid}: {error}", pytrace=False) from None
    metafunc.parametrize(fixture, found, ids=str, indirect=True)


def choices(config: pytest.Config, markers: Sequence[Marker]) -> list[Choice]:
    """The machines for a test with these markers, the closest first; one without a spec if none fits."""
    patterns: list[str] = config.getoption("busdma_machine")
    check = next((each.check for each in markers if each.check is not None), config.getoption("busdma_check"))
    drivers = tuple(each.drivers for each in markers if each.drivers is not None)
    option: list[str] = config.getoption("busdma_runtime")
    wanted = next((each.runtimes for each in markers if each.runtimes is not None), frozenset(option))
    seed = config.getoption("busdma_seed")
    found: list[Choice] = []
    missing: list[str] = []
    for spec in dict.fromkeys(spec for pattern in patterns or [_usual(markers)] for spec in select(pattern)):
        line, entry = _line(spec)
        fitting = [spec]
        for marker in markers:
            fitting = [left for each in fitting for left in marker.narrowed(line, each, entry)]
        runtimes = [name for name in entry.runtimes if name in wanted] if wanted else [""]
        if not runtimes:
            missing.append(f"{spec} keeps real time, which {' and '.join(sorted(wanted))} cannot")
            continue
        lacking = why_not(spec) if fitting else ""
        for each in fitting:
            if lacking:
                missing.append(f"{each} cannot be opened here: {lacking}")
            if patterns or not lacking:
                usual = entry.runtimes[0]
                found += [
                    Choice(each, "" if name == usual else name, seed, check, drivers, lacking and missing[-1])
                    for name in runtimes
                ]
    if found:
        return list(dict.fromkeys(found))
    asked = ", ".join(each.asked for each in markers if each.asked)
    where = " and ".join(patterns or [_usual(markers)])
    return [Choice("", why_not="; ".join(missing) or f"no machine fits {asked or 'at all'} among {where}")]


def _usual(markers: Sequence[Marker]) -> str:
    """The machines of a test if no option says: all that it names; and if it names none, those that keep virtual time
    and give the same answers every time."""
    return "*" if any(each.machines is not None for each in markers) else "sim:*"


def _blaming(option: str, fn: Callable[..., object], *args: object) -> None:
    try:
        fn(*args)
    except pytest.UsageError as error:
        raise pytest.UsageError(f"{option}: {error}") from None


def _line(spec: str) -> tuple[str, Entry]:
    """Which line of the table of machines `spec` is, whatever other options it has."""
    name, _, options = spec.partition("?")
    lines = specs()
    said = set(options.split("&"))
    for line, entry in lines.items():
        base, _, variant = line.partition("?")
        if base == name and variant and said >= set(variant.split("&")):
            return line, entry
    return name, lines[name]


# -- around a test ----------------------------------------------------------------------------------------------------


def switched_on(item: pytest.Item, choice: Choice) -> Generator[Machine]:
    """The machine for one test, and what must be true of it afterwards. A test that failed is not asked for leaks."""
    if choice.why_not:
        _do_without(choice.why_not)
    item.stash[_CHOICE] = choice
    try:
        machine = item.stash[_MACHINE] = choice.open()
    except ConfigurationError as error:  # an option of the spec; its message says what there is
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    try:
        for wanted in choice.drivers:
            if not any(device.driver in wanted for device in machine.devices.values()):
                absent = "; ".join(f"{name}: {why}" for name, why in machine.absent.items())
                _do_without(f"{machine.spec} has no device of {' or '.join(sorted(wanted))} here ({absent})")
        yield machine
    finally:
        machine.close()
        del item.stash[_MACHINE]
    if not item.stash.get(_INTERRUPTED, False):
        wrong = "\n".join([*_leaked(machine), *_found(machine)])
        if wrong:
            pytest.fail(wrong, pytrace=False)


def interrupted(item: pytest.Item, report: pytest.TestReport) -> None:
    """A test, or what came before or after it, was left by an exception: tell what is known of the machine."""
    choice = item.stash.get(_CHOICE, None)
    if report.when != "teardown":
        item.stash[_INTERRUPTED] = True
    if choice is None or not report.failed:
        return
    machine = item.stash.get(_MACHINE, None)
    if machine is not None and (findings := "\n".join(_found(machine))):
        report.sections.append(("busdma: the DMA checker", findings))
    report.sections.append(("busdma: to run it again", _replay(item, choice)))


def _do_without(reason: str) -> None:
    """Skip the test; where CI=true is set, what was not tested is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (skipped where CI=true is not set)", pytrace=False)
    pytest.skip(reason)


def _leaked(machine: Machine) -> Iterator[str]:
    """What was held when the machine was closed, by the test or after it."""
    if leaks := machine.leaks():
        yield f"{machine.spec}: unload what was loaded, free what was allocated and stop the drivers; at the end"
        yield from (f"  {leak}" for leak in leaks)


def _found(machine: Machine) -> Iterator[str]:
    if machine.checker is not None and len(machine.checker.findings):
        yield f"{machine.spec}: the DMA checker found"
        yield from (f"  {finding}" for finding in machine.checker.findings)


def _replay(item: pytest.Item, choice: Choice) -> str:
    _, separator, test = item.nodeid.partition("::")
    file = os.path.relpath(item.path, item.config.invocation_params.dir)
    words = ["pytest", f"{file}{separator}{test}", "--busdma-machine", choice.spec]
    if choice.runtime:
        words += ["--busdma-runtime", choice.runtime]
    if choice.seed is not None:
        words += ["--busdma-seed", str(choice.seed)]
    if choice.check:
        words.append("--busdma-check")
    return shlex.join(words)
