"""Mistakes other than a sync, load or unload that is missing: each is planted, and each is found by its name.

A mistake is a small program on a machine under the checker. It returns nothing, and is found; or it returns what the
CPU or the device saw and what it must not have seen, and that was poison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from busdma.buffers import LinearBuffer
from busdma.drivers.block import transfer_all
from busdma.errors import BusdmaError, DriverError
from busdma.lists import BufferList
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.zone import Zone
from busdma.runtime import by_name
from busdma.segments import Segmenter
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from busdma.translators.sun4m import Sun4mTable
from busdma.unmapped import PageArray
from check.bench import BOTH, FROM, PAGE, POST, PRE, TO, Bench, pairs, pattern

SIZE = 6000
DATA, NEW = pattern(SIZE), pattern(SIZE, 2)


class Seen(NamedTuple):
    """What somebody saw, and everything that was right at some time."""

    seen: bytes
    right: tuple[bytes, ...]


Mistake = Callable[[Bench, pytest.MonkeyPatch], Seen | None]
MISTAKES: dict[str, tuple[Mistake, frozenset[str], dict[str, bool]]] = {}


def planted(*labels: str, **options: bool) -> Callable[[Mistake], Mistake]:
    """Enter a mistake under its name, with the findings that it makes; none: it yields poison."""

    def enter(mistake: Mistake) -> Mistake:
        MISTAKES[mistake.__name__] = mistake, frozenset(labels), options
        return mistake

    return enter


def filled(buffer: LinearBuffer, data: bytes = DATA) -> LinearBuffer:
    buffer.write(data)
    return buffer


# -- the CPU, and what the device owns ---------------------------------------------------------------------------------


@planted("cpu-wrote")
def cpu_stores_what_a_device_reads(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, TO)
    map.sync(PREWRITE)
    buffer.write(b"late", 100)
    assert bench.reads(map.segments) == DATA
    map.sync(POSTWRITE)
    map.unload()


@planted("cpu-wrote")
def cpu_stores_what_a_device_reads_from_bounce_pages(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, TO, bench.low)
    map.sync(PREWRITE)
    buffer.write(b"late", 100)
    assert bench.reads(map.segments) == DATA
    map.sync(POSTWRITE)
    map.unload()


@planted("cpu-wrote")
def cpu_stores_into_the_hosts_memory_that_a_device_reads(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    data = bytearray(DATA)
    map = bench.loaded(data, TO)
    map.sync(PREWRITE)
    data[5] ^= 1
    map.sync(POSTWRITE)
    map.unload()


@planted("cpu-wrote")
def cpu_stores_what_a_device_is_to_write(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, FROM)
    map.sync(PREREAD)
    buffer.write(b"early", 4090)
    bench.writes(map.segments, NEW)
    map.sync(POSTREAD)
    map.unload()
    assert buffer.read() == NEW


@planted("cpu-wrote")
def cpu_stores_what_a_device_is_to_write_into_bounce_pages(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, FROM, bench.low)
    map.sync(PREREAD)
    buffer.write(b"early", 4090)
    bench.writes(map.segments, NEW)
    map.sync(POSTREAD)
    map.unload()


@planted("cpu-wrote")
def cpu_clears_the_hosts_memory_after_it_gave_it_away(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    data = bytearray(DATA)
    map = bench.loaded(data, FROM)
    map.sync(PREREAD)
    data[:] = bytes(SIZE)
    bench.writes(map.segments, NEW)
    map.sync(POSTREAD)
    map.unload()


@planted("cpu-wrote")
def driver_writes_a_descriptor_that_the_device_still_has(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    ring = bench.tag.alloc(PAGE)
    ring.sync(PRE)
    ring.view[64:80] = bytes(range(16))
    ring.sync(PREWRITE, 64, 16)
    ring.sync(POST)
    ring.free()


@planted("cpu-wrote")
def process_writes_a_picture_while_the_device_paints_it(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    memory = bench.tag.alloc(2 * PAGE)
    shown = memory.mmap(bench.process("viewer"))
    memory.sync(PREREAD)
    shown.write(b"doodle", PAGE)
    memory.sync(POSTREAD)
    shown.free()
    memory.free()


@planted("cpu-wrote")
def buffer_is_filled_between_pre_and_post(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, BOTH)
    map.sync(PRE)
    buffer.fill(0)
    map.sync(POST)
    map.unload()


@planted()
def cpu_loads_before_the_device_gave_it_back(bench: Bench, patch: pytest.MonkeyPatch) -> Seen:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, FROM)
    map.sync(PREREAD)
    bench.writes(map.segments, NEW)
    seen = buffer.read()
    map.sync(POSTREAD)
    map.unload()
    assert buffer.read() == NEW
    return Seen(seen, (DATA, NEW))


@planted()
def cpu_loads_from_a_bounced_buffer_before_the_device_gave_it_back(bench: Bench, patch: pytest.MonkeyPatch) -> Seen:
    data = bytearray(DATA)
    map = bench.loaded(data, FROM)
    map.sync(PREREAD)
    bench.writes(map.segments, NEW)
    seen = bytes(data)
    map.sync(POSTREAD)
    map.unload()
    assert data == NEW
    return Seen(seen, (DATA, NEW))


@planted()
def driver_polls_a_status_that_it_never_fetches(bench: Bench, patch: pytest.MonkeyPatch) -> Seen:
    ring = bench.tag.alloc(PAGE)
    ring.sync(PREREAD)
    bench.writes(ring.segments, NEW[:PAGE])
    seen = bytes(ring.view)
    ring.sync(POSTREAD)
    ring.free()
    return Seen(seen, (bytes(PAGE), NEW[:PAGE]))


# -- the device, and what is not its own -------------------------------------------------------------------------------


@planted("after-unload")
def device_reads_an_old_address(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(filled(bench.high(SIZE)), TO)
    segments = pairs(map.segments)
    map.sync(PREWRITE)
    map.sync(POSTWRITE)
    map.unload()
    assert DATA[:64] not in bench.reads(segments)


@planted("after-unload")
def device_writes_late(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, FROM)
    segments = pairs(map.segments)
    map.sync(PREREAD)
    map.sync(POSTREAD)
    map.unload()
    bench.writes(segments, NEW)
    assert buffer.read() == DATA


@planted("after-unload")
def device_writes_into_a_bounce_page_late(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bytearray(SIZE), FROM, bench.low)
    segments = pairs(map.segments)
    map.sync(PREREAD)
    map.sync(POSTREAD)
    map.unload()
    bench.writes(segments, NEW)


@planted("after-unload")
def memory_is_freed_while_the_device_still_uses_it(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    ring = bench.tag.alloc(PAGE)
    segments = pairs(ring.segments)
    ring.free()
    bench.writes(segments, NEW[:PAGE])


@planted("outside-map")
def device_reads_one_byte_too_much(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(filled(bench.high(100), DATA[:100]), TO)
    map.sync(PREWRITE)
    ((address, length),) = map.segments
    assert bench.reads([(address, length + 1)])[:-1] == DATA[:100]
    map.sync(POSTWRITE)
    map.unload()


@planted("outside-map")
def device_begins_too_early(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(100, offset=40), FROM)
    map.sync(PREREAD)
    ((address, length),) = map.segments
    bench.writes([(address - 4, length)], DATA[:100])
    map.sync(POSTREAD)
    map.unload()


@planted("outside-map")
def device_mixes_up_the_lengths_of_segments(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = PageArray(bench.domain, [0x20000, 0x40000], 1000, 5000)
    map = bench.loaded(buffer, TO)
    map.sync(PREWRITE)
    (first, _), (second, length) = pairs(map.segments)
    bench.reads([(second, PAGE), (first, length)])
    map.sync(POSTWRITE)
    map.unload()


@planted("wrong-way")
def device_writes_what_it_was_to_read(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, TO)
    map.sync(PREWRITE)
    bench.writes(map.segments, NEW)
    map.sync(POSTWRITE)
    map.unload()


@planted("wrong-way")
def device_reads_what_it_was_to_write(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE), FROM)
    map.sync(PREREAD)
    bench.reads(map.segments)
    map.sync(POSTREAD)
    map.unload()


@planted("never-loaded")
def device_is_given_a_virtual_address(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(PageArray(bench.domain, [0x100000, 0x101000], 0, SIZE))  # type: ignore[arg-type]
    map = bench.loaded(buffer, TO)
    map.sync(PREWRITE)
    assert bench.reads([(0x10000, SIZE)]) != DATA
    map.sync(POSTWRITE)
    map.unload()


@planted("never-loaded")
def device_reads_from_address_zero_as_it_was_never_programmed(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    bench.device.dma_read(0, 16)


@planted("no-answer")
def device_uses_an_address_beyond_memory(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    assert bench.device.dma_read(2 * bench.half, 16) == b"\xff" * 16


@planted("no-answer", remap=True)
def device_behind_an_iommu_is_given_a_physical_address(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    bench.device.dma_write(0x20000, b"data")


@planted("no-answer", remap=True)
def device_behind_an_iommu_writes_what_it_was_to_read(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(filled(bench.high(SIZE)), TO)
    map.sync(PREWRITE)
    bench.writes(map.segments, NEW)
    map.sync(POSTWRITE)
    map.unload()


@planted("after-unload", remap=True, standing=True)
def device_uses_a_translation_that_was_left_standing(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE), FROM)
    segments = pairs(map.segments)
    map.unload()
    bench.writes(segments, NEW)


@planted("stale-translation", remap=True)
def cleared_translations_are_not_flushed(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sun4mTable, "flush", lambda *_: None)
    map = bench.loaded(filled(bench.high(SIZE)), TO)
    map.sync(PREWRITE)
    segments = pairs(map.segments)
    bench.reads(segments)
    map.sync(POSTWRITE)
    map.unload()
    assert DATA[:64] not in bench.reads(segments)


@planted("stale-translation", remap=True)
def too_few_translations_are_flushed(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    flush = Sun4mTable.flush
    patch.setattr(Sun4mTable, "flush", lambda self, address, pages: flush(self, address, pages - 1))
    map = bench.loaded(bench.high(2 * PAGE), FROM)
    map.sync(PREREAD)
    segments = pairs(map.segments)
    bench.writes(segments, bytes(2 * PAGE))
    map.sync(POSTREAD)
    map.unload()
    bench.device.dma_write(segments[0][0] + PAGE, b"late")


@planted("stale-translation", remap=True)
def stale_translation_reaches_what_another_map_has_loaded(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sun4mTable, "flush", lambda *_: None)
    old, new = filled(bench.high(PAGE), DATA[:PAGE]), filled(bench.high(PAGE), NEW[:PAGE])
    first = bench.loaded(old, TO)
    first.sync(PREWRITE)
    bench.reads(first.segments)
    first.sync(POSTWRITE)
    first.unload()
    second = bench.loaded(new, TO)  # at the same bus pages
    second.sync(PREWRITE)
    third = bench.loaded(old, TO)
    third.sync(PREWRITE)
    assert bench.reads(second.segments) == DATA[:PAGE]
    for map in (second, third):
        map.sync(POSTWRITE)
        map.unload()


@planted("missing-preread")
def device_goes_on_after_it_was_reported_idle(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, FROM)
    map.sync(PREREAD)
    map.report_idle()
    bench.writes(map.segments, NEW)
    map.unload()
    assert buffer.read() == DATA


@planted("missing-preread")
def driver_takes_the_interrupt_of_another_transfer_for_its_own(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = filled(bench.high(SIZE))
    map = bench.loaded(buffer, FROM)
    map.sync(PREREAD)
    map.sync(POSTREAD)
    bench.writes(map.segments, NEW)
    map.unload()
    assert buffer.read() == DATA


@planted("missing-prewrite")
def device_reads_a_ring_entry_that_is_not_ready(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    ring = bench.tag.alloc(PAGE)
    ring.view[:32] = DATA[:32]
    ring.sync(PREWRITE, 0, 16)
    assert bench.device.dma_read(ring.address, 32)[16:] != DATA[16:32]
    ring.sync(POSTWRITE, 0, 16)
    ring.free()


# -- loads that share bytes --------------------------------------------------------------------------------------------


def twice(bench: Bench, one: object, other: object, *tags: object) -> None:
    first, second = bench.loaded(one, FROM, tags[0]), bench.loaded(other, FROM, tags[1])  # type: ignore[arg-type]
    first.unload()
    second.unload()


@planted("overlap")
def two_devices_write_one_buffer(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = bench.high(SIZE)
    twice(bench, buffer, buffer[5000:], bench.bus, bench.bus)


@planted("overlap")
def two_devices_write_one_bounced_buffer(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = bench.high(SIZE)
    twice(bench, buffer[:100], buffer[99:200], bench.low, bench.low)


@planted("overlap")
def two_devices_write_one_buffer_of_the_host(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    data = bytearray(SIZE)
    twice(bench, memoryview(data)[:100], memoryview(data)[50:], bench.bus, bench.bus)


@planted("overlap")
def one_device_reaches_a_buffer_and_another_bounces_it(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = bench.high(SIZE)
    twice(bench, buffer, buffer, bench.bus, bench.low)


@planted("overlap")
def one_device_bounces_a_buffer_and_another_reaches_it(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = bench.high(SIZE)
    twice(bench, buffer, buffer, bench.low, bench.bus)


@planted("overlap")
def picture_is_sent_while_it_is_painted(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    picture = bench.tag.alloc(2 * PAGE)
    picture.sync(PREREAD)
    map = bench.loaded(picture, TO)
    map.sync(PREWRITE)
    map.sync(POSTWRITE)
    map.unload()
    picture.sync(POSTREAD)
    picture.free()


@planted("overlap")
def list_to_be_written_has_bytes_twice(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = bench.high(SIZE)
    bench.loaded(BufferList([buffer[:100], buffer[50:150]]), FROM).unload()


# -- drivers that look -------------------------------------------------------------------------------------------------


@planted("sim-read")
def driver_reads_what_it_should_pass_on(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    sealed = bench.sealed(bytes(DATA))
    assert sealed[10:20].read() == DATA[10:20]  # type: ignore[union-attr]


@planted("sim-read")
def driver_indexes_what_it_should_pass_on(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    sealed = bench.sealed(filled(bench.high(SIZE)))
    assert sealed[100:][-1] == DATA[-1]


@planted("sim-read")
def driver_of_a_disk_copies_the_data_itself(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    class Disk:
        name, block_size, blocks, maxio = "disk", 512, 64, 4096
        medium = bytearray(32768)

        async def write(self, lba: int, buffer: object, deadline: int | None = None) -> None:
            self.medium[lba * 512 : lba * 512 + len(buffer)] = bytes(buffer)  # type: ignore[arg-type, call-overload]

        read = write

        async def flush(self, deadline: int | None = None) -> None: ...

    runtime, data = bench.runtime, filled(bench.high(8192), pattern(8192))
    disk = Disk()
    bench.run(lambda: transfer_all(disk, 0, bench.sealed(data), TO, runtime=runtime))
    assert disk.medium[:8192] == pattern(8192)


# -- states, frees and leaks -------------------------------------------------------------------------------------------


@planted("state")
def unloaded_twice(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE))
    map.unload()
    with pytest.raises(BusdmaError):
        map.unload()


@planted("state")
def loaded_twice(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE))
    with pytest.raises(BusdmaError):
        map.load_nowait(bench.high(SIZE), BOTH)
    map.unload()


@planted("state")
def destroyed_while_loaded(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE))
    with pytest.raises(BusdmaError):
        map.destroy()
    map.unload()


@planted("state")
def synced_with_pre_and_post_together(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE))
    with pytest.raises(BusdmaError):
        map.sync(PREREAD | POSTWRITE)
    map.unload()


@planted("freed-while-loaded")
def buffer_freed_while_loaded(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = bench.high(SIZE)
    map = bench.loaded(buffer)
    with pytest.raises(DriverError):
        buffer.free()
    map.unload()


@planted("freed-while-loaded")
def process_destroyed_while_a_buffer_of_it_is_loaded(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    process = bench.process("cp")
    map = bench.loaded(process.allocate(SIZE))
    with pytest.raises(DriverError):
        process.destroy()
    map.unload()


@planted("freed-while-loaded")
def raw_pages_freed_while_loaded(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    array = PageArray.allocate(bench.domain, SIZE)
    map = bench.loaded(array[100:200])
    with pytest.raises(DriverError):
        array.free()
    map.unload()


@planted("freed-while-loaded")
def ring_freed_while_another_map_has_it_loaded(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    ring = bench.tag.alloc(SIZE)
    map = bench.loaded(ring)
    with pytest.raises(DriverError):
        ring.free()
    map.unload()
    ring.free()


@planted("leaked-map")
def map_forgotten(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    bench.loaded(bench.high(SIZE))


@planted("leaked-map")
def quarantine_never_ended(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE))
    map.sync(PRE)
    map.abandon()


@planted("leaked-memory")
def ring_forgotten(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    bench.tag.alloc(SIZE)


@planted("leaked-pages")
def zone_loses_pages(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    give = Zone.give

    def forgetful(self: Zone, segmenter: Segmenter) -> None:
        give(self, segmenter)
        self.free -= 1

    patch.setattr(Zone, "give", forgetful)
    bench.loaded(bytearray(SIZE)).unload()


@planted("leaked-pages", remap=True)
def bus_pages_are_never_given_back(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(IovaPool, "give", lambda self, need: None)
    bench.loaded(bench.high(SIZE)).unload()


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MISTAKES)
def test_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake, labels, options = MISTAKES[name]
    with Bench(**options) as bench:  # type: ignore[arg-type]
        seen = mistake(bench, monkeypatch)
    assert set(bench.labels()) == labels, str(bench.checker.findings)
    assert (seen is None) == bool(labels)
    if seen is not None:
        assert not any(seen.seen[at : at + 16] in right for right in seen.right for at in range(0, len(seen.seen), 16))


def test_there_are_enough() -> None:
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("name", ["asyncio", "threads"])
def test_a_mistake_in_a_context_of_any_runtime_is_found(name: str) -> None:
    with by_name(name):
        pass
    with Bench(runtime=name) as bench:

        async def work() -> None:
            buffer = bench.high(SIZE)
            map = bench.tag.create_map()
            await map.load(buffer, FROM)
            map.sync(PREREAD)
            buffer.write(b"early")
            map.sync(POSTREAD)
            map.unload()

        bench.run(work)
    assert bench.labels() == ["cpu-wrote"]
