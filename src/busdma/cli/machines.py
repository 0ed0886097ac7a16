"""``busdma machines``: every machine there is; and how the other verbs choose among them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from busdma.cli.output import Output
from busdma.machine.spec import with_option
from busdma.machines import MACHINES, options_of, select, specs

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["COLUMNS", "add_to", "run", "select", "with_option"]

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
    options = {name: {} if entry.why_not() else options_of(name) for name, entry in MACHINES.items()}
    for spec, entry in specs().items():
        why_not = entry.why_not()
        rows.append(
            {
                "spec": spec,
                "available": not why_not,
                "why_not": why_not,
                "buses": list(entry.buses),
                "drivers": [*entry.drivers, *entry.others],
                "options": options[spec.partition("?")[0]],
                "what": entry.what,
            }
        )
    output.document = {"machines": rows}
    output.say_table(COLUMNS, [{**row, "available": row["why_not"] or "yes"} for row in rows])
    output.say("\noptions and their defaults, written as in sim:pc-isa?bounce=17&seed=3")
    for line in _lines(options):
        output.say(line)


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
