"""``busdma check SCRIPT``: a driver script under the DMA checker, and what that found on each machine it opened."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import busdma.machines
from busdma.cli.output import Output
from busdma.errors import BusdmaError, ConfigurationError
from busdma.machine.machine import Machine

if TYPE_CHECKING:
    from argparse import _SubParsersAction


class Found(BusdmaError):
    """The checker found something."""


class Exited(BusdmaError):
    """The script said itself that it failed."""


def add_to(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "check",
        help="run a driver script under the DMA checker",
        description="Run SCRIPT as python would, with every machine that it opens under the DMA checker: CPU and\n"
        "devices see different bytes until the right sync, and what goes wrong is told by name. A machine that SCRIPT\n"
        "leaves switched on is closed at its end. One opened with check=False is not checked.",
        epilog="Exit status: 0 if SCRIPT ended well and nothing was found; SCRIPT's own if that is not 0; else 1.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document; what SCRIPT prints goes to standard error"
    )
    parser.add_argument("script", metavar="SCRIPT", help="a Python file; it runs as __main__")
    parser.add_argument("args", metavar="ARGS", nargs=argparse.REMAINDER, help="its arguments")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> None:
    """Run it, close what it left open, and tell."""
    rows: list[dict[str, Any]] = []
    output.document = {"script": args.script, "machines": rows, "findings": 0, "error": None}
    if not os.path.exists(args.script):
        raise ConfigurationError(f"there is no script {args.script!r}: give the name of a Python file")
    machines: list[Machine] = []
    try:
        with _as_main(args.script, args.args), _watching(machines), redirect_stdout(_out(output)):
            runpy.run_path(args.script, run_name="__main__")
    except SystemExit as end:
        _exited(end, output)
    except Exception as error:
        traceback.print_exception(error.with_traceback(_from_script(error, args.script)))
        output.fail(error)
        output.document["error"] = f"{type(error).__name__}: {error}"
    finally:
        _close(machines, output)
    for machine in machines:
        found = list(machine.checker.findings) if machine.checker is not None else []
        rows.append({"machine": machine.spec, "findings": [finding.as_dict() for finding in found]})
        output.document["findings"] += len(found)
        for finding in found:
            output.fail(Found(f"{machine.spec}: {finding}"))
        output.say(f"{machine.spec}: {len(found) or 'nothing'} found")
    if not machines:
        output.say("no machine was opened: nothing was checked")


@contextmanager
def _as_main(script: str, args: Sequence[str]) -> Iterator[None]:
    """The interpreter as a script finds it."""
    argv, path = sys.argv, sys.path
    sys.argv = [script, *args]
    sys.path = [os.path.dirname(os.path.abspath(script)), *path]
    try:
        yield
    finally:
        sys.argv, sys.path = argv, path


@contextmanager
def _watching(machines: list[Machine]) -> Iterator[None]:
    """Every machine that is opened meanwhile is checked, and added to `machines`."""
    before = busdma.machines.opened_checked
    busdma.machines.opened_checked = machines.append
    try:
        yield
    finally:
        busdma.machines.opened_checked = before


def _out(output: Output) -> Any:
    return sys.stderr if output.as_json else sys.stdout


def _exited(end: SystemExit, output: Output) -> None:
    """As python ends for it: None is success, a number the status, and anything else a message."""
    if end.code is None or end.code == 0:
        return
    what = f"status {end.code}" if isinstance(end.code, int) else str(end.code)
    output.fail(Exited(f"the script ended with {what}" if isinstance(end.code, int) else what))
    output.document["error"] = what
    if isinstance(end.code, int):
        output.status = end.code & 0xFF or 1


def _close(machines: Sequence[Machine], output: Output) -> None:
    for machine in machines:
        if not machine.closed:
            try:
                machine.close()
            except (BusdmaError, OSError) as error:
                output.fail(error)


def _from_script(error: BaseException, script: str) -> Any:
    """The traceback without what ran the script; none of a script that could not even be read."""
    if isinstance(error, SyntaxError):
        return None
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != script:
        trace = trace.tb_next
    return trace or error.__traceback__
