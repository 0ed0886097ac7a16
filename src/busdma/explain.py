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
_CRAMPED: Final = "too many segments, and nothing joins them"
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
    bus_pages: int = 0  #: of a translator, with those that only a bridge sees that reads ahead

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
    last, longest = said[-1], tag.constraints.maxsize
    if last.verdict.startswith(_REFUSED):
        verdicts = dict.fromkeys(each.verdict.removeprefix(_REFUSED) for each in said)
        last = replace(last, verdict=_REFUSED + "; ".join(verdicts))
    why = ""  # what is no matter of where it lies
    if buffer.length > longest.value:
        why = f"longer than maxsize {longest.value}, set by tag {longest.origin!r}"
    elif buffer.length < 1:
        why = "it is empty, there is nothing to transfer"
    elif buffer.readonly and direction is not Direction.TO_DEVICE:
        why = f"it is read-only, and cannot be loaded {direction.label}"
    return replace(last, verdict=_REFUSED + why) if why else last


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
            crowded = crowded or (isinstance(planned, Unreachable) and all(_stays(each, pieces, direction)[1]))
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
    reasons: list[str] = []
    for page in pages:
        reason = _reason(tag, route, page)
        if run is not None and run.first <= page.number < run.first + run.pages and not reason:
            name = "nsegments" if answer == TOO_MANY or limits.alignment.value <= size else "alignment"
            reason = _joined(limits, "joint" if shifted(buffer, limits, size) else name)
        reasons.append(reason)
    count, copy = sum(map(bool, reasons)), "bounce"
    if answer > 0:
        verdict = f"{_segments(answer)}, nothing bounced"
    elif bounce is None:
        verdict, copy = f"{_REFUSED}no memory of this machine lies within reach, so nothing can be bounced", "refused"
    elif crowded and run is None:
        most, copy = limits.nsegments, "refused"
        verdict = f"{_REFUSED}more than {most.value} segments (tag {most.origin!r}), and no run joins them"
        reasons = [reason or _joined(limits, "nsegments", _CRAMPED) for reason in reasons]
    elif count > bounce.zone.limit:
        verdict = f"{_REFUSED}{count} bounce pages needed, and {bounce.zone.name} may hold {bounce.zone.limit}"
    else:
        verdict = f"{count} of {len(pages)} pages bounce"
    fates: list[PageFate] = []
    for page, reason in zip(pages, reasons, strict=True):
        address = None if reason else page.address + route.shift
        fates.append(PageFate(page.number, page.offset, page.size, copy if reason else route.name, address, reason))
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
    limits, pool = tag.constraints, mechanism.pool
    layout, stays = _stays(mechanism, pieces, direction)
    bus_pages, cramped, copy = 0, "", "bounce" if pool is None else "bounce+remap"
    if isinstance(planned, Unreachable):
        copied, copy = {at: False for at, stay in enumerate(stays) if not stay}, "refused"  # pieces; and is it joined?
        slots = sum(page.piece in copied for page in pages)
        verdict = f"{_REFUSED}{mechanism.name}: {planned.reason(segmenter)}"
        cramped = _joined(limits, "nsegments", _CRAMPED) if planned.too_many_segments else ""
    else:
        plan, needs, never = planned
        copied = {at: each.joined for each in plan.stretches if each.copied for at in range(each.first, each.end)}
        slots, count = plan.slots, sum(page.piece in copied for page in pages)
        verdict = f"{count} of {len(pages)} pages bounce" if count else f"{_segments(plan.segments)}, nothing bounced"
        if pool is not None:
            bus_pages = needs[-1].amount
            verdict += f", through {in_words(needs[-1])}"
        if never is not None:
            verdict = f"{_REFUSED}{mechanism.name}: {too_much(never)}"
    first = tag._ways[0][0]
    otherwise = (
        "" if mechanism.route.span == first.span else _joined(limits, "nsegments", _CROWDED) if crowded else _REST
    )
    fates: list[PageFate] = []
    for page in pages:
        at, name, address = page.piece, mechanism.name, None
        if at in layout.taken:
            reason = _taken(limits, layout, layout.taken[at])
        elif not stays[at]:
            reason = _reason(tag, mechanism.route, page)
        elif at in copied:
            reason = _joined(limits, "nsegments") if copied[at] else _PACKED
        else:
            reason = cramped or (otherwise and (_reason(tag, first, page) or otherwise))
            address = page.address + mechanism.route.shift if pool is None and not cramped else None
        if at in copied or cramped:
            name = copy
        fates.append(PageFate(page.number, page.offset, page.size, name, address, reason))
    return _sum(tag, buffer, fates, slots, mechanism.zone, verdict, bus_pages)


def _stays(mechanism: Composed, pieces: list[Piece], direction: Direction) -> tuple[Layout, list[bool]]:
    """Which pieces stay, were there any number of segments; and what takes out those that the route reaches."""
    layout, stays = mechanism.layout(direction), [mechanism.reaches(piece.address, piece.size) for piece in pieces]
    layout.split(pieces, stays)
    return layout, stays


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


def _segments(count: int) -> str:
    return "1 segment" if count == 1 else f"{count} segments"
