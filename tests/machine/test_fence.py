"""The fence between a store and a load: which one is taken where, and that nobody waits at it."""

from __future__ import annotations

import threading

import pytest

from busdma.machine import fence


@pytest.mark.parametrize("processor", ["x86_64", "AMD64", "i686", "x86"])
def test_where_a_locked_instruction_orders_everything_a_lock_is_enough(processor: str) -> None:
    assert fence._choose(processor) is fence.by_lock


@pytest.mark.parametrize("processor", ["aarch64", "armv7l", "ppc64le", "riscv64", "s390x", "something new", ""])
def test_everywhere_else_the_scheduler_is_asked(processor: str) -> None:
    assert fence._choose(processor) is fence.by_scheduler


def test_without_a_scheduler_to_ask_the_lock_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_yield")
    assert fence._choose("aarch64") is fence.by_lock


@pytest.mark.parametrize("each", [fence.by_lock, fence.by_scheduler, fence.store_load_fence])
def test_it_can_be_had_again_and_again(each: object) -> None:
    assert callable(each)
    for _ in range(100):
        each()
    assert not fence._lock.locked()


def test_a_fence_in_the_middle_of_a_fence_waits_for_nobody() -> None:
    """As from a signal handler; or another thread that has lost the processor in there."""
    with fence._lock:
        fence.by_lock()
        thread = threading.Thread(target=fence.by_lock)
        thread.start()
        thread.join()
    assert not fence._lock.locked()


def test_two_sides_that_store_and_then_look_never_both_miss() -> None:
    """Dekker's pattern. The interpreter's own lock hides most of what could go wrong; what is left must not show."""
    words = memoryview(bytearray(8)).cast("I")
    barrier = threading.Barrier(2)
    seen: list[list[int]] = [[], []]

    def side(mine: int) -> None:
        for number in range(1, 300):
            barrier.wait()
            words[mine] = number
            fence.store_load_fence()
            seen[mine].append(words[1 - mine])
            barrier.wait()

    threads = [threading.Thread(target=side, args=(mine,)) for mine in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (one, other) in enumerate(zip(*seen, strict=True), 1):
        assert number in (one, other)
