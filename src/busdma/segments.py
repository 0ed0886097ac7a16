"""Page runs and constraints into segments: the hot path, and the one compiled module.

A `Segmenter` belongs to one map. It holds the numbers of the map's tag and an output array, walks a page table and
writes segments: maximal physical runs, cut at boundaries and at maxsegsz, in the fewest pieces. `load` places a buffer
whose pages are all reachable. Where some are not it counts them; `place` then puts bounce pages, taken from `Slots`,
in their stead and remembers what to copy at a sync.

The file runs as plain Python and, with the C types of ``segments.pxd``, compiled; both give the same answers for every
unsigned 64-bit address. Compiled arithmetic wraps at 2**64 and Python's does not, so nothing here compares a sum that
may have wrapped. As Python it is fast because lengths in the output are kept at one page, so that a page that stands
alone costs one store, and a page is compared with one number, ``limit``, before anything slower is asked.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import cython  # understood by the compiler, never executed
else:
    globals()["cython"] = type("cython", (), {"compiled": False})

ABSENT: Final = 0xFFFFFFFFFFFFFFFF  #: a page table's entry for a page that is not mapped
FOREIGN: Final = 0xFFFFFFFFFFFFFFFE  #: an entry for a page of memory that the machine does not know

#: what `Segmenter.load` and `Segmenter.place` answer beside a count of segments
UNREACHABLE: Final = -1  #: ``needed`` pages have to be bounced
TOO_MANY: Final = -2  #: ``wanted`` segments, more than nsegments
NOT_MAPPED: Final = -3  #: page ``fault`` of the table is ABSENT, or the buffer leaves the table

if not cython.compiled:

    def _words(table: array[int]) -> array[int]:
        """An array as the loops walk it."""
        return table

    def _marks(free: bytearray) -> bytearray:
        """The same for bytes."""
        return free

    def _level(out: array[int], first: int, stop: int, length: int) -> None:
        """Set the lengths of entries [first, stop) to `length`."""
        out[2 * first + 1 : 2 * stop : 2] = array("Q", [length]) * (stop - first)

    def _copy(target: memoryview, at: int, source: memoryview, start: int, size: int) -> None:
        """Copy bytes. ValueError if either end is not inside its memory."""
        target[at : at + size] = source[start : start + size]


class Frames:
    """A page table as the segmenter reads it: entry i is page i's physical address, ABSENT, FOREIGN. `home`: whose."""

    __slots__ = ("entries", "home", "table", "words")

    def __init__(self, table: array[int], home: object = None) -> None:
        self.table, self.home = table, home
        self.words = _words(self.table)
        self.entries = len(table)


class Slots:
    """The bounce pages of one zone: slot i's physical address, and 1 in ``free`` if nobody has it."""

    __slots__ = ("addresses", "entries", "free", "hint", "marks", "words")

    def __init__(self, entries: int) -> None:
        self.addresses = array("Q", [ABSENT]) * entries
        self.words = _words(self.addresses)
        self.free = bytearray(entries)
        self.marks = _marks(self.free)
        self.entries = entries
        self.hint = 0  # no slot below is free


_FIELDS: Final = (
    "align_mask beyond bounced bound_mask client count dirty fault fit foreign held held_room held_words intervals "
    "judge last limit maxsegsz needed nheld npieces nsegments offset out out_words page per_page piece_words "
    "pieces ram ram_base received room sent shift target wanted"
)


class Segmenter:
    """The segments of one map. Sizes and addresses are bytes; ``out`` is ``address, length`` pairs."""

    __slots__ = tuple(_FIELDS.split())

    def __init__(
        self,
        page_size: int,
        reach: array[int],
        alignment: int,
        boundary: int,
        maxsegsz: int,
        nsegments: int,
        ram: memoryview,
        ram_base: int,
        entries: int,
        judge: Callable[[int, int, int], bool] | None = None,
        offset: int = 0,
    ) -> None:
        """`reach`: flat lo, hi pairs of physical addresses, inclusive, ascending. `maxsegsz`: in whole alignments.

        `judge`: asked about addresses outside `reach`, with the first, the last and the page size. `offset`: a bus
        address minus the physical one, modulo 2**64; it shifts no boundary line (`busdma.paths.Window`).
        """
        self.page = page_size
        self.shift = page_size.bit_length() - 1
        self.intervals = reach
        self.last = self.limit = 0
        self.beyond = ABSENT  # nothing above can be reached, where that is known
        self.judge = judge
        if len(reach) > 0 and reach[0] == 0 and alignment <= page_size:
            self.last = reach[1]
            if reach[1] >= page_size - 1:
                self.limit = reach[1] - page_size + 2  # addresses of whole pages below this end within the interval
            if len(reach) == 2 and judge is None:
                self.beyond = reach[1]
        self.align_mask = alignment - 1
        self.bound_mask = boundary - 1 if boundary > 0 else ABSENT
        self.maxsegsz = maxsegsz
        self.nsegments = nsegments
        self.per_page = 1
        if maxsegsz < page_size:
            self.per_page += (page_size + maxsegsz - 1) // maxsegsz
        if 0 < boundary < page_size:
            self.per_page += page_size // boundary
        self.offset = offset & ABSENT
        # No longer run within a boundary is a segment as it is; where a page may have to be cut or moved, none is.
        self.fit = 0 if self.per_page > 1 or self.offset else maxsegsz
        self.ram = self.client = self.target = ram
        self.foreign = False  # client and target are the host's memory, not ram
        self.ram_base = ram_base
        self.count = self.needed = self.wanted = self.fault = self.room = self.nheld = self.npieces = 0
        self.dirty = 0  # entries of out from the second on whose lengths may not be a page
        self.held = array("Q")
        self._room_for(1)
        self.bounced = self.sent = self.received = 0  # pages bounced, and bytes copied to and from them, ever
        self._grow(max(entries, self.per_page))

    def load(self, frames: Frames, start: int, length: int) -> int:
        """Place `length` bytes from byte `start` of `frames` where they lie; the number of segments, or a refusal."""
        table = frames.words
        page = self.page
        limit = self.limit
        out = self.out_words
        index = start >> self.shift
        head = start & (page - 1)
        self.count = 0
        if length < 1 or index >= frames.entries:
            self.fault = index
            return NOT_MAPPED
        frame = table[index]
        size = page - head
        if length <= size:
            if (frame >= limit and not self._reaches(frame, head, length)) or head & self.align_mask:
                return self.survey(frames, start, length)
            out[0] = frame + head
            if length > self.fit:
                return self._finish(self._close(2, frame + head + length), frames, start, length)
            out[1] = length
            self.count = 1
            return 1
        if (frame >= limit and not self._reaches(frame, head, size)) or head & self.align_mask:
            return self.survey(frames, start, length)
        if length - 1 > ((frames.entries - index) << self.shift) - head - 1:
            return self._absent(frames, index)
        stop = (start + length - 1) >> self.shift
        if (stop - index + 1) * self.per_page > self.room:
            self._grow((stop - index + 1) * self.per_page)
            out = self.out_words
        if self.dirty > 1:
            _level(out, 1, self.dirty, page)
        self.dirty = self.room  # until all of it was walked: a filter may raise
        last = self.last
        fit = self.fit
        mask = self.bound_mask
        joined = True
        closed = 0
        out[0] = frame + head
        k = 2
        expected = frame + page
        for frame in table[index + 1 : stop]:
            if frame == expected and frame & mask:
                joined = True
            else:
                if joined:
                    size = expected - out[k - 2]
                    if size > fit or expected - 1 > last:
                        k = self._close(k, expected)
                        if k == 0:
                            return self.survey(frames, start, length)
                    else:
                        out[k - 1] = size
                    closed = k
                    joined = not fit
                if frame >= limit and not self._reaches(frame, 0, page):
                    return self.survey(frames, start, length)
                out[k] = frame
                k += 2
            expected = frame + page
        self.dirty = closed >> 1
        frame = table[stop]
        size = ((start + length - 1) & (page - 1)) + 1
        if not (frame == expected and frame & mask):
            if joined:
                k = self._close(k, expected)
                if k == 0:
                    return self.survey(frames, start, length)
            if frame >= limit and not self._reaches(frame, 0, size):
                return self.survey(frames, start, length)
            out[k] = frame
            k += 2
        return self._finish(self._close(k, frame + size), frames, start, length)

    def place(
        self, frames: Frames, start: int, length: int, slots: Slots, first: int = 0, pages: int = 0, lead: int = 0
    ) -> int:
        """Place the buffer with the held slots instead of unreachable pages; the number of segments, or TOO_MANY.

        The `pages` pages from number `first`, counted from the buffer's first, go to one run of slots, reachable or
        not, and begin `lead` bytes into it. Where no slot is held, ``needed`` are taken; UNREACHABLE if too few are.
        """
        stop = (start + length - 1) >> self.shift
        if stop >= frames.entries:  # it has shrunk since it was surveyed
            return self._absent(frames, start >> self.shift)
        if self.nheld == 0 and self.take(slots, self.needed) < self.needed:
            self.release(slots)
            return UNREACHABLE
        table = frames.words
        page = self.page
        limit = self.limit
        beyond = self.beyond
        mask = self.bound_mask
        fit = self.fit if pages == 0 else 0  # the pages of a run need not begin where pages do
        base = self.ram_base
        index = start >> self.shift
        head = start & (page - 1)
        first += index
        self.count = done = used = at = k = expected = 0
        if (stop - index + 1) * self.per_page > self.room:
            self._grow((stop - index + 1) * self.per_page)
        self.dirty = self.room
        out = self.out_words
        pieces = self.piece_words
        held = self.held_words
        addresses = slots.words
        while done < length:
            size = page - head
            if size > length - done:
                size = length - done
            frame = table[index]
            if (
                (frame >= limit and (frame > beyond or not self._reaches(frame, head, size)))
                or (head and head & self.align_mask)
                or (pages and first <= index < first + pages)
            ):
                if used >= self.nheld:
                    return UNREACHABLE
                if not pages or index < first or index >= first + pages:
                    address = addresses[held[used]]
                    if not (head & self.align_mask):
                        address += head
                elif index > first:
                    address = expected
                else:
                    address = addresses[held[used]] + lead
                used += 1
                pieces[at] = done
                pieces[at + 1] = start + done if frame == FOREIGN else frame + head - base
                pieces[at + 2] = address - base
                pieces[at + 3] = size
                at += 4
            else:
                address = frame + head
            if k == 0:
                out[0] = address
                k = 2
            elif address != expected or not (address & mask):
                before = expected - out[k - 2]
                if before > fit:
                    k = self._cut(k, expected)
                else:
                    out[k - 1] = before
                out[k] = address
                k += 2
            expected = address + size
            done += size
            head = 0
            index += 1
        self.npieces = used
        self.bounced += used
        return self._finish(self._cut(k, expected), frames, start, length)

    def _close(self, k: int, end: int) -> int:
        """Cut the run that starts at out[k-2] and ends before `end`; the new k, or 0 if the run leaves the reach."""
        start = self.out_words[k - 2]
        if end - 1 > self.last and not self._covers(start, end - 1):
            return 0
        return self._cut(k, end)

    def _cut(self, k: int, end: int) -> int:
        """The same for a run that is known to be within reach."""
        out = self.out_words
        start = out[k - 2]
        size = whole = end - start
        mask = self.bound_mask
        while True:
            part = mask - (start & mask)
            if size - 1 <= part:
                part = size
            else:
                part += 1
            if part > self.maxsegsz:
                part = self.maxsegsz
            out[k - 2] = start
            out[k - 1] = part
            if part == size:
                break
            size -= part
            start += part
            k += 2
        if whole != self.page and k > 2 * self.dirty:
            self.dirty = k >> 1
        return k

    def _finish(self, k: int, frames: Frames, start: int, length: int) -> int:
        """The answer for `k` numbers in the output; 0: a run left the reach."""
        if k == 0:
            return self.survey(frames, start, length)
        if k >> 1 > self.nsegments:
            self.wanted = k >> 1
            return TOO_MANY
        self.count = k >> 1
        if self.offset:
            out = self.out_words
            for at in range(0, k, 2):
                out[at] = (out[at] + self.offset) & ABSENT
        return k >> 1

    def adopt(self, numbers: Sequence[int]) -> None:
        """Take these segments, addresses and lengths in turn, from whoever placed the buffer in another way."""
        self.count = len(numbers) >> 1
        if self.count > self.room:
            self._grow(self.count)
        self.dirty = self.room
        for at in range(2 * self.count):
            self.out_words[at] = numbers[at]

    def _grow(self, entries: int) -> None:
        self.out = array("Q", [self.page]) * (2 * entries)
        self.out_words = _words(self.out)
        self.room = entries
        self.dirty = 0

    def _reaches(self, frame: int, head: int, size: int) -> bool:
        """True if a segment may start `head` bytes into page `frame` and run for `size` bytes."""
        if frame & (self.page - 1) or (frame + head) & self.align_mask:
            return False  # ABSENT, FOREIGN, or misaligned
        return self._covers(frame + head, frame + head + (size - 1))

    def _covers(self, lo: int, hi: int) -> bool:
        """True if one interval of the reach holds all from `lo` to `hi`, both included, or the judge agrees."""
        low, high = 0, len(self.intervals) >> 1
        while low < high:
            middle = (low + high) >> 1
            if self.intervals[2 * middle] <= lo:
                low = middle + 1
            else:
                high = middle
        if low > 0 and hi <= self.intervals[2 * low - 1]:
            return True
        return self.judge is not None and bool(self.judge(lo, hi, self.page))

    def survey(self, frames: Frames, start: int, length: int) -> int:
        """Count in ``needed`` the pages to bounce, and in ``wanted`` the most segments that the pages could make."""
        table = frames.words
        page = self.page
        limit = self.limit
        beyond = self.beyond
        index = start >> self.shift
        head = start & (page - 1)
        size = page - head
        if index >= frames.entries:
            return self._absent(frames, index)
        if length <= size:
            size = length
        elif length - 1 > ((frames.entries - index) << self.shift) - head - 1:
            return self._absent(frames, index)
        stop = (start + length - 1) >> self.shift
        frame = table[index]
        needed = 0
        if (head & self.align_mask) or (frame >= limit and (frame > beyond or not self._reaches(frame, head, size))):
            if frame == ABSENT:
                return self._absent(frames, index)
            needed = 1
        if stop > index:
            for frame in table[index + 1 : stop]:
                if frame >= limit and (frame > beyond or not self._reaches(frame, 0, page)):
                    if frame == ABSENT:
                        return self._absent(frames, index)
                    needed += 1
            frame = table[stop]
            size = ((start + length - 1) & (page - 1)) + 1
            if frame >= limit and (frame > beyond or not self._reaches(frame, 0, size)):
                if frame == ABSENT:
                    return self._absent(frames, index)
                needed += 1
        self.needed = needed
        self.wanted = (stop - index + 1) * self.per_page
        return UNREACHABLE

    def _absent(self, frames: Frames, index: int) -> int:
        """Name the first page from `index` on that is not mapped, or not in the table."""
        while index < frames.entries and frames.words[index] != ABSENT:
            index += 1
        self.fault = index
        return NOT_MAPPED

    def take(self, slots: Slots, pages: int) -> int:
        """Hold `pages` free slots, the lowest ones; how many there were."""
        n = self.nheld
        stop = n + pages
        if stop > self.held_room:
            self._room_for(stop)
        free = slots.marks
        held = self.held_words
        at = slots.hint
        while n < stop and at < slots.entries:
            if free[at]:
                free[at] = 0
                held[n] = at
                n += 1
            at += 1
        slots.hint = at
        pages = n - self.nheld
        self.nheld = n
        return pages

    def hold(self, slots: Slots, numbers: Sequence[int]) -> None:
        """Hold these slots, which the caller knows to be free, and their pages to be contiguous."""
        if self.nheld + len(numbers) > self.held_room:
            self._room_for(self.nheld + len(numbers))
        for slot in numbers:
            slots.marks[slot] = 0
            self.held_words[self.nheld] = slot
            self.nheld += 1

    def release(self, slots: Slots) -> int:
        """Give back every held slot; how many."""
        free = slots.marks
        held = self.held_words
        n = self.nheld
        hint = slots.hint
        for at in range(n):
            slot = held[at]
            free[slot] = 1
            if slot < hint:
                hint = slot
        slots.hint = hint
        self.nheld = self.npieces = self.count = 0
        return n

    def _room_for(self, pages: int) -> None:
        self.held = array("Q", list(self.held)[: self.nheld]) + array("Q", [0]) * (pages - self.nheld)
        self.held_words = _words(self.held)
        self.held_room = pages
        self.pieces = array("Q", [0]) * (4 * pages)
        self.piece_words = _words(self.pieces)

    def copy_out(self, offset: int, length: int) -> int:
        """Copy the client's bytes of [offset, offset+length) to the bounce pages; how many bytes."""
        self.sent += (copied := self._copy_pieces(self.client, 1, self.ram, 2, offset, length))
        return copied

    def copy_in(self, offset: int, length: int) -> int:
        """Copy the bounce pages' bytes of [offset, offset+length) to the client; how many bytes."""
        self.received += (copied := self._copy_pieces(self.ram, 2, self.target, 1, offset, length))
        return copied

    def _copy_pieces(
        self, source: memoryview, origin: int, target: memoryview, goal: int, offset: int, length: int
    ) -> int:
        pieces = self.piece_words
        end = offset + length
        copied = 0
        for at in range(0, 4 * self.npieces, 4):
            lo = pieces[at]
            hi = lo + pieces[at + 3]
            skip = offset - lo if lo < offset else 0
            lo += skip
            if hi > end:
                hi = end
            if lo < hi:
                _copy(target, pieces[at + goal] + skip, source, pieces[at + origin] + skip, hi - lo)
                copied += hi - lo
        return copied
