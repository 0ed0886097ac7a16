"""What is still held when a machine is switched off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from busdma.check.findings import Finding, Kind
from busdma.check.loads import Load
from busdma.map import Map
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.placement import Placement
from busdma.mechanisms.zone import Zone
from busdma.pool import Pool

if TYPE_CHECKING:
    from busdma.domain import DmaDomain


def leaks(domain: DmaDomain, loads: Mapping[Map, Load]) -> Iterator[Finding]:
    """Memory that was not freed, maps that are loaded, and pages that none of these holds."""
    held: Counter[Pool] = Counter()
    for map in domain.maps():
        if isinstance(map.holder, Placement):
            for pool, amount in map.holder.holdings(map.segmenter):
                held[pool] += amount
    of_memory = set[Map]()
    for memory in domain.dma_memory():
        of_memory.add(memory.dma_map)
        load = loads.get(memory.dma_map)
        yield Finding(
            Kind.LEAKED_MEMORY,
            f"{Kind.LEAKED_MEMORY.value} ({memory.describe()})",
            tag=memory.tag.path,
            length=memory.size,
            where=None if load is None else load.where,
        )
    for map, load in loads.items():
        if map not in of_memory:
            yield Finding(
                Kind.LEAKED_MAP,
                f"{Kind.LEAKED_MAP.value} (it is {map.state.name.lower()})",
                tag=load.tag,
                map=load.name,
                offset=0,
                length=load.size,
                owner=load.owner,
                where=load.where,
            )
    pools: dict[IovaPool, None] = {
        route.pool: None for tag in domain.tags() for route in tag.routes if route.pool is not None
    }
    places: list[Zone | IovaPool] = [*domain.zones, *pools]
    for place in places:
        lost = place.active - held[place]
        if lost:
            what = f"{lost} {place.unit}{'' if lost == 1 else 's'} of {place.name}"
            yield Finding(Kind.LEAKED_PAGES, f"{Kind.LEAKED_PAGES.value} ({what})", other=place.name)
