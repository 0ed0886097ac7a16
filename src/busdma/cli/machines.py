"""``busdma machines``: every machine there is; and how the other verbs choose among them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from busdma.cli.output import Output
from busdma.machine.spec import with_option
from busdma.machines import select, specs

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["COLUMNS", "add_to", "run", "select", "with_option"]

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
    for spec, entry in specs().items():
        why_not = entry.why_not()
        rows.append(
            {
                "spec": spec,
                "available": not why_not,
                "why_not": why_not,
                "buses": list(entry.buses),
                "drivers": [*entry.drivers, *entry.others],
                "what": entry.what,
            }
        )
    output.document = {"machines": rows}
    output.say_table(COLUMNS, [{**row, "available": row["why_not"] or "yes"} for row in rows])
