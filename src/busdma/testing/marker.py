"""What the marker ``busdma`` of a test says. A name that there is not is an error: tests must not skip for a typo."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import pytest

from busdma.drivers import FRONT_ENDS
from busdma.errors import ConfigurationError
from busdma.machine.spec import with_option
from busdma.machines import Entry, select, specs
from busdma.runtime import NAMES

ARGUMENTS: Final = ("drivers", "buses", "machine", "runtimes", "check")


@dataclass(frozen=True, slots=True)
class Marker:
    """One marker, checked; None: it says nothing about that."""

    drivers: frozenset[str] | None = None
    buses: frozenset[str] | None = None
    machines: tuple[str, ...] | None = None
    runtimes: frozenset[str] | None = None
    check: bool | None = None
    asked: str = ""  #: what it says of machines, as it was written

    def narrowed(self, line: str, spec: str, entry: Entry) -> list[str]:
        """What is left of `spec`, which stands in this line of the table: it, with options or without, or nothing."""
        if self.drivers is not None and not self.drivers & {*entry.drivers, *entry.others}:
            return []
        if self.buses is not None and not self.buses & set(entry.buses):
            return []
        if self.machines is None:
            return [spec]
        return [_with_options(spec, pattern) for pattern in self.machines if _matches(line, pattern)]


def read(mark: pytest.Mark) -> Marker:
    """The marker. pytest.UsageError for one that cannot be meant."""
    said = dict(mark.kwargs)
    if mark.args:
        raise pytest.UsageError(
            f"the marker busdma takes names with its arguments, not {mark.args[0]!r} alone: write "
            f"{' or '.join(f'{name}=' for name in ARGUMENTS[:3])}"
        )
    for name in said:
        if name not in ARGUMENTS:
            raise pytest.UsageError(f"the marker busdma has no argument {name!r}; it has {', '.join(ARGUMENTS)}")
    check = said.get("check")
    if not (check is None or isinstance(check, bool)):
        raise pytest.UsageError(f"the marker busdma has check={check!r}: give True or False")
    entries = specs().values()
    chips = {name for entry in entries for name in (*entry.drivers, *entry.others)} | {chip for chip, _ in FRONT_ENDS}
    buses = {name for entry in entries for name in entry.buses} | {bus for _, bus in FRONT_ENDS}
    machines = _words(said, "machine")
    for pattern in machines or ():
        selected(pattern)
    return Marker(
        drivers=_known(said, "drivers", "driver", sorted(chips)),
        buses=_known(said, "buses", "bus", sorted(buses)),
        machines=machines,
        runtimes=_known(said, "runtimes", "runtime", NAMES),
        check=check,
        asked=", ".join(f"{name}={said[name]!r}" for name in ARGUMENTS[:3] if name in said),
    )


def selected(pattern: str) -> list[str]:
    """The specs that `pattern` selects: `busdma.machines.select`. pytest.UsageError if there are none."""
    try:
        return select(pattern)
    except ConfigurationError as error:
        raise pytest.UsageError(str(error)) from None


def known(name: str, what: str, names: Sequence[str]) -> None:
    """pytest.UsageError if `name` is none of these names of drivers, buses or runtimes."""
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
        raise pytest.UsageError(f"there is no {what} {name!r}; {hint}")


def _known(said: dict[str, object], argument: str, what: str, names: Sequence[str]) -> frozenset[str] | None:
    words = _words(said, argument)
    for word in words or ():
        known(word, what, names)
    return None if words is None else frozenset(words)


def _words(said: dict[str, object], argument: str) -> tuple[str, ...] | None:
    """One name or several, in an order that is the same in every process. pytest.UsageError for anything else."""
    if argument not in said:
        return None
    value = said[argument]
    several = sorted(value, key=str) if isinstance(value, set | frozenset) else value
    words = (several,) if isinstance(several, str) else several
    if not isinstance(words, tuple | list) or not words or not all(isinstance(word, str) for word in words):
        raise pytest.UsageError(f"the marker busdma has {argument}={value!r}: give a name, or a tuple of names")
    return tuple(words)


def _matches(line: str, pattern: str) -> bool:
    return fnmatchcase(line, _split(pattern)[0]) or fnmatchcase(line, pattern)


def _with_options(spec: str, pattern: str) -> str:
    for option in filter(None, _split(pattern)[1].split("&")):
        name, _, value = option.partition("=")
        spec = with_option(spec, name, value)
    return spec


def _split(pattern: str) -> tuple[str, str]:
    """A glob and options; without a ``=`` the ``?`` belongs to the glob."""
    glob, _, options = pattern.partition("?")
    return (glob, options) if "=" in options else (pattern, "")
