"""The command line: ``busdma VERB ...``, one module a verb.

Every verb has ``--json``: one JSON document on standard output. Messages and progress go to standard error. The exit
status is 0 only if everything asked for was done and verified; 1 if not, 2 for a wrong command line, 130 if it was
interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from busdma.cli import bench, check, explain, machines, matrix
from busdma.cli.output import Output
from busdma.errors import BusdmaError

INTERRUPTED: Final = 130  #: 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Do what `argv` (without the program's name; None: the process's) says, and return the exit status."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as end:  # --help, --version, or a usage error that argparse has explained
        return end.code if isinstance(end.code, int) else 2
    output = Output(f"busdma {args.verb}", as_json=args.json, out=sys.stdout, err=sys.stderr)
    try:
        args.run(args, output)
    except (BusdmaError, OSError) as error:
        output.fail(error)
    except KeyboardInterrupt as error:
        output.fail(error, "interrupted; what was switched on has been switched off")
        output.finish()
        return INTERRUPTED
    return output.finish()


class _Version(argparse.Action):
    """Looks the version up only if it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            found = version("busdma")
        except PackageNotFoundError:
            found = "(not installed: it runs from its source tree)"
        print(f"busdma {found}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="busdma",
        description="bus_dma for Python: drive disks through DMA on simulated machines and on QEMU's, and see how "
        "buffers map.",
        epilog="Exit status: 0 if all was done and verified, 1 if not, 2 for a wrong command line, 130 if interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in (machines, matrix, explain, check, bench):
        verb.add_to(verbs)
    return parser
