"""A machine whose memory lies in this process: what its page frames, pools and tables are made of.

Three options of every one: ``bounce`` (pages that each bounce zone may grow to, 128), ``force_bounce`` (1: all data
goes through bounce pages, within reach or not: so it is seen who forgets a sync on a machine that would forgive it, 0)
and ``seed`` (where page frames are scattered, and what else is random, 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from busdma.addresses import AddressSet
from busdma.machine.frames import FrameAllocator
from busdma.machine.machine import Machine
from busdma.machine.ram import Ram
from busdma.machine.space import AddressSpace
from busdma.machine.spec import Options
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.iova_allocator import IovaAllocator
from busdma.mechanisms.translation import Translator
from busdma.waiting import Runtime

NOTHING: Final = AddressSet()


class Numbers:
    """The options that every such machine has. Reading them asks for them: see `busdma.machine.spec.Options`."""

    def __init__(self, options: Options) -> None:
        self.seed: Final = options.number("seed", 1)
        self.bounce: Final = options.number("bounce", 128, least=1)
        self.force_bounce: Final = options.flag("force_bounce")


class LocalMachine(Machine):
    """A machine with memory, and no bus and no device yet.

    `base`: physical address of the memory's first byte; `page`: bytes of a page frame; `reserved`: physical addresses
    that are not handed out; `reuse`: as `FrameAllocator` has it; `kernel_space`: bytes of the kernel's virtual
    addresses, twice the memory if left out.
    """

    def __init__(
        self,
        spec: str,
        runtime: Runtime,
        ram: Ram,
        numbers: Numbers,
        *,
        base: int = 0,
        page: int = 4096,
        reserved: AddressSet = NOTHING,
        reuse: int = 0,
        kernel_space: int = 0,
    ) -> None:
        self.seed: Final = numbers.seed
        size = len(ram.cpu)
        self.ram = ram
        self.frames = FrameAllocator(
            base, size // page, page_size=page, seed=numbers.seed, reserved=reserved, reuse=reuse
        )
        domain = ram.domain(self.frames, runtime, bounce_limit=numbers.bounce, force_bounce=numbers.force_bounce)
        kernel = AddressSpace("kernel", ram.cpu, self.frames, pages=(kernel_space or 2 * size) // page)
        super().__init__(spec, domain, kernel)
        self.checker = ram.checker

    def add_pool(self, name: str, translator: Translator, first: int, last: int, *, standing: bool = False) -> IovaPool:
        """The pool of the bus pages from address `first` to `last`, which `translator` maps."""
        page = self.frames.page_size
        pages = IovaAllocator([(first // page, last // page)])
        pool = IovaPool(name, self.domain.queue, translator, pages, standing=standing)
        self.frames.add_releaser(pool.forget)
        return pool

    @contextmanager
    def building(self) -> Iterator[None]:
        """Around the rest of a constructor: if it fails, what was made is closed."""
        try:
            yield
        except BaseException:
            self.close()
            raise
