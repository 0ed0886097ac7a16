"""``busdma bench iova``: bus pages taken and given back, beside best fit alone.

The traffic: a window of 2^16 pages is filled to half, or to 95 percent. Then, round after round, 32 ranges chosen at
random come back, as when a device has finished some commands, and new ones of random sizes go out as long as the level
allows. Sizes are any from 1 to 256 pages, each as likely; or the powers of two among them.

How full the window is: a range counts as what it takes where sizes are rounded to powers of two, whether or not the
allocator at hand rounds; both sides so get the same traffic. Of any sizes, 95 percent full is 71 percent asked for. In
the cases ``asked for`` a range counts as its pages alone; rounded, they would not go in, so nothing is gained there.

A row ``pair`` has ns for an allocate and a free: means over many rounds, so that emptied magazines count, and of these
the median. What the loops themselves cost, measured with an allocator that does nothing, is taken off. ratio is the
median of the ratios of runs that came one right after the other. A row ``refused`` has the share of requests for which
there was no room. Both are taken over traffic from several seeds, so refusals are the same in every run. Before a case
is measured, it is checked that no two ranges overlap.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import median
from time import perf_counter_ns
from typing import Final, Protocol

from busdma.bench.best_fit import BestFit
from busdma.bench.load import Report, quiet
from busdma.mechanisms.iova_allocator import IovaAllocator

PAGES: Final = 1 << 16
BATCH: Final = 32  #: ranges that come back at once
WARM: Final = 60  #: rounds before any are measured: by then most ranges of the first filling have come back
SEEDS: Final = range(1, 6)
POWERS: Final = tuple(1 << k for k in range(9))
ANY: Final = tuple(range(1, 257))


class Allocator(Protocol):
    """What is measured."""

    def allocate(self, pages: int, /) -> int:
        """The first page, or a negative number."""

    def free(self, first: int, pages: int, /) -> None:
        """Give it back."""


class Nothing:
    """An allocator that does nothing: for what the loops cost."""

    def allocate(self, pages: int) -> int:
        """Grants all."""
        return 0

    def free(self, first: int, pages: int) -> None:
        """Takes all."""


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes of requests, and how full the window is: `rounds`, counting ranges as powers of two.

    `target`: ns for a pair; `refused`: the share in percent.
    """

    sizes: Sequence[int]
    percent: int
    rounds: bool = True
    target: int | None = None
    refused: float | None = None

    @property
    def name(self) -> str:
        """For example ``powers of two, 95% full``."""
        sizes = "powers of two" if self.sizes is POWERS else "any sizes"
        return f"{sizes}, {self.percent}% {'full' if self.rounds else 'asked for'}"

    def weight(self, pages: int) -> int:
        """By how much a range of so many pages fills the window."""
        return 1 << (pages - 1).bit_length() if self.rounds else pages


CASES: Final = (
    Case(ANY, 50, target=200, refused=1),
    Case(ANY, 95, target=400, refused=1),
    Case(POWERS, 50, target=200, refused=1),
    Case(POWERS, 95, target=400, refused=1),
    Case(ANY, 75, rounds=False),
    Case(ANY, 95, rounds=False),
)


class Traffic:
    """One allocator under the traffic of one case: equal seeds ask for equal sizes while nothing is refused."""

    def __init__(self, case: Case, allocator: Allocator, seed: int = 1) -> None:
        self.held: list[tuple[int, int]] = []
        self.requests = self.refused = 0
        self._sizes, self._weight = case.sizes, case.weight
        self._level = PAGES * case.percent // 100
        self._allocator = allocator
        self._random = Random(seed)
        self._used = 0
        self._map()

    def rounds(self, count: int) -> float:
        """So many rounds; ns for one range that comes back and one that goes out."""
        spent = back = out = 0.0
        for _ in range(count):
            leaving = [self._leave() for _ in range(BATCH)]
            free = self._allocator.free
            begin = perf_counter_ns()
            for first, pages in leaving:
                free(first, pages)
            spent = perf_counter_ns() - begin
            back += spent / BATCH
            spent, wanted = self._map()
            out += spent / max(wanted, 1)
        return (back + out) / count

    def _leave(self) -> tuple[int, int]:
        held = self.held
        at = int(self._random.random() * len(held))
        chosen, held[at] = held[at], held[-1]
        held.pop()
        self._used -= self._weight(chosen[1])
        return chosen

    def _map(self) -> tuple[float, int]:
        """Fill up to the level; ns, and how many ranges were asked for."""
        wanted, used = [], self._used
        while used + self._weight(pages := self._random.choice(self._sizes)) <= self._level:
            wanted.append(pages)
            used += self._weight(pages)
        allocate = self._allocator.allocate
        begin = perf_counter_ns()
        firsts = [allocate(pages) for pages in wanted]
        spent = perf_counter_ns() - begin
        granted = [each for each in zip(firsts, wanted, strict=True) if each[0] >= 0]
        self.held += granted
        self._used += sum(self._weight(pages) for _, pages in granted)
        self.requests += len(wanted)
        self.refused += len(wanted) - len(granted)
        return spent, len(wanted)


def check(case: Case, traffic: Traffic) -> None:
    """AssertionError if two ranges overlap: the table would mean nothing."""
    traffic.rounds(WARM)
    for (first, pages), (behind, _) in pairwise(sorted(traffic.held)):
        if first + pages > behind:
            raise AssertionError(f"{case.name}: ranges at {first:#x} and {behind:#x} overlap")


def rows_of(case: Case, runs: int, rounds: int) -> list[dict[str, object]]:
    """Check and measure one case: the pair's row and the refusals'."""
    ours = [Traffic(case, IovaAllocator([(0, PAGES - 1)]), seed) for seed in SEEDS]
    reference = [Traffic(case, BestFit(PAGES), seed) for seed in SEEDS]
    nothing = Traffic(case, Nothing())
    for each in ours + reference:
        check(case, each)
    found: list[tuple[float, float]] = []
    with quiet():
        for _ in range(runs):
            for mine, theirs in zip(ours, reference, strict=True):
                loops = nothing.rounds(rounds)
                found.append((mine.rounds(rounds) - loops, theirs.rounds(rounds) - loops))
    pair = median(ns for ns, _ in found)
    shares = [100 * sum(t.refused for t in side) / sum(t.requests for t in side) for side in (ours, reference)]
    return [
        {
            "case": f"pair, {case.name}",
            "ours": round(pair, 1),
            "reference": round(median(ns for _, ns in found), 1),
            "unit": "ns",
            "ratio": round(median(a / b for a, b in found), 2),
            "target": None if case.target is None else f"{case.target} ns",
            "met": None if case.target is None else pair <= case.target,
        },
        {
            "case": f"refused, {case.name}",
            "ours": round(shares[0], 2),
            "reference": round(shares[1], 2),
            "unit": "%",
            "ratio": None,
            "target": None if case.refused is None else f"{case.refused:g} %",
            "met": None if case.refused is None else shares[0] < case.refused,
        },
    ]


def run(quick: bool = False, progress: Callable[[str], None] | None = None) -> Report:
    """Measure every case; about ten seconds, or three if `quick`."""
    rows: list[dict[str, object]] = []
    for case in CASES:
        if progress is not None:
            progress(case.name)
        rows += rows_of(case, *((1, 20) if quick else (6, 100)))
    return Report(
        rows,
        [
            f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()}), "
            f"{PAGES} bus pages, {BATCH} ranges a round",
            "reference: best fit from a sorted list, without alignment, boundary, windows or checks",
        ],
    )
