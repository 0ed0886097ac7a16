"""``busdma check SCRIPT``: a script as python would run it, and what the checker found in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import busdma.machines
from busdma.check import Kind
from busdma.machine.machine import Machine
from cli.conftest import Done

Cli = Callable[..., Done]
Script = Callable[[str], Path]

SOUND = """
import busdma

with busdma.open("sim:pc-isa") as machine:
    adapter = machine.driver("aha0")
    machine.run(adapter.start)
    disk = adapter.disks[0]
    back = bytearray(1024)
    machine.run(disk.write, 8, b"0123456789abcdef" * 64)
    machine.run(disk.read, 8, back)
    machine.run(adapter.stop)
    print(bytes(back[:16]))
"""
UNSOUND = """
import busdma

machine = busdma.open("sim:pc-isa")
map = machine.devices["aha0"].tag.derive("data").create_map(name="out")
data = bytearray(512)
map.load_nowait(data, busdma.Direction.TO_DEVICE)
map.sync(busdma.PREWRITE)
data[7] = 1
map.sync(busdma.POSTWRITE)
map.unload()
"""


@pytest.fixture(name="cli")
def renamed(busdma: Cli) -> Cli:
    """The fixture under another name, for tests that need the package."""
    return busdma


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write a script; its path."""

    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(text)
        return path

    return write


def test_a_sound_script(cli: Cli, script: Script) -> None:
    done = cli("check", script(SOUND))
    assert (done.status, done.err) == (0, "")
    assert done.out == "b'0123456789abcdef'\nsim:pc-isa: nothing found\n"


def test_a_sound_script_as_json(cli: Cli, script: Script) -> None:
    path = script(SOUND)
    done = cli("check", "--json", path)
    assert done.err == "b'0123456789abcdef'\n"  # what the script printed
    assert done.document == {
        "ok": True,
        "errors": [],
        "script": str(path),
        "machines": [{"machine": "sim:pc-isa", "findings": []}],
        "findings": 0,
        "error": None,
    }


def test_findings_are_told_by_name_and_line(cli: Cli, script: Script) -> None:
    path = script(UNSOUND)
    done = cli("check", path)
    assert done.status == 1
    assert done.out == "sim:pc-isa: 1 found\n"
    lines = UNSOUND.splitlines()
    loaded = lines.index("map.load_nowait(data, busdma.Direction.TO_DEVICE)") + 1
    noticed = lines.index("map.sync(busdma.POSTWRITE)") + 1
    assert done.err.startswith(f"busdma check: Found: sim:pc-isa: cpu-wrote: {Kind.CPU_WROTE.value}; map 'out' of tag ")
    assert "bytes 7..7" in done.err
    assert f"loaded at {path}:{loaded}" in done.err
    assert f"noticed at {path}:{noticed}" in done.err


def test_findings_as_json(cli: Cli, script: Script) -> None:
    document = cli("check", "--json", script(UNSOUND)).document
    assert document["findings"] == 1
    assert document["error"] is None
    ((found,),) = [machine["findings"] for machine in document["machines"]]
    assert (found["kind"], found["map"], found["offset"], found["length"]) == ("cpu-wrote", "out", 7, 1)
    assert [error["error"] for error in document["errors"]] == ["Found"]


def test_machines_that_are_left_on_are_closed_and_their_leaks_found(cli: Cli, script: Script) -> None:
    text = "import busdma\none, other = busdma.open('sim:sparc'), busdma.open('sim:pc-vlb')\n"
    text += "memory = other.devices['bt0'].tag.derive('ring').alloc(4096)\n"
    document = cli("check", "--json", script(text)).document
    first, second = document["machines"]
    assert (first["machine"], first["findings"]) == ("sim:sparc", [])
    assert (second["machine"], [found["kind"] for found in second["findings"]]) == ("sim:pc-vlb", ["leaked-memory"])


def test_every_machine_that_was_opened_is_closed(cli: Cli, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Machine] = []
    tell = busdma.machines._opened

    def remember(machine: Machine) -> Machine:
        opened.append(machine)
        return tell(machine)

    monkeypatch.setattr(busdma.machines, "_opened", remember)
    cli("check", script("import busdma\nbusdma.open()\nbusdma.open('sim:sparc')\n1 / 0\n"))
    assert [machine.closed for machine in opened] == [True, True]
    assert busdma.machines.opened_checked is None  # and later ones are nobody's


def test_a_machine_can_be_left_out(cli: Cli, script: Script) -> None:
    text = UNSOUND.replace('"sim:pc-isa"', '"sim:pc-isa", check=False') + "machine.close()\n"
    document = cli("check", "--json", script(text)).document
    assert (document["machines"], document["findings"]) == ([], 0)


def test_a_script_without_a_machine_is_told(cli: Cli, script: Script) -> None:
    done = cli("check", script("print('hello')"))
    assert (done.status, done.out) == (0, "hello\nno machine was opened: nothing was checked\n")


def test_it_runs_as_main_with_its_arguments_and_its_neighbours(cli: Cli, script: Script, tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_the_script.py").write_text("NAME = 'neighbour'\n")
    path = script("import sys, neighbour_of_the_script\nprint(__name__, sys.argv, neighbour_of_the_script.NAME)\n")
    argv, paths = list(sys.argv), list(sys.path)
    done = cli("check", path, "--json", "-x", "a b")
    sys.modules.pop("neighbour_of_the_script")
    assert done.out.splitlines()[0] == f"__main__ {[str(path), '--json', '-x', 'a b']} neighbour"
    assert (sys.argv, sys.path) == (argv, paths)


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_an_exception_is_shown_from_the_script_on(cli: Cli, script: Script, json: tuple[str, ...]) -> None:
    path = script("def fly():\n    raise ValueError('too high')\n\nfly()\n")
    done = cli("check", *json, path)
    assert done.status == 1
    head, *trace = done.err.splitlines()
    assert head == "Traceback (most recent call last):"
    assert trace[0] == f'  File "{path}", line 4, in <module>'
    assert trace[-2:] == ["ValueError: too high", "busdma check: ValueError: too high"]
    if json:
        assert done.document["error"] == "ValueError: too high"
        assert done.document["errors"] == [{"error": "ValueError", "message": "too high"}]


def test_an_exception_hides_no_finding(cli: Cli, script: Script) -> None:
    document = cli("check", "--json", script(UNSOUND + "1 / 0\n")).document
    assert document["findings"] == 1
    assert [error["error"] for error in document["errors"]] == ["ZeroDivisionError", "Found"]


def test_a_script_that_is_no_python(cli: Cli, script: Script) -> None:
    path = script("a wrong word\n")
    done = cli("check", path)
    assert done.status == 1
    assert done.err.splitlines()[0] == f'  File "{path}", line 1'
    assert "Traceback" not in done.err
    assert "busdma check: SyntaxError: " in done.err


def test_a_script_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    done = cli("check", "--json", tmp_path / "none.py")
    assert done.status == 1
    (error,) = done.document["errors"]
    assert error["error"] == "ConfigurationError"
    assert "there is no script" in error["message"]


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        ("sys.exit()", 0, None),
        ("sys.exit(0)", 0, None),
        ("sys.exit(3)", 3, "status 3"),
        ("sys.exit(256)", 1, "status 256"),
        ("sys.exit(-1)", 255, "status -1"),
        ("sys.exit('no disk')", 1, "no disk"),
    ],
)
def test_a_script_that_says_how_it_ended(cli: Cli, script: Script, end: str, status: int, error: str | None) -> None:
    path = script(f"{SOUND}\nimport sys\n{end}\n")
    assert cli("check", path).status == status
    document = cli("check", "--json", path).document
    assert document["error"] == error
    assert [machine["machine"] for machine in document["machines"]] == ["sim:pc-isa"]


def test_a_finding_is_a_failure_of_a_script_that_says_it_ended_well(cli: Cli, script: Script) -> None:
    assert cli("check", script(f"{UNSOUND}\nraise SystemExit(0)\n")).status == 1
    assert cli("check", script(f"{UNSOUND}\nraise SystemExit(7)\n")).status == 7


def test_an_interrupt_closes_what_was_on(cli: Cli, script: Script) -> None:
    done = cli("check", script("import busdma\nmachine = busdma.open()\nraise KeyboardInterrupt\n"))
    assert done.status == 130
    assert "interrupted" in done.err
    assert busdma.machines.opened_checked is None


def test_help_and_usage(cli: Cli) -> None:
    done = cli("check", "--help")
    assert (done.status, done.err) == (0, "")
    assert "--json" in done.out
    assert "SCRIPT" in done.out
    assert cli("check").status == 2


def test_as_a_program(script: Script) -> None:
    command = [sys.executable, "-m", "busdma", "check", str(script(UNSOUND))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "sim:pc-isa: 1 found\n")
    assert done.stderr.startswith("busdma check: Found: sim:pc-isa: cpu-wrote: ")
