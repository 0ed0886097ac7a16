"""Direct: what you see is what you get. A bus address is the physical address, or that and a constant (a window).

Nothing is allocated. The segmenter itself places such loads, in one call; this module only says why it could not.

Source: Thorpe, USENIX 1998, section 2 (WYSIWYG); Gibbs: a no-op mapping costs no per-transaction resource.
"""

from __future__ import annotations

from busdma.constraints import Constraints
from busdma.mechanisms import Unreachable
from busdma.segments import TOO_MANY, Segmenter


class Direct:
    """One tag's words for it. It is always tried first, so it is no link of the chain."""

    def __init__(self, constraints: Constraints, name: str = "direct") -> None:
        self.name = name  #: ``window`` behind a bridge that adds a constant
        self._constraints = constraints
        self._crowded = Unreachable(self.name, self._too_many, too_many_segments=True)
        self._unreachable = Unreachable(self.name, self._out_of_reach)

    def why_not(self, answer: int) -> Unreachable:
        """Why ``segmenter.load``, which answered `answer`, could not place a buffer where it lies."""
        return self._crowded if answer == TOO_MANY else self._unreachable

    def _too_many(self, segmenter: Segmenter) -> str:
        limit = self._constraints.nsegments
        return f"{segmenter.wanted} segments, but at most {limit.value} allowed by tag {limit.origin!r}"

    def _out_of_reach(self, segmenter: Segmenter) -> str:
        pages = "1 page" if segmenter.needed == 1 else f"{segmenter.needed} pages"
        alignment = self._constraints.alignment
        askew = f" or not aligned to {alignment.value} (tag {alignment.origin!r})" if alignment.value > 1 else ""
        return f"{pages} out of reach{askew}: {self._constraints.summary()}"
