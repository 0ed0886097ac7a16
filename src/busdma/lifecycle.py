"""The life of a map, and who owns its bytes, as one table.

Everything that may happen to a map is an `Event`; `LIFE` says in which states it may happen and what comes next, and
`REFUSALS` says, in the words the error uses, why it may not. `SYNCS` says for each combination of sync operations what
is copied and who owns the bytes afterwards; a combination that is not there is illegal.

============  =============================================================
state         meaning
============  =============================================================
idle          nothing loaded
waiting       a load waits for a pool
loaded        the segments are valid
quarantined   its owner left while the device may still use the segments
destroyed     gone
============  =============================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from busdma.errors import MapStateError
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp
from busdma.tracebacks import hidden

__tracebackhide__ = hidden


class State(IntEnum):
    """Where a map is in its life."""

    IDLE = 0
    WAITING = 1
    LOADED = 2
    QUARANTINED = 3
    DESTROYED = 4


class Event(Enum):
    """What can happen to a map."""

    LOAD = "load"  #: a load that succeeds at once
    DEFER = "defer"  #: a load that has to wait
    GRANT = "grant"  #: its wait ended with a grant
    GIVE_UP = "give up"  #: its wait was cancelled, expired or refused
    SYNC = "sync"
    UNLOAD = "unload"
    QUARANTINE = "quarantine"
    REPORT_IDLE = "report idle"  #: the device no longer uses the segments
    DESTROY = "destroy"


LIFE: Final[dict[Event, dict[State, State]]] = {
    Event.LOAD: {State.IDLE: State.LOADED},
    Event.DEFER: {State.IDLE: State.WAITING},
    Event.GRANT: {State.WAITING: State.LOADED},
    Event.GIVE_UP: {State.WAITING: State.IDLE},
    Event.SYNC: {State.LOADED: State.LOADED},
    Event.UNLOAD: {State.LOADED: State.IDLE},
    Event.QUARANTINE: {State.LOADED: State.QUARANTINED, State.QUARANTINED: State.QUARANTINED},
    Event.REPORT_IDLE: {
        State.IDLE: State.IDLE,
        State.WAITING: State.WAITING,
        State.LOADED: State.LOADED,
        State.QUARANTINED: State.IDLE,
    },
    Event.DESTROY: {State.IDLE: State.DESTROYED},
}

REFUSALS: Final[dict[State, str]] = {
    State.IDLE: "nothing is loaded; load it first",
    State.WAITING: "a load is waiting on it; let that end, or cancel it",
    State.LOADED: "it is loaded; unload it first",
    State.QUARANTINED: "it is in quarantine; reset the device and report it idle first",
    State.DESTROYED: "it was destroyed; create another",
}


def refusal(event: Event, state: State) -> str:
    """Why that may not happen there, and what to do."""
    if (event, state) == (Event.UNLOAD, State.IDLE):
        return "it is not loaded; unload once after each load"
    return REFUSALS[state]


def after(event: Event, state: State, who: str, tag: str | None = None, map: str | None = None) -> State:
    """The state that follows, or MapStateError. `who` names the map in words, `tag` and `map` as the error's facts."""
    following = LIFE[event].get(state)
    if following is None:
        raise MapStateError(f"cannot {event.value} {who}: {refusal(event, state)}").about(tag=tag, map=map)
    return following


class Owner(Enum):
    """Who may touch a byte of a loaded map."""

    CPU = "cpu"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class SyncEffect:
    """What one sync does to its range."""

    to_device: bool  #: the device owns the bytes afterwards; False: the CPU does
    copy_out: bool
    copy_in: bool
    reads: bool  #: PREREAD, POSTREAD: the device may write the bytes from here on, or no more
    writes: bool  #: PREWRITE, POSTWRITE: it may read them

    @property
    def owner(self) -> Owner:
        """Who owns the bytes afterwards."""
        return Owner.DEVICE if self.to_device else Owner.CPU


def _effect(op: SyncOp) -> SyncEffect:
    """PREREAD copies out as well: what the device does not write keeps its value; nobody sees an earlier owner's."""
    before = bool(op & (PREREAD | PREWRITE))
    return SyncEffect(
        to_device=before,
        copy_out=before,
        copy_in=POSTREAD in op,
        reads=bool(op & (PREREAD | POSTREAD)),
        writes=bool(op & (PREWRITE | POSTWRITE)),
    )


SYNCS: Final[dict[int, SyncEffect]] = {
    int(op): _effect(op) for op in (PREREAD, PREWRITE, PREREAD | PREWRITE, POSTREAD, POSTWRITE, POSTREAD | POSTWRITE)
}

#: the rows of SYNCS that make sense for a map loaded one way, by ``Direction.number``
SYNCS_BY_DIRECTION: Final[tuple[dict[int, SyncEffect], ...]] = tuple(
    {op: effect for op, effect in SYNCS.items() if not op & ~(direction.pre | direction.post)}
    for direction in Direction
)
