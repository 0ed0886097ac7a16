"""The switch through which the drivers' calls go, and the ways to make one wrong.

Of a call that never comes: *delete*. Of a sync: *late*, when the device has begun already; *pre-post*, at the other
time; *other-way*, *only-read*, *only-write*, for other accesses; *first-byte*, *last-byte* and *half*, of which it
leaves out so much. Of a load: *to_device*, *from_device* and *both*, another way; *last-byte* and *half*, shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from busdma.errors import BusdmaError
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp

MOST_CALLS: Final = 20_000  #: in one job: it runs in circles
LATE: Final = 200_000_000  #: ns: within that time every device has begun

PRE: Final = PREREAD | PREWRITE
READS: Final = PREREAD | POSTREAD
OTHER_WAY: Final = {PREREAD: PREWRITE, PREWRITE: PREREAD, POSTREAD: POSTWRITE, POSTWRITE: POSTREAD}
OTHER_TIME: Final = {PREREAD: POSTREAD, PREWRITE: POSTWRITE, POSTREAD: PREREAD, POSTWRITE: PREWRITE}

Arguments = Mapping[str, Any]  #: of a call, by the names of its parameters


class Hung(BaseException):
    """A job does not end. No `Exception`: a driver must not take it for one of its own troubles."""


class Wrong(NamedTuple):
    """A call made wrong: with these arguments instead; never; or late."""

    instead: Arguments = MappingProxyType({})
    never: bool = False
    late: bool = False


NEVER: Final = Wrong(never=True)


def wrong_syncs(owner: Any, right: Arguments) -> dict[str, Wrong]:
    """Of ``owner.sync(op, offset, length)``; `owner` is a map or DMA-safe memory."""
    ways = {"delete": NEVER}
    if not isinstance(right.get("op"), SyncOp):
        return ways
    op, offset, length = (right[name] for name in ("op", "offset", "length"))
    if length is None:
        length = _size(owner if hasattr(owner, "__len__") else owner.buffer) - offset
    ways["pre-post"] = Wrong({"op": SyncOp(sum(other for each, other in OTHER_TIME.items() if op & each))})
    if op & PRE:
        ways["late"] = Wrong({"length": length}, late=True)
    if op in OTHER_WAY:
        ways["other-way"] = Wrong({"op": OTHER_WAY[op]})
    else:
        ways["only-read"] = Wrong({"op": op & READS})
        ways["only-write"] = Wrong({"op": op & ~READS})
    if length > 1:
        ways["last-byte"] = Wrong({"length": length - 1})
        ways["first-byte"] = Wrong({"offset": offset + 1, "length": length - 1})
    if length > 2:
        ways["half"] = Wrong({"length": length // 2})
    return ways


def wrong_loads(owner: Any, right: Arguments) -> dict[str, Wrong]:
    """Of ``owner.load(buffer, direction)`` in all its forms; `owner` is a map."""
    ways = _shorter(right)
    for other in Direction:
        if other is not right.get("direction", other):
            ways[other.name.lower()] = Wrong({"direction": other})
    return ways


def wrong_transfers(owner: Any, right: Arguments) -> dict[str, Wrong]:
    """Of ``owner.transfer(buffer, to_device=, from_device=)``; `owner` is a tag."""
    ways = _shorter(right)
    for name, out, back in (("to_device", True, False), ("from_device", False, True), ("both", True, True)):
        if (out, back) != (right.get("to_device", out), right.get("from_device", back)):
            ways[name] = Wrong({"to_device": out, "from_device": back})
    return ways


def wrong_unloads(owner: Any, right: Arguments) -> dict[str, Wrong]:
    """Of ``owner.unload()``."""
    return {"delete": NEVER}


METHODS: Final[Mapping[str, Callable[[Any, Arguments], dict[str, Wrong]]]] = {
    "sync": wrong_syncs,
    "load": wrong_loads,
    "load_nowait": wrong_loads,
    "load_blocking": wrong_loads,
    "load_callback": wrong_loads,
    "transfer": wrong_transfers,
    "unload": wrong_unloads,
}


def _shorter(right: Arguments) -> dict[str, Wrong]:
    buffer: Any = right.get("buffer")
    try:
        size = _size(buffer)
        cuts = {"last-byte": size - 1, "half": size // 2} if size > 2 else {"last-byte": 1} if size > 1 else {}
        return {name: Wrong({"buffer": buffer[:cut]}) for name, cut in cuts.items()}
    except (AttributeError, TypeError, BusdmaError):
        return {}  # no such buffer can be cut


def _size(buffer: Any) -> int:
    size: int = buffer.length if hasattr(buffer, "length") else len(buffer)
    return size


class Switch:
    """Every call goes through it. With no mutant set it notes in what ways each could be made wrong."""

    def __init__(self) -> None:
        self.set()

    def set(self, site: str = "", how: str = "") -> None:
        """From here on, make the call of that name wrong in this way; none without a name."""
        self._site, self._how, self._calls = site, how, 0
        self.seen: dict[str, set[str]] = {}  #: by call: the ways in which it could be made wrong

    def __call__(self, site: str, call: Any, /, *args: Any, **options: Any) -> Any:
        """``call(*args, **options)``, or what is wrong instead."""
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise Hung("too many calls")
        if self._site not in ("", site):
            return call(*args, **options)
        right = signature(call).bind(*args, **options)
        right.apply_defaults()
        ways = METHODS[call.__name__](call.__self__, right.arguments)
        if not self._site:
            self.seen.setdefault(site, set()).update(ways)
        wrong = ways.get(self._how)
        if wrong is None:
            return call(*args, **options)
        if wrong.never:
            return None
        right.arguments.update(wrong.instead)
        doing = partial(call, *right.args, **right.kwargs)
        return _later(call.__self__, doing) if wrong.late else doing()


def _later(owner: Any, doing: Callable[[], object]) -> None:
    """Call it when the device has been told already."""
    runtime = owner.tag.domain.runtime

    def late() -> None:
        with suppress(BusdmaError):  # the checker has heard of it
            doing()

    runtime.call_at(runtime.now() + LATE, late)
