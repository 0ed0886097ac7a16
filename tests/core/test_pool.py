"""The queue of the pools: all or nothing, in the order of asking, and nobody overtakes a waiter of the same pool."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import DeadlineExpired, ResourceShortage, ShortageReason, WaitCancelled
from busdma.pool import PoolQueue, Requisition
from busdma.waiting import EXPIRED, PENDING, WOKEN


@dataclass(eq=False)
class Counter:
    """So many units of something."""

    name: str
    free: int
    waiting: int = 0
    limit: int = 10
    unit: str = "unit"

    def shortage(self, amount: int) -> ShortageReason:
        return ShortageReason.BUSY

    def count(self, what: str, amount: int) -> None:
        raise AssertionError(f"nobody counts {what} here")


@dataclass(eq=False)
class Units:
    """A need of a Counter."""

    pool: Counter
    amount: int
    taken: int = 0
    log: list[str] = field(default_factory=list)

    def ready(self) -> bool:
        if self.amount > self.pool.limit:
            raise ResourceShortage(f"never {self.amount}", ShortageReason.TOO_LARGE)
        return self.amount <= self.pool.free

    def take(self) -> bool:
        if not self.ready():
            return False
        self.pool.free -= self.amount
        self.taken += 1
        return True

    def give(self) -> None:
        self.pool.free += self.amount
        self.taken -= 1


def state(requisition: Requisition) -> str:
    return requisition.waiter.state


def test_all_or_nothing() -> None:
    queue = PoolQueue()
    pages, slots = Counter("pages", 4), Counter("slots", 1)
    both = [Units(pages, 3), Units(slots, 2)]
    assert not queue.take(both)
    assert (pages.free, slots.free) == (4, 1)
    waits = queue.join(both, "disk0")
    assert state(waits) == PENDING
    assert (pages.free, slots.free) == (4, 1)  # nobody holds one thing while waiting for another
    assert waits.waiter.purpose == "3 units of pages and 2 units of slots (for disk0)"
    slots.free += 1
    queue.serve()
    assert state(waits) == WOKEN
    assert (pages.free, slots.free) == (1, 0)
    assert (pages.waiting, slots.waiting) == (0, 0)


def test_an_error_in_the_middle_gives_back_what_was_taken() -> None:
    queue = PoolQueue()
    pages, slots = Counter("pages", 4), Counter("slots", 1)
    with pytest.raises(ResourceShortage, match="never 11"):
        queue.take([Units(pages, 3), Units(slots, 11)])
    assert pages.free == 4
    refused = queue.join([Units(pages, 3), Units(slots, 11)], "disk0")
    assert pages.free == 4
    assert queue.waiters() == []
    with pytest.raises(ResourceShortage, match=r"^disk0: never 11$") as error:
        refused.outcome()
    assert error.value.reason is ShortageReason.TOO_LARGE
    refused.withdraw()
    assert pages.free == 4


def test_only_those_who_need_the_same_wait_for_each_other() -> None:
    queue = PoolQueue()
    pages, slots = Counter("pages", 2), Counter("slots", 0)
    first = queue.join([Units(pages, 1), Units(slots, 1)], "first")  # waits for slots, and so holds up pages
    assert not queue.take([Units(pages, 1)])
    second = queue.join([Units(pages, 1)], "second")
    third = queue.join([Units(Counter("other", 1), 1)], "third")
    assert [state(each) for each in (first, second, third)] == [PENDING, PENDING, WOKEN]
    slots.free = 1
    queue.serve()
    assert [state(each) for each in (first, second)] == [WOKEN, WOKEN]
    assert pages.free == 0


def test_the_end_of_a_wait_serves_the_next() -> None:
    queue = PoolQueue()
    pages = Counter("pages", 2)
    large, small = queue.join([Units(pages, 5)], "large"), queue.join([Units(pages, 1)], "small")
    assert large.waiter.expire()
    assert queue.waiters() == ["large", "small"]
    large.withdraw()
    assert (state(large), state(small)) == (EXPIRED, WOKEN)
    with pytest.raises(DeadlineExpired):
        large.outcome()
    large.withdraw()
    assert pages.free == 1


def test_a_grant_to_nobody_goes_to_the_next() -> None:
    queue = PoolQueue()
    pages = Counter("pages", 0)
    gone, there = queue.join([Units(pages, 2)], "gone"), queue.join([Units(pages, 2)], "there")
    gone.waiter.cancel()
    pages.free = 2
    queue.serve()
    assert state(there) == WOKEN
    assert (pages.free, pages.waiting) == (0, 0)
    with pytest.raises(WaitCancelled):
        gone.outcome()


def test_a_grant_that_was_not_used_goes_back() -> None:
    queue = PoolQueue()
    pages = Counter("pages", 2)
    granted = queue.join([Units(pages, 2)], "granted")
    waits = queue.join([Units(pages, 2)], "waits")
    granted.withdraw()
    assert state(waits) == WOKEN
    assert pages.free == 0


def test_what_comes_back_while_it_is_being_taken_is_seen() -> None:
    """Taking from one pool may feed another, as a zone that gives its idle pages to a zone that grows."""
    queue = PoolQueue()
    pages, slots = Counter("pages", 0), Counter("slots", 1)

    class Feeding(Units):
        def take(self) -> bool:
            taken = super().take()
            pages.free += taken
            queue.serve()
            return taken

    waits = queue.join([Units(pages, 1)], "waits")
    assert queue.take([Feeding(slots, 1)])
    assert state(waits) == WOKEN
    assert pages.free == 0


def test_a_place_that_stays() -> None:
    queue = PoolQueue()
    pages = Counter("pages", 0)
    stays = queue.join([Units(pages, 2)], "stays", stays=True)
    behind = queue.join([Units(pages, 1)], "behind")
    pages.free = 3
    queue.serve()
    assert (state(stays), state(behind), pages.free) == (WOKEN, PENDING, 3)
    assert not queue.take([Units(pages, 1)])
    assert queue.enter(stays)
    assert queue.take([Units(pages, 1)])
    other: list[bool] = []
    thread = threading.Thread(target=lambda: other.append(queue.take([Units(pages, 1)])))
    thread.start()
    thread.join()
    assert other == [False]  # whose thread it is not must wait
    stays.withdraw()
    assert (state(behind), pages.free) == (WOKEN, 1)
    assert not queue.enter(stays)


steps = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "give", "withdraw", "cancel"]),
        st.integers(0, 9),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(steps)
def test_two_pools_against_a_model(script: list[tuple[str, int, int, int]]) -> None:
    """Grants are what a scan in order gives: a requisition is passed only by those who share no pool with it."""
    queue = PoolQueue()
    pools = [Counter("pages", 6), Counter("slots", 6)]
    everybody: list[Requisition] = []
    free, waiting, held = [6, 6], list[int](), set[int]()
    wants: list[tuple[int, int]] = []

    def serve() -> None:
        again = True
        while again:
            again, blocked = False, [False, False]
            for who in list(waiting):
                mine = [which for which in (0, 1) if wants[who][which]]
                if any(blocked[which] for which in mine) or any(wants[who][which] > free[which] for which in mine):
                    for which in mine:
                        blocked[which] = True
                    continue
                waiting.remove(who)
                held.add(who)
                for which in mine:
                    free[which] -= wants[who][which]
                again = True
                break

    for verb, number, pages, slots in script:
        if verb == "join":
            want = (pages, slots) if pages or slots else (1, 0)
            needs = [Units(pool, amount) for pool, amount in zip(pools, want, strict=True) if amount]
            wants.append(want)
            waiting.append(len(everybody))
            everybody.append(queue.join(needs, str(len(everybody))))
        elif verb == "give" and held:
            who = sorted(held)[number % len(held)]
            everybody[who].withdraw()  # gives back what was granted
            held.remove(who)
            for which in (0, 1):
                free[which] += wants[who][which]
        elif verb in ("withdraw", "cancel") and waiting:
            who = waiting.pop(number % len(waiting))
            if verb == "cancel":
                everybody[who].waiter.cancel()
            everybody[who].withdraw()
        serve()
        assert queue.waiters() == [str(who) for who in waiting]
        assert [pool.free for pool in pools] == free
        assert [pool.waiting for pool in pools] == [sum(bool(wants[who][which]) for who in waiting) for which in (0, 1)]
        assert {
            who for who, each in enumerate(everybody) if sum(n.taken for n in each.needs if isinstance(n, Units))
        } == held
