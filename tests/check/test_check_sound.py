"""Sound programs: the checker finds nothing in them, and their data arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import busdma
import busdma.machines
from busdma.drivers.block import transfer_all
from busdma.errors import MapStateError
from busdma.lifecycle import State
from busdma.lists import BufferList
from busdma.mbuf import MbufPool
from busdma.requests import Bio, Ccb
from busdma.runtime import NAMES
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE
from busdma.uio import Uio
from busdma.unmapped import PageArray
from check.bench import BOTH, FROM, LINE, PAGE, POST, PRE, TO, Bench, pattern

SIZE = 9000
DATA, NEW = pattern(SIZE), pattern(SIZE, 2)


@pytest.fixture(params=["direct", "bounced", "remapped"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Each way of a load; closed at the end, when nothing may have been found."""
    with Bench(remap=request.param == "remapped") as made:
        if request.param == "bounced":
            made.tag = made.low
        yield made
    assert not made.found(), str(made.checker.findings)


def kernel(bench: Bench) -> object:
    return bench.high(SIZE, offset=100)


def process(bench: Bench) -> object:
    return bench.process("cp").allocate(SIZE)


def host(bench: Bench) -> object:
    return bytearray(SIZE)


def raw_pages(bench: Bench) -> object:
    return PageArray.allocate(bench.domain, SIZE, start=17)


BUFFERS: list[Callable[[Bench], object]] = [kernel, process, host, raw_pages]


def put(buffer: object, data: bytes) -> None:
    if isinstance(buffer, bytearray):
        buffer[:] = data
    else:
        buffer.write(data)  # type: ignore[attr-defined]


def got(buffer: object) -> bytes:
    return bytes(buffer) if isinstance(buffer, bytearray) else buffer.read()  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", BUFFERS)
def test_every_kind_of_buffer_both_ways(bench: Bench, make: Callable[[Bench], object]) -> None:
    buffer = make(bench)
    put(buffer, DATA)
    for _ in range(2):
        map = bench.loaded(buffer, TO)
        map.sync(PREWRITE)
        assert bench.reads(map.segments) == DATA
        map.sync(POSTWRITE)
        map.unload()
        assert got(buffer) == DATA
    map = bench.loaded(buffer, FROM)
    map.sync(PREREAD)
    bench.writes(map.segments, NEW[:5000])
    map.sync(POSTREAD)
    map.unload()
    assert got(buffer) == NEW[:5000] + DATA[5000:]  # what the device did not write keeps its value


def test_lists_of_all_kinds(bench: Bench) -> None:
    parts: list[Any] = [bench.high(3000, offset=4000), bench.near(2000), PageArray.allocate(bench.domain, 1000)]
    whole = BufferList([*parts, BufferList([bench.high(3000)])])
    last = whole.elements()[-1].elements()[0]  # type: ignore[attr-defined]
    for at, part in zip((0, 3000, 5000, 6000), (*parts, last), strict=True):
        part.write(DATA[at : at + part.length])
    for source in (whole, Bio(whole, BOTH), Ccb(whole)):
        map = bench.loaded(source, BOTH)
        map.sync(PRE)
        assert bench.reads(map.segments) == DATA
        bench.writes(map.segments, NEW)
        map.sync(POST)
        map.unload()
        assert b"".join(part.read() for part in (*parts, last)) == NEW
        for at, part in zip((0, 3000, 5000, 6000), (*parts, last), strict=True):
            part.write(DATA[at : at + part.length])


def test_list_that_sends_the_same_bytes_twice(bench: Bench) -> None:
    header = bench.high(64)
    header.write(DATA[:64])
    map = bench.loaded(BufferList([header, header[10:20], header]), TO)
    map.sync(PREWRITE)
    assert bench.reads(map.segments) == DATA[:64] + DATA[10:20] + DATA[:64]
    map.sync(POSTWRITE)
    map.unload()
    assert header.read() == DATA[:64]


def test_mbuf_chain(bench: Bench) -> None:
    pool = MbufPool(bench.kernel)
    chain = pool.chain_of(DATA[:5000])
    map = bench.loaded(chain, BOTH)
    map.sync(PRE)
    assert bench.reads(map.segments) == DATA[:5000]
    bench.writes(map.segments, NEW[:5000])
    map.sync(POST)
    map.unload()
    assert chain.read() == NEW[:5000]
    chain.free()


def test_uio(bench: Bench) -> None:
    process = bench.process("cp")
    one, other = process.allocate(3000, offset=100), process.allocate(6000)
    one.write(DATA[:3000])
    other.write(DATA[3000:])
    map = bench.loaded(Uio(process, [(one.address, 3000), (other.address, 6000)]), TO)
    map.sync(PREWRITE)
    assert bench.reads(map.segments) == DATA
    map.sync(POSTWRITE)
    map.unload()


def test_read_only_bytes_of_the_host(bench: Bench) -> None:
    maps = [bench.loaded(DATA, TO) for _ in range(2)]
    for map in maps:
        map.sync(PREWRITE)
    for map in maps:
        assert bench.reads(map.segments) == DATA
        map.sync(POSTWRITE)
        map.unload()


def test_several_devices_read_one_buffer() -> None:
    with Bench() as bench:
        buffer = bench.high(SIZE)
        buffer.write(DATA)
        maps = [bench.loaded(buffer, TO, tag) for tag in (bench.bus, bench.low, bench.bus, bench.low)]
        for map in maps:
            map.sync(PREWRITE)
        for map in (maps[1], maps[0], maps[3], maps[2]):
            assert bench.reads(map.segments) == DATA
            map.sync(POSTWRITE)
            map.unload()
        assert buffer.read() == DATA
    assert not bench.found(), str(bench.checker.findings)


def test_partial_syncs_in_any_order(bench: Bench) -> None:
    buffer = bench.high(SIZE, offset=1)
    buffer.write(DATA)
    map = bench.loaded(buffer, BOTH)
    map.sync(PREWRITE, 0, 5000)
    map.sync(PREWRITE, 5000, 4000)
    assert bench.reads(map.segments) == DATA
    map.sync(POSTWRITE, 4000, 3000)
    buffer.write(b"again", 4000)
    assert buffer.read(4000, 3000) == b"again" + DATA[4005:7000]
    map.sync(PREWRITE, 4000, 5)
    map.sync(PREREAD, 6000, 1000)
    map.sync(PREWRITE, 4005, 2995)
    assert bench.reads(map.segments) == DATA[:4000] + b"again" + DATA[4005:]
    map.sync(POSTWRITE)
    map.sync(POSTREAD, 6000, 1000)
    map.unload()
    assert buffer.read() == DATA[:4000] + b"again" + DATA[4005:]


def test_read_and_write_are_given_and_fetched_apart(bench: Bench) -> None:
    buffer = bench.high(SIZE)
    buffer.write(DATA)
    map = bench.loaded(buffer, BOTH)
    map.sync(PREREAD)
    map.sync(PREWRITE)
    assert bench.reads(map.segments) == DATA
    bench.writes(map.segments, NEW)
    map.sync(POSTREAD)
    assert buffer.read() == NEW
    map.sync(POSTWRITE)
    map.sync(PREWRITE | PREREAD)
    map.sync(POSTWRITE)
    bench.writes(map.segments, DATA)
    map.sync(POSTREAD)
    map.unload()
    assert buffer.read() == DATA


def test_status_that_is_polled(bench: Bench) -> None:
    ring = bench.tag.alloc(PAGE)
    ring.sync(PREREAD, 64, 16)
    for turn in range(4):
        ring.sync(POSTREAD, 64, 16)
        assert bytes(ring.view[64:80]) == (bytes(16) if turn < 3 else DATA[:16])
        ring.sync(PREREAD, 64, 16)
        if turn == 2:
            bench.device.dma_write(ring.address + 64, DATA[:16])
    ring.sync(POSTREAD, 64, 16)
    ring.free()


def test_dma_safe_memory_is_loaded_once_and_used_for_long(bench: Bench) -> None:
    ring = bench.tag.alloc(2 * PAGE)
    for turn in range(3):
        data = pattern(64, turn)
        with ring.map(32 * turn, 64) as window:
            window.write(data)
        ring.sync(PREWRITE, 32 * turn, 64)
        assert bench.device.dma_read(ring.address + 32 * turn, 64) == data
        ring.sync(POSTWRITE, 32 * turn, 64)
    ring.sync(PREREAD)
    bench.writes(ring.segments, NEW[: 2 * PAGE])
    ring.sync(POSTREAD)
    shown = ring.mmap(bench.process("viewer"))
    assert shown.read() == NEW[: 2 * PAGE]
    shown.free()
    ring.free()


def test_dma_safe_memory_in_another_map_at_another_time(bench: Bench) -> None:
    picture = bench.bus.alloc(SIZE)
    picture.sync(PREREAD)
    at = 0
    for address, length in picture.segments:
        bench.other.dma_write(address, NEW[at : at + length])
        at += length
    picture.sync(POSTREAD)
    map = bench.loaded(picture, TO)
    map.sync(PREWRITE)
    assert bench.reads(map.segments) == NEW
    map.sync(POSTWRITE)
    map.unload()
    with picture.map() as window:
        assert window.read() == NEW
    picture.free()


@pytest.mark.parametrize("remap", [False, True])
def test_parts_of_cache_lines(remap: bool) -> None:
    with Bench(caches=True, remap=remap) as bench:
        ring = bench.tag.alloc(PAGE)
        for at in (0, LINE):  # whole lines
            ring.view[at : at + LINE] = DATA[at : at + LINE]
            ring.sync(PRE, at, LINE)
        assert bench.device.dma_read(ring.address, 2 * LINE) == DATA[: 2 * LINE]
        ring.sync(POST, 0, 2 * LINE)
        ring.sync(PREREAD, 0, 16)  # the other half of it is only looked at
        bench.device.dma_write(ring.address, NEW[:16])
        assert bytes(ring.view[16:LINE]) == DATA[16:LINE]
        ring.sync(POSTREAD, 0, 16)
        assert bytes(ring.view[:LINE]) == NEW[:16] + DATA[16:LINE]
        ring.view[:8], ring.view[8:16] = DATA[:8], DATA[8:16]
        ring.sync(PREWRITE, 0, 8)  # and what the device only reads, it does not write back
        ring.view[8:16] = NEW[8:16]
        ring.sync(PREWRITE, 8, 8)
        assert bench.device.dma_read(ring.address, 16) == DATA[:8] + NEW[8:16]
        ring.sync(POSTWRITE, 0, 16)
        ring.free()
    assert not bench.found(), str(bench.checker.findings)


def test_memory_past_the_caches_has_no_lines() -> None:
    with Bench(caches=True) as bench:
        ring = bench.tag.alloc(PAGE, coherent=True)
        ring.sync(PREREAD, 0, 16)
        ring.view[16:32] = DATA[:16]
        ring.sync(PREWRITE, 16, 16)
        bench.device.dma_write(ring.address, NEW[:16])
        assert bench.device.dma_read(ring.address + 16, 16) == DATA[:16]
        ring.sync(POSTREAD, 0, 16)
        ring.sync(POSTWRITE, 16, 16)
        assert bytes(ring.view[:32]) == NEW[:16] + DATA[:16]
        ring.free()
    assert not bench.found(), str(bench.checker.findings)


def test_loads_that_would_share_a_cache_line_are_bounced_and_sound() -> None:
    with Bench(caches=True) as bench:
        buffer = bench.high(SIZE)
        maps = [bench.loaded(part, FROM) for part in (buffer[: LINE + 8], buffer[LINE + 8 : 3 * LINE])]
        for map in maps:
            map.sync(PREREAD)
        bench.writes(maps[0].segments, NEW[: LINE + 8])
        bench.writes(maps[1].segments, NEW[LINE + 8 : 3 * LINE])
        for map in maps:
            map.sync(POSTREAD)
            map.unload()
        assert buffer.read(0, 3 * LINE) == NEW[: 3 * LINE]
    assert not bench.found(), str(bench.checker.findings)


def test_quarantine_gives_back_what_the_device_had(bench: Bench) -> None:
    for buffer in (bench.high(SIZE), bytearray(SIZE)):
        put(buffer, DATA)
        with pytest.raises(ZeroDivisionError), bench.tag.transfer(buffer, from_device=True) as segments:
            bench.writes(segments, NEW[:4000])
            1 / 0  # noqa: B018
        bench.tag.report_idle()
        assert got(buffer) == NEW[:4000] + DATA[4000:]


def test_quarantine_of_a_map_that_was_never_synced(bench: Bench) -> None:
    map = bench.loaded(bench.high(SIZE))
    map.quarantine()
    map.report_idle()
    assert map.state is State.IDLE


def test_quarantined_memory_is_idle_again(bench: Bench) -> None:
    ring = bench.tag.alloc(PAGE)
    ring.view[:] = DATA[:PAGE]
    ring.sync(PRE)
    bench.device.dma_write(ring.address + 16, b"done")
    bench.tag.abandon()
    assert ring.dma_map.state is State.QUARANTINED
    bench.tag.report_idle()
    assert bytes(ring.view) == DATA[:16] + b"done" + DATA[20:PAGE]
    ring.free()


def test_report_idle_while_loaded(bench: Bench) -> None:
    buffer = bench.high(SIZE)
    buffer.write(DATA)
    map = bench.loaded(buffer, FROM)
    map.sync(PREREAD)
    bench.writes(map.segments, NEW[:100])
    map.report_idle()
    assert buffer.read() == NEW[:100] + DATA[100:]
    map.sync(PREREAD)
    map.sync(POSTREAD)
    map.unload()
    assert buffer.read() == NEW[:100] + DATA[100:]


def test_report_idle_after_the_device_has_only_read(bench: Bench) -> None:
    buffer = bench.high(SIZE)
    map = bench.loaded(buffer, BOTH)
    map.sync(PRE)
    bench.writes(map.segments, NEW)
    map.sync(POSTWRITE)
    map.report_idle()  # instead of POSTREAD
    assert buffer.read() == NEW
    map.unload()


@pytest.mark.parametrize("runtime", NAMES)
def test_loads_that_wait_on_every_runtime(runtime: str) -> None:
    with Bench(limit=3, runtime=runtime) as bench:

        async def work(number: int) -> None:
            map = bench.low.create_map()
            buffer = bench.high(8000)
            for turn in range(4):
                data = pattern(8000, 10 * number + turn)
                await map.load(buffer, FROM)
                map.sync(PREREAD)
                bench.writes(map.segments, data)
                map.sync(POSTREAD)
                map.unload()
                assert buffer.read() == data
            map.destroy()

        async def everybody() -> None:
            tasks = [bench.runtime.start(work, number) for number in range(4)]
            for task in tasks:
                await bench.runtime.park(task.done)
                task.result()

        bench.run(everybody)
    assert not bench.found(), str(bench.checker.findings)


@pytest.mark.parametrize("spec", busdma.machines.specs())
def test_drivers_of_every_machine(spec: str) -> None:
    with busdma.open(spec, check=True) as machine:
        others = busdma.machines.MACHINES[spec.partition("?")[0]].others
        for name, device in machine.devices.items():
            if device.driver in others:
                continue
            driver = machine.driver(name)
            machine.run(driver.start)
            for disk in driver.disks:
                data = pattern(300 * disk.block_size)
                out, back = machine.allocate(len(data), offset=513), machine.allocate(len(data), offset=2)
                out.write(data)
                for buffer, direction in ((out, TO), (back, FROM)):
                    machine.run(
                        lambda disk=disk, buffer=buffer, direction=direction: transfer_all(
                            disk, 8, machine.sealed(buffer), direction, runtime=machine.runtime
                        )
                    )
                assert back.read() == data
            machine.run(driver.stop)
        assert machine.checker is not None
        checker = machine.checker
    assert not len(checker.findings), str(checker.findings)


def test_sealed_data_are_loaded_sliced_written_and_described() -> None:
    with Bench() as bench:
        data = bytearray(DATA)
        sealed = bench.sealed(data)
        assert sealed is bench.sealed(sealed)
        part = sealed[100:1100]
        assert len(part) == 1000
        assert not part.readonly  # type: ignore[union-attr]
        assert "bytearray" in part.describe()  # type: ignore[union-attr]
        map = bench.loaded(part, BOTH)
        map.sync(PRE)
        assert bench.reads(map.segments) == DATA[100:1100]
        bench.writes(map.segments, NEW[:1000])
        map.sync(POST)
        map.unload()
        part.write(b"last", 996)  # type: ignore[union-attr]
        part.write(memoryview(b"word").cast("I"), 992)  # type: ignore[union-attr]
    assert data == DATA[:100] + NEW[:992] + b"wordlast" + DATA[1100:]
    assert not bench.found()


def test_an_unchecked_machine_seals_nothing() -> None:
    with busdma.open("sim:sparc") as machine:
        data = bytearray(1)
        assert machine.checker is None
        assert machine.sealed(data) is data


def test_a_refusal_leaves_everything_as_it_was() -> None:
    with Bench() as bench:
        buffer = bench.high(SIZE)
        map = bench.loaded(buffer, FROM)
        map.sync(PREREAD)
        with pytest.raises(MapStateError):
            map.load_nowait(buffer, FROM)
        bench.writes(map.segments, NEW)
        map.sync(POSTREAD)
        map.unload()
        assert buffer.read() == NEW
    assert bench.labels() == ["state"]
