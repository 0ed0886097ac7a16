"""Adapters for the tests of the AHA-1542 model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sim.aha1542_host import Host


@pytest.fixture
def host() -> Iterator[Host]:
    """An adapter with a disk at id 0, ready for CCBs."""
    made = Host()
    made.start()
    yield made
    made.close()


@pytest.fixture
def fresh() -> Iterator[Host]:
    """An adapter at power-on, with disks at ids 0, 1 and 2."""
    made = Host(targets=(0, 1, 2))
    yield made
    made.close()
