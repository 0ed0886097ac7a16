"""docs/qemu.md: the device of one's own works, on every machine with PCI."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qemu.machines import need

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "qemu.md").read_text(encoding="utf-8")
SPEC = "qemu:q35?devices=e1000,id=net0"


@pytest.mark.parametrize(
    ("spec", "target", "mechanism"),
    [
        (SPEC, "x86_64", "remap"),
        ("qemu:q35?devices=e1000,id=net0,bus=bridge0", "x86_64", "remap"),
        ("qemu:pc?devices=e1000,id=net0", "x86_64", "direct"),
        ("qemu:virt?devices=e1000,id=net0", "aarch64", "remap"),
        ("qemu:clipper?devices=e1000,id=net0", "alpha", "window"),
        ("qemu:sun4u?devices=e1000,id=net0,bus=pciB", "sparc64", "remap"),
    ],
)
def test_the_device_of_the_guide_sends(spec: str, target: str, mechanism: str) -> None:
    need(target)
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert script.count(SPEC) == 1
    command = [sys.executable, "-W", "error", "-c", script.replace(SPEC, spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"sent by {mechanism}\n"
