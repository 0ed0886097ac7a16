"""Whose a tag is: an attachment's tag has its device's name, and all that a driver derives is below it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from busdma.tag import Tag


class Whose:
    """Asks of tags which of `devices` they are of, and remembers the answers."""

    def __init__(self, devices: Collection[str]) -> None:
        self._devices = devices
        self._known: dict[Tag, str] = {}

    def device(self, tag: Tag) -> str:
        """The name of the device whose tag it is; "" for no device's."""
        name = self._known.get(tag)
        if name is None:
            at: Tag | None = tag
            while at is not None and at.name not in self._devices:
                at = at.parent
            name = self._known[tag] = "" if at is None else at.name
        return name
