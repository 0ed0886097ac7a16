"""A tag: what one piece of the path to a device can do, and where maps and DMA-safe memory come from.

Tags form a tree along that path: the machine's root, each bus and bridge, the driver. Every one narrows its parent.

Source: Gibbs, tech-kern 10 June 1998, part 2 (derived tags); bus_dma(9).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from busdma.addresses import MAX_ADDRESS, AddressSet
from busdma.allocation import allocate, sites
from busdma.constraints import UNLIMITED, Constraints
from busdma.errors import BusdmaError, ConstraintError, DriverError, TooManySegments
from busdma.explain import Explanation, explain
from busdma.filters import FilterFunction
from busdma.lifecycle import State
from busdma.lists import as_loadable
from busdma.map import Map
from busdma.mechanisms import Chain
from busdma.mechanisms.bounce import Bounce
from busdma.mechanisms.composed import Composed
from busdma.mechanisms.direct import Direct
from busdma.memory import DmaMemory
from busdma.paths import STRAIGHT, Route, Window, behind
from busdma.pool import Need
from busdma.segments import Segmenter
from busdma.sync import Direction
from busdma.tracebacks import hidden
from busdma.transfer import Transfer
from busdma.turns import Turn

if TYPE_CHECKING:
    from busdma.domain import DmaDomain

__tracebackhide__ = hidden


class Tag:
    """Made by ``domain.root`` and `derive`; never by hand. ``constraints`` are its limits, its parents' included."""

    def __init__(
        self,
        domain: DmaDomain,
        parent: Tag | None,
        name: str,
        constraints: Constraints,
        routes: tuple[Route, ...] = (STRAIGHT,),
    ) -> None:
        self.domain = domain
        self.routes = routes  #: the ways from this tag's bus to memory, the preferred one first
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
        returns true if the device must avoid it; it takes no lock, and always answers the same of the same addresses.
        `exclude`: these cannot be reached either, exactly.
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
        child = Tag(self.domain, self, name, constraints, self.routes)
        self.children.append(child)
        return child

    def subregion(self, name: str, lo: int, hi: int) -> Tag:
        """A child that reaches only bus addresses `lo` to `hi`, both included: bus_dmatag_subregion(9).

        ConstraintError if the tag reaches none of them.
        """
        if not 0 <= lo <= hi <= MAX_ADDRESS:
            raise ConstraintError(
                f"tag {name!r}: {lo:#x}..{hi:#x} is no subregion: give the lowest and the highest address, of 64 bits"
            ).about(tag=f"{self.path}/{name}")
        outside = ~AddressSet.span(lo, hi)
        return self.derive(name, exclude=outside) if outside else self.derive(name)

    def bridge(self, name: str, *windows: Window) -> Tag:
        """The tag of the bus behind a bridge that forwards these windows of it, the preferred one first.

        From here on limits count in the addresses of that bus. A bridge that changes no address is a `derive`.
        ConstraintError if nothing of memory is left.
        """
        self._alive()
        if not windows:
            words = f"bridge {name!r} forwards nothing: give it a window"
            raise ConstraintError(words).about(tag=f"{self.path}/{name}")
        with self._blamed(child=name):
            constraints = self.constraints.behind(name, windows)
        child = Tag(self.domain, self, name, constraints, behind(self.routes, windows))
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
        return self._new_map(name or str(self._numbered), chain)

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

    def alloc(self, size: int, *, coherent: bool = False, zero: bool = True, contiguous: bool = False) -> DmaMemory:
        """`size` bytes of DMA-safe memory within every limit of the tag, loaded until freed: bus_dmamem_alloc(9).

        `coherent`: a hint that the CPU should see it past its caches, where the machine can; sync stays mandatory.
        `zero`: filled with zeros; otherwise it holds what it held. `contiguous`: its page frames are one run, so that
        the CPU sees it as one memoryview, also where a translator would make scattered ones adjacent for the device.

        ConstraintError if it is longer than maxsize, TooManySegments if so much never fits the tag's segments,
        ResourceShortage if the machine has no such memory now.
        """
        self._alive()
        with self._blamed(length=size):
            memory = self._allocate(size, coherent, zero, contiguous)
        self._memory.append(memory)
        return memory

    def _allocate(self, size: int, coherent: bool, zero: bool, contiguous: bool) -> DmaMemory:
        limits, frames = self.constraints, self.domain.frames
        if not 1 <= size <= limits.maxsize.value:
            raise ConstraintError(
                f"cannot allocate {size} bytes for tag {self.path}: ask for one byte or more"
                + (f", up to its maxsize {limits.maxsize.value}" if size > 0 else "")
            )
        try:
            return allocate(
                frames,
                sites(self.routes, limits),
                -(-size // frames.page_size),
                lambda found: DmaMemory(self, found, size, coherent=coherent, zero=zero),
                contiguous=contiguous,
            )
        except TooManySegments as error:
            most = limits.nsegments
            raise TooManySegments(
                f"cannot allocate {size} bytes for tag {self.path}: even in one run that is more than nsegments "
                f"{most.value} (tag {most.origin!r}), of at most {limits.segment_size} bytes each; ask for less"
            ).about(map=error.map) from None

    def explain(self, buffer: object, direction: Direction = Direction.BOTH) -> Explanation:
        """How `buffer` would map, page by page, and whose limit says so. Loads nothing."""
        return explain(self, as_loadable(buffer, self.domain.page_size), direction)

    def on_available(self, run_queue: Callable[[], object]) -> Turn:
        """Have ``run_queue()`` called once, where drivers run, when what the last refused load was short of is there.

        For a driver with a queue of its own: `load_nowait` its jobs until one is refused, then ask for a turn. Nobody
        passes it, and until ``run_queue`` returns nobody else is served. ``run_queue`` must not wait; it may ask for
        the next turn. `Turn.cancel` gives the place up.
        """
        self._alive()
        needs, self._short = self._short, ()
        if not needs:
            needs = tuple(need for last in self._chain.linear[-1:] for need in last.least(self._segmenter()))
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
        """The driver died: quarantine what the device may own, unload the rest, cancel waiting loads.

        The device may own all DMA-safe memory: it knows where that is, whatever was synced last.
        """
        family = [self]
        for tag in family:
            family += tag.children
        for tag in family:  # first, or what the others give back would still be granted to these
            tag._cancel_turns()
            for map in list(tag.maps):
                map.cancel_load()
        for tag in family:
            for memory in tag.memory:
                memory.abandon()
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
    def memory(self) -> tuple[DmaMemory, ...]:
        """DMA-safe memory from `alloc` that was not freed yet."""
        return tuple(self._memory)

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
    def _ways(self) -> tuple[tuple[Route, Constraints], ...]:
        """The routes that lead somewhere, in order, each with the limits in the addresses that it leads to."""
        ways = ((route, self.constraints.moved(route.span, -route.shift)) for route in self.routes)
        return tuple(
            (route, limits)
            for route, limits in ways
            if (limits.reach or (limits.filtered and route.pool is None))
            and route.shift % limits.alignment.value == 0  # or addresses would be aligned on one side only
        )

    @cached_property
    def _straight(self) -> tuple[Route, Constraints] | None:
        """The preferred way, if nothing but the segmenter is needed to place linear buffers on it."""
        plain = self.domain.cache is None and not self.domain.force_bounce
        first = self._ways[0] if self._ways and plain else None
        return first if first is not None and first[0].pool is None else None

    @cached_property
    def _direct(self) -> Direct | None:
        return Direct(self.constraints, self._straight[0].name) if self._straight else None

    @cached_property
    def _chain(self) -> Chain:
        """What to ask when a buffer cannot stay where it lies: first what copies nothing."""
        domain, straight = self.domain, self._straight
        whole: tuple[Composed, ...] = ()
        for way in self._ways:
            whole += (self._composed(*way, whole),)
        forced = domain.force_bounce
        alone = tuple(each.without_copies() for each in whole) if len(whole) > 1 and not forced else ()
        lists = (*alone, *whole)
        if straight is None:
            return Chain(lists, lists, lists[0].recall if lists else None)
        zone = whole[0].zone
        bounce = () if zone is None else (Bounce(zone, straight[1], domain.page_size),)
        return Chain((*alone[1:], *bounce, *whole[1:]), lists)

    def _composed(self, route: Route, limits: Constraints, others: Sequence[Composed] = ()) -> Composed:
        reach = limits.reach if route.pool is None else route.pool.translator.reach
        zones = [other.zone for other in others if other.zone is not None]
        return Composed(self.domain, route, limits, self.domain.zone(reach, zones))

    @cached_property
    def _memory_chain(self) -> Chain:
        """For DMA-safe memory: it lies where it must, or other page frames are taken; nothing is ever copied."""
        ways = self._ways if self._straight is None else self._ways[1:]
        found = tuple(self._composed(*way).without_copies() for way in ways)
        return Chain(found, found)

    def _reserved_chain(self) -> Chain:
        maxsize = self.constraints.maxsize.value
        chain = self._chain
        if maxsize == UNLIMITED and chain.each():
            raise ConstraintError(
                f"a reserved map of tag {self.path} would have to hold a buffer of any length: "
                "derive a tag with a maxsize"
            ).about(tag=self.path)
        if not chain.linear:
            return chain
        try:
            last = chain.linear[-1].reserved(maxsize)  # it takes whatever the others cannot
        except ConstraintError as error:
            raise ConstraintError(f"cannot reserve a map of tag {self.path}: {error}") from None
        if isinstance(last, Composed):
            return Chain((last,), (last,), last.recall if self._straight is None else None)
        assert self._straight is not None
        return Chain((last,), (Composed(self.domain, *self._straight, last.zone),))

    def _segmenter(self) -> Segmenter:
        limits, domain, offset, straight = self.constraints, self.domain, 0, self._straight
        reach = AddressSet()
        if straight is not None:
            offset, limits = straight[0].shift, straight[1]
            reach = limits.reach
        flat = array("Q", (edge for interval in reach for edge in interval))
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
            limits.admits_run if straight is not None and limits.filtered else None,
            offset,
        )

    def _new_map(self, name: str, chain: Chain) -> Map:
        map = Map(self, name, self._segmenter(), self._direct, chain)
        self.maps.append(map)
        for mechanism in chain.each():
            mechanism.watch(map.segmenter)
        return map

    def _memory_map(self, name: str) -> Map:
        """The map of DMA-safe memory."""
        return self._new_map(name, self._memory_chain)

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

    def _forget(self, map: Map, chain: Chain) -> None:
        self.maps.remove(map)
        if map in self._spare:
            self._spare.remove(map)
        for key, value in map.statistics().items():
            self._retired[key] += value
        for mechanism in chain.each():
            mechanism.retire(map.segmenter)
            mechanism.give_up()

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
