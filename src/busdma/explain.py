"""How a buffer would map, page by page, and whose limit decided it. Loads nothing and holds nothing.

For people and for ``busdma explain``; a driver has no use for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from busdma.buffers import Buffer
from busdma.constraints import Limit
from busdma.errors import BufferGone
from busdma.mechanisms.bounce import Bounce
from busdma.mechanisms.runs import plan_run, shifted
from busdma.segments import ABSENT, FOREIGN, TOO_MANY, UNREACHABLE

if TYPE_CHECKING:
    from busdma.tag import Tag


@dataclass(frozen=True, slots=True)
class PageFate:
    """One page of the buffer."""

    page: int  #: counted from the buffer's first
    offset: int  #: of its first byte in the buffer
    length: int
    mechanism: str  #: ``direct``, ``bounce`` or ``refused``
    bus_address: int | None  #: where it lies, if it stays there
    reason: str  #: which tag's which limit decided; "" for direct


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


def explain(tag: Tag, buffer: Buffer) -> Explanation:
    """What `Map.load` of `buffer` would do on a map of `tag`, were every pool free."""
    limits, page = tag.constraints, tag.domain.page_size
    gone = getattr(buffer, "gone", "")
    if gone:
        raise BufferGone(f"{buffer.describe()}: {gone}")
    bounce = next((m for m in tag._chain if isinstance(m, Bounce)), None)
    segmenter = tag._segmenter()
    answer = segmenter.load(buffer.frames, buffer.start, buffer.length)
    crowded = answer == TOO_MANY or (
        answer == UNREACHABLE
        and bounce is not None
        and (segmenter.wanted > limits.nsegments.value or bounce.moves_as_one(buffer))
    )
    run = plan_run(buffer, limits, page) if crowded else None
    fates: list[PageFate] = []
    index, head = divmod(buffer.start, page)
    offset = number = 0
    while offset < buffer.length:
        size = min(page - head, buffer.length - offset)
        reason, address = _why(tag, buffer, index, head, size)
        if run is not None and run.first <= number < run.first + run.pages and not reason:
            name = "nsegments" if answer == TOO_MANY or limits.alignment.value <= page else "alignment"
            if shifted(buffer, limits, page):
                name = "joint"
            limit: Limit = getattr(limits, name)
            reason = f"joined into one run: {name} is {limit.value}, set by tag {limit.origin!r}"
        mechanism = ("bounce" if bounce else "refused") if reason else "direct"
        fates.append(PageFate(number, offset, size, mechanism, None if reason else address, reason))
        offset, head, index, number = offset + size, 0, index + 1, number + 1
    pages = sum(fate.mechanism != "direct" for fate in fates)
    zone = bounce.zone if bounce else None
    verdict = f"{answer} segments, nothing bounced" if answer > 0 else f"{pages} of {len(fates)} pages bounce"
    if buffer.length > limits.maxsize.value:
        verdict = f"refused: longer than maxsize {limits.maxsize.value}, set by tag {limits.maxsize.origin!r}"
    elif answer < 1 and zone is None:
        verdict = "refused: no memory of this machine lies within reach, so nothing can be bounced"
    elif crowded and run is None:
        nsegments = limits.nsegments
        verdict = f"refused: more than {nsegments.value} segments (tag {nsegments.origin!r}), and no run joins them"
    elif zone is not None and pages > zone.limit:
        verdict = f"refused: {pages} bounce pages needed, and {zone.name} may hold {zone.limit}"
    return Explanation(
        tag.path, buffer.describe(), tuple(fates), pages, zone.name if zone else "", zone.limit if zone else 0, verdict
    )


def _why(tag: Tag, buffer: Buffer, index: int, head: int, size: int) -> tuple[str, int]:
    """Why a page cannot stay where it is ("" if it can), and its address."""
    limits = tag.constraints
    frame = buffer.frames.table[index]
    if frame == ABSENT:
        return "not mapped", 0
    if frame == FOREIGN:
        return "memory of the host, which no device of this machine sees", 0
    address = frame + head
    if head and address % limits.alignment.value:
        return f"not aligned to {limits.alignment.value}, set by tag {limits.alignment.origin!r}", address
    return limits.why_not(address, address + size - 1), address
