"""What the translation units have in common: the cache of translations, the log, the route."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import ConfigurationError
from busdma.sim.iommu.translation import Fault, FaultLog, Iotlb, TranslatedRoute, Translation, table_entry


@given(
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(0, 9)),
    st.lists(st.tuples(st.sampled_from(["put", "get", "drop", "drop_if", "clear"]), st.integers(0, 7))),
)
def test_the_cache_never_invents_and_forgets_only_when_told_or_full(
    capacity: int, seed: int | None, steps: list[tuple[str, int]]
) -> None:
    cache: Iotlb[int, int] = Iotlb(capacity, seed)
    model: dict[int, int] = {}  # all that was put and not dropped
    for n, (step, key) in enumerate(steps):
        if step == "put":
            full = len(cache) == capacity and cache.get(key) is None
            before = cache.statistics()["evicted"]
            cache.put(key, n)
            model[key] = n
            assert cache.get(key) == n
            assert cache.statistics()["evicted"] - before == full
        elif step == "get":
            found = cache.get(key)
            assert found is None or found == model[key]
        elif step == "drop":
            cache.drop(key)
            model.pop(key, None)
        elif step == "drop_if":
            cache.drop_if(lambda k, v: k % 3 == key % 3 and v >= 0)  # noqa: B023 (called at once)
            model = {k: v for k, v in model.items() if k % 3 != key % 3}
        else:
            cache.clear()
            model.clear()
        cached = {k: v for k in range(8) if (v := cache.get(k)) is not None}
        assert cached.items() <= model.items()
        assert len(cached) == len(cache) <= capacity
    counts = cache.statistics()
    assert counts["evicted"] or len(cache) == len(model)


def test_without_a_seed_the_oldest_makes_room() -> None:
    cache: Iotlb[int, str] = Iotlb(2)
    for key in (1, 2, 1, 3):
        cache.put(key, str(key))
    assert [cache.get(key) for key in (1, 2, 3)] == [None, "2", "3"]
    assert cache.statistics() == {"hits": 2, "misses": 1, "evicted": 1, "flushed": 0}


def test_equal_seeds_evict_equally() -> None:
    def survivors(seed: int) -> list[int]:
        cache: Iotlb[int, int] = Iotlb(8, seed)
        for key in range(100):
            cache.put(key, key)
        return [key for key in range(100) if cache.get(key) is not None]

    assert survivors(3) == survivors(3)
    assert survivors(3) != survivors(4)
    assert survivors(3) != list(range(92, 100))


def test_a_cache_needs_room() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        Iotlb[int, int](0)


def test_the_log_keeps_the_last_and_counts_all() -> None:
    log = FaultLog(keep=2)
    faults = [Fault(name, at, False, "why") for at, name in enumerate(["a", "b", "a"])]
    for fault in faults:
        log.record(fault)
    assert log.recent == tuple(faults[1:])
    assert log.statistics() == {"a": 2, "b": 1}


class Odd(Translation):
    """Bytes at odd hundreds go nowhere; the others go up by a thousand."""

    def span(self, master: str, address: int, length: int, write: bool) -> tuple[int | None, int]:
        count = min(length, 100 - address % 100)
        return (None if address // 100 % 2 else address + 1000), count


@given(st.integers(0, 1000), st.integers(1, 500))
def test_a_route_asks_until_the_burst_is_done(address: int, length: int) -> None:
    route = TranslatedRoute("m", Odd())
    where = [at if at is None else at + i for at, count in route.pieces(address, length, True) for i in range(count)]
    assert where == [None if a // 100 % 2 else a + 1000 for a in range(address, address + length)]
    assert not route.wraps(address, length)


def test_what_is_beyond_the_unit_has_the_last_word() -> None:
    asked = []

    def hole(address: int, length: int, write: bool) -> Iterator[tuple[int | None, int]]:
        asked.append((address, length, write))
        yield address, 10
        yield None, length - 10

    route = TranslatedRoute("m", Odd(), hole)
    assert list(route.pieces(250, 100, True)) == [(1250, 10), (None, 40), (None, 50)]
    assert asked == [(1250, 50, True)]


def test_tables_end_where_memory_does() -> None:
    memory = memoryview(bytes(range(16)))
    assert table_entry(memory, 12, 4, "big") == 0x0C0D0E0F
    assert table_entry(memory, 8, 8, "little") == 0x0F0E0D0C0B0A0908
    assert table_entry(memory, 13, 4, "big") is None
    assert table_entry(memory, -1, 4, "big") is None
