"""Where DMA-safe memory can lie: page frames within every limit of a tag, in the fewest runs that are to be had.

Each route of a tag is tried in the tag's order of preference. Without translation a segment is a run of frames, so one
run is wanted; if there is none, as few and long ones as there are. Behind a translator any frames are one segment. How
many segments come out is not computed here: the memory is loaded, and that decides.

Source: Thorpe, USENIX 1998, "DMA-safe memory handling" and its footnote: what is limited is the number of DMA segments;
bus_dma(9), bus_dmamem_alloc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from busdma.addresses import AddressSet
from busdma.errors import MappingRefused, ResourceShortage, ShortageReason
from busdma.machine.frames import DMA_SAFE
from busdma.tracebacks import hidden

if TYPE_CHECKING:
    from busdma.constraints import Constraints
    from busdma.machine.frames import FrameAllocator
    from busdma.paths import Route

__tracebackhide__ = hidden

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Site:
    """What one route demands of page frames. Addresses are physical, sizes bytes, powers of two where there is one."""

    within: AddressSet
    translated: bool  #: any frames are adjacent on the bus
    alignment: int
    boundary: int  #: 0: none
    segment: int  #: the longest there can be
    runs: int  #: the most there can be

    def attempts(
        self, frames: FrameAllocator, pages: int, *, contiguous: bool
    ) -> Iterator[Callable[[], Sequence[int]]]:
        """Ways to take `pages` frames, the best first. Each takes all or none, and may raise ResourceShortage."""
        yield partial(self._one_run, frames, pages)
        if contiguous or pages == 1:
            return
        if self.translated:
            yield partial(frames.allocate, pages, DMA_SAFE, self.within)
        elif self.runs > 1 and pages <= frames.usable(self.within):
            yield partial(self._few_runs, frames, pages)

    def _one_run(self, frames: FrameAllocator, pages: int) -> Sequence[int]:
        page = frames.page_size
        across = 0 < self.boundary < pages * page  # then from a boundary line on, where the segments are fewest
        address = frames.allocate_run(
            pages,
            DMA_SAFE,
            within=self.within,
            alignment=max(self.alignment, page, self.boundary if across else 1),
            boundary=0 if across or not self.boundary else max(self.boundary, page),
        )
        return range(address, address + pages * page, page)

    def _few_runs(self, frames: FrameAllocator, pages: int) -> Sequence[int]:
        """The longest runs there are, in ascending order, none longer than a segment can be."""
        page = frames.page_size
        longest = max(min(self.segment, self.boundary or self.segment) // page, 1)
        found: list[Sequence[int]] = []
        left = pages
        try:
            while left:
                if len(found) == self.runs:
                    raise ResourceShortage(
                        f"no memory for {pages} frames in {self.runs} runs or fewer, the longest of which there are "
                        f"hold {pages - left}: free some, or allow more segments",
                        ShortageReason.FRAGMENTED,
                    )
                run = self._longest_run(frames, min(longest, left))
                longest = len(run)  # no longer one is left
                left -= len(run)
                found.append(run)
        except BaseException:
            frames.free(address for run in found for address in run)
            raise
        return [address for run in sorted(found, key=lambda run: run[0]) for address in run]

    def _longest_run(self, frames: FrameAllocator, most: int) -> Sequence[int]:
        """The longest free run of up to `most` pages. ResourceShortage if no page is free."""
        try:
            return self._one_run(frames, most)
        except ResourceShortage:
            if most == 1:
                raise
        least, held = 1, self._one_run(frames, 1)
        while most - least > 1:
            middle = (least + most) // 2
            frames.free(held)  # it may lie in the middle of a longer one
            try:
                held = self._one_run(frames, middle)
                least = middle
            except ResourceShortage:
                most = middle
                held = self._one_run(frames, least)
        return held


def sites(routes: Sequence[Route], limits: Constraints) -> Iterator[Site]:
    """Where frames may be for a tag with these routes and limits, the preferred route first."""
    for route in routes:
        if route.pool is not None:
            if limits.reach & route.span:
                yield Site(route.pool.translator.reach, True, 1, 0, limits.segment_size, limits.nsegments.value)
            continue
        within = limits.moved(route.span, -route.shift).reach
        if within:
            yield Site(
                within,
                False,
                limits.alignment.value,
                limits.boundary.value,
                limits.segment_size,
                limits.nsegments.value,
            )


def allocate(
    frames: FrameAllocator,
    places: Iterator[Site],
    pages: int,
    load: Callable[[Sequence[int]], T],
    *,
    contiguous: bool = False,
) -> T:
    """What ``load(addresses)`` makes of the first page frames that it accepts; those that it refuses are freed.

    `load` refuses with MappingRefused: too many segments. `contiguous`: one run of frames only, translated or not.
    ResourceShortage: other frames would do, but cannot be had. MappingRefused: none would.
    """
    refusal: MappingRefused | None = None
    shortage: ResourceShortage | None = None
    for site in places:
        for attempt in site.attempts(frames, pages, contiguous=contiguous):
            try:
                found = attempt()
            except ResourceShortage as error:
                shortage = error
                continue
            try:
                return load(found)
            except MappingRefused as error:
                frames.free(found)
                refusal = refusal or error
                if isinstance(found, range):
                    break  # no other frames of this route make fewer segments
            except BaseException:
                frames.free(found)
                raise
    if shortage is not None and (refusal is None or shortage.reason is not ShortageReason.TOO_LARGE):
        raise shortage
    if refusal is not None:
        raise refusal
    raise ResourceShortage(
        "no memory of this machine is within reach of the tag: nothing can be allocated for it",
        ShortageReason.TOO_LARGE,
    )
