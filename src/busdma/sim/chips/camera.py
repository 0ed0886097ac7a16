"""A camera that shows a test card: 525 lines 59.94 times a second, interlaced, each line known by what is in it.

The first eight pixels of a line are numbers: the picture's, the line's and a mark, as a time code in the picture. So
whoever finds a line in memory can tell whether it is where it belongs, and how old it is.

Source: ITU-R BT.470 (system M): 525 lines a picture in two fields of 262.5, 63.556 microseconds each. What it leaves
out: levels, sync pulses, half lines and colour.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

HALF_LINE: Final = 31_778  #: ns
LINE: Final = 2 * HALF_LINE
FIELD: Final = 525 * HALF_LINE  #: 262.5 lines
BLANKING: Final = 21  #: lines of a field before the first that shows something
LINES: Final = 480  #: of a picture that show something
PIXELS: Final = 768  #: of a line, at most
MARK: Final = 0xB848

_STAMP: Final = Struct("<IHH")
_RAMP: Final = bytes(range(256)) * (PIXELS // 256 + 1)


def line(picture: int, number: int, pixels: int) -> bytes:
    """Line `number` of picture `picture`, its first `pixels` pixels (8 to PIXELS), one byte each."""
    shade = (7 * picture + 3 * number) % 256
    return _STAMP.pack(picture & 0xFFFF_FFFF, number, MARK) + _RAMP[shade : shade + pixels - _STAMP.size]


def stamp(data: bytes | memoryview) -> tuple[int, int] | None:
    """The numbers of the picture and the line that begins `data`; None if no line of this camera does."""
    picture, number, mark = _STAMP.unpack_from(data)
    return (picture, number) if mark == MARK else None


class Camera:
    """The source of a video signal. It has been running since time 0, and goes on, unless ``signal`` is false."""

    def __init__(self) -> None:
        self.signal = True

    def field_at(self, now: int) -> int:
        """The first field that begins at `now` or later. Even numbers are odd fields: the first lines are theirs."""
        return -(-now // FIELD)

    def field_begins(self, field: int) -> int:
        """When it begins, in ns."""
        return field * FIELD

    def line_ends(self, field: int, index: int) -> int:
        """When line `index` of the field that shows something has been sent, in ns."""
        return field * FIELD + (BLANKING + index + 1) * LINE

    def send(self, field: int, index: int, pixels: int) -> bytes:
        """The pixels of that line."""
        return line(field // 2, 2 * index + field % 2, pixels)
