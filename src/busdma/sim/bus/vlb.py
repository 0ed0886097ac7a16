"""The VESA local bus: 32 address wires for the cards in its slots, beside an ISA bus whose ports it shares.

So all there is to model are the ways of addresses. A sound card's is ``Wires(WIRES)``. The BT-445S has a bug: with
firmware before 3.37 and its BIOS switched on, the board looks at the lower 24 wires alone where they name its own ROM
of 16 KiB, or page 0. An address above 16 MiB that is in one of these modulo 16 MiB goes to the place below 16 MiB that
the lower wires name. So the wrong bytes are read, and the wrong bytes are overwritten.

Source: VESA VL-Bus Standard 1.0 (A2 to A31). For the bug, Gibbs, tech-kern 10 June 1998, part 3, and the bt(4) driver
of the time: they say which addresses are hit. That the bytes come from and go to the address modulo 16 MiB is this
model's choice; all that is recorded is "corruption of transfers".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from busdma.sim.bus.master import Wires

WIRES: Final = 32
PERIOD: Final = 1 << 24  #: what the lower 24 wires can tell apart
PAGE: Final = 4096
ROM: Final = 16 << 10


class Bt445sWires(Wires):
    """The route of a BT-445S with the bug and its ROM at `bios`. `strays` counts the pieces that went astray."""

    def __init__(self, bios: int) -> None:
        super().__init__(WIRES)
        self._bios = bios
        self.strays = 0

    def pieces(self, address: int, length: int, write: bool) -> Iterator[tuple[int | None, int]]:
        """As `Route.pieces`: cut at pages, where its way may change."""
        for at, count in super().pieces(address, length, write):
            assert at is not None
            end = at + count
            while at < end:
                here = min(PAGE - at % PAGE, end - at)
                low = at % PERIOD
                if at >= PERIOD and (low < PAGE or self._bios <= low < self._bios + ROM):
                    self.strays += 1
                    yield low, here
                else:
                    yield at, here
                at += here
