"""A tag: what one piece of the path to a device can do, and where maps and DMA-safe memory come from.

Tags form a tree along that path: the machine's root, each bus and bridge, the driver. Every one narrows its parent.

Source: Gibbs, tech-kern 10 June 1998, part 2 (derived tags); bus_dma(9).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from busdma.addresses import AddressSet
from busdma.buffers import as_buffer
from busdma.constraints import UNLIMITED, Constraints
from busdma.errors import BusdmaError, ConstraintError, DriverError
from busdma.explain import Explanation, explain
from busdma.filters import FilterFunction
from busdma.lifecycle import State
from busdma.map import Map
from busdma.mechanisms import Mechanism
from busdma.mechanisms.bounce import Bounce
from busdma.mechanisms.direct import Direct
from busdma.memory import DmaMemory
from busdma.pool import Need
from busdma.segments import Segmenter
from busdma.sync import Direction
from busdma.transfer import Transfer
from busdma.turns import Turn

if TYPE_CHECKING:
    from busdma.domain import DmaDomain


class Tag:
    """Made by ``domain.root`` and `derive`; never by hand. ``constraints`` are its limits, its parents' included."""

    def __init__(self, domain: DmaDomain, parent: Tag | None, name: str, constraints: Constraints) -> None:
        self.domain = domain
        self.parent = parent
        self.name = name
        self.constraints = constraints
        self.children: list[Tag] = []
        self.maps: list[Map] = []
        self._memory: list[DmaMemory] = []
        self._spare: list[Map] = []  # of `transfer`: idle, or in quarantine
        self._turns: list[Turn] = []
        self._short: tuple[Need, ...] = ()  # what the last refused load was short of
        self._numbered = 0
        self._destroyed = False
        self._retired = {"loads": 0, "bytes": 0, "segments": 0, "syncs": 0, "deferred": 0}

    def derive(
        self,
        name: str,
        *,
        alignment: int | None = None,
        boundary: int | None = None,
        lowaddr: int | None = None,
        highaddr: int | None = None,
        exclude: AddressSet | None = None,
        filter: FilterFunction | None = None,
        maxsize: int | None = None,
        nsegments: int | None = None,
        maxsegsz: int | None = None,
        joint: int | None = None,
        clip: bool = False,
    ) -> Tag:
        """A child that inherits every limit and narrows some.

        `alignment`, `boundary`: bytes, powers of two (boundary 0: none). `lowaddr`, `highaddr`: addresses in
        (lowaddr, highaddr] cannot be reached; without highaddr, all above lowaddr. With a `filter`, only those of them
        that it objects to: ``filter(first, last)`` is given the first and last bus address of a part of a page, and
        returns true if the device must avoid it. `exclude`: these cannot be reached either, exactly.
        `maxsize`: bytes of one load; `nsegments`, `maxsegsz`: how many segments, of how many bytes. `joint`: where a
        segment follows another, the one ends and the other begins at a multiple of this (NVMe's PRPs; a power of two,
        at most a page).

        All are inherited if left out. `clip`: the limits say what the device can do on any bus, so where the parent is
        tighter the parent's hold; without it a wider limit is a mistake and raises ConstraintError, as do limits that
        contradict each other.
        """
        self._alive()
        with self._blamed(child=name):
            constraints = self.constraints.narrow(
                name,
                alignment=alignment,
                boundary=boundary,
                lowaddr=lowaddr,
                highaddr=highaddr,
                exclude=exclude,
                filter=filter,
                maxsize=maxsize,
                nsegments=nsegments,
                maxsegsz=maxsegsz,
                joint=joint,
                clip=clip,
            )
        page = self.domain.page_size
        if constraints.joint.value > page:
            raise ConstraintError(
                f"tag {name!r}: joint {constraints.joint.value} is more than the page size of this machine, {page}: "
                "pages that are not adjacent can only join at their ends"
            ).about(tag=f"{self.path}/{name}")
        child = Tag(self.domain, self, name, constraints)
        self.children.append(child)
        return child

    # -- maps ---------------------------------------------------------------------------------------------------------

    def create_map(self, *, name: str = "", reserve: bool = False) -> Map:
        """A map for one transfer at a time.

        `reserve`: take now every bounce page that a buffer of maxsize could need, so that a load never waits
        (BUS_DMA_ALLOCNOW); ResourceShortage if they cannot be had, ConstraintError if the tag has no maxsize.
        """
        self._alive()
        self._numbered += 1
        with self._blamed():
            chain = self._reserved_chain() if reserve else self._chain
        map = Map(self, name or str(self._numbered), self._segmenter(), self._direct, chain)
        self.maps.append(map)
        for mechanism in chain:
            mechanism.watch(map.segmenter)
        return map

    def transfer(
        self, buffer: object, *, to_device: bool = False, from_device: bool = False, deadline: int | None = None
    ) -> Transfer:
        """One transfer as a block: ``with tag.transfer(data, to_device=True) as segments:``.

        Going in loads and syncs (PRE), coming out syncs (POST) and unloads; an exception quarantines, until
        `report_idle`. ``with`` waits as `Map.load_blocking`, ``async with`` as `Map.load`, until `deadline`: an
        absolute time of the runtime's clock, in ns.
        """
        if not to_device and not from_device:
            raise DriverError("a transfer goes to_device=True, from_device=True, or both")
        both = to_device and from_device
        direction = Direction.BOTH if both else Direction.TO_DEVICE if to_device else Direction.FROM_DEVICE
        return Transfer(self, buffer, direction, deadline)

    def alloc(self, size: int) -> DmaMemory:
        """`size` bytes of zeroed DMA-safe memory within every limit of the tag, loaded until freed.

        ConstraintError if it is longer than maxsize, TooManySegments if so much never fits the tag's segments,
        ResourceShortage if the machine has no such memory now.
        """
        self._alive()
        with self._blamed(length=size):
            memory = self._allocate(size)
        self._memory.append(memory)
        return memory

    def _allocate(self, size: int) -> DmaMemory:
        limits = self.constraints
        if not 1 <= size <= limits.maxsize.value:
            raise ConstraintError(
                f"cannot allocate {size} bytes for tag {self.path}: its maxsize is {limits.maxsize.value}; ask for one "
                "byte or more, up to that"
            )
        page = self.domain.page_size
        boundary = limits.boundary.value
        across = 0 < boundary < size  # then from a boundary line on, where the segments are fewest
        pages = -(-size // page)
        base = self.domain.frames.allocate_run(
            pages,
            "dma-safe",
            within=limits.reach,
            alignment=max(limits.alignment.value, page, boundary if across else 1),
            boundary=0 if across or not boundary else max(boundary, page),
        )
        try:
            return DmaMemory(self, base, size)
        except BaseException:
            self.domain.frames.free(base + i * page for i in range(pages))
            raise

    def explain(self, buffer: object) -> Explanation:
        """How `buffer` would map, page by page, and whose limit says so. Loads nothing."""
        return explain(self, as_buffer(buffer, self.domain.page_size))

    def on_available(self, run_queue: Callable[[], object]) -> Turn:
        """Have ``run_queue()`` called once, where drivers run, when what the last refused load was short of is there.

        For a driver with a queue of its own: `load_nowait` its jobs until one is refused, then ask for a turn. Nobody
        passes it, and until ``run_queue`` returns nobody else is served. ``run_queue`` must not wait; it may ask for
        the next turn. `Turn.cancel` gives the place up.
        """
        self._alive()
        needs, self._short = self._short, ()
        if not needs:
            needs = tuple(m.need(self._segmenter()) for m in self._chain if isinstance(m, Bounce))
        turn = Turn(self.domain.queue, needs, f"the queue of tag {self.path}", self.domain.runtime, run_queue)
        self._turns = [other for other in self._turns if not other.done]
        self._turns.append(turn)
        return turn

    # -- the device ---------------------------------------------------------------------------------------------------

    def report_idle(self) -> None:
        """The driver knows that the device uses nothing of this tag: it was reset, or has finished everything.

        Ends the quarantine of every map of this tag and its children.
        """
        for map in list(self.maps):
            map.report_idle()
        for child in self.children:
            child.report_idle()

    def abandon(self) -> None:
        """The driver died: quarantine what the device may own, unload the rest, cancel waiting loads."""
        family = [self]
        for tag in family:
            family += tag.children
        for tag in family:  # first, or what the others give back would still be granted to these
            tag._cancel_turns()
            for map in list(tag.maps):
                map.cancel_load()
        for tag in family:
            for map in list(tag.maps):
                map.abandon()

    # -- the end ------------------------------------------------------------------------------------------------------

    def destroy(self) -> None:
        """Take the tag out of the tree. DriverError while it has children, memory, or maps that are not idle."""
        self._alive()
        busy = [map.describe() for map in self.maps if map not in self._spare or map.state is not State.IDLE]
        if self.children or self._memory or busy:
            held = [f"tag {child.path}" for child in self.children] + [m.describe() for m in self._memory] + busy
            words = f"tag {self.path} is in use: destroy or free {', '.join(held[:4])} first"
            raise DriverError(words).about(tag=self.path)
        for map in list(self._spare):
            map.destroy()
        self._cancel_turns()
        self._destroyed = True
        if self.parent is not None:
            self.parent.children.remove(self)

    # -- for people ---------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The names from the root to here: ``pc/isa/aha0``."""
        return self.name if self.parent is None else f"{self.parent.path}/{self.name}"

    def statistics(self) -> dict[str, Any]:
        """Sums over all maps the tag has and had, and how many there are."""
        total = dict(self._retired)
        for map in self.maps:
            for key, value in map.statistics().items():
                total[key] += value
        return {**total, "maps": len(self.maps), "memory": sum(memory.size for memory in self._memory)}

    def __repr__(self) -> str:
        return f"<tag {self.path}>"

    # -- inside -------------------------------------------------------------------------------------------------------

    @cached_property
    def _direct(self) -> Direct:
        return Direct(self.constraints)

    @cached_property
    def _chain(self) -> tuple[Mechanism, ...]:
        """The mechanisms to ask when a buffer cannot stay where it lies."""
        zone = self.domain.zone(self.constraints.reach)
        return () if zone is None else (Bounce(zone, self.constraints, self.domain.page_size),)

    def _reserved_chain(self) -> tuple[Mechanism, ...]:
        limits, page = self.constraints, self.domain.page_size
        bounce = next((m for m in self._chain if isinstance(m, Bounce)), None)
        if bounce is None:
            return self._chain
        if limits.maxsize.value == UNLIMITED:
            raise ConstraintError(
                f"a reserved map of tag {self.path} would have to hold a buffer of any length: "
                "derive a tag with a maxsize"
            ).about(tag=self.path)
        pages = (limits.maxsize.value + page - 2) // page + 1
        if pages > bounce.zone.limit:
            raise ConstraintError(
                f"a reserved map of tag {self.path} needs {pages} bounce pages, and {bounce.zone.name} may hold "
                f"{bounce.zone.limit}: derive a tag with a smaller maxsize, or raise the zone's limit"
            )
        boundary = limits.boundary.value
        across = 0 < boundary < pages * page
        part = bounce.zone.split(
            pages,
            alignment=max(limits.alignment.value, page, boundary if across else 1),
            boundary=0 if across else boundary,
            scattered=limits.nsegments.value >= pages
            and limits.segment_size >= page >= limits.alignment.value
            and (limits.joint.value == 1 or limits.alignment.value == 1),  # or a load could need one run
        )
        return (Bounce(part, limits, page),)

    def _segmenter(self) -> Segmenter:
        limits, domain = self.constraints, self.domain
        flat = array("Q", (edge for interval in limits.reach for edge in interval))
        return Segmenter(
            domain.page_size,
            flat,
            limits.alignment.value,
            limits.boundary.value,
            limits.maxsegsz.value - limits.maxsegsz.value % limits.alignment.value,
            limits.nsegments.value,
            domain.memory,
            domain.base,
            min(limits.nsegments.value, 16),
            limits.admits_run if limits.filtered else None,
        )

    def _borrow(self) -> Map:
        for map in tuple(self._spare):
            if map.state is State.IDLE:
                with suppress(ValueError):  # another thread was faster
                    self._spare.remove(map)
                    return map
        return self.create_map(name="transfer")

    def _give_back(self, map: Map) -> None:
        self._spare.append(map)

    def _refused(self, needs: tuple[Need, ...]) -> None:
        self._short = needs

    def _cancel_turns(self) -> None:
        for turn in self._turns:
            turn.cancel()
        self._turns.clear()

    def _forget(self, map: Map, chain: tuple[Mechanism, ...]) -> None:
        self.maps.remove(map)
        if map in self._spare:
            self._spare.remove(map)
        for key, value in map.statistics().items():
            self._retired[key] += value
        for mechanism in chain:
            mechanism.retire(map.segmenter)
            if chain is not self._chain and isinstance(mechanism, Bounce):
                mechanism.zone.join()

    def _freed(self, memory: DmaMemory) -> None:
        self._memory.remove(memory)

    def _alive(self) -> None:
        if self._destroyed:
            raise DriverError(f"tag {self.path} was destroyed; derive another").about(tag=self.path)

    @contextmanager
    def _blamed(self, child: str = "", length: int | None = None) -> Iterator[None]:
        """Add to an error that it is about this tag, or a child of it."""
        try:
            yield
        except BusdmaError as error:
            error.about(tag=f"{self.path}/{child}" if child else self.path, length=length)
            raise
