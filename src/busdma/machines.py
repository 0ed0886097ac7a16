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
from busdma.runtime import NAMES, by_name
from busdma.runtime.carrier import Carrier
from busdma.runtime.clock import WallClock
from busdma.waiting import Runtime


@dataclass(frozen=True, slots=True)
class Entry:
    """A machine of the table."""

    #: has ``open_machine(spec, runtime, options) -> Machine``, which asks for its options, and calls their ``finish``,
    #: before it makes anything that has to be closed; and, if this host may lack something, ``missing() -> str``
    module: str
    what: str
    buses: tuple[str, ...]
    drivers: tuple[str, ...]  #: through whose devices data goes and comes back
    others: tuple[str, ...] = ()  #: of devices that only bring something in: no file can go through them
    variants: Mapping[str, str] = field(default_factory=dict)  #: options that make another kind of it, and what that is
    real_time: bool = False  #: its devices keep their own time: no runtime can make it virtual

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Who can carry its drivers, by name; the usual one first."""
        return tuple(name for name in NAMES if not self.real_time or name != "virtual")

    def carrier(self, name: str | None = None, *, seed: int = 0) -> Carrier:
        """A new runtime of that name for such a machine; None: the usual one. ConfigurationError: it cannot be."""
        if self.real_time and name == "virtual":
            raise ConfigurationError(f"it keeps real time: choose {' or '.join(self.runtimes)} as its runtime")
        return by_name(name or self.runtimes[0], clock=WallClock() if self.real_time else None, seed=seed)

    def why_not(self) -> str:
        """Why this host cannot open the machine; "" if it can."""
        try:
            back_end = import_module(self.module)
        except ImportError as error:
            return str(error)
        return str(back_end.missing()) if hasattr(back_end, "missing") else ""


MACHINES: Final[Mapping[str, Entry]] = {
    "sim:pc-isa": Entry(
        "busdma.sim.pc_isa",
        "simulated PC of 1998: 32 MiB, three AHA-1542s, a DES card and a floppy on ISA, which reaches 16 MiB",
        ("isa",),
        ("aha1542", "des", "fdc"),
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
    "qemu:pc": Entry(
        "busdma.qemu.pc",
        "QEMU's PC of 1996: NVMe, Am53C974 and edu on PCI, a floppy on ISA with the 8237; no IOMMU",
        ("pci", "isa"),
        ("nvme", "ncr53c9x", "edu", "fdc"),
        real_time=True,
    ),
    "qemu:q35": Entry(
        "busdma.qemu.q35",
        "QEMU's PC of 2009 behind a VT-d: NVMe, Am53C974 and edu, some behind a PCI-to-PCI bridge",
        ("pci",),
        ("nvme", "ncr53c9x", "edu"),
        variants={"iommu=off": "the same without the VT-d"},
        real_time=True,
    ),
    "qemu:virt": Entry(
        "busdma.qemu.virt",
        "QEMU's aarch64 board behind an SMMUv3: NVMe with MSI-X, Am53C974, edu, which reaches no memory without",
        ("pci",),
        ("nvme", "ncr53c9x", "edu"),
        real_time=True,
    ),
    "qemu:clipper": Entry(
        "busdma.qemu.clipper",
        "QEMU's Alpha (Typhoon): NVMe by the monster window, Am53C974 by a window and a scatter-gather map",
        ("pci",),
        ("nvme", "ncr53c9x"),
        variants={"monster=0": "the same with the monster window closed"},
        real_time=True,
    ),
    "qemu:SS-5": Entry(
        "busdma.qemu.sun4m",
        "QEMU's SPARCstation 5: all DMA is DVMA through its IOMMU, a 53C9x on SBus",
        ("sbus",),
        ("ncr53c9x",),
        real_time=True,
    ),
    "qemu:SS-10": Entry(
        "busdma.qemu.sun4m",
        "QEMU's SPARCstation 10: the same, with devices at 36-bit physical addresses",
        ("sbus",),
        ("ncr53c9x",),
        real_time=True,
    ),
    "qemu:sun4u": Entry(
        "busdma.qemu.sun4u",
        "QEMU's UltraSPARC PC: NVMe and Am53C974 behind a PCI-to-PCI bridge and the IOMMU of a sabre",
        ("pci",),
        ("nvme", "ncr53c9x"),
        real_time=True,
    ),
    "qemu:magnum": Entry(
        "busdma.qemu.magnum",
        "QEMU's MIPS Magnum, little-endian: a 53C9x behind the translation of the RC4030",
        ("jazz",),
        ("ncr53c9x",),
        variants={"order=big": "the same, big-endian"},
        real_time=True,
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
    carrier = MACHINES[name].carrier()
    try:
        import_module(MACHINES[name].module).open_machine(name, carrier, options)
    except Asked as asked:
        return asked.defaults
    finally:
        carrier.close()
    raise AssertionError(f"{name} was opened before it had asked for its options")


def why_not(spec: str) -> str:
    """Why this host cannot open the machine `spec`; "" if it can, or if `spec` says itself where its QEMU is."""
    return "" if "binary" in dict(written(spec)) else MACHINES[spec.partition("?")[0]].why_not()


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
    spec: str = "sim:pc-isa", *, runtime: str | Runtime | None = None, check: bool | None = None, **options: object
) -> Machine:
    """Switch on the machine `spec`, such as ``"sim:pc-isa"`` or ``"sim:pc-isa?bounce=17"``.

    `runtime`: ``"virtual"`` (deterministic; the default of simulated machines), ``"asyncio"`` (the default of the
    others, which keep real time), ``"threads"``, or a Runtime, which then stays the caller's to close. `check`: under
    the DMA checker (`busdma.check`); None: if this program runs under ``busdma check``. `options`: the machine's, as in
    the spec. Raises ConfigurationError for a machine, option or runtime that does not exist, or not here;
    DeviceFault if the machine fails while it is switched on, such as a QEMU that is killed.
    """
    name, parsed = parse(spec, options)
    entry = MACHINES.get(name)
    if entry is None:
        raise ConfigurationError(f"there is no machine {name!r}; {_hint(name, MACHINES)}")
    parsed.check = (opened_checked is not None) if check is None else check
    back_end = import_module(entry.module)
    if runtime is not None and not isinstance(runtime, str):
        if entry.real_time and isinstance(runtime, Carrier) and runtime.clock.virtual:
            raise ConfigurationError(f"{spec} keeps real time: give a runtime on a WallClock")
        return _opened(cast(Machine, back_end.open_machine(spec, runtime, parsed)))
    try:
        carrier = entry.carrier(runtime)
    except ConfigurationError as error:
        raise ConfigurationError(f"{spec}: {error}") from None
    try:
        machine = cast(Machine, back_end.open_machine(spec, carrier, parsed))
    except BaseException:
        carrier.close()
        raise
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
