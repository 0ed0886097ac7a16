"""One job on a fresh machine under the checker, with a call made wrong, or none; and what came of it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, NamedTuple

from busdma.errors import MapStateError, SyncError
from busdma.machine.machine import Machine
from mutation.switch import Hung, Switch

MOST_SECONDS: Final = 60  #: of one job, which takes a fraction of one
LONGEST: Final = 600 * 10**9  #: ns of the machine's clock


class Job(NamedTuple):
    """A machine, switched on under the checker, and what is done on it: the outcome, in words."""

    machine: Callable[[], Machine]
    body: Callable[[Any], Coroutine[Any, Any, list[str]]]


@dataclass
class Run:
    """What came of one job."""

    outcome: Sequence[str]  #: what its user saw of it
    troubles: Sequence[str]  #: what it raised, and what it left behind
    findings: Sequence[str]  #: the checker's, and errors that name a misuse
    seen: Mapping[str, set[str]]  #: as `Switch.seen`


def run(switch: Switch, job: Job, site: str = "", how: str = "") -> Run:
    """The job, with that call made wrong in this way, or none."""
    outcome: list[str] = []
    troubles: list[str] = []
    misuse: list[str] = []
    machine = job.machine()
    checker = machine.checker
    assert checker is not None

    async def main() -> None:
        runtime = machine.runtime
        task = runtime.start(job.body, machine, name="the job")
        runtime.call_at(LONGEST, task.cancel)
        await runtime.park(task.done)
        outcome.extend(task.result())

    def attempt(doing: Callable[[], object]) -> None:
        try:
            doing()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a mutant may bring anything about
            troubles.append(f"{type(error).__name__}: {error}")
            if isinstance(error, MapStateError | SyncError):
                misuse.append(str(error))

    switch.set(site, how)
    with _limited():
        attempt(lambda: machine.run(main))
        troubles.extend(f"leak: {leak}" for leak in machine.leaks())
        attempt(machine.close)
    return Run(outcome, troubles, [*map(str, checker.findings), *misuse], switch.seen)


@contextmanager
def _limited() -> Iterator[None]:
    """Inside, what spins without end is ended."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hung("too long")

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
