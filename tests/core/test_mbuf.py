"""Mbufs against a simple model: a packet is a bytearray, and a window knows what room it has."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from busdma.buffers import LinearBuffer
from busdma.errors import BufferGone, ConfigurationError, DriverError, ResourceShortage
from busdma.mbuf import MCLBYTES, MLEN, MSIZE, Mbuf, MbufChain, MbufPool
from busdma.sync import Direction
from core.small_machine import PAGE, SmallMachine


@pytest.fixture
def pool(small: SmallMachine) -> MbufPool:
    return MbufPool(small.kernel)


def pages_of(*mbufs: Mbuf) -> set[int]:
    return {view.start // PAGE for view in (mbuf.data for mbuf in mbufs)}


# -- pages ------------------------------------------------------------------------------------------------------------


def test_mbufs_of_one_page_share_it_and_nothing_else(small: SmallMachine) -> None:
    pool = MbufPool(small.kernel, seed=3)
    mbufs = [pool.get() for _ in range(PAGE // MSIZE)]
    assert len(pages_of(*mbufs)) == 1
    places = sorted(mbuf.data.start for mbuf in mbufs)
    assert [b - a for a, b in pairwise(places)] == [MSIZE] * 15
    for number, mbuf in enumerate(mbufs):
        mbuf.append(bytes([number]) * MLEN)
    assert [mbuf.read() for mbuf in mbufs] == [bytes([number]) * MLEN for number in range(16)]
    pool.get()
    assert pool.statistics()["pages"] == 2


def test_two_clusters_a_page_and_never_across(pool: MbufPool) -> None:
    clusters = [pool.cluster() for _ in range(6)]
    for cluster in clusters:
        cluster.window(0, MCLBYTES)
        first = cluster.data.start
        assert first // PAGE == (first + MCLBYTES - 1) // PAGE
    assert len(pages_of(*clusters)) == pool.statistics()["pages"] == 3
    assert pool.statistics()["clusters"] == 6


def test_the_seed_says_in_which_order_a_page_is_dealt_out(small: SmallMachine) -> None:
    def order(seed: int) -> list[int]:
        pool = MbufPool(small.kernel, seed=seed)
        return [pool.get().data.start % PAGE for _ in range(16)]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))


def test_pages_come_from_where_they_are_wanted_and_go_back(small: SmallMachine) -> None:
    free = small.frames.statistics()["free"]
    pool = MbufPool(small.kernel, within=small.below)
    chains = [pool.chain_of(bytes(3000)) for _ in range(4)]
    table = small.kernel.page_table
    assert all(table[page] in small.below for chain in chains for page in pages_of(*chain))
    pages = pool.statistics()["pages"]
    for chain in chains[1:]:
        chain.free()
    assert pool.drain() == pages - len(pages_of(*chains[0]))
    assert chains[0].read() == bytes(3000)
    chains[0].free()
    pool.drain()
    assert small.frames.statistics()["free"] == free
    assert pool.statistics()["pages"] == 0
    assert pool.get().read() == b""  # and it goes on


def test_a_pool_at_its_limit(small: SmallMachine) -> None:
    pool = MbufPool(small.kernel, limit=2)
    chain = pool.chain_of(bytes(4 * MCLBYTES))
    with pytest.raises(ResourceShortage, match="has its 2 pages"):
        pool.get()
    chain.free()
    with pytest.raises(ResourceShortage):
        pool.chain_of(bytes(5 * MCLBYTES))
    assert pool.statistics()["clusters"] == 0  # what it had taken went back


def test_pools_that_cannot_be(small: SmallMachine) -> None:
    with pytest.raises(ConfigurationError, match="a limit, or 0"):
        MbufPool(small.kernel, limit=-1)


# -- one mbuf ---------------------------------------------------------------------------------------------------------


def test_a_header_goes_into_the_room_before_the_window(pool: MbufPool) -> None:
    mbuf = pool.get(headroom=20)
    mbuf.append(b"payload")
    where = mbuf.data.start
    assert mbuf.prepend(14) is mbuf
    mbuf.write(b"fourteen bytes")
    assert mbuf.read() == b"fourteen bytespayload"
    assert mbuf.data.start == where - 14
    assert (mbuf.leading, mbuf.trailing) == (6, MLEN - 27)


def test_without_room_it_goes_into_a_new_mbuf_at_its_end(pool: MbufPool) -> None:
    mbuf = pool.cluster(headroom=5)
    mbuf.append(b"x" * 100)
    front = mbuf.prepend(6)
    assert front is not mbuf
    assert (front.next, front.length, front.leading, front.trailing) == (mbuf, 6, MLEN - 6, 0)
    assert (mbuf.length, mbuf.leading) == (100, 5)  # not copied, not moved


@pytest.mark.parametrize("count", [-1, MLEN + 1])
def test_headers_that_are_none(pool: MbufPool, count: int) -> None:
    with pytest.raises(DriverError, match="cannot prepend"):
        pool.get().prepend(count)


def test_beyond_the_window(pool: MbufPool) -> None:
    mbuf = pool.get(headroom=10)
    mbuf.append(b"abc")
    for data, offset in ((b"x", 3), (b"x", -1), (b"abcd", 0)):
        with pytest.raises(DriverError, match="do not fit its window"):
            mbuf.write(data, offset)
    with pytest.raises(DriverError, match="are not inside"):
        mbuf.read(2, 2)
    with pytest.raises(DriverError, match="no room for 212 bytes more, only for 211"):
        mbuf.append(bytes(212))
    with pytest.raises(DriverError, match="no window of its 224"):
        mbuf.window(10, 215)
    for count in (4, -4):
        with pytest.raises(DriverError, match="cannot trim 4 bytes"):
            mbuf.adjust(count)
    with pytest.raises(DriverError, match="225 bytes of headroom"):
        pool.get(headroom=225)
    assert mbuf.read() == b"abc"


def test_nothing_can_be_done_with_an_mbuf_that_was_freed(pool: MbufPool) -> None:
    mbuf, other = pool.get(), pool.get()
    mbuf.append(b"abc")
    mbuf.next = other
    view, chain = mbuf.data, MbufChain(mbuf)
    assert mbuf.free() is other
    uses: list[Callable[[], Any]] = [
        mbuf.free,
        mbuf.read,
        lambda: mbuf.write(b"x"),
        lambda: mbuf.append(b""),
        lambda: mbuf.prepend(0),
        lambda: mbuf.adjust(0),
        lambda: mbuf.window(0, 0),
        lambda: mbuf.data,
        chain.elements,
        chain.free,
        lambda: chain.length,
        view.read,
    ]
    for use in uses:
        with pytest.raises(BufferGone, match="it was freed"):
            use()
    assert "and then" in chain.describe()
    assert other.read() == b""
    again = pool.get()  # the same piece, another mbuf
    again.append(b"new")
    with pytest.raises(BufferGone):
        view.read()


def test_a_window_is_no_allocation(pool: MbufPool) -> None:
    cluster = pool.cluster()
    cluster.window(0, MCLBYTES)
    with pytest.raises(DriverError, match="is a view"):
        cluster.data.free()


def test_not_while_it_is_loaded(small: SmallMachine) -> None:
    pool = MbufPool(small.kernel)
    first, loaded = pool.get(), pool.get()
    loaded.append(b"abc")
    first.next = loaded
    map = small.root.create_map(name="m")
    map.load_nowait(loaded.data, Direction.TO_DEVICE)
    for free in (loaded.free, MbufChain(first).free):
        with pytest.raises(DriverError, match=r"'m' of tag pc \(loaded\) has it loaded"):
            free()
    assert first.gone == ""  # all or none
    map.unload()
    MbufChain(first).free()
    assert pool.statistics()["mbufs"] == 0


def test_a_closed_machine_has_no_mbufs(small: SmallMachine) -> None:
    pool = MbufPool(small.kernel)
    mbuf = pool.get()
    small.kernel.forget("the machine was closed")
    with pytest.raises(BufferGone, match="the machine was closed"):
        mbuf.read()


# -- chains -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=6000), st.integers(0, MLEN))
def test_a_chain_of_anything(data: bytes, headroom: int) -> None:
    pool = MbufPool(SmallMachine().kernel)
    chain = pool.chain_of(data, headroom=headroom)
    assert chain.read() == data
    assert chain.length == len(chain) == len(data)
    assert chain.first.leading == headroom
    assert [view.length for view in chain.elements()] == [mbuf.length for mbuf in chain]
    assert all(isinstance(view, LinearBuffer) for view in chain.elements())
    chain.free()
    assert pool.statistics()["mbufs"] == pool.statistics()["clusters"] == 0


def test_a_chain_says_what_it_is(pool: MbufPool) -> None:
    assert repr(pool.chain_of(bytes(2100))) == "<an mbuf chain of 2 mbufs, 2100 bytes>"
    assert repr(pool.chain_of(b"")) == "<an mbuf chain of 1 mbuf, 0 bytes>"


def test_a_cycle_is_named(pool: MbufPool) -> None:
    chain = pool.chain_of(bytes(5000))
    second = list(chain)[1]
    list(chain)[2].next = second
    for use in (chain.elements, chain.free, chain.read):
        with pytest.raises(DriverError, match=f"{second.describe()} is in the chain twice"):
            use()
    assert "a cycle" in chain.describe()
    assert second.gone == ""
    list_of_one = MbufChain(pool.get())
    with pytest.raises(DriverError, match="chain each mbuf once"):
        list_of_one.append(list_of_one)


def test_reading_beyond_the_end(pool: MbufPool) -> None:
    chain = pool.chain_of(bytes(300))
    for offset, length in ((301, None), (0, 301), (-1, 1), (1, -1)):
        with pytest.raises(DriverError, match="are not inside"):
            chain.read(offset, length)
    with pytest.raises(DriverError, match="cannot trim 301 bytes"):
        chain.adjust(-301)


class Packets(RuleBasedStateMachine):
    """Two packets, beside bytearrays that hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = SmallMachine(pages=256)
        self.pool = MbufPool(self.machine.kernel, seed=9)
        self.chains = [MbufChain(self.pool.get()) for _ in range(2)]
        self.models = [bytearray(), bytearray()]

    @rule(which=st.integers(0, 1), count=st.integers(0, MLEN), fill=st.integers(0, 255))
    def prepend(self, which: int, count: int, fill: int) -> None:
        chain, room, old = self.chains[which], self.chains[which].first.leading, self.chains[which].first
        chain.prepend(count)
        assert (chain.first is old) == (count <= room)
        chain.first.write(bytes([fill]) * count)
        self.models[which][:0] = bytes([fill]) * count

    @rule(which=st.integers(0, 1), data=st.binary(max_size=300), headroom=st.sampled_from([0, 3, MLEN]))
    def append(self, which: int, data: bytes, headroom: int) -> None:
        if sum(1 for _ in self.chains[which]) < 12:
            self.chains[which].append(self.pool.chain_of(data, headroom=headroom))
            self.models[which] += data

    @rule(which=st.integers(0, 1), at=st.integers(0, 20), data=st.binary(max_size=9))
    def append_in_place(self, which: int, at: int, data: bytes) -> None:
        mbufs = list(self.chains[which])
        mbuf = mbufs[at % len(mbufs)]
        end = sum(each.length for each in mbufs[: at % len(mbufs) + 1])
        if len(data) > mbuf.trailing:
            with pytest.raises(DriverError, match="no room"):
                mbuf.append(data)
        else:
            mbuf.append(data)
            self.models[which][end:end] = data

    @rule(which=st.integers(0, 1), part=st.integers(-40, 40))
    def adjust(self, which: int, part: int) -> None:
        model = self.models[which]
        count = part * len(model) // 40
        self.chains[which].adjust(count)
        del model[: max(count, 0)]
        del model[len(model) - max(-count, 0) :]

    @rule(which=st.integers(0, 1))
    def replace(self, which: int) -> None:
        self.chains[which].free()
        self.chains[which] = self.pool.chain_of(b"again")
        self.models[which] = bytearray(b"again")

    @rule()
    def join(self) -> None:
        if sum(1 for chain in self.chains for _ in chain) < 16:
            self.chains[0].append(self.chains[1])
            self.models[0] += self.models[1]
            self.chains[1], self.models[1] = MbufChain(self.pool.get()), bytearray()

    @rule()
    def drain(self) -> None:
        self.pool.drain()

    @rule(which=st.integers(0, 1), at=st.integers(0, 40), count=st.integers(0, 40))
    def look(self, which: int, at: int, count: int) -> None:
        model = self.models[which]
        first = at * len(model) // 40
        length = min(count, len(model) - first)
        assert self.chains[which].read(first, length) == model[first : first + length]

    @invariant()
    def agree(self) -> None:
        for chain, model in zip(self.chains, self.models, strict=True):
            assert chain.read() == model
            assert chain.length == len(model)
        mbufs = [mbuf for chain in self.chains for mbuf in chain]
        counts = self.pool.statistics()
        assert counts["mbufs"] + counts["clusters"] == len(mbufs) == counts["got"] - counts["freed"]
        assert self.machine.kernel.statistics()["resident"] == counts["pages"]

    @invariant()
    def apart(self) -> None:
        """No byte is in two mbufs, the room around windows included."""
        areas = sorted((mbuf.data.start - mbuf.leading, mbuf.size) for chain in self.chains for mbuf in chain)
        assert all(a + size <= b for (a, size), (b, _) in pairwise(areas))


TestPackets = Packets.TestCase
