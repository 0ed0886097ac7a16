"""How a buffer would map, page by page, and whose limit decided it. Loads nothing and holds nothing.

It goes the way of a load: first where the buffer lies, then each mechanism of the tag's chain. For people and for
``busdma explain``; a driver has no use for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from busdma.addresses import MAX_ADDRESS
from busdma.buffers import Buffer
from busdma.constraints import Constraints, Limit
from busdma.errors import BufferGone
from busdma.lists import ElementList
from busdma.mechanisms import Unreachable
from busdma.mechanisms.bounce import Bounce
from busdma.mechanisms.composed import Composed, Planned, too_much
from busdma.mechanisms.pieces import Piece, pieces_of
from busdma.mechanisms.plan import Layout
from busdma.mechanisms.runs import plan_run, shifted
from busdma.paths import Route
from busdma.pool import in_words
from busdma.segments import FOREIGN, TOO_MANY, UNREACHABLE, Segmenter
from busdma.sync import Direction

if TYPE_CHECKING:
    from busdma.mechanisms.zone import Zone
    from busdma.tag import Tag

_REFUSED: Final = "refused: "
_CROWDED: Final = "too many segments any other way"
_REST: Final = "goes the way of the rest of the buffer"
_PACKED: Final = "packed with the rest, or no pool could hold all of it"


@dataclass(frozen=True, slots=True)
class PageFate:
    """One page of the buffer, or what of an element lies in one page."""

    page: int  #: counted from the buffer's first
    offset: int  #: of its first byte in the buffer
    length: int
    mechanism: str  #: ``direct``, ``window``, ``remap``, ``bounce``, ``bounce+remap`` or ``refused``
    bus_address: int | None  #: where it lies, if it stays there and that is known before the load
    reason: str  #: which tag's which limit decided; "" if nothing had to be done


@dataclass(frozen=True, slots=True)
class Explanation:
    """All pages, and what they add up to."""

    tag: str
    buffer: str
    pages: tuple[PageFate, ...]
    bounce_pages: int
    zone: str  #: "" if the tag has none
    zone_limit: int
    verdict: str
    bus_pages: int = 0  #: of a translator

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.buffer}", f"through tag {self.tag}: {self.verdict}"]
        for fate in self.pages:
            span = f"  page {fate.page:4}  bytes {fate.offset}..{fate.offset + fate.length - 1}"
            where = f" at bus address {fate.bus_address:#x}" if fate.bus_address is not None else ""
            lines.append(f"{span}  {fate.mechanism}{where}{': ' + fate.reason if fate.reason else ''}")
        return "\n".join(lines)


class _Page(NamedTuple):
    """What the fate of one page is decided from."""

    number: int
    piece: int  #: number of the piece that it is, or is part of
    address: int  #: physical, of its first byte; or FOREIGN
    offset: int
    size: int


def explain(tag: Tag, buffer: Buffer, direction: Direction) -> Explanation:
    """What `Map.load` of `buffer` would do on a map of `tag`, were every pool free.

    Pages of a process that were paged out come back for it, as for a load. Errors: as `pieces_of`.
    """
    gone = getattr(buffer, "gone", "")
    if gone:
        raise BufferGone(f"{buffer.describe()}: {gone}")
    said: list[Explanation] = []
    for one in _attempts(tag, buffer, direction):
        said.append(one)
        if not one.verdict.startswith(_REFUSED):
            break
    verdict, longest = said[-1].verdict, tag.constraints.maxsize
    if verdict.startswith(_REFUSED):
        verdict = _REFUSED + "; ".join(dict.fromkeys(each.verdict.removeprefix(_REFUSED) for each in said))
    if buffer.length > longest.value:
        verdict = f"{_REFUSED}longer than maxsize {longest.value}, set by tag {longest.origin!r}"
    return replace(said[-1], verdict=verdict)


def _attempts(tag: Tag, buffer: Buffer, direction: Direction) -> Iterator[Explanation]:
    """What each mechanism would do, in the order in which a load asks them."""
    pieces = pieces_of(buffer, tag.domain)
    pages = list(_pages(pieces, tag.domain.page_size))
    segmenter = tag._segmenter()
    several = isinstance(buffer, ElementList)
    chain = tag._chain.lists if several else tag._chain.linear
    answer = 0
    if tag._straight is not None and not several:
        answer = segmenter.load(buffer.frames, buffer.start, buffer.length)
        if answer > 0 or not chain:
            yield _segmented(tag, buffer, pages, segmenter, answer, None)
            return
    crowded = answer == TOO_MANY
    for each in chain:
        if isinstance(each, Bounce):
            yield _segmented(tag, buffer, pages, segmenter, answer, each)
        elif isinstance(each, Composed):
            planned = each.plan(segmenter, pieces, direction)
            yield _composed(tag, buffer, pages, pieces, segmenter, each, planned, direction, crowded)
            crowded = crowded or (isinstance(planned, Unreachable) and planned.too_many_segments)
    if not chain:
        fates = [PageFate(page.number, page.offset, page.size, "refused", None, "no way leads there") for page in pages]
        yield _sum(
            tag, buffer, fates, len(fates), None, f"{_REFUSED}no way of its bus leads to memory within its limits"
        )


def _segmented(
    tag: Tag, buffer: Buffer, pages: list[_Page], segmenter: Segmenter, answer: int, bounce: Bounce | None
) -> Explanation:
    """Where it lies, with single pages bounced, or one run of them: what the segmenter itself does."""
    assert tag._straight is not None
    (route, limits), size = tag._straight, tag.domain.page_size
    crowded = answer == TOO_MANY or (
        answer == UNREACHABLE
        and bounce is not None
        and (segmenter.wanted > limits.nsegments.value or bounce.moves_as_one(buffer))
    )
    run = plan_run(buffer, limits, size) if crowded else None
    fates: list[PageFate] = []
    for page in pages:
        reason = _reason(tag, route, page)
        if run is not None and run.first <= page.number < run.first + run.pages and not reason:
            name = "nsegments" if answer == TOO_MANY or limits.alignment.value <= size else "alignment"
            reason = _joined(limits, "joint" if shifted(buffer, limits, size) else name)
        mechanism = ("bounce" if bounce else "refused") if reason else route.name
        address = None if reason else page.address + route.shift
        fates.append(PageFate(page.number, page.offset, page.size, mechanism, address, reason))
    count = sum(bool(fate.reason) for fate in fates)
    verdict = f"{answer} segments, nothing bounced" if answer > 0 else f"{count} of {len(fates)} pages bounce"
    if answer < 1 and bounce is None:
        verdict = f"{_REFUSED}no memory of this machine lies within reach, so nothing can be bounced"
    elif crowded and run is None:
        most = limits.nsegments
        verdict = f"{_REFUSED}more than {most.value} segments (tag {most.origin!r}), and no run joins them"
    elif bounce is not None and count > bounce.zone.limit:
        verdict = f"{_REFUSED}{count} bounce pages needed, and {bounce.zone.name} may hold {bounce.zone.limit}"
    return _sum(tag, buffer, fates, count, bounce.zone if bounce else None, verdict)


def _composed(
    tag: Tag,
    buffer: Buffer,
    pages: list[_Page],
    pieces: list[Piece],
    segmenter: Segmenter,
    mechanism: Composed,
    planned: Planned | Unreachable,
    direction: Direction,
    crowded: bool,
) -> Explanation:
    """By one route, each piece where it lies or copied. `crowded`: an earlier way had too many segments."""
    limits, pool, layout = tag.constraints, mechanism.pool, mechanism.layout(direction)
    stays = [mechanism.reaches(piece.address, piece.size) for piece in pieces]
    reached = list(stays)
    layout.split(pieces, stays)
    copied, copy = {at: False for at, stay in enumerate(stays) if not stay}, "refused"  # pieces; and is it joined?
    if isinstance(planned, Planned):
        stretches = [stretch for stretch in planned.plan.stretches if stretch.copied]
        copied = {at: each.joined for each in stretches for at in range(each.first, each.end)}
        copy = "bounce" if pool is None else "bounce+remap"
    first = tag._ways[0][0]
    otherwise = (
        "" if mechanism.route.span == first.span else _joined(limits, "nsegments", _CROWDED) if crowded else _REST
    )
    fates: list[PageFate] = []
    for page in pages:
        at, address = page.piece, None
        if at not in copied:
            reason = otherwise and (_reason(tag, first, page) or otherwise)
            address = page.address + mechanism.route.shift if pool is None else None
        elif not reached[at]:
            reason = _reason(tag, mechanism.route, page)
        elif at in layout.taken:
            reason = _taken(limits, layout, layout.taken[at])
        else:
            reason = _joined(limits, "nsegments") if copied[at] else _PACKED
        name = copy if at in copied else mechanism.name
        fates.append(PageFate(page.number, page.offset, page.size, name, address, reason))
    count = sum(page.piece in copied for page in pages)
    if isinstance(planned, Unreachable):
        verdict = f"{_REFUSED}{mechanism.name}: {planned.reason(segmenter)}"
        return _sum(tag, buffer, fates, count, mechanism.zone, verdict)
    plan, needs, never = planned
    verdict = f"{count} of {len(fates)} pages bounce" if count else f"{plan.segments} segments, nothing bounced"
    if pool is not None:
        verdict += f", through {in_words(needs[-1])}"
    if never is not None:
        verdict = f"{_REFUSED}{mechanism.name}: {too_much(never)}"
    return _sum(tag, buffer, fates, plan.slots, mechanism.zone, verdict, plan.bus_pages)


def _sum(
    tag: Tag,
    buffer: Buffer,
    fates: list[PageFate],
    bounced: int,
    zone: Zone | None,
    verdict: str,
    bus_pages: int = 0,
) -> Explanation:
    name, limit = ("", 0) if zone is None else (zone.name, zone.limit)
    return Explanation(tag.path, buffer.describe(), tuple(fates), bounced, name, limit, verdict, bus_pages)


def _pages(pieces: list[Piece], size: int) -> Iterator[_Page]:
    number = offset = 0
    for at, piece in enumerate(pieces):
        done, head = 0, (piece.origin if piece.address == FOREIGN else piece.address) % size
        while done < piece.size:
            here = min(size - head, piece.size - done)
            yield _Page(number, at, piece.address, offset, here)
            number, offset, done, head = number + 1, offset + here, done + here, 0


def _reason(tag: Tag, route: Route, page: _Page) -> str:
    """Why a page cannot stay where it is on this route; "" if it can."""
    limits = tag.constraints
    if page.address == FOREIGN:
        return "memory of the host, which no device of this machine sees"
    if route.pool is not None:
        translator = route.pool.translator
        reached = translator.reach.covers(page.address, page.address + page.size - 1)
        return "" if reached else f"no entry of {translator.name} can name it"
    address = page.address + route.shift
    if not 0 <= address <= MAX_ADDRESS - page.size:
        return "outside the windows of its bridges"
    if address % tag.domain.page_size and address % limits.alignment.value:
        return f"not aligned to {limits.alignment.value}, set by tag {limits.alignment.origin!r}"
    return limits.why_not(address, address + page.size - 1)


def _taken(limits: Constraints, layout: Layout, name: str) -> str:
    """Why a piece that is reached cannot stay beside its neighbours."""
    if name == "line":
        return f"shares a cache line of {layout.line} bytes with other data, and the device may write it"
    limit: Limit = getattr(limits, name)
    words = "not aligned to" if name == "alignment" else "does not end or begin at a multiple of"
    return f"{words} {limit.value}, set by tag {limit.origin!r}"


def _joined(limits: Constraints, name: str, words: str = "joined into one run") -> str:
    limit: Limit = getattr(limits, name)
    return f"{words}: {name} is {limit.value}, set by tag {limit.origin!r}"
