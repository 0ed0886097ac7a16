"""Runs the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from busdma.cli import main


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        assert found["ok"] is (self.status == 0)
        assert bool(found["errors"]) is (self.status != 0)
        return found


@pytest.fixture
def busdma(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``busdma("matrix", path, "--json")`` is what a shell would do."""

    def run(*argv: object) -> Done:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        found = capsys.readouterr()
        return Done(status, found.out, found.err)

    return run
