"""The three runtimes, in virtual time, and a small machine on each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from busdma.runtime import NAMES, by_name
from busdma.runtime.carrier import Carrier
from core.small_machine import SmallMachine


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest) -> Iterator[Carrier]:
    """Each of the three."""
    with by_name(request.param) as carrier:
        yield carrier


@pytest.fixture
def machine(runtime: Carrier) -> SmallMachine:
    """A small machine on each of the three."""
    return SmallMachine(runtime)


@pytest.fixture
def small() -> SmallMachine:
    """A small machine on the virtual runtime."""
    return SmallMachine()
