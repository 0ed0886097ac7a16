"""What all tags of one machine share: its memory, its pools and their order, its zones, and who carries its drivers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from busdma.addresses import AddressSet
from busdma.buffers import Buffer
from busdma.constraints import Constraints
from busdma.instrument import Instrument
from busdma.lifecycle import State
from busdma.lists import linear_parts
from busdma.machine.frames import FrameAllocator
from busdma.mechanisms.coherence import Coherence
from busdma.mechanisms.ground import Ground
from busdma.mechanisms.zone import DEFAULT_LIMIT, Zone
from busdma.waiting import Runtime

if TYPE_CHECKING:
    from busdma.errors import DriverError
    from busdma.map import Map
    from busdma.memory import DmaMemory
    from busdma.tag import Tag


class DmaDomain(Ground):
    """One machine's side of every tag. `memory`, `frames`, `cache`, `uncached` and `force_bounce`: see `Ground`.

    `bounce_limit`: pages that each bounce zone may grow to. `barrier`: what orders the CPU's accesses to memory before
    the device's, where the machine needs it.
    """

    def __init__(
        self,
        memory: memoryview,
        frames: FrameAllocator,
        runtime: Runtime,
        *,
        bounce_limit: int = DEFAULT_LIMIT,
        barrier: Callable[[], None] | None = None,
        cache: Coherence | None = None,
        uncached: memoryview | None = None,
        force_bounce: bool = False,
    ) -> None:
        super().__init__(memory, frames, cache=cache, uncached=uncached, force_bounce=force_bounce)
        self.runtime = runtime
        self.barrier = barrier
        frames.add_listener(self.queue.serve)  # a zone may be waiting for memory to grow into
        self.instruments: list[Instrument] = []
        self.bounce_limit = bounce_limit
        self._zones: list[Zone] = []
        self._roots: list[Tag] = []

    def root(self, name: str) -> Tag:
        """A tag without limits, the first of a tree."""
        from busdma.tag import Tag

        tag = Tag(self, None, name, Constraints.unlimited(name))
        self._roots.append(tag)
        return tag

    def zone(self, reach: AddressSet, others: Collection[Zone] = ()) -> Zone | None:
        """The bounce zone for a tag with this reach: the widest there is that suits it, or a new one.

        A zone suits if the tag reaches all of it, and it may grow as large as one of the tag's own could. Of `others`,
        which the tag has for its other routes, one that suits is preferred: whoever waits for it waits for all. None:
        no page frame of the machine lies within reach.
        """
        memory = AddressSet.span(self.base, self.base + self.frames.pages * self.page_size - 1)
        within = reach & memory
        usable = self.frames.usable(within)
        if not usable:
            return None
        limit = min(self.bounce_limit, usable)
        with self.queue.lock:
            suited = [zone for zone in self._zones if zone.serves(within) and zone.slots.entries >= limit]
            if suited:
                return max(suited, key=lambda zone: (zone in others, zone.reach.size()))
            name = f"bounce zone {len(self._zones)}"
            zone = Zone(name, self.queue, self.frames, within, limit, fresh=self._past_caches)
            self._zones.append(zone)
            return zone

    @property
    def zones(self) -> tuple[Zone, ...]:
        """The bounce zones, oldest first."""
        return tuple(self._zones)

    def maps(self) -> Iterator[Map]:
        """Every map of every tag."""
        for tag in self.tags():
            yield from tuple(tag.maps)  # other threads create and destroy maps meanwhile

    def tags(self) -> Iterator[Tag]:
        """Every tag there is, parents first."""
        tags = list(self._roots)
        for tag in tags:
            yield tag
            tags.extend(tag.children)

    def dma_memory(self) -> Iterator[DmaMemory]:
        """All DMA-safe memory that was allocated and not freed."""
        for tag in self.tags():
            yield from tag.memory

    def refused(self, error: DriverError, map: Map | None = None) -> None:
        """A call is about to raise `error`: tell the instruments."""
        for hook in self.instruments:
            hook.refused(map, error)

    def in_use(self, buffer: Buffer, besides: Map | None = None) -> str | None:
        """Which map, `besides` one, has part of `buffer` loaded, waits to, or is loading it; None if none does."""
        for map in self.maps():
            loaded = map.buffer
            if map is besides or loaded is None:
                continue
            for part in _parts(loaded):
                if (
                    part.frames is buffer.frames
                    and part.start < buffer.start + buffer.length
                    and buffer.start < part.start + part.length
                ):
                    return f"{map.describe()} ({map.state.name.lower()})"
        return None

    def leaks(self, besides: Collection[Tag] = ()) -> list[str]:
        """What is still loaded, waiting, allocated or in quarantine, for a machine that is about to close.

        Of tags `besides`, and those below them, only what is in quarantine: that they hold the rest is known.
        """
        known, found = list(besides), list[str]()
        for tag in self.tags():
            if tag.parent in known:
                known.append(tag)
            memory = {each.dma_map: each.describe() for each in tag.memory}
            for map in tag.maps:
                quarantined = map.state is State.QUARANTINED
                if tag in known and not quarantined:
                    continue
                if map in memory:
                    found.append(f"{memory[map]}, {'is quarantined' if quarantined else 'was not freed'}")
                elif map.state is not State.IDLE:
                    found.append(f"{map.describe()} is {map.state.name.lower()}")
        return found

    def statistics(self) -> dict[str, Any]:
        """Zones by name, who waits, and the page frames."""
        return {
            "zones": {zone.name: zone.statistics() for zone in self._zones},
            "waiting": self.queue.waiters(),
            "frames": self.frames.statistics(),
        }

    def _past_caches(self, frames: Iterable[int]) -> None:
        """From here on the CPU uses these page frames uncached: no line of an earlier owner may come down on them."""
        if self.cache is not None and self.uncached is not None:
            for frame in frames:
                self.cache.to_device(frame, self.page_size)


def _parts(loaded: Buffer) -> list[Buffer]:
    """What of a loaded buffer lies in page tables of the machine."""
    return [part for part in linear_parts(loaded) if part.host is None]
