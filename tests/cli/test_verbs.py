"""The other verbs, and what all verbs have in common."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import busdma.machines
from busdma.cli.bench import NAMES
from busdma.cli.machines import select, with_option
from busdma.errors import ConfigurationError
from cli.conftest import Done

Cli = Callable[..., Done]
BUSDMA = [sys.executable, "-m", "busdma"]


def test_machines(cli: Cli) -> None:
    done = cli("machines")
    assert done.status == 0
    table, *_, options = done.out.split("\n\n")  # between them: what is missing here
    head, *rows = table.splitlines()
    assert head.split() == ["spec", "available", "buses", "drivers", "what"]
    assert ["sim:pc-isa", "yes", "isa", "aha1542,des,fdc"] in [row.split()[:4] for row in rows]
    assert [row.split()[0] for row in rows] == list(busdma.machines.specs())
    by_name = {line.split()[0]: line.split()[1:] for line in options.splitlines()[1:]}
    assert by_name["sim:*"] == ["bounce=128", "disk_mib=64", "force_bounce=0", "images=", "seed=1"]
    assert by_name["sim:sparc"] == ["dvma=64", "strict=0"]
    assert "sim:pc-isa" not in by_name  # which has no others


def test_machines_as_json(cli: Cli) -> None:
    machines = {machine["spec"]: machine for machine in cli("machines", "--json").document["machines"]}
    assert list(machines) == list(busdma.machines.specs())
    machine = machines["sim:pc-isa"]
    assert set(machine) == {"spec", "available", "why_not", "buses", "drivers", "options", "what"}
    assert machine["available"] is True
    assert machine["options"] == {"bounce": "128", "disk_mib": "64", "force_bounce": "0", "images": "", "seed": "1"}
    assert machines["sim:x86-64?iommu=on"]["options"]["iommu"] == "off"
    assert machine["buses"] == ["isa"]
    assert machine["drivers"] == ["aha1542", "des", "fdc"]


def test_a_machine_that_cannot_be_opened_says_why(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = busdma.machines.Entry("busdma.no_such_back_end", "a machine", ("isa",), ())
    monkeypatch.setitem(busdma.machines.MACHINES, "sim:none", entry)
    done = cli("machines", "--json")
    assert done.status == 0  # the list is complete
    (found,) = [m for m in done.document["machines"] if m["spec"] == "sim:none"]
    assert found["available"] is False
    assert "no_such_back_end" in found["why_not"]
    assert found["options"] == {}
    table, reasons, *_ = cli("machines").out.split("\n\n")
    assert ["sim:none", "no", "isa"] in [line.split()[:3] for line in table.splitlines()]
    assert re.search(r"^sim:none: .*no_such_back_end", reasons, re.MULTILINE)


def test_the_reason_of_many_is_told_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = cli("machines")
    table, reasons, options = done.out.split("\n\n")
    assert "apt install" not in table + options
    assert "\nqemu:SS-5 and qemu:SS-10: there is no qemu-system-sparc that can be run: apt install" in reasons
    assert reasons.count("qemu-system-x86_64") == 1
    assert re.search(r"^qemu:\* .*binary=", options, re.MULTILINE)  # which may be the remedy


@pytest.fixture
def cli(busdma: Cli) -> Cli:
    """The fixture under another name, for tests that need the package."""
    return busdma


def test_select() -> None:
    assert select("*") == list(busdma.machines.specs())
    assert select("sim:pc-is?") == ["sim:pc-isa"]
    assert select("sim:x86-64") == ["sim:x86-64"]
    assert select("sim:x86-64?iommu=on") == select("sim:x86*?iommu=on") == ["sim:x86-64?iommu=on"]
    assert select("sim:x86*?bounce=9&seed=2")[1:] == ["sim:x86-64?iommu=on&bounce=9&seed=2"]
    with pytest.raises(ConfigurationError, match="name=value"):
        select("sim:pc-isa?bounce=9&seed")
    with pytest.raises(ConfigurationError, match="there are: sim:pc-isa"):
        select("vax:*")
    simulated = [spec for spec in busdma.machines.specs() if spec.startswith("sim:")]
    assert select("sim:*?") == simulated  # a glob that ends in any character
    for written in ("sim:pc-isa?bounce", "sim:pc-isa?", "sim:pc*?bounce", "sim:pc-isa?=3", "sim:pc-isa?seed=1&"):
        with pytest.raises(ConfigurationError, match=r"^sim:.*: options are written \?name=value&name=value$"):
            select(written)
    for misspelt in ("pc-isa", "pc-isa?seed=3", "sim:pc-is??", "sim:pcisa"):
        with pytest.raises(ConfigurationError, match=r"no machine matches .*; did you mean 'sim:pc-isa'\?$"):
            select(misspelt)
    with pytest.raises(ConfigurationError, match="option seed is given twice; give it once"):
        select("sim:*?seed=1&seed=2")


def test_with_option() -> None:
    assert with_option("sim:a", "x", 1) == "sim:a?x=1"
    assert with_option("sim:a?x=1&y=2", "x", 3) == "sim:a?y=2&x=3"


def test_explain(busdma: Cli) -> None:
    done = busdma("explain", "--size", "20000", "--offset", "100")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == "kernel buffer 0x00010064, 20000 bytes"
    assert lines[1].startswith("through tag pc/isa/explain: ")
    assert len(lines) == 2 + 5 + 1
    assert lines[-1] == "with the limits of the bus; --driver adds what the driver of aha0 says of the device"
    assert any("bounce: above lowaddr 0xffffff, set by tag 'isa'" in line for line in lines)


def test_explain_as_json(busdma: Cli) -> None:
    document = busdma("explain", "--size", "64k", "--lowaddr", "8m", "--seed", 5, "--device", "aha2", "--json").document
    assert document["device"] == "aha2"
    explanation = document["explanation"]
    assert sum(page["length"] for page in explanation["pages"]) == 65536
    reasons = {page["reason"] for page in explanation["pages"]}
    assert "above lowaddr 0x800000, set by tag 'explain'" in reasons
    for page in explanation["pages"]:
        assert (page["mechanism"] == "direct") is (page["reason"] == "")
        assert (page["bus_address"] is None) is (page["mechanism"] != "direct")
        assert page["bus_address"] is None or page["bus_address"] < 8 << 20


def test_explain_with_what_the_driver_knows(busdma: Cli) -> None:
    argv = ("explain", "--machine", "sim:x86-64", "--device", "edu0", "--size", "4k", "--json")
    of_the_bus, of_the_driver = busdma(*argv).document, busdma(*argv, "--driver").document
    assert (of_the_bus["driver"], of_the_driver["driver"]) == (None, "edu")
    assert [page["mechanism"] for page in of_the_bus["explanation"]["pages"]] == ["direct"]
    assert of_the_bus["explanation"]["pages"][0]["bus_address"] >= 1 << 28  # which edu0 cannot put on its wires
    assert of_the_driver["explanation"]["tag"] == "pc/pci0/edu0/data/explain"
    (page,) = of_the_driver["explanation"]["pages"]
    assert (page["mechanism"], page["reason"]) == ("bounce", "above lowaddr 0xfffffff, set by tag 'data'")
    assert "--driver adds" not in busdma(*argv[:-1], "--driver").out


def test_explain_refuses_more_holes_than_anybody_could_wait_for(busdma: Cli) -> None:
    (error,) = busdma("explain", "--machine", "sim:x86-64", "--exclude", "0+1/4k", "--json").document["errors"]
    assert error["error"] == "ConfigurationError"
    assert "makes 4456448 holes of this machine's memory: give one that makes 262144 or fewer" in error["message"]


def test_explain_lets_nobody_widen_the_limits_of_the_driver(busdma: Cli) -> None:
    argv = ("explain", "--machine", "sim:x86-64", "--device", "edu0", "--driver", "--json")
    (error,) = busdma(*argv, "--lowaddr", "0xffffffff").document["errors"]
    assert error["error"] == "ConstraintError"
    assert "wider than its parent's 0xfffffff, set by tag 'data'" in error["message"]
    narrower = busdma(*argv, "--maxsize", "512", "--size", "4k").document["explanation"]
    assert narrower["verdict"] == "refused: longer than maxsize 512, set by tag 'explain'"


@pytest.mark.parametrize("spec", busdma.machines.specs())
def test_explain_through_every_driver(cli: Cli, spec: str) -> None:
    with busdma.open(spec) as machine:
        devices = list(machine.devices)
    for device in devices:
        argv = ("explain", "--machine", spec, "--device", device, "--driver", "--size", "512", "--json")
        explanation = cli(*argv).document["explanation"]
        assert f"/{device}/" in explanation["tag"]
        assert not any(page["mechanism"] == "refused" for page in explanation["pages"])


def test_explain_depends_on_the_seed_alone(busdma: Cli) -> None:
    first = busdma("explain", "--seed", 7).out
    assert busdma("explain", "--seed", 7).out == first
    assert busdma("explain", "--machine", "sim:pc-isa?seed=7").out == first
    assert busdma("explain", "--seed", 8).out != first


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        (("--machine", "sim:pc-is"), "ConfigurationError", "did you mean 'sim:pc-isa'?"),
        (("--device", "aha9"), "ConfigurationError", "has no device 'aha9'; it has: aha0, aha1, aha2"),
        (("--size", "0"), "ConstraintError", "a buffer of 0 bytes"),
        (("--offset", "4096"), "ConstraintError", "a buffer begins in its first page"),
        (("--size", "1g"), "ResourceShortage", "never fit"),
        (("--alignment", "3"), "ConstraintError", "alignment must be a power of two, not 3"),
        (("--boundary", "4", "--alignment", "8"), "ConstraintError", "boundary 4"),
        (("--lowaddr", "0x1ffffff"), "ConstraintError", "wider than its parent's 0xffffff"),
        (("--highaddr", "5"), "ConstraintError", "highaddr without lowaddr"),
        (("--nsegments", "2", "--maxsegsz", "4k", "--maxsize", "64k"), "ConstraintError", "cannot hold maxsize"),
    ],
)
def test_explain_refuses(busdma: Cli, options: tuple[str, ...], name: str, words: str) -> None:
    done = busdma("explain", *options, "--json")
    assert done.status == 1
    (error,) = done.document["errors"]
    assert error["error"] == name
    assert words in error["message"]


# -- bench ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A benchmark that takes no time; the list has how it was called."""
    called: list[bool] = []

    def run(quick: bool, progress: Callable[[str], None] | None) -> Any:
        assert progress is not None
        progress("4 KiB")
        called.append(quick)
        row = {
            "case": "4 KiB",
            "ours": 60.0,
            "reference": 6.0,
            "unit": "ns",
            "ratio": 10.0,
            "target": 12.0,
            "met": True,
        }
        missed = {**row, "case": "64 KiB", "ratio": 13.0, "met": False}
        free = {**row, "case": "512 B", "target": None, "met": None}
        return SimpleNamespace(rows=[row, missed, free], notes=["a note"])

    module = ModuleType("busdma.bench.load")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "busdma.bench.load", module)
    return called


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_called_as_it_is(name: str) -> None:
    inspect.signature(import_module(f"busdma.bench.{name}").run).bind(True, print)


def test_bench(cli: Cli, benchmark: list[bool]) -> None:
    done = cli("bench", "load")
    assert done.status == 0
    head, *rows, note = done.out.splitlines()
    assert head.split() == ["case", "ours", "reference", "unit", "ratio", "target", "met"]
    assert [row.split()[-1] for row in rows] == ["yes", "NO", "-"]
    assert note == "a note"
    assert benchmark == [False]


def test_bench_as_json(cli: Cli, benchmark: list[bool]) -> None:
    document = cli("bench", "load", "--quick", "--json").document
    assert [row["met"] for row in document["rows"]] == [True, False, None]
    assert document["build"]["compiled"] is busdma.COMPILED
    assert document["notes"] == ["a note"]
    assert benchmark == [True]


def test_bench_strict_fails_for_a_missed_target(cli: Cli, benchmark: list[bool]) -> None:
    done = cli("bench", "load", "--strict")
    assert done.status == 1
    assert done.err == "busdma bench: TargetMissed: 1 of 3 targets missed: 64 KiB\n"
    assert benchmark == [False]


# -- every verb -------------------------------------------------------------------------------------------------------


def test_help_and_version(busdma: Cli) -> None:
    assert busdma("--help").out.startswith("usage: busdma ")
    assert busdma("--version").out.startswith("busdma ")
    for verb in ("machines", "matrix", "explain", "check", "bench"):
        done = busdma(verb, "--help")
        assert (done.status, done.err) == (0, "")
        assert "--json" in done.out


@pytest.mark.parametrize("verb", ["machines", "matrix", "explain", "check", "bench"])
def test_help_fits_a_terminal(busdma: Cli, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, busdma(verb, "--help").out.splitlines())) < 80


@pytest.mark.parametrize("argv", [(), ("fly",), ("bench",), ("bench", "none"), ("explain", "--size", "big")])
def test_a_wrong_command_line(busdma: Cli, argv: tuple[str, ...]) -> None:
    done = busdma(*argv)
    assert done.status == 2
    assert done.out == ""
    assert "usage: busdma" in done.err


def test_as_a_program() -> None:
    done = subprocess.run([*BUSDMA, "machines"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sim:pc-isa" in done.stdout


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_a_reader_that_has_left(json: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*BUSDMA, "explain", *json], stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_a_full_disk(json: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*BUSDMA, "machines", *json], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"busdma machines: OSError: cannot write to standard output: {os.strerror(28)}\n"


def test_the_library_does_not_load_the_command_line() -> None:
    code = "import busdma, sys; busdma.open().close(); print([n for n in sys.modules if n.startswith('busdma.cli')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
