"""``busdma matrix FILE``: the main job. FILE through the devices of every machine and back, and what was counted."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import busdma
from busdma.cli.interrupt import Interrupts
from busdma.cli.job import Job
from busdma.cli.machines import grouped, select, with_option
from busdma.cli.output import Output, number
from busdma.cli.roundtrip import Source
from busdma.errors import BusdmaError, ConfigurationError
from busdma.machine.machine import Machine
from busdma.machines import MACHINES, why_not
from busdma.runtime import NAMES

if TYPE_CHECKING:
    from argparse import _SubParsersAction

COLUMNS: Final = {
    "machine": "spec of the machine",
    "driver": "whose devices FILE went through, all of them at the same time",
    "mechanism": "how the data reached memory, by the page frames that the bus saw touched (QEMU's: by the maps)",
    "bytes": "of data that crossed the bus, there and back; to and from disks in whole blocks",
    "segments": "in which it crossed: accesses of the devices to data (QEMU's: segments of the maps)",
    "bounced_pages": "taken from the machine's bounce zones, counted there",
    "deferred": "loads that had to wait for bounce pages, counted there",
    "sha256": "of what came back, without the padding; the first 12 digits in the table",
    "verified": "every device gave FILE back, and the bus saw all of it go by, there and back",
    "seconds": "on the machine's clock: virtual time, on a simulated machine",
}
STRANGE: Final = "there is no driver in busdma for it"
DIGITS: Final = 12  #: of the checksum in the table
WIDTH: Final = 78  #: of the help, as argparse has it where a terminal has 80 columns


def add_to(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    left_out = ", ".join(sorted({name for entry in MACHINES.values() for name in entry.others}))
    columns = "\n".join(
        textwrap.fill(what, WIDTH, initial_indent=f"  {name:14}", subsequent_indent=" " * 16)
        for name, what in COLUMNS.items()
    )
    parser = verbs.add_parser(
        "matrix",
        help="the main job: send FILE through the devices of every machine by DMA and back, compare",
        description=textwrap.fill(
            "Send FILE through the devices of every machine by DMA, from scattered buffers; have it back in fresh "
            "ones; compare. Disks keep it until it is read back; a device that is no disk sends it round. What only "
            f"brings data in is left out: {left_out}. One row a machine and driver:",
            WIDTH,
        )
        + f"\n\n{columns}",
        epilog="Numbers are decimal or 0x..., with k, m or g behind them for powers of 1024.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="a file of 1 byte or more; it is only read")
    parser.add_argument(
        "--machine",
        metavar="GLOB",
        default="*",
        help="which machines, as listed by `busdma machines`; default: all. Options may follow, as in "
        "'sim:alpha?disk_mib=200&seed=3'",
    )
    parser.add_argument(
        "--runtime",
        choices=NAMES,
        help="who carries the drivers; default: virtual on simulated machines, asyncio on the others. Under threads "
        "the counts differ a little from run to run",
    )
    parser.add_argument(
        "--bounce-pages",
        metavar="N",
        type=number,
        help="limit of each bounce zone, in pages; default: 128. One request of an AHA-1542 needs up to 17, one of an "
        "NVMe controller up to 32",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="existing folder for the disk images (aha0.img, ...), which are kept; those already there are overwritten",
    )
    parser.add_argument(
        "--check", action="store_true", help="under the DMA checker: whatever it finds is printed, and is a failure"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> None:
    """Do the job on every machine that was asked for."""
    rows: list[dict[str, Any]] = []
    output.document = {"file": args.file, "size": None, "sha256": None, "runtime": args.runtime, "rows": rows}
    specs = select(args.machine)
    options = {} if args.images is None else {"images": str(_folder(args.images, specs))}
    if args.bounce_pages is not None:
        specs = [with_option(spec, "bounce", args.bounce_pages) for spec in specs]
    with Source(args.file) as source, Interrupts() as interrupts:
        output.document |= {"size": source.size, "sha256": source.sha256}
        unfit = {spec: why for spec in specs if (why := _unfit(spec, args.runtime, alone=len(specs) == 1))}
        for why, alike in grouped(unfit):
            output.note(f"{alike} {'is' if alike in unfit else 'are'} skipped, because {why}")
        for spec in (spec for spec in specs if spec not in unfit):
            interrupts.check()
            try:
                with _switched_on(spec, args.runtime, options, args.check) as machine:
                    _refuse_own_image(source, args.images, machine)
                    strangers = {name: STRANGE for name, device in machine.devices.items() if not device.driver}
                    for name, why in {**machine.absent, **strangers}.items():
                        output.note(f"{spec}: {name} is skipped, because {why}")
                    others = (*MACHINES[spec.partition("?")[0]].others, "")
                    for driver in dict.fromkeys(device.driver for device in machine.devices.values()):
                        if driver not in others:
                            row = Job(machine, driver, source, output, interrupts).run()
                            rows += [row] if row is not None else []
                for finding in machine.checker.findings if machine.checker else ():
                    output.fail(Found(f"{spec}: {finding}"))
            except (BusdmaError, OSError) as error:
                words = str(error)
                output.fail(error, words if words.startswith(spec) else f"{spec}: {words}")
        interrupts.check()
        if not rows and not output.errors:
            output.fail(ConfigurationError(f"nothing was sent: all that matches {args.machine!r} was skipped"))
        if rows:
            output.say_table(tuple(COLUMNS), [{**row, "sha256": row["sha256"][:DIGITS]} for row in rows])
        output.say(f"FILE has {source.size} byte{'s' if source.size > 1 else ''}, sha256 {source.sha256}")
    if args.images is not None and rows:
        output.say(f"the disk images are kept in {args.images}")


def _unfit(spec: str, runtime: str | None, *, alone: bool) -> str:
    """Why one machine of many is left out here. One that was asked for `alone`, or under CI=true, fails instead."""
    entry = MACHINES[spec.partition("?")[0]]
    if runtime is not None and runtime not in entry.runtimes:
        return "" if alone else f"it keeps real time, and {runtime} does not"
    return "" if alone or os.environ.get("CI") == "true" else why_not(spec)


class Found(BusdmaError):
    """The checker found something."""


@contextmanager
def _switched_on(spec: str, runtime: str | None, options: Mapping[str, object], check: bool) -> Iterator[Machine]:
    """The machine, and its runtime; at the end the drivers end first, then the images are closed."""
    carrier = MACHINES[spec.partition("?")[0]].carrier(runtime)
    try:
        machine = busdma.open(spec, runtime=carrier, check=check, **options)
    except BaseException:
        carrier.close()
        raise
    try:
        yield machine
    except Exception:
        carrier.close()
        raise
    else:
        carrier.close()
    finally:  # whatever happened: the images must be closed
        machine.close()


def _folder(images: str, specs: list[str]) -> Path:
    folder = Path(images)
    if not folder.is_dir():
        why = "it is not a folder; name one" if folder.exists() else "there is no such folder; make it first"
        raise ConfigurationError(f"--images {images}: {why}")
    if len(specs) > 1:
        raise ConfigurationError(
            f"--images {images}: the images of {len(specs)} machines would overwrite each other; choose one with "
            "--machine"
        )
    return folder.absolute()


def _refuse_own_image(source: Source, images: str | None, machine: Machine) -> None:
    if images is None:
        return
    for device in machine.devices:
        if source.is_at(Path(images) / f"{device}.img"):
            raise ConfigurationError(
                f"{source.path!r} is the image of disk {device} in {images}, which would be overwritten while it is "
                "read: give another file or another folder"
            )
