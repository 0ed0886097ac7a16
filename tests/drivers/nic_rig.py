"""A small machine for the PCnet driver's tests: one controller or two at a wire, and somebody who watches every access.

A controller may read a byte only between PREWRITE and POSTWRITE, and write it only between PREREAD and POSTREAD; a POST
fetches back only what it owns, and a map may be unloaded only when it owns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any, TypeVar

from busdma.addresses import AddressSet
from busdma.buffers import LinearBuffer
from busdma.drivers.pcnet.core import Pcnet
from busdma.drivers.pcnet.pci import attach
from busdma.errors import DeviceFault, DriverError
from busdma.lifecycle import State
from busdma.machine.attachment import Attachment, MmioRegisters
from busdma.machine.frames import FrameAllocator
from busdma.machine.interrupt import Interrupt
from busdma.machine.owner import OwnedRuntime
from busdma.machine.pci_firmware import assign
from busdma.machine.ram import coherent
from busdma.machine.space import AddressSpace
from busdma.map import Map
from busdma.mbuf import Mbuf, MbufChain, MbufPool
from busdma.sim.bus.pci import PciHost
from busdma.sim.bus.pci_config import BUS_MASTER
from busdma.sim.chips.nic import Nic
from busdma.sim.chips.wire import Wire
from busdma.sim.wiring import Memory
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, SyncOp
from busdma.waiting import Runtime, Waiter

T = TypeVar("T")
RAM = 64 << 20
TIMEOUT = 1_000_000_000
MAY_READ, MAY_WRITE = 1, 2


class Watch:
    """Who owns which byte of every loaded map: an instrument."""

    def __init__(self) -> None:
        self.maps: dict[Map, tuple[list[tuple[int, int]], bytearray]] = {}
        self.findings: list[str] = []
        self.quarantines: list[str] = []  #: names of maps

    def loaded(self, map: Map) -> None:
        segments = [(int(address), length) for address, length in map.segments]
        self.maps[map] = segments, bytearray(sum(length for _, length in segments))

    def deferred(self, map: Map) -> None:
        pass

    def syncing(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        pass

    def synced(self, map: Map, op: SyncOp, offset: int, length: int) -> None:
        give = (MAY_READ if op & PREWRITE else 0) | (MAY_WRITE if op & PREREAD else 0)
        take = (MAY_READ if op & POSTWRITE else 0) | (MAY_WRITE if op & POSTREAD else 0)
        owned = self.maps[map][1]
        if any(flags & take != take for flags in owned[offset : offset + length]):
            self.findings.append(f"{map.describe()}: {op!r} of bytes that the device did not own")
        owned[offset : offset + length] = bytes((flags | give) & ~take for flags in owned[offset : offset + length])

    def unloading(self, map: Map) -> None:
        _, owned = self.maps.pop(map)
        if any(owned):
            self.findings.append(f"{map.describe()} was unloaded, and the device owned some of it")

    def quarantined(self, map: Map) -> None:
        self.quarantines.append(map.name)

    def idled(self, map: Map) -> None:
        if map.state is State.QUARANTINED:
            self.maps.pop(map)
        elif map in self.maps:
            self.maps[map][1][:] = bytes(len(self.maps[map][1]))

    def refused(self, map: Map | None, error: DriverError) -> None:
        pass

    def access(self, address: int, length: int, flag: int) -> None:
        """A device reads or writes."""
        left = set(range(address, address + length))
        for segments, owned in self.maps.values():
            at = 0
            for start, count in segments:
                for byte in range(max(start, address), min(start + count, address + length)):
                    if owned[at + byte - start] & flag:
                        left.discard(byte)
                at += count
        if left:
            self.findings.append(f"access {flag} to {min(left):#x}..{max(left):#x}, which the device did not own")


class Watched:
    """A controller's way to memory, with the watch beside it. ``broken``: the bus refuses from now on."""

    def __init__(self, master: Memory, watch: Watch) -> None:
        self.master, self.watch, self.broken = master, watch, False

    def dma_read(self, address: int, length: int) -> bytes:
        self._refuse(address)
        self.watch.access(address, length, MAY_READ)
        return self.master.dma_read(address, length)

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._refuse(address)
        self.watch.access(address, len(data), MAY_WRITE)
        self.master.dma_write(address, data)

    def _refuse(self, address: int) -> None:
        if self.broken:
            self.broken = False
            raise DeviceFault("refused", address)


class Cut:
    """Registers of a controller, until it is pulled out: then everything reads as ones."""

    def __init__(self, registers: MmioRegisters) -> None:
        self.registers, self.gone = registers, False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.registers, name)
        if not self.gone or name == "barrier":
            return real
        return lambda *_: None if name.startswith("write") else (1 << int(name[4:])) - 1


class Port:
    """One controller and its driver."""

    def __init__(self, rig: Rig, name: str, number: int) -> None:
        runtime, host = rig.runtime, rig.host
        self.line = Interrupt(name, runtime)
        self.slot = host.root.slot(name, number, self.line)
        self.master = Watched(self.slot.master, rig.watch)
        self.nic = Nic(
            self.master, self.slot.pin, rig.call_at, runtime.now, wire=rig.wire, address=bytes((2, 0, 0, 0, 0, number))
        )
        self.slot.plug(self.nic)

    def attach(self, rig: Rig) -> None:
        """After the firmware has assigned addresses."""
        self.registers = Cut(self.slot.registers(1))
        tag = rig.bus.derive(self.slot.name)
        self.attachment = Attachment(
            name=self.slot.name,
            tag=tag,
            registers=self.registers,
            interrupt=self.line,
            runtime=OwnedRuntime(rig.runtime, tag),
            config=self.slot.config,
        )
        self.driver: Pcnet = attach(self.attachment, timeout=TIMEOUT)


class Rig:
    """``ports`` at one ``wire``; their drivers are attached and not started. `reach`: the last bus address."""

    def __init__(self, runtime: Runtime, *, ports: int = 1, bounce: int = 64, reach: int = (32 << 20) - 1) -> None:
        self.runtime = runtime
        ram = coherent(RAM, check=True)
        assert ram.checker is not None
        self.checker = ram.checker
        self.frames = FrameAllocator(0, RAM // 4096, seed=7)
        self.watch = Watch()
        self.domain = ram.domain(self.frames, runtime, bounce_limit=bounce)
        self.domain.instruments.append(self.watch)
        self.kernel = AddressSpace("kernel", ram.cpu, self.frames, pages=8192)
        self.kernel.in_use = self.domain.in_use
        self.host = PciHost(ram.bus, self.frames, AddressSet.span(0, RAM - 1))
        self.host.watch = ram.watch
        self.wire = Wire(self.call_at, runtime.now)
        self.bus = self.domain.root("pc").derive("pci0", lowaddr=reach)
        self.pool = MbufPool(self.kernel, seed=5)
        self.ports = [Port(self, f"net{number}", number) for number in range(ports)]
        assign(self.host.root, AddressSet.span(0xE0000000, 0xEFFFFFFF))
        for port in self.ports:
            port.attach(self)
        self.driver, self.nic = self.ports[0].driver, self.ports[0].nic

    def call_at(self, when: int, fn: Callable[[], object]) -> object:
        """The machine's clock, under the bus's lock."""
        return self.runtime.call_at(when, self.host.serialised(fn))

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Start the drivers, run `main`, stop them, and see that nothing is left behind and nothing was found."""

        async def all_of_it() -> T:
            for port in self.ports:
                await port.driver.start()
            try:
                return await main()
            finally:
                for port in self.ports:
                    await port.driver.stop()

        result = self.runtime.run(all_of_it)
        self.check()
        return result

    def check(self) -> None:
        """Nothing is loaded, allocated or enabled, and the watch is content."""
        assert self.watch.findings == []
        assert list(self.checker.findings) == []
        assert self.domain.leaks() == []
        assert self.frames.statistics()["by_owner"].get("dma-safe", 0) == 0
        assert all(zone.active == 0 for zone in self.domain.zones)
        for port in self.ports:
            assert port.slot.statistics() == {"aborts": 0, "not_enabled": 0}
            assert not port.slot.config.command(BUS_MASTER)
            assert [map.name for tag in port.driver.tag.children for map in tag.maps] == []
        assert self.pool.statistics()["clusters"] == self.pool.statistics()["mbufs"] == 0

    def high(self, data: bytes, offset: int = 0) -> LinearBuffer:
        """A kernel buffer with `data` in it."""
        buffer = self.kernel.allocate(len(data), offset=offset)
        buffer.write(data)
        return buffer

    def cut(self, data: bytes, *edges: int) -> MbufChain:
        """`data` in mbufs that end at `edges`; where an edge comes twice, an mbuf is empty."""
        first: Mbuf | None = None
        chain = MbufChain(self.pool.get())
        places = [0, *edges, len(data)]
        for start, end in pairwise(places):
            mbuf = self.pool.get() if end - start <= 224 else self.pool.cluster()
            mbuf.append(data[start:end])
            if first is None:
                first = mbuf
                chain.first.free()
                chain = MbufChain(first)
            else:
                chain.append(mbuf)
        return chain


def frame(data: bytes, to: bytes) -> bytes:
    """`data` with a header."""
    return to + b"\x02\x00\x00\x00\x00\x63\x88\xb5" + data


async def pause(runtime: Runtime, time: int) -> None:
    """Let `time` ns pass."""
    waiter = Waiter("a pause")
    runtime.call_at(runtime.now() + time, waiter.wake)
    await runtime.park(waiter)
