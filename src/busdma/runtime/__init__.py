"""Runtimes: who carries drivers. One protocol (``busdma.waiting.Runtime``), three carriers, and a clock apart.

=========  ===============================================  ========================  =====================
name       a driver is                                      time                      good for
=========  ===============================================  ========================  =====================
virtual    a coroutine; they take turns on one thread       virtual                   tests that repeat
asyncio    an asyncio task                                  virtual (default), real   programs with a loop
threads    a thread                                         virtual (default), real   plain programs, races
=========  ===============================================  ========================  =====================
"""

from __future__ import annotations

from busdma.errors import ConfigurationError
from busdma.runtime.carrier import Carrier
from busdma.runtime.clock import Clock

NAMES = ("virtual", "asyncio", "threads")


def by_name(name: str, *, clock: Clock | None = None, seed: int = 0) -> Carrier:
    """A new runtime of that name, on `clock` (None: a new VirtualClock). `seed` orders the drivers of "virtual".

    ConfigurationError if there is no such runtime, or if a clock is given to "virtual", which brings its own.
    """
    if name == "virtual":
        if clock is not None:
            raise ConfigurationError('the runtime "virtual" brings its own clock; "asyncio" and "threads" take one')
        from busdma.runtime.virtual import VirtualRuntime

        return VirtualRuntime(seed)
    if name == "asyncio":
        from busdma.runtime.aio import AsyncioRuntime

        return AsyncioRuntime(clock)
    if name == "threads":
        from busdma.runtime.threads import ThreadsRuntime

        return ThreadsRuntime(clock)
    raise ConfigurationError(f"there is no runtime {name!r}: choose one of {', '.join(NAMES)}")
