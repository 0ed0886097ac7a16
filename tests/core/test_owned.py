"""The smallest range known to hold what was put in: never less than that, and as little as ends tell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from busdma.owned import OwnedRange

spans = st.tuples(st.integers(0, 12), st.integers(1, 8)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(st.tuples(st.booleans(), spans), max_size=12))
def test_any_script_against_a_set(script: list[tuple[bool, tuple[int, int]]]) -> None:
    owned, hull, model = OwnedRange(), range(0), set[int]()
    for put, (lo, hi) in script:
        if put:
            owned.add(lo, hi)
            model |= set(range(lo, hi))
            hull = range(min(lo, hull.start), max(hi, hull.stop)) if hull else range(lo, hi)
        else:
            owned.remove(lo, hi)
            model -= set(range(lo, hi))
            left = [at for at in hull if not lo <= at < hi]
            hull = range(left[0], left[-1] + 1) if left else range(0)
        assert range(owned.lo, owned.hi) == hull
        assert model <= set(hull)
        assert bool(owned.hi) is bool(hull)
    owned.clear()
    assert (owned.lo, owned.hi) == (0, 0)
