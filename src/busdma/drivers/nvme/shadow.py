"""Shadow doorbells: told of in memory what the controller would be told of at a register, which it need not always be.

Two pages, laid out as the doorbell registers are. In one the driver stores what it would have written to the register.
In the other the controller says up to where it will look by itself, its event index: only a value that passes it is
written to the register too. Controllers that are emulated offer this, as such a write costs them most.

Source: NVM Express Base Specification 1.4, 5.7 (Doorbell Buffer Config), 7.13 (updating doorbells), annex B.5.
"""

from __future__ import annotations

import sys
from typing import Final

from busdma.drivers.nvme.layout import PAGE
from busdma.machine.fence import store_load_fence
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from busdma.tag import Tag

SIZE: Final = 4  #: bytes of a doorbell
_SWAP: Final = sys.byteorder == "big"


class ShadowDoorbells:
    """The doorbells of one controller's I/O queues. The caller holds the driver's lock.

    `tag`: for memory that begins at a page; `stride`: bytes from doorbell to doorbell.
    """

    def __init__(self, tag: Tag, stride: int) -> None:
        self._stride = stride
        self.shadows = tag.alloc(PAGE)
        try:
            self.events = tag.alloc(PAGE)
        except BaseException:
            self.shadows.free()
            raise
        # A word is stored and loaded at once, and not byte by byte: the other side may look at any time.
        self._told, self._heard = (memory.view.cast("B").cast("I") for memory in (self.shadows, self.events))
        self.shadows.sync(PREWRITE)
        self.events.sync(PREREAD)

    def clear(self) -> None:
        """As a controller takes them that has just been enabled: nothing told, nothing looked at."""
        self.take_back()
        for memory in (self.shadows, self.events):
            memory.view[:] = bytes(PAGE)
        self.shadows.sync(PREWRITE)
        self.events.sync(PREREAD)

    def take_back(self) -> None:
        """The controller uses them no more, or not yet."""
        self.shadows.sync(POSTWRITE)
        self.events.sync(POSTREAD)

    def covers(self, number: int) -> bool:
        """Has the page room for doorbell `number`, counted from the first?"""
        return (number + 1) * self._stride <= PAGE

    def tell(self, number: int, old: int, new: int) -> bool:
        """Doorbell `number` had the value `old`, and is to have `new`. True: the register has to be written too."""
        self.store(number, new)
        store_load_fence()  # or both could miss each other: the controller our value, and we its index
        at = number * self._stride
        self.events.sync(POSTREAD, at, SIZE)
        word = self._heard[at // SIZE]
        self.events.sync(PREREAD, at, SIZE)
        return passes(_swapped(word), old, new)

    def store(self, number: int, value: int) -> None:
        """Doorbell `number` is to have that value, and the register is written whatever the controller wants."""
        at = number * self._stride
        self.shadows.sync(POSTWRITE, at, SIZE)
        self._told[at // SIZE] = _swapped(value)
        self.shadows.sync(PREWRITE, at, SIZE)

    def free(self) -> None:
        """Give the memory back."""
        self._told.release()
        self._heard.release()
        self.shadows.free()
        self.events.free()


def passes(event: int, old: int, new: int) -> bool:
    """Does a doorbell that goes from `old` to `new` pass the event index? All count modulo 2¹⁶ (annex B.5).

    >>> passes(7, 7, 8), passes(6, 7, 8), passes(9, 7, 8)
    (True, False, False)

    A queue of 32 begins again at 0:

    >>> passes(31, 30, 2), passes(1, 30, 2), passes(2, 30, 2), passes(29, 30, 2)
    (True, True, False, False)
    """
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


def _swapped(word: int) -> int:
    return int.from_bytes(word.to_bytes(SIZE, "little"), "big") if _SWAP else word
