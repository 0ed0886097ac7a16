"""HostBuffer, and what as_buffer takes and refuses."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.buffers import Buffer, HostBuffer, as_buffer
from busdma.errors import DriverError
from busdma.machine.frames import FrameAllocator
from busdma.machine.space import AddressSpace
from busdma.segments import FOREIGN


def test_every_page_of_a_host_buffer_is_foreign() -> None:
    buffer = as_buffer(bytearray(3 * 4096 + 1))
    assert isinstance(buffer, HostBuffer)
    assert list(buffer.frames.table) == [FOREIGN] * 4
    assert (buffer.start, buffer.length, len(buffer), buffer.readonly) == (0, 12289, 12289, False)
    assert len(HostBuffer(bytes(8193), page_size=8192).frames.table) == 2
    assert (HostBuffer(b"").length, HostBuffer(b"").readonly) == (0, True)
    assert (HostBuffer(bytearray()).length, HostBuffer(bytearray()).readonly) == (0, False)


def test_a_host_buffer_is_the_object_itself() -> None:
    data = bytearray(b"hello, DMA")
    buffer = HostBuffer(data)
    buffer.write(b"HELLO")
    assert data == b"HELLO, DMA"
    data[:5] = b"jelly"
    assert buffer.read(0, 5) == b"jelly"
    with pytest.raises(BufferError):
        data.append(0)


def test_items_are_bytes_of_memory() -> None:
    numbers = array("I", [1, 2, 3])
    buffer = HostBuffer(numbers)
    assert buffer.length == 3 * numbers.itemsize
    assert buffer.read() == numbers.tobytes()
    assert HostBuffer(memoryview(bytes(12)).cast("B", (3, 4))).length == 12
    assert HostBuffer(array("I")).length == 0


def test_descriptions() -> None:
    buffer = HostBuffer(bytearray(100))
    assert buffer.describe() == "a bytearray of the host, 100 bytes"
    assert buffer[10:30].describe() == "bytes 10..29 of a bytearray of the host, 20 bytes"
    assert repr(buffer) == "<a bytearray of the host, 100 bytes>"


def test_bytes_are_read_only() -> None:
    buffer = HostBuffer(b"constant")
    assert buffer.readonly
    assert buffer[2:4].readonly
    with pytest.raises(DriverError, match="read-only: give a bytearray"):
        buffer.write(b"x")


@given(st.binary(max_size=200), st.data())
def test_views_against_bytes(content: bytes, data: st.DataObject) -> None:
    shadow = bytearray(content)
    buffer, model = HostBuffer(bytearray(content)), memoryview(shadow)
    for _ in range(data.draw(st.integers(0, 3))):
        cut = slice(data.draw(st.integers(-250, 250)), data.draw(st.integers(-250, 250)))
        buffer, model = buffer[cut], model[cut]
    assert buffer.read() == model
    offset = data.draw(st.integers(0, len(model)))
    count = data.draw(st.integers(0, len(model) - offset))
    text = bytes(range(1, count + 1))
    buffer.write(text, offset)
    model[offset : offset + count] = text
    assert bytes(buffer.host) == shadow
    assert buffer.host[buffer.start : buffer.start + buffer.length] == model
    if count:
        assert buffer[offset] == model[offset] == buffer[offset - len(model)]
    with pytest.raises(DriverError, match="not inside"):
        buffer.read(offset, len(model) - offset + 1)
    with pytest.raises(IndexError):
        buffer[len(model)]


def test_views_have_step_one() -> None:
    with pytest.raises(DriverError, match="step 1, not 2"):
        HostBuffer(bytes(10))[::2]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (17, "cannot load 'int'"),
        (None, "cannot load 'NoneType'"),
        ("text", "encode it first"),
        ([1, 2, 3], "cannot load 'list'"),
        (memoryview(bytes(10))[::2], "not C-contiguous"),
    ],
)
def test_what_cannot_be_loaded(source: object, message: str) -> None:
    with pytest.raises(DriverError, match=message):
        as_buffer(source)


def test_buffers_pass_unchanged() -> None:
    ram = bytearray(4 * 4096)
    space = AddressSpace("kernel", memoryview(ram), FrameAllocator(0, 4), pages=8)
    for buffer in (space.allocate(100), HostBuffer(bytes(5))):
        assert as_buffer(buffer) is buffer
        assert isinstance(buffer, Buffer)


def test_any_object_of_the_protocol_is_a_buffer() -> None:
    class Chain:
        frames = HostBuffer(bytes(5)).frames
        start = 0
        length = 5
        host = None
        readonly = False

        def describe(self) -> str:
            return "a chain"

    chain = Chain()
    assert as_buffer(chain) is chain
