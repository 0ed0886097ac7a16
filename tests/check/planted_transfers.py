"""Mistakes in transfers: what the CPU or a device does with bytes that are the other's, or nobody's."""

from __future__ import annotations

import pytest

from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from busdma.translators.sun4m import Sun4mTable
from busdma.unmapped import PageArray
from check.bench import BOTH, FROM, LINE, PAGE, POST, PRE, TO, Bench, pairs
from check.planted import DATA, NEW, SIZE, Seen, filled, planted

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


@planted("shared-line", caches=True)
def driver_writes_an_entry_beside_one_that_the_device_has(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    ring = bench.tag.alloc(PAGE)
    ring.sync(PREREAD, 0, 16)
    ring.view[16:32] = DATA[:16]
    ring.sync(POSTREAD, 0, 16)
    assert bytes(ring.view[16:32]) != DATA[:16]
    ring.free()


@planted("shared-line", caches=True)
def driver_gives_away_an_entry_beside_one_that_the_device_writes(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    ring = bench.tag.alloc(PAGE)
    ring.sync(PREREAD, LINE, 16)
    ring.view[LINE + 16 : LINE + 32] = DATA[:16]
    ring.sync(PREWRITE, LINE + 16, 16)  # writes the whole line back
    assert bench.device.dma_read(ring.address + LINE + 16, 16) != DATA[:16]
    ring.sync(POSTWRITE, LINE + 16, 16)
    ring.sync(POSTREAD, LINE, 16)
    ring.free()


@planted("shared-line", caches=True)
def buffer_is_fetched_in_parts_that_cut_a_line(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    buffer = bench.high(2 * LINE)
    map = bench.loaded(buffer, FROM)
    map.sync(PREREAD)
    map.sync(POSTREAD, 0, 40)
    buffer.write(b"mine", 36)
    map.sync(POSTREAD, 40, 2 * LINE - 40)
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


@planted("wrong-way", remap=True)
def device_behind_an_iommu_writes_what_it_was_to_read(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(filled(bench.high(SIZE)), TO)
    map.sync(PREWRITE)
    bench.writes(map.segments, NEW)
    map.sync(POSTWRITE)
    map.unload()


@planted("after-unload", remap=True)
def device_uses_a_translation_that_is_gone(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE), FROM)
    segments = pairs(map.segments)
    map.unload()
    bench.writes(segments, NEW)


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
