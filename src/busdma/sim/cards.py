"""Cards: a device model is put into a slot, or behind I/O ports, and is from then on a device of its machine.

Models are made alike: of their master, their interrupt, and the clock by which they are called and that they read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from busdma.machine.attachment import IsaDmaChannel
from busdma.machine.interrupt import Interrupt
from busdma.machine.machine import Device
from busdma.sim.bus.isa import IsaBus, PortDevice
from busdma.sim.bus.master import BusMaster
from busdma.sim.bus.pci import PciBus, PciFunction
from busdma.sim.chips import des
from busdma.sim.simulated import SimulatedMachine
from busdma.tag import Tag

F = TypeVar("F", bound=PciFunction)
P = TypeVar("P", bound=PortDevice)


def add_pci(
    machine: SimulatedMachine,
    bus: PciBus,
    number: int,
    name: str,
    driver: str,
    tag: Tag,
    make: Callable[..., F],
    *,
    irq: int,
    bar: int = 0,
    **properties: int,
) -> F:
    """Put the card into slot `number` of `bus`, whose tag is `tag`. `bar`: where its driver finds its registers.

    ConfigurationError: the slot is taken, or the name is.
    """
    line = Interrupt(f"irq {irq}", machine.runtime)
    slot = bus.slot(name, number, line)
    card = make(slot.master, slot.pin, machine.call_at, machine.runtime.now)
    slot.plug(card)
    registers, numbers, messages = slot.registers(bar), {"irq": irq, **properties}, bus.host.messages
    machine.devices[name] = Device(name, driver, "pci", tag, registers, line, numbers, slot.config, messages)
    return card


def add_ports(
    machine: SimulatedMachine,
    bus: IsaBus,
    base: int,
    ports: int,
    name: str,
    driver: str,
    tag: Tag,
    make: Callable[..., P],
    *,
    irq: int,
    kind: str = "isa",
    master: BusMaster | None = None,
    dma: IsaDmaChannel | None = None,
    **properties: int,
) -> P:
    """Have the card answer at `ports` ports from `base` on. `kind`: of bus, if it is another; then with its `master`.

    `dma`: the channel that its driver is given. ConfigurationError: a port is taken, or the name is.
    """
    line = Interrupt(f"irq {irq}", machine.runtime)
    card = make(master or bus.master(name), line, machine.call_at, machine.runtime.now)
    bus.claim(base, ports, card)
    registers = bus.registers(base)
    machine.devices[name] = Device(name, driver, kind, tag, registers, line, {"irq": irq, **properties}, dma=dma)
    return card


def add_des_pci(
    machine: SimulatedMachine, bus: PciBus, number: int, name: str, tag: Tag, *, irq: int
) -> des.DesPci | None:
    """The DES card in a slot. None, and it is `absent` from the machine, where its library is missing."""
    return None if _lacks(machine, name) else add_pci(machine, bus, number, name, "des", tag, des.DesPci, irq=irq)


def add_des_isa(
    machine: SimulatedMachine, bus: IsaBus, base: int, name: str, tag: Tag, *, irq: int
) -> des.DesIsa | None:
    """The DES card at ports; as `add_des_pci`."""
    if _lacks(machine, name):
        return None
    return add_ports(machine, bus, base, des.PORTS, name, "des", tag, des.DesIsa, irq=irq)


def _lacks(machine: SimulatedMachine, name: str) -> bool:
    """Is there no library for the DES card `name`? Then the machine says why it has none."""
    why = des.missing()
    if why:
        machine.absent[name] = why
    return bool(why)
