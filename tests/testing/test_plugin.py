"""The pytest plugin as its users meet it: each test runs pytest in another process."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys

import pytest

from busdma import machines

pytest_plugins = ("pytester",)

MACHINES = ("--busdma-machine", "sim:pc-isa", "--busdma-machine", "sim:pc-vlb")


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makeini("[pytest]")
    pytester.makepyfile(source)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "-rs", *options)


def text(done: pytest.RunResult) -> str:
    return "\n".join(done.outlines + done.errlines)


# ---------------------------------------------------------------- what it costs


def test_pytest_finds_it() -> None:
    (entry,) = [entry for entry in importlib.metadata.entry_points(group="pytest11") if entry.name == "busdma"]
    assert entry.value == "busdma_pytest"


def test_a_run_without_it_does_not_import_busdma(pytester: pytest.Pytester) -> None:
    done = run(
        pytester,
        """
        import sys
        import pytest

        @pytest.fixture
        def machine():  # somebody else's
            return 5

        def test_mine(machine, request):
            assert machine == 5
            assert request.config.pluginmanager.has_plugin("busdma")
            assert "busdma_pytest" in sys.modules
            assert [name for name in sys.modules if name.partition(".")[0] == "busdma"] == []
        """,
    )
    done.assert_outcomes(passed=1)


def test_the_plugin_imports_nothing_that_pytest_has_not_imported() -> None:
    script = "import sys, pytest; before = set(sys.modules); import busdma_pytest; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["busdma_pytest"]


def test_the_options_are_explained(pytester: pytest.Pytester) -> None:
    done = pytester.runpytest_subprocess("--help")
    for option in ("--busdma-machine=GLOB", "--busdma-runtime=NAME", "--busdma-seed=N", "--busdma-check"):
        assert option in text(done)
    markers = pytester.runpytest_subprocess("--markers")
    assert "@pytest.mark.busdma(drivers=..." in text(markers)


# ---------------------------------------------------------------- which machines


def test_one_test_for_each_simulated_machine(pytester: pytest.Pytester) -> None:
    done = run(pytester, "def test_a(machine): print('spec =', machine.spec)", "-s")
    found = re.findall(r"spec = (\S+)", text(done))
    command = [sys.executable, "-m", "busdma", "machines", "--json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    available = [machine["spec"] for machine in listed["machines"] if machine["available"]]
    assert found == [spec for spec in available if spec.startswith("sim:")]
    assert {"sim:pc-isa", "sim:x86-64", "sim:x86-64?iommu=on"} <= set(found)
    done.assert_outcomes(passed=len(found))


def test_a_marker_that_names_machines_is_followed_without_an_option(pytester: pytest.Pytester) -> None:
    done = run(
        pytester,
        """
        import pytest

        @pytest.mark.busdma(machine=("qemu:p*", "sim:pc-isa"))
        def test_a(machine): pass
        """,
        "--collect-only",
        "-q",
    )
    lacking = machines.MACHINES["qemu:pc"].why_not()
    assert re.findall(r"test_a\[(\S+)\]", text(done)) == ["sim:pc-isa"] + ["qemu:pc"] * (not lacking)


def test_chosen_machines(pytester: pytest.Pytester) -> None:
    source = "def test_a(machine): print('spec =', machine.spec)"
    done = run(pytester, source, "-s", "--busdma-machine", "sim:pc-*?bounce=17", "--busdma-machine", "sim:pc-isa")
    assert re.findall(r"spec = (\S+)", text(done)) == ["sim:pc-isa?bounce=17", "sim:pc-vlb?bounce=17", "sim:pc-isa"]


def test_the_marker_narrows(pytester: pytest.Pytester) -> None:
    done = run(
        pytester,
        """
        import pytest

        @pytest.mark.busdma(drivers="bt")
        def test_driver(machine): print("driver", machine.spec)

        @pytest.mark.busdma(drivers=("bt", "edu"))
        @pytest.mark.busdma(buses="pci")
        def test_both(machine): print("both", machine.spec)

        @pytest.mark.busdma(machine="sim:x86-64")
        def test_name(machine): print("name", machine.spec)

        @pytest.mark.busdma(machine="sim:x86-64?iommu=standing")
        def test_options(machine): print("options", machine.spec)

        @pytest.mark.busdma(machine=["sim:pc-vlb", "sim:pc-*?bounce=9&seed=2"])
        def test_several(machine): print("several", machine.spec)

        @pytest.mark.busdma(machine={"sim:pc-vlb?bounce=9", "sim:pc-vlb"}, buses=["vlb", "pci"])
        def test_set(machine): print("set", machine.spec)

        @pytest.mark.busdma(machine="sim:x86-64*", check=True)
        class TestClass:
            @pytest.mark.busdma(check=False)
            def test_glob(self, machine): print("glob", machine.spec, machine.checker is None)

            def test_check(self, machine): print("check", machine.spec, machine.checker is None)
        """,
        "-s",
    )
    found: dict[str, list[str]] = {}
    for name, rest in re.findall(r"(driver|both|name|options|several|set|glob|check) (sim:.*)", text(done)):
        found.setdefault(name, []).append(rest)
    assert found == {
        "driver": ["sim:pc-vlb"],
        "both": ["sim:x86-64", "sim:x86-64?iommu=on"],
        "name": ["sim:x86-64"],
        "options": ["sim:x86-64?iommu=standing"],
        "several": ["sim:pc-isa?bounce=9&seed=2", "sim:pc-vlb", "sim:pc-vlb?bounce=9&seed=2"],
        "set": ["sim:pc-vlb", "sim:pc-vlb?bounce=9"],
        "glob": ["sim:x86-64 True", "sim:x86-64?iommu=on True"],
        "check": ["sim:x86-64 False", "sim:x86-64?iommu=on False"],
    }


CARRIED = """
import pytest

def test_a(machine): print("plain", machine.spec, machine.runtime.name)

@pytest.mark.busdma(runtimes=("threads", "asyncio"), machine="sim:pc-vlb")
def test_b(machine): print("marked", machine.spec, machine.runtime.name)

@pytest.mark.busdma(runtimes="asyncio", machine="sim:pc-vlb")
def test_c(machine): assert False
"""


def test_runtimes(pytester: pytest.Pytester) -> None:
    done = run(pytester, CARRIED, *MACHINES, "-s", "--busdma-runtime", "threads", "--busdma-seed", "3")
    assert re.findall(r"(?:plain|marked) .*", text(done)) == [
        "plain sim:pc-isa?seed=3 threads",
        "plain sim:pc-vlb?seed=3 threads",
        "marked sim:pc-vlb?seed=3 asyncio",
        "marked sim:pc-vlb?seed=3 threads",
    ]
    (line,) = [line for line in done.outlines if line.startswith("pytest ")]
    assert line == (
        "pytest 'test_runtimes.py::test_c[sim:pc-vlb-asyncio]' --busdma-machine sim:pc-vlb --busdma-runtime asyncio "
        "--busdma-seed 3"
    )
    pytester.run(sys.executable, "-m", *shlex.split(line), "-p", "no:cacheprovider").assert_outcomes(failed=1)
    assert "tests by machine" in text(done)


NOTHING_FITS = """
import pytest

@pytest.mark.busdma(drivers="bt", buses="isa")
def test_a(machine): assert False
"""


def test_no_machine_fits(pytester: pytest.Pytester) -> None:
    done = run(pytester, NOTHING_FITS, *MACHINES)
    done.assert_outcomes(skipped=1)
    assert "no machine fits drivers='bt', buses='isa' among sim:pc-isa and sim:pc-vlb" in text(done)


def test_no_machine_fits_and_it_is_ci(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    done = run(pytester, NOTHING_FITS, *MACHINES)
    done.assert_outcomes(errors=1)
    assert "no machine fits" in text(done)


def test_a_device_that_the_machine_would_have(pytester: pytest.Pytester) -> None:
    """Without the cipher's package there is no DES card: then the test cannot run, and says why."""
    source = """
    import sys
    import pytest

    sys.modules["Crypto"] = None

    @pytest.mark.busdma(drivers="des")
    def test_a(machine): assert False
    """
    done = run(pytester, source, "--busdma-machine", "sim:pc-isa")
    done.assert_outcomes(skipped=1)
    why = "the DES card computes with pycryptodome, which is not installed: pip install pycryptodome"
    assert f"sim:pc-isa has no device of des here (des0: {why})" in text(done)


# ---------------------------------------------------------------- what fails a test


LEAK = """
def test_a(machine):
    tag = machine.devices["bt0"].tag.derive("mine")
    tag.create_map(name="lost").load_nowait(machine.allocate(100))
"""


def test_a_leak_fails_the_test(pytester: pytest.Pytester) -> None:
    done = run(pytester, LEAK, "--busdma-machine", "sim:pc-vlb")
    done.assert_outcomes(passed=1, errors=1)
    assert "map 'lost' of tag pc/vlb/mine is loaded" in text(done)
    assert "stop the drivers" in text(done)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tag.alloc(100)", "  DMA-safe memory of tag pc/vlb/mine, 100 bytes, was not freed"),
        ("machine.run(machine.driver('bt0').start)", "  driver bt0 was not stopped"),
        ("tag.create_map(name='lost').load_nowait(bytearray(9))", "  map 'lost' of tag pc/vlb/mine is loaded"),
    ],
)
@pytest.mark.parametrize("closed", ["", "machine.close()"])
def test_what_is_left_has_a_name(pytester: pytest.Pytester, line: str, said: str, closed: str) -> None:
    """And a test that closes the machine itself is asked for it all the same."""
    source = f"def test_a(machine):\n    tag = machine.devices['bt0'].tag.derive('mine')\n    {line}\n    {closed}\n"
    done = run(pytester, source, "--busdma-machine", "sim:pc-vlb")
    done.assert_outcomes(passed=1, errors=1)
    left = [line for line in done.outlines if line.startswith("  ")]
    assert left == [said]


def test_a_turn_that_nobody_gave_up_fails_the_test(pytester: pytest.Pytester) -> None:
    source = """
    import pytest
    from busdma import Direction, ResourceShortage

    def test_a(machine):
        tag = machine.devices["aha0"].tag.derive("mine")
        map, kept = tag.create_map(), tag.create_map()
        kept.load_nowait(bytes(3 * 4096), Direction.TO_DEVICE)
        with pytest.raises(ResourceShortage):
            map.load_nowait(bytes(3 * 4096), Direction.TO_DEVICE)
        tag.on_available(lambda: None)
        kept.sync(Direction.TO_DEVICE.pre)
        kept.quarantine()
    """
    done = run(pytester, source, "--busdma-machine", "sim:pc-isa?bounce=4")
    done.assert_outcomes(passed=1, errors=1)
    assert "the queue of tag pc/isa/mine still waits" in text(done)
    assert text(done).count("of tag pc/isa/mine is quarantined") == 1


def test_a_test_that_failed_is_not_asked_for_leaks(pytester: pytest.Pytester) -> None:
    done = run(pytester, LEAK + "    assert False, 'the reason'\n", "--busdma-machine", "sim:pc-vlb")
    done.assert_outcomes(failed=1)
    assert "the reason" in text(done)
    assert "'lost'" not in "".join(line for line in done.outlines if "is loaded" in line)


MISTAKE = """
def test_a(machine):
    tag = machine.devices["bt0"].tag.derive("mine")
    map = tag.create_map(name="hasty")
    map.load_nowait(machine.allocate(100))
    map.sync(machine_pre)
    map.unload()

from busdma import PREWRITE as machine_pre
"""


def test_findings_fail_the_test(pytester: pytest.Pytester) -> None:
    assert run(pytester, MISTAKE, "--busdma-machine", "sim:pc-vlb").ret == 0
    done = run(pytester, MISTAKE, "--busdma-machine", "sim:pc-vlb", "--busdma-check")
    done.assert_outcomes(passed=1, errors=1)
    assert "sim:pc-vlb: the DMA checker found" in text(done)
    assert "missing-post: " in text(done)
    assert "map 'hasty' of tag pc/vlb/mine" in text(done)


def test_findings_are_told_beside_a_failure(pytester: pytest.Pytester) -> None:
    source = MISTAKE.replace("    map.unload()\n", "    map.unload()\n    assert False\n")
    done = run(pytester, source, "--busdma-machine", "sim:pc-vlb", "--busdma-check")
    done.assert_outcomes(failed=1)
    assert "busdma: the DMA checker" in text(done)
    assert "missing-post: " in text(done)


def test_the_machine_is_closed_whatever_happened(pytester: pytest.Pytester) -> None:
    done = run(
        pytester,
        """
        import pytest
        kept = []

        def test_fails(machine):
            kept.append(machine)
            assert False

        def test_skips(machine):
            kept.append(machine)
            pytest.skip("no reason")

        def test_closes(machine):
            kept.append(machine)
            machine.close()

        def test_all_of_them():
            assert len(kept) == 3
            assert all(machine.closed for machine in kept)
        """,
        "--busdma-machine",
        "sim:pc-vlb",
    )
    done.assert_outcomes(passed=2, failed=1, skipped=1)


# ---------------------------------------------------------------- seeds, and again


FRAMES = """
def test_a(machine):
    segments = machine.driver("bt0").tag.create_map().load_nowait(machine.allocate(20_000))
    print("frames", [hex(address) for address, length in segments])
    assert False
"""


def frames(done: pytest.RunResult) -> str:
    (line,) = [line for line in done.outlines if line.startswith("frames")]
    return line


def test_a_failure_says_how_to_repeat_it(pytester: pytest.Pytester) -> None:
    done = run(pytester, FRAMES, "--busdma-machine", "sim:pc-v*?bounce=20", "--busdma-seed", "7", "--busdma-check")
    done.assert_outcomes(failed=1)
    (line,) = [line for line in done.outlines if line.startswith("pytest ")]
    name = "test_a_failure_says_how_to_repeat_it.py::test_a[sim:pc-vlb?bounce=20]"
    assert line == f"pytest '{name}' --busdma-machine 'sim:pc-vlb?bounce=20' --busdma-seed 7 --busdma-check"
    again = pytester.run(
        sys.executable,
        *("-m", "pytest", "-p", "no:cacheprovider", name, "--busdma-machine", "sim:pc-vlb?bounce=20"),
        *("--busdma-seed", "7", "--busdma-check"),
    )
    again.assert_outcomes(failed=1)
    assert frames(again) == frames(done)
    other = run(pytester, FRAMES, "--busdma-machine", "sim:pc-vlb?bounce=20", "--busdma-seed", "8")
    assert frames(other) != frames(done)


def test_a_seed_in_the_spec_stays(pytester: pytest.Pytester) -> None:
    one = run(pytester, FRAMES, "--busdma-machine", "sim:pc-vlb?seed=3", "--busdma-seed", "9")
    two = run(pytester, FRAMES, "--busdma-machine", "sim:pc-vlb?seed=3")
    assert frames(one) == frames(two)


def test_a_seed_lets_drivers_take_other_turns(pytester: pytest.Pytester) -> None:
    source = """
    from busdma import Waiter

    def test_a(machine):
        order = []

        async def driver(name):
            order.append(name)

        async def main():
            tasks = [machine.runtime.start(driver, name) for name in "abcdef"]
            for task in tasks:
                await machine.runtime.park(task.done)

        machine.run(main)
        print("turns", *order)
    """
    turns: set[str] = set()
    for seed in ("1", "2", "3", "3"):
        done = run(pytester, source, "-s", "--busdma-machine", "sim:pc-vlb", "--busdma-seed", seed)
        turns.update(re.findall(r"turns [a-f ]+", text(done)))
    assert len(turns) == 3


def test_under_xdist(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    source = """
    import pytest

    @pytest.mark.parametrize("number", range(5))
    def test_a(machine, number):
        assert number != 3
    """
    done = run(pytester, source, *MACHINES, "-n", "2", "--busdma-seed", "2")
    done.assert_outcomes(passed=8, failed=2)
    again = [line for line in done.outlines if line.startswith("pytest ")]
    assert sorted(line.partition("[")[2].partition("]")[0] for line in again) == ["sim:pc-isa-3", "sim:pc-vlb-3"]


# ---------------------------------------------------------------- the count


COUNTED = """
import pytest

def test_a(machine): pass

@pytest.mark.busdma(machine="sim:pc-vlb")
def test_b(machine): assert False

@pytest.mark.busdma(drivers="edu")
def test_c(machine): pass

def test_d(machine): pytest.skip("no reason")

def test_e(): pass
"""


@pytest.mark.parametrize("parallel", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_the_tests_are_counted_by_machine(pytester: pytest.Pytester, parallel: tuple[str, ...]) -> None:
    if parallel:
        pytest.importorskip("xdist")
    done = run(pytester, COUNTED, *MACHINES, *parallel)
    at = next(number for number, line in enumerate(done.outlines) if "= tests by machine =" in line)
    table = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.outlines[at + 1 : at + 3]}
    assert table == {"sim:pc-isa": "1 passed,     1 skipped", "sim:pc-vlb": "1 passed,     1 failed,     1 skipped"}
    assert "tests by machine" not in text(run(pytester, COUNTED, *MACHINES, "-q"))


def test_no_machine_no_count(pytester: pytest.Pytester) -> None:
    assert "tests by machine" not in text(run(pytester, "def test_a(): pass"))


def test_the_machine_is_in_the_junit_report(pytester: pytest.Pytester) -> None:
    run(pytester, "def test_a(machine): pass", *MACHINES, "--junit-xml=report.xml")
    report = (pytester.path / "report.xml").read_text(encoding="utf-8")
    assert re.findall(r'<property name="busdma_machine" value="([^"]*)"', report) == ["sim:pc-isa", "sim:pc-vlb"]
