"""Mistakes around transfers: loads that share bytes, drivers that look, states, frees and leaks."""

from __future__ import annotations

import pytest

from busdma.drivers.block import transfer_all
from busdma.errors import BusdmaError, DriverError
from busdma.lists import BufferList
from busdma.mbuf import MbufPool
from busdma.mechanisms.composed import Composed
from busdma.mechanisms.iova import IovaPool
from busdma.mechanisms.plan import Layout
from busdma.mechanisms.zone import Zone
from busdma.segments import Segmenter
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction
from busdma.unmapped import PageArray
from check.bench import BOTH, FROM, LINE, PAGE, PRE, TO, Bench, pattern
from check.planted import DATA, SIZE, filled, planted

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


@planted("overlap", caches=True)
def two_loads_share_a_cache_line_as_nobody_bounced_it(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    def without_lines(self: Composed, direction: Direction) -> Layout:
        return Layout(self.limits, self.page, False, 1)

    patch.setattr(Composed, "layout", without_lines)
    buffer = bench.high(SIZE)
    first, second = buffer[: LINE + 8], buffer[LINE + 8 : 2 * LINE]
    twice(bench, first, second, bench.bus, bench.bus)
    (found,) = bench.found()
    assert found.where != found.other is not None  # both parties


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

        async def transfer(self, parts: object, direction: object, deadline: int | None = None) -> None: ...

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
def synced_after_it_was_unloaded(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE), FROM)
    map.sync(PREREAD)
    map.sync(POSTREAD)
    map.unload()
    with pytest.raises(BusdmaError):
        map.sync(POSTREAD)


@planted("state")
def synced_against_the_direction_of_the_load(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    map = bench.loaded(bench.high(SIZE), TO)
    with pytest.raises(BusdmaError):
        map.sync(PREREAD)
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
def mbuf_freed_while_a_packet_is_sent(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    chain = MbufPool(bench.kernel).chain_of(DATA[:100])
    map = bench.loaded(chain, TO)
    with pytest.raises(DriverError):
        chain.free()
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


@planted("leaked-map")
def load_of_a_context_that_ended(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        map = bench.low.create_map()
        await map.load(bench.high(SIZE), FROM)
        map.sync(PREREAD)

    bench.run(work)


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
