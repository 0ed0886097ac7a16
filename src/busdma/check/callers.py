"""Which line of a program made a call: the first frame that is not part of the machinery."""

from __future__ import annotations

import os
import sys
from typing import Final

import busdma

_HERE: Final = os.path.dirname(os.path.abspath(busdma.__file__)) + os.sep
_PROGRAMS: Final = (_HERE + "drivers" + os.sep, _HERE + "testing" + os.sep)  #: no machinery, though part of the package


def caller() -> str:
    """``file:line`` of whoever called into busdma; a driver of busdma's own, or a test, counts as a program."""
    frame = sys._getframe(1)
    last = frame
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_HERE) or name.startswith(_PROGRAMS):
            return f"{_short(name)}:{frame.f_lineno}"
        last, frame = frame, frame.f_back  # type: ignore[assignment]
    return f"{_short(last.f_code.co_filename)}:{last.f_lineno}"


def _short(name: str) -> str:
    return "busdma" + os.sep + name[len(_HERE) :] if name.startswith(_HERE) else name
