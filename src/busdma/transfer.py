"""One transfer as a ``with`` block: load and PRE sync on the way in, POST sync and unload on the way out.

Left by an exception while the device may own bytes, nothing is synced or unloaded: map and pages are quarantined until
the driver reports the device idle or reset (`Tag.report_idle`).
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from busdma.errors import DriverError
from busdma.result import Segments
from busdma.sync import Direction
from busdma.tracebacks import hidden

if TYPE_CHECKING:
    from busdma.map import Map
    from busdma.tag import Tag

__tracebackhide__ = hidden


class Transfer:
    """Returned by `Tag.transfer`; enter it with ``with`` (blocking) or ``async with`` (awaiting), once."""

    __slots__ = ("_buffer", "_deadline", "_direction", "_entered", "_map", "_tag")

    def __init__(self, tag: Tag, buffer: object, direction: Direction, deadline: int | None) -> None:
        self._tag = tag
        self._buffer = buffer
        self._direction = direction
        self._deadline = deadline
        self._map: Map | None = None
        self._entered = False

    def __enter__(self) -> Segments:
        map = self._borrow()
        try:
            map.load_blocking(self._buffer, self._direction, deadline=self._deadline)
        except BaseException:
            self._leave(map)
            raise
        return self._begin(map)

    async def __aenter__(self) -> Segments:
        map = self._borrow()
        try:
            await map.load(self._buffer, self._direction, deadline=self._deadline)
        except BaseException:
            self._leave(map)
            raise
        return self._begin(map)

    def _borrow(self) -> Map:
        if self._entered:
            raise DriverError(f"a transfer of tag {self._tag.path} was entered twice: make one for each load")
        map = self._tag._borrow()
        self._entered = True
        return map

    def _begin(self, map: Map) -> Segments:
        try:
            map.sync(self._direction.pre)
        except BaseException:
            self._leave(map)
            raise
        self._map = map
        return map.segments

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        map, self._map = self._map, None
        assert map is not None
        try:
            if kind is None:
                map.sync(self._direction.post)
                map.unload()
        finally:
            self._leave(map)

    def _leave(self, map: Map) -> None:
        map.abandon()  # of an unloaded map: nothing
        self._tag._give_back(map)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
