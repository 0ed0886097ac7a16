"""The chain: try where the buffer lies, then each mechanism in order. Never waits.

Source: bus_dma.c's pattern (clear the result, try direct, then bounce); Thorpe's window chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from busdma.buffers import Buffer
from busdma.errors import BufferGone, MappingRefused, ResourceShortage, ShortageReason, TooManySegments
from busdma.mechanisms import Holder, Mechanism, Shortage, Unreachable
from busdma.pool import in_words
from busdma.segments import NOT_MAPPED, Segmenter

if TYPE_CHECKING:
    from busdma.map import Map

_ADVICE: Final[Mapping[ShortageReason, str]] = {
    ShortageReason.BUSY: "others will give it back; wait with load(), or try again after an unload",
    ShortageReason.FRAGMENTED: "enough is free, but not in one run; wait with load(), or allow more segments",
    ShortageReason.LEAK: "what is missing is in quarantine; reset the device, then call report_idle() of its tag",
    ShortageReason.TOO_LARGE: "it may never hold so much; raise its limit, or split the transfer",
}


def place(
    segmenter: Segmenter, buffer: Buffer, others: Sequence[Mechanism], answer: int, map: Map
) -> Holder | Shortage:
    """Who placed the buffer after ``segmenter.load`` answered `answer`, or the first shortage.

    `others`: the map's chain; direct, which ``segmenter.load`` has tried, is none of it. BufferGone for a page that is
    not mapped, MappingRefused or TooManySegments, with every reason, for what can never be loaded.
    """
    if answer == NOT_MAPPED:
        page = segmenter.fault - buffer.start // segmenter.page
        raise BufferGone(f"cannot load {buffer.describe()} into {map}: its page {page} is not mapped")
    shortage: Shortage | None = None
    refusals: list[Unreachable] = []
    for mechanism in others:
        try:
            outcome = mechanism.place(segmenter, buffer, answer)
        except ResourceShortage as error:
            raise ResourceShortage(f"cannot load {buffer.describe()} into {map}: {error}", error.reason) from None
        if outcome is None:
            return mechanism
        if isinstance(outcome, Unreachable):
            refusals.append(outcome)
        else:
            shortage = shortage or outcome
    if shortage is not None:
        return shortage
    refusals.insert(0, map.direct.why_not(answer))
    reasons = "; ".join(f"{refusal.mechanism}: {refusal.reason(segmenter)}" for refusal in refusals)
    kind = TooManySegments if any(refusal.too_many_segments for refusal in refusals) else MappingRefused
    raise kind(f"cannot load {buffer.describe()} into {map}: {reasons}")


def shortage_error(shortage: Shortage, who: str) -> ResourceShortage:
    """The error for a face that does not wait."""
    need = next((n for n in shortage.needs if n.pool.waiting), shortage.needs[0])
    reason = need.pool.shortage(need.amount)
    waiting = f", {need.pool.waiting} waiting before it" if need.pool.waiting else ""
    return ResourceShortage(f"{who} needs {in_words(need)} ({reason.value}{waiting}): {_ADVICE[reason]}", reason)
