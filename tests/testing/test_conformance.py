"""The conformance suite on every machine, as its users run it; and that it notices what is wrong."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import busdma
from busdma.machines import specs
from busdma.testing import conformance

VARIANTS = ["sim:x86-64?iommu=standing", "sim:alpha?force_bounce=1"]
REAL_TIME = [spec for spec, entry in specs().items() if entry.real_time]
#: the compiled form differs in one module, and gives the same answers: so only the other one spends the time on QEMU's
ALIKE = ("qemu:q35?iommu=off", "qemu:clipper?monster=0")  # in nothing that the suite could tell from their neighbours
EVERY = [
    *(spec for spec in specs() if spec not in REAL_TIME),
    *VARIANTS,
    *(() if busdma.COMPILED else (spec for spec in REAL_TIME if spec not in ALIKE)),
]
Done = subprocess.CompletedProcess[str]


def run(where: Path, spec: str, *options: str) -> Done:
    """Run it on one machine, from a folder that has nothing to do with this project."""
    (where / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-W", "error", "-m", "pytest", "--pyargs", "busdma.testing.conformance"]
    command += ["--busdma-machine", spec, "-p", "no:cacheprovider", "--tb=short", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in (str(where), os.environ.get("PYTHONPATH")) if path)
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


def mistaken(where: Path, name: str) -> Done:
    """Run it on a machine that gets one thing wrong."""
    source, test = MISTAKES[name]
    words = "\n".join(line.removeprefix("        ") for line in source.splitlines())
    (where / "mistaken.py").write_text(
        "from busdma import PREREAD, Direction, DmaMemory, Map, State\n"
        "from busdma.mechanisms.bounce import Bounce\n"
        "from busdma.mechanisms.composed import Composed\n"
        "from busdma.pool import PoolQueue\n" + words
    )
    return run(where, "sim:pc-isa", "-p", "mistaken", "-k", test)


RUNS: dict[str, Callable[[Path, str], Done]] = {"spec": run, "mistake": mistaken}  # by the parameter of a test


@pytest.fixture(scope="module")
def ahead(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str], Done]]:
    """The run for a parameter of a test. The first test begins them all: as many at a time as there are processors."""
    futures: dict[tuple[str, str], Future[Done]] = {}
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def begun(kind: str, value: str) -> Future[Done]:
        if (kind, value) not in futures:
            futures[kind, value] = pool.submit(RUNS[kind], tmp_path_factory.mktemp(kind), value)
        return futures[kind, value]

    if "PYTEST_XDIST_WORKER" not in os.environ:  # one of those gets a part of the tests, and has all of them here
        for item in request.session.items:
            if item.path == request.path:
                for kind, value in item.callspec.params.items() if hasattr(item, "callspec") else ():
                    begun(kind, value)
    yield lambda kind, value: begun(kind, value).result()
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("spec", EVERY)
def test_every_machine_conforms(spec: str, ahead: Callable[[str, str], Done]) -> None:
    lacking = specs()[spec.partition("?")[0]].why_not()
    if lacking and os.environ.get("CI") != "true":
        pytest.skip(lacking)
    assert not lacking
    done = ahead("spec", spec)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = re.search(r"^=+ (\d+) passed in", done.stdout, re.MULTILINE)  # and nothing else: none was skipped
    assert outcome is not None, done.stdout
    assert int(outcome[1]) > 250
    assert re.search(rf"^{re.escape(spec)} +{outcome[1]} passed$", done.stdout, re.MULTILINE), done.stdout


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(Path(conformance.__path__[0]).glob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


#: what the suite may not know, so that machines of every kind can pass it
INTERNAL = ("busdma.sim", "busdma.qemu", "busdma.vfio", "busdma.translators", "busdma.mechanisms", "busdma.pool")


def test_the_suite_knows_no_back_end() -> None:
    seen = 0
    for path, tree in sources():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            seen += len(names)
            assert not [name for name in names if name.startswith(INTERNAL)], path.name
            if isinstance(node, ast.Attribute):
                assert not re.match(r"_[a-z]", node.attr), f"{path.name}:{node.lineno} uses .{node.attr}"
    assert seen > 100


def test_every_test_of_the_suite_says_what_is_promised() -> None:
    names: list[str] = []
    for path, tree in sources():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names.append(node.name)
                promise = ast.get_docstring(node)
                assert promise is not None, f"{path.name}: {node.name}"
                assert promise.partition("\n")[0].endswith((".", ":")), f"{path.name}: {node.name}"
    assert len(names) == len(set(names)) > 80


#: what a machine may get wrong, and who must notice
MISTAKES = {
    "unload syncs": (
        """
        real = Map.unload
        def unload(map):
            if map.device_may_own and map.direction is not Direction.TO_DEVICE:
                map.sync(map.direction.post)
            real(map)
        Map.unload = unload
        """,
        "test_unload_never_syncs",
    ),
    "a sync is of everything": (
        """
        real = Map.sync
        def sync(map, op, offset=0, length=None):
            real(map, op, offset, length)
            if offset or length:
                real(map, op)
        Map.sync = sync
        """,
        "test_a_sync_of_a_range_moves_that_range",
    ),
    "PREREAD copies nothing out": (
        """
        Bounce.copy_out = Composed.copy_out = lambda *_: None
        from busdma.mechanisms.placement import Placement
        Placement.copy_out = lambda *_: None
        """,
        "test_two_loaded_maps_never_overwrite_each_other",
    ),
    "newcomers overtake": (
        """
        PoolQueue._at_turn = lambda *_: True
        """,
        "test_nobody_overtakes_a_waiter_of_the_same_pool",
    ),
    "the last is served first": (
        """
        real = PoolQueue._serve_one
        def serve_one(queue):
            queue.line.reverse()
            try:
                return real(queue)
            finally:
                queue.line.reverse()
        PoolQueue._serve_one = serve_one
        """,
        "test_every_face_waits_in_one_line",
    ),
    "an exception unloads": (
        """
        Map.abandon = lambda map: map.unload() if map.state is State.LOADED else None
        """,
        "test_leaving_by_an_exception_quarantines",
    ),
    "a leak is called busy": (
        """
        from busdma.mechanisms.zone import Zone
        from busdma.errors import ShortageReason
        Zone.shortage = lambda *_: ShortageReason.BUSY
        """,
        "test_a_shortage_that_only_a_reset_would_end_is_a_leak",
    ),
    "a bus address too high": (
        """
        from busdma.result import Segments
        real = Segments.__iter__
        Segments.__iter__ = lambda segments: ((address | 1 << 40, length) for address, length in real(segments))
        """,
        "test_no_limit_but_the_bus",
    ),
    "a driver forgets to sync": (
        """
        real = Map.sync
        Map.sync = lambda map, op, *range: None if op is PREREAD else real(map, op, *range)
        """,
        "test_no_driver_makes_a_mistake_that_the_checker_finds and kernel",
    ),
    "frames are lost": (
        """
        DmaMemory.free = lambda memory: None
        """,
        "test_nothing_is_left_after_stop",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_is_noticed(mistake: str, ahead: Callable[[str, str], Done]) -> None:
    done = ahead("mistake", mistake)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^=+ .*\d+ (failed|error)", done.stdout, re.MULTILINE), done.stdout
