"""Channels lose nothing; a disk's requests keep their order where it matters."""

from __future__ import annotations

import random
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers.queues import EVERYTHING, TOLD_AT_ONCE, Channel, Request, RequestQueue
from busdma.errors import DeadlineExpired, DeviceFault, DriverError, WaitCancelled
from busdma.runtime import by_name
from busdma.runtime.carrier import Carrier
from busdma.sync import Direction
from busdma.waiting import PENDING, WOKEN, Waiter

IN, OUT = Direction.FROM_DEVICE, Direction.TO_DEVICE


async def pause(runtime: Carrier, time: int) -> None:
    waiter = Waiter("a pause")
    runtime.call_at(runtime.now() + time, waiter.wake)
    await runtime.park(waiter)


def test_a_channel_serves_in_order() -> None:
    runtime = by_name("virtual")
    channel: Channel[int] = Channel("numbers", [1])
    got: list[tuple[str, int]] = []

    async def taker(name: str) -> None:
        got.append((name, await channel.take(runtime)))

    async def main() -> None:
        tasks = [runtime.start(taker, name) for name in "abc"]
        await pause(runtime, 10)
        channel.put(2)
        channel.put(3)
        channel.put(4)
        for task in tasks:
            await runtime.park(task.done)

    runtime.run(main)
    assert got == [("a", 1), ("b", 2), ("c", 3)]
    assert len(channel) == 1


@pytest.mark.parametrize("name", ["virtual", "asyncio", "threads"])
def test_a_cancelled_take_leaves_the_item(name: str) -> None:
    with by_name(name) as runtime:
        channel: Channel[int] = Channel("numbers")

        async def taker() -> None:
            with suppress(WaitCancelled):
                await channel.take(runtime)

        async def main() -> int:
            task = runtime.start(taker)
            await pause(runtime, 10)
            task.cancel()
            channel.put(5)
            await runtime.park(task.done)
            return await channel.take(runtime, runtime.now() + 10)

        assert runtime.run(main) == 5


def test_a_take_has_a_deadline() -> None:
    runtime = by_name("virtual")
    channel: Channel[int] = Channel("numbers")

    async def main() -> None:
        with pytest.raises(DeadlineExpired, match="numbers"):
            await channel.take(runtime, 10)
        channel.put(1)
        assert len(channel) == 1

    runtime.run(main)


def test_what_conflicts() -> None:
    def request(direction: Direction, first: int, end: int) -> Request:
        return Request(b"\0", direction=direction, span=(first, end))

    write = request(OUT, 4, 8)
    assert write.conflicts(request(IN, 7, 9))
    assert write.conflicts(request(OUT, 0, 5))
    assert not write.conflicts(request(OUT, 8, 9))
    assert not request(IN, 4, 8).conflicts(request(IN, 4, 8))
    assert request(IN, 0, 1).conflicts(Request(b"\0", direction=OUT, span=EVERYTHING))
    assert not Request(b"\0").conflicts(write)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 5)), min_size=1, max_size=25),
    st.integers(0, 2**32),
)
def test_conflicting_requests_never_meet_and_keep_their_order(shape: list[tuple[bool, int, int]], seed: int) -> None:
    """Commands end in any order, some are put back by resets; whatever conflicts happens in the order it was asked."""
    runtime, chance = by_name("virtual"), random.Random(seed)
    queue = RequestQueue("disk", runtime)
    requests = [Request(b"\0", direction=OUT if w else IN, span=(at, at + n)) for w, at, n in shape]
    ended: list[int] = []

    async def device() -> None:
        while True:
            request = await queue.next()
            others = [other for other in queue.in_flight if other is not request]
            assert not any(request.conflicts(other) for other in others)
            if not queue.start(request):
                continue
            runtime.call_at(runtime.now() + chance.randrange(1, 100), partial(end, request))

    def end(request: Request) -> None:
        if request not in queue.in_flight or not request.started:
            return
        if chance.random() < 0.2:
            lost = [other for other in queue.in_flight if other.started]
            queue.put_back(lost)
            return
        ended.append(requests.index(request))
        queue.settle(request, b"")

    async def main() -> None:
        runtime.start(device)
        tasks = [runtime.start(queue.submit, request) for request in requests]
        for task in tasks:
            await runtime.park(task.done)

    runtime.run(main)
    assert sorted(ended) == list(range(len(requests)))
    for place, index in enumerate(ended):
        for later in ended[:place]:
            assert later < index or not requests[later].conflicts(requests[index])


def test_what_is_put_back_comes_first_and_in_its_old_order() -> None:
    runtime = by_name("virtual")
    queue = RequestQueue("disk", runtime)
    requests = [Request(bytes([n])) for n in range(5)]

    async def main() -> list[int]:
        for request in requests:
            runtime.start(queue.submit, request)
        await pause(runtime, 1)
        a, b, c = [await queue.next() for _ in range(3)]
        queue.put_back([c, a])
        assert queue.in_flight == [b]
        return [(await queue.next()).cdb[0] for _ in range(4)]

    assert runtime.run(main) == [0, 2, 3, 4]


def test_a_deadline_ends_what_has_not_been_started() -> None:
    runtime = by_name("virtual")
    queue = RequestQueue("disk", runtime)
    request = Request(b"\0", deadline=50)

    async def main() -> None:
        with pytest.raises(DeadlineExpired, match="before the request was started"):
            await queue.submit(request)
        assert runtime.now() == 50
        assert not queue.start(request)

    runtime.run(main)


def test_a_deadline_leaves_what_was_taken_to_the_consumer() -> None:
    """It may have the buffer loaded at that moment: nobody is told before it has not."""
    with by_name("virtual") as runtime:
        queue = RequestQueue("disk", runtime)

        async def submit(request: Request) -> None:
            await queue.submit(request)

        async def main() -> None:
            request = Request(b"\0", deadline=1000)
            task = runtime.start(submit, request)
            assert await queue.next() is request
            await pause(runtime, 2000)
            assert request.done.state == PENDING
            assert not queue.start(request)
            queue.settle(request, None)
            await runtime.park(task.done)
            with pytest.raises(DeadlineExpired):
                task.result()

        runtime.run(main)


def test_a_deadline_leaves_alone_what_the_device_knows() -> None:
    runtime = by_name("virtual")
    queue = RequestQueue("disk", runtime)
    request = Request(b"\0", deadline=50)

    async def device() -> None:
        assert queue.start(await queue.next())
        await pause(runtime, 100)
        assert request.done.state == PENDING
        queue.settle(request, b"late")

    async def main() -> bytes:
        runtime.start(device)
        return await queue.submit(request)

    assert runtime.run(main) == b"late"


def test_a_closed_queue_ends_what_waits_and_refuses_the_rest() -> None:
    runtime = by_name("virtual")
    queue = RequestQueue("disk", runtime)

    async def main() -> None:
        task = runtime.start(queue.submit, Request(b"\0"))
        await pause(runtime, 1)
        queue.close(DriverError("closed"))
        await runtime.park(task.done)
        with pytest.raises(DriverError, match="closed"):
            task.result()
        with pytest.raises(DriverError, match="closed"):
            await queue.submit(Request(b"\0"))

    runtime.run(main)


# -- several at once ---------------------------------------------------------------------------------------------------


class Expresses:
    """Starts what it may, tells of it, and ends it a while after whoever submitted it is going to wait."""

    def __init__(self, runtime: Carrier, queue: RequestQueue, slots: int) -> None:
        self.runtime, self.queue, self.slots = runtime, queue, slots
        self.begun: list[Request] = []
        self.log: list[object] = []

    def start(self, request: Request) -> bool:
        if len(self.begun) == self.slots:
            self.queue.put_back([request])
            return False
        self.begun.append(request)
        return True

    def tell(self) -> None:
        self.log.append(len(self.begun))

    def attend(self, last: Request, count: int) -> None:
        self.log.append((self.begun.index(last), count))
        self.runtime.call_at(self.runtime.now() + 10, self.end)

    def end(self) -> None:
        for request in reversed(self.begun):
            self.queue.settle(request, DeviceFault(f"{request.span}") if request.span[0] % 5 == 3 else b"")


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 5)), max_size=25),
    st.integers(0, 25),
    st.booleans(),
)
def test_many_are_submitted_at_once_and_end_as_one(
    shape: list[tuple[bool, int, int]], slots: int, express: bool
) -> None:
    """Whatever goes express, and whatever waits for the consumer: the order holds, and the first error is raised."""
    runtime = by_name("virtual")
    queue = RequestQueue("disk", runtime)
    requests = [Request(b"\0", direction=OUT if w else IN, span=(at, at + n)) for w, at, n in shape]
    fast = Expresses(runtime, queue, slots)
    ended: list[Request] = []

    async def device() -> None:
        while True:
            request = await queue.next()
            assert not any(request.conflicts(other) for other in queue.in_flight if other is not request)
            assert queue.start(request)
            await pause(runtime, 3)
            ended.append(request)
            queue.settle(request, DeviceFault(f"{request.span}") if request.span[0] % 5 == 3 else b"")

    async def main() -> None:
        if express:
            queue.express = fast
        runtime.start(device)
        await pause(runtime, 1)
        await queue.submit_all(requests)

    bad = [request for request in requests if request.span[0] % 5 == 3]
    if bad:
        with pytest.raises(DeviceFault) as raised:
            runtime.run(main)
        assert str(raised.value) == f"{bad[0].span}"
    else:
        runtime.run(main)
    assert all(request.done.state == WOKEN for request in requests)
    assert not queue.in_flight
    assert sorted([*fast.begun, *ended], key=requests.index) == requests
    assert ended == sorted(ended, key=requests.index)
    told = [each for each in fast.log if isinstance(each, int)]
    assert told == list(range(TOLD_AT_ONCE, len(fast.begun) + 1, TOLD_AT_ONCE))
    assert fast.log[len(told) :] == ([(len(fast.begun) - 1, len(fast.begun))] if fast.begun else [])


def test_many_with_a_deadline_end_with_it() -> None:
    runtime = by_name("virtual")
    queue = RequestQueue("disk", runtime)

    async def main() -> None:
        await queue.submit_all([Request(b"\0", deadline=100) for _ in range(3)])

    with pytest.raises(DeadlineExpired, match="before the request was started"):
        runtime.run(main)
    assert runtime.now() == 100
    with pytest.raises(DeadlineExpired, match="had passed when it was made"):
        runtime.run(main)
    assert queue.take() is None


def test_a_queue_that_is_closed_refuses_many() -> None:
    runtime = by_name("virtual")
    queue = RequestQueue("disk", runtime)
    queue.close(DeviceFault("out of service"))
    with pytest.raises(DeviceFault, match="out of service"):
        runtime.run(lambda: queue.submit_all([Request(b"\0") for _ in range(3)]))
