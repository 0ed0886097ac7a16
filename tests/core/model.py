"""The simple model that the state machine compares with: counts, lists, and every byte twice."""

from __future__ import annotations

from dataclasses import dataclass, field

from busdma.addresses import AddressSet
from busdma.buffers import Buffer
from busdma.lifecycle import State
from core.small_machine import PAGE, page_starts


@dataclass(eq=False)
class Memory:
    """A buffer, and what its owner should find in it."""

    buffer: Buffer
    client: bytearray


@dataclass(eq=False)
class MapModel:
    """What a map should be."""

    name: str
    pool: PoolModel
    reach: AddressSet
    state: State = State.IDLE
    memory: Memory | None = None
    face: str = ""
    pages: int = 0  #: bounce pages held, or wanted
    deadline: int | None = None
    torn: bool = False  #: the waiting driver will be torn away just after its grant
    bounced: list[bool] = field(default_factory=list)  #: for each byte
    view: bytearray = field(default_factory=bytearray)  #: what the device sees of bounced bytes
    seen: bytearray = field(default_factory=bytearray)  #: 1 for bytes that a PRE sync has copied out
    owned: bool = False  #: the device may own bytes

    def want(self, memory: Memory) -> None:
        """Count the pages that have to be bounced."""
        self.memory = memory
        self.bounced = []
        self.pages = 0
        for frame, head, size in page_starts(memory.buffer):
            out = not self.reach.covers(frame + head, frame + head + size - 1) or frame % PAGE != 0
            self.pages += out
            self.bounced += [out] * size

    def loaded(self) -> None:
        """The load has succeeded."""
        assert self.memory is not None
        self.state = State.LOADED
        self.deadline = None
        self.view = bytearray(self.memory.buffer.length)
        self.seen = bytearray(self.memory.buffer.length)
        self.owned = False

    def idle(self) -> None:
        """Nothing is loaded."""
        self.state = State.IDLE
        self.memory = None
        self.pages = 0
        self.deadline = None
        self.torn = False
        self.owned = False


@dataclass(eq=False)
class TurnModel:
    """A turn: when so many pages are there, load this."""

    name: str
    pages: int
    map: MapModel
    memories: list[Memory]
    slot: int
    posted: bool = False


@dataclass(eq=False)
class PoolModel:
    """So many pages, and who waits for them in which order."""

    limit: int
    held: int = 0
    queue: list[MapModel | TurnModel] = field(default_factory=list)
    granted: list[MapModel] = field(default_factory=list)  #: granted, and the driver has not gone on yet

    def serve(self) -> None:
        """Strictly the first, as long as what it wants is there. A turn holds up the rest until it was had."""
        while self.queue and self.held + self.queue[0].pages <= self.limit:
            first = self.queue[0]
            if isinstance(first, TurnModel):
                first.posted = True
                return
            self.queue.pop(0)
            self.held += first.pages
            self.granted.append(first)

    def settle(self) -> None:
        """Let everything run that can run."""
        while True:
            self.serve()
            first = self.queue[0] if self.queue else None
            callbacks = [m for m in self.granted if m.face == "callback"]
            if callbacks:
                self.granted.remove(callbacks[0])
                callbacks[0].loaded()
            elif isinstance(first, TurnModel) and first.posted:
                self.queue.pop(0)
                self.try_now(first.map, first.memories[first.slot])
            elif self.granted:
                map = self.granted.pop(0)
                if map.torn:
                    self.held -= map.pages
                    map.idle()
                else:
                    map.loaded()
            else:
                return

    def try_now(self, map: MapModel, memory: Memory) -> bool:
        """A load that passes everybody: what is at its turn, or needs nothing."""
        if map.state is not State.IDLE:
            return False
        map.want(memory)
        if self.held + map.pages > self.limit:
            map.idle()
            return False
        self.held += map.pages
        map.loaded()
        return True

    def release(self, map: MapModel) -> None:
        """Unload, or the end of a quarantine."""
        self.held -= map.pages
        map.idle()

    def leave(self, map: MapModel) -> None:
        """The wait ended without a grant."""
        self.queue.remove(map)
        map.idle()
