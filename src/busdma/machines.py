"""The table of machines, and ``open``. A back end is imported when one of its machines is opened."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Final, cast

from busdma.errors import ConfigurationError
from busdma.machine.machine import Machine
from busdma.machine.spec import parse
from busdma.runtime import by_name
from busdma.waiting import Runtime


@dataclass(frozen=True, slots=True)
class Entry:
    """A machine of the table."""

    module: str  #: has ``open_machine(spec, runtime, options) -> Machine``
    what: str
    buses: tuple[str, ...]
    drivers: tuple[str, ...]

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
        "simulated PC of 1998: 32 MiB, three AHA-1542s on ISA, which reaches 16 MiB",
        ("isa",),
        ("aha1542",),
    ),
    "sim:pc-vlb": Entry(
        "busdma.sim.pc_vlb",
        "simulated PC of 1998: 64 MiB, a BT-445S on VLB, which goes astray in 15 pages of it",
        ("vlb",),
        ("bt",),
    ),
    "sim:x86-64": Entry(
        "busdma.sim.x86_64",
        "simulated PC of today: 16 GiB, NVMe, a PCI-to-PCI bridge, edu devices of 28 and 64 bits",
        ("pci",),
        ("nvme", "edu"),
    ),
}


def open(spec: str = "sim:pc-isa", *, runtime: str | Runtime = "virtual", **options: object) -> Machine:
    """Switch on the machine `spec`, such as ``"sim:pc-isa"`` or ``"sim:pc-isa?bounce=17"``.

    `runtime`: ``"virtual"`` (deterministic, the default), ``"asyncio"``, ``"threads"``, or a Runtime, which then stays
    the caller's to close. `options`: the machine's, as in the spec. Raises ConfigurationError for a machine, option or
    runtime that does not exist.
    """
    name, parsed = parse(spec, options)
    entry = MACHINES.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, MACHINES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(MACHINES)}"
        raise ConfigurationError(f"there is no machine {name!r}; {hint}")
    back_end = import_module(entry.module)
    if not isinstance(runtime, str):
        return cast(Machine, back_end.open_machine(spec, runtime, parsed))
    carrier = by_name(runtime)
    machine = cast(Machine, back_end.open_machine(spec, carrier, parsed))
    machine.at_close(carrier.close)  # a runtime made for this machine goes with it
    return machine
