"""How software programs translation hardware: `busdma.mechanisms.translation.Translator` for each kind.

A translator knows the format of the tables and the registers that matter, and nothing else: it works on a memoryview of
the table and on a handle on the registers. So it is the same whoever is behind them, a simulated device or a real one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HardwareFault:
    """What the hardware reports of an access that it refused. None: it does not say."""

    address: int  #: a bus address; some hardware gives the page only
    write: bool | None = None
    source: int | None = None  #: who it was, where the hardware knows: PCI bus << 8 | device << 3 | function
    code: int | None = None  #: the hardware's own word for why
