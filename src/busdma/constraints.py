"""What a device can do: limits that only narrow on the way down, each knowing which tag set it.

A child's constraints are the meet of its parent's and its own, and are proved to be a subset of the parent's: kernels
inherit only some limits (FreeBSD's tags on x86 lose alignment, maxsize, nsegments and maxsegsz on the way), here all
are. Addresses are bus addresses of the tag's own bus.

Source: Gibbs, tech-kern 10 June 1998, part 2; bus_dma(9), bus_dma_tag_create.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.errors import ConstraintError
from busdma.filters import Filter, FilteredAreas, FilterFunction
from busdma.paths import Window
from busdma.tracebacks import hidden

__tracebackhide__ = hidden

UNLIMITED: Final = MAX_ADDRESS  #: of maxsize, nsegments and maxsegsz
NO_BOUNDARY: Final = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """A number, and the tag that set it."""

    value: int
    origin: str


@dataclass(frozen=True, slots=True)
class Hole:
    """Addresses that a tag excluded, and in which words."""

    addresses: AddressSet
    origin: str
    words: str


@dataclass(frozen=True, slots=True)
class Constraints:
    """The limits of one tag; build the first with `unlimited` and the others with `narrow`."""

    reach: AddressSet
    holes: tuple[Hole, ...]
    alignment: Limit
    boundary: Limit
    maxsize: Limit
    nsegments: Limit
    maxsegsz: Limit
    origin: str = field(default="")
    joint: Limit = field(default=Limit(1, ""))  #: where one segment ends and the next begins: at multiples of this
    filtered: FilteredAreas = field(default=FilteredAreas())  #: beyond `reach`, what can be reached if filters agree

    @classmethod
    def unlimited(cls, origin: str) -> Constraints:
        """No limit at all: the root of a tree of tags."""
        return cls(
            AddressSet.everything(),
            (),
            alignment=Limit(1, origin),
            boundary=Limit(NO_BOUNDARY, origin),
            maxsize=Limit(UNLIMITED, origin),
            nsegments=Limit(UNLIMITED, origin),
            maxsegsz=Limit(UNLIMITED, origin),
            origin=origin,
            joint=Limit(1, origin),
        )

    def narrow(
        self,
        origin: str,
        *,
        alignment: int | None = None,
        boundary: int | None = None,
        lowaddr: int | None = None,
        highaddr: int | None = None,
        exclude: AddressSet | None = None,
        filter: FilterFunction | None = None,
        maxsize: int | None = None,
        nsegments: int | None = None,
        maxsegsz: int | None = None,
        joint: int | None = None,
        clip: bool = False,
    ) -> Constraints:
        """A child's constraints. None inherits; a limit wider than the parent's is an error, or clipped to it.

        `lowaddr`, `highaddr`: addresses in (lowaddr, highaddr] are excluded, or with a `filter` those of them that it
        objects to; highaddr alone means nothing.
        `joint`: a power of two; every segment but the last ends, and every one but the first begins, at a multiple.
        `clip`: the limits state what the device can do on any bus, so the tighter of both holds.

        Raises ConstraintError for limits that contradict each other or leave no address.
        """
        _whole_numbers(
            origin,
            alignment=alignment,
            boundary=boundary,
            lowaddr=lowaddr,
            highaddr=highaddr,
            maxsize=maxsize,
            nsegments=nsegments,
            maxsegsz=maxsegsz,
            joint=joint,
        )
        if exclude is not None and not isinstance(exclude, AddressSet):
            raise ConstraintError(
                f"tag {origin!r}: exclude is an AddressSet, such as AddressSet.span(first, last), not {exclude!r}"
            )
        holes = list(self.holes)
        reach, filtered = self.reach, self.filtered
        if filter is not None and lowaddr is None:
            raise ConstraintError(f"tag {origin!r}: a filter is asked about (lowaddr, highaddr]; give lowaddr too")
        if highaddr is not None and lowaddr is None:
            raise ConstraintError(f"tag {origin!r}: highaddr without lowaddr excludes nothing; give both")
        if lowaddr is not None:
            top = MAX_ADDRESS if highaddr is None else highaddr
            if not 0 <= lowaddr <= MAX_ADDRESS or not 0 <= top <= MAX_ADDRESS:
                raise ConstraintError(f"tag {origin!r}: lowaddr and highaddr are 64-bit addresses")
            if highaddr is not None and highaddr < lowaddr:
                raise ConstraintError(
                    f"tag {origin!r}: the exclusion window ({lowaddr:#x}, {highaddr:#x}] is upside down: "
                    "lowaddr is its lower end"
                )
            if highaddr is None and not clip and reach and lowaddr > reach.intervals[-1][1]:
                _wider(
                    origin,
                    "lowaddr",
                    hex(lowaddr),
                    hex(reach.intervals[-1][1]),
                    self._who_cut(reach.intervals[-1][1] + 1),
                )
            if lowaddr < top and filter is not None:
                window = AddressSet.span(lowaddr + 1, top)
                filtered = filtered.narrowed(window, reach & window, Filter(filter, origin))
                reach = reach - window
            elif lowaddr < top:
                words = f"above lowaddr {lowaddr:#x}" + ("" if highaddr is None else f" up to highaddr {highaddr:#x}")
                holes.append(Hole(AddressSet.span(lowaddr + 1, top), origin, words))
        if exclude is not None:
            holes.append(Hole(exclude, origin, "in an excluded hole"))
        for hole in holes[len(self.holes) :]:
            reach = reach - hole.addresses
            filtered = filtered.without(hole.addresses)
        if not reach and not filtered:
            raise ConstraintError(
                f"tag {origin!r}: no address is left that it can reach; check lowaddr, highaddr and exclude"
            )
        child = Constraints(
            reach,
            tuple(holes),
            alignment=self._tighter("alignment", self.alignment, alignment, origin, clip, larger=True),
            boundary=self._tighter_boundary(boundary, origin, clip),
            maxsize=self._tighter("maxsize", self.maxsize, maxsize, origin, clip),
            nsegments=self._tighter("nsegments", self.nsegments, nsegments, origin, clip),
            maxsegsz=self._tighter("maxsegsz", self.maxsegsz, maxsegsz, origin, clip),
            origin=origin,
            joint=self._tighter("joint", self.joint, joint, origin, clip, larger=True),
            filtered=filtered,
        )
        child._check()
        if not child.subset_of(self):
            raise AssertionError(f"tag {origin!r} came out wider than its parent")
        return child

    def moved(self, span: AddressSet, by: int) -> Constraints:
        """What lies in `span`, seen `by` higher: the same limits in the addresses of another bus, or of memory."""
        return replace(
            self,
            reach=(self.reach & span).shifted(by),
            holes=tuple(
                replace(hole, addresses=seen.shifted(by)) for hole in self.holes if (seen := hole.addresses & span)
            ),
            filtered=self.filtered.moved(span, by),
        )

    def behind(self, origin: str, windows: Sequence[Window]) -> Constraints:
        """The constraints of the bus behind a bridge that forwards `windows` of it, and nothing else.

        ConstraintError if none of what it forwards can be reached, or two windows are in one place.
        """
        reach, holes, filtered = AddressSet(), list[Hole](), FilteredAreas()
        for at, window in enumerate(windows):
            for other in windows[:at]:
                if both := window.near & other.near:
                    raise ConstraintError(
                        f"tag {origin!r}: two windows of its bridge forward {both}: give each address to one of them"
                    )
            if window.pool is None:
                seen = self.moved(window.far, window.shift)
                holes += seen.holes
                filtered = FilteredAreas(filtered.areas + seen.filtered.areas)
                reach = reach | seen.reach
            else:
                reach = reach | window.near
        beyond = AddressSet.everything()
        for window in windows:
            beyond = beyond - window.near
        if beyond:
            holes.append(Hole(beyond, origin, "outside the windows of the bridge"))
        if not reach and not filtered:
            raise ConstraintError(
                f"tag {origin!r}: nothing that its bridge forwards can be reached; check the bases, sizes and targets "
                "of its windows"
            )
        return replace(self, reach=reach, holes=tuple(holes), filtered=filtered, origin=origin)

    def subset_of(self, parent: Constraints) -> bool:
        """True if whatever satisfies these constraints satisfies `parent`."""
        return (
            self.reach <= parent.reach
            and all(
                area <= (parent.reach | AddressSet(span for wide, _ in parent.filtered.areas for span in wide))
                for area, _ in self.filtered.areas
            )
            and self.alignment.value % parent.alignment.value == 0
            and (parent.boundary.value == NO_BOUNDARY or 0 < self.boundary.value <= parent.boundary.value)
            and self.maxsize.value <= parent.maxsize.value
            and self.nsegments.value <= parent.nsegments.value
            and self.maxsegsz.value <= parent.maxsegsz.value
            and self.joint.value % parent.joint.value == 0
        )

    @property
    def segment_size(self) -> int:
        """The longest segment that can start anywhere aligned: maxsegsz in whole alignments, at most the boundary."""
        size = self.maxsegsz.value - self.maxsegsz.value % self.alignment.value
        return min(size, self.boundary.value) if self.boundary.value else size

    def admits(self, lo: int, hi: int) -> bool:
        """True if [lo, hi], within one page, can be reached: always, or as far as the filters say."""
        if self.reach.covers(lo, hi):
            return True
        return self.filtered.covers(lo, hi) and self.filtered.objector(lo, hi) is None

    def admits_run(self, lo: int, hi: int, page: int) -> bool:
        """The same for a run of whole or partial pages of `page` bytes; filters are asked page by page."""
        while lo <= hi:
            end = min(hi, lo | (page - 1))
            if not self.admits(lo, end):
                return False
            lo = end + 1
        return True

    def why_not(self, lo: int, hi: int) -> str:
        """Which tag's which limit keeps [lo, hi] from being reached; "" if it can be."""
        if self.reach.covers(lo, hi):
            return ""
        if self.filtered.covers(lo, hi):
            objector = self.filtered.objector(lo, hi)
            return "" if objector is None else f"the filter of tag {objector.origin!r} objects"
        window = AddressSet.span(lo, hi)
        for hole in self.holes:
            if hole.addresses & window:
                return f"{hole.words}, set by tag {hole.origin!r}"
        return "outside the reach"

    def summary(self) -> str:
        """The reach and who cut it, for messages."""
        first = {(hole.words, hole.addresses): hole.origin for hole in reversed(self.holes)}  # who said it first
        words = [f"{said} (tag {origin!r})" for (said, _), origin in reversed(first.items())][-3:]
        return f"it reaches {self.reach}" + (f": nothing {', nothing '.join(words)}" if words else "")

    def _cut_anywhere(self) -> bool:
        """True if a segment can be cut at maxsegsz, counted from wherever it begins."""
        size = self.maxsegsz.value
        longest = min(self.maxsize.value, self.boundary.value or self.maxsize.value)
        return size != UNLIMITED and size - size % self.alignment.value < longest

    def _who_cut(self, address: int) -> str:
        for hole in self.holes:
            if address in hole.addresses:
                return hole.origin
        return self.origin

    def _tighter(
        self, name: str, mine: Limit, wanted: int | None, origin: str, clip: bool, *, larger: bool = False
    ) -> Limit:
        if wanted is None:
            return mine
        if not 1 <= wanted <= UNLIMITED:
            raise ConstraintError(f"tag {origin!r}: {name} must be from 1 to {UNLIMITED:#x}, not {wanted}")
        if larger and wanted & (wanted - 1):
            raise ConstraintError(f"tag {origin!r}: {name} must be a power of two, not {wanted}")
        if wanted == mine.value:
            return mine
        if (wanted < mine.value) == larger:
            if not clip:
                _wider(origin, name, str(wanted), str(mine.value), mine.origin)
            return mine
        return Limit(wanted, origin)

    def _tighter_boundary(self, wanted: int | None, origin: str, clip: bool) -> Limit:
        mine = self.boundary
        if wanted is None or wanted == mine.value:
            return mine
        if wanted != NO_BOUNDARY and (not 1 <= wanted <= MAX_ADDRESS or wanted & (wanted - 1)):
            raise ConstraintError(
                f"tag {origin!r}: boundary must be 0 (none) or a power of two of at most 64 bits, not {wanted}"
            )
        if mine.value != NO_BOUNDARY and (wanted == NO_BOUNDARY or wanted > mine.value):
            if not clip:
                _wider(origin, "boundary", str(wanted), str(mine.value), mine.origin)
            return mine
        return Limit(wanted, origin)

    def _check(self) -> None:
        """Limits that are fine one by one but cannot hold together."""
        align, boundary, segment = self.alignment, self.boundary, self.maxsegsz
        if boundary.value and boundary.value < align.value:
            raise ConstraintError(
                f"tag {self.origin!r}: boundary {boundary.value} (tag {boundary.origin!r}) is smaller than alignment "
                f"{align.value} (tag {align.origin!r}): no second segment could ever start; raise the boundary"
            )
        if segment.value < align.value:
            raise ConstraintError(
                f"tag {self.origin!r}: maxsegsz {segment.value} (tag {segment.origin!r}) is smaller than alignment "
                f"{align.value} (tag {align.origin!r}): no second segment could be aligned; raise maxsegsz"
            )
        joint = self.joint
        if joint.value > 1 and (0 < boundary.value < joint.value or self._cut_anywhere()):
            cut = boundary if 0 < boundary.value < joint.value else segment
            raise ConstraintError(
                f"tag {self.origin!r}: joints at multiples of {joint.value} (tag {joint.origin!r}) cannot hold where "
                f"segments are cut after {cut.value} bytes (tag {cut.origin!r}); set a boundary that is a multiple of "
                f"{joint.value} and at most maxsegsz, or a maxsegsz of maxsize and more"
            )
        longest = self.nsegments.value * self.segment_size
        if self.maxsize.value != UNLIMITED and longest < self.maxsize.value:
            raise ConstraintError(
                f"tag {self.origin!r}: {self.nsegments.value} segments (tag {self.nsegments.origin!r}) of at most "
                f"{self.segment_size} bytes cannot hold maxsize {self.maxsize.value} (tag {self.maxsize.origin!r}); "
                f"lower maxsize to {longest}, or raise nsegments, maxsegsz or boundary"
            )


def _wider(origin: str, name: str, wanted: str, held: str, holder: str) -> None:
    raise ConstraintError(
        f"tag {origin!r}: {name} {wanted} is wider than its parent's {held}, set by tag {holder!r}. A child only "
        f"narrows: leave {name} out to inherit it, or pass clip=True if it states what the device can do on any bus"
    )


def _whole_numbers(origin: str, **limits: object) -> None:
    """ConstraintError for a limit that is no integer: the segmenter would refuse it in worse words, and later."""
    for name, value in limits.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ConstraintError(f"tag {origin!r}: {name} is a whole number, not {value!r}")
