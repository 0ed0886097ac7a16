"""DMA-safe memory in a process, by the device pager: the same bytes, whose frames, rights, the order of the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from busdma.errors import BufferGone, DriverError, ResourceShortage
from busdma.machine.space import AddressSpace
from busdma.sync import POSTREAD, PREREAD, Direction
from core.small_machine import PAGE, SmallMachine


def test_device_and_process_share_the_bytes(small: SmallMachine) -> None:
    memory = small.isa.alloc(3 * PAGE)
    tv = small.space("tv")
    buffer = memory.mmap(tv)
    assert buffer.describe() == "process 'tv' buffer 0x00010000, 12288 bytes"
    buffer.write(b"from the process", PAGE - 3)
    assert bytes(memory.view[PAGE - 3 : PAGE + 13]) == b"from the process"
    small.poke(memory.segments, b"from the device", 2 * PAGE)
    assert buffer.read(2 * PAGE, 15) == b"from the device"
    assert small.frames.statistics()["by_owner"] == {"dma-safe": 3}
    assert tv.statistics()["resident"] == 3


def test_a_range_of_it(small: SmallMachine) -> None:
    memory = small.isa.alloc(4 * PAGE)
    buffer = memory.mmap(small.space("tv"), PAGE + 100, PAGE)
    assert (buffer.address % PAGE, len(buffer)) == (100, PAGE)
    buffer.write(b"x" * PAGE)
    assert bytes(memory.view) == bytes(PAGE + 100) + b"x" * PAGE + bytes(2 * PAGE - 100)


def test_scattered_memory_is_linear_in_a_process(small: SmallMachine) -> None:
    small.frames.allocate_run(128, "kernel", within=small.below)
    small.frames.free(number * PAGE for number in range(0, 128, 2))
    memory = small.isa.alloc(3 * PAGE)
    assert memory.statistics()["runs"] == 3
    buffer = memory.mmap(small.space("tv"))
    text = bytes(n % 249 for n in range(3 * PAGE))
    buffer.write(text)
    assert small.peek(memory.segments) == text


def test_unmapping_comes_before_freeing(small: SmallMachine) -> None:
    memory = small.isa.alloc(2 * PAGE)
    buffer = memory.mmap(small.space("tv"), PAGE)
    with pytest.raises(DriverError, match="process 'tv' has 4096 bytes of it mapped; free its buffer first"):
        memory.free()
    memory.view[PAGE] = 5
    buffer.free()
    assert memory.view[PAGE] == 5  # only unmapped: not freed, and not filled with poison
    assert small.frames.statistics()["by_owner"]["dma-safe"] == 2
    with pytest.raises(BufferGone, match="it was released"):
        buffer.read()
    memory.free()
    assert small.frames.statistics()["free"] == 512


def test_the_end_of_a_process_unmaps(small: SmallMachine) -> None:
    memory = small.isa.alloc(2 * PAGE)
    tv = small.space("tv")
    buffers = [memory.mmap(tv), memory.mmap(tv, 10, 20)]
    own = tv.allocate(PAGE)
    assert memory.statistics()["shown"] == 2
    tv.destroy()
    assert memory.statistics()["shown"] == 0
    for buffer in (*buffers, own):
        with pytest.raises(BufferGone, match="process 'tv' was freed"):
            buffer.read()
    assert small.frames.statistics()["by_owner"] == {"dma-safe": 2, "process": 0}
    assert bytes(memory.view) == bytes(2 * PAGE)
    memory.free()


def test_read_only(small: SmallMachine) -> None:
    memory = small.isa.alloc(PAGE)
    buffer = memory.mmap(small.space("tv"), writable=False)
    assert buffer.readonly
    assert buffer[10:20].readonly
    writes: list[Callable[[], object]] = [lambda: buffer.write(b"x"), lambda: buffer[5:].fill(1)]
    for write in writes:
        with pytest.raises(DriverError, match="mapped read-only: map it with writable=True"):
            write()
    assert bytes(memory.view) == bytes(PAGE)
    map = small.isa.create_map()
    for direction in (Direction.FROM_DEVICE, Direction.BOTH):
        with pytest.raises(DriverError, match="it is read-only; load it with"):
            map.load_nowait(buffer, direction)
    map.load_nowait(buffer, Direction.TO_DEVICE)
    assert list(map.segments) == list(memory.segments)
    map.unload()


def test_another_device_loads_what_a_process_has_mapped(small: SmallMachine) -> None:
    memory = small.isa.alloc(2 * PAGE)
    tv = small.space("tv")
    buffer = memory.mmap(tv)
    map = small.isa.derive("disk").create_map(name="other")
    map.load_nowait(buffer[100:200], Direction.FROM_DEVICE)
    map.sync(PREREAD)
    small.poke(map.segments, b"z" * 100)
    map.sync(POSTREAD)
    assert bytes(memory.view[99:201]) == b"\0" + b"z" * 100 + b"\0"
    for end in (buffer.free, tv.destroy):
        with pytest.raises(DriverError, match=r"map 'other' of tag pc/isa/disk [(]loaded[)] has it loaded"):
            end()
    map.unload()
    tv.destroy()
    memory.free()


def test_what_shows_a_device_is_never_paged_out(small: SmallMachine) -> None:
    memory = small.isa.alloc(2 * PAGE)
    tv = small.space("tv")
    memory.mmap(tv)
    own = tv.allocate(3 * PAGE)
    assert tv.page_out() == 3
    assert own.read() == bytes(3 * PAGE)


def test_spaces_that_cannot_have_it(small: SmallMachine) -> None:
    memory = small.isa.alloc(PAGE)
    with pytest.raises(DriverError, match="is the kernel's already: use map"):
        memory.mmap(small.kernel)
    with pytest.raises(DriverError, match="of different machines"):
        memory.mmap(SmallMachine().space("tv"))
    for offset, length in ((0, PAGE + 1), (-1, 5), (PAGE, None), (0, 0)):
        with pytest.raises(DriverError, match="not 1 or more inside it"):
            memory.mmap(small.space("tv"), offset, length)
    dead = small.space("dead")
    dead.destroy()
    with pytest.raises(BufferGone, match="process 'dead' was freed"):
        memory.mmap(dead)
    tiny = AddressSpace("tiny", small.memory, small.frames, pages=4, owner="process")
    with pytest.raises(ResourceShortage, match="never fit"):
        small.isa.alloc(4 * PAGE).mmap(tiny)
    memory.mmap(tiny)
    with pytest.raises(ResourceShortage, match="no 2 virtual pages"):
        small.isa.alloc(2 * PAGE).mmap(tiny)
    memory2 = small.isa.alloc(PAGE)
    memory2.free()
    with pytest.raises(BufferGone, match="it was freed"):
        memory2.mmap(tiny)
