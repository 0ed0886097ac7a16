"""``busdma check SCRIPT``: a script as python would run it, and what the checker found in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
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
WITHIN = """
import busdma

machine = busdma.open("sim:pc-isa")
map = machine.devices["aha0"].tag.derive("data", maxsize=16).create_map()

async def inner():
    await map.load(bytearray(100))

async def outer():
    await inner()

machine.run(outer)
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
        "unchecked": [],
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
    cli("check", script("import busdma\nbusdma.open()\nbusdma.open('sim:sparc', check=False)\n1 / 0\n"))
    assert [(machine.closed, machine.checker is None) for machine in opened] == [(True, False), (True, True)]
    assert busdma.machines.opened_checked is None  # and later ones are nobody's


def test_a_machine_can_be_left_out(cli: Cli, script: Script) -> None:
    text = f"{SOUND}\nbusdma.open('sim:sparc', check=False)\n"
    done = cli("check", script(text))
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[1:] == ["sim:pc-isa: nothing found", "1 machine was opened with check=False"]
    document = cli("check", "--json", script(text)).document
    assert [machine["machine"] for machine in document["machines"]] == ["sim:pc-isa"]
    assert (document["unchecked"], document["findings"]) == (["sim:sparc"], 0)


@pytest.mark.parametrize(
    ("text", "words", "unchecked"),
    [
        ("print('hello')", "no machine was opened", []),
        ("import busdma\nbusdma.open(check=False)", "1 machine was opened with check=False", ["sim:pc-isa"]),
        (
            "import busdma\nbusdma.open(check=False).close()\nbusdma.open('sim:mips', check=False)",
            "2 machines were opened with check=False",
            ["sim:pc-isa", "sim:mips"],
        ),
    ],
)
def test_to_have_checked_nothing_is_a_failure(
    cli: Cli, script: Script, text: str, words: str, unchecked: list[str]
) -> None:
    path = script(text)
    done = cli("check", path)
    assert (done.status, done.err) == (1, f"busdma check: NothingChecked: {words}: nothing was checked\n")
    document = cli("check", "--json", path).document
    assert (document["machines"], document["unchecked"], document["error"]) == ([], unchecked, None)


def test_a_script_that_failed_before_it_opened_a_machine_is_told_that_alone(cli: Cli, script: Script) -> None:
    done = cli("check", "--json", script("raise SystemExit(3)"))
    assert done.status == 3
    assert [error["error"] for error in done.document["errors"]] == ["Exited"]


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


def test_what_carries_a_coroutine_is_no_part_of_its_traceback(cli: Cli, script: Script) -> None:
    path = script(WITHIN)
    done = cli("check", path)
    assert done.status == 1
    lines = WITHIN.splitlines()
    inner, outer = (lines.index(f"    await {call}") + 1 for call in ("map.load(bytearray(100))", "inner()"))
    lines = [line for line in done.err.splitlines() if line.startswith("  File ")]
    head = f'  File "{path}", line '
    assert lines[1:3] == [f"{head}{outer}, in outer", f"{head}{inner}, in inner"]
    assert lines[0].startswith(head)
    assert len(lines) > 3  # what went on inside the last call of the script
    assert not any(line.startswith(head) for line in lines[3:])


def test_a_wrong_word_in_a_neighbour_is_told_with_the_line_that_imports_it(
    cli: Cli, script: Script, tmp_path: Path
) -> None:
    (tmp_path / "wrong_neighbour_of_the_script.py").write_text("a wrong word\n")
    path = script("\nimport wrong_neighbour_of_the_script\n")
    done = cli("check", path)
    assert done.status == 1
    assert f'  File "{path}", line 2, in <module>\n' in done.err
    assert 'wrong_neighbour_of_the_script.py", line 1\n' in done.err


def test_a_directory_with_a_main_module(cli: Cli, tmp_path: Path) -> None:
    main = tmp_path / "__main__.py"
    main.write_text(SOUND)
    assert cli("check", tmp_path).out == "b'0123456789abcdef'\nsim:pc-isa: nothing found\n"
    main.write_text("1 / 0\n")
    done = cli("check", tmp_path)
    assert done.status == 1
    assert done.err.splitlines()[:2] == ["Traceback (most recent call last):", f'  File "{main}", line 1, in <module>']


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.py", "there is no script '{}': give the name of a Python file"),
        ("folder", "'{}' is a directory; give a file"),
        ("pipe", "'{}' is a device or a pipe; copy what it holds into a file first"),
        ("archive.zip", "cannot run '{}': can't find '__main__' module in '{}'; give a Python file"),
    ],
)
def test_a_script_that_is_none(cli: Cli, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("other.py", "")
    path = tmp_path / name
    done = cli("check", "--json", path)
    assert done.status == 1
    message = words.replace("{}", str(path))
    assert done.document["errors"] == [{"error": "ConfigurationError", "message": message}]
    assert done.err == f"busdma check: ConfigurationError: {message}\n"


def test_a_script_that_cannot_be_read(cli: Cli, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = script(SOUND)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        done = cli("check", path)
    assert done.status == 1
    message = f"cannot read '{path}': Permission denied; give a readable file"
    assert (done.out, done.err) == ("", f"busdma check: ConfigurationError: {message}\n")


def test_a_script_with_a_nul_byte(cli: Cli, script: Script) -> None:
    done = cli("check", script("print(1)\0\n"))  # a SyntaxError or, by Python's version, a ValueError
    assert done.status == 1
    assert "null bytes" in done.err
    assert "Traceback" not in done.err
    assert "File" not in done.err


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
    done = cli("check")
    assert done.status == 2
    assert done.err.endswith("required: SCRIPT\n")


def test_as_a_program(script: Script) -> None:
    command = [sys.executable, "-m", "busdma", "check", str(script(UNSOUND))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "sim:pc-isa: 1 found\n")
    assert done.stderr.startswith("busdma check: Found: sim:pc-isa: cpu-wrote: ")
