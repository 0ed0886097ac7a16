"""The DMA checker finds mistakes on every machine, also where the data comes out right; and tells who made them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

import busdma
from busdma.check.findings import Finding, Kind
from busdma.drivers.block import BlockDevice
from busdma.errors import BusdmaError, DriverError
from busdma.machine.machine import Machine
from busdma.map import Map
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp
from busdma.testing.conformance.rig import LBA, disks_of, inverted, noise, request_size, running, tags
from busdma.testing.difference import difference

pytestmark = pytest.mark.busdma(check=False)  # mistakes are made on purpose, on a machine of the test's own


POST: Final = POSTREAD | POSTWRITE


@contextmanager
def watched(machine: Machine) -> Iterator[tuple[Machine, Callable[[], list[Finding]]]]:
    """The same machine under the checker, and what it has found so far."""
    with busdma.open(machine.spec, check=True) as other:
        checker = other.checker
        assert checker is not None
        yield other, lambda: list(checker.findings)


def sees_devices(machine: Machine) -> bool:
    """Can its checker be told of what devices do?"""
    assert machine.checker is not None
    return machine.checker.sees_devices


def line_above() -> str:
    """The line above the one that calls this, with its file, as a finding has it."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"conformance{os.sep}{Path(__file__).name}:{frame.f_back.f_lineno - 1}"


def test_a_right_transfer_is_no_mistake(machine: Machine) -> None:
    """Whatever the direction, the memory and the ranges."""
    with watched(machine) as (other, found):
        for tag in tags(other):
            for buffer in (other.allocate(9_000, offset=7), bytearray(9_000)):
                for direction in Direction:
                    map = tag.create_map()
                    map.load_nowait(buffer, direction)
                    map.sync(direction.pre, 0, 5_000)
                    map.sync(direction.pre, 5_000)
                    map.sync(direction.post, 4_000)
                    map.sync(direction.post, 0, 4_000)
                    map.unload()
            tag.alloc(100).free()
        assert found() == []


def test_a_finding_has_the_line_of_the_load(machine: Machine) -> None:
    """And the line at which it came to light, the tag, the map, the bytes and whose memory it is."""
    with watched(machine) as (other, found):
        for tag in tags(other):
            buffer = other.process(f"cp {tag.name}").allocate(9_000)
            map = tag.create_map(name="mine")
            map.load_nowait(buffer)
            loaded = line_above()
            map.sync(PREREAD | PREWRITE, 100, 50)
            map.unload()
            noticed = line_above()
            finding = found()[-1]
            assert finding.kind is Kind.MISSING_POST
            assert (finding.tag, finding.map, finding.owner) == (tag.path, "mine", buffer.owner)
            assert (finding.offset, finding.length) == (100, 50)
            assert str(finding.where).endswith(loaded)
            assert str(finding.noticed).endswith(noticed)
            assert all(word in str(finding) for word in ("missing-post", tag.path, "mine", loaded, "100..149"))


def test_calls_that_the_state_forbids_are_found(machine: Machine) -> None:
    """They raise, and a driver that swallows the error is found all the same."""
    with watched(machine) as (other, found):
        for number, tag in enumerate(tags(other)):
            map = tag.create_map()
            map.load_nowait(other.allocate(100))
            with pytest.raises(DriverError):
                map.sync(PREREAD | POSTREAD)
            with pytest.raises(DriverError):
                map.load_nowait(b"x")
            map.unload()
            with pytest.raises(DriverError):
                map.unload()
            assert [finding.kind for finding in found()[3 * number :]] == [Kind.STATE] * 3


def test_memory_that_is_freed_while_it_is_loaded_is_found(machine: Machine) -> None:
    """Though it is not freed."""
    with watched(machine) as (other, found):
        for number, tag in enumerate(tags(other)):
            buffer = other.allocate(100)
            map = tag.create_map()
            map.load_nowait(buffer)
            with pytest.raises(DriverError):
                buffer.free()
            map.unload()
            buffer.free()
            assert len(found()) == number + 1
            assert found()[-1].kind is Kind.FREED_WHILE_LOADED


def test_loads_that_share_bytes_are_found(machine: Machine) -> None:
    """If a device may write there."""
    with watched(machine) as (other, found):
        for number, tag in enumerate(tags(other)):
            buffer = other.allocate(4_000)
            maps = [tag.create_map(name=name) for name in ("one", "two")]
            for direction in (Direction.TO_DEVICE, Direction.FROM_DEVICE):
                maps[0].load_nowait(buffer[:3_000], direction)
                maps[1].load_nowait(buffer[2_000:], direction)
                for map in maps:
                    map.unload()
            kinds = [finding.kind for finding in found()]
            assert kinds == [Kind.OVERLAP] * (number + 1)


def test_what_is_left_when_a_machine_is_closed_is_found(machine: Machine) -> None:
    """Maps and DMA-safe memory, each by name."""
    with watched(machine) as (other, found):
        tag = tags(other)[0]
        tag.create_map(name="lost").load_nowait(other.allocate(100))
        tag.alloc(100)
    kinds = {finding.kind for finding in found()}
    assert {Kind.LEAKED_MAP, Kind.LEAKED_MEMORY} <= kinds
    assert any(finding.map == "lost" for finding in found())


def forgetful(monkeypatch: pytest.MonkeyPatch, forgotten: SyncOp, owner: str) -> None:
    """From here on drivers forget these syncs, of memory of this owner."""
    real = Map.sync

    def sync(map: Map, op: SyncOp, offset: int = 0, length: int | None = None) -> None:
        if getattr(map.buffer, "owner", None) != owner or op & ~forgotten:
            real(map, op & ~forgotten if getattr(map.buffer, "owner", None) == owner else op, offset, length)

    monkeypatch.setattr(Map, "sync", sync)


@pytest.mark.parametrize(
    ("forgotten", "kinds"),
    [
        (PREWRITE, {Kind.MISSING_PREWRITE}),
        (PREREAD, {Kind.MISSING_PREREAD}),
        (POSTREAD, {Kind.MISSING_POST, Kind.MISSING_POSTREAD}),
        (POSTWRITE, {Kind.MISSING_POST}),
    ],
    ids=["prewrite", "preread", "postread", "postwrite"],
)
def test_a_forgotten_sync_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, forgotten: SyncOp, kinds: set[Kind]
) -> None:
    """Sync is always required, on coherent machines too, where the data would be right without.

    Where nobody can tell what devices do, a PRE that is missing is found when the POST comes.
    """
    with watched(machine) as (other, found):
        expected = kinds if sees_devices(other) else kinds | {Kind.POST_WITHOUT_PRE}
        owner = other.process("user").allocate(1).owner

        async def one(disk: BlockDevice) -> None:
            data = noise(request_size(disk))
            out, back = (other.processes["user"].allocate(len(data)) for _ in range(2))
            out.write(data)
            back.write(inverted(data))
            with suppress(BusdmaError):  # a device that notices may fail
                await disk.write(LBA, out)
            with suppress(BusdmaError):
                await disk.read(LBA, back)

        with running(other) as drivers:
            assert found() == []
            for driver in drivers:
                for disk in driver.disks:
                    before = len(found())
                    with monkeypatch.context() as patched:
                        forgetful(patched, forgotten, owner)
                        other.run(one, disk)
                    new = found()[before:]
                    assert {finding.kind for finding in new} & expected, disk.name
                    assert {finding.owner for finding in new if finding.kind in expected} == {owner}
            assert disks_of(drivers)


def lying(monkeypatch: pytest.MonkeyPatch, owner: str) -> None:
    """From here on drivers load memory of this owner the other way round, and sync it to match."""

    def other_way(name: str) -> Callable[..., Any]:
        real = getattr(Map, name)
        signature = inspect.signature(real)

        def face(*given: Any, **named: Any) -> Any:
            call = signature.bind(*given, **named)
            if getattr(call.arguments["buffer"], "owner", None) == owner:
                call.arguments["direction"] = Direction.TO_DEVICE
            return real(*call.args, **call.kwargs)

        return face

    for name in ("load", "load_nowait", "load_blocking", "load_callback"):
        monkeypatch.setattr(Map, name, other_way(name))
    real = Map.sync

    def sync(map: Map, op: SyncOp, offset: int = 0, length: int | None = None) -> None:
        if getattr(map.buffer, "owner", None) == owner:
            op = map.direction.post if op & POST else map.direction.pre
        real(map, op, offset, length)

    monkeypatch.setattr(Map, "sync", sync)


def test_a_device_that_writes_what_it_may_read_is_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rights of a mapping come from the direction of its load; where hardware has none, the checker has them.

    Where nobody can tell what devices do, it is not found; and nothing that did not happen is.
    """
    with watched(machine) as (other, found):
        user = other.process("user")

        async def one(disk: BlockDevice) -> None:
            back = user.allocate(disk.block_size)
            with suppress(BusdmaError):  # where hardware has rights the device is refused
                await disk.read(LBA, back)

        with running(other) as drivers:
            for disk in disks_of(drivers):
                before = len(found())
                with monkeypatch.context() as patched:
                    lying(patched, user.allocate(1).owner)
                    other.run(one, disk)
                kinds = {finding.kind for finding in found()[before:]}
                if sees_devices(other):
                    assert kinds & {Kind.WRONG_WAY, Kind.NO_ANSWER}, disk.name
                else:
                    assert not kinds, disk.name


def test_no_driver_looks_at_data_that_it_passes_on(machine: Machine) -> None:
    """Between a user's data and a device nobody needs to read the bytes, who might not even be able to."""
    with watched(machine) as (other, found):

        async def one(disk: BlockDevice) -> None:
            data = noise(request_size(disk))
            out, back = other.allocate(len(data)), other.allocate(len(data))
            out.write(data)
            await disk.write(LBA, other.sealed(out))
            await disk.read(LBA, other.sealed(back))
            assert not difference(back.read(), data)

        with running(other) as drivers:
            for disk in disks_of(drivers):
                other.run(one, disk)
        assert found() == []
