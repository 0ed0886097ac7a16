"""Bytes compared in words: where they differ first, and in how many places.

pytest would look for the best way to turn the one into the other. Of a few thousand bytes that takes hours, unless it
is cut short, which it is not where ``CI`` is set.
"""

from __future__ import annotations

from typing import Final

SHOWN: Final = 16


def difference(found: bytes | bytearray | memoryview, wanted: bytes | bytearray | memoryview) -> str:
    """How `found` differs from what is `wanted`; "" if it does not. For ``assert not difference(...)``."""
    mine, other = bytes(found), bytes(wanted)
    if mine == other:
        return ""
    common = min(len(mine), len(other))
    places = [at for at in range(common) if mine[at] != other[at]]
    first = places[0] if places else common
    here, there = mine[first : first + SHOWN], other[first : first + SHOWN]
    sizes = "" if len(mine) == len(other) else f"{len(mine)} bytes instead of {len(other)}; "
    return (
        f"{sizes}they differ first at byte {first}, in {len(places)} of {common}: "
        f"{here.hex(' ') or 'nothing'} instead of {there.hex(' ') or 'nothing'}"
    )
