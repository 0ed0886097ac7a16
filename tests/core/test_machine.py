"""Opening a machine: specs, options and runtimes, and what a bad one is told."""

from __future__ import annotations

from typing import Any

import pytest

import busdma
from busdma.errors import ConfigurationError, DriverError
from busdma.machine.spec import parse
from busdma.machines import MACHINES, options_of
from busdma.runtime import NAMES, by_name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sim:pc-isb", "there is no machine 'sim:pc-isb'; did you mean 'sim:pc-isa'"),
        ("vax", "there is no machine 'vax'; there are: sim:pc-isa"),
        ("", "there is no machine ''"),
        ("sim:pc-isa?bounce=many", "bounce=many is not a number"),
        ("sim:pc-isa?bounce=0", "bounce=0 is too small: give 1 or more"),
        ("sim:pc-isa?bounce=-1", "too small"),
        ("sim:pc-isa?colour=red", "no option colour; there are: bounce, disk_mib, force_bounce, images, seed"),
        ("sim:pc-isa?bounce", "options are written [?]name=value"),
        ("sim:pc-isa?", "options are written [?]name=value"),
        ("sim:pc-isa?=17", "options are written [?]name=value"),
        ("sim:pc-isa?bounce=20&bounce=30", "option bounce is given twice; give it once"),
        ("sim:pc-isa?images=/dev/null", "images=/dev/null: it is not a folder; name one"),
        ("sim:pc-isa?images=/there/is/no/such/folder", "there is no such folder"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        busdma.open(spec)


@pytest.mark.parametrize("spec", [None, 7, b"sim:pc-isa"])
def test_no_spec(spec: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is no spec of a machine: give a string such as 'sim:pc-isa'"):
        busdma.open(spec)


def test_quoted_characters_of_a_spec() -> None:
    name, options = parse("sim:pc-isa?images=a%26b+c%3D")
    assert (name, options.text("images", "")) == ("sim:pc-isa", "a&b c=")


def test_options_are_those_that_the_machine_asks_for() -> None:
    assert options_of("sim:pc-isa") == {
        "seed": "1",
        "bounce": "128",
        "force_bounce": "0",
        "images": "",
        "disk_mib": "64",
    }
    for name in MACHINES:
        found = options_of(name)
        busdma.open(f"{name}?{'&'.join(f'{option}={value}' for option, value in found.items())}").close()
        with pytest.raises(ConfigurationError, match=f"there are: {', '.join(sorted(found))}$"):
            busdma.open(name, nothing=1)


def test_options_by_keyword_win() -> None:
    name, options = parse("sim:pc-isa?bounce=17&seed=3", {"bounce": 0x20})
    assert (name, options.number("bounce", 128), options.number("seed", 1), options.number("rest", 5)) == (
        "sim:pc-isa",
        32,
        3,
        5,
    )
    options.finish()
    assert parse("sim:pc-isa")[1].text("images", "none") == "none"
    assert parse("sim:pc-isa?bounce=0x11")[1].number("bounce", 1) == 17


def test_an_unknown_runtime() -> None:
    with pytest.raises(ConfigurationError, match="there is no runtime 'trio': choose one of virtual, asyncio, threads"):
        busdma.open("sim:pc-isa", runtime="trio")


@pytest.mark.parametrize("runtime", NAMES)
def test_one_machine_on_each_runtime(runtime: str) -> None:
    with busdma.open("sim:pc-isa?bounce=17", runtime=runtime) as machine:
        assert machine.runtime.name == runtime
        assert sorted(machine.devices) == ["aha0", "aha1", "aha2", "des0", "fd0"]
        tag = machine.devices["aha0"].tag.derive("test", nsegments=17)
        data = bytearray(b"hello, DMA" * 400)
        with tag.transfer(data, to_device=True) as segments:
            assert sum(length for _, length in segments) == len(data)
            assert all(address + length <= 1 << 24 for address, length in segments)
        (zone,) = machine.statistics()["zones"].values()
        assert (zone["limit"], zone["bounced_pages"], zone["active"]) == (17, 1, 0)
        assert machine.leaks() == []
    assert repr(machine) == "<machine sim:pc-isa?bounce=17, closed>"


def test_a_runtime_of_the_callers_own() -> None:
    with by_name("virtual") as runtime, busdma.open(runtime=runtime) as machine:
        assert machine.runtime is runtime


def test_devices_processes_and_the_end() -> None:
    machine = busdma.open("sim:pc-isa")
    with pytest.raises(ConfigurationError, match="has no device 'edu0'; it has: aha0, aha1, aha2"):
        machine.driver("edu0")
    process = machine.process("shell", pages=16)
    with pytest.raises(ConfigurationError, match="there is a process 'shell' already"):
        machine.process("shell")
    buffer = process.allocate(5000)
    tag = machine.devices["aha0"].tag
    map = tag.create_map(name="left")
    map.load_nowait(buffer)
    with pytest.raises(DriverError, match="map 'left' of tag pc/isa"):
        process.destroy()
    assert machine.leaks() == ["map 'left' of tag pc/isa is loaded"]
    map.unload()
    process.destroy()
    assert machine.process("shell").name == "shell"
    machine.close()
    machine.close()
    with pytest.raises(DriverError, match="is closed; open another"):
        machine.driver("aha0")


def test_a_closed_machine_has_no_memory_and_runs_nothing() -> None:
    machine = busdma.open("sim:pc-isa")
    buffer, process = machine.allocate(100), machine.process("shell")
    machine.close()
    for use in (buffer.read, buffer.free, lambda: machine.allocate(1), lambda: process.allocate(1)):
        with pytest.raises(busdma.BufferGone, match="sim:pc-isa was closed; open another"):
            use()

    async def nothing() -> None:
        raise AssertionError

    for ask in (lambda: machine.run(nothing), lambda: machine.process("other"), lambda: machine.driver("aha0")):
        with pytest.raises(busdma.DriverError, match="is closed; open another"):
            ask()
