"""The chain: try where the buffer lies, then each mechanism in order. Never waits.

Source: bus_dma.c's pattern (clear the result, try direct, then bounce); Thorpe's window chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from busdma.buffers import Buffer, LinearBuffer
from busdma.errors import BufferGone, MappingRefused, ResourceShortage, ShortageReason, TooManySegments
from busdma.lists import ElementList
from busdma.mechanisms import Chain, Holder, Shortage, Unreachable
from busdma.pool import in_words
from busdma.segments import NOT_MAPPED, Segmenter
from busdma.sync import Direction
from busdma.tracebacks import hidden

if TYPE_CHECKING:
    from busdma.map import Map

__tracebackhide__ = hidden

_ADVICE: Final[Mapping[ShortageReason, str]] = {
    ShortageReason.BUSY: "others will give it back; wait with load(), or try again after an unload",
    ShortageReason.FRAGMENTED: "enough is free, but not in one run; wait with load(), or allow more segments",
    ShortageReason.LEAK: "what is missing is in quarantine; reset the device, then call report_idle() of its tag",
    ShortageReason.TOO_LARGE: "it may never hold so much; raise its limit, or split the transfer",
}


def place(
    segmenter: Segmenter, buffer: Buffer, chain: Chain, answer: int, direction: Direction, map: Map
) -> Holder | Shortage | None:
    """Who placed the buffer after ``segmenter.load`` answered `answer`, or the first shortage.

    None: it lies where it is, after all. BufferGone for a page that is not mapped, MappingRefused or TooManySegments,
    with every reason, for what can never be loaded.
    """
    several = isinstance(buffer, ElementList)
    if answer == NOT_MAPPED and not several:
        answer = _fetch(segmenter, buffer, map)
        if answer > 0:
            return None
    shortage: Shortage | None = None
    failure: ResourceShortage | None = None
    refusals: list[Unreachable] = []
    for mechanism in chain.lists if several else chain.linear:
        try:
            outcome = mechanism.place(segmenter, buffer, answer, direction)
        except ResourceShortage as error:  # waiting for it is useless; but the next may do
            failure = failure or error
            continue
        if isinstance(outcome, Unreachable):
            refusals.append(outcome)
        elif isinstance(outcome, Shortage):
            shortage = shortage or outcome
        else:
            return outcome
    if shortage is not None:
        return shortage
    if failure is not None:
        raise ResourceShortage(f"cannot load {buffer.describe()} into {map}: {failure}", failure.reason)
    if not several and map.direct is not None:
        refusals.insert(0, map.direct.why_not(answer))
    reasons = "; ".join(dict.fromkeys(f"{refusal.mechanism}: {refusal.reason(segmenter)}" for refusal in refusals))
    kind = TooManySegments if any(refusal.too_many_segments for refusal in refusals) else MappingRefused
    raise kind(f"cannot load {buffer.describe()} into {map}: {reasons or 'no memory of this machine is within reach'}")


def _fetch(segmenter: Segmenter, buffer: Buffer, map: Map) -> int:
    """Load again, once pages of a process that were paged out are back. BufferGone: it is not mapped at all."""
    if isinstance(buffer, LinearBuffer):
        buffer.space.page_in(buffer.start, buffer.length)  # or the pager has just thought better of it
        answer = segmenter.load(buffer.frames, buffer.start, buffer.length)
        if answer != NOT_MAPPED:
            return answer
    page = segmenter.fault - buffer.start // segmenter.page
    raise BufferGone(f"cannot load {buffer.describe()} into {map}: its page {page} is not mapped; give memory that is")


def shortage_error(shortage: Shortage, who: str) -> ResourceShortage:
    """The error for a face that does not wait."""
    short = (n for n in shortage.needs if n.pool.waiting or not n.ready())
    need = next(short, shortage.needs[0])
    reason = need.pool.shortage(need.amount)
    waiting = f", {need.pool.waiting} waiting before it" if need.pool.waiting else ""
    return ResourceShortage(f"{who} needs {in_words(need)} ({reason.value}{waiting}): {_ADVICE[reason]}", reason)
