"""The table of a map's life is total, and says the same in code, words and documentation."""

from __future__ import annotations

from itertools import product

import pytest

from busdma import lifecycle
from busdma.errors import MapStateError
from busdma.lifecycle import LIFE, REFUSALS, SYNCS, Event, Owner, State, after, refusal
from busdma.sync import Direction, SyncOp

#: The whole table once more, as a picture: rows are events, columns the states; "." is a refusal.
PICTURE = """
              idle       waiting    loaded       quarantined  destroyed
load          loaded     .          .            .            .
defer         waiting    .          .            .            .
grant         .          loaded     .            .            .
give up       .          idle       .            .            .
sync          .          .          loaded       .            .
unload        .          .          idle         .            .
quarantine    .          .          quarantined  quarantined  .
report idle   idle       waiting    loaded       idle         .
destroy       destroyed  .          .            .            .
"""
ROWS = [line for line in PICTURE.splitlines() if line]
COLUMNS = [State[word.upper()] for word in ROWS[0].split()]
DRAWN = {Event(line[:14].strip()): line[14:].split() for line in ROWS[1:]}


def test_the_picture_has_every_event_and_state() -> None:
    assert set(COLUMNS) == set(State)
    assert set(DRAWN) == set(Event) == set(LIFE)
    assert set(REFUSALS) == set(State)


@pytest.mark.parametrize(("event", "state"), list(product(Event, State)), ids=lambda item: item.name.lower())
def test_every_event_in_every_state_leads_somewhere_or_is_refused_in_words(event: Event, state: State) -> None:
    drawn = DRAWN[event][COLUMNS.index(state)]
    if drawn == ".":
        with pytest.raises(MapStateError) as caught:
            after(event, state, "map 'x' of tag root")
        words = str(caught.value)
        assert words == f"cannot {event.value} map 'x' of tag root: {refusal(event, state)}"
        assert "; " in refusal(event, state)
    else:
        assert after(event, state, "map 'x' of tag root") is State[drawn.upper()]


def test_every_state_can_be_reached_and_all_but_the_last_can_be_left() -> None:
    moves = {(state, following) for row in LIFE.values() for state, following in row.items() if state != following}
    assert {following for _, following in moves} == set(State)
    assert {state for state, _ in moves} == set(State) - {State.DESTROYED}


def test_the_documentation_names_every_state() -> None:
    assert lifecycle.__doc__ is not None
    rows = [line.split()[0] for line in lifecycle.__doc__.splitlines() if line and not line[0].isspace()]
    assert [row for row in rows if row in {state.name.lower() for state in State}] == [s.name.lower() for s in State]


@pytest.mark.parametrize("mask", range(16))
def test_syncs_are_the_pure_combinations(mask: int) -> None:
    op = SyncOp(mask)
    pre = bool(op & (SyncOp.PREREAD | SyncOp.PREWRITE))
    post = bool(op & (SyncOp.POSTREAD | SyncOp.POSTWRITE))
    assert (mask in SYNCS) == (pre != post)
    if mask in SYNCS:
        effect = SYNCS[op]
        assert effect.to_device == pre
        assert effect.owner is (Owner.DEVICE if pre else Owner.CPU)
        assert effect.copy_out == pre
        assert effect.copy_in == bool(op & SyncOp.POSTREAD)


def test_no_mask_beyond_the_sixteen_is_legal() -> None:
    assert set(SYNCS) <= set(range(16))


@pytest.mark.parametrize("direction", list(Direction))
def test_the_syncs_of_a_direction_are_legal_and_pair_up(direction: Direction) -> None:
    assert SYNCS[direction.pre].to_device
    assert not SYNCS[direction.post].to_device
    reads = bool(direction.pre & SyncOp.PREREAD)
    assert reads == SYNCS[direction.post].copy_in == bool(direction.post & SyncOp.POSTREAD)
    assert bool(direction.pre & SyncOp.PREWRITE) == bool(direction.post & SyncOp.POSTWRITE)
