"""Splitting a long transfer into requests, over a device that is a bytearray."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers.block import Data, check_request, transfer_all
from busdma.errors import DeviceFault, DriverError
from busdma.runtime import by_name
from busdma.runtime.carrier import Carrier
from busdma.sync import Direction
from busdma.waiting import Waiter

BLOCK = 16


class Memory:
    """Blocks of 16 bytes that take a random time; `bad` names a block that fails."""

    def __init__(self, runtime: Carrier, blocks: int, maxio: int = 4 * BLOCK, bad: int | None = None) -> None:
        self.name, self.block_size, self.blocks, self.maxio = "memory", BLOCK, blocks, maxio
        self.bytes = bytearray(blocks * BLOCK)
        self.busy = self.most_busy = self.requests = 0
        self._runtime, self._bad = runtime, bad
        self._chance = random.Random(3)

    async def read(self, lba: int, buffer: Data, deadline: int | None = None) -> None:
        await self._work(lba, len(buffer))
        assert isinstance(buffer, memoryview)
        buffer[:] = self.bytes[lba * BLOCK : lba * BLOCK + len(buffer)]

    async def write(self, lba: int, buffer: Data, deadline: int | None = None) -> None:
        await self._work(lba, len(buffer))
        assert isinstance(buffer, memoryview)
        self.bytes[lba * BLOCK : lba * BLOCK + len(buffer)] = buffer

    async def transfer(
        self, parts: Iterable[tuple[int, Data]], direction: Direction, deadline: int | None = None
    ) -> None:
        for lba, part in parts:
            await (self.write if direction is Direction.TO_DEVICE else self.read)(lba, part, deadline)

    async def flush(self, deadline: int | None = None) -> None:
        await self._work(0, BLOCK)

    async def _work(self, lba: int, length: int) -> None:
        count = check_request(self, lba, length)
        self.requests += 1
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        waiter = Waiter("the device")
        self._runtime.call_at(self._runtime.now() + self._chance.randrange(1, 50), waiter.wake)
        await self._runtime.park(waiter)
        self.busy -= 1
        if self._bad is not None and lba <= self._bad < lba + count:
            raise DeviceFault(f"block {self._bad} is bad")


@given(st.integers(0, 40), st.integers(0, 8), st.integers(1, 6), st.integers(BLOCK, 6 * BLOCK))
def test_every_byte_arrives(blocks: int, lba: int, depth: int, chunk: int) -> None:
    runtime = by_name("virtual")
    device = Memory(runtime, 48)
    data, back = random.Random(blocks).randbytes(blocks * BLOCK), bytearray(blocks * BLOCK)
    moved: list[int] = []

    async def main() -> None:
        out, back_in = Direction.TO_DEVICE, Direction.FROM_DEVICE
        await transfer_all(device, lba, data, out, runtime=runtime, depth=depth, chunk=chunk, progress=moved.append)
        assert sum(moved) == len(data)
        await transfer_all(device, lba, back, back_in, runtime=runtime, depth=depth)

    runtime.run(main)
    assert back == data
    assert device.bytes[lba * BLOCK : lba * BLOCK + len(data)] == data
    assert device.most_busy <= depth


def test_several_are_in_flight() -> None:
    runtime = by_name("virtual")
    device = Memory(runtime, 64)
    runtime.run(lambda: transfer_all(device, 0, bytes(64 * BLOCK), Direction.TO_DEVICE, runtime=runtime, depth=5))
    assert device.most_busy == 5
    assert device.requests == 16


def test_the_first_error_comes_out_when_all_is_over() -> None:
    runtime = by_name("virtual")
    device = Memory(runtime, 64, bad=20)

    async def main() -> None:
        with pytest.raises(DeviceFault, match="block 20"):
            await transfer_all(device, 0, bytearray(64 * BLOCK), Direction.FROM_DEVICE, runtime=runtime, depth=3)
        assert device.busy == 0

    runtime.run(main)
    assert device.requests < 16


@pytest.mark.parametrize(
    ("length", "direction", "options", "words"),
    [
        (BLOCK + 1, Direction.TO_DEVICE, {}, "pad them"),
        (BLOCK, Direction.BOTH, {}, "one way"),
        (BLOCK, Direction.TO_DEVICE, {"depth": 0}, "depth of 1"),
        (BLOCK, Direction.TO_DEVICE, {"chunk": BLOCK - 1}, "hold no block"),
    ],
)
def test_what_cannot_be_asked(length: int, direction: Direction, options: dict[str, int], words: str) -> None:
    runtime = by_name("virtual")
    device = Memory(runtime, 4)

    async def main() -> None:
        with pytest.raises(DriverError, match=words):
            await transfer_all(
                device,
                0,
                bytes(length),
                direction,
                runtime=runtime,
                depth=options.get("depth", 8),
                chunk=options.get("chunk"),
            )

    runtime.run(main)
    assert device.requests == 0


@pytest.mark.parametrize(
    ("lba", "length", "words"),
    [
        (0, 0, "whole"),
        (0, 17, "whole"),
        (0, 80, "split it"),
        (3, 32, "blocks 0..3, and not all of 3..4"),
        (-1, 16, "stay within"),
    ],
)
def test_what_one_request_cannot_do(lba: int, length: int, words: str) -> None:
    with pytest.raises(DriverError, match=words):
        check_request(Memory(by_name("virtual"), 4), lba, length)
