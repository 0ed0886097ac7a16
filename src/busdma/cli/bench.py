"""``busdma bench NAME``: a benchmark beside its reference, measured in the same run."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from busdma import COMPILED
from busdma.cli.output import Output
from busdma.errors import BusdmaError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

COLUMNS: Final = ("case", "ours", "reference", "unit", "ratio", "target", "met")
NAMES: Final = ("load", "iova", "nvme")


class Report(Protocol):
    """What a benchmark found. Each row has at least COLUMNS; the notes say which build was measured."""

    rows: list[dict[str, object]]
    notes: list[str]


class Benchmark(Protocol):
    """A module of `busdma.bench`."""

    def run(self, quick: bool, progress: Callable[[str], None] | None) -> Report:
        """Measure and verify everything, or raise."""


class TargetMissed(BusdmaError):
    """A benchmark missed one of its targets, and ``--strict`` was given."""


def add_to(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "bench",
        help="a benchmark beside its reference in the same run",
        description="Measure, beside a reference in the same process, and compare. A row is a case: "
        f"{', '.join(COLUMNS)}. A target is a ratio (50x), what may be added to the reference (+1500 ns), or a limit "
        "(400 ns, 1 %). A missed target is shown, and fails only with --strict. The reference of load is C, so load "
        "needs a C compiler; nvme needs QEMU. From a source tree, .venv measures the pure form and `make bench` the "
        "compiled one.",
    )
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=f"one of: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measurements: less exact")
    parser.add_argument("--strict", action="store_true", help="fail if a target is missed")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> None:
    """Measure and print."""
    benchmark = cast(Benchmark, import_module(f"busdma.bench.{args.name}"))
    report = benchmark.run(args.quick, lambda what: output.progress.show(f"bench {args.name}: {what}"))
    build: dict[str, Any] = {
        "compiled": COMPILED,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "compiler": platform.python_compiler(),
    }
    output.document = {"benchmark": args.name, "build": build, "rows": report.rows, "notes": report.notes}
    output.say_table(COLUMNS, report.rows)
    for note in report.notes:
        output.say(note)
    missed = [str(row["case"]) for row in report.rows if row["met"] is False]
    if args.strict and missed:
        output.fail(TargetMissed(f"{len(missed)} of {len(report.rows)} targets missed: {', '.join(missed)}"))
