"""What the checker reports: kinds of mistakes, and one finding for each place in a program that makes one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from busdma.check.loads import Load


class Kind(Enum):
    """A mistake by name; the value says what it means."""

    MISSING_PREWRITE = "the device read bytes that were not given to it with PREWRITE"
    MISSING_PREREAD = "the device wrote bytes that were not given to it with PREREAD"
    MISSING_POST = "bytes were unloaded that the device still owned: no POST sync had fetched them back"
    MISSING_POSTREAD = "bytes that the device had written were unloaded, fetched back with POSTWRITE alone"
    POST_WITHOUT_PRE = "bytes were fetched back from the device that it did not own"
    CPU_WROTE = "the CPU wrote bytes while the device owned them"
    SHARED_LINE = "the CPU wrote into a cache line while the device was to write another part of it"
    AFTER_UNLOAD = "the device used memory after it was unloaded"
    STALE_TRANSLATION = "the device used memory by a translation that was cleared and never flushed"
    OUTSIDE_MAP = "the device used memory beside what was loaded"
    WRONG_WAY = "the device used memory against the direction of its load"
    NEVER_LOADED = "the device used memory that no map had loaded"
    NO_ANSWER = "the device used a bus address where nobody answers: no memory, no translation, or no right"
    OVERLAP = "two loads share bytes, or a cache line, that a device may write"
    SIM_READ = "a driver read data that it should only pass on"
    STATE = "an operation that the map's state forbids: a second unload, a sync without a load"
    FREED_WHILE_LOADED = "memory was to be freed while a map had it loaded"
    LEAKED_MAP = "a map was still loaded when the machine was closed"
    LEAKED_MEMORY = "DMA-safe memory was not freed when the machine was closed"
    LEAKED_PAGES = "bounce pages or bus pages were held by nobody when the machine was closed"

    @property
    def label(self) -> str:
        """For example ``missing-prewrite``."""
        return self.name.lower().replace("_", "-")


@dataclass(slots=True)
class Finding:
    """One mistake, and where. Offsets and lengths count bytes of the loaded buffer."""

    kind: Kind
    what: str  #: in a sentence
    device: str | None = None  #: the bus master, where it was one that did it
    tag: str | None = None
    map: str | None = None
    offset: int | None = None
    length: int | None = None
    owner: str | None = None  #: whose memory it is
    where: str | None = None  #: file:line of the load
    noticed: str | None = None  #: file:line of the call that did it, or in which it came to light
    other: str | None = None  #: of an overlap: the other load
    count: int = 1  #: how often it happened there

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "kind": self.kind.label}

    def __str__(self) -> str:
        parts = [f"{self.kind.label}: {self.what}"]
        if self.map is not None:
            span = "" if self.offset is None else f", bytes {self.offset}..{self.offset + (self.length or 1) - 1}"
            parts.append(f"map {self.map!r} of tag {self.tag}{span}")
        if self.owner is not None:
            parts.append(f"memory of {self.owner}")
        if self.where is not None:
            parts.append(f"loaded at {self.where}")
        if self.noticed is not None:
            parts.append(f"noticed at {self.noticed}")
        if self.other is not None:
            parts.append(f"and {self.other}")
        return "; ".join(parts) + (f" ({self.count} times)" if self.count > 1 else "")


class Report(Protocol):
    """How the parts of the checker report: `busdma.check.checker.Checker.report`."""

    def __call__(
        self,
        kind: Kind,
        load: Load | None,
        span: tuple[int, int] | None = None,
        what: str = "",
        *,
        device: str | None = None,
        other: str | None = None,
        noticed: bool = False,
    ) -> None:
        """Add a finding."""


class Findings:
    """All findings of one machine, in the order in which they were first made. Any thread may add."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Finding] = {}
        self._lock = Lock()

    def add(self, finding: Finding) -> None:
        """Add one; the same mistake at the same place is counted, not repeated."""
        key = (finding.kind, finding.device, finding.tag, finding.where, finding.noticed, finding.other)
        with self._lock:
            known = self._found.setdefault(key, finding)
            if known is not finding:
                known.count += 1

    def __iter__(self) -> Iterator[Finding]:
        with self._lock:
            return iter(list(self._found.values()))

    def __len__(self) -> int:
        return len(self._found)

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self) or "nothing found"
