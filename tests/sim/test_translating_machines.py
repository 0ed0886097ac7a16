"""The machines whose buses do not have memory's addresses: which way data goes, and what a device cannot do."""

from __future__ import annotations

import random
from typing import Any

import pytest

import busdma
from busdma import Direction
from busdma.addresses import AddressSet
from busdma.errors import ConfigurationError, ResourceShortage
from busdma.map import Map
from busdma.sim.bus.master import BusMaster
from busdma.sim.bus.pci_config import BUS_MASTER, COMMAND
from busdma.tag import Tag

GIB = 1 << 30
MIB = 1 << 20


def master_of(machine: Any, name: str) -> BusMaster:
    """The device's way to memory, enabled."""
    config = machine.devices[name].config
    if config is not None:
        config.write16(COMMAND, BUS_MASTER)
        return machine.host.slots[name].master  # type: ignore[no-any-return]
    bus = machine.isa if machine.devices[name].bus == "isa" else machine.bus
    return bus.masters[name]  # type: ignore[no-any-return]


def poke(machine: Any, master: str, address: int, data: bytes) -> None:
    """A device writes `data` at a bus address, behind its driver's back."""
    master_of(machine, master).dma_write(address, data)


def peek(machine: Any, master: str, address: int, length: int) -> bytes:
    return master_of(machine, master).dma_read(address, length)


def loaded(tag: Tag, buffer: object, direction: Direction = Direction.BOTH) -> Map:
    """A map of `tag` with `buffer` in it, given to the device."""
    dma = tag.create_map()
    dma.load_nowait(buffer, direction)
    dma.sync(direction.pre)
    return dma


# -- sim:alpha -----------------------------------------------------------------------------------------------


def test_alpha_uses_the_window_where_it_leads_and_the_map_elsewhere() -> None:
    with busdma.open("sim:alpha") as machine:
        tag = machine.devices["esp0"].tag.derive("mine")
        page = machine.domain.page_size
        low = machine.kernel.allocate(3 * page, within=AddressSet.span(0, GIB - 1))
        high = machine.kernel.allocate(3 * page, within=AddressSet.span(GIB, 3 * GIB // 2 - 1))
        first, second = loaded(tag, low), loaded(tag, high)
        frames = list(low.frames.table[low.start // page :][:3])
        assert {address for address, _ in first.segments} <= {frame + GIB for frame in frames}
        assert len(second.segments) == 1
        assert 8 * MIB <= second.segments[0][0] < 16 * MIB
        for dma, buffer in ((first, low), (second, high)):
            data = random.Random(1).randbytes(3 * page)
            at = 0
            for address, length in dma.segments:
                poke(machine, "esp0", address, data[at : at + length])
                at += length
            dma.sync(Direction.BOTH.post)
            assert buffer.read() == data
            dma.unload()


def test_alpha_makes_one_segment_where_a_tag_has_no_more() -> None:
    with busdma.open("sim:alpha") as machine:
        tag = machine.devices["esp0"].tag.derive("mine", nsegments=1, maxsize=65536)
        buffer = machine.kernel.allocate(65536, offset=100, within=AddressSet.span(0, GIB - 1))
        dma = loaded(tag, buffer)
        assert len(dma.segments) == 1
        assert dma.segments[0][0] < 16 * MIB
        assert all(zone.active == 0 for zone in machine.domain.zones)
        dma.unload()


def test_alpha_isa_has_the_map_alone() -> None:
    with busdma.open("sim:alpha") as machine:
        tag = machine.devices["aha0"].tag
        assert [route.name for route in tag.routes] == ["window", "remap"]
        low = machine.kernel.allocate(8192, within=AddressSet.span(0, 16 * MIB - 1))
        dma = loaded(tag.derive("mine"), low)  # low memory does not help: it is bus address 1 GiB
        assert all(8 * MIB <= address < 16 * MIB for address, _ in dma.segments)
        dma.unload()


def test_alpha_reads_ahead_into_a_page_that_is_there() -> None:
    with busdma.open("sim:alpha") as machine:
        tag = machine.devices["aha0"].tag.derive("mine")
        page = machine.domain.page_size
        buffer = machine.kernel.allocate(page)
        buffer.fill(7)
        dma = loaded(tag, buffer, Direction.TO_DEVICE)
        cia: Any = machine
        ((address, length),) = dma.segments
        assert peek(machine, "aha0", address, length) == bytes([7]) * page
        assert not cia.cia.faults.recent
        held = cia.pool.statistics()["active"]
        dma.unload()
        dma.load_nowait(buffer, Direction.FROM_DEVICE)
        assert cia.pool.statistics()["active"] == held - 1  # nothing is read: no spill page
        dma.unload()


# -- sim:sparc -----------------------------------------------------------------------------------------------


def test_sparc_leaves_entries_standing() -> None:
    for spec, entered in (("sim:sparc", 2), ("sim:sparc?strict=1", 6)):
        with busdma.open(spec) as machine:
            pool: Any = machine
            tag = machine.devices["esp0"].tag.derive("mine")
            buffer = machine.kernel.allocate(8192)
            addresses = set()
            for _ in range(3):
                dma = loaded(tag, buffer)
                addresses.add(dma.segments[0][0])
                dma.unload()
            counts = pool.pool.statistics()
            assert counts["entered"] == entered
            assert len(addresses) == 1
            assert counts["standing"] == (2 if spec == "sim:sparc" else 0)
            buffer.free()  # before the frames change owner
            assert pool.pool.statistics()["standing"] == 0


def test_sparc_never_crosses_16_mib_and_takes_all_memory() -> None:
    with busdma.open("sim:sparc") as machine:
        tag = machine.devices["esp0"].tag.derive("mine", boundary=1 << 24)
        dma = loaded(tag, machine.kernel.allocate(20 * MIB))
        assert len(dma.segments) == 2
        assert all(a >> 24 == (a + n - 1) >> 24 and a >= 0xFC00_0000 for a, n in dma.segments)
        dma.unload()
    with pytest.raises(ConfigurationError, match="power of two"):
        busdma.open("sim:sparc?dvma=17")


def test_sparc_has_only_so_much_dvma() -> None:
    with busdma.open("sim:sparc?dvma=16") as machine:
        tag = machine.devices["esp0"].tag.derive("mine")
        first = loaded(tag, machine.kernel.allocate(12 * MIB))
        second = tag.create_map()
        buffer = machine.kernel.allocate(8 * MIB)
        with pytest.raises(ResourceShortage, match="iommu"):
            second.load_nowait(buffer)

        async def wait() -> int:
            machine.runtime.start(give_back)
            return len(await second.load(buffer))

        async def give_back() -> None:
            first.unload()

        assert machine.run(wait) == 1
        second.unload()


# -- sim:mips ------------------------------------------------------------------------------------------------


def test_mips_bounces_what_shares_a_line_with_other_data() -> None:
    with busdma.open("sim:mips") as machine:
        tag = machine.devices["esp0"].tag.derive("mine")
        whole = machine.kernel.allocate(256)
        neighbour, buffer = whole[:40], whole[40:200]
        neighbour.write(b"n" * 40)
        dma = loaded(tag, buffer, Direction.FROM_DEVICE)
        assert machine.domain.zones[0].active == 1
        neighbour.write(b"N" * 40)  # its line is dirty while the device writes
        poke(machine, "esp0", dma.segments[0][0], b"d" * 160)
        dma.sync(Direction.FROM_DEVICE.post)
        dma.unload()
        assert neighbour.read() == b"N" * 40
        assert buffer.read() == b"d" * 160
        dma = loaded(tag, buffer, Direction.TO_DEVICE)  # cleaning the line harms nobody
        assert machine.domain.zones[0].active == 0
        assert peek(machine, "esp0", dma.segments[0][0], 160) == b"d" * 160
        dma.unload()


def test_mips_needs_every_sync() -> None:
    with busdma.open("sim:mips") as machine:
        tag = machine.devices["esp0"].tag.derive("mine")
        buffer = machine.kernel.allocate(4096)
        buffer.fill(1)
        dma = tag.create_map()
        dma.load_nowait(buffer)
        ((address, length),) = dma.segments
        assert peek(machine, "esp0", address, length) != bytes([1]) * length  # never cleaned
        dma.sync(busdma.PREREAD | busdma.PREWRITE)
        assert peek(machine, "esp0", address, length) == bytes([1]) * length
        buffer.read()
        poke(machine, "esp0", address, bytes([2]) * length)
        dma.sync(busdma.POSTREAD | busdma.POSTWRITE)
        assert buffer.read() == bytes([2]) * length
        dma.unload()


# -- sim:x86-64 with its IOMMU -------------------------------------------------------------------------------


@pytest.fixture(params=["on", "standing"])
def pc(request: pytest.FixtureRequest) -> Any:
    with busdma.open(f"sim:x86-64?iommu={request.param}") as machine:
        yield machine


def test_a_device_reaches_its_own_maps_only(pc: Any) -> None:
    buffer = pc.kernel.allocate(4096)
    buffer.fill(5)
    dma = loaded(pc.devices["nvme0"].tag.derive("mine"), buffer)
    ((address, length),) = dma.segments
    assert peek(pc, "nvme0", address, length) == bytes([5]) * length
    poke(pc, "edu0", address, b"x" * length)  # somebody else's address
    poke(pc, "nvme0", address + 4096, b"y" * 4096)  # beside its own
    assert buffer.read() == bytes([5]) * length
    assert [(fault.master, fault.address, fault.write) for fault in pc.iommu.model.faults.recent] == [
        ("edu0", address, True),
        ("nvme0", address + 4096, True),
    ]
    fault = pc.iommu.unit.take_fault()
    assert (fault.address, fault.write, fault.source) == (address, True, 3 << 3)
    dma.unload()


def test_rights_come_from_the_direction(pc: Any) -> None:
    buffer = pc.kernel.allocate(4096)
    dma = loaded(pc.devices["nvme0"].tag.derive("mine"), buffer, Direction.TO_DEVICE)
    poke(pc, "nvme0", dma.segments[0][0], b"z" * 4096)
    assert buffer.read() == bytes(4096)
    assert pc.iommu.model.faults.recent[-1].write
    dma.unload()


def test_after_unload_the_address_is_nobodys_or_still_only_that_buffer(pc: Any) -> None:
    buffer = pc.kernel.allocate(4096)
    dma = loaded(pc.devices["nvme0"].tag.derive("mine"), buffer)
    address = int(dma.segments[0][0])
    poke(pc, "nvme0", address, b"a" * 4096)
    dma.sync(Direction.BOTH.post)
    dma.unload()
    poke(pc, "nvme0", address, b"b" * 4096)
    standing = pc.spec.endswith("standing")
    assert buffer.read() == (b"b" if standing else b"a") * 4096
    buffer.free()
    other = pc.kernel.allocate(4096)  # most likely the same frame
    poke(pc, "nvme0", address, b"c" * 4096)
    assert other.read() == bytes(4096)


def test_without_a_flush_the_old_page_is_still_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with busdma.open("sim:x86-64?iommu=on") as machine:
        pc: Any = machine
        translator = pc.iommu.pools["nvme0"].translator
        monkeypatch.setattr(translator, "flush", lambda address, pages: None)
        buffer = pc.kernel.allocate(4096)
        dma = loaded(pc.devices["nvme0"].tag.derive("mine"), buffer)
        address = int(dma.segments[0][0])
        poke(pc, "nvme0", address, b"a" * 4096)
        dma.unload()
        poke(pc, "nvme0", address, b"b" * 4096)
        assert buffer.read() == b"b" * 4096
        assert not pc.iommu.model.faults.recent


def test_what_is_behind_the_bridge_shares_its_domain() -> None:
    with busdma.open("sim:x86-64?iommu=on") as machine:
        pc: Any = machine
        assert set(pc.iommu.pools) == {"bridge0", *(d for d in pc.devices if d != "edu1")}
        dma = loaded(pc.devices["edu1"].tag.derive("mine"), pc.kernel.allocate(4096))
        assert peek(pc, "edu1", int(dma.segments[0][0]), 4096) == bytes(4096)
        assert not pc.iommu.model.faults.recent
        dma.unload()
    with pytest.raises(ConfigurationError, match="off, on or standing"):
        busdma.open("sim:x86-64?iommu=maybe")
