"""Fixtures of the conformance suite."""

from __future__ import annotations

import pytest

from busdma.machine.machine import Machine
from busdma.tag import Tag
from busdma.testing.conformance.rig import tags


@pytest.fixture
def tag(machine: Machine) -> Tag:
    """A tag on the bus of the machine's first device."""
    return tags(machine)[0]
