"""Two copies of memory, of which at every moment one is right and the other is poison.

Bytes live on the CPU's side until a PRE sync moves them to the device's, and come back by a POST sync. Who looks on the
wrong side finds poison, on a coherent machine too: never the right bytes by luck. A store cannot be trapped, but it
leaves something else than poison, and so it is found when the bytes come back.

Poison depends on the address, so that a stretch of it is never a stretch of anything else.

A device that runs by itself may write into a ring at any moment, also while the driver looks at an entry, between POST
and PRE. On real hardware that is lost only where the CPU has stored as well. So what is fetched from such memory the
device keeps, and what it is then given are the bytes that the CPU has changed.
"""

from __future__ import annotations

from random import Random
from typing import Final

_PERIOD: Final = 1 << 16
_MOST: Final = 1 << 20
_POISON: Final = memoryview(Random(1998).randbytes(_PERIOD) * (_MOST // _PERIOD + 1))


def poison(address: int, length: int) -> memoryview:
    """What is found at physical addresses [address, address + length) on the wrong side; at most 1 MiB at once."""
    start = address % _PERIOD
    return _POISON[start : start + length]


def pieces(address: int, length: int) -> list[tuple[int, int]]:
    """[address, address + length) as (address, length) of at most 1 MiB."""
    if length <= _MOST:
        return [(address, length)]
    return [(at, min(_MOST, address + length - at)) for at in range(address, address + length, _MOST)]


def stored(mine: memoryview, address: int, theirs: memoryview) -> list[int]:
    """Which bytes of `mine`, spoilt as if they lay at `address`, the CPU has stored since; at most 1 MiB.

    What is `theirs`, the device's, was not stored but fetched.
    """
    seen, spoilt = mine.tobytes(), poison(address, len(mine)).tobytes()
    if seen == spoilt:
        return []
    right = theirs.tobytes()
    if seen == right:
        return []
    return [at for at, byte in enumerate(seen) if byte != spoilt[at] and byte != right[at]]


class Sides:
    """The CPU's copy of memory and the device's. Addresses are physical; the first byte of both has address `base`."""

    def __init__(self, cpu: memoryview, device: memoryview, base: int = 0) -> None:
        self.cpu = cpu
        self.device = device
        self.base = base
        self._looked: dict[tuple[int, int], bytes] = {}  # (address, length): what `look` fetched, and was not given yet

    def give(self, address: int, length: int) -> None:
        """The bytes go to the device; of what the CPU has only had a `look` at, those that it has changed."""
        for at, size in pieces(address, length):
            here = at - self.base
            seen = self._forget(at, size) if self._looked else None
            if seen is None:
                self.device[here : here + size] = self.cpu[here : here + size]
            else:
                for offset, byte in enumerate(self.cpu[here : here + size].tobytes()):
                    if byte != seen[offset]:
                        self.device[here + offset] = byte
            self.cpu[here : here + size] = poison(at, size)

    def look(self, address: int, length: int) -> None:
        """The bytes come back for a while, from a device that may go on writing them."""
        for at, size in pieces(address, length):
            here = at - self.base
            self._forget(at, size)
            self._looked[at, size] = seen = self.device[here : here + size].tobytes()
            self.cpu[here : here + size] = seen

    def fetch(self, address: int, length: int, keep: bool = False) -> None:
        """The bytes come back; `keep`: the device has them as well."""
        for at, size in pieces(address, length):
            here = at - self.base
            self.cpu[here : here + size] = self.device[here : here + size]
            if not keep:
                self.device[here : here + size] = poison(at, size)

    def _forget(self, address: int, length: int) -> bytes | None:
        """What was seen of just these bytes. All looks at any of them are over."""
        seen = self._looked.get((address, length))
        for at, size in [each for each in self._looked if each[0] < address + length and address < each[0] + each[1]]:
            del self._looked[at, size]
        return seen

    def spoil(self, address: int, length: int, *, cpu: bool) -> None:
        """Poison on one side."""
        side = self.cpu if cpu else self.device
        for at, size in pieces(address, length):
            side[at - self.base : at - self.base + size] = poison(at, size)

    def owned(self, address: int, length: int) -> memoryview:
        """The device's bytes."""
        return self.device[address - self.base : address - self.base + length]

    def stored(self, address: int, length: int) -> list[int]:
        """Which bytes of what the device has the CPU has stored: offsets from `address`."""
        found = []
        for at, size in pieces(address, length):
            here = at - self.base
            wrong = stored(self.cpu[here : here + size], at, self.device[here : here + size])
            found += [at - address + each for each in wrong]
        return found

    def pass_on(self, address: int, offsets: list[int]) -> None:
        """What the CPU has stored reaches the device after all."""
        for at in offsets:
            here = address - self.base + at
            self.device[here] = self.cpu[here]
