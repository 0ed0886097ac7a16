"""``busdma machines``: every machine there is; and how the other verbs choose among them."""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from busdma.cli.output import Output
from busdma.errors import ConfigurationError
from busdma.machines import MACHINES

if TYPE_CHECKING:
    from argparse import _SubParsersAction

COLUMNS: Final = ("spec", "available", "buses", "drivers", "what")


def add_to(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "machines",
        help="list every machine: its spec, whether it is available, its buses and drivers",
        description="List every machine: its spec, available or why not, its buses and its drivers.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> None:
    """List them."""
    rows: list[dict[str, Any]] = []
    for spec, entry in MACHINES.items():
        why_not = entry.why_not()
        rows.append(
            {
                "spec": spec,
                "available": not why_not,
                "why_not": why_not,
                "buses": list(entry.buses),
                "drivers": list(entry.drivers),
                "what": entry.what,
            }
        )
    output.document = {"machines": rows}
    output.say_table(COLUMNS, [{**row, "available": row["why_not"] or "yes"} for row in rows])


def select(pattern: str) -> list[str]:
    """The specs of the machines whose name matches the glob `pattern`; options behind a ``?`` go to each of them.

    >>> select("sim:*isa?bounce=17")
    ['sim:pc-isa?bounce=17']

    ConfigurationError if none does.
    """
    glob, _, options = pattern.partition("?")
    if "=" not in options:  # then this ? belongs to the glob
        glob, options = pattern, ""
    found = [name for name in MACHINES if fnmatchcase(name, glob)]
    if not found:
        raise ConfigurationError(f"no machine matches {glob!r}; there are: {', '.join(MACHINES)}")
    return [f"{name}?{options}" if options else name for name in found]


def with_option(spec: str, name: str, value: object) -> str:
    """`spec` with that option, whatever it said of it before.

    >>> with_option("sim:pc-isa?seed=3", "bounce", 17)
    'sim:pc-isa?seed=3&bounce=17'
    """
    machine, _, options = spec.partition("?")
    kept = [option for option in options.split("&") if option and option.partition("=")[0] != name]
    return f"{machine}?{'&'.join([*kept, f'{name}={value}'])}"
