"""The C reference: compiled when it is needed, and called through ctypes.

``reference.c`` is what a kernel would do for the same load. It stands beside this file, is compiled with the C compiler
that this Python was built with (or ``CC``) at -O2 into a folder that does not outlive the call, and needs no headers of
Python. `ReferenceMap` is one map of it: the benchmark runs cycles on it, and the tests ask it for its segments.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from array import array
from pathlib import Path
from typing import Final

from busdma.errors import ConfigurationError

SOURCE: Final = Path(__file__).with_name("reference.c")
FLAGS: Final = ("-O2", "-std=c11", "-shared", "-fPIC")

#: what a load answers beside a count of segments; TOO_MANY may come before a page that is out of reach was met
TOO_MANY: Final = -2
NOT_MAPPED: Final = -3
SHORTAGE: Final = -4


class _Map(ctypes.Structure):
    """``struct map``, with the tag and the zone laid flat into it: every field is 64 bits or a pointer."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("shift", "lowaddr", "alignment", "boundary", "maxsegsz", "nsegments")),
        *((name, ctypes.c_void_p) for name in ("zone_pages", "zone_free")),
        *((name, ctypes.c_uint64) for name in ("zone_entries", "zone_hint")),
        *((name, ctypes.c_void_p) for name in ("ram", "segments", "pieces", "held")),
        *((name, ctypes.c_uint64) for name in ("count", "npieces", "nheld")),
    )


def find_compiler() -> list[str]:
    """The C compiler and its own options: ``CC``, or the one this Python was built with, or ``cc``.

    ConfigurationError if there is none.
    """
    named = os.environ.get("CC")
    candidates = [named] if named else [sysconfig.get_config_var("CC"), "cc", "gcc", "clang"]
    for candidate in candidates:
        words = shlex.split(candidate or "")
        if words and shutil.which(words[0]):
            return words
    missing = f"CC={named} cannot be found" if named else "none is installed"
    raise ConfigurationError(
        f"the benchmark compares with C and needs a C compiler, but {missing}: install gcc or clang (Debian, Ubuntu: "
        "apt install gcc), or name one in CC"
    )


def build() -> ctypes.CDLL:
    """Compile ``reference.c`` and load it. ConfigurationError if there is no compiler, or it fails."""
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(prefix="busdma-bench-") as folder:
        library = Path(folder) / "reference.so"
        done = subprocess.run(
            [*compiler, *FLAGS, "-o", str(library), str(SOURCE)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ConfigurationError(
                f"{compiler[0]} could not compile the benchmark's reference ({SOURCE}); name another compiler in CC. "
                f"It said: {done.stderr.strip()[-500:]}"
            )
        loaded = ctypes.CDLL(str(library))
    loaded.reference_map_size.restype = ctypes.c_size_t
    size = loaded.reference_map_size()
    if size != ctypes.sizeof(_Map):
        raise ConfigurationError(
            f"{compiler[0]} lays out the reference's struct map in {size} bytes, not {ctypes.sizeof(_Map)}: name a "
            "compiler for this machine in CC"
        )
    page_table = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    loaded.reference_load.argtypes = (ctypes.c_void_p, *page_table)
    loaded.reference_load.restype = ctypes.c_int64
    loaded.reference_sync.argtypes = (ctypes.c_void_p,)
    loaded.reference_sync.restype = None
    loaded.reference_unload.argtypes = (ctypes.c_void_p,)
    loaded.reference_unload.restype = None
    loaded.reference_cycles.argtypes = (ctypes.c_void_p, *page_table, ctypes.c_uint64)
    loaded.reference_cycles.restype = ctypes.c_int64
    return loaded


class ReferenceMap:
    """One map of the reference, with a zone of its own. Addresses and sizes are bytes; reach is [0, lowaddr].

    `zone_pages`: physical addresses of the bounce pages, all free, lowest slot first. `most`: pages of the longest
    buffer. `boundary` 0: none.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        ram: memoryview,
        zone_pages: array[int],
        *,
        page_size: int,
        lowaddr: int,
        alignment: int,
        boundary: int,
        maxsegsz: int,
        nsegments: int,
        most: int,
    ) -> None:
        self._library = library
        cuts = 2 + (
            page_size // min(maxsegsz, boundary or maxsegsz) + 1
            if min(maxsegsz, boundary or maxsegsz) < page_size
            else 0
        )
        self._segments = array("Q", [0]) * (2 * most * cuts)
        self._pieces = array("Q", [0]) * (3 * most)
        self._held = array("Q", [0]) * most
        self._zone_pages = array("Q", zone_pages)
        self._zone_free = (ctypes.c_uint8 * max(len(zone_pages), 1))(*([1] * len(zone_pages)))
        self._ram = (ctypes.c_uint8 * len(ram)).from_buffer(ram)
        self._map = _Map(
            shift=page_size.bit_length() - 1,
            lowaddr=lowaddr,
            alignment=alignment,
            boundary=boundary,
            maxsegsz=maxsegsz,
            nsegments=min(nsegments, most * cuts),
            zone_pages=self._zone_pages.buffer_info()[0],
            zone_free=ctypes.addressof(self._zone_free),
            zone_entries=len(zone_pages),
            ram=ctypes.addressof(self._ram),
            segments=self._segments.buffer_info()[0],
            pieces=self._pieces.buffer_info()[0],
            held=self._held.buffer_info()[0],
        )
        self._at = ctypes.addressof(self._map)

    def load(self, table: array[int], start: int, length: int) -> int:
        """Load `length` bytes from byte `start` of a page table; the number of segments, or a refusal."""
        answer: int = self._library.reference_load(self._at, table.buffer_info()[0], len(table), start, length)
        return answer

    def segments(self) -> list[tuple[int, int]]:
        """What is loaded, as (address, length)."""
        flat = self._segments[: 2 * self._map.count]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def sync(self) -> None:
        """sync(PREWRITE): copy what is bounced."""
        self._library.reference_sync(self._at)

    def unload(self) -> None:
        """Give the bounce pages back."""
        self._library.reference_unload(self._at)

    def cycles(self, table: array[int], start: int, length: int, cycles: int) -> int:
        """Run `cycles` times load, sync(PREWRITE), unload, all in C; what the last load answered."""
        answer: int = self._library.reference_cycles(
            self._at, table.buffer_info()[0], len(table), start, length, cycles
        )
        return answer
