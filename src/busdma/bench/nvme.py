"""``busdma bench nvme``: reads of 4 KiB through the driver, beside what is built by hand, on QEMU's controller.

Ours is ``await disk.read(lba, buffer)``, as a user has it, from 32 contexts for QD32: every request loads a map, syncs
it and unloads it. The disk is QEMU's null-co: zeros, written to memory, at once. Before anything is measured, both
sides must have read them.

==========================  ==========================================================================================
case                        reference
==========================  ==========================================================================================
``QD1``, one at a time      *floor*: the cheapest doorbell that qtest has, a posted write, and a look at the phase bit
                            in shared memory, again and again; commands were written before, nothing is checked
``QD1 by hand``             the shortest loop that packs a command, rings, waits, looks at the status and rings again
``QD32``, 32 at a time      the same loop with 32 commands under way, one doorbell for as many as there are
``QD32 in batches``         the same loop; ours is ``await disk.transfer(...)`` of 32 pages, again and again
``behind VT-d``             as above, both sides; our map entries stand, theirs are made once
``VT-d against none``       our own, without the IOMMU
``threads``                 as above, with the driver on OS threads instead of in an event loop; no targets
==========================  ==========================================================================================

All of it runs in turn, round after round, in one process and, but for the IOMMU, on one QEMU. ours and reference are
medians over the rounds of what a round gives (QD1: the median of its requests); ratio is the median of the ratios of
rounds. A target of ``1.3x`` is a most for times, and of ``0.9x`` a least for rates.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from statistics import median
from time import perf_counter_ns
from typing import Final

import busdma
from busdma.bench.load import Report, quiet
from busdma.bench.nvme_bare import BLOCKS
from busdma.bench.nvme_rig import DEPTH, Rig
from busdma.sync import Direction

WARM: Final = 64  #: requests before anything is measured
MOST: Final = 1024  #: pages of the disk that are read


@dataclass(frozen=True, slots=True)
class Round:
    """What one round found, in ns for a request."""

    floor: float
    by_hand: float
    ours: float
    many_by_hand: float
    many_ours: float
    batches: float


async def one_by_one(rig: Rig, requests: int) -> float:
    """Read so many pages one after the other; the median of their times, in ns."""
    disk, buffer = rig.driver.disks[0], rig.buffers[0]
    times = []
    for number in range(requests):
        begin = perf_counter_ns()
        await disk.read(BLOCKS * (number % MOST), buffer)
        times.append(perf_counter_ns() - begin)
    return median(times)


async def many(rig: Rig, requests: int) -> float:
    """Read so many pages, by as many workers as there are buffers; ns for one."""
    disk, numbers = rig.driver.disks[0], count()

    async def worker(which: int) -> None:
        buffer = rig.buffers[which]
        while (number := next(numbers)) < requests:
            await disk.read(BLOCKS * (number % MOST), buffer)

    begin = perf_counter_ns()
    workers = [rig.runtime.start(worker, which) for which in range(DEPTH)]
    for each in workers:
        await rig.runtime.park(each.done)
        each.result()
    return (perf_counter_ns() - begin) / requests


async def batches(rig: Rig, requests: int) -> float:
    """Read so many pages, as many at a time as there are buffers, each time with one call; ns for one."""
    disk, buffers = rig.driver.disks[0], rig.buffers
    begin = perf_counter_ns()
    for first in range(0, requests, DEPTH):
        parts = [(BLOCKS * ((first + n) % MOST), buffer) for n, buffer in enumerate(buffers[: requests - first])]
        await disk.transfer(parts, Direction.FROM_DEVICE)
    return (perf_counter_ns() - begin) / requests


def measure(rig: Rig, requests: int) -> Round:
    """One round: so many requests one at a time, and four times as many together."""
    run, bare = rig.runtime.run, rig.bare
    return Round(
        floor=median(bare.floor(requests)),
        by_hand=median(bare.one_by_one(requests)),
        ours=run(one_by_one, rig, requests),
        many_by_hand=bare.many(4 * requests, DEPTH),
        many_ours=run(many, rig, 4 * requests),
        batches=run(batches, rig, 4 * requests),
    )


def rows_of(name: str, rounds: list[Round], *, targets: bool = True) -> list[dict[str, object]]:
    """The four rows of one machine and runtime."""
    most, least = (1.3, 0.9) if targets else (None, None)
    return [
        _times(f"QD1{name}", [(each.ours, each.floor) for each in rounds], most),
        _times(f"QD1 by hand{name}", [(each.ours, each.by_hand) for each in rounds]),
        _rates(f"QD32{name}", [(each.many_ours, each.many_by_hand) for each in rounds], least),
        _rates(f"QD32 in batches{name}", [(each.batches, each.many_by_hand) for each in rounds], least),
    ]


def _times(case: str, pairs: list[tuple[float, float]], most: float | None = None) -> dict[str, object]:
    ratio = median(ours / theirs for ours, theirs in pairs)
    return {
        "case": case,
        "ours": round(median(ours for ours, _ in pairs) / 1000, 1),
        "reference": round(median(theirs for _, theirs in pairs) / 1000, 1),
        "unit": "us",
        "ratio": round(ratio, 2),
        "target": None if most is None else f"{most:g}x",
        "met": None if most is None else ratio <= most,
    }


def _rates(case: str, pairs: list[tuple[float, float]], least: float | None = None) -> dict[str, object]:
    ratio = median(theirs / ours for ours, theirs in pairs)
    return {
        "case": case,
        "ours": round(1e6 / median(ours for ours, _ in pairs), 1),
        "reference": round(1e6 / median(theirs for _, theirs in pairs), 1),
        "unit": "k/s",
        "ratio": round(ratio, 2),
        "target": None if least is None else f"{least:g}x",
        "met": None if least is None else ratio >= least,
    }


def run(quick: bool = False, progress: Callable[[str], None] | None = None) -> Report:
    """Measure everything; about a minute, or a few seconds if `quick`. ConfigurationError without this QEMU."""
    rounds, requests = (3, 100) if quick else (15, 1000)
    found: dict[str, list[Round]] = {"": [], ", behind VT-d": [], ", threads": []}
    with ExitStack() as opened:
        rigs = {
            name: opened.enter_context(Rig(iommu="VT-d" in name, runtime="threads" if "threads" in name else "asyncio"))
            for name in found
        }
        for rig in rigs.values():
            rig.check()
            measure(rig, WARM)
        for number in range(rounds):
            if progress is not None:
                progress(f"round {number + 1} of {rounds}")
            for name, rig in rigs.items():
                with quiet():
                    found[name].append(measure(rig, requests))
    rows = [row for name, each in found.items() for row in rows_of(name, each, targets="threads" not in name)]
    pairs = zip(found[", behind VT-d"], found[""], strict=True)
    rows.append(_rates("QD32, VT-d against none", [(a.many_ours, b.many_ours) for a, b in pairs]))
    return Report(rows, notes(rounds, requests))


def notes(rounds: int, requests: int) -> list[str]:
    """What was measured, and with which Python."""
    form = "compiled" if busdma.COMPILED else "as Python, not compiled"
    return [
        f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()}) on "
        f"{platform.system()} {platform.machine()}; busdma.segments runs {form}",
        f"medians of {rounds} rounds, {requests} requests one at a time and {4 * requests} together in each",
    ]
