"""``busdma bench load``: one load, sync(PREWRITE) and unload, beside the same work in C.

Two rows a case. ``kernel`` is the `Segmenter` alone, driven by the shortest Python loop there is, beside
``reference.c``: load, and where pages are bounced place, copy out and release; the loop's own cost is not taken off.
``public`` is what a driver calls, ``await map.load``, ``map.sync`` and ``map.unload``, with state checks and statistics
on, beside the kernel: ``added`` is what it costs more, and that is what its target limits.

A row has ``case, ours, reference, unit, ratio, target, met``, and ``added`` and ``segments``. ours and reference are
medians in ns for one cycle; ratio is the median of the ratios of pairs that ran one right after the other, so that a
noisy machine disturbs both. Before anything is measured, both sides must give the same segments.

The tag: alignment 4, boundary and maxsegsz 64 KiB, and a lowaddr with memory on both sides of it.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import platform
import sysconfig
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from random import Random
from statistics import median
from time import perf_counter_ns
from typing import Final

import busdma
from busdma.addresses import AddressSet
from busdma.bench.reference import ReferenceMap, build
from busdma.buffers import Allocation, LinearBuffer
from busdma.constraints import UNLIMITED
from busdma.domain import DmaDomain
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import AddressSpace
from busdma.map import Map
from busdma.runtime import by_name
from busdma.segments import Frames, Segmenter, Slots
from busdma.sync import PREWRITE, Direction

KIB: Final = 1 << 10
MIB: Final = 1 << 20
PAGE: Final = 4 * KIB
LIMIT: Final = 64 * KIB  #: boundary and maxsegsz
ALIGNMENT: Final = 4
RAM: Final = 128 * MIB
REACH: Final = 64 * MIB  #: lowaddr is the byte before it
ZONE: Final = 56 * MIB  #: bounce pages come from [ZONE, REACH), the buffers' pages from elsewhere

SIZES: Final = (512, 4 * KIB, 64 * KIB, MIB, 16 * MIB)
LAYOUTS: Final = ("contiguous", "mixed", "scattered")
ADDED: Final = 1500  #: ns that the public calls may add
PURE: Final = 50.0  #: times the reference, not compiled

#: (case's size, nothing bounced), (a quarter bounced): times the reference, compiled; None: no target
COMPILED: Final[dict[int, tuple[float | None, float | None]]] = {
    512: (None, None),
    4 * KIB: (12.0, 12.0),
    64 * KIB: (3.0, 1.5),
    MIB: (1.4, 1.5),
    16 * MIB: (1.2, 1.5),
}

Run = Callable[[int], float]  #: so many cycles; ns for one


@dataclass(frozen=True, slots=True)
class Report:
    """The table, and what it was measured with."""

    rows: list[dict[str, object]]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Case:
    """A buffer of `size` bytes that begins with a page. `bounced`: every fourth page, or the only one, is too high."""

    size: int
    layout: str
    bounced: bool

    @property
    def pages(self) -> int:
        """Page frames of the buffer."""
        return -(-self.size // PAGE)

    @property
    def name(self) -> str:
        """For example ``64 KiB mixed, a quarter bounced``; a buffer of one page has no layout."""
        size = f"{self.size} B" if self.size < KIB else f"{self.size // KIB} KiB"
        size = size if self.size < MIB else f"{self.size // MIB} MiB"
        if self.pages == 1:
            return f"{size}, bounced" if self.bounced else size
        return f"{size} {self.layout}, a quarter bounced" if self.bounced else f"{size} {self.layout}"

    def frames(self) -> array[int]:
        """The page table. Mixed: every third page lies right behind the one before it; scattered: none does."""
        heads = iter(Random(self.size).sample(range(0, ZONE // PAGE, 2), self.pages))
        frames: list[int] = []
        for i in range(self.pages):
            if self.layout == "contiguous":
                frames.append(i * PAGE)
            elif self.layout == "mixed" and i % 3 == 1:
                frames.append(frames[-1] + PAGE)
            else:
                frames.append(next(heads) * PAGE)
        if self.bounced:
            frames = [f + REACH if i % 4 == 3 or self.pages == 1 else f for i, f in enumerate(frames)]
        return array("Q", frames)

    def target(self, compiled: bool) -> float | None:
        """The kernel's, in times the reference."""
        return COMPILED.get(self.size, (None, None))[self.bounced] if compiled else PURE


def cases() -> list[Case]:
    """Every size, layout and share of bounced pages that makes a difference."""
    return [
        Case(size, layout, bounced)
        for size in SIZES
        for layout in (LAYOUTS if size > PAGE else ("one page",))
        for bounced in (False, True)
    ]


class Bench:
    """One case, ready to run three ways: the C reference, the kernel, the public calls."""

    def __init__(self, case: Case, library: ctypes.CDLL, memory: memoryview) -> None:
        self.case = case
        self.table = case.frames()
        self.bounced = sum(frame >= REACH for frame in self.table)
        slots = array("Q", range(REACH - self.bounced * PAGE, REACH, PAGE))  # where the machine's zone takes them too
        self.reference_map = ReferenceMap(
            library,
            memory,
            slots,
            page_size=PAGE,
            lowaddr=REACH - 1,
            alignment=ALIGNMENT,
            boundary=LIMIT,
            maxsegsz=LIMIT,
            nsegments=UNLIMITED,
            most=case.pages,
        )
        elsewhere = AddressSet.span(0, ZONE - 1) | AddressSet.span(REACH, RAM - 1)
        frames = FrameAllocator(0, RAM // PAGE, page_size=PAGE, reserved=elsewhere)
        self.domain = DmaDomain(memory, frames, by_name("virtual"), bounce_limit=max(self.bounced, 1))
        self.tag = self.domain.root("bench").derive(
            "device", alignment=ALIGNMENT, boundary=LIMIT, lowaddr=REACH - 1, maxsegsz=LIMIT
        )
        space = AddressSpace("kernel", memory, frames, pages=case.pages + 1)
        space.page_table[: case.pages] = self.table
        self.buffer = LinearBuffer(Allocation(space, 0, case.size), 0, case.size)
        self.map: Map = self.tag.create_map(name="bench")
        self.segmenter: Segmenter = self.tag._segmenter()
        self.frames = Frames(self.table)
        self.slots = Slots(self.bounced)
        for slot, address in enumerate(slots):
            self.slots.addresses[slot] = address
            self.slots.free[slot] = 1

    def check(self) -> int:
        """All three give the same segments; how many. AssertionError if they do not: the table would mean nothing."""
        size = self.case.size
        answer = self.reference_map.load(self.table, 0, size)
        wanted = self.reference_map.segments()
        self.reference_map.unload()
        ours = self.segmenter.load(self.frames, 0, size)
        if self.bounced:
            ours = self.segmenter.place(self.frames, 0, size, self.slots)
        flat = list(self.segmenter.out[: 2 * self.segmenter.count])
        found = list(zip(flat[::2], flat[1::2], strict=True))
        self.segmenter.release(self.slots)
        public = list(self.map.load_nowait(self.buffer, Direction.TO_DEVICE))
        self.map.unload()
        if not answer == ours == len(wanted) or not wanted == found == public:
            raise AssertionError(f"{self.case.name}: the reference's segments differ from ours")
        return answer

    def reference(self, cycles: int) -> float:
        """In C."""
        begin = perf_counter_ns()
        self.reference_map.cycles(self.table, 0, self.case.size, cycles)
        return (perf_counter_ns() - begin) / cycles

    def kernel(self, cycles: int) -> float:
        """The Segmenter alone."""
        segmenter, frames, size, load = self.segmenter, self.frames, self.case.size, self.segmenter.load
        if not self.bounced:
            begin = perf_counter_ns()
            for _ in repeat(None, cycles):
                load(frames, 0, size)
            return (perf_counter_ns() - begin) / cycles
        slots, place, copy_out, release = self.slots, segmenter.place, segmenter.copy_out, segmenter.release
        begin = perf_counter_ns()
        for _ in repeat(None, cycles):
            load(frames, 0, size)
            place(frames, 0, size, slots)
            copy_out(0, size)
            release(slots)
        return (perf_counter_ns() - begin) / cycles

    def public(self, cycles: int) -> float:
        """What a driver calls."""
        return self.domain.runtime.run(self._driver, cycles)

    async def _driver(self, cycles: int) -> float:
        load, sync, unload, buffer = self.map.load, self.map.sync, self.map.unload, self.buffer
        direction = Direction.TO_DEVICE
        await load(buffer, direction)
        unload()
        begin = perf_counter_ns()
        for _ in repeat(None, cycles):
            await load(buffer, direction)
            sync(PREWRITE)
            unload()
        return (perf_counter_ns() - begin) / cycles


def paired(ours: Run, reference: Run, pairs: int, slice_ns: int) -> tuple[float, float, float, float]:
    """Medians over `pairs` short runs of both in turn: ours, reference, ours / reference, ours - reference."""
    cycles, theirs = _cycles(ours, slice_ns), _cycles(reference, slice_ns)
    mine, other = [], []
    for _ in range(pairs):
        mine.append(ours(cycles))
        other.append(reference(theirs))
    both = list(zip(mine, other, strict=True))
    return median(mine), median(other), median(a / b for a, b in both), median(a - b for a, b in both)


def _cycles(run: Run, slice_ns: int) -> int:
    """How many cycles take `slice_ns`."""
    cycles = 1
    while (spent := run(cycles) * cycles) < slice_ns / 4:
        cycles *= 4
    return max(1, round(cycles * slice_ns / spent))


def rows_of(case: Case, library: ctypes.CDLL, memory: memoryview, pairs: int, slice_ns: int) -> list[dict[str, object]]:
    """Check and measure one case: the kernel's row and the public calls'."""
    bench = Bench(case, library, memory)
    segments = bench.check()
    with quiet():
        ours, reference, ratio, _ = paired(bench.kernel, bench.reference, pairs, slice_ns)
        public, kernel, times, added = paired(bench.public, bench.kernel, 8 * pairs, slice_ns // 8)  # 1.5 us are little
    target = case.target(busdma.COMPILED)
    return [
        {
            "case": f"kernel {case.name}",
            "ours": round(ours, 1),
            "reference": round(reference, 1),
            "unit": "ns",
            "ratio": round(ratio, 2),
            "target": None if target is None else f"{target:g}x",
            "met": None if target is None else ratio <= target,
            "added": None,
            "segments": segments,
        },
        {
            "case": f"public {case.name}",
            "ours": round(public, 1),
            "reference": round(kernel, 1),
            "unit": "ns",
            "ratio": round(times, 2),
            "target": f"+{ADDED} ns",
            "met": added <= ADDED,
            "added": round(added, 1),
            "segments": segments,
        },
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection while measuring."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def notes() -> list[str]:
    """What was measured, and with which Python."""
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    pgo = "with" if "--enable-optimizations" in options else "without"
    form = "compiled" if busdma.COMPILED else "as Python, not compiled"
    return [
        f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()}, {pgo} PGO) "
        f"on {platform.system()} {platform.machine()}",
        f"busdma.segments runs {form} (busdma.COMPILED is {busdma.COMPILED})",
        "kernel rows: reference is C of the same semantics, compiled -O2 in this run, same segments checked",
        "public rows: reference is the kernel row's work; the target limits what the public calls add to it",
    ]


def run(quick: bool = False, progress: Callable[[str], None] | None = None) -> Report:
    """Measure every case; about half a minute, or a few seconds if `quick`. ConfigurationError without a C compiler."""
    library = build()
    pairs, slice_ns = (5, 500_000) if quick else (25, 2_000_000)
    rows: list[dict[str, object]] = []
    memory = memoryview(mmap.mmap(-1, RAM))  # goes with the last map that knows it
    for case in cases():
        if progress is not None:
            progress(case.name)
        rows += rows_of(case, library, memory, pairs, slice_ns)
    return Report(rows, notes())
