# C types for segments.py, read by Cython only. The Python file is the source; this file changes no answer.
cimport cython
from libc.string cimport memmove

ctypedef unsigned long long u64
ctypedef unsigned char u8

# The numbers of an array, for loops that know its length. Array and pointer stand in one object and are set together.
cdef inline u64* _words(u64[::1] table) noexcept:
    return &table[0]

cdef inline u8* _marks(u8[::1] free) noexcept:
    return &free[0]

cdef inline void _level(u64* out, u64 first, u64 stop, u64 length) noexcept:
    cdef u64 at
    for at in range(2 * first + 1, 2 * stop, 2):
        out[at] = length

cdef inline int _copy(u8[::1] target, u64 at, const u8[::1] source, u64 start, u64 size) except -1:
    cdef u64 there = <u64>target.shape[0]
    cdef u64 here = <u64>source.shape[0]
    if at > there or size > there - at or start > here or size > here - start:
        raise ValueError("a bounce page, or what is bounced, lies outside its memory")
    memmove(&target[at], &source[start], size)
    return 0

cdef class Frames:
    cdef public u64[::1] table
    cdef u64* words
    cdef public u64 entries
    cdef public object home

cdef class Slots:
    cdef public u64[::1] addresses
    cdef public u8[::1] free
    cdef u64* words
    cdef u8* marks
    cdef public u64 entries, hint

cdef class Segmenter:
    cdef public u64 page, limit, last, beyond, align_mask, bound_mask, maxsegsz, fit, nsegments, per_page, ram_base
    cdef public u64 bounced, sent, received, count, needed, wanted, fault, nheld, held_room, npieces, room, dirty
    cdef public u64 offset
    cdef public int shift
    cdef public bint foreign
    cdef public object judge
    cdef public u64[::1] intervals, out, held, pieces
    cdef u64* out_words
    cdef u64* held_words
    cdef u64* piece_words
    cdef public u8[::1] ram, target
    cdef public const u8[::1] client

    @cython.locals(table="u64*", out="u64*", page=u64, limit=u64, index=u64, head=u64, frame=u64, stop=u64, k=u64,
                   expected=u64, size=u64, last=u64, fit=u64, mask=u64, closed=u64, joined=bint)
    cpdef long long load(self, Frames frames, u64 start, u64 length)

    @cython.locals(table="u64*", out="u64*", pieces="u64*", held="u64*", addresses="u64*", page=u64, limit=u64,
                   beyond=u64, mask=u64, fit=u64, base=u64, index=u64, size=u64, before=u64, head=u64, done=u64,
                   used=u64, k=u64, expected=u64, frame=u64, address=u64, at=u64, stop=u64)
    cpdef long long place(self, Frames frames, u64 start, u64 length, Slots slots, u64 first=*, u64 pages=*,
                         u64 lead=*)

    @cython.locals(start=u64)
    cdef u64 _close(self, u64 k, u64 end) except? 0

    @cython.locals(out="u64*", start=u64, size=u64, whole=u64, mask=u64, part=u64)
    cdef u64 _cut(self, u64 k, u64 end) noexcept

    @cython.locals(out="u64*", at=u64)
    cdef long long _finish(self, u64 k, Frames frames, u64 start, u64 length)

    @cython.locals(at=u64)
    cpdef object adopt(self, object numbers)

    cdef bint _reaches(self, u64 frame, u64 head, u64 size) except -1

    @cython.locals(low=u64, high=u64, middle=u64)
    cdef bint _covers(self, u64 lo, u64 hi) except -1

    @cython.locals(table="u64*", page=u64, limit=u64, beyond=u64, index=u64, head=u64, needed=u64, size=u64,
                   stop=u64, frame=u64)
    cpdef long long survey(self, Frames frames, u64 start, u64 length)

    cdef long long _absent(self, Frames frames, u64 index)

    @cython.locals(free="u8*", held="u64*", n=u64, stop=u64, at=u64)
    cpdef u64 take(self, Slots slots, u64 pages)

    @cython.locals(slot=u64)
    cpdef object hold(self, Slots slots, object numbers)

    @cython.locals(free="u8*", held="u64*", n=u64, at=u64, slot=u64, hint=u64)
    cpdef u64 release(self, Slots slots)

    cdef object _room_for(self, u64 pages)

    @cython.locals(copied=u64)
    cpdef u64 copy_out(self, u64 offset, u64 length)

    @cython.locals(copied=u64)
    cpdef u64 copy_in(self, u64 offset, u64 length)

    @cython.locals(pieces="u64*", end=u64, copied=u64, at=u64, lo=u64, hi=u64, skip=u64)
    cdef u64 _copy_pieces(self, const u8[::1] source, u64 origin, u8[::1] target, u64 goal, u64 offset,
                          u64 length) except? 0xFFFFFFFFFFFFFFFF
