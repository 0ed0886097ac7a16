"""The conformance suite on every simulated machine, as its users run it; and that it notices what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from busdma.machines import specs

SIMULATED = [spec for spec in specs() if spec.startswith("sim:")]


def conformance(spec: str, where: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it on one machine, from a folder that has nothing to do with this project."""
    (where / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-W", "error", "-m", "pytest", "--pyargs", "busdma.testing.conformance"]
    command += ["--busdma-machine", spec, "-p", "no:cacheprovider", "-q", "--tb=short", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in (str(where), os.environ.get("PYTHONPATH")) if path)
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("spec", SIMULATED)
def test_every_simulated_machine_conforms(spec: str, tmp_path: Path) -> None:
    done = conformance(spec, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = re.search(r"^(\d+) passed in", done.stdout, re.MULTILINE)  # and nothing else: none was skipped
    assert outcome is not None, done.stdout
    assert int(outcome[1]) > 100


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
def test_what_is_wrong_is_noticed(mistake: str, tmp_path: Path) -> None:
    source, test = MISTAKES[mistake]
    words = "\n".join(line.removeprefix("        ") for line in source.splitlines())
    (tmp_path / "mistaken.py").write_text(
        "from busdma import PREREAD, Direction, DmaMemory, Map, State\n"
        "from busdma.mechanisms.bounce import Bounce\n"
        "from busdma.mechanisms.composed import Composed\n"
        "from busdma.pool import PoolQueue\n" + words
    )
    done = conformance("sim:pc-isa", tmp_path, "-p", "mistaken", "-k", test)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^\d+ (failed|error|passed, \d+ error)", done.stdout, re.MULTILINE), done.stdout
