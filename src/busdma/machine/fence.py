"""The one barrier that a driver needs for memory alone: between a store and a load of something else.

`Registers.barrier` orders what the CPU does for the *device*: memory and registers before it, registers after it. It
says nothing of a load of memory that follows a store to memory, and no processor keeps that order by itself: the store
may still be in the store buffer when the load is done. Two sides that each store a word and then look at the other's
word (Dekker's pattern; NVMe's shadow doorbells) could so both miss what the other one said, and wait for each other.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from typing import Final

#: Processors on which an atomic read-modify-write, as every lock has one, orders all before it with all behind it.
LOCKED: Final = frozenset({"x86_64", "amd64", "i386", "i486", "i586", "i686", "x86"})

_lock: Final = threading.Lock()


def by_lock() -> None:
    """A fence on the processors of `LOCKED`: to take a free lock is a locked instruction, whatever it is made of.

    Intel SDM volume 3, 8.2.3.9: loads and stores are not reordered with locked instructions. About 0.1 us. A lock that
    somebody has is only looked at, which is none; a new one is free. So nobody ever waits here, nor does a signal
    handler that has interrupted this.
    """
    if _lock.acquire(blocking=False):
        _lock.release()
    else:
        threading.Lock().acquire()


def by_scheduler() -> None:
    """A fence everywhere else: a lock's acquire and release are none on Arm, POWER or RISC-V.

    Linux issues a full barrier whenever a thread comes from user space into its scheduler, as membarrier(2) relies on
    it; sched_yield(2) always goes there. Half a microsecond and more.
    """
    os.sched_yield()


def _choose(processor: str) -> Callable[[], None]:
    return by_lock if processor.lower() in LOCKED or not hasattr(os, "sched_yield") else by_scheduler


#: Every store of this thread before it is seen by all, devices included, before any of its loads behind it is made.
store_load_fence: Final = _choose(platform.machine())
