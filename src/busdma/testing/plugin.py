"""What the pytest plugin does once a test asks for a machine: which machines fit, and a fresh one for each test.

pytest loads `busdma_pytest`, which is small and calls this.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import pytest

import busdma
from busdma.errors import ConfigurationError
from busdma.machine.machine import Machine
from busdma.machine.spec import with_option
from busdma.machines import Entry, select, specs
from busdma.runtime import NAMES, by_name

_MACHINE: Final = pytest.StashKey[Machine]()
_CHOICE: Final = pytest.StashKey["Choice"]()
_INTERRUPTED: Final = pytest.StashKey[bool]()
_MARKER: Final = ("drivers", "buses", "machine", "runtimes", "check")  #: what the marker may say
SEEDED: Final = "sim"  #: the family of machines that have an option ``seed``
USUAL: Final = "virtual"  #: the runtime, unless told


@dataclass(frozen=True, slots=True)
class Choice:
    """One machine for one test."""

    spec: str
    runtime: str = USUAL
    seed: int | None = None
    check: bool = False
    drivers: tuple[frozenset[str], ...] = ()  #: of each of these, a device of one
    why_not: str = ""  #: then there is none

    def __str__(self) -> str:
        """How the test is called on it."""
        name = self.spec or "none"
        return name if self.runtime == USUAL else f"{name}-{self.runtime}"

    def open(self) -> Machine:
        """Switch it on; a runtime made for it goes with it."""
        if self.seed is None:
            return busdma.open(self.spec, runtime=self.runtime, check=self.check)
        family, _, options = self.spec.partition(":")
        said = any(option.startswith("seed=") for option in options.partition("?")[2].split("&"))
        spec = self.spec if said or family != SEEDED else with_option(self.spec, "seed", self.seed)
        carrier = by_name(self.runtime, seed=self.seed)
        machine = busdma.open(spec, runtime=carrier, check=self.check)
        machine.at_close(carrier.close)
        return machine


# -- before the tests -------------------------------------------------------------------------------------------------


def choices(config: pytest.Config, marks: Iterable[pytest.Mark]) -> list[Choice]:
    """The machines for a test with these marks, the closest first; one without a spec if none fits."""
    patterns: list[str] = config.getoption("busdma_machine")
    narrow = [_checked(mark) for mark in marks]
    check = next((said["check"] for said in narrow if "check" in said), config.getoption("busdma_check"))
    drivers = tuple(_words(said["drivers"]) for said in narrow if "drivers" in said)
    runtimes = _runtimes(narrow, config.getoption("busdma_runtime"))
    try:
        selected = [spec for pattern in patterns or ["*"] for spec in select(pattern)]
    except ConfigurationError as error:
        raise pytest.UsageError(f"--busdma-machine: {error}") from None
    found: list[Choice] = []
    missing: list[str] = []
    for spec in dict.fromkeys(selected):
        row, entry = _row(spec)
        fitting = _narrowed(spec, row, entry, narrow)
        if fitting is None:
            continue
        if why_not := entry.why_not():
            missing.append(f"{fitting} cannot be opened here: {why_not}")
            if not patterns:
                continue
        seed = config.getoption("busdma_seed")
        found += [Choice(fitting, each, seed, check, drivers, why_not and missing[-1]) for each in runtimes]
    if found:
        return list(dict.fromkeys(found))
    asked = ", ".join(f"{name}={value!r}" for said in narrow for name, value in said.items() if name in _MARKER[:3])
    where = " and ".join(patterns) or "all machines"
    return [Choice("", why_not="; ".join(missing) or f"no machine fits {asked or 'at all'} among {where}")]


def _checked(mark: pytest.Mark) -> dict[str, Any]:
    """What the marker says, if it says it right."""
    wrong = [*map(repr, mark.args), *(name for name in mark.kwargs if name not in _MARKER)]
    if wrong:
        raise pytest.UsageError(f"marker busdma knows {', '.join(f'{name}=' for name in _MARKER)} not {wrong[0]}")
    return dict(mark.kwargs)


def _runtimes(narrow: Iterable[dict[str, Any]], option: list[str]) -> list[str]:
    """Under which of them the test runs, in their order: the closest mark says so, else the option."""
    words = _words(next((said["runtimes"] for said in narrow if "runtimes" in said), option or USUAL))
    unknown = sorted(words - set(NAMES))
    if unknown or not words:
        raise pytest.UsageError(f"no runtime {unknown[0] if unknown else 'at all'}: there are {', '.join(NAMES)}")
    return [name for name in NAMES if name in words]


def _words(said: str | Iterable[str]) -> frozenset[str]:
    return frozenset([said] if isinstance(said, str) else said)


def _row(spec: str) -> tuple[str, Entry]:
    """Which line of the table of machines `spec` is, whatever other options it has."""
    name, _, options = spec.partition("?")
    lines = specs()
    said = set(options.split("&"))
    for line, entry in lines.items():
        base, _, variant = line.partition("?")
        if base == name and variant and said >= set(variant.split("&")):
            return line, entry
    return name, lines[name]


def _narrowed(spec: str, row: str, entry: Entry, narrow: Iterable[dict[str, Any]]) -> str | None:
    """The spec for a test with these marks, or None if the machine does not fit."""
    for said in narrow:
        if "drivers" in said and not _words(said["drivers"]) & {*entry.drivers, *entry.others}:
            return None
        if "buses" in said and not _words(said["buses"]) & set(entry.buses):
            return None
        if "machine" in said:
            glob, _, options = said["machine"].partition("?")
            if "=" not in options:
                glob, options = said["machine"], ""
            if not fnmatchcase(row, glob) and not fnmatchcase(row, said["machine"]):
                return None
            for option in filter(None, options.split("&")):
                name, _, value = option.partition("=")
                spec = with_option(spec, name, value)
    return spec


# -- around a test ----------------------------------------------------------------------------------------------------


def switched_on(item: pytest.Item, choice: Choice) -> Generator[Machine]:
    """The machine for one test, and what must be true of it afterwards. A test that failed is not asked for leaks."""
    if choice.why_not:
        _do_without(choice.why_not)
    item.stash[_CHOICE] = choice
    machine = item.stash[_MACHINE] = choice.open()
    try:
        for wanted in choice.drivers:
            if not any(device.driver in wanted for device in machine.devices.values()):
                absent = "; ".join(f"{name}: {why}" for name, why in machine.absent.items())
                _do_without(f"{machine.spec} has no device of {' or '.join(sorted(wanted))} here ({absent})")
        yield machine
        held = [] if machine.closed else _held(machine)
    finally:
        machine.close()
        del item.stash[_MACHINE]
    if not item.stash.get(_INTERRUPTED, False):
        wrong = "\n".join([*_leaked(machine, held), *_found(machine)])
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


def _held(machine: Machine) -> list[str]:
    """What is not as it was: maps, memory, and who waits for his turn."""
    held = machine.leaks()
    waiting: list[str] = machine.statistics()["waiting"]
    return held + [f"{who} still waits" for who in waiting if not any(line.startswith(who) for line in held)]


def _leaked(machine: Machine, held: list[str]) -> Iterator[str]:
    if held:
        yield f"{machine.spec}: unload what was loaded, free what was allocated and stop the drivers; at the end"
        yield from (f"  {leak}" for leak in held)


def _found(machine: Machine) -> Iterator[str]:
    if machine.checker is not None and len(machine.checker.findings):
        yield f"{machine.spec}: the DMA checker found"
        yield from (f"  {finding}" for finding in machine.checker.findings)


def _replay(item: pytest.Item, choice: Choice) -> str:
    _, separator, test = item.nodeid.partition("::")
    file = os.path.relpath(item.path, item.config.invocation_params.dir)
    words = ["pytest", f"{file}{separator}{test}", "--busdma-machine", choice.spec]
    if choice.runtime != USUAL:
        words += ["--busdma-runtime", choice.runtime]
    if choice.seed is not None:
        words += ["--busdma-seed", str(choice.seed)]
    if choice.check:
        words.append("--busdma-check")
    return shlex.join(words)
