"""``busdma check SCRIPT``: a driver script under the DMA checker, and what that found on each machine it opened."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import busdma.machines
from busdma.cli.files import open_file
from busdma.cli.output import Output
from busdma.errors import BusdmaError, ConfigurationError
from busdma.machine.machine import Machine

if TYPE_CHECKING:
    from argparse import _SubParsersAction

CARRIERS: Final = ("busdma.runtime.", "busdma.machine.machine", "busdma.faces")  #: no news in a traceback


class Found(BusdmaError):
    """The checker found something."""


class Exited(BusdmaError):
    """The script said itself that it failed."""


class NothingChecked(BusdmaError):
    """The script opened no machine, or none that was to be checked."""


def add_to(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "check",
        help="run a driver script under the DMA checker",
        description="Run SCRIPT as python would, with every machine that it opens under the DMA checker: CPU and "
        "devices see different bytes until the right sync, and what goes wrong is told by name. A machine that SCRIPT "
        "leaves switched on is closed at its end. One opened with check=False is not checked.",
        epilog="Exit status: 0 if SCRIPT ended well, a machine was checked and nothing was found; SCRIPT's own if "
        "that is not 0; else 1.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document; what SCRIPT prints goes to standard error"
    )
    parser.add_argument(
        "script", metavar="SCRIPT", help="a Python file, or a directory with a __main__.py; it runs as __main__"
    )
    rest = parser.add_argument("args", metavar="ARGS", nargs=argparse.REMAINDER, help="its arguments")
    rest.required = False  # until 3.12, argparse calls it missing where only SCRIPT is
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> None:
    """Run it, close what it left open, and tell."""
    rows: list[dict[str, Any]] = []
    output.document = {"script": args.script, "machines": rows, "unchecked": [], "findings": 0, "error": None}
    _look_at(args.script)
    machines: list[Machine] = []
    try:
        with _as_main(args.script, args.args), _watching(machines), redirect_stdout(_out(output)):
            runpy.run_path(args.script, run_name="__main__")
    except SystemExit as end:
        _exited(end, output)
    except Exception as error:
        _raised(error, args.script, output)
    finally:
        _close(machines, output)
    unchecked = [machine.spec for machine in machines if machine.checker is None]
    output.document["unchecked"] = unchecked
    for machine in machines:
        if machine.checker is None:
            continue
        found = machine.checker.findings
        rows.append({"machine": machine.spec, "findings": [finding.as_dict() for finding in found]})
        output.document["findings"] += len(found)
        for finding in found:
            output.fail(Found(f"{machine.spec}: {finding}"))
        output.say(f"{machine.spec}: {len(found) or 'nothing'} found")
    if not rows and not output.errors:
        output.fail(NothingChecked(f"{_opened(len(unchecked))}: nothing was checked"))
    elif unchecked:
        output.say(_opened(len(unchecked)))


def _look_at(script: str) -> None:
    """ConfigurationError for what python could not run."""
    if not os.path.exists(script):
        raise ConfigurationError(f"there is no script {script!r}: give the name of a Python file")
    main = os.path.join(script, "__main__.py")
    os.close(open_file(main if os.path.exists(main) else script))


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


def _opened(unchecked: int) -> str:
    """In words, how many machines were opened that are not checked."""
    if not unchecked:
        return "no machine was opened"
    return f"{unchecked} machine{'s were' if unchecked > 1 else ' was'} opened with check=False"


def _raised(error: Exception, script: str, output: Output) -> None:
    """Tell of an exception: with its traceback if the script had begun, and by what is wrong with SCRIPT if not."""
    trace = _from_script(error.__traceback__)
    if trace is not None or isinstance(error, SyntaxError):  # which says itself where
        traceback.print_exception(error.with_traceback(trace))
    elif not isinstance(error, BusdmaError):
        error = ConfigurationError(f"cannot run {script!r}: {error}; give a Python file")
    output.fail(error)
    output.document["error"] = f"{type(error).__name__}: {error}"


def _from_script(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the script's first frame on; what carries its coroutines is left out between its frames."""
    frames = list(_walk(trace))
    modules = [frame.tb_frame.f_globals.get("__name__", "") for frame in frames]
    if "__main__" not in modules:
        return None
    first = modules.index("__main__")
    last = max(at for at, module in enumerate(modules) if not module.startswith("busdma."))
    kept = [
        frame for at, frame in enumerate(frames) if at >= first and (at > last or not modules[at].startswith(CARRIERS))
    ]
    for frame, inner in pairwise(kept):
        frame.tb_next = inner
    return kept[0]


def _walk(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next
