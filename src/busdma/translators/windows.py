"""The windows of Alpha host bridges: four of them, each a power of two from 1 MiB to 4 GiB.

Source: the manuals that `busdma.translators.cia` and `busdma.translators.tsunami` name.
"""

from __future__ import annotations

from typing import Final

from busdma.errors import ConfigurationError

GRAIN: Final = 1 << 20
PAGE: Final = 8192
ENABLED, SCATTER = 0x1, 0x2  # in a window's base


def check_window(name: str, number: int, base: int, size: int, target: int, flags: int) -> None:
    """ConfigurationError unless the bridge `name` can have its window `number` lead from `base` to `target`.

    That is a physical address, or with SCATTER in `flags` the table's, which has 8 bytes for each 8 KiB.
    """
    alignment = size // PAGE * 8 if flags & SCATTER else size
    if number not in range(4) or size < GRAIN or size & (size - 1) or base % size or target % alignment:
        raise ConfigurationError(
            f"{name}: window {number} of {size:#x} bytes from {base:#x} to {target:#x}: give a number from 0 to 3, a "
            f"power of two of at least {GRAIN:#x}, a base that is a multiple of it, and a target that is one of "
            f"{alignment:#x}"
        )
