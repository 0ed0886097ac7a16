"""Can this Python compile an extension module? Exit status 0: yes. 1: no, and one line says what to install."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def missing() -> str | None:
    """What is missing, with the remedy; None if nothing is."""
    configured = sysconfig.get_config_var("CC")
    command = os.environ.get("CC") or (configured if isinstance(configured, str) else "") or "cc"
    if shutil.which(command.split()[0]) is None:
        return "no C compiler: install gcc"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "no Python.h: install python3-dev (Debian, Ubuntu) or python3-devel (Fedora)"
    return None


if __name__ == "__main__":
    reason = missing()
    if reason is not None:
        print(reason)
        sys.exit(1)
