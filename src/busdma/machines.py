"""The table of machines, and ``open``. A back end is imported when one of its machines is opened."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Final, cast

from busdma.errors import ConfigurationError
from busdma.machine.machine import Machine
from busdma.machine.spec import Asked, parse, with_option, written
from busdma.runtime import by_name
from busdma.waiting import Runtime


@dataclass(frozen=True, slots=True)
class Entry:
    """A machine of the table."""

    #: has ``open_machine(spec, runtime, options) -> Machine``, which asks for its options, and calls their ``finish``,
    #: before it makes anything that has to be closed
    module: str
    what: str
    buses: tuple[str, ...]
    drivers: tuple[str, ...]  #: through whose devices data goes and comes back
    others: tuple[str, ...] = ()  #: of devices that only bring something in: no file can go through them
    variants: Mapping[str, str] = field(default_factory=dict)  #: options that make another kind of it, and what that is

    def why_not(self) -> str:
        """Why this host cannot open the machine; "" if it can."""
        try:
            import_module(self.module)
        except ImportError as error:
            return str(error)
        return ""


MACHINES: Final[Mapping[str, Entry]] = {
    "sim:pc-isa": Entry(
        "busdma.sim.pc_isa",
        "simulated PC of 1998: 32 MiB, three AHA-1542s and a DES card on ISA, which reaches 16 MiB",
        ("isa",),
        ("aha1542", "des"),
    ),
    "sim:pc-vlb": Entry(
        "busdma.sim.pc_vlb",
        "simulated PC of 1998: 64 MiB, a BT-445S on VLB, which goes astray in 15 pages of it",
        ("vlb",),
        ("bt",),
    ),
    "sim:alpha": Entry(
        "busdma.sim.alpha",
        "simulated AlphaStation of 1996: 1.5 GiB behind a window and a scatter-gather map, PCI and ISA",
        ("pci", "isa"),
        ("ncr53c9x", "aha1542", "pcnet", "des"),
    ),
    "sim:sparc": Entry(
        "busdma.sim.sparc",
        "simulated SPARCstation of 1993: 64 MiB, all DMA is DVMA through an IOMMU, a 53C9x on SBus",
        ("sbus",),
        ("ncr53c9x",),
    ),
    "sim:mips": Entry(
        "busdma.sim.mips",
        "simulated Magnum of 1992: 32 MiB behind caches that DMA does not see, a 53C9x",
        ("jazz",),
        ("ncr53c9x",),
    ),
    "sim:x86-64": Entry(
        "busdma.sim.x86_64",
        "simulated PC of today: 16 GiB, NVMe, a PCI-to-PCI bridge, edu devices, Ethernet, a DES card, a frame grabber",
        ("pci",),
        ("nvme", "edu", "pcnet", "des"),
        ("bt848",),
        variants={"iommu=on": "the same behind a VT-d, with a domain of its own for each device"},
    ),
}


def specs() -> dict[str, Entry]:
    """Every machine by its spec, the variants behind the machine that they vary.

    >>> [spec for spec in specs() if spec.startswith("sim:x86")]
    ['sim:x86-64', 'sim:x86-64?iommu=on']
    """
    found: dict[str, Entry] = {}
    for name, entry in MACHINES.items():
        found[name] = entry
        for options, what in entry.variants.items():
            found[f"{name}?{options}"] = replace(entry, what=what)
    return found


def options_of(name: str) -> dict[str, str]:
    """The options of the machine `name` and their defaults, as the machine asks for them: it is opened no further.

    >>> options_of("sim:pc-isa")["bounce"]
    '128'
    """
    _, options = parse(name)
    options.only_ask = True
    carrier = by_name("virtual")
    try:
        import_module(MACHINES[name].module).open_machine(name, carrier, options)
    except Asked as asked:
        return asked.defaults
    finally:
        carrier.close()
    raise AssertionError(f"{name} was opened before it had asked for its options")


def select(pattern: str) -> list[str]:
    """The specs of the machines that match the glob `pattern`; options behind a ``?`` go to each of them.

    >>> select("sim:*isa?bounce=17")
    ['sim:pc-isa?bounce=17']
    >>> select("sim:x86*?seed=3")
    ['sim:x86-64?seed=3', 'sim:x86-64?iommu=on&seed=3']

    A pattern without a glob's signs is one machine, and not its variants. ConfigurationError if none matches, and for
    options that are none.
    """
    glob, _, query = pattern.partition("?")
    found = [spec for spec in specs() if fnmatchcase(spec, glob)]
    options: list[tuple[str, str]] = []
    if "=" in query or (found and not any(fnmatchcase(spec, pattern) for spec in specs())):
        options = written(pattern)
    else:  # this ? is one of the glob's signs
        glob, found = pattern, [spec for spec in specs() if fnmatchcase(spec, pattern)]
    if not found:
        raise ConfigurationError(f"no machine matches {glob!r}; {_hint(glob, specs())}")
    for name, value in options:
        found = [with_option(spec, name, value) for spec in found]
    return list(dict.fromkeys(found))


def open(
    spec: str = "sim:pc-isa", *, runtime: str | Runtime = "virtual", check: bool | None = None, **options: object
) -> Machine:
    """Switch on the machine `spec`, such as ``"sim:pc-isa"`` or ``"sim:pc-isa?bounce=17"``.

    `runtime`: ``"virtual"`` (deterministic, the default), ``"asyncio"``, ``"threads"``, or a Runtime, which then stays
    the caller's to close. `check`: under the DMA checker (`busdma.check`); None: if this program runs under
    ``busdma check``. `options`: the machine's, as in the spec. Raises ConfigurationError for a machine, option or
    runtime that does not exist.
    """
    name, parsed = parse(spec, options)
    entry = MACHINES.get(name)
    if entry is None:
        raise ConfigurationError(f"there is no machine {name!r}; {_hint(name, MACHINES)}")
    parsed.check = (opened_checked is not None) if check is None else check
    back_end = import_module(entry.module)
    if not isinstance(runtime, str):
        return _opened(cast(Machine, back_end.open_machine(spec, runtime, parsed)))
    carrier = by_name(runtime)
    machine = cast(Machine, back_end.open_machine(spec, carrier, parsed))
    machine.at_close(carrier.close)  # a runtime made for this machine goes with it
    return _opened(machine)


#: told of every machine that a program under ``busdma check`` opens, checked or not; None: this is none
opened_checked: Callable[[Machine], object] | None = None


def _opened(machine: Machine) -> Machine:
    if opened_checked is not None:
        opened_checked(machine)
    return machine


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
