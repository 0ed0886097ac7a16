"""The account of mutants: every sync, load and unload of every driver made wrong, and what the checker makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "mutants.py"


def test_every_mutant_of_every_driver_is_noticed_or_listed() -> None:
    """In a process of its own: the drivers are imported with their calls led through a switch."""
    ran = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
