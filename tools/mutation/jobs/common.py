"""What the jobs are made of: data, words for what came of it, and `on`, which enters a job for each of its machines."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

import busdma
from busdma.buffers import LinearBuffer
from busdma.machine.machine import Machine
from busdma.waiting import Waiter
from mutation.runs import Job

Words = list[str]
Body = Callable[[Any, Any], Coroutine[Any, Any, Words]]  #: of the machine, and of its driver, which is started

SECOND: Final = 10**9
MILLISECOND: Final = 10**6

JOBS: Final[dict[str, Job]] = {}


def on(*places: tuple[str, str]) -> Callable[[Body], Body]:
    """Make a job of `body` on each of these (spec, device), with the driver started before and stopped afterwards."""

    def add(body: Body) -> Body:
        for spec, device in places:

            async def job(machine: Machine, device: str = device) -> Words:
                driver = machine.driver(device)
                await driver.start()
                try:
                    return await body(machine, driver)
                finally:
                    await driver.stop()

            JOBS[f"{body.__name__} on {device} of {spec}"] = Job(partial(busdma.open, spec, check=True), job)
        return body

    return add


def text(length: int, seed: int = 1) -> bytes:
    """Bytes of which no two places look alike."""
    return random.Random(seed).randbytes(length)


def filled(machine: Machine, data: bytes, offset: int = 0) -> LinearBuffer:
    """A kernel buffer with `data` in it."""
    buffer = machine.allocate(len(data), offset=offset)
    buffer.write(data)
    return buffer


def blank(machine: Machine, data: bytes, offset: int = 0) -> LinearBuffer:
    """One to be read into: every byte of it is another than that of `data`."""
    return filled(machine, bytes(255 - byte for byte in data), offset)


async def word(doing: Awaitable[Any]) -> str:
    """What became of it."""
    try:
        await doing
    except Exception as error:
        return type(error).__name__
    return "done"


def same(buffer: LinearBuffer, data: bytes) -> str:
    """Is that in it? The buffer is freed."""
    found = buffer.read()
    buffer.free()
    return "the same" if found == data else "something else"


async def pause(machine: Machine, time: int) -> None:
    """Let `time` ns pass."""
    waiter = Waiter("a pause")
    machine.runtime.call_at(machine.runtime.now() + time, waiter.wake)
    await machine.runtime.park(waiter)


async def both(machine: Machine, *doing: Coroutine[Any, Any, Any]) -> Words:
    """All of them at the same time, in words."""

    async def one(each: Coroutine[Any, Any, Any]) -> str:
        return await word(each)

    tasks = [machine.runtime.start(one, each) for each in doing]
    for task in tasks:
        await machine.runtime.park(task.done)
    return [task.result() for task in tasks]


async def there_and_back(machine: Machine, disk: Any, length: int, offset: int) -> Words:
    """Write and read."""
    data = text(length)
    out, back = filled(machine, data, offset), blank(machine, data, offset + 8)
    found = [await word(disk.write(3, out)), await word(disk.flush()), await word(disk.read(3, back))]
    return [*found, same(out, data), same(back, data)]


async def write_later(machine: Machine, time: int, disk: Any, lba: int) -> None:
    """While the controller is being reset, and the command has to wait for that."""
    await pause(machine, time)
    buffer = filled(machine, text(512))
    await disk.write(lba, buffer)
    buffer.free()


async def echo(machine: Any, driver: Any, length: int, offset: int) -> None:
    """Through a device that gives back what it gets. ValueError if it does not."""
    data = text(length)
    out, back = filled(machine, data, offset), blank(machine, data, offset + 3)
    await driver.echo(out, back)
    if (same(out, data), same(back, data)) != ("the same", "the same"):
        raise ValueError("something else came back")
