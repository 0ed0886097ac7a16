"""Every runtime, each with virtual and, where it has that, with real time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from busdma.runtime import NAMES, by_name
from busdma.runtime.carrier import Carrier
from busdma.runtime.clock import Clock, WallClock

COMBINATIONS = [
    (name, clock) for clock in ("virtual", "real") for name in NAMES if (name, clock) != ("virtual", "real")
]


def make(name: str, clock: Clock | None = None) -> Carrier:
    """The runtime of that name."""
    return by_name(name, clock=clock)


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest) -> Iterator[Carrier]:
    """Each of the three, in virtual time."""
    with make(request.param) as carrier:
        yield carrier


@pytest.fixture(params=COMBINATIONS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def any_runtime(request: pytest.FixtureRequest) -> Iterator[Carrier]:
    """Each of the three in virtual time, and those that can in real time."""
    name, clock = request.param
    with make(name, WallClock() if clock == "real" else None) as carrier:
        yield carrier


@pytest.fixture(params=["asyncio", "threads"])
def real_runtime(request: pytest.FixtureRequest) -> Iterator[Carrier]:
    """Those that can, in real time."""
    with make(request.param, WallClock()) as carrier:
        yield carrier


@pytest.fixture
def make_runtime() -> Callable[[str], Carrier]:
    """To make one by name."""
    return make
