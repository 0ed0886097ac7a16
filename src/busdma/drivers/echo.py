"""Devices that are no disks, as those meet them who only want to see data go there and come back.

What a device has between the two directions is its own business: memory, a loop at the end of a wire, or a cipher and
its inverse. The device reads `out` by DMA and writes the same bytes to `back` by DMA; nothing else makes it an echo.
"""

from __future__ import annotations

from typing import Protocol

from busdma.drivers.block import Data


class Echo(Protocol):
    """One device, through which data can go there and back."""

    name: str
    most: int  #: bytes of one echo

    async def echo(self, out: Data, back: Data, deadline: int | None = None) -> None:
        """Have the device read `out` and write the same to `back`, which is as long: 1 to ``most`` bytes.

        Echoes of one device take turns. `deadline`, in ns of the runtime's clock, bounds the waits for a turn and for
        what the loads need. DriverError: refused. DeadlineExpired. DeviceFault. When this returns, or raises one of
        these, the device has let go of both.
        """
