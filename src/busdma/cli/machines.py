"""``busdma machines``: every machine there is; and how the other verbs choose among them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from busdma.cli.output import Output
from busdma.machine.spec import with_option
from busdma.machines import MACHINES, options_of, select, specs, why_not

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["COLUMNS", "add_to", "grouped", "run", "select", "with_option"]

COLUMNS: Final = ("spec", "available", "buses", "drivers", "what")

Defaults = Mapping[str, str]  # of a machine's options, by name


def add_to(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "machines",
        help="list every machine: its spec, whether it is available, its buses, drivers and options",
        description="List every machine: its spec, available or why not, its buses, its drivers and its options.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> None:
    """List them."""
    rows: list[dict[str, Any]] = []
    options = {name: _options(name) for name in MACHINES}
    for spec, entry in specs().items():
        lacking = why_not(spec)
        rows.append(
            {
                "spec": spec,
                "available": not lacking,
                "why_not": lacking,
                "buses": list(entry.buses),
                "drivers": [*entry.drivers, *entry.others],
                "options": options[spec.partition("?")[0]],
                "what": entry.what,
            }
        )
    output.document = {"machines": rows}
    output.say_table(COLUMNS, [{**row, "available": "no" if row["why_not"] else "yes"} for row in rows])
    if reasons := {row["spec"]: row["why_not"] for row in rows if row["why_not"]}:
        output.say("\nwhat is not available, and why")
        for why, alike in grouped(reasons):
            output.say(f"{alike}: {why}")
    output.say("\noptions and their defaults, written as in sim:pc-isa?bounce=17&seed=3")
    for line in _lines(options):
        output.say(line)


def grouped(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each reason once, and in words all that it is the reason of.

    >>> grouped({"a": "it rains", "b": "it snows", "c": "it rains"})
    [('it rains', 'a and c'), ('it snows', 'b')]
    """
    found: list[tuple[str, str]] = []
    for why in dict.fromkeys(reasons.values()):
        *names, last = (name for name, reason in reasons.items() if reason == why)
        found.append((why, f"{', '.join(names)} and {last}" if names else last))
    return found


def _options(name: str) -> dict[str, str]:
    """Its options, also where QEMU is missing: one of them says where it is."""
    try:
        return options_of(name)
    except ImportError:
        return {}


def _lines(found: Mapping[str, Defaults]) -> list[str]:
    """For each family a line with what its machines have in common, and one for each machine that has more."""
    lines: list[tuple[str, Defaults]] = []
    for family in dict.fromkeys(name.partition(":")[0] for name in found):
        members = {name: own for name, own in found.items() if own and name.startswith(f"{family}:")}
        shared = set.intersection(*(set(own.items()) for own in members.values())) if members else set()
        lines.append((f"{family}:*", dict(sorted(shared))))
        lines += [(name, dict(item for item in own.items() if item not in shared)) for name, own in members.items()]
    width = max(map(len, found), default=0)
    return [f"{name:{width}}  {'  '.join(f'{o}={v}' for o, v in own.items())}" for name, own in lines if own]
