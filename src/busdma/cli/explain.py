"""``busdma explain``: how a buffer would map under given limits, page by page, and whose limit says so."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

import busdma
from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.cli.output import Output, number
from busdma.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from busdma.machine.frames import FrameAllocator

MOST_HOLES: Final = 1 << 18  #: as exact data they are kept one by one
LIMITS: Final = {
    "alignment": "every segment starts at a multiple of this",
    "boundary": "no segment crosses a multiple of this; 0: none",
    "lowaddr": "nothing above this bus address, up to --highaddr, can be reached",
    "highaddr": "the end of that window; without it, all above --lowaddr",
    "maxsize": "bytes of one load",
    "nsegments": "segments of one load",
    "maxsegsz": "bytes of one segment",
}


def add_to(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "explain",
        help="how a buffer would map under given limits, and why",
        description="Allocate a buffer on a machine, derive a tag with the given limits from the tag of a device's "
        "bus or driver, and tell how the buffer would map: page by page, and whose limit decided. Nothing is loaded. "
        "That it would be refused is an answer too, with exit status 0.",
        epilog="Numbers are decimal or 0x..., with k, m or g behind them for powers of 1024.",
    )
    parser.add_argument(
        "--machine",
        metavar="SPEC",
        default="sim:pc-isa",
        help="default: sim:pc-isa; options may follow, as in sim:alpha?bounce=17",
    )
    parser.add_argument("--device", metavar="NAME", help="whose bus's tag to begin with; default: the machine's first")
    parser.add_argument(
        "--driver",
        action="store_true",
        help="begin with the tag that the device's driver makes: it knows what the device itself can do",
    )
    parser.add_argument("--size", metavar="BYTES", type=number, default=65536, help="of the buffer; default: 64k")
    parser.add_argument(
        "--offset", metavar="BYTES", type=number, default=0, help="where in its first page it begins; default: 0"
    )
    parser.add_argument("--seed", metavar="N", type=number, help="where the machine scatters page frames; default: 1")
    limits = parser.add_argument_group("limits of the tag; those left out are the bus's, or the driver's")
    for name, what in LIMITS.items():
        limits.add_argument(f"--{name}", metavar="N", type=number, help=what)
    limits.add_argument(
        "--exclude",
        metavar="START+LENGTH[/PERIOD]",
        type=_hole,
        action="append",
        default=[],
        help="a hole that cannot be reached; with PERIOD, again and again from START to the end of memory",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> None:
    """Explain one buffer."""
    seed = {} if args.seed is None else {"seed": args.seed}
    with busdma.open(args.machine, **seed) as machine:
        name = next(iter(machine.devices), "") if args.device is None else args.device
        device = machine.devices.get(name)
        if device is None:
            raise ConfigurationError(f"{machine.spec} has no device {name!r}; it has: {', '.join(machine.devices)}")
        if args.driver and not device.driver:
            raise ConfigurationError(f"there is no driver in busdma for {name} of {machine.spec}: leave out --driver")
        limits = {limit: getattr(args, limit) for limit in LIMITS}
        parent = machine.driver(name).tag if args.driver else device.tag
        tag = parent.derive("explain", **limits, exclude=_holes(args.exclude, machine.domain.frames))
        buffer = machine.kernel.allocate(args.size, offset=args.offset)
        explanation = tag.explain(buffer)
        driver = device.driver if args.driver else None
        found = explanation.as_dict()
        output.document = {"machine": machine.spec, "device": name, "driver": driver, "explanation": found}
        output.say(str(explanation))
        if driver is None:
            more = f"; --driver adds what the driver of {name} says of the device" if device.driver else ""
            output.say(f"with the limits of the bus{more}")
        buffer.free()


def _hole(text: str) -> tuple[int, int, int]:
    """START+LENGTH[/PERIOD] as three numbers; the last is 0 if it is left out. ArgumentTypeError."""
    span, slash, period = text.partition("/")
    start, plus, length = span.partition("+")
    if not plus:
        raise argparse.ArgumentTypeError(f"{text!r}: say START+LENGTH or START+LENGTH/PERIOD, as 0x10dc000+16k/16m")
    found = number(start), number(length), number(period) if slash else 0
    if not found[1] or found[0] > MAX_ADDRESS or (slash and found[2] < found[1]):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a hole has a byte or more and begins within 64 bits; PERIOD is not shorter"
        )
    return found


def _holes(holes: list[tuple[int, int, int]], frames: FrameAllocator) -> AddressSet | None:
    memory = AddressSet.span(frames.base, frames.base + frames.pages * frames.page_size - 1)
    found = AddressSet()
    for start, length, period in holes:
        if period:
            many = memory.size() // period
            if many > MOST_HOLES:
                raise ConfigurationError(
                    f"--exclude with a period of {period:#x} makes {many} holes of this machine's memory: give one "
                    f"that makes {MOST_HOLES} or fewer, or in a program a filter"
                )
            found |= AddressSet.periodic(start, length, period=period, within=memory)
        else:
            found |= AddressSet.span(start, min(start + length - 1, MAX_ADDRESS))
    return found or None
