"""Where planted mistakes are entered: small programs on a machine under the checker, each with what must be found.

A mistake returns nothing, and is found; or it returns what the CPU or the device saw, and what it must not have seen,
because that was poison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from busdma.buffers import LinearBuffer
from check.bench import Bench, pattern

SIZE = 6000
DATA, NEW = pattern(SIZE), pattern(SIZE, 2)


class Seen(NamedTuple):
    """What somebody saw, and everything that was right at some time."""

    seen: bytes
    right: tuple[bytes, ...]


Mistake = Callable[[Bench, pytest.MonkeyPatch], Seen | None]
MISTAKES: dict[str, tuple[Mistake, frozenset[str], dict[str, bool]]] = {}


def planted(*labels: str, **options: bool) -> Callable[[Mistake], Mistake]:
    """Enter a mistake under its name, with what is found on a `Bench` of these options; nothing: it yields poison."""

    def enter(mistake: Mistake) -> Mistake:
        assert mistake.__name__ not in MISTAKES
        MISTAKES[mistake.__name__] = mistake, frozenset(labels), options
        return mistake

    return enter


def filled(buffer: LinearBuffer, data: bytes = DATA) -> LinearBuffer:
    """`buffer`, with `data` in it."""
    buffer.write(data)
    return buffer
